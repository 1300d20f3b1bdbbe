//! Plugins for tests: two that only change bytes, and one that misbehaves on command.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axiomfs_api::{Applied, BoundedBuf, Descriptor, Hint, Kind, PluginError, Transform, TransformFactory, Worker};
use axiomfs_host::{ChainSpec, Host, Limits, Registry, RouteTable, StepSpec};

pub fn registry() -> Registry {
    Registry::new()
        .transform(axiomfs_compression_zstd::Factory)
        .seal(axiomfs_encryption_aes_gcm::Aes256Gcm)
        .transform(Plugin::new("xor").with(|d| d.skippable = false))
        .transform(Plugin::new("pad").with(|d| d.after = &["compression"]))
}

pub fn host(chains: Vec<ChainSpec>) -> Host {
    Host::new(registry(), chains, RouteTable::default(), Limits::default(), vec![]).expect("a host")
}

pub fn spec(name: &str, steps: Vec<StepSpec>) -> ChainSpec {
    ChainSpec::new(name, steps)
}

pub fn zstd(level: i32) -> StepSpec {
    StepSpec::new("zstd").with("level", level)
}

pub fn seal() -> StepSpec {
    StepSpec::new("aes-256-gcm")
}

/// A chain's name, its descriptor, and what it made of a frame, or why it made nothing.
type Made = (String, Vec<u8>, Result<(u32, Vec<u8>), String>);

/// All that a refused change must leave as it was.
#[derive(Debug, PartialEq)]
pub struct Standing {
    generation: u64,
    pub chains: Vec<ChainSpec>,
    routes: Vec<String>,
    limits: Limits,
    require: Vec<String>,
    loaded: Vec<(&'static str, bool, Option<String>)>,
    /// What each chain makes of the same frame, by hint.
    data: Vec<Made>,
}

impl Standing {
    pub fn of(host: &Host) -> Self {
        let frame: Vec<u8> = (0..9000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
        let made = |spec: &ChainSpec, hint| {
            let chain = host.chain(&spec.name).expect("a chain that is listed");
            let made = chain.encode(hint, &frame).map(|encoded| (encoded.applied, encoded.bytes));
            (spec.name.clone(), chain.descriptor_bytes().to_vec(), made.map_err(|error| error.to_string()))
        };
        let data = |spec| [Hint::Data, Hint::Metadata].map(|hint| made(spec, hint));
        Self {
            generation: host.generation(),
            chains: host.chain_specs(),
            routes: host.routes().routes().map(ToString::to_string).collect(),
            limits: host.limits(),
            require: host.require(),
            loaded: host.plugins().into_iter().map(|plugin| (plugin.id, plugin.loaded, plugin.distrusted)).collect(),
            data: host.chain_specs().iter().flat_map(data).collect(),
        }
    }

    #[track_caller]
    pub fn assert_same(&self, host: &Host, what: &str) {
        let now = Self::of(host);
        assert!(*self == now, "{what}: refused, and changed:\n{:?}\n{:?}", self.told(), now.told());
    }

    /// Without the bytes, which nobody reads.
    fn told(&self) -> impl std::fmt::Debug {
        let data: Vec<_> = self.data.iter().map(|(name, _, made)| (name, made.as_ref().map(|m| m.1.len()))).collect();
        format!("{} {:?} {:?} {:?} {:?} {data:?}", self.generation, self.chains, self.routes, self.require, self.loaded)
    }
}

/// What goes wrong, changed while the plugin runs.
#[derive(Default, Clone)]
pub struct Trouble(Arc<Switches>);

#[derive(Default)]
struct Switches {
    fail: AtomicBool,
    panic: AtomicBool,
    corrupt: AtomicBool,
    /// One in so many inputs, chosen by their bytes, is encoded wrongly; 0 for none.
    rarely_corrupt: AtomicU64,
    /// One in so many inputs, chosen by their bytes, fails; 0 for none.
    rarely_fail: AtomicU64,
    /// Bytes that it allocates and writes while it encodes.
    greed: AtomicUsize,
    slow_init_ms: AtomicU64,
    slow: Mutex<Duration>,
    running: AtomicUsize,
    most: AtomicUsize,
}

impl Trouble {
    pub fn fail_encoding(&self, fail: bool, panic: bool) {
        self.0.fail.store(fail, SeqCst);
        self.0.panic.store(panic, SeqCst);
    }

    pub fn corrupt_encoding(&self, corrupt: bool) {
        self.0.corrupt.store(corrupt, SeqCst);
    }

    pub fn corrupt_one_in(&self, n: u64) {
        self.0.rarely_corrupt.store(n, SeqCst);
    }

    pub fn fail_one_in(&self, n: u64) {
        self.0.rarely_fail.store(n, SeqCst);
    }

    pub fn greed(&self, bytes: usize) {
        self.0.greed.store(bytes, SeqCst);
    }

