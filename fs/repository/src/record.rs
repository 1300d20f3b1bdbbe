//! Records of the metadata tree.
