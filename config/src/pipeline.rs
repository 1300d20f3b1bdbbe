use std::time::Duration;

use crate::document::{Bounds, Cursor, Document, Map, suggestion};
use crate::error::ConfigError;
use crate::settings::versioned;

/// The keys of this part, at the top of a settings file.
pub(crate) const KEYS: [&str; 6] = ["require", "limits", "chains", "routes", "policies", "store"];

/// Most chains in one file, and most routes: far more than anybody wrote, and small enough to hold.
pub const MAX_ENTRIES: usize = 256;
/// Most steps of one chain.
pub const MAX_STEPS: usize = 16;
const MAX_NAME: usize = 32;

/// What files go through on their way to the store. `.axiomfs/chain.yaml` holds exactly this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pipeline {
    /// Capabilities every chain must provide.
    pub require: Vec<String>,
    /// Bounds for plugins.
    pub limits: LimitSettings,
    /// All chains; one is called `default`.
    pub chains: Vec<ChainSettings>,
    /// Which file takes which chain: the first that matches, else `default`.
    pub routes: Vec<RouteSettings>,
    /// Rules that run by themselves.
    pub policies: Policies,
    /// How the store is used.
    pub store: StoreSettings,
}

/// Bounds for plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitSettings {
    /// Frames in work at the same time.
    pub max_in_flight: u32,
    /// Most bytes one worker of a plugin may use.
    pub plugin_memory: u64,
    /// Longest time one frame may take in one step.
    pub frame_timeout: Duration,
}

/// Steps in the order in which they encode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainSettings {
    /// Its name.
    pub name: String,
    /// Its steps; a chain without any leaves what goes through it as it is.
    pub steps: Vec<StepSettings>,
}

/// One plugin of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepSettings {
    /// The plugin's id.
    pub plugin: String,
    /// Its parameters, which it checks itself. A pair `[1, 9]` reads `1..9`.
    pub params: Vec<(String, String)>,
    /// What to do when it fails.
    pub on_error: OnError,
}

/// What to do when a step fails on a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnError {
    /// The frame is not stored, and whoever waits for it gets an error.
    Fail,
    /// The frame goes on without the step.
    Skip,
    /// The frame takes another chain from its start.
    Fallback(String),
}

/// Sends files to a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSettings {
    /// Which files.
    pub selector: Selector,
    /// The chain's name.
    pub chain: String,
    /// Whether the chain may leave out encryption; only for whole directories.
    pub allow_unencrypted: bool,
}

/// Which files a route takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// All below a directory of `live`, as `/logs`; `/` is everything.
    Under(String),
    /// All whose name matches a glob, as `*.{jpg,mp4}`.
    Match(String),
}

/// Rules that run by themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policies {
    /// When a new sealing key is taken into use.
    pub rotate: Rotate,
    /// Which frames are decoded and compared before they count, made by plugins that are compiled in; of all other plugins every one is.
    pub verify_builtin: Verify,
}

/// When a new sealing key is taken into use: at whichever comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotate {
    /// Age of the key.
    pub age: Duration,
    /// Bytes sealed with it.
    pub bytes: u64,
}

/// Which encoded frames are decoded again and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Every one.
    Always,
    /// One in so many.
    Sample(u32),
}

/// How the store is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    /// What to do when it fails.
    pub on_error: OnStoreError,
    /// How many uploads run at the same time.
    pub uploads: Uploads,
}

/// What to do when a call to the store fails with an error that may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnStoreError {
    /// Report it at once.
    Fail,
    /// Try again.
    Retry(Retry),
}

/// How often and when to try again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Attempts after the first.
    pub count: u32,
    /// First and longest pause; it doubles between, with jitter.
    pub backoff: (Duration, Duration),
}

/// Most uploads at the same time that can be asked for.
const MAX_UPLOADS: u32 = 32;

/// Fewest and most uploads at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uploads {
    /// Where it begins.
    pub min: u32,
    /// Where it ends.
    pub max: u32,
}

impl Default for Pipeline {
    fn default() -> Self {
        let zstd = StepSettings {
            plugin: "zstd".to_owned(),
            params: vec![("level".to_owned(), "3".to_owned())],
            on_error: OnError::Skip,
        };
        let seal = StepSettings { plugin: "aes-256-gcm".to_owned(), params: Vec::new(), on_error: OnError::Fail };
        Self {
            require: vec!["encryption".to_owned()],
            limits: LimitSettings { max_in_flight: 32, plugin_memory: 10 << 20, frame_timeout: Duration::from_secs(5) },
            chains: vec![ChainSettings { name: "default".to_owned(), steps: vec![zstd, seal] }],
            routes: Vec::new(),
            policies: Policies {
                rotate: Rotate { age: Duration::from_secs(30 * 86_400), bytes: 1 << 40 },
                verify_builtin: Verify::Sample(16),
            },
            store: StoreSettings {
                on_error: OnStoreError::Retry(Retry {
                    count: 8,
                    backoff: (Duration::from_millis(200), Duration::from_secs(30)),
                }),
                uploads: Uploads { min: 2, max: 32 },
            },
        }
    }
}

