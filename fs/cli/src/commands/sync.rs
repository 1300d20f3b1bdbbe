//! `axiomfs sync`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::args::OnMount;
use crate::client::Client;
use crate::failure::Failure;
use crate::{output, progress};

/// Longest time in which nothing moves before a drain is given up.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs the verb: prints `SEQUENCE:COMMIT` of the head that holds all that was written before.
///
/// # Errors
/// [`Failure`] if the store can't be reached or refuses.
pub fn run(args: &OnMount, json: bool) -> Result<(), Failure> {
    let client = Client::connect(&args.mountpoint)?;
    let status = client.status()?;
    let committed = match status["state"] == "read-only" {
        // Nothing can be pending: what is shown is the head.
        true => committed(&status["head"])?,
        false => drain(&client, json)?,
    };
    output::show(
        json,
        &json!({ "ok": true, "sequence": committed.sequence, "commit": committed.commit }),
        &format!("{}:{}", committed.sequence, committed.commit),
    )
}

/// The head that a drain ended with.
pub struct Committed {
    /// Its sequence number.
    pub sequence: u64,
    /// Its commit id, in hex.
    pub commit: String,
}

/// Waits, with a bar, until all that was written before is in the store, for as long as it moves.
///
/// # Errors
/// [`Failure`] if it does not come to an end.
pub fn drain(client: &Client, quiet: bool) -> Result<Committed, Failure> {
    let mut total = 0;
    let look = || {
        let left = pending(client);
        total = total.max(left);
        (total - left, (total > 0).then_some(total))
    };
    committed(&progress::watch("Writing to the store", quiet, || drained(client), look)?)
}

/// The answer for the head that has it all. Asked for in short steps: nobody can be ended who waits in one.
fn drained(client: &Client) -> Result<Value, Failure> {
    let begun = client.exchange("sync begin")?;
    let Some(number) = begun["number"].as_u64() else {
        // A mount that was made by an earlier version knows one `sync` only.
        return if begun["errno"] == "EINVAL" { client.control("sync") } else { Err(crate::client::refusal(&begun)) };
    };
    let (mut left, mut moved) = (Left::of(client), Instant::now());
    loop {
        let reply = client.control(&format!("sync wait {number}"))?;
        if reply["done"] == true {
            return Ok(reply);
        }
        let now = Left::of(client);
        if now.has_moved_since(&left) {
            moved = Instant::now();
        } else if moved.elapsed() >= PATIENCE {
            let minutes = PATIENCE.as_secs() / 60;
            return Err(Failure::new(format!("The store took nothing for {minutes} minutes"))
                .hint("nothing is lost, and it goes on in the background; ask again, or see `axiomfs status`"));
        }
        left = now;
    }
}

/// What shows that a drain goes on.
#[derive(Debug, Default)]
struct Left {
    pending: u64,
    staged: u64,
    /// The other way round.
    sequence: u64,
}

impl Left {
    /// Nothing where the mount does not say.
    fn of(client: &Client) -> Self {
        let Ok(status) = client.status() else { return Self::default() };
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        Self {
            pending: number(&status["pending_bytes"]),
            staged: number(&status["staging"]["bytes"]),
            sequence: number(&status["head"]["sequence"]),
        }
    }

    /// Whether something moved since `before`: packs are made, or sent, or heads.
    fn has_moved_since(&self, before: &Self) -> bool {
        self.pending < before.pending || self.staged != before.staged || self.sequence > before.sequence
    }
}

fn pending(client: &Client) -> u64 {
    client.status().ok().and_then(|status| status["pending_bytes"].as_u64()).unwrap_or(0)
}

fn committed(reply: &Value) -> Result<Committed, Failure> {
    match (reply["sequence"].as_u64(), reply["commit"].as_str()) {
        (Some(sequence), Some(commit)) => Ok(Committed { sequence, commit: commit.to_owned() }),
        _ => Err(Failure::new("The mount did not say which commit holds the data")
            .hint("is the mount served by another version of axiomfs?")),
    }
}
