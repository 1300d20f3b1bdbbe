//! Test suites that others wrote, which `scripts/test` installs.

use std::path::PathBuf;

/// The program `name`, installed by `scripts/test` below the user's cache directory.
///
/// # Panics
/// When it isn't there, with the command that installs it.
pub fn tool(name: &str, version: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let root = cache.expect("HOME is set").join("axiomfs/tools");
    let program = root.join("bin").join(name);
    assert!(
        program.is_file(),
        "{} is missing: cargo install --locked --root {} {name}@{version}",
        program.display(),
        root.display()
    );
    program
}
