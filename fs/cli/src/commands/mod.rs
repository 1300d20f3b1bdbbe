//! One file per verb.

pub mod advise;
pub mod config;
pub mod ctl;
pub mod init;
pub mod key;
pub mod mount;
pub mod plugin;
pub mod recover;
pub mod snapshot;
pub mod stat;
pub mod status;
pub mod sync;
pub mod umount;
pub mod volume;
