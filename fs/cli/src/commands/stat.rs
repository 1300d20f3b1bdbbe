//! `axiomfs stat`.

use std::path::Path;

use serde_json::Value;

use crate::args::StatArgs;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, bytes};
use crate::places;

/// Runs the verb.
///
/// # Errors
/// [`Failure`] if the file is in no mount, or the mount can't tell.
pub fn run(args: &StatArgs, json: bool) -> Result<(), Failure> {
    let shown = args.path.display();
    // A link that is asked for is meant itself; on the way to it they are followed, as by `stat`.
    let path =
        std::path::absolute(&args.path).map_err(|error| Failure::caused(format!("Could not find {shown}"), &error))?;
    let path = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => places::settle(parent)?.join(name),
        _ => places::settle(&path)?,
    };
    let (client, inside) = mount_of(&path)?.ok_or_else(|| {
        Failure::new(format!("{shown} is in no mounted axiomfs"))
            .hint("give a file below live/ or snapshots/ of a mount")
    })?;
    let inside = inside.to_str().ok_or_else(|| Failure::usage(format!("{shown} has a name that is not UTF-8")))?;
    let reply = client.control(&format!("stat {inside}"))?;
    output::show(json, &reply, &render(&reply))
}

/// The mount that `path` is in, and the path from its root. One that does not answer, or not to us, is an error.
fn mount_of(path: &Path) -> Result<Option<(Client, &Path)>, Failure> {
    for above in path.ancestors().skip(1) {
        let is_mount = match std::fs::symlink_metadata(above.join(".axiomfs")) {
            Ok(_) => true,
            Err(error) => places::is_stale(&error),
        };
        if let (true, Ok(inside)) = (is_mount, path.strip_prefix(above)) {
            return Ok(Some((Client::connect(above)?, inside)));
        }
    }
    Ok(None)
}

fn render(reply: &Value) -> String {
    let size = |value: &Value| value.as_u64().map_or_else(|| "-".to_owned(), bytes);
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut lines = vec![
        format!("File       {}, {}, inode {}", text(&reply["path"]), size(&reply["size"]), reply["inode"]),
        format!("Route      chain {} from now on", text(&reply["route"])),
        format!(
            "Frames     {} with {}, stored in {}: {:.2} to 1",
            reply["frames_total"],
            size(&reply["raw"]),
            size(&reply["stored"]),
            reply["ratio"].as_f64().unwrap_or(1.0)
        ),
    ];
    for (key, words) in [
        ("in_log", "in the log"),
        ("waiting", "waiting to be encoded"),
        ("inline", "in its record"),
        ("holes", "of holes"),
    ] {
        if reply[key].as_u64().is_some_and(|n| n > 0) {
            lines.push(format!("           {} {words}", size(&reply[key])));
        }
    }
    for frame in reply["frames"].as_array().into_iter().flatten() {
        let mut steps: Vec<String> = frame["steps"].as_array().into_iter().flatten().map(text).collect();
        let seal = frame["seal"].as_str().filter(|seal| !seal.is_empty());
        steps.push(seal.unwrap_or("in clear").to_owned());
        lines.push(format!(
            "  frame {:>5} {:<24} {:>10} -> {:>10}  {}",
            frame["frame"].to_string(),
            steps.join("|"),
            size(&frame["raw"]),
            size(&frame["stored"]),
            text(&frame["pack"])
        ));
    }
    lines.join("\n")
}
