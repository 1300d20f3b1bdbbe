use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axiomfs_api::{Descriptor, Seal, TransformFactory};

use crate::HostError;
use crate::stats::PluginStats;
use crate::tally::TallySeal;
use crate::trust::Trust;

/// A transform there is.
pub struct TransformEntry {
    pub factory: Arc<dyn TransformFactory>,
    pub stats: Arc<PluginStats>,
    pub trust: Arc<Trust>,
    /// Proven code's frames are verified by sample, other code's all.
    pub proven: bool,
    loaded: AtomicBool,
}

impl TransformEntry {
    pub fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    pub fn set_loaded(&self, loaded: bool) {
        self.loaded.store(loaded, Ordering::Release);
    }
}

/// A plugin that can be a step.
#[derive(Clone)]
pub enum StepEntry {
    Transform(Arc<TransformEntry>),
    Seal(SealEntry),
}

/// A seal there is, and what is counted of it.
#[derive(Clone)]
pub struct SealEntry {
    pub seal: Arc<dyn Seal>,
    pub stats: Arc<PluginStats>,
}

/// A plugin that is no step: a chunker or a store.
pub struct OtherEntry {
    pub descriptor: &'static Descriptor,
    pub stats: Arc<PluginStats>,
}

impl StepEntry {
    pub fn descriptor(&self) -> &'static Descriptor {
        match self {
            Self::Transform(entry) => entry.factory.descriptor(),
            Self::Seal(entry) => entry.seal.descriptor(),
        }
    }

    pub fn stats(&self) -> &Arc<PluginStats> {
        match self {
            Self::Transform(entry) => &entry.stats,
            Self::Seal(entry) => &entry.stats,
        }
    }
}

/// The plugins that are compiled in.
#[derive(Default)]
pub struct Registry {
    steps: BTreeMap<&'static str, StepEntry>,
    /// Plugins that are no steps: chunkers and stores, for lists.
    others: Vec<OtherEntry>,
    /// Set when a plugin lost its trust and may still stand in chains.
    pub(crate) attention: Arc<AtomicBool>,
}

impl Registry {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a transform that has proven itself: a sample of its frames is verified. A later one of the same id wins.
    pub fn transform(self, factory: impl TransformFactory + 'static) -> Self {
        self.add(factory, true)
    }

    /// Adds a transform that is new or not ours: each of its frames is decoded and compared before it is used.
    pub fn unproven_transform(self, factory: impl TransformFactory + 'static) -> Self {
        self.add(factory, false)
    }

    /// Adds a seal.
    pub fn seal(mut self, seal: impl Seal + 'static) -> Self {
        let stats = Arc::<PluginStats>::default();
        let seal = Arc::new(TallySeal { inner: Arc::new(seal), stats: stats.clone() });
        self.steps.insert(seal.descriptor().id, StepEntry::Seal(SealEntry { seal, stats }));
        self
    }

    /// Lists a chunker or a store, which chains don't have.
    pub fn other(mut self, descriptor: &'static Descriptor) -> Self {
        self.others.push(OtherEntry { descriptor, stats: Arc::default() });
        self
    }

    pub(crate) fn others(&self) -> &[OtherEntry] {
        &self.others
    }

    fn add(mut self, factory: impl TransformFactory + 'static, proven: bool) -> Self {
        let id = factory.descriptor().id;
        let (factory, stats, loaded) = (Arc::new(factory), Arc::default(), AtomicBool::new(true));
        let trust = Arc::new(Trust::new(self.attention.clone()));
        self.steps.insert(id, StepEntry::Transform(Arc::new(TransformEntry { factory, stats, trust, proven, loaded })));
        self
    }

    /// The step plugin `id`, loaded or not.
    pub(crate) fn step(&self, id: &str) -> Result<&StepEntry, HostError> {
        let known = || self.steps.keys().copied().collect::<Vec<_>>().join(", ");
        self.steps.get(id).ok_or_else(|| HostError::UnknownPlugin { plugin: id.into(), known: known() })
    }

    /// The step plugin `id`, if it may be used now.
    pub(crate) fn loaded(&self, id: &str) -> Result<&StepEntry, HostError> {
        match self.step(id)? {
            StepEntry::Transform(entry) if !entry.is_loaded() => Err(HostError::NotLoaded { plugin: id.into() }),
            step => Ok(step),
        }
    }

    /// All steps, by id.
    pub(crate) fn steps(&self) -> impl Iterator<Item = &StepEntry> {
        self.steps.values()
    }

    /// Ids of the plugins that lost their trust, and why.
    pub(crate) fn distrusted(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.steps.iter().filter_map(|(id, step)| match step {
            StepEntry::Transform(entry) => entry.trust.reason().map(|reason| (*id, reason)),
            StepEntry::Seal(_) => None,
        })
    }

    /// Ids of what provides `capability`, for messages.
    pub(crate) fn providers(&self, capability: &str) -> String {
        let provides = |step: &&StepEntry| step.descriptor().provides.contains(&capability);
        let ids: Vec<_> = self.steps().filter(provides).map(|s| s.descriptor().id).collect();
        if ids.is_empty() { "nothing in this build".into() } else { ids.join(", ") }
    }
}
