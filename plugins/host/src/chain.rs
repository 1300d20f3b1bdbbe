use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axiomfs_api::{Applied, BoundedBuf, Hint, PluginError, TAG_LEN};

use crate::pool::{Bench, Permits, Pool};
use crate::stats::PluginStats;
use crate::unit::Unit;
use crate::{ChainId, ChainSpec, Decoder, HostError};

/// A chain's name, cheap to clone.
pub type ChainName = Arc<str>;

/// A frame that went through a chain's transforms; not sealed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The bytes to seal, with room for a tag.
    pub bytes: Vec<u8>,
    /// A bit per transform step of the descriptor, the first step's lowest: whether it was applied.
    pub applied: u32,
}

/// What the frames of a chain go through, fixed from its making to its last frame.
pub struct Chain {
    pub(crate) name: ChainName,
    pub(crate) spec: ChainSpec,
    pub(crate) id: ChainId,
    pub(crate) descriptor: Vec<u8>,
    pub(crate) units: Vec<Unit>,
    /// The chain's own steps, then those of each fallback.
    pub(crate) plans: Vec<Vec<PlannedStep>>,
    /// Built from the descriptor alone, as a later mount would.
    pub(crate) decoder: Decoder,
    pub(crate) provides: Vec<&'static str>,
    pub(crate) pool: Pool,
    pub(crate) run: RunLimits,
    pub(crate) frames: AtomicU64,
}

/// What all chains of a host share.
#[derive(Clone)]
pub struct RunLimits {
    pub permits: Arc<Permits>,
    pub max_frame: usize,
    /// Of so many frames of proven steps one is decoded and compared; 0 for none.
    pub verify_sample: u32,
    pub verified: Arc<AtomicU64>,
}

/// One step of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedStep {
    /// Index into the chain's units.
    pub unit: usize,
    /// Its bit in a frame's record.
    pub slot: usize,
    pub on_failure: OnFailure,
}

/// An error strategy with its names resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    Fail,
    Skip,
    /// Start over with this plan, which has a higher number.
    Plan(usize),
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Chain({}: {}, {:?})", self.name, self.spec, self.id)
    }
}

impl Chain {
    /// Its name.
    pub fn name(&self) -> &ChainName {
        &self.name
    }

    /// Its steps as they were asked for, with all parameters.
    pub fn spec(&self) -> &ChainSpec {
        &self.spec
    }

    /// BLAKE3 of the descriptor bytes.
    pub fn id(&self) -> ChainId {
        self.id
    }

    /// What decoding needs; stored with the frames.
    pub fn descriptor_bytes(&self) -> &[u8] {
        &self.descriptor
    }

    /// The id of its seal, if it has one.
    pub fn seal_id(&self) -> Option<&str> {
        self.decoder.seal_id()
    }

    /// Whether a step of it provides `capability`.
    pub fn provides(&self, capability: &str) -> bool {
        self.provides.contains(&capability)
    }

    /// Frames in it now.
    pub fn in_flight(&self) -> usize {
        self.pool.busy()
    }

    /// Sends a frame through the transforms. Waits for a permit, never for a swap.
    ///
    /// # Errors
    /// [`HostError::Encode`] if a step failed and its strategy was to fail; [`HostError::Verify`];
    /// [`HostError::FrameTooLarge`].
    pub fn encode(&self, hint: Hint, raw: &[u8]) -> Result<Encoded, HostError> {
        if raw.len() > self.run.max_frame {
            return Err(HostError::FrameTooLarge { len: raw.len(), max: self.run.max_frame });
        }
        let _permit = self.run.permits.acquire();
        self.pool.with(|bench| self.encode_verified(bench, hint, raw))
    }

    /// Encodes until something comes out that decodes, taking the trust of every step that was wrong.
    fn encode_verified(&self, bench: &mut Bench, hint: Hint, raw: &[u8]) -> Result<Encoded, HostError> {
        let wrong = || HostError::Verify { chain: self.name.to_string() };
        let mut verify = self.is_verified();
        for round in 0..=self.units.len() {
            let encoded = match self.run_plan(bench, 0, hint, raw, true) {
                Err(_) if round > 0 => return Err(wrong()),
                done => done?,
            };
            if encoded.applied == 0 || !verify {
                return Ok(encoded);
            }
            self.run.verified.fetch_add(1, Ordering::Relaxed);
            if self.decoder.decode_permitted(encoded.applied, &encoded.bytes, raw.len()).ok().as_deref() == Some(raw) {
                return Ok(encoded);
            }
            tracing::error!(chain = %self.name, len = raw.len(), "An encoded frame does not decode to what went in");
            verify = true;
            self.blame(bench, hint, raw, encoded.applied);
        }
        Err(wrong())
    }

