//! `axiomfs sync`.

use serde_json::{Value, json};

use crate::args::OnMount;
use crate::client::Client;
use crate::failure::Failure;
use crate::{output, progress};

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

/// Waits, with a bar, until all that was written before is in the store.
///
/// The mount bounds one wait. A drain that takes longer is asked for again as long as it moves.
///
/// # Errors
/// [`Failure`] if it does not come to an end.
pub fn drain(client: &Client, quiet: bool) -> Result<Committed, Failure> {
    let mut total = 0;
    let mut left_before = u64::MAX;
    loop {
        let look = || {
            let left = pending(client);
            total = total.max(left);
            (total - left, (total > 0).then_some(total))
        };
        let reply = progress::watch("Writing to the store", quiet, || client.exchange("sync"), look)?;
        if reply["ok"] == true {
            return committed(&reply);
        }
        let left = pending(client);
        if reply["errno"] == "ETIMEDOUT" && left < left_before {
            left_before = left;
            continue;
        }
        return Err(crate::client::refusal(&reply));
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
