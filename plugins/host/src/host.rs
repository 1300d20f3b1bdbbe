use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axiomfs_api::{Chunker, Hint, Seal};

use crate::build::Builder;
use crate::chain::RunLimits;
use crate::events::Events;
use crate::pool::{Permits, lock};
use crate::registry::StepEntry;
use crate::spec::check_counts;
use crate::stats::Histogram;
use crate::tally::TallyChunker;
use crate::{
    Chain, ChainName, ChainRecord, ChainSpec, Decoder, HostError, HostEvent, PutOut, Registry, RouteTable, StepSpec,
    self_test,
};

/// The chain for everything that no route sends elsewhere.
pub const DEFAULT_CHAIN: &str = "default";
/// Distinct chains whose decoders are kept; their descriptors come from authenticated packs.
const MAX_DECODERS: usize = 1024;

/// Bounds of what plugins may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Frames encoded or decoded at once, 1 to 32.
    pub max_in_flight: usize,
    /// Most memory one worker of a plugin may need, in bytes.
    pub plugin_memory: usize,
    /// Time for one frame in one step. Code that is not proven is left behind after it; other code's frames are counted.
    pub frame_timeout: Duration,
    /// Time to set up a plugin that is not proven.
    pub init_timeout: Duration,
    /// Time for the frames of a plugin to end before unloading it is refused.
    pub unload_timeout: Duration,
    /// Of so many frames of proven plugins one is decoded and compared; 1 for all, 0 for none.
    pub verify_sample: u32,
    /// Longest frame in bytes.
    pub max_frame: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_in_flight: 32,
            plugin_memory: 10 << 20,
            frame_timeout: Duration::from_secs(5),
            init_timeout: Duration::from_millis(100),
            unload_timeout: Duration::from_millis(50),
            verify_sample: 16,
            max_frame: 16 << 20,
        }
    }
}

impl Limits {
    fn check(&self) -> Result<(), HostError> {
        let bad = |limit, value: String, expected| Err(HostError::BadLimit { limit, value, expected });
        if !(1..=32).contains(&self.max_in_flight) {
            return bad("max_in_flight", self.max_in_flight.to_string(), "1 to 32");
        }
        if !(1..=64 << 20).contains(&self.max_frame) {
            return bad("max_frame", self.max_frame.to_string(), "1 byte to 64 MiB");
        }
        Ok(())
    }
}

/// All that a swap replaces at once.
pub(crate) struct State {
    pub generation: u64,
    pub chains: BTreeMap<ChainName, Arc<Chain>>,
    pub routes: Arc<RouteTable>,
    pub limits: Limits,
    pub require: Vec<String>,
    /// Names that chains had once: work under way for them goes through the default chain.
    retired: HashSet<ChainName>,
}

/// What a change of the chains did.
#[derive(Debug)]
pub struct Replaced {
    /// The generation now.
    pub generation: u64,
    /// Requirements that were not there before: frames staged under weaker chains are still to be dealt with.
    pub tightened: Vec<String>,
    /// The time the change took.
    pub took: Duration,
    retired: Vec<Arc<Chain>>,
}

