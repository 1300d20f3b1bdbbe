//! The grammar of `.axiomfs/control`: one pure function from a line to a command.
//!
//! ```text
//! chain show [NAME] | chain set NAME STEPS | chain add NAME STEP [before ID | after ID] | chain remove NAME ID
//! chain new NAME STEPS | chain test NAME | set [CHAIN/]ID key=value… | plugin list | plugin load ID | plugin unload ID
//! route list | route explain PATH | route add under|match PATTERN CHAIN [first] | route remove NUMBER | key status | key rotate [compromised] | store status | reload | sync [begin | wait NUMBER] | advise
//! audit verify
//! STEPS = STEP | STEP …        STEP = ID or ID(key=value,…)
//! ```
//!
//! `confirm=TOKEN` may end the commands that can weaken or destroy. Beside a plugin's own parameters every step takes
//! `on_error=fail`, `on_error=skip` or `on_error=fallback:CHAIN`.

use std::iter::Peekable;
use std::vec::IntoIter;

use thiserror::Error;

use crate::build::is_name;
use crate::wire::is_id;
use crate::{HostError, MAX_CHAIN_STEPS, Matcher, OnError, StepSpec};

/// Longest command in bytes.
pub const MAX_COMMAND: usize = 4096;

/// A refused command, as the control file answers it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{msg}")]
pub struct ControlError {
    /// A short, stable word for programs: `SYNTAX`, `ORDER`, `UNKNOWN`, …
    pub code: &'static str,
    /// The name of the errno that the writer gets.
    pub errno_name: &'static str,
    /// What is wrong.
    pub msg: String,
    /// What to do about it, or nothing.
    pub hint: String,
}

impl From<HostError> for ControlError {
    fn from(error: HostError) -> Self {
        let mut msg = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            msg = format!("{msg}: {cause}");
            source = cause.source();
        }
        Self { code: error.code(), errno_name: error.errno_name(), msg, hint: error.hint() }
    }
}

/// One command. [`Host::execute`](crate::Host::execute) does the first three kinds, its caller the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// About chains.
    Chain(ChainCommand),
    /// About plugins.
    Plugin(PluginCommand),
    /// About routes.
    Route(RouteCommand),
    /// `key status`
    KeyStatus,
    /// `key rotate [compromised]`
    KeyRotate {
        /// Whether chunks sealed with older keys are to be stored anew when met again.
        compromised: bool,
        /// The token given.
        confirm: Option<String>,
    },
    /// `store status`
    StoreStatus,
    /// `reload`
    Reload {
        /// The token given.
        confirm: Option<String>,
    },
    /// `sync [begin | wait NUMBER]`
    Sync(SyncCommand),
    /// `advise`
    Advise,
    /// `audit verify`
    AuditVerify,
}

impl Command {
    /// Whether it changes nothing.
    pub fn only_asks(&self) -> bool {
        match self {
            Self::Chain(ChainCommand::Show { .. } | ChainCommand::Test { .. })
            | Self::Plugin(PluginCommand::List)
            | Self::Route(RouteCommand::List | RouteCommand::Explain(_))
            | Self::KeyStatus
            | Self::StoreStatus
            | Self::Sync(_)
            | Self::Advise
            | Self::AuditVerify => true,
            Self::Chain(_) | Self::Plugin(_) | Self::Route(_) | Self::KeyRotate { .. } | Self::Reload { .. } => false,
        }
    }
}

/// How far all that was written is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncCommand {
    /// Until it is in the store, some minutes at most.
    Whole,
    /// Not at all; the answer has a number to wait for.
    Begin,
    /// Until what was written before that number was given is in the store, a second at most.
    Wait(u64),
}