impl Pipeline {
    /// Reads what is written to `.axiomfs/chain.yaml`.
    ///
    /// # Errors
    /// [`ConfigError`] for the first thing that is wrong, with its line; settings that only a mount can take are unknown.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let document = Document::parse(text)?;
        let map = versioned(&document.root(), &[&["version"][..], &KEYS[..]].concat())?;
        Self::read(&map)
    }

    pub(crate) fn read(map: &Map<'_>) -> Result<Self, ConfigError> {
        let mut pipeline = Self::default();
        if let Some(value) = map.get("require") {
            pipeline.require = names(&value)?;
        }
        if let Some(group) = map.get("limits") {
            pipeline.limits = limits(&group, pipeline.limits)?;
        }
        if let Some(group) = map.get("chains") {
            pipeline.chains = chains(&group)?;
        }
        let known: Vec<&str> = pipeline.chains.iter().map(|chain| chain.name.as_str()).collect();
        if let Some(list) = map.get("routes") {
            pipeline.routes =
                list.sequence(MAX_ENTRIES)?.iter().map(|item| route(item, &known)).collect::<Result<_, _>>()?;
        }
        if let Some(group) = map.get("policies") {
            pipeline.policies = policies(&group, pipeline.policies)?;
        }
        if let Some(group) = map.get("store") {
            pipeline.store = store(&group, pipeline.store)?;
        }
        Ok(pipeline)
    }
}

fn names(list: &Cursor<'_>) -> Result<Vec<String>, ConfigError> {
    list.sequence(MAX_STEPS)?.iter().map(name).collect()
}

fn name(value: &Cursor<'_>) -> Result<String, ConfigError> {
    let text = value.text()?;
    check_name(value, text)?;
    Ok(text.to_owned())
}

fn check_name(at: &Cursor<'_>, text: &str) -> Result<(), ConfigError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if text.is_empty() || text.len() > MAX_NAME || !text.chars().all(plain) {
        let shown: String = text.chars().take(MAX_NAME).collect();
        return Err(at.bad(
            format!("has the name {shown:?}"),
            format!("names are 1 to {MAX_NAME} of a-z, 0-9, \"-\" and \"_\""),
        ));
    }
    Ok(())
}

fn limits(group: &Cursor<'_>, mut limits: LimitSettings) -> Result<LimitSettings, ConfigError> {
    let map = group.mapping(&["max_in_flight", "plugin_memory", "frame_timeout"])?;
    if let Some(value) = map.get("max_in_flight") {
        limits.max_in_flight = small(&value, 1, 32)?;
    }
    if let Some(value) = map.get("plugin_memory") {
        limits.plugin_memory = value.bytes(Bounds { min: 1 << 20, max: 1 << 30 })?;
    }
    if let Some(value) = map.get("frame_timeout") {
        let bounds = Bounds { min: Duration::from_millis(100), max: Duration::from_secs(600) };
        limits.frame_timeout = value.duration(bounds)?;
    }
    Ok(limits)
}

fn small(value: &Cursor<'_>, min: u32, max: u32) -> Result<u32, ConfigError> {
    let number = value.integer(Bounds { min: min.into(), max: max.into() })?;
    Ok(u32::try_from(number).unwrap_or(max))
}

fn chains(group: &Cursor<'_>) -> Result<Vec<ChainSettings>, ConfigError> {
    let entries = group.any_mapping()?.entries()?;
    if entries.len() > MAX_ENTRIES {
        return Err(group.bad(format!("has {} chains", entries.len()), format!("use {MAX_ENTRIES} at most")));
    }
    let known: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
    if !known.contains(&"default") {
        return Err(group.bad("has no chain default", "name one default: it takes all that no route sends elsewhere"));
    }
    let mut chains = Vec::with_capacity(entries.len());
    for (name, value) in &entries {
        check_name(value, name)?;
        let items = value.sequence(MAX_STEPS)?;
        let steps = items.iter().map(|item| step(item, name, &known)).collect::<Result<_, _>>()?;
        chains.push(ChainSettings { name: name.clone(), steps });
    }
    check_fallbacks(group, &chains)?;
    Ok(chains)
}

