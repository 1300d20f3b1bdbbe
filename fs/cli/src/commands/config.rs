//! `axiomfs config check`.

use std::path::Path;

use axiomfs_config::Settings;
use serde_json::json;

use crate::args::ConfigVerb;
use crate::failure::Failure;
use crate::output;

/// Runs the verb.
///
/// # Errors
/// [`Failure`] with the first mistake of the file.
pub fn run(verb: &ConfigVerb, json: bool) -> Result<(), Failure> {
    let ConfigVerb::Check { file } = verb;
    let settings = load(file)?;
    // Whether the chains can run is known to the plugins only.
    crate::wiring::host(&settings.pipeline).map_err(|error| Failure::caused(file.display(), &error))?;
    output::show(json, &json!({ "ok": true, "file": file.to_string_lossy() }), &format!("{} is right", file.display()))
}

/// The settings of a file, or those that count without one.
///
/// # Errors
/// As [`load`].
pub fn load_or_default(file: Option<&Path>) -> Result<Settings, Failure> {
    file.map_or_else(|| Ok(Settings::default()), load)
}

/// Reads and checks a settings file.
///
/// # Errors
/// [`Failure`] with the file, the line, the key and the remedy.
pub fn load(file: &Path) -> Result<Settings, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::caused(format!("Could not read the settings file {}", file.display()), &error))?;
    Settings::parse(&text).map_err(|error| Failure::caused(file.display(), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_one_line_with_file_and_place() {
        let file = std::env::temp_dir().join(format!("axiomfs-cli-{}-bad.yaml", std::process::id()));
        std::fs::write(&file, "version: 1\nmemroy: 1GiB\n").unwrap();
        let message = load(&file).unwrap_err().to_string();
        assert_eq!(message, format!("{}: Line 2: there is no setting memroy; did you mean memory?", file.display()));
        std::fs::remove_file(&file).unwrap();
        assert!(load(&file).unwrap_err().to_string().contains("No such file"));
    }
}
