use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axiomfs_api::{Descriptor, Kind};

use crate::command::with_params;
use crate::host::{DEFAULT_CHAIN, unknown};
use crate::registry::{StepEntry, TransformEntry};
use crate::stats::PluginStats;
use crate::{
    Chain, ChainCommand, ChainSpec, Command, ControlError, Host, HostError, PluginCommand, Position, Replaced, Route,
    RouteCommand, RouteTable, StepSpec, resolve, self_test,
};

/// A chain as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainInfo {
    /// Its name.
    pub name: String,
    /// Its steps with all parameters, as `chain set` takes them.
    pub steps: String,
    /// Its id in hex.
    pub id: String,
    /// Frames in it now.
    pub in_flight: usize,
}

impl From<&Arc<Chain>> for ChainInfo {
    fn from(chain: &Arc<Chain>) -> Self {
        Self {
            name: chain.name().to_string(),
            steps: chain.spec().to_string(),
            id: chain.id().to_string(),
            in_flight: chain.in_flight(),
        }
    }
}

/// A plugin of this build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginInfo {
    /// Its id.
    pub id: &'static str,
    /// What it does.
    pub kind: Kind,
    /// Version of its code.
    pub version: &'static str,
    /// One line about it.
    pub summary: &'static str,
    /// Whether chains can use it now.
    pub loaded: bool,
    /// Whether a sample of its frames is verified instead of all.
    pub proven: bool,
    /// Why it is given no more frames to encode, if that is so.
    pub distrusted: Option<String>,
    /// The format number it writes.
    pub writes: u16,
    /// The format numbers it reads.
    pub reads: &'static [u16],
    /// What it provides.
    pub provides: &'static [&'static str],
    /// What must stand in its chain.
    pub requires: &'static [&'static str],
    /// What may only stand after it.
    pub before: &'static [&'static str],
    /// What may only stand before it.
    pub after: &'static [&'static str],
    /// Whether a frame stays right without it.
    pub skippable: bool,
    /// Most memory of one worker in bytes.
    pub memory: usize,
    /// The chains that use it.
    pub chains: Vec<String>,
    /// Its parameters in the first of them.
    pub params: Vec<(String, String)>,
    /// Frames it was asked to encode; of a seal all that it sealed, of a chunker its chunks.
    pub encoded_frames: u64,
    /// Bytes of them before.
    pub encoded_from_bytes: u64,
    /// Bytes that it made of them.
    pub encoded_to_bytes: u64,
    /// Frames it was asked to decode.
    pub decoded_frames: u64,
    /// Bytes of them before.
    pub decoded_from_bytes: u64,
    /// Bytes that it made of them.
    pub decoded_to_bytes: u64,
    /// Frames it failed on.
    pub errors: u64,
    /// Most bytes that one worker held.
    pub memory_max: u64,
}

/// What a self-test measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestReport {
    /// Frames sent through and back.
    pub frames: usize,
    /// Bytes given.
    pub raw_bytes: usize,
    /// Bytes they became.
    pub encoded_bytes: usize,
    /// Time to encode and decode them.
    pub took: Duration,
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To `chain show`.
    Chains {
        /// The generation now.
        generation: u64,
        /// The chains by name.
        chains: Vec<ChainInfo>,
    },
    /// To what changes a chain.
    Swapped {
        /// The generation now.
        generation: u64,
        /// The chain as it is now.
        chain: ChainInfo,
        /// The time the change took.
        took: Duration,
    },
    /// To `chain test`.
    Tested {
        /// The chain.
        chain: ChainInfo,
        /// What was measured.
        report: TestReport,
    },
    /// To `plugin list`.
    Plugins(Vec<PluginInfo>),
    /// To `plugin load` and `plugin unload`.
    Plugin {
        /// The plugin as it is now.
        plugin: PluginInfo,
        /// The time it took.
        took: Duration,
    },
    /// To `route list`, in order.
    Routes(Vec<Route>),
    /// To `route explain`.
    Explained {
        /// The path asked for.
        path: String,
        /// The chain its file would go through.
        chain: String,
        /// The rule that decides; none means the default.
        rule: Option<Route>,
    },
}

