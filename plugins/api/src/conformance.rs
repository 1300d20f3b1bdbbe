//! Suites that every implementation of a trait runs, and every wrapper around one.
