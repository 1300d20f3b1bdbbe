//! What the black-box tests share: temporary repositories, mounts and daemons that never outlive their test, a naive
//! model of a filesystem, random workloads, and comparisons that don't trust the filesystem under test.

pub mod compare;
pub mod credentials;
pub mod crowd;
pub mod ext4;
pub mod generate;
pub mod history;
pub mod metrics;
pub mod model;
pub mod observe;
pub mod odd_tree;
pub mod perform;
pub mod place;
pub mod powercut;
pub mod proxy;
pub mod repo;
pub mod rng;
pub mod run;
pub mod s3;
pub mod search;
pub mod sigv4;
pub mod source;
pub mod tools;
