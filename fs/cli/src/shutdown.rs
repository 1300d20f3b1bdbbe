//! The daemon's last word: whether all reached the store. It stands in the state directory, for `axiomfs umount` to read
//! when the daemon is gone.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;

const NAME: &str = "last-shutdown";

/// Leaves `report` behind.
///
/// # Errors
/// What the disk answers.
pub fn write(state: &Path, mut report: Value) -> io::Result<()> {
    report["pid"] = std::process::id().into();
    fs::write(state.join(NAME), format!("{report}\n"))
}

/// Forgets the word of an earlier mount.
///
/// # Errors
/// What the disk answers, but for its not being there.
pub fn clear(state: &Path) -> io::Result<()> {
    match fs::remove_file(state.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What the process `pid` left behind.
pub fn read(state: &Path, pid: u64) -> Option<Value> {
    let text = fs::read_to_string(state.join(NAME)).ok()?;
    let report: Value = serde_json::from_str(&text).ok()?;
    (report["pid"] == pid).then_some(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_of_the_process_asked_for_counts() {
        let directory = std::env::temp_dir().join(format!("axiomfs-cli-{}-shutdown", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let own = u64::from(std::process::id());
        write(&directory, serde_json::json!({"ok": true})).unwrap();
        assert_eq!(read(&directory, own).unwrap()["ok"], true);
        assert_eq!(read(&directory, own + 1), None);
        clear(&directory).unwrap();
        clear(&directory).unwrap();
        assert_eq!(read(&directory, own), None);
        fs::remove_dir_all(&directory).unwrap();
    }
}
