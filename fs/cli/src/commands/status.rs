//! `axiomfs status`.

use std::path::Path;

use serde_json::Value;

use crate::args::OnMount;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, bytes};

/// Runs the verb.
///
/// # Errors
/// [`Failure`] if no mount answers.
pub fn run(args: &OnMount, json: bool) -> Result<(), Failure> {
    let status = Client::connect(&args.mountpoint)?.status()?;
    output::show(json, &status, &render(&status))
}

fn render(status: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let size = |value: &Value| value.as_u64().map_or_else(|| "-".to_owned(), bytes);
    let count = |value: &Value| value.as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
    let mut lines = vec![
        format!("State      {}", text(&status["state"])),
        format!("Volume     {} of repository {}", text(&status["volume"]), text(&status["repository"])),
        format!("Store      {}", text(&status["store"])),
        format!("Mounted    since {} by process {}", text(&status["mounted_since"]), count(&status["pid"])),
        head(&status["head"]),
        format!("Pending    {} not yet in the store", size(&status["pending_bytes"])),
        format!(
            "Log        {} of {} in {} segments",
            size(&status["log"]["bytes"]),
            size(&status["log"]["max"]),
            count(&status["log"]["segments"])
        ),
        format!("Staging    {} in {} packs", size(&status["staging"]["bytes"]), count(&status["staging"]["packs"])),
        format!("Memory     {} of {}", size(&status["memory"]["rss"]), size(&status["memory"]["limit"])),
        format!("Snapshots  {}{}", count(&status["snapshots"]), waiting(&status["snapshots_not_committed"])),
        format!("State dir  {}{}", text(&status["state_dir"]), in_cache(status)),
    ];
    if let Some(since) = status["store_problem"]["since"].as_str() {
        let error = text(&status["store_problem"]["error"]);
        lines.push(format!("Store fails since {since}: {error}; what waits is sent when it answers"));
    }
    let list = |value: &Value| {
        let words: Vec<&str> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        (!words.is_empty()).then(|| words.join(", "))
    };
    if let Some(places) = list(&status["set_aside"]) {
        lines.push(format!("Set aside  {places}; unmount, then `axiomfs recover` puts it into a snapshot"));
    }
    if let Some(packs) = list(&status["missing_packs"]) {
        lines.push(format!("Missing    {packs}: what is in them can't be read"));
    }
    if let Some(plugins) = list(&status["missing_plugins"]) {
        lines.push(format!("Missing    plugin {plugins}: what went through it can't be read without it"));
    }
    if let Some(objects) = list(&status["foreign_objects"]) {
        lines.push(format!("Foreign    {objects}: not ours, passed over"));
    }
    if let Some(problem) = status["problem"].as_str() {
        lines.push(format!("Problem    {problem}"));
    }
    lines.join("\n")
}

/// The cache directory may be deleted, the state directory may not.
fn in_cache(status: &Value) -> &'static str {
    let path = |name: &str| status[name].as_str().map(Path::new);
    match (path("state_dir"), path("cache_dir")) {
        (Some(state), Some(cache)) if state.starts_with(cache) => {
            " (in the cache directory: keep it when you delete that)"
        }
        _ => "",
    }
}

fn head(head: &Value) -> String {
    match (head["sequence"].as_u64(), head["commit"].as_str(), head["age_s"].as_u64()) {
        (Some(sequence), Some(commit), Some(age)) => format!("Head       {sequence}:{commit}, {age} s old"),
        _ => "Head       none yet: nothing is in the store".to_owned(),
    }
}

fn waiting(names: &Value) -> String {
    let names: Vec<&str> = names.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if names.is_empty() { ", all committed".to_owned() } else { format!(", not yet committed: {}", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_shown_and_missing_fields_are_no_panic() {
        let status = serde_json::json!({"state": "failed", "problem": "log poisoned", "pending_bytes": 2048});
        let text = render(&status);
        assert!(
            text.contains("State      failed")
                && text.contains("2.0 KiB not yet")
                && text.ends_with("Problem    log poisoned")
        );
        assert!(!render(&Value::Null).contains("Problem"));
    }

    #[test]
    fn a_state_directory_in_the_cache_is_marked() {
        let shown = |state: &str| render(&serde_json::json!({"state_dir": state, "cache_dir": "/c"}));
        assert!(shown("/c/state").contains("State dir  /c/state (in the cache directory"));
        assert!(shown("/c2/state").contains("State dir  /c2/state\n") || shown("/c2/state").ends_with("/c2/state"));
    }
}
