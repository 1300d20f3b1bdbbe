//! `axiomfs ctl`.

use crate::args::CtlArgs;
use crate::client::{Client, refusal};
use crate::failure::Failure;
use crate::output;

/// Runs the verb. With `json` the mount's answer is printed as it is, also a refusal.
///
/// # Errors
/// [`Failure`] if the mount refuses the command.
pub fn run(args: &CtlArgs, json: bool) -> Result<(), Failure> {
    let client = Client::connect(&args.mountpoint)?;
    // The command takes all words that follow, also ones with a dash; this one is meant for us wherever it stands.
    let json = json || args.command.iter().any(|word| word == "--json");
    let words: Vec<&str> = args.command.iter().map(String::as_str).filter(|word| *word != "--json").collect();
    let reply = client.exchange(&words.join(" "))?;
    if reply["ok"] != true {
        return Err(refusal(&reply));
    }
    let text = output::lines(&reply);
    output::show(json, &reply, if text.is_empty() { "done" } else { &text })
}
