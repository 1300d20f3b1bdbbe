//! Commands that end: every one has a time limit, and its output is kept for the failure message.

use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What a command left behind.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output, as text.
    pub stdout: String,
    /// Its standard error, as text.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Finished {
    /// The exit code; −1 when a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

/// Runs a command to its end and returns what it said.
///
/// # Panics
/// When the command can't be started or is not done within `limit`.
pub fn run(command: &mut Command, limit: Duration) -> Finished {
    let start = Instant::now();
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{shown} can't be started: {e}"));
    let stdout = collect(child.stdout.take().expect("stdout is piped"));
    let stderr = collect(child.stderr.take().expect("stderr is piped"));
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        if start.elapsed() > limit {
            child.kill().expect("a child can be killed");
            panic!("{shown} was not done after {limit:?}");
        }
        thread::sleep(Duration::from_millis(2));
    };
    let text = |t: thread::JoinHandle<Vec<u8>>| String::from_utf8_lossy(&t.join().unwrap_or_default()).into_owned();
    // A daemon that went to the background may hold the pipes open, so their end can't be waited for without a limit.
    Finished { status, stdout: join_within(stdout, text), stderr: join_within(stderr, text), took: start.elapsed() }
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut out = Vec::new();
        let read = pipe.read_to_end(&mut out);
        if let Err(e) = read {
            out.extend_from_slice(format!("(reading the output failed: {e})").as_bytes());
        }
        out
    })
}

fn join_within(handle: thread::JoinHandle<Vec<u8>>, text: impl Fn(thread::JoinHandle<Vec<u8>>) -> String) -> String {
    let start = Instant::now();
    while !handle.is_finished() {
        if start.elapsed() > Duration::from_secs(5) {
            return "(its output was still held open 5 s after it ended)".into();
        }
        thread::sleep(Duration::from_millis(2));
    }
    text(handle)
}

/// Runs a program that must succeed, and returns its standard output.
///
/// # Panics
/// When it fails, with its output in the message.
pub fn must(program: &str, args: &[&str], limit: Duration) -> String {
    let done = run(Command::new(program).args(args), limit);
    assert!(
        done.status.success(),
        "{program} {args:?} failed with {}:\n{}{}",
        done.status,
        tail(&done.stdout),
        tail(&done.stderr)
    );
    done.stdout
}

/// The last 4,000 bytes or so of an output: enough for a message.
pub fn tail(text: &str) -> &str {
    let mut at = text.len().saturating_sub(4000);
    while !text.is_char_boundary(at) {
        at += 1;
    }
    &text[at..]
}

/// Waits for a condition, polling, instead of sleeping and hoping.
///
/// # Panics
/// When it isn't true within `limit`.
pub fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        thread::sleep(Duration::from_millis(10));
    }
}