/// Following fallbacks must end, or a frame that always fails would go round for ever.
fn check_fallbacks(group: &Cursor<'_>, chains: &[ChainSettings]) -> Result<(), ConfigError> {
    for chain in chains {
        let mut seen: Vec<String> = Vec::new();
        let mut open = fallbacks(chains, &chain.name);
        while let Some(next) = open.pop() {
            if next == chain.name {
                let at = group.any_mapping()?.get(&chain.name).unwrap_or_else(|| group.clone());
                return Err(at.bad("falls back to itself, directly or through others", "break the circle of fallbacks"));
            }
            if !seen.contains(&next) {
                open.extend(fallbacks(chains, &next));
                seen.push(next);
            }
        }
    }
    Ok(())
}

fn fallbacks(chains: &[ChainSettings], name: &str) -> Vec<String> {
    let steps = chains.iter().filter(|chain| chain.name == name).flat_map(|chain| &chain.steps);
    steps
        .filter_map(|step| match &step.on_error {
            OnError::Fallback(to) => Some(to.clone()),
            OnError::Fail | OnError::Skip => None,
        })
        .collect()
}

fn step(item: &Cursor<'_>, chain: &str, chains: &[&str]) -> Result<StepSettings, ConfigError> {
    let map = item.any_mapping()?;
    let plugin = name(&map.required("plugin", "write \"plugin: zstd\"")?)?;
    let mut params = Vec::new();
    let mut on_error = OnError::Fail;
    for (key, value) in map.entries()? {
        match key.as_str() {
            "plugin" => {}
            "on_error" => on_error = step_error(&value, chain, chains)?,
            _ => params.push((key, value.parameter()?)),
        }
    }
    Ok(StepSettings { plugin, params, on_error })
}

fn step_error(value: &Cursor<'_>, chain: &str, chains: &[&str]) -> Result<OnError, ConfigError> {
    const HINT: &str = "write fail, skip or {fallback: CHAIN}";
    if value.is_mapping() {
        let map = value.mapping(&["fallback"])?;
        let target = map.required("fallback", HINT)?;
        let to = known_chain(&target, chains)?;
        if to == chain {
            return Err(target.bad("is the chain itself", "name another chain"));
        }
        return Ok(OnError::Fallback(to));
    }
    match value.text()? {
        "fail" => Ok(OnError::Fail),
        "skip" => Ok(OnError::Skip),
        other => Err(value.bad(format!("is {other:?}"), HINT)),
    }
}

fn known_chain(value: &Cursor<'_>, chains: &[&str]) -> Result<String, ConfigError> {
    let text = value.text()?;
    if chains.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(value.bad(format!("names the chain {text:?}, which is not there"), suggestion(text, chains)))
}

fn route(item: &Cursor<'_>, chains: &[&str]) -> Result<RouteSettings, ConfigError> {
    let map = item.mapping(&["under", "match", "chain", "allow_unencrypted"])?;
    let selector = match (map.get("under"), map.get("match")) {
        (Some(value), None) => under(&value)?,
        (None, Some(value)) => match value.text()? {
            "" => return Err(value.bad("is empty", "write a glob, as \"*.jpg\"")),
            glob => Selector::Match(glob.to_owned()),
        },
        _ => {
            return Err(item.bad("needs under or match, and not both", "write e.g. \"{under: /logs, chain: default}\""));
        }
    };
    let chain = known_chain(&map.required("chain", "name one of the chains")?, chains)?;
    let allow_unencrypted = map.get("allow_unencrypted").map(|value| value.boolean()).transpose()?.unwrap_or(false);
    if allow_unencrypted && matches!(selector, Selector::Match(_)) {
        return Err(item.bad(
            "leaves out encryption by a glob",
            "only a whole directory can be exempted: use \"under\", or leave allow_unencrypted out",
        ));
    }
    if allow_unencrypted && selector == Selector::Under("/".to_owned()) {
        return Err(item.bad("leaves out encryption for everything", "name a directory, as \"/public\""));
    }
    Ok(RouteSettings { selector, chain, allow_unencrypted })
}

fn under(value: &Cursor<'_>) -> Result<Selector, ConfigError> {
    let path = value.text()?;
    let clean = path.starts_with('/') && !path.contains("//") && !path.split('/').any(|s| s == "." || s == "..");
    if !clean {
        return Err(
            value.bad(format!("is {path:?}"), "write a directory of live, as \"/logs\", or \"/\" for everything")
        );
    }
    let inner = path.strip_suffix('/').filter(|inner| !inner.is_empty());
    Ok(Selector::Under(inner.unwrap_or(path).to_owned()))
}