impl Host {
    /// Does a command about chains, plugins or routes; `None` for one that is the caller's.
    pub fn execute(&self, command: &Command) -> Option<Result<Reply, ControlError>> {
        match command {
            Command::Chain(command) => Some(self.execute_chain(command)),
            Command::Plugin(command) => Some(self.execute_plugin(command).map_err(ControlError::from)),
            Command::Route(command) => Some(self.execute_route(command).map_err(ControlError::from)),
            Command::KeyStatus
            | Command::KeyRotate { .. }
            | Command::StoreStatus
            | Command::Reload { .. }
            | Command::Sync(_)
            | Command::Advise
            | Command::AuditVerify => None,
        }
    }

    /// All plugins of this build, by id.
    pub fn plugins(&self) -> Vec<PluginInfo> {
        let steps = self.registry.steps().map(|step| self.plugin_info(step));
        let others = self.registry.others().iter().map(|entry| self.info(entry.descriptor, None, &entry.stats));
        let mut all: Vec<_> = steps.chain(others).collect();
        all.sort_by_key(|plugin| plugin.id);
        all
    }

    fn execute_chain(&self, command: &ChainCommand) -> Result<Reply, ControlError> {
        match command {
            ChainCommand::Show { name } => Ok(self.show(name.as_deref())?),
            ChainCommand::Set { name, steps, confirm } => {
                Ok(self.edit(name, confirm.as_deref(), |_| Ok(steps.clone()))?)
            }
            ChainCommand::Add { name, step, position } => {
                Ok(self.edit(name, None, |spec| self.added(spec, step, position.as_ref()))?)
            }
            ChainCommand::Remove { name, plugin, confirm } => {
                Ok(self.edit(name, confirm.as_deref(), |spec| removed(spec, plugin))?)
            }
            ChainCommand::New { name, steps } => Ok(self.new_chain(name, steps)?),
            ChainCommand::Test { name } => Ok(self.test(name)?),
            ChainCommand::Configure { chain, plugin, params } => {
                let name = match chain {
                    Some(name) => name.clone(),
                    None => self.chain_with(plugin)?,
                };
                let changed = with_params(plugin, params.clone())?;
                let strategy = params.iter().any(|(key, _)| key == "on_error");
                Ok(self.edit(&name, None, |spec| configured(spec, &changed, strategy))?)
            }
        }
    }

    fn show(&self, name: Option<&str>) -> Result<Reply, HostError> {
        let state = self.state.load();
        let chains = match name {
            Some(name) => vec![state.chains.get(name).ok_or_else(|| unknown(&state, name))?.into()],
            None => state.chains.values().map(ChainInfo::from).collect(),
        };
        Ok(Reply::Chains { generation: state.generation, chains })
    }

    /// Swaps one chain for what `edit` makes of it.
    fn edit(
        &self,
        name: &str,
        confirm: Option<&str>,
        edit: impl FnOnce(&ChainSpec) -> Result<Vec<StepSpec>, HostError>,
    ) -> Result<Reply, HostError> {
        let start = Instant::now();
        let _changing = self.begin()?;
        let result = self.swap(name, confirm, edit);
        match &result {
            Ok((done, info)) => {
                let text = format!("Chain {name} is now {}, generation {}", info.steps, done.generation);
                self.events.add("chain", text);
            }
            Err(error) => self.events.add("refused", format!("Chain {name} not changed: {error}")),
        }
        result.map(|(done, chain)| Reply::Swapped { generation: done.generation, chain, took: start.elapsed() })
    }

    fn new_chain(&self, name: &str, steps: &[StepSpec]) -> Result<Reply, HostError> {
        let start = Instant::now();
        let _changing = self.begin()?;
        let state = self.state.load_full();
        let mut specs = self.chain_specs();
        specs.push(ChainSpec::new(name, steps.to_vec()));
        let made = self.change(&specs, state.routes.clone(), state.limits.clone(), state.require.clone());
        match &made {
            Ok(done) => self.events.add("chain", format!("Chain {name} is new, generation {}", done.generation)),
            Err(error) => self.events.add("refused", format!("Chain {name} not made: {error}")),
        }
        let generation = made?.generation;
        let chain = ChainInfo::from(&self.chain(name)?);
        Ok(Reply::Swapped { generation, chain, took: start.elapsed() })
    }

