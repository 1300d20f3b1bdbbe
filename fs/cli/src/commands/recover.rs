//! `axiomfs recover`: state that was set aside becomes snapshots.

use serde_json::{Value, json};

use crate::args::RecoverArgs;
use crate::failure::Failure;
use crate::output;
use crate::passphrase::{self, Ask, Environment};
use crate::recovery::Recoveries;
use crate::session::{Prepared, Purpose};

/// Runs the verb.
///
/// # Errors
/// [`Failure`] if the volume is in use, or some of what was set aside can't be brought into the store; that stays where it is then.
pub fn run(args: &RecoverArgs, environment: Environment, json: bool) -> Result<(), Failure> {
    let prepared = Prepared::new(&args.store, &args.repository, &Purpose::Change)?;
    let passphrase = passphrase::obtain(&args.repository.passphrase, environment, Ask::Once)?;
    let Recoveries { recovered, mut failed } = prepared.recover(&passphrase, json)?;
    let items: Vec<Value> = recovered
        .iter()
        .map(|(from, found)| {
            let head = format!("{}:{}", found.head.sequence, crate::status::hex(found.head.commit));
            json!({ "from": from.to_string_lossy(), "snapshot": found.snapshot, "others": found.others, "head": head })
        })
        .collect();
    let lines: Vec<String> = recovered
        .iter()
        .map(|(_, found)| {
            let others = match found.others.is_empty() {
                true => String::new(),
                false => format!(", and the snapshots taken there: {}", found.others.join(", ")),
            };
            format!("Recovered into snapshot {}{others}", found.snapshot)
        })
        .collect();
    let text = if lines.is_empty() {
        "Nothing is set aside, and nothing here is behind another writer's changes: mount to go on".to_owned()
    } else {
        lines.join("\n")
    };
    let Some(last) = failed.pop() else {
        return output::show(json, &json!({ "ok": true, "recovered": items }), &text);
    };
    if !json && !lines.is_empty() {
        output::show(json, &Value::Null, &text)?;
    }
    let failure = match failed.is_empty() {
        true => last,
        false => Failure::new(failed.iter().chain([&last]).map(Failure::to_string).collect::<Vec<_>>().join("; ")),
    };
    Err(failure.answer(json!({ "recovered": items })))
}
