//! Talks to the daemon behind a mount, through its control files.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::failure::Failure;
use crate::places;

/// Longest reply read, in bytes.
const MAX_REPLY: usize = 16 << 20;
/// Longest command, in bytes; the mount refuses more.
const MAX_COMMAND: usize = 4096;

/// A mounted axiomfs.
#[derive(Debug, Clone)]
pub struct Client {
    mountpoint: PathBuf,
}

impl Client {
    /// Makes sure that an axiomfs answers at `mountpoint`.
    ///
    /// # Errors
    /// [`Failure`] that says what is there instead.
    pub fn connect(mountpoint: &Path) -> Result<Self, Failure> {
        let shown = mountpoint.display();
        match fs::symlink_metadata(mountpoint.join(".axiomfs/status")) {
            Ok(_) => Ok(Self { mountpoint: mountpoint.to_owned() }),
            Err(error) if places::is_stale(&error) => Err(places::stale(mountpoint)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(denied(mountpoint)),
            Err(_) if fs::symlink_metadata(mountpoint).is_err() => {
                Err(Failure::new(format!("{shown} does not exist")).hint("give the mount point of an axiomfs"))
            }
            Err(_) => Err(Failure::new(format!("No axiomfs is mounted on {shown}"))
                .hint(format!("mount it with: axiomfs mount STORE {shown}"))),
        }
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// What `.axiomfs/status` says.
    ///
    /// # Errors
    /// [`Failure`] if it can't be read.
    pub fn status(&self) -> Result<Value, Failure> {
        self.json_of("status")
    }

    /// The snapshots, as also a mount shows them that takes no commands.
    ///
    /// # Errors
    /// [`Failure`] if they can't be read.
    pub fn snapshots(&self) -> Result<Value, Failure> {
        Ok(self.json_of("snapshots")?["snapshots"].take())
    }

    fn json_of(&self, name: &str) -> Result<Value, Failure> {
        let path = self.mountpoint.join(".axiomfs").join(name);
        let text =
            fs::read_to_string(&path).map_err(|error| self.explain(&format!("Could not read the {name}"), &error))?;
        serde_json::from_str(&text).map_err(|error| Failure::caused(format!("{} is not JSON", path.display()), &error))
    }

    /// Whether nothing can be changed there, also not by a command.
    ///
    /// # Errors
    /// [`Failure`] if it does not say.
    pub fn is_read_only(&self) -> Result<bool, Failure> {
        Ok(self.status()?["state"] == "read-only")
    }

    /// Sends one command and waits for its answer.
    ///
    /// # Errors
    /// [`Failure`] if the mount refuses it, in the mount's words.
    pub fn control(&self, line: &str) -> Result<Value, Failure> {
        match self.exchange(line)? {
            reply if reply["ok"] == true => Ok(reply),
            reply => Err(refusal(&reply)),
        }
    }

    /// Sends one command; the answer, also a refusal.
    ///
    /// # Errors
    /// [`Failure`] if there is no answer.
    pub fn exchange(&self, line: &str) -> Result<Value, Failure> {
        if line.len() > MAX_COMMAND {
            return Err(Failure::usage(format!("The command is {} bytes long", line.len()))
                .hint(format!("a command has at most {MAX_COMMAND} bytes")));
        }
        let path = self.mountpoint.join(".axiomfs/control");
        let mut file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|error| self.explain("Could not open the control file", &error))?;
        // A refusal comes as an error of the write; its text is then there to be read all the same.
        let written = file.write(line.as_bytes());
        let reply = read_reply(&mut file);
        match (written, reply) {
            (_, Ok(reply)) if !reply.is_empty() => serde_json::from_slice(&reply)
                .map_err(|error| Failure::caused("The mount answered something that is not JSON", &error)),
            (Err(error), _) => Err(self.explain("The mount refused the command", &error)),
            (Ok(_), Err(error)) => Err(self.explain("The mount did not answer", &error)),
            (Ok(_), Ok(_)) => {
                Err(Failure::new("The mount did not answer").hint("look into the log in its state directory"))
            }
        }
    }

    fn explain(&self, context: &str, error: &io::Error) -> Failure {
        if places::is_stale(error) {
            return places::stale(&self.mountpoint);
        }
        if error.kind() == io::ErrorKind::PermissionDenied {
            return denied(&self.mountpoint);
        }
        let shown = self.mountpoint.display();
        if error.kind() == io::ErrorKind::ReadOnlyFilesystem {
            return Failure::new(format!("{shown} is mounted read-only, so it takes no commands"))
                .hint("`axiomfs status` works; mount it without --read-only to change something");
        }
        Failure::caused(format!("{context} of {shown}"), error)
    }
}

fn read_reply(file: &mut File) -> io::Result<Vec<u8>> {
    let mut reply = Vec::new();
    let mut block = vec![0; 64 << 10];
    while reply.len() < MAX_REPLY {
        match file.read_at(&mut block, reply.len() as u64)? {
            0 => break,
            n => reply.extend_from_slice(&block[..n]),
        }
    }
    if reply.is_empty() {
        file.read_to_end(&mut reply)?;
    }
    Ok(reply)
}

fn denied(mountpoint: &Path) -> Failure {
    Failure::new(format!("The mount on {} belongs to another user", mountpoint.display()))
        .hint("only the user who mounted it, or root, may control it")
}

/// A refusal `{"ok":false,…}` as a failure.
pub fn refusal(reply: &Value) -> Failure {
    let msg = reply["msg"].as_str().unwrap_or("The mount refused the command");
    let failure = Failure::new(msg).answer(reply.clone());
    match reply["hint"].as_str().filter(|hint| !hint.is_empty()) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_the_words_of_the_mount() {
        let reply = serde_json::json!({"ok": false, "code": "ORDER", "errno": "EINVAL", "msg": "zstd after the seal", "hint": "put it before"});
        assert_eq!(refusal(&reply).to_string(), "zstd after the seal; put it before");
        assert_eq!(refusal(&Value::Null).to_string(), "The mount refused the command");
    }

    #[test]
    fn what_is_no_mount_is_named() {
        let missing = Client::connect(Path::new("/nonexistent/mnt")).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/mnt does not exist"), "{missing}");
        let plain = Client::connect(Path::new("/")).unwrap_err().to_string();
        assert!(plain.contains("No axiomfs is mounted on /"), "{plain}");
    }
}
