//! `axiomfs plugin`.

use axiomfs_config::Pipeline;
use serde_json::{Value, json};

use crate::args::PluginVerb;
use crate::client::Client;
use crate::failure::Failure;
use crate::{output, replies, wiring};

/// Runs the verb.
///
/// # Errors
/// [`Failure`] if a mount was named and none answers there.
pub fn run(verb: &PluginVerb, json: bool) -> Result<(), Failure> {
    let PluginVerb::List { mountpoint } = verb;
    let reply = match mountpoint {
        Some(mountpoint) => Client::connect(mountpoint)?.control("plugin list")?,
        None => of_this_build()?,
    };
    let plugins = reply["plugins"].as_array().into_iter().flatten();
    let text: Vec<String> = plugins.map(line).collect();
    output::show(json, &reply, &text.join("\n"))
}

fn of_this_build() -> Result<Value, Failure> {
    let host = wiring::host(&Pipeline::default())
        .map_err(|error| Failure::caused("The default chains can't run", &error).hint(error.hint()))?;
    let plugins: Vec<Value> = host.plugins().iter().map(replies::plugin).collect();
    Ok(json!({ "ok": true, "plugins": plugins }))
}

fn line(plugin: &Value) -> String {
    let text = |key: &str| plugin[key].as_str().unwrap_or("-").to_owned();
    let state = match (plugin["distrusted"].as_str(), plugin["loaded"].as_bool()) {
        (Some(reason), _) => format!("; given no more frames: {reason}"),
        (None, Some(false)) => "; not loaded".to_owned(),
        (None, _) => String::new(),
    };
    format!("{:<12} {:<10} {:<8} {}{state}", text("id"), text("kind"), text("version"), text("summary"))
}