/// A command about chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainCommand {
    /// `chain show [NAME]`
    Show {
        /// One chain, or all.
        name: Option<String>,
    },
    /// `chain set NAME STEPS`
    Set {
        /// The chain.
        name: String,
        /// Its new steps.
        steps: Vec<StepSpec>,
        /// The token given.
        confirm: Option<String>,
    },
    /// `chain new NAME STEPS`
    New {
        /// Its name, which no other chain has.
        name: String,
        /// Its steps.
        steps: Vec<StepSpec>,
    },
    /// `chain add NAME STEP [before ID | after ID]`
    Add {
        /// The chain.
        name: String,
        /// The new step.
        step: StepSpec,
        /// Where; the descriptors decide where it is not said.
        position: Option<Position>,
    },
    /// `chain remove NAME ID`
    Remove {
        /// The chain.
        name: String,
        /// The step's plugin.
        plugin: String,
        /// The token given.
        confirm: Option<String>,
    },
    /// `chain test NAME`
    Test {
        /// The chain.
        name: String,
    },
    /// `set [CHAIN/]ID key=value…`
    Configure {
        /// The chain; `default` where it has the plugin, else the only one that has it.
        chain: Option<String>,
        /// The step's plugin.
        plugin: String,
        /// The parameters to change, `on_error` among them.
        params: Vec<(String, String)>,
    },
}

/// Where a new step goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// Right before this plugin.
    Before(String),
    /// Right after this plugin.
    After(String),
}

/// A command about plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PluginCommand {
    /// `plugin list`
    List,
    /// `plugin load ID`
    Load(String),
    /// `plugin unload ID`
    Unload(String),
}

/// A command about routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteCommand {
    /// `route list`
    List,
    /// `route explain PATH`
    Explain(String),
    /// `route add under|match PATTERN CHAIN [first]`
    Add {
        /// Which files; none is ever exempted from encryption by command.
        matcher: Matcher,
        /// The chain they go through.
        chain: String,
        /// Before all other routes, not behind them.
        first: bool,
    },
    /// `route remove NUMBER`
    Remove {
        /// Its place in the list; the first is 1.
        number: usize,
        /// The token, where files would be exempted that the route took from an exempted directory.
        confirm: Option<String>,
    },
}

/// Reads one command.
///
/// # Errors
/// [`ControlError`] with code `SYNTAX` and errno `EINVAL`, saying what was expected.
pub fn parse_command(text: &str) -> Result<Command, ControlError> {
    if text.len() > MAX_COMMAND {
        return Err(syntax(
            format!("A command has at most {MAX_COMMAND} bytes, not {}", text.len()),
            "Write chain.yaml for more",
        ));
    }
    let line = text.trim_matches([' ', '\t', '\r', '\n']);
    if let Some(c) = line.chars().find(|c| c.is_control() && *c != '\t') {
        let hint = if c == '\n' { "Write one command at a time" } else { "Write plain text" };
        return Err(syntax(format!("A command has no control characters, such as {c:?}"), hint));
    }
    let mut words = Words::new(line)?;
    let verb = words.next("a command")?;
    let command = match verb.as_str() {
        "chain" => Command::Chain(chain_command(&mut words)?),
        "set" => Command::Chain(configure(&mut words)?),
        "plugin" => Command::Plugin(plugin_command(&mut words)?),
        "route" => return route_command(line, words).map(Command::Route),
        "key" => key_command(&mut words)?,
        "store" => words.keyword(&[("status", Command::StoreStatus)])?,
        "audit" => words.keyword(&[("verify", Command::AuditVerify)])?,
        "reload" => Command::Reload { confirm: words.confirm()? },
        "sync" => Command::Sync(sync_command(&mut words)?),
        "advise" => Command::Advise,
        other => {
            let msg = format!("There is no command {other:?}");
            return Err(syntax(msg, "Commands: chain, set, plugin, route, key, store, reload, sync, advise, audit"));
        }
    };
    words.end()?;
    Ok(command)
}