fn policies(group: &Cursor<'_>, mut policies: Policies) -> Result<Policies, ConfigError> {
    let map = group.mapping(&["rotate", "verify"])?;
    if let Some(rotate) = map.get("rotate") {
        let rotate = rotate.mapping(&["age", "bytes"])?;
        if let Some(value) = rotate.get("age") {
            let bounds = Bounds { min: Duration::from_secs(60), max: Duration::from_secs(3650 * 86_400) };
            policies.rotate.age = value.duration(bounds)?;
        }
        if let Some(value) = rotate.get("bytes") {
            policies.rotate.bytes = value.bytes(Bounds { min: 1 << 20, max: 1 << 50 })?;
        }
    }
    if let Some(verify) = map.get("verify") {
        let verify = verify.mapping(&["builtin", "other"])?;
        if let Some(value) = verify.get("builtin") {
            policies.verify_builtin = verification(&value)?;
        }
        if let Some(value) = verify.get("other") {
            // Nothing else is safe: such code is not proven.
            if verification(&value)? != Verify::Always {
                return Err(value.bad("samples frames of code that is not proven", "write always, or leave it out"));
            }
        }
    }
    Ok(policies)
}

fn verification(value: &Cursor<'_>) -> Result<Verify, ConfigError> {
    const MAX: u32 = 1024;
    let text = value.text()?;
    if text == "always" {
        return Ok(Verify::Always);
    }
    match text.strip_prefix("sample/").and_then(|n| n.parse().ok()) {
        Some(n @ 1..=MAX) => Ok(Verify::Sample(n)),
        _ => Err(value.bad(format!("is {text:?}"), format!("write always, or sample/N with N from 1 to {MAX}"))),
    }
}

fn store(group: &Cursor<'_>, mut store: StoreSettings) -> Result<StoreSettings, ConfigError> {
    let map = group.mapping(&["on_error", "uploads"])?;
    if let Some(value) = map.get("on_error") {
        store.on_error = store_error(&value)?;
    }
    if let Some(value) = map.get("uploads") {
        store.uploads = uploads(&value)?;
    }
    Ok(store)
}

fn store_error(value: &Cursor<'_>) -> Result<OnStoreError, ConfigError> {
    const HINT: &str = "write fail or {retry: {count: 8, backoff: [200ms, 30s]}}";
    if !value.is_mapping() {
        return match value.text()? {
            "fail" => Ok(OnStoreError::Fail),
            other => Err(value.bad(format!("is {other:?}"), HINT)),
        };
    }
    let map = value.mapping(&["retry"])?;
    let retry = map.required("retry", HINT)?.mapping(&["count", "backoff"])?;
    let mut settings = Retry { count: 8, backoff: (Duration::from_millis(200), Duration::from_secs(30)) };
    if let Some(value) = retry.get("count") {
        settings.count = small(&value, 0, 100)?;
    }
    if let Some(value) = retry.get("backoff") {
        let bounds = Bounds { min: Duration::from_millis(1), max: Duration::from_secs(3600) };
        let ends = pair(&value, "write the first and the longest pause, as \"[200ms, 30s]\"")?;
        settings.backoff = (ends.0.duration(bounds)?, ends.1.duration(bounds)?);
        if settings.backoff.0 > settings.backoff.1 {
            return Err(value.bad("begins after its end", "write the shorter pause first"));
        }
    }
    Ok(OnStoreError::Retry(settings))
}

fn uploads(value: &Cursor<'_>) -> Result<Uploads, ConfigError> {
    const HINT: &str = "write {adapt: [2, 32]}";
    let map = value.mapping(&["adapt"])?;
    let adapt = map.required("adapt", HINT)?;
    let ends = pair(&adapt, HINT)?;
    let uploads = Uploads { min: small(&ends.0, 1, MAX_UPLOADS)?, max: small(&ends.1, 1, MAX_UPLOADS)? };
    if uploads.min > uploads.max {
        return Err(adapt.bad("begins after its end", "write the smaller number first"));
    }
    Ok(uploads)
}

fn pair<'d>(value: &Cursor<'d>, hint: &str) -> Result<(Cursor<'d>, Cursor<'d>), ConfigError> {
    if !value.is_sequence() {
        return Err(value.bad("is no pair", hint));
    }
    match <[Cursor<'d>; 2]>::try_from(value.sequence(2)?) {
        Ok([first, second]) => Ok((first, second)),
        Err(_) => Err(value.bad("is no pair", hint)),
    }
}
