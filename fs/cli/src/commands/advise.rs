//! `axiomfs advise`.

use crate::args::OnMount;
use crate::client::Client;
use crate::failure::Failure;
use crate::{advice, output};

/// Runs the verb.
///
/// # Errors
/// [`Failure`] if no mount answers there.
pub fn run(args: &OnMount, json: bool) -> Result<(), Failure> {
    let reply = Client::connect(&args.mountpoint)?.control("advise")?;
    output::show(json, &reply, &advice::to_text(&reply))
}
