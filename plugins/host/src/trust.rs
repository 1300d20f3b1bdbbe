use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::pool::lock;
use crate::{Host, OnError};

/// Whether a plugin may encode. It loses that by a frame that does not decode, or by breaking a bound; decoding what it
/// wrote goes on, since every chunk is compared with its id.
#[derive(Debug)]
pub struct Trust {
    lost: AtomicBool,
    reason: Mutex<String>,
    /// Told when some plugin's trust is lost, so that the host takes it out of the chains.
    attention: Arc<AtomicBool>,
}

impl Trust {
    pub fn new(attention: Arc<AtomicBool>) -> Self {
        Self { lost: AtomicBool::new(false), reason: Mutex::default(), attention }
    }

    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Why it was lost, if it was.
    pub fn reason(&self) -> Option<String> {
        self.is_lost().then(|| lock(&self.reason).clone())
    }

    /// Takes it away; the first reason stays.
    pub fn lose(&self, reason: String) {
        let mut kept = lock(&self.reason);
        if !self.is_lost() {
            *kept = reason;
            self.lost.store(true, Ordering::Release);
            self.attention.store(true, Ordering::Release);
        }
    }

    /// Gives it back.
    pub fn restore(&self) {
        self.lost.store(false, Ordering::Release);
    }
}

/// Something that the host did to a plugin on its own, for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutOut {
    /// The plugin that lost its trust.
    pub plugin: &'static str,
    /// Why it did.
    pub reason: String,
    /// The generation without it, or why the chains stay as they are.
    pub result: Result<u64, String>,
}

impl Host {
    /// What [`put_out`](Self::put_out) did since the last call, the oldest first.
    pub fn take_put_out(&self) -> Vec<PutOut> {
        std::mem::take(&mut *lock(&self.put_out))
    }

    /// Takes plugins that lost their trust out of all chains: a chain whose step falls back to another becomes that one,
    /// any other goes on without the step. Where that breaks a rule the chain stays, and its frames do what its
    /// strategies say.
    pub(crate) fn put_out(&self) {
        let Ok(_changing) = self.begin() else { return };
        self.registry.attention.store(false, Ordering::Release);
        let state = self.state.load_full();
        let lost: Vec<(&'static str, String)> = self.registry.distrusted().collect();
        let is_lost = |plugin: &str| lost.iter().any(|(id, _)| *id == plugin);
        let mut specs = self.chain_specs();
        for _ in 0..specs.len() {
            let before = specs.clone();
            for spec in &mut specs {
                let step = spec.steps.iter().find(|step| is_lost(&step.plugin));
                match step.map(|step| step.on_error.clone()) {
                    None => {}
                    Some(OnError::Fallback(to)) => {
                        let other = before.iter().find(|other| other.name == to).map(|other| other.steps.clone());
                        spec.steps = other.unwrap_or_default();
                    }
                    Some(OnError::Fail | OnError::Skip) => spec.steps.retain(|step| !is_lost(&step.plugin)),
                }
            }
        }
        for (plugin, reason) in &lost {
            self.events.add("distrusted", format!("Plugin {plugin} is given no more frames: {reason}"));
        }
        let (routes, limits) = (state.routes.clone(), state.limits.clone());
        let changed = self.change(&specs, routes, limits, state.require.clone());
        match &changed {
            Ok(done) => {
                let text = format!("Taken out of the chains, generation {}", done.generation);
                self.events.add("chain", text);
            }
            Err(error) => self.events.add("refused", format!("Not taken out of the chains: {error}")),
        }
        // One that stays distrusted, because a chain has to keep it, is told once.
        let mut told = lock(&self.told);
        told.retain(|known| lost.contains(known));
        let new: Vec<_> = lost.into_iter().filter(|one| !told.contains(one)).collect();
        told.extend(new.iter().cloned());
        let result = changed.map(|done| done.generation).map_err(|error| error.to_string());
        lock(&self.put_out).extend(new.into_iter().map(|(plugin, reason)| PutOut {
            plugin,
            reason,
            result: result.clone(),
        }));
    }
}