    fn swap(
        &self,
        name: &str,
        confirm: Option<&str>,
        edit: impl FnOnce(&ChainSpec) -> Result<Vec<StepSpec>, HostError>,
    ) -> Result<(Replaced, ChainInfo), HostError> {
        let state = self.state.load_full();
        let old = state.chains.get(name).ok_or_else(|| unknown(&state, name))?;
        let steps = edit(old.spec())?;
        let mut specs = self.chain_specs();
        for spec in specs.iter_mut().filter(|spec| spec.name == name) {
            spec.steps.clone_from(&steps);
        }
        // Before the swap, so that nothing is ever sealed less than somebody confirmed.
        let capabilities = ["encryption", "authentication"];
        let lost = capabilities.into_iter().find(|c| old.provides(c) && !self.steps_provide(&steps, c));
        if let Some(capability) = lost
            && !state.require.iter().any(|required| required == capability)
        {
            self.check_confirmed(confirm, || format!("To take {capability} from chain {name}"))?;
        }
        self.check_exemptions(&state, &specs, &state.routes, confirm)?;
        let (routes, limits) = (state.routes.clone(), state.limits.clone());
        let done = self.change(&specs, routes, limits, state.require.clone())?;
        let chain = self.chain(name)?;
        Ok((done, ChainInfo::from(&chain)))
    }

    /// The steps with `step` where it was asked for, or else where the descriptors want it.
    fn added(
        &self,
        spec: &ChainSpec,
        step: &StepSpec,
        position: Option<&Position>,
    ) -> Result<Vec<StepSpec>, HostError> {
        let new = self.registry.loaded(&step.plugin)?.descriptor();
        if spec.steps.iter().any(|s| s.plugin == step.plugin) {
            return Err(HostError::Duplicate { what: "Plugin", name: step.plugin.clone() });
        }
        let at = match position {
            Some(Position::Before(id)) => index_of(spec, id)?,
            Some(Position::After(id)) => index_of(spec, id)? + 1,
            None => {
                let descriptor = |s: &StepSpec| self.registry.step(&s.plugin).map(StepEntry::descriptor);
                resolve::place(&spec.steps.iter().map(descriptor).collect::<Result<Vec<_>, _>>()?, new)?
            }
        };
        let mut steps = spec.steps.clone();
        steps.insert(at, step.clone());
        Ok(steps)
    }

    /// The chain that `set ID` means.
    fn chain_with(&self, plugin: &str) -> Result<String, HostError> {
        self.registry.step(plugin)?;
        let state = self.state.load();
        let has = |chain: &&Arc<Chain>| chain.spec().steps.iter().any(|step| step.plugin == plugin);
        let with: Vec<&str> = state.chains.values().filter(has).map(|chain| &**chain.name()).collect();
        match with[..] {
            _ if with.contains(&DEFAULT_CHAIN) => Ok(DEFAULT_CHAIN.into()),
            [only] => Ok(only.into()),
            [] => {
                let steps = state.chains.get(DEFAULT_CHAIN).map(|c| c.spec().to_string()).unwrap_or_default();
                Err(HostError::NotInChain { chain: DEFAULT_CHAIN.into(), plugin: plugin.into(), steps })
            }
            _ => Err(HostError::Order {
                reason: format!("Plugin {plugin} stands in the chains {}", with.join(", ")),
                hint: format!("Say which one: set {}/{plugin} key=value", with[0]),
            }),
        }
    }

    fn test(&self, name: &str) -> Result<Reply, HostError> {
        let state = self.state.load_full();
        let chain = state.chains.get(name).ok_or_else(|| unknown(&state, name))?;
        let seen = self_test::run(chain)?;
        let report =
            TestReport { frames: seen.frames, raw_bytes: seen.raw, encoded_bytes: seen.encoded, took: seen.took };
        Ok(Reply::Tested { chain: chain.into(), report })
    }

