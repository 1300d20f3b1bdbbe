//! `axiomfs mount`: checks, goes to the background, serves until unmounted, drains.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use axiomfs_mount::{MountOptions, Mounted, Unmounter};
use serde_json::{Value, json};

use crate::args::MountArgs;
use crate::client::Client;
use crate::control::Panel;
use crate::failure::Failure;
use crate::metrics_http::{self, Listener};
use crate::passphrase::{self, Ask, Environment, Secret};
use crate::session::{Logging, Prepared, Purpose, Session};
use crate::system::{self, Ended, Forked};
use crate::{output, pacing, places, progress, recovery, reload, rotation, shutdown, stores};

/// How long a signal to end waits for programs to let go before the mount is taken out of the tree under them.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest message from a daemon that starts.
const MAX_WORD: u64 = 64 << 10;

/// Runs the verb.
///
/// # Errors
/// [`Failure`] if nothing could be mounted (nothing is changed then), or, in the foreground, if the end was not clean.
pub fn run(args: &MountArgs, environment: Environment, json: bool) -> Result<(), Failure> {
    let mountpoint = if axiomfs_mount::is_dead(&args.mountpoint) {
        places::check_stale_mount(&args.mountpoint, &stores::name(&args.store)?)?
    } else {
        places::check_mountpoint(&args.mountpoint)?
    };
    let purpose = Purpose::Mount {
        mountpoint: mountpoint.clone(),
        read_only: args.is_read_only(),
        expect_head: args.expect_head,
    };
    let prepared = Prepared::new(&args.store, &args.repository, &purpose)?;
    let passphrase = passphrase::obtain(&args.repository.passphrase, environment, Ask::Once)?;
    let job = Job { args, mountpoint: &mountpoint };
    if args.foreground {
        return job.serve(prepared, passphrase, Logging::Terminal, json, &mut |mounted| {
            let text = format!("Mounted {} on {}; Ctrl-C unmounts", args.store, mountpoint.display());
            output::show(json, &mounted, &format!("{text}{}", set_aside(&mounted)))
        });
    }
    job.in_background(prepared, passphrase, json)
}

struct Job<'a> {
    args: &'a MountArgs,
    mountpoint: &'a Path,
}

impl Job<'_> {
    /// Splits off the daemon and waits until its mount answers, or for what it says instead.
    fn in_background(&self, prepared: Prepared, passphrase: Secret, json: bool) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::caused("Could not go to the background", &error).hint("try -f");
        let (reader, mut writer) = system::pipe().map_err(failed)?;
        match system::fork().map_err(failed)? {
            Forked::Child => {
                drop(reader);
                system::end_with_parent(true);
                let mut ready = |mounted: Value| {
                    // A working directory would keep its filesystem from being unmounted. All paths are absolute here.
                    std::env::set_current_dir("/").and_then(|()| system::leave_terminal()).map_err(failed)?;
                    system::end_with_parent(false);
                    writer.write_all(format!("{mounted}\n").as_bytes()).map_err(failed)
                };
                let served = self.serve(prepared, passphrase, Logging::StateDirectory, true, &mut ready);
                if let Err(failure) = &served {
                    // It ends by itself, and the parent may be first.
                    system::end_with_parent(false);
                    tracing::error!("{failure}");
                    // After the start nobody listens any more; then the log alone has it.
                    if let Err(error) = writer.write_all(format!("{}\n", failure.to_json()).as_bytes()) {
                        tracing::debug!(%error, "nobody waits for this message");
                    }
                }
                // Returning would run the rest of the parent's work a second time.
                std::process::exit(served.map_or_else(|failure| i32::from(failure.code()), |()| 0))
            }
            Forked::Parent(pid) => {
                drop((writer, passphrase, prepared));
                let said = progress::watch("Opening the repository", json, || first_line(reader), || (0, None));
                self.started(&said, pid, json)
            }
        }
    }

    /// The parent's side: what the daemon said, or how it ended without a word.
    fn started(&self, said: &str, pid: libc::pid_t, json: bool) -> Result<(), Failure> {
        let mounted: Option<Value> = serde_json::from_str(said).ok();
        if let Some(mounted) = mounted.filter(|said| said["ok"] == true) {
            Client::connect(self.mountpoint)?.status()?;
            let text = format!("Mounted {} on {}", self.args.store, self.mountpoint.display());
            let text = format!("{text}{}", set_aside(&mounted));
            return output::show(json, &mounted, &text);
        }
        if let Some(failure) = Failure::from_json(said) {
            return Err(failure);
        }
        let how = match system::wait_for_child(pid) {
            Ok(Ended::Signal(signal)) => format!("by signal {signal}"),
            Ok(Ended::Exit(code)) => format!("with exit code {code}"),
            Err(error) => format!("({error})"),
        };
        Err(Failure::new(format!("The daemon ended {how} before the mount answered"))
            .hint("try again with -f to see what it says"))
    }

    /// Mounts, serves until the mount is gone, and drains.
    fn serve(
        &self,
        prepared: Prepared,
        passphrase: Secret,
        logging: Logging,
        quiet: bool,
        ready: &mut dyn FnMut(Value) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        // Both are inherited by the threads that are started from here on.
        system::block_signals();
        let flusher = system::become_io_flusher();
        let ending = Ending::listen(self.args.repository.config.is_some());
        let session = prepared.open(passphrase, logging, quiet)?;
        log_panics();
        tracing::debug!(flusher, "marked for memory reclaim, where that is permitted");
        let state = session.places().state.clone();
        let served = self.serve_session(&session, &ending, ready);
        let closed = session.close(quiet);
        let word = match &closed {
            Ok(word) => word.clone(),
            Err(failure) => failure.to_json(),
        };
        if let Err(error) = shutdown::write(&state, word) {
            tracing::error!(%error, "could not note how the mount ended");
        }
        served.and(closed.map(drop))
    }

    fn serve_session(
        &self,
        session: &Session,
        ending: &Ending,
        ready: &mut dyn FnMut(Value) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let state = &session.places().state;
        shutdown::clear(state)
            .map_err(|error| Failure::caused(format!("Could not use {}", state.display()), &error))?;
        let options = MountOptions {
            mountpoint: self.mountpoint.to_owned(),
            name: session.store(),
            allow_other: self.args.allow_other(),
            read_only: self.args.is_read_only(),
            poll: poll(),
            ..MountOptions::default()
        };
        let metrics = self.args.metrics.map(metrics_http::listen).transpose()?;
        let metrics_address = metrics.as_ref().and_then(Listener::address);
        let panel = Arc::new(Panel::new(session, self.mountpoint, self.args));
        let mounted = ending.mounting(&panel, || {
            axiomfs_mount::mount(Arc::clone(session.volume()), panel.clone(), options)
                .map_err(|error| Failure::caused(format!("Could not mount {}", self.args.store), &error))
        })?;
        if let Some(listener) = metrics {
            listener.serve(panel.clone());
        }
        pacing::start(session.host(), session.repository(), session.counted(), session.volume(), panel.upload_bounds());
        reload::watch(&panel);
        reload::advise(&panel);
        rotation::start(&panel);
        tracing::info!(store = session.store(), mountpoint = %self.mountpoint.display(), "mounted");
        ready(json!({
            "ok": true,
            "mountpoint": self.mountpoint.to_string_lossy(),
            "pid": std::process::id(),
            "state_dir": state.to_string_lossy(),
            "set_aside": session.set_aside(),
            "metrics": metrics_address.map(|address| format!("http://{address}/metrics")),
        }))?;
        let served = mounted.wait().map_err(|error| Failure::caused("The mount broke off", &error));
        session.note_unmounted();
        tracing::info!("unmounted, draining to the store");
        served
    }
}

