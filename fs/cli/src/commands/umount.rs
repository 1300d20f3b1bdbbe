//! `axiomfs umount`: drain, unmount, wait for the daemon.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use axiomfs_mount::MountedAt;
use serde_json::{Value, json};

use crate::args::UmountArgs;
use crate::client::Client;
use crate::commands::sync;
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{output, places, shutdown, system};

/// Longest wait for the daemon's end after its mount is gone. What was pending is in the store by then.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// How long a daemon takes at most to notice that its mount is gone, before it is looked for elsewhere, time and again.
const NOTICES: Duration = Duration::from_secs(3);
/// How long another mount namespace may have it: a program that was started with one of its own meanwhile ends again.
const PASSES: Duration = Duration::from_secs(30);

/// Runs the verb.
///
/// # Errors
/// [`Failure`] if the mount is busy, or if not all of it could reach the store.
pub fn run(args: &UmountArgs, json: bool) -> Result<(), Failure> {
    // The kernel unmounts what a path stands for, not what a link leads to.
    let mountpoint = &places::settle(&args.mountpoint)?;
    if axiomfs_mount::is_dead(mountpoint) {
        unmount(mountpoint)?;
        let note = "The mount was stale and is gone; what was written last is in its state directory: mount again";
        return output::show(json, &json!({ "ok": true, "stale": true }), note);
    }
    let client = Client::connect(mountpoint)?;
    let daemon = Daemon::of(&client.status()?, mountpoint);
    if !args.now && daemon.writes {
        sync::drain(&client, json).map_err(|failure| {
            Failure::new(format!("{} stays mounted: {failure}", mountpoint.display()))
                .hint("`axiomfs umount --now` unmounts and leaves the rest to the next mount")
        })?;
    }
    unmount(mountpoint)?;
    if args.now {
        return output::show(json, &json!({ "ok": true, "draining": true }), "Unmounted; the daemon goes on draining");
    }
    daemon.wait(json)?;
    let report = daemon.report()?;
    let text = match (report["sequence"].as_u64(), report["commit"].as_str()) {
        (Some(sequence), Some(commit)) => format!("Unmounted; all is in the store: {sequence}:{commit}"),
        _ => "Unmounted".to_owned(),
    };
    output::show(json, &report, &text)
}

/// The process behind a mount.
struct Daemon {
    pid: Option<u64>,
    /// Start time in clock ticks: tells the daemon from a later process with its number.
    started: Option<String>,
    state_dir: Option<String>,
    /// Number of the device, if the table of mounts tells.
    device: Option<String>,
    writes: bool,
}

impl Daemon {
    fn of(status: &Value, mountpoint: &Path) -> Self {
        let pid = status["pid"].as_u64();
        Self {
            pid,
            started: pid.and_then(running),
            state_dir: status["state_dir"].as_str().map(str::to_owned),
            device: axiomfs_mount::device_at(mountpoint).ok().flatten(),
            writes: status["state"] == "ok",
        }
    }

    fn wait(&self, quiet: bool) -> Result<(), Failure> {
        let (Some(pid), Some(started)) = (self.pid, &self.started) else { return Ok(()) };
        let mut bar = Bar::new("Waiting for the daemon to end", quiet);
        let (begun, mut look) = (Instant::now(), NOTICES);
        while running(pid).as_ref() == Some(started) {
            let waited = begun.elapsed();
            if waited > look {
                look = waited + NOTICES;
                self.check_gone(pid, waited)?;
            }
            if waited > LONGEST_WAIT {
                return Err(self.goes_on(pid));
            }
            bar.set(0, None);
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// A daemon serves until its filesystem is mounted nowhere any more.
    fn check_gone(&self, pid: u64, waited: Duration) -> Result<(), Failure> {
        let place = self.device.as_deref().filter(|_| !self.is_draining()).and_then(axiomfs_mount::where_mounted);
        let Some(MountedAt { path, seen_by }) = place else { return Ok(()) };
        if seen_by.is_some() && waited < PASSES {
            return Ok(());
        }
        let seen = seen_by.map_or_else(String::new, |other| format!(", as process {other} has it"));
        Err(Failure::new(format!("Unmounted here, but still mounted on {}{seen}", path.display()))
            .hint(format!("unmount it there, too: until then the daemon (process {pid}) serves it")))
    }

    fn goes_on(&self, pid: u64) -> Failure {
        if self.is_draining() {
            return Failure::new(format!("Unmounted, but the daemon (process {pid}) is still draining"))
                .hint("it goes on by itself; its log is axiomfs.log in the state directory");
        }
        Failure::new(format!("Unmounted here, but the daemon (process {pid}) still serves the mount"))
            .hint("somebody else has it mounted, as a container may: it ends when they unmount it")
    }

    fn is_draining(&self) -> bool {
        self.state_dir.as_deref().is_some_and(|state| places::is_draining(Path::new(state)))
    }

    /// What the daemon left as its last word.
    fn report(&self) -> Result<Value, Failure> {
        let (Some(pid), Some(state_dir)) = (self.pid, &self.state_dir) else { return Ok(json!({ "ok": true })) };
        match shutdown::read(Path::new(state_dir), pid) {
            Some(report) if report["ok"] == true => Ok(report),
            Some(report) => {
                let why = report["msg"].as_str().unwrap_or("the daemon did not say why");
                let why = why.strip_prefix("Not all is in the store: ").unwrap_or(why);
                let hint = report["hint"].as_str();
                Err(Failure::new(format!("Unmounted, but not all is in the store: {why}"))
                    .hint(hint.unwrap_or("what is missing is safe in the state directory; mount again to send it")))
            }
            None => Err(Failure::new("Unmounted, but the daemon ended without saying that all is in the store")
                .hint(format!("look into {state_dir}/axiomfs.log, and mount again"))),
        }
    }
}

/// Start time of a process that is running; a zombie is not.
fn running(pid: u64) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, also spaces and parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let (state, start) = (fields.first()?, fields.get(19)?);
    (*state != "Z" && *state != "X").then(|| (*start).to_owned())
}

fn unmount(mountpoint: &Path) -> Result<(), Failure> {
    let shown = mountpoint.display();
    match system::unmount(mountpoint) {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(busy(mountpoint)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => with_helper(mountpoint),
        Err(error) => Err(Failure::caused(format!("Could not unmount {shown}"), &error)),
    }
}

fn busy(mountpoint: &Path) -> Failure {
    let shown = mountpoint.display();
    Failure::new(format!("{shown} is busy: a program has a file open or its working directory there"))
        .hint(format!("end it (`fuser -vm {shown}` shows which), then try again; nothing is lost"))
}

/// Users other than root unmount through the set-uid helper of FUSE.
fn with_helper(mountpoint: &Path) -> Result<(), Failure> {
    let shown = mountpoint.display();
    let output = Command::new("fusermount3")
        .arg("-u")
        .arg("--")
        .arg(mountpoint)
        .output()
        .map_err(|error| Failure::caused("Could not run fusermount3", &error).hint("install the package fuse3"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    if words.contains("busy") {
        return Err(busy(mountpoint));
    }
    Err(Failure::new(format!("Could not unmount {shown}: {}", words.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let own = u64::from(std::process::id());
        assert_eq!(running(own), running(own));
        assert!(running(own).is_some());
        assert_eq!(running(u64::from(u32::MAX)), None);
    }
}
