//! The plugin host: which plugins there are, the chains built of them, and how a chain is replaced under load.
//!
//! A [`Chain`] is immutable. The [`Host`] holds the current ones behind one atomic pointer; who encodes a frame takes a
//! chain once and keeps it for that frame. A swap builds and tests the new chain beside the old one and then replaces the
//! pointer, so no frame ever waits for it. What a chain wrote is described by its descriptor bytes, stored beside the
//! frames; [`Host::decoder`] turns them back into a [`Decoder`], whatever the chains are by then.
#![forbid(unsafe_code)]

mod build;
mod chain;
mod command;
mod counted;
mod decoder;
mod error;
mod events;
mod execute;
mod fault;
mod host;
mod metrics;
mod pace;
mod pool;
mod registry;
mod resolve;
mod retry;
mod route;
mod seat;
mod self_test;
mod spec;
mod stats;
mod tally;
mod trust;
mod unit;
mod wire;

pub use axiomfs_api::TransformFactory;
pub use chain::{Chain, ChainName, Encoded};
pub use command::{
    ChainCommand, Command, ControlError, MAX_COMMAND, PluginCommand, Position, RouteCommand, SyncCommand, parse_command,
};
pub use counted::{Counted, Counts, StoreTotals, StoreTrouble};
pub use decoder::Decoder;
pub use error::HostError;
pub use events::HostEvent;
pub use execute::{ChainInfo, PluginInfo, Reply, TestReport};
pub use fault::{Call, Fault, Faulty, Operation};
pub use host::{Host, Limits, Replaced, StoredChains};
pub use pace::Pressure;
pub use registry::Registry;
pub use retry::{Retry, RetryPolicy};
pub use route::{MAX_ROUTES, Matcher, Route, RouteTable, settled};
pub use spec::{ChainSpec, MAX_CHAIN_STEPS, MAX_CHAINS, OnError, StepSpec};
pub use stats::{HostMetric, MetricKind};
pub use trust::PutOut;
pub use wire::{ChainId, ChainRecord, StepRecord};

/// The author's guide, so that its example is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct AuthorsGuide;