/// Lines about state that others have gone past, where there is some.
fn set_aside(mounted: &Value) -> String {
    recovery::note(&mounted["set_aside"]).map_or_else(String::new, |note| format!("\n{note} (unmount first)"))
}

/// Who is mounted, once somebody is.
type Served = Mutex<Option<(Unmounter, Arc<Panel>)>>;

/// What signals do. A hangup reads the settings file again, where there is one. Any other unmounts and drains; the next ends at once,
/// which loses nothing that was written: the log has it. So does the first before anything is mounted.
struct Ending(Arc<Served>);

impl Ending {
    /// Begins to take signals. `reloads` if there is a settings file.
    fn listen(reloads: bool) -> Self {
        let served: Arc<Served> = Arc::default();
        let ending = Self(Arc::clone(&served));
        thread::spawn(move || {
            loop {
                let signal = system::wait_for_signal();
                let mut served = lock(&served);
                match &*served {
                    // It is being read, or has just been.
                    None if signal == libc::SIGHUP && reloads => {}
                    None => {
                        tracing::warn!(signal, "ending before anything was mounted");
                        output::complain("axiomfs: A signal ended it before anything was mounted; nothing is lost");
                        std::process::exit(1);
                    }
                    Some((_, panel)) if signal == libc::SIGHUP && panel.has_settings_file() => {
                        panel.reload_noted("a hangup signal");
                    }
                    Some(_) => {
                        // From here on it only ends: what the panel holds must not keep the session open.
                        let unmounter = served.take().map(|(unmounter, _)| unmounter);
                        drop(served);
                        return end(signal, unmounter);
                    }
                }
            }
        });
        ending
    }

    /// Mounts; a signal that comes meanwhile counts when it is done.
    fn mounting(
        &self,
        panel: &Arc<Panel>,
        mount: impl FnOnce() -> Result<Mounted, Failure>,
    ) -> Result<Mounted, Failure> {
        let mut served = lock(&self.0);
        let mounted = mount()?;
        *served = Some((mounted.unmounter(), Arc::clone(panel)));
        Ok(mounted)
    }
}

fn end(signal: i32, unmounter: Option<Unmounter>) {
    tracing::info!(signal, "unmounting");
    thread::spawn(|| {
        let signal = system::wait_for_signal();
        tracing::warn!(signal, "ending without draining; the next mount goes on from the log");
        std::process::exit(1);
    });
    let Some(unmounter) = unmounter else { return };
    if let Err(error) = unmounter.unmount_within(PATIENCE) {
        tracing::warn!("{}; it ends with its last user", crate::failure::chain(&error));
        if let Err(error) = unmounter.detach() {
            tracing::error!("{}", crate::failure::chain(&error));
        }
    }
}

fn lock(served: &Served) -> MutexGuard<'_, Option<(Unmounter, Arc<Panel>)>> {
    served.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A daemon's standard error leads nowhere: panics go to the log, with where they came from.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let trace = std::backtrace::Backtrace::force_capture();
        tracing::error!("{panic}\n{trace}");
    }));
}

/// What the starting daemon said; nothing if it ended without a word.
fn first_line(reader: impl Read) -> String {
    let mut line = String::new();
    match BufReader::new(reader.take(MAX_WORD)).read_line(&mut line) {
        Ok(_) => line,
        Err(_) => String::new(),
    }
}

/// How long the reader of requests polls. `AXIOMFS_POLL=off` switches it off, to measure what it is worth.
fn poll() -> Duration {
    if std::env::var_os("AXIOMFS_POLL").is_some_and(|wish| wish == "off") {
        Duration::ZERO
    } else {
        MountOptions::default().poll
    }
}
