//! Turning the dials of steps that may work harder or lighter.

use axiomfs_api::Effort;

use crate::stats::{HostMetric, MetricKind};
use crate::unit::Unit;
use crate::{Chain, Host};

/// What holds frames up, as somebody sees who knows queues and store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// Nothing: the dials go back to where they usually stand.
    None,
    /// The store takes less than the encoders make: working harder leaves it less to take.
    Store,
    /// Frames wait for the encoders: working lighter lets them through.
    Encoders,
}

impl Host {
    /// Turns every dial one notch as `pressure` asks for, and tells so in the events. To be called about once a second.
    pub fn pace(&self, pressure: Pressure) {
        let state = self.state.load();
        for (chain, unit, effort) in state.chains.values().flat_map(|chain| dials(chain)) {
            let (now, usual) = (effort.get(), effort.usual());
            let (wanted, why) = match pressure {
                Pressure::Store => (now + 1, "the store takes less than the encoders make"),
                Pressure::Encoders => (now - 1, "frames wait for the encoders"),
                Pressure::None => (now + (usual - now).signum(), "nothing presses any more"),
            };
            let then = effort.set(wanted);
            if then != now {
                let text = format!("{} of chain {} goes from {now} to {then}: {why}", unit.plugin, chain.name());
                self.events.add("adapt", text);
            }
        }
    }

    /// Where every dial stands, as metrics.
    pub(crate) fn efforts(&self) -> Vec<HostMetric> {
        let state = self.state.load();
        let dials = state.chains.values().flat_map(|chain| dials(chain));
        dials
            .map(|(chain, unit, effort)| HostMetric {
                name: "axiomfs_plugin_effort",
                series: "",
                help: "Where a step's moving level stands",
                kind: MetricKind::Gauge,
                labels: vec![("plugin", unit.plugin.to_owned()), ("chain", chain.name().to_string())],
                value: f64::from(effort.get()),
            })
            .collect()
    }
}

/// The dials of a chain's own steps; those of its fallbacks are their own chains' copies and stand still.
fn dials(chain: &Chain) -> impl Iterator<Item = (&Chain, &Unit, &Effort)> {
    let own = chain.plans.first().into_iter().flatten().map(|step| &chain.units[step.unit]);
    own.filter_map(move |unit| unit.transform.effort().map(|effort| (chain, unit, effort)))
}