impl Replaced {
    /// Waits until no frame is in a replaced chain any more; `false` if `timeout` passed first.
    pub fn drained(&self, timeout: Duration) -> bool {
        let start = Instant::now();
        while self.retired.iter().any(|chain| chain.in_flight() > 0) {
            if start.elapsed() >= timeout {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

/// Descriptor bytes of all chains that stored frames name, or why that can't be told.
pub type StoredChains = Arc<dyn Fn() -> Result<Vec<Arc<[u8]>>, String> + Send + Sync>;

/// Keeps the plugins and the current chains.
pub struct Host {
    pub(crate) registry: Registry,
    pub(crate) state: ArcSwap<State>,
    decoders: ArcSwap<HashMap<Box<[u8]>, Arc<Decoder>>>,
    stored: Mutex<Option<StoredChains>>,
    pub(crate) permits: Arc<Permits>,
    pub(crate) verified: Arc<AtomicU64>,
    pub(crate) swaps: AtomicU64,
    pub(crate) swap_time: Histogram,
    /// What getting a chain, a route or a decoder took while a change was being made, and where one had to be made for it.
    pub(crate) swap_wait: Histogram,
    /// What was done to plugins that lost their trust, until somebody takes it.
    pub(crate) put_out: Mutex<Vec<PutOut>>,
    /// The plugins without trust that stand in it or stood there, and why.
    pub(crate) told: Mutex<Vec<(&'static str, String)>>,
    /// Whether a change is being made.
    is_changing: AtomicBool,
    /// Held while a change is prepared and made. Frames never take it.
    changing: Mutex<()>,
    pub(crate) events: Events,
    confirm: String,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state.load();
        f.debug_struct("Host")
            .field("generation", &state.generation)
            .field("chains", &state.chains)
            .finish_non_exhaustive()
    }
}

impl Host {
    /// Builds and tests all chains.
    ///
    /// # Errors
    /// [`HostError`] saying which chain, step, route or limit is not usable.
    pub fn new(
        registry: Registry,
        chains: Vec<ChainSpec>,
        routes: RouteTable,
        limits: Limits,
        require: Vec<String>,
    ) -> Result<Self, HostError> {
        let empty = State {
            generation: 0,
            chains: BTreeMap::new(),
            routes: Arc::default(),
            limits: limits.clone(),
            require: Vec::new(),
            retired: HashSet::new(),
        };
        let host = Self {
            registry,
            state: ArcSwap::from_pointee(empty),
            decoders: ArcSwap::default(),
            stored: Mutex::default(),
            permits: Arc::new(Permits::new(limits.max_in_flight)),
            verified: Arc::default(),
            swaps: AtomicU64::new(0),
            swap_time: Histogram::default(),
            swap_wait: Histogram::default(),
            put_out: Mutex::default(),
            told: Mutex::default(),
            is_changing: AtomicBool::new(false),
            changing: Mutex::default(),
            events: Events::default(),
            confirm: random_token(),
        };
        host.change(&chains, Arc::new(routes), limits, require)?;
        Ok(host)
    }

    /// The current chain of that name, to be kept for one frame. A name that a chain had once gives the default chain.
    ///
    /// # Errors
    /// [`HostError::UnknownChain`].
    pub fn chain(&self, name: &str) -> Result<Arc<Chain>, HostError> {
        let attention = self.registry.attention.load(Ordering::Acquire);
        self.waiting(attention, || {
            if attention {
                self.put_out();
            }
            self.current(name)
        })
    }

    /// Does `work` for a request; where a change is being made, or `changes` says that it has to make one itself, the time
    /// counts as waiting for a swap.
    fn waiting<T>(&self, changes: bool, work: impl FnOnce() -> T) -> T {
        let start = (changes || self.is_changing.load(Ordering::Relaxed)).then(Instant::now);
        let done = work();
        if let Some(start) = start {
            self.swap_wait.record(start.elapsed());
        }
        done
    }

    fn current(&self, name: &str) -> Result<Arc<Chain>, HostError> {
        let state = self.state.load();
        let chain = state.chains.get(name).or_else(|| {
            let name = state.retired.get(name).map(|_| DEFAULT_CHAIN)?;
            state.chains.get(name)
        });
        chain.cloned().ok_or_else(|| unknown(&state, name))
    }

    /// The name of the chain for a file's settled path from the live root.
    pub fn route(&self, path: &[u8]) -> ChainName {
        self.waiting(false, || self.state.load().routes.route(path))
    }

    /// The same, and whether the file is to be stored in clear: its directory is exempted and its chain has no seal.
    pub fn place(&self, path: &[u8]) -> (ChainName, bool) {
        self.waiting(false, || {
            let state = self.state.load();
            let (route, name) = state.routes.explain(path);
            let is_open = || state.chains.get(name).is_some_and(|chain| chain.seal_id().is_none());
            (name.clone(), route.is_some_and(|route| route.allow_unencrypted) && is_open())
        })
    }

    /// Whether any directory is exempted from encryption.
    pub fn has_exemptions(&self) -> bool {
        self.state.load().routes.routes().any(|route| route.allow_unencrypted)
    }

    /// What undoes the chain with these stored descriptor bytes; built once, then kept.
    ///
    /// # Errors
    /// [`HostError::MissingPlugin`] naming the plugin; [`HostError::BadDescriptor`].
    pub fn decoder(&self, descriptor: &[u8]) -> Result<Arc<Decoder>, HostError> {
        match self.waiting(false, || self.decoders.load().get(descriptor).cloned()) {
            Some(decoder) => Ok(decoder),
            // Loading one is waited for as a swap is.
            None => self.waiting(true, || self.load_decoder(descriptor)),
        }
    }

    fn load_decoder(&self, descriptor: &[u8]) -> Result<Arc<Decoder>, HostError> {
        let state = self.state.load();
        let decoder = Arc::new(self.builder(&[], &state.limits).decoder(descriptor)?);
        self.decoders.rcu(|known| {
            let mut known = HashMap::clone(known);
            if known.len() < MAX_DECODERS {
                known.insert(descriptor.into(), decoder.clone());
            }
            known
        });
        Ok(decoder)
    }

    /// What undoes the steps of `applied` of such a chain, and the bits for it: a plugin whose step was passed over need not be here.
    ///
    /// # Errors
    /// As [`decoder`](Self::decoder); [`HostError::BadSteps`].
    pub fn decoder_for(&self, descriptor: &[u8], applied: u32) -> Result<(Arc<Decoder>, u32), HostError> {
        let missing = match self.decoder(descriptor) {
            Ok(decoder) => return Ok((decoder, applied)),
            Err(missing @ HostError::MissingPlugin { .. }) => missing,
            Err(error) => return Err(error),
        };
        let mut record = ChainRecord::parse(descriptor)?;
        let steps = record.steps.len();
        if u64::from(applied) >> steps != 0 {
            return Err(HostError::BadSteps { applied, steps });
        }
        let mut slots = 0..;
        record.steps.retain(|_| slots.next().is_some_and(|slot| applied >> slot & 1 == 1));
        if record.steps.len() == steps {
            return Err(missing);
        }
        // All steps that are left were applied; fewer than there were, so fewer than 32.
        Ok((self.decoder(&record.encode())?, (1 << record.steps.len()) - 1))
    }

    /// The seal of that id; what it seals and opens is counted.
    pub fn seal(&self, id: &str) -> Option<Arc<dyn Seal>> {
        match self.registry.loaded(id) {
            Ok(StepEntry::Seal(entry)) => Some(entry.seal.clone()),
            _ => None,
        }
    }

    /// What `make` makes, with its cuts counted as those of the plugin `id`; one that is not listed is counted nowhere.
    pub fn chunker<C: Chunker + 'static>(&self, id: &str, make: impl FnOnce() -> C) -> Arc<dyn Chunker> {
        let listed = self.registry.others().iter().find(|entry| entry.descriptor.id == id);
        let stats = listed.map(|entry| entry.stats.clone()).unwrap_or_default();
        Arc::new(TallyChunker::new(make, stats))
    }

    /// Counts up with every change of chains, routes, limits or requirements.
    pub fn generation(&self) -> u64 {
        self.state.load().generation
    }

    /// The chains as they are, by name, with all parameters.
    pub fn chain_specs(&self) -> Vec<ChainSpec> {
        self.state.load().chains.values().map(|chain| chain.spec().clone()).collect()
    }

    /// The routes as they are.
    pub fn routes(&self) -> Arc<RouteTable> {
        self.state.load().routes.clone()
    }

    /// The limits as they are.
    pub fn limits(&self) -> Limits {
        self.state.load().limits.clone()
    }

    /// The requirements as they are.
    pub fn require(&self) -> Vec<String> {
        self.state.load().require.clone()
    }

    /// The token that commands which weaken or destroy must carry; random per host.
    pub fn confirm_token(&self) -> &str {
        &self.confirm
    }

    /// Events with a number above `number`, oldest first; the last 256 are kept.
    pub fn events_after(&self, number: u64) -> Vec<HostEvent> {
        self.events.after(number)
    }

    /// Replaces all settings at once, as `chain.yaml` does. `confirm` is needed to relax the requirements or to exempt
    /// a directory from encryption.
    ///
    /// # Errors
    /// [`HostError`]; nothing has changed then.
    pub fn replace(
        &self,
        chains: &[ChainSpec],
        routes: RouteTable,
        limits: Limits,
        require: Vec<String>,
        confirm: Option<&str>,
    ) -> Result<Replaced, HostError> {
        let _changing = self.begin()?;
        let old = self.state.load_full();
        let relaxed = old.require.iter().find(|r| !require.contains(r));
        if let Some(requirement) = relaxed {
            self.check_confirmed(confirm, || format!("No longer to require {requirement}"))?;
        }
        self.check_exemptions(&old, chains, &routes, confirm)?;
        let result = self.change(chains, Arc::new(routes), limits, require);
        match &result {
            Ok(done) => self.events.add("routes", format!("Settings replaced, generation {}", done.generation)),
            Err(error) => self.events.add("refused", format!("Settings not replaced: {error}")),
        }
        result
    }

    /// Begins a change; only one is made at a time.
    pub(crate) fn begin(&self) -> Result<Changing<'_>, HostError> {
        let guard = match self.changing.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::WouldBlock) => return Err(HostError::SwapRunning),
            Err(TryLockError::Poisoned(_)) => lock(&self.changing),
        };
        self.is_changing.store(true, Ordering::Relaxed);
        Ok(Changing { host: self, start: Instant::now(), _guard: guard })
    }