    pub fn slow(&self, time: Duration) {
        *self.0.slow.lock().expect("not poisoned") = time;
    }

    pub fn slow_init(&self, time: Duration) {
        self.0.slow_init_ms.store(time.as_millis() as u64, SeqCst);
    }

    pub fn most_at_once(&self) -> usize {
        self.0.most.load(SeqCst)
    }
}

/// XORs every byte with 0x55 and puts a length-dependent tail behind; misbehaves as its [`Trouble`] says.
#[derive(Clone)]
pub struct Plugin {
    descriptor: &'static Descriptor,
    trouble: Trouble,
}

impl Plugin {
    pub fn new(id: &'static str) -> Self {
        let descriptor = Descriptor {
            id,
            kind: Kind::Transform,
            version: "0",
            summary: "A plugin for tests",
            writes: 1,
            reads: &[1],
            provides: &[],
            requires: &[],
            before: &[],
            after: &[],
            memory: 1000,
            skippable: true,
        };
        Self { descriptor: Box::leak(Box::new(descriptor)), trouble: Trouble::default() }
    }

    pub fn with(self, change: impl FnOnce(&mut Descriptor)) -> Self {
        let mut descriptor = self.descriptor.clone();
        change(&mut descriptor);
        Self { descriptor: Box::leak(Box::new(descriptor)), ..self }
    }

    pub fn troubled(mut self, trouble: &Trouble) -> Self {
        self.trouble = trouble.clone();
        self
    }
}

impl TransformFactory for Plugin {
    fn descriptor(&self) -> &'static Descriptor {
        self.descriptor
    }

    fn build(&self, params: &[(String, String)]) -> Result<Arc<dyn Transform>, PluginError> {
        std::thread::sleep(Duration::from_millis(self.trouble.0.slow_init_ms.load(SeqCst)));
        match params.first() {
            None => Ok(Arc::new(self.clone())),
            Some((key, _)) => {
                let plugin = self.descriptor.id;
                Err(PluginError::UnknownParameter { plugin, key: key.clone(), known: "none" })
            }
        }
    }

    fn decoder(&self, _: u16, _: &[u8]) -> Result<Arc<dyn Transform>, PluginError> {
        Ok(Arc::new(self.clone()))
    }
}

impl Transform for Plugin {
    fn descriptor(&self) -> &'static Descriptor {
        self.descriptor
    }

    fn decode_params(&self) -> Vec<u8> {
        Vec::new()
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn worker(&self) -> Result<Box<dyn Worker>, PluginError> {
        Ok(Box::new(self.clone()))
    }
}

impl Worker for Plugin {
    fn encode(&mut self, _: Hint, src: &[u8], out: &mut BoundedBuf) -> Result<Applied, PluginError> {
        let switches = &self.trouble.0;
        let running = switches.running.fetch_add(1, SeqCst) + 1;
        switches.most.fetch_max(running, SeqCst);
        std::thread::sleep(*switches.slow.lock().expect("not poisoned"));
        switches.running.fetch_sub(1, SeqCst);
        assert!(!switches.panic.load(SeqCst), "told to panic");
        if switches.fail.load(SeqCst) {
            return Err(PluginError::Failed { plugin: self.descriptor.id, reason: "told to".into() });
        }
        if is_chosen(src, switches.rarely_fail.load(SeqCst)) {
            return Err(PluginError::Failed { plugin: self.descriptor.id, reason: "now and then".into() });
        }
        std::hint::black_box(vec![1u8; switches.greed.load(SeqCst)]);
        let tail = vec![0xee; src.len() % 7];
        let mut bytes: Vec<u8> = src.iter().map(|b| b ^ 0x55).chain(tail).collect();
        if (switches.corrupt.load(SeqCst) || is_chosen(src, switches.rarely_corrupt.load(SeqCst)))
            && let Some(first) = bytes.first_mut()
        {
            *first ^= 1;
        }
        out.extend(&bytes)?;
        bytes.clear();
        Ok(Applied::Yes)
    }

    fn decode(&mut self, format: u16, src: &[u8], raw_len: usize, out: &mut BoundedBuf) -> Result<(), PluginError> {
        if format != 1 {
            return Err(PluginError::UnknownFormat { plugin: self.descriptor.id, format });
        }
        if src.len() != raw_len + raw_len % 7 {
            return Err(PluginError::LengthMismatch { expected: raw_len, actual: src.len() });
        }
        let bytes: Vec<u8> = src[..raw_len].iter().map(|b| b ^ 0x55).collect();
        out.extend(&bytes)
    }
}

/// Whether an input is the one in `n` that something happens to; the same input always is, or never.
pub fn is_chosen(src: &[u8], n: u64) -> bool {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(src).as_bytes()[..8]);
    n > 0 && u64::from_le_bytes(first).is_multiple_of(n)
}
