//! `axiomfs ctl`.

use crate::args::CtlArgs;
use crate::client::{Client, refusal};
use crate::failure::Failure;
use crate::output;

/// Runs the verb.
///
/// # Errors
/// [`Failure`] if the mount refuses the command.
pub fn run(args: &CtlArgs, json: bool) -> Result<(), Failure> {
    let client = Client::connect(&args.mountpoint)?;
    let reply = client.exchange(&args.line())?;
    if reply["ok"] != true {
        return Err(refusal(&reply));
    }
    let text = output::lines(&reply);
    output::show(json, &reply, if text.is_empty() { "done" } else { &text })
}