    pub(crate) fn check_confirmed(&self, given: Option<&str>, what: impl Fn() -> String) -> Result<(), HostError> {
        if given == Some(self.confirm.as_str()) { Ok(()) } else { Err(HostError::Unconfirmed { what: what() }) }
    }

    /// Whether one of `steps` provides the capability.
    pub(crate) fn steps_provide(&self, steps: &[StepSpec], capability: &str) -> bool {
        let provides = |step: &StepSpec| {
            self.registry.step(&step.plugin).is_ok_and(|entry| entry.descriptor().provides.contains(&capability))
        };
        steps.iter().any(provides)
    }

    /// Asks for the token where an exempted directory would have more in clear than somebody confirmed: its route is new or its chain was
    /// sealed, or a route before it, which takes files from it, goes or comes behind it.
    pub(crate) fn check_exemptions(
        &self,
        old: &State,
        specs: &[ChainSpec],
        routes: &RouteTable,
        confirm: Option<&str>,
    ) -> Result<(), HostError> {
        let was_sealed = |name: &str| old.chains.get(name).is_some_and(|chain| chain.provides("encryption"));
        let is_sealed =
            |name: &str| specs.iter().any(|spec| spec.name == name && self.steps_provide(&spec.steps, "encryption"));
        let (before, after): (Vec<_>, Vec<_>) = (old.routes.routes().collect(), routes.routes().collect());
        let widened = after.iter().enumerate().find(|(at, route)| {
            let Some(was) = before.iter().position(|other| other == *route) else { return route.allow_unencrypted };
            let taken = || before[..was].iter().any(|earlier| !after[..*at].contains(earlier));
            route.allow_unencrypted && !is_sealed(&route.chain) && (was_sealed(&route.chain) || taken())
        });
        match widened {
            Some((_, route)) => self.check_confirmed(confirm, || format!("To leave files unencrypted ({route})")),
            None => Ok(()),
        }
    }

