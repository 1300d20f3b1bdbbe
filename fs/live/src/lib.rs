//! The live tree.
#![forbid(unsafe_code)]

pub mod log;
pub mod types;

pub use types::*;
