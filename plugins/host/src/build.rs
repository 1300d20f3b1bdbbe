//! From specifications to chains and decoders.

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use axiomfs_api::{Descriptor, Kind, PluginError, Transform};

use crate::chain::{OnFailure, PlannedStep, RunLimits};
use crate::pool::Pool;
use crate::registry::{StepEntry, TransformEntry};
use crate::seat::Allowance;
use crate::unit::Unit;
use crate::wire::{MAX_STEPS, chain_id};
use crate::{Chain, ChainRecord, ChainSpec, Decoder, HostError, OnError, Registry, StepRecord, StepSpec, resolve};

/// Most plans, counted along every way, that a chain and its fallbacks may have.
const MAX_PLANS: usize = 16;

/// What building needs to know.
pub struct Builder<'a> {
    pub registry: &'a Registry,
    /// All chains, for fallbacks.
    pub specs: &'a [ChainSpec],
    pub plugin_memory: usize,
    pub init_timeout: Duration,
    pub frame_timeout: Duration,
    pub run: RunLimits,
}

/// Parts of a chain as they come together.
#[derive(Default)]
struct Parts {
    units: Vec<Unit>,
    plans: Vec<Vec<PlannedStep>>,
    slots: Vec<StepRecord>,
}

impl Builder<'_> {
    /// Builds the chain of `spec`, with its fallbacks; not tested yet.
    ///
    /// # Errors
    /// [`HostError`] saying what is wrong with which step.
    pub fn chain(&self, spec: &ChainSpec) -> Result<Chain, HostError> {
        if !is_name(&spec.name) {
            return Err(HostError::BadName { name: spec.name.clone() });
        }
        let mut parts = Parts::default();
        let seal = self.plan(spec, &mut parts, &mut HashSet::new())?;
        let provides = self.provided(spec)?;
        let record =
            ChainRecord { steps: std::mem::take(&mut parts.slots), seal: seal.map(|d| (d.id.to_owned(), d.writes)) };
        if !record.is_encodable() {
            let reason = format!("Chain {} has more than {MAX_STEPS} steps with its fallbacks", spec.name);
            return Err(HostError::Order { reason, hint: "Use fewer steps or fallbacks".into() });
        }
        let descriptor = record.encode();
        Ok(Chain {
            name: spec.name.as_str().into(),
            spec: canonical(spec, &parts),
            id: chain_id(&descriptor),
            decoder: self.decoder(&descriptor)?,
            descriptor,
            provides,
            pool: Pool::new(parts.units.len()),
            units: parts.units,
            plans: parts.plans,
            run: self.run.clone(),
            frames: AtomicU64::new(0),
        })
    }

    /// Builds what undoes the chain with these descriptor bytes.
    ///
    /// # Errors
    /// [`HostError::BadDescriptor`]; [`HostError::MissingPlugin`] naming the plugin that is not here.
    pub fn decoder(&self, descriptor: &[u8]) -> Result<Decoder, HostError> {
        let record = ChainRecord::parse(descriptor)?;
        let units = record.steps.iter().map(|step| self.decoding_unit(step)).collect::<Result<Vec<_>, _>>()?;
        if let Some((id, format)) = &record.seal {
            let missing = || HostError::MissingPlugin { plugin: id.clone(), format: *format };
            let seal = self.registry.loaded(id).map_err(|_| missing())?.descriptor();
            if seal.kind != Kind::Seal || !seal.reads.contains(format) {
                return Err(missing());
            }
        }
        Ok(Decoder {
            pool: Pool::new(units.len()),
            units,
            seal: record.seal,
            permits: self.run.permits.clone(),
            max_frame: self.run.max_frame,
        })
    }

    fn decoding_unit(&self, step: &StepRecord) -> Result<(Unit, u16), HostError> {
        let missing = || HostError::MissingPlugin { plugin: step.plugin.clone(), format: step.format };
        let Ok(StepEntry::Transform(entry)) = self.registry.loaded(&step.plugin) else { return Err(missing()) };
        let descriptor = entry.factory.descriptor();
        if !descriptor.reads.contains(&step.format) {
            return Err(missing());
        }
        let transform = entry
            .factory
            .decoder(step.format, &step.params)
            .map_err(|source| HostError::Setup { plugin: step.plugin.clone(), source: source.into() })?;
        Ok((self.made(entry, transform), step.format))
    }

    /// Adds the plan of `spec` and of the chains it falls back to; returns its seal.
    fn plan(
        &self,
        spec: &ChainSpec,
        parts: &mut Parts,
        open: &mut HashSet<String>,
    ) -> Result<Option<&'static Descriptor>, HostError> {
        let descriptors = self.descriptors(spec)?;
        resolve::check(&descriptors)?;
        self.check_requirements(&descriptors)?;
        let number = parts.plans.len();
        if number == MAX_PLANS {
            let reason = format!("The fallbacks of a chain lead through more than {MAX_PLANS} others");
            return Err(HostError::Order { reason, hint: "Use fewer fallbacks".into() });
        }
        parts.plans.push(Vec::new());
        open.insert(spec.name.clone());
        let (mut seal, mut cursor) = (None, 0);
        let mut steps = Vec::new();
        for (step, descriptor) in spec.steps.iter().zip(&descriptors) {
            match self.registry.loaded(&step.plugin)? {
                StepEntry::Seal(_) => {
                    check_seal(step)?;
                    seal = Some(*descriptor);
                }
                StepEntry::Transform(entry) => {
                    let unit = self.unit(entry, step)?;
                    cursor = slot_of(&mut parts.slots, &unit, cursor);
                    steps.push((parts.units.len(), cursor, step));
                    parts.units.push(unit);
                    cursor += 1;
                }
            }
        }
        for (unit, slot, step) in steps {
            let on_failure = self.strategy(step, seal, parts, open)?;
            parts.plans[number].push(PlannedStep { unit, slot, on_failure });
        }
        open.remove(&spec.name);
        Ok(seal)
    }

    fn descriptors(&self, spec: &ChainSpec) -> Result<Vec<&'static Descriptor>, HostError> {
        spec.steps.iter().map(|step| self.registry.loaded(&step.plugin).map(StepEntry::descriptor)).collect()
    }

    fn provided(&self, spec: &ChainSpec) -> Result<Vec<&'static str>, HostError> {
        Ok(self.descriptors(spec)?.iter().flat_map(|d| d.provides.iter().copied()).collect())
    }

    fn check_requirements(&self, descriptors: &[&Descriptor]) -> Result<(), HostError> {
        for d in descriptors {
            for &capability in d.requires {
                if !descriptors.iter().any(|other| other.id != d.id && other.provides.contains(&capability)) {
                    let (plugin, capability) = (d.id.to_owned(), capability.to_owned());
                    let providers = self.registry.providers(&capability);
                    return Err(HostError::Requirement { plugin, capability, providers });
                }
            }
            if d.memory > self.plugin_memory {
                let (plugin, needs, bound) = (d.id.to_owned(), d.memory, self.plugin_memory);
                return Err(HostError::Memory { plugin, needs, bound });
            }
        }
        Ok(())
    }

    fn strategy(
        &self,
        step: &StepSpec,
        seal: Option<&'static Descriptor>,
        parts: &mut Parts,
        open: &mut HashSet<String>,
    ) -> Result<OnFailure, HostError> {
        let refused = |reason: String| HostError::Strategy {
            plugin: step.plugin.clone(),
            strategy: step.on_error.to_string(),
            reason,
        };
        match &step.on_error {
            OnError::Fail => Ok(OnFailure::Fail),
            OnError::Skip if self.registry.loaded(&step.plugin)?.descriptor().skippable => Ok(OnFailure::Skip),
            OnError::Skip => Err(refused("frames are not right without it".into())),
            OnError::Fallback(name) => {
                if open.contains(name) {
                    return Err(refused("the fallbacks go in a circle".into()));
                }
                // One plan per chain, unless that chain's own plan comes earlier: a frame only ever moves on.
                let spec = self.specs.iter().find(|spec| spec.name == *name);
                let spec = spec.ok_or_else(|| refused(format!("there is no chain {name}")))?;
                let plan = parts.plans.len();
                let same = self.plan(spec, parts, open)?.map(|d| d.id) == seal.map(|d| d.id);
                if same { Ok(OnFailure::Plan(plan)) } else { Err(refused(format!("chain {name} has another seal"))) }
            }
        }
    }

    /// Sets a step up within its time; code that is not proven on a thread of its own, where it may hang.
    pub fn unit(&self, entry: &Arc<TransformEntry>, step: &StepSpec) -> Result<Unit, HostError> {
        let mut seen = HashSet::new();
        if let Some((key, _)) = step.params.iter().find(|(key, _)| !seen.insert(key.as_str())) {
            return Err(HostError::Duplicate { what: "Parameter", name: key.clone() });
        }
        if let Some(reason) = entry.trust.reason() {
            return Err(HostError::Distrusted { plugin: step.plugin.clone(), reason });
        }
        let start = Instant::now();
        let result = if entry.proven { self.set_up(entry, step) } else { self.set_up_apart(entry, step) };
        entry.stats.init_time.record(start.elapsed());
        result
    }

    fn set_up(&self, entry: &Arc<TransformEntry>, step: &StepSpec) -> Result<Unit, HostError> {
        // A second try, because what was slow may have been the machine.
        for _ in 0..2 {
            let start = Instant::now();
            let built = entry
                .factory
                .build(&step.params)
                .and_then(|transform| transform.worker().map(|_| transform))
                .map_err(|source| HostError::Setup { plugin: step.plugin.clone(), source: Box::new(source) })?;
            if start.elapsed() <= self.init_timeout {
                return Ok(self.made(entry, built));
            }
        }
        Err(HostError::InitTimeout { plugin: step.plugin.clone(), bound: self.init_timeout })
    }

    fn set_up_apart(&self, entry: &Arc<TransformEntry>, step: &StepSpec) -> Result<Unit, HostError> {
        let setup = |source| HostError::Setup { plugin: step.plugin.clone(), source: Box::new(source) };
        let (send, receive) = mpsc::channel();
        let (factory, params) = (entry.factory.clone(), step.params.clone());
        let init = move || {
            let built = factory.build(&params).and_then(|transform| transform.worker().map(|_| transform));
            // Nobody listens any more after the timeout.
            send.send(built).ok();
        };
        let spawned = std::thread::Builder::new().name("plugin-init".into()).spawn(init);
        let failed = |reason: String| setup(PluginError::Failed { plugin: entry.factory.descriptor().id, reason });
        spawned.map_err(|error| failed(error.to_string()))?;
        match receive.recv_timeout(self.init_timeout) {
            Ok(built) => Ok(self.made(entry, built.map_err(setup)?)),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(failed("it panicked".into())),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(HostError::InitTimeout { plugin: step.plugin.clone(), bound: self.init_timeout })
            }
        }
    }

    fn made(&self, entry: &TransformEntry, transform: Arc<dyn Transform>) -> Unit {
        Unit {
            plugin: entry.factory.descriptor().id,
            transform,
            stats: entry.stats.clone(),
            trust: entry.trust.clone(),
            proven: entry.proven,
            allowance: Allowance { memory: self.plugin_memory, time: self.frame_timeout },
        }
    }
}