    /// Builds and tests `specs` beside the chains there are, reusing those that stay the same, and swaps them in.
    pub(crate) fn change(
        &self,
        specs: &[ChainSpec],
        routes: Arc<RouteTable>,
        limits: Limits,
        require: Vec<String>,
    ) -> Result<Replaced, HostError> {
        let start = Instant::now();
        limits.check()?;
        check_counts(specs)?;
        let old = self.state.load_full();
        let builder = self.builder(specs, &limits);
        let mut chains: BTreeMap<ChainName, Arc<Chain>> = BTreeMap::new();
        for spec in specs {
            if chains.contains_key(spec.name.as_str()) {
                return Err(HostError::Duplicate { what: "Chain", name: spec.name.clone() });
            }
            let mut chain = Arc::new(builder.chain(spec)?);
            match old.chains.get(spec.name.as_str()) {
                Some(same) if old.limits == limits && is_same(same, &chain) => chain = same.clone(),
                _ => drop(self_test::run(&chain)?),
            }
            chains.insert(chain.name().clone(), chain);
        }
        check_policy(&self.registry, &chains, &routes, &require)?;
        let retired =
            old.chains.values().filter(|o| !chains.values().any(|c| Arc::ptr_eq(o, c))).cloned().collect::<Vec<_>>();
        let mut names = old.retired.clone();
        names.extend(old.chains.keys().cloned());
        names.retain(|name| !chains.contains_key(name));
        let tightened = require.iter().filter(|r| !old.require.contains(r)).cloned().collect();
        let generation = old.generation + 1;
        self.permits.set_limit(limits.max_in_flight);
        self.state.store(Arc::new(State { generation, chains, routes, limits, require, retired: names }));
        self.swaps.fetch_add(retired.len() as u64, Ordering::Relaxed);
        Ok(Replaced { generation, tightened, took: start.elapsed(), retired })
    }

    /// Bytes that a chain of `steps` would make of `samples`; nothing of it is kept.
    ///
    /// # Errors
    /// [`HostError`] if there can't be such a chain, or a step of it fails.
    pub fn trial(&self, steps: &[StepSpec], samples: &[Vec<u8>]) -> Result<usize, HostError> {
        let state = self.state.load_full();
        let specs: Vec<ChainSpec> = state.chains.values().map(|chain| chain.spec().clone()).collect();
        let chain = self.builder(&specs, &state.limits).chain(&ChainSpec::new("trial", steps.to_vec()))?;
        samples.iter().map(|raw| chain.encode(Hint::Data, raw).map(|encoded| encoded.bytes.len())).sum()
    }