    fn execute_route(&self, command: &RouteCommand) -> Result<Reply, HostError> {
        let routes = self.routes();
        match command {
            RouteCommand::List => Ok(Reply::Routes(routes.routes().cloned().collect())),
            RouteCommand::Explain(path) => {
                let (rule, chain) = routes.explain(path.as_bytes());
                Ok(Reply::Explained { path: path.clone(), chain: chain.to_string(), rule: rule.cloned() })
            }
            RouteCommand::Add { matcher, chain, first } => self.change_routes(None, |routes| {
                let route = Route { matcher: matcher.clone(), chain: chain.clone(), allow_unencrypted: false };
                routes.insert(if *first { 0 } else { routes.len() }, route);
                Ok(())
            }),
            RouteCommand::Remove { number, confirm } => self.change_routes(confirm.as_deref(), |routes| {
                if *number > routes.len() {
                    return Err(HostError::UnknownRoute { number: *number, count: routes.len() });
                }
                routes.remove(*number - 1);
                Ok(())
            }),
        }
    }

    fn change_routes(
        &self,
        confirm: Option<&str>,
        edit: impl FnOnce(&mut Vec<Route>) -> Result<(), HostError>,
    ) -> Result<Reply, HostError> {
        let _changing = self.begin()?;
        let state = self.state.load_full();
        let mut routes: Vec<Route> = state.routes.routes().cloned().collect();
        let changed = edit(&mut routes).and_then(|()| {
            let (table, specs) = (Arc::new(RouteTable::new(routes.clone())?), self.chain_specs());
            self.check_exemptions(&state, &specs, &table, confirm)?;
            self.change(&specs, table, state.limits.clone(), state.require.clone())
        });
        match &changed {
            Ok(done) => self.events.add("routes", format!("Routes changed, generation {}", done.generation)),
            Err(error) => self.events.add("refused", format!("Routes not changed: {error}")),
        }
        changed.map(|_| Reply::Routes(routes))
    }

    fn execute_plugin(&self, command: &PluginCommand) -> Result<Reply, HostError> {
        let (id, load) = match command {
            PluginCommand::List => return Ok(Reply::Plugins(self.plugins())),
            PluginCommand::Load(id) => (id, true),
            PluginCommand::Unload(id) => (id, false),
        };
        let start = Instant::now();
        let _changing = self.begin()?;
        if load {
            self.load(id)?;
        } else {
            self.unload(id)?;
        }
        self.events.add("plugin", format!("Plugin {id} {}", if load { "loaded" } else { "unloaded" }));
        Ok(Reply::Plugin { plugin: self.plugin_info(self.registry.step(id)?), took: start.elapsed() })
    }

    fn load(&self, id: &str) -> Result<(), HostError> {
        let StepEntry::Transform(entry) = self.registry.step(id)? else { return Ok(()) };
        let distrusted = entry.trust.is_lost();
        if entry.is_loaded() && !distrusted {
            return Ok(());
        }
        let limits = self.limits();
        // Who loads a plugin that was put out trusts it again; it still has to start.
        entry.trust.restore();
        crate::pool::lock(&self.told).retain(|(plugin, _)| *plugin != id);
        if let Err(error) = self.builder(&[], &limits).unit(entry, &StepSpec::new(id)) {
            if distrusted {
                entry.trust.lose(error.to_string());
            }
            return Err(error);
        }
        entry.set_loaded(true);
        Ok(())
    }

