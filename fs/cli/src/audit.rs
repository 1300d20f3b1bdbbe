//! What the audit log of a mount takes in, and how it is shown.

use axiomfs_host::{ControlError, Host, PutOut, parse_command};
use axiomfs_live::{AuditLine, Deed, Volume, Who};
use axiomfs_repository::AuditReport;
use serde_json::{Value, json};

use crate::{output, system};

/// This process and its user.
pub fn us() -> Who {
    Who { uid: system::user().0, pid: std::process::id() }
}

/// Records what the host did to plugins on its own since the last call.
pub fn record_put_out(host: &Host, volume: &Volume) {
    for PutOut { plugin, reason, result } in host.take_put_out() {
        let subject = format!("{plugin} is given no more frames: {reason}");
        let result = match result {
            Ok(generation) => format!("ok, generation {generation}"),
            Err(error) => format!("the chains stay, and their frames do what their strategies say: {error}"),
        };
        volume.audit_noted(&Deed::ended(us(), "plugin put out", subject, result));
    }
}

/// The record of a command; none for one that only asks, or that is none.
pub fn command(who: Who, line: &str, result: &Result<Value, ControlError>) -> Option<Deed> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let asks = match *words.as_slice() {
        ["sync" | "advise" | "audit" | "stat" | "snapshot", ..]
        | [_, "show" | "list" | "explain" | "status" | "test", ..] => true,
        _ => parse_command(line).is_err(),
    };
    // A token confirms one mount's commands; it has no place in what is kept for ever.
    let words: Vec<&str> =
        words.into_iter().map(|word| if word.starts_with("confirm=") { "confirm=…" } else { word }).collect();
    (!asks).then(|| Deed::ended(who, "command", words.join(" "), outcome(result)))
}

/// How a change ended, in one line.
pub fn outcome(result: &Result<Value, ControlError>) -> String {
    match result {
        Ok(reply) => match reply["generation"].as_u64() {
            Some(generation) => format!("ok, generation {generation}"),
            None => "ok".to_owned(),
        },
        Err(error) => format!("{} {}: {}", error.errno_name, error.code, error.msg),
    }
}

/// The log as `audit.log` shows it: one JSON object a line.
pub fn to_text(lines: &[AuditLine]) -> String {
    let line = |line: &AuditLine| {
        let record = &line.record;
        let shown = json!({
            "number": line.number,
            "time": output::utc(record.time.secs),
            "uid": record.uid,
            "pid": record.pid,
            "action": record.action,
            "subject": record.subject,
            "result": record.result,
            "hash": hex(&line.hash),
        });
        shown.to_string() + "\n"
    };
    lines.iter().map(line).collect()
}

/// What `audit verify` answers for a log without a fault; a refusal that names the faults for another.
///
/// # Errors
/// The faults.
pub fn verified(report: &AuditReport) -> Result<Value, ControlError> {
    if let Some(first) = report.faults.first() {
        let more = report.faults.len() - 1;
        return Err(ControlError {
            code: "AUDIT",
            errno_name: "EILSEQ",
            msg: match more {
                0 => format!("The audit log is not whole: {first}"),
                _ => format!("The audit log is not whole: {} ({more} more)", report.faults.join("; ")),
            },
            hint: "Somebody with the keys has changed it, or it was written by a version that keeps none".to_owned(),
        });
    }
    Ok(json!({
        "ok": true,
        "records": report.records,
        "first": report.first,
        "last": report.last,
        "committed": report.committed,
        "hash": hex(&report.hash),
    }))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_ask_are_not_recorded_and_tokens_never() {
        let done: Result<Value, ControlError> = Ok(json!({ "ok": true, "generation": 7 }));
        let who = Who { uid: 5, pid: 6 };
        for asks in
            ["sync", "chain show", "plugin list", "route explain /a", "key status", "store status", "no command"]
        {
            assert_eq!(command(who, asks, &done), None, "{asks}");
        }
        let deed = command(who, "chain remove default  zstd confirm=s3cr3t", &done).unwrap();
        assert_eq!(deed.subject, "chain remove default zstd confirm=…");
        assert_eq!((deed.who, deed.result.as_str()), (who, "ok, generation 7"));
        let refused: Result<Value, ControlError> = Err(parse_command("chain explode").unwrap_err());
        assert!(outcome(&refused).starts_with("EINVAL "), "{}", outcome(&refused));
    }
}