    /// Finds the steps whose output does not decode and takes their trust. Where none shows it again, those that made the
    /// frame lose it: the ones that are not proven, or all if all are.
    fn blame(&self, bench: &mut Bench, hint: Hint, raw: &[u8], applied: u32) {
        let mut found = false;
        let lose = |unit: &Unit| {
            PluginStats::add(&unit.stats.wrong, 1);
            unit.trust.lose("it made a frame that does not decode to what went in".into());
        };
        for plan in &self.plans {
            let mut current = raw.to_vec();
            for step in plan {
                let unit = &self.units[step.unit];
                let mut out = BoundedBuf::new(output_bound(current.len()));
                if !matches!(unit.encode(&mut bench.workers[step.unit], hint, &current, &mut out), Ok(Applied::Yes)) {
                    continue;
                }
                if self.decoder.undoes(step.slot, out.as_slice(), &current) {
                    current = out.into_vec();
                } else {
                    lose(unit);
                    found = true;
                    break;
                }
            }
        }
        if found {
            return;
        }
        let suspects = || {
            let steps = self.plans.iter().flatten();
            steps.filter(|step| applied >> step.slot & 1 == 1).map(|step| &self.units[step.unit])
        };
        let all_proven = suspects().all(|unit| unit.proven);
        suspects().filter(|unit| all_proven || !unit.proven).for_each(lose);
    }

    /// Whether the next frame is decoded and compared.
    fn is_verified(&self) -> bool {
        if self.units.iter().any(|unit| !unit.proven) {
            return true;
        }
        let every = u64::from(self.run.verify_sample);
        every > 0 && self.frames.fetch_add(1, Ordering::Relaxed).is_multiple_of(every)
    }

    /// Runs one plan; where `lenient` is false, any failure is one of the chain.
    pub(crate) fn run_plan(
        &self,
        bench: &mut Bench,
        plan: usize,
        hint: Hint,
        raw: &[u8],
        lenient: bool,
    ) -> Result<Encoded, HostError> {
        let mut current: Option<Vec<u8>> = None;
        let (mut applied, mut lens) = (0, Vec::new());
        for step in &self.plans[plan] {
            let unit = &self.units[step.unit];
            let src = current.as_deref().unwrap_or(raw);
            let mut out = BoundedBuf::reuse(bench.buffer(), output_bound(src.len()));
            match unit.encode(&mut bench.workers[step.unit], hint, src, &mut out) {
                Ok(Applied::Yes) => {
                    applied |= 1 << step.slot;
                    if let Some(previous) = current.replace(out.into_vec()) {
                        lens.push(previous.len() as u32);
                        bench.keep(previous);
                    }
                }
                Ok(Applied::No) => bench.keep(out.into_vec()),
                Err(source) => {
                    bench.keep(out.into_vec());
                    match step.on_failure {
                        OnFailure::Skip if lenient => PluginStats::add(&unit.stats.skipped, 1),
                        OnFailure::Plan(next) if lenient => {
                            PluginStats::add(&unit.stats.fallbacks, 1);
                            return self.run_plan(bench, next, hint, raw, lenient);
                        }
                        _ => return Err(self.failed(unit, source)),
                    }
                }
            }
        }
        let Some(mut bytes) = current else { return Ok(unchanged(raw)) };
        for len in lens {
            bytes.extend(len.to_le_bytes());
        }
        Ok(Encoded { bytes, applied })
    }

    fn failed(&self, unit: &Unit, source: PluginError) -> HostError {
        HostError::Encode { chain: self.name.to_string(), plugin: unit.plugin.into(), source: source.into() }
    }
}

/// A frame that no step was applied to.
fn unchanged(raw: &[u8]) -> Encoded {
    // With room for the tag, so that sealing in place does not copy it again.
    let mut bytes = Vec::with_capacity(raw.len() + TAG_LEN);
    bytes.extend_from_slice(raw);
    Encoded { bytes, applied: 0 }
}

/// Most bytes a step may make of `len`.
fn output_bound(len: usize) -> usize {
    len + len / 8 + 1024
}
