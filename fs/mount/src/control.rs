//! What stands behind the files of `.axiomfs/`.

use axiomfs_live::Who;

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlReply {
    /// One JSON object, without a line end.
    pub json: String,
    /// 0 for success, else the errno the writer of the command gets.
    pub errno: i32,
}

/// The files shown for one plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginFiles {
    /// Name of its directory.
    pub id: String,
    /// What it is.
    pub descriptor: String,
    /// Its parameters.
    pub config: String,
    /// Its counters.
    pub stats: String,
}

/// Answers what is read from and written to `.axiomfs/`.
///
/// All methods are called from worker threads that serve nothing but `.axiomfs/`, several at a time. `execute` and
/// `set_chain_yaml` and `audit_log` may take long; the others must answer from memory, for they are what is looked at when the store
/// stalls. `who` is the user and process that wrote; who may open the files is checked before.
pub trait Control: Send + Sync {
    /// Runs one command.
    fn execute(&self, line: &str, who: Who) -> ControlReply;
    /// State of the mount as JSON.
    fn status(&self) -> String;
    /// The chains as YAML.
    fn chain_yaml(&self) -> String;
    /// Replaces the chains.
    fn set_chain_yaml(&self, text: &str, who: Who) -> ControlReply;
    /// Counters in the text form of Prometheus.
    fn metrics(&self) -> String;
    /// Recent events, one a line.
    fn events(&self) -> String;
    /// What could be better, for people.
    fn advice(&self) -> String;
    /// The snapshots with their times, as JSON: directories can't tell when they were taken.
    fn snapshots(&self) -> String;
    /// Who did what, one record a line; `None` if it can't be read. May read from the store.
    fn audit_log(&self) -> Option<String>;
    /// All plugins.
    fn plugins(&self) -> Vec<PluginFiles>;
}