fn sync_command(words: &mut Words) -> Result<SyncCommand, ControlError> {
    if words.is_empty() {
        return Ok(SyncCommand::Whole);
    }
    if words.take("begin") {
        return Ok(SyncCommand::Begin);
    }
    let verb = words.next("begin or wait")?;
    if verb != "wait" {
        return Err(syntax(format!("There is no command sync {verb}"), "sync | sync begin | sync wait NUMBER"));
    }
    let number = words.next("the number that sync begin gave")?;
    number
        .parse()
        .map(SyncCommand::Wait)
        .map_err(|_| syntax(format!("{number:?} is no number"), "Give the number that sync begin gave"))
}

fn chain_command(words: &mut Words) -> Result<ChainCommand, ControlError> {
    let verb = words.next("show, set, new, add, remove or test after chain")?;
    match verb.as_str() {
        "show" if words.is_empty() => return Ok(ChainCommand::Show { name: None }),
        "show" | "set" | "new" | "add" | "remove" | "test" => {}
        other => {
            return Err(syntax(format!("There is no command chain {other}"), "chain show|set|new|add|remove|test"));
        }
    }
    let name = words.chain_name()?;
    Ok(match verb.as_str() {
        "show" => ChainCommand::Show { name: Some(name) },
        "set" => ChainCommand::Set { name, steps: words.steps()?, confirm: words.confirm()? },
        "new" => ChainCommand::New { name, steps: words.steps()? },
        "add" => ChainCommand::Add { name, step: words.step()?, position: words.position()? },
        "remove" => ChainCommand::Remove { name, plugin: words.plugin_id()?, confirm: words.confirm()? },
        _ => ChainCommand::Test { name },
    })
}

fn configure(words: &mut Words) -> Result<ChainCommand, ControlError> {
    let target = words.next("a plugin's id after set")?;
    let (chain, plugin) = match target.split_once('/') {
        Some((chain, plugin)) => (Some(checked_name(chain)?), checked_id(plugin)?),
        None => (None, checked_id(&target)?),
    };
    let mut params = Vec::new();
    while !words.is_empty() {
        params.push(parameter(&words.next("key=value")?)?);
    }
    if params.is_empty() {
        return Err(syntax(
            format!("What is to be set of {plugin} is missing"),
            "set ID key=value…, as in set zstd level=9",
        ));
    }
    let step = with_params(&plugin, params.clone())?;
    debug_assert_eq!(step.plugin, plugin);
    Ok(ChainCommand::Configure { chain, plugin, params })
}

fn plugin_command(words: &mut Words) -> Result<PluginCommand, ControlError> {
    match words.next("list, load or unload after plugin")?.as_str() {
        "list" => Ok(PluginCommand::List),
        "load" => words.plugin_id().map(PluginCommand::Load),
        "unload" => words.plugin_id().map(PluginCommand::Unload),
        other => Err(syntax(format!("There is no command plugin {other}"), "plugin list | load ID | unload ID")),
    }
}

const ADD_ROUTE: &str = "route add under /DIRECTORY CHAIN, or route add match '*.log' CHAIN";

/// A path is the rest of the line as it stands: it may hold spaces and brackets.
fn route_command(line: &str, mut words: Words) -> Result<RouteCommand, ControlError> {
    match words.next("list, explain, add or remove after route")?.as_str() {
        "list" => words.end().map(|()| RouteCommand::List),
        "explain" => {
            let rest = line.split_once("explain").map_or("", |(_, rest)| rest).trim_start_matches([' ', '\t']);
            if rest.is_empty() {
                return Err(syntax("A path after route explain is missing", "route explain /logs/today"));
            }
            Ok(RouteCommand::Explain(rest.to_owned()))
        }
        "add" => {
            let matcher = match (words.next("under or match")?.as_str(), words.next("a directory or a pattern")?) {
                ("under", dir) => Matcher::Under(dir),
                ("match", glob) => Matcher::Match(glob),
                (other, _) => return Err(syntax(format!("Expected under or match, not {other:?}"), ADD_ROUTE)),
            };
            let (chain, first) = (words.chain_name()?, words.take("first"));
            words.end().map(|()| RouteCommand::Add { matcher, chain, first })
        }
        "remove" => {
            let word = words.next("a route's number")?;
            let number = word.parse().ok().filter(|number| *number > 0);
            let bad = || syntax(format!("Expected a route's number, not {word:?}"), "The first of route list is 1");
            let number = number.ok_or_else(bad)?;
            let confirm = words.confirm()?;
            words.end().map(|()| RouteCommand::Remove { number, confirm })
        }
        other => {
            let hint = "route list | explain PATH | add under|match PATTERN CHAIN [first] | remove NUMBER";
            Err(syntax(format!("There is no command route {other}"), hint))
        }
    }
}

