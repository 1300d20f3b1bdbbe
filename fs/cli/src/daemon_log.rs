//! The daemon's log: `axiomfs.log` in the state directory, never longer than its bound, with one predecessor.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::failure::Failure;

/// A log file is set aside at this many bytes; together with its predecessor twice this.
const MAX_LEN: u64 = 4 << 20;
/// Variable with the level: `error`, `warn`, `info` (default), `debug` or `trace`.
const VARIABLE: &str = "AXIOMFS_LOG";

/// Sends all that is traced to the terminal.
///
/// # Errors
/// [`Failure`] if the level is none.
pub fn to_terminal() -> Result<(), Failure> {
    let heard = heard(level()?);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
    tracing_subscriber::registry().with(lines.with_filter(heard)).init();
    Ok(())
}

/// Sends all that is traced to `axiomfs.log` in `directory`.
///
/// # Errors
/// [`Failure`] if the level is none or the file can't be opened.
pub fn to_directory(directory: &Path) -> Result<(), Failure> {
    let heard = heard(level()?);
    let file = BoundedFile::open(directory.join("axiomfs.log"), MAX_LEN)
        .map_err(|error| Failure::caused(format!("Could not open the log in {}", directory.display()), &error))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(Mutex::new(file)).with_ansi(false).with_target(false);
    tracing_subscriber::registry().with(lines.with_filter(heard)).init();
    Ok(())
}

/// All of our own words up to `level`, and no more than warnings of others: what the AWS SDK traces has whole requests in it, with
/// session tokens.
fn heard(level: Level) -> Targets {
    Targets::new().with_default(level.min(Level::WARN)).with_target("axiomfs", level)
}

fn level() -> Result<Level, Failure> {
    match std::env::var(VARIABLE) {
        Err(_) => Ok(Level::INFO),
        Ok(text) => text.parse().map_err(|_| {
            Failure::usage(format!("{VARIABLE} is {text:?}")).hint("use error, warn, info, debug or trace")
        }),
    }
}

struct BoundedFile {
    path: PathBuf,
    file: File,
    len: u64,
    max: u64,
}

impl BoundedFile {
    fn open(path: PathBuf, max: u64) -> io::Result<Self> {
        let file = File::options().append(true).create(true).open(&path)?;
        let len = file.metadata()?.len();
        Ok(Self { path, file, len, max })
    }
}

impl Write for BoundedFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.len > 0 && self.len + line.len() as u64 > self.max {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            *self = Self::open(self.path.clone(), self.max)?;
        }
        let written = self.file.write(line)?;
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_never_grows_past_its_bound() {
        let directory = std::env::temp_dir().join(format!("axiomfs-cli-{}-log", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("axiomfs.log");
        for round in 0..2 {
            let mut log = BoundedFile::open(path.clone(), 100).unwrap();
            for line in 0..20 {
                log.write_all(format!("round {round} line {line:03}\n").as_bytes()).unwrap();
            }
        }
        let (now, before) =
            (fs::read_to_string(&path).unwrap(), fs::read_to_string(directory.join("axiomfs.log.1")).unwrap());
        assert!(now.len() <= 100 && before.len() <= 100, "{} {}", now.len(), before.len());
        assert!(now.ends_with("round 1 line 019\n") && !before.is_empty());
        fs::remove_dir_all(&directory).unwrap();
    }
}