    pub(crate) fn builder<'a>(&'a self, specs: &'a [ChainSpec], limits: &Limits) -> Builder<'a> {
        Builder {
            registry: &self.registry,
            specs,
            plugin_memory: limits.plugin_memory,
            init_timeout: limits.init_timeout,
            frame_timeout: limits.frame_timeout,
            run: RunLimits {
                permits: self.permits.clone(),
                max_frame: limits.max_frame,
                verify_sample: limits.verify_sample,
                verified: self.verified.clone(),
            },
        }
    }

    /// Names who knows which chains stored frames went through: a plugin that decodes one of them can't be unloaded. The latest counts: a host serves one
    /// repository at a time.
    pub fn set_stored_chains(&self, stored: StoredChains) {
        *lock(&self.stored) = Some(stored);
    }

    /// Why `plugin` must stay for decoding, if it must. May ask the store.
    pub(crate) fn decoder_need(&self, plugin: &str) -> Option<String> {
        let units = |decoder: &Arc<Decoder>| decoder.units.iter().any(|(unit, _)| unit.plugin == plugin);
        if self.decoders.load().values().any(units) {
            return Some("stored frames need it for decoding".into());
        }
        let names = |descriptor: &Arc<[u8]>| {
            // What can't be parsed can't be decoded either.
            ChainRecord::parse(descriptor).is_ok_and(|chain| chain.steps.iter().any(|step| step.plugin == plugin))
        };
        let stored = lock(&self.stored).clone()?;
        match stored() {
            Ok(chains) => chains.iter().any(names).then(|| "stored frames need it for decoding".into()),
            Err(error) => Some(format!("it can't be told whether stored frames need it: {error}")),
        }
    }

    /// The plugin and format number that the chain of these descriptor bytes can't be decoded without, if one is not here.
    pub fn missing_for(&self, descriptor: &[u8]) -> Option<String> {
        match self.decoder(descriptor) {
            Err(HostError::MissingPlugin { plugin, format }) => Some(format!("{plugin} (format {format})")),
            _ => None,
        }
    }
}

/// A change being made. Only one is at a time; its end is counted.
pub(crate) struct Changing<'a> {
    host: &'a Host,
    start: Instant,
    _guard: MutexGuard<'a, ()>,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.host.is_changing.store(false, Ordering::Relaxed);
        self.host.swap_time.record(self.start.elapsed());
    }
}

/// Whether a new chain would do exactly what the old one does, so that the old one's workers can stay.
fn is_same(old: &Chain, new: &Chain) -> bool {
    let units = |chain: &Chain| -> Vec<_> { chain.units.iter().map(|u| (u.plugin, u.transform.params())).collect() };
    old.spec == new.spec && old.descriptor == new.descriptor && old.plans == new.plans && units(old) == units(new)
}

/// Every chain that files can reach has what the settings require; encryption may lack only under exempted directories.
fn check_policy(
    registry: &Registry,
    chains: &BTreeMap<ChainName, Arc<Chain>>,
    routes: &RouteTable,
    require: &[String],
) -> Result<(), HostError> {
    let known = || chains.keys().map(|name| &**name).collect::<Vec<_>>().join(", ");
    if !chains.contains_key(DEFAULT_CHAIN) {
        return Err(HostError::UnknownChain { name: DEFAULT_CHAIN.into(), known: known() });
    }
    for route in routes.routes() {
        if !chains.contains_key(route.chain.as_str()) {
            let reason = format!("there is no such chain; there are: {}", known());
            return Err(HostError::BadRoute { route: route.to_string(), reason });
        }
    }
    for (name, chain) in chains {
        let mut users = routes.routes().filter(|route| *route.chain == **name).peekable();
        let exempt = **name != *DEFAULT_CHAIN && users.peek().is_some() && users.all(|route| route.allow_unencrypted);
        let lacking = require.iter().find(|capability| {
            let exempted = exempt && matches!(capability.as_str(), "encryption" | "authentication");
            !exempted && !chain.provides(capability)
        });
        if let Some(capability) = lacking {
            let providers = registry.providers(capability);
            return Err(HostError::Policy { chain: name.to_string(), capability: capability.clone(), providers });
        }
    }
    Ok(())
}

pub(crate) fn unknown(state: &State, name: &str) -> HostError {
    let known = state.chains.keys().map(|name| &**name).collect::<Vec<_>>().join(", ");
    HostError::UnknownChain { name: name.into(), known }
}

fn random_token() -> String {
    // Without randomness no token is right, so that nothing can be confirmed: safe, and it never happens on Linux.
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => bytes.iter().map(|b| format!("{b:02x}")).collect(),
        Err(_) => String::from("\0"),
    }
}