fn key_command(words: &mut Words) -> Result<Command, ControlError> {
    match words.next("status or rotate after key")?.as_str() {
        "status" => Ok(Command::KeyStatus),
        "rotate" => {
            let compromised = words.take("compromised");
            Ok(Command::KeyRotate { compromised, confirm: words.confirm()? })
        }
        other => Err(syntax(format!("There is no command key {other}"), "key status | rotate [compromised]")),
    }
}

/// A line cut at white space and `|` outside of parentheses; `|` is a word of its own.
struct Words(Peekable<IntoIter<String>>);

impl Words {
    fn new(line: &str) -> Result<Self, ControlError> {
        // A path after `route explain` is no word, so its parentheses need not match.
        let is_path = line.starts_with("route");
        let (mut words, mut word, mut open) = (Vec::new(), String::new(), false);
        for c in line.chars() {
            match c {
                ' ' | '\t' | '|' if !open => {
                    if !word.is_empty() {
                        words.push(std::mem::take(&mut word));
                    }
                    if c == '|' {
                        words.push("|".into());
                    }
                }
                '(' | ')' if !is_path => {
                    if (c == '(') == open {
                        return Err(syntax("Parentheses do not match", "A step is ID or ID(key=value,…)"));
                    }
                    open = c == '(';
                    word.push(c);
                }
                _ => word.push(c),
            }
        }
        if open {
            return Err(syntax("A parenthesis is not closed", "A step is ID or ID(key=value,…)"));
        }
        if !word.is_empty() {
            words.push(word);
        }
        Ok(Self(words.into_iter().peekable()))
    }

    fn is_empty(&mut self) -> bool {
        self.0.peek().is_none()
    }

    fn next(&mut self, what: &str) -> Result<String, ControlError> {
        self.0.next().ok_or_else(|| syntax(format!("Expected {what}"), "Write it behind the rest"))
    }

    /// Takes the next word if it is `word`.
    fn take(&mut self, word: &str) -> bool {
        self.0.next_if(|next| next == word).is_some()
    }

    fn keyword(&mut self, known: &[(&str, Command)]) -> Result<Command, ControlError> {
        let list = known.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" or ");
        let word = self.next(&list)?;
        let found = known.iter().find(|(known, _)| *known == word).map(|(_, command)| command.clone());
        found.ok_or_else(|| syntax(format!("Expected {list}, not {word:?}"), "Use one of these words"))
    }

    fn end(mut self) -> Result<(), ControlError> {
        match self.0.next() {
            None => Ok(()),
            Some(word) => Err(syntax(format!("Nothing may follow, but {word:?} does"), "Leave it out")),
        }
    }

    fn confirm(&mut self) -> Result<Option<String>, ControlError> {
        let Some(word) = self.0.next_if(|word| word.starts_with("confirm=")) else { return Ok(None) };
        let token = &word["confirm=".len()..];
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(syntax("A token has only letters and digits", "confirm=TOKEN with the token from status"));
        }
        Ok(Some(token.to_owned()))
    }

    fn chain_name(&mut self) -> Result<String, ControlError> {
        checked_name(&self.next("a chain's name")?)
    }

    fn plugin_id(&mut self) -> Result<String, ControlError> {
        checked_id(&self.next("a plugin's id")?)
    }

    fn step(&mut self) -> Result<StepSpec, ControlError> {
        parse_step(&self.next("a step")?)
    }

    fn steps(&mut self) -> Result<Vec<StepSpec>, ControlError> {
        let mut steps = vec![self.step()?];
        while self.take("|") {
            if steps.len() == MAX_CHAIN_STEPS {
                return Err(syntax(format!("A chain has at most {MAX_CHAIN_STEPS} steps"), "Use fewer steps"));
            }
            steps.push(self.step()?);
        }
        Ok(steps)
    }

    fn position(&mut self) -> Result<Option<Position>, ControlError> {
        if self.take("before") {
            self.plugin_id().map(|id| Some(Position::Before(id)))
        } else if self.take("after") {
            self.plugin_id().map(|id| Some(Position::After(id)))
        } else {
            Ok(None)
        }
    }
}

