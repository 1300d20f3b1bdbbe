//! The copy-on-write tree of metadata.