/// The first slot from `from` on that fits `unit`, made if there is none.
fn slot_of(slots: &mut Vec<StepRecord>, unit: &Unit, from: usize) -> usize {
    let record = StepRecord {
        plugin: unit.plugin.into(),
        format: unit.transform.descriptor().writes,
        params: unit.transform.decode_params(),
    };
    match slots.iter().skip(from).position(|slot| *slot == record) {
        Some(found) => from + found,
        None => {
            slots.push(record);
            slots.len() - 1
        }
    }
}

fn check_seal(step: &StepSpec) -> Result<(), HostError> {
    if step.on_error != OnError::Fail {
        return Err(HostError::Strategy {
            plugin: step.plugin.clone(),
            strategy: step.on_error.to_string(),
            reason: "a seal either succeeds or the frame fails".into(),
        });
    }
    match step.params.first() {
        None => Ok(()),
        Some((key, _)) => {
            let plugin = "seal";
            let source = PluginError::UnknownParameter { plugin, key: key.clone(), known: "none" };
            Err(HostError::Setup { plugin: step.plugin.clone(), source: source.into() })
        }
    }
}

/// `spec` with every parameter as the plugins understood it.
fn canonical(spec: &ChainSpec, parts: &Parts) -> ChainSpec {
    let mut units = parts.plans[0].iter().map(|step| &parts.units[step.unit]);
    let steps = spec.steps.iter().map(|step| {
        let mut step = step.clone();
        // Seals have no unit and no parameters, and stand last.
        if let Some(unit) = units.next() {
            step.params = unit.transform.params().into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        }
        step
    });
    ChainSpec { name: spec.name.clone(), steps: steps.collect() }
}

/// Whether a chain may be called so.
pub fn is_name(name: &str) -> bool {
    name.len() <= 32 && crate::wire::is_id(name.as_bytes())
}