/// `ID` or `ID(key=value,…)`.
fn parse_step(word: &str) -> Result<StepSpec, ControlError> {
    let Some((id, rest)) = word.split_once('(') else { return Ok(StepSpec::new(checked_id(word)?)) };
    let plugin = checked_id(id)?;
    let Some(list) = rest.strip_suffix(')') else {
        return Err(syntax(
            format!("Nothing may follow the parenthesis in {word:?}"),
            "A step is ID or ID(key=value,…)",
        ));
    };
    if list.trim().is_empty() {
        return Ok(StepSpec::new(plugin));
    }
    let params = list.split(',').map(|part| parameter(part.trim())).collect::<Result<_, _>>()?;
    with_params(&plugin, params)
}

/// A step of `plugin` with `params`, `on_error` taken out of them.
pub fn with_params(plugin: &str, params: Vec<(String, String)>) -> Result<StepSpec, ControlError> {
    let mut step = StepSpec::new(plugin);
    for (i, (key, value)) in params.iter().enumerate() {
        if params[..i].iter().any(|(earlier, _)| earlier == key) {
            return Err(syntax(format!("Parameter {key} of {plugin} stands there twice"), "Leave one out"));
        }
        if key == "on_error" {
            step.on_error = strategy(value)?;
        } else {
            step.params.push((key.clone(), value.clone()));
        }
    }
    Ok(step)
}

fn strategy(value: &str) -> Result<OnError, ControlError> {
    match (value, value.strip_prefix("fallback:")) {
        ("fail", _) => Ok(OnError::Fail),
        ("skip", _) => Ok(OnError::Skip),
        (_, Some(chain)) => checked_name(chain).map(OnError::Fallback),
        _ => Err(syntax(format!("on_error can't be {value:?}"), "on_error=fail, skip or fallback:CHAIN")),
    }
}

fn parameter(word: &str) -> Result<(String, String), ControlError> {
    match word.split_once('=') {
        Some((key, value)) if is_id(key.as_bytes()) && is_value(value) => Ok((key.to_owned(), value.to_owned())),
        _ => Err(syntax(format!("Expected key=value, not {word:?}"), "As in level=9")),
    }
}

fn is_value(value: &str) -> bool {
    !value.is_empty() && !value.contains([' ', '\t', '(', ')', ',', '=', '|'])
}

fn checked_name(name: &str) -> Result<String, ControlError> {
    if is_name(name) {
        return Ok(name.to_owned());
    }
    Err(syntax(format!("{name:?} can't be a chain's name"), "Names are 1 to 32 of a-z, 0-9, - and _"))
}

fn checked_id(id: &str) -> Result<String, ControlError> {
    if is_id(id.as_bytes()) {
        return Ok(id.to_owned());
    }
    Err(syntax(format!("{id:?} can't be a plugin's id"), "Ids are 1 to 64 of a-z, 0-9, - and _"))
}

fn syntax(msg: impl Into<String>, hint: &str) -> ControlError {
    ControlError { code: "SYNTAX", errno_name: "EINVAL", msg: msg.into(), hint: hint.into() }
}