    fn unload(&self, id: &str) -> Result<(), HostError> {
        let in_use = |reason: String| Err(HostError::InUse { plugin: id.into(), reason });
        let StepEntry::Transform(entry) = self.registry.step(id)? else {
            return in_use("a seal stays for as long as the mount".into());
        };
        let state = self.state.load();
        let user = state.chains.values().find(|chain| chain.units.iter().any(|unit| unit.plugin == id));
        if let Some(chain) = user {
            return in_use(format!("chain {} has it", chain.name()));
        }
        // Asked before the time is taken: the store may have to tell.
        if let Some(reason) = self.decoder_need(id) {
            return in_use(reason);
        }
        let start = Instant::now();
        entry.set_loaded(false);
        // From here on no new chain or decoder gets it; what began before shows in one of the checks.
        let result = if let Some(reason) = self.decoder_need(id) {
            in_use(reason)
        } else if !self.is_idle(&entry.stats.running) {
            Err(HostError::UnloadTimeout { plugin: id.into(), bound: self.limits().unload_timeout })
        } else {
            Ok(())
        };
        if result.is_err() {
            entry.set_loaded(true);
        }
        entry.stats.unload_time.record(start.elapsed());
        result
    }

    /// Whether `running` falls to none within the time an unload may take.
    fn is_idle(&self, running: &std::sync::atomic::AtomicU64) -> bool {
        let (start, bound) = (Instant::now(), self.limits().unload_timeout);
        while running.load(Ordering::Acquire) > 0 {
            if start.elapsed() >= bound {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    fn plugin_info(&self, step: &StepEntry) -> PluginInfo {
        match step {
            StepEntry::Transform(entry) => self.info(step.descriptor(), Some(entry), &entry.stats),
            StepEntry::Seal(entry) => self.info(step.descriptor(), None, &entry.stats),
        }
    }

    fn info(
        &self,
        d: &'static Descriptor,
        entry: Option<&Arc<TransformEntry>>,
        stats: &Arc<PluginStats>,
    ) -> PluginInfo {
        let (loaded, proven) = entry.map_or((true, true), |entry| (entry.is_loaded(), entry.proven));
        let distrusted = entry.and_then(|entry| entry.trust.reason());
        let specs = self.chain_specs();
        let has = |spec: &&ChainSpec| spec.steps.iter().any(|s| s.plugin == d.id);
        let first = specs.iter().find(has).and_then(|spec| spec.steps.iter().find(|s| s.plugin == d.id));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PluginInfo {
            id: d.id,
            kind: d.kind,
            version: d.version,
            summary: d.summary,
            loaded,
            proven,
            writes: d.writes,
            reads: d.reads,
            provides: d.provides,
            requires: d.requires,
            before: d.before,
            after: d.after,
            skippable: d.skippable,
            distrusted,
            memory: d.memory,
            params: first.map(|step| step.params.clone()).unwrap_or_default(),
            chains: specs.iter().filter(has).map(|spec| spec.name.clone()).collect(),
            encoded_frames: stats.encode_time.count(),
            encoded_from_bytes: count(&stats.encode_in),
            encoded_to_bytes: count(&stats.encode_out),
            decoded_frames: stats.decode_time.count(),
            decoded_from_bytes: count(&stats.decode_in),
            decoded_to_bytes: count(&stats.decode_out),
            errors: count(&stats.encode_errors) + count(&stats.decode_errors),
            memory_max: count(&stats.memory_max),
        }
    }
}

fn index_of(spec: &ChainSpec, plugin: &str) -> Result<usize, HostError> {
    spec.steps.iter().position(|step| step.plugin == plugin).ok_or_else(|| HostError::NotInChain {
        chain: spec.name.clone(),
        plugin: plugin.into(),
        steps: spec.to_string(),
    })
}

fn removed(spec: &ChainSpec, plugin: &str) -> Result<Vec<StepSpec>, HostError> {
    let mut steps = spec.steps.clone();
    steps.remove(index_of(spec, plugin)?);
    Ok(steps)
}

/// The steps with the parameters of `changed` over those there are, and its strategy if one was given.
fn configured(spec: &ChainSpec, changed: &StepSpec, strategy: bool) -> Result<Vec<StepSpec>, HostError> {
    let mut steps = spec.steps.clone();
    let step = &mut steps[index_of(spec, &changed.plugin)?];
    for (key, value) in &changed.params {
        match step.params.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => old.clone_from(value),
            None => step.params.push((key.clone(), value.clone())),
        }
    }
    if strategy {
        step.on_error.clone_from(&changed.on_error);
    }
    Ok(steps)
}
