//! What stands behind `.axiomfs/`: runs commands and shows what is.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axiomfs_api::Kind;
use axiomfs_config::{Pipeline, Settings};
use axiomfs_host::{
    Command, ControlError, Counted, Host, HostError, PluginInfo, StoreTotals, SyncCommand, parse_command,
};
use axiomfs_live::{Deed, FsError, Volume, Who};
use axiomfs_mount::{Control, ControlReply, PluginFiles};
use axiomfs_repository::Repository;
use serde_json::{Value, json};

use crate::advice::{self, Advice, Advisor};
use crate::args::MountArgs;
use crate::audit;
use crate::commands::config;
use crate::file_report;
use crate::metrics;
use crate::pacing::UploadBounds;
use crate::reload::Mark;
use crate::remount::Remount;
use crate::replies;
use crate::rotation;
use crate::session::Session;
use crate::status::{self, Facts};
use crate::stores;
use crate::wiring;

/// Longest wait of one `sync` command. Who wants to wait longer asks again.
const SYNC_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest wait of one `sync wait` command: who waits in it can't be ended before.
const SYNC_STEP: Duration = Duration::from_secs(1);

/// The control of one mount.
pub struct Panel {
    volume: Arc<Volume>,
    host: Arc<Host>,
    repository: Arc<Repository>,
    counted: Arc<Counted>,
    facts: Facts,
    /// Read again by `reload`.
    settings_file: Option<PathBuf>,
    settings_mark: Mark,
    /// What the mount was started with; all but the pipeline stays until the next mount.
    settings: Settings,
    /// What was last set; the host knows only its own part.
    pipeline: Mutex<Pipeline>,
    advisor: Advisor,
    uploads: Arc<UploadBounds>,
}

impl Panel {
    /// For a session that is to be mounted on `mountpoint`, as `args` say.
    pub fn new(session: &Session, mountpoint: &Path, args: &MountArgs) -> Self {
        let settings = session.settings().clone();
        let facts = session.facts(mountpoint);
        let file = session.settings_file().map(Path::to_owned);
        let (volume, host, repository) = (session.volume(), session.host(), session.repository());
        // A bucket as it was given: what is shown of it leaves out how it is asked.
        let store = if facts.store.starts_with("s3://") { &args.store } else { &facts.store };
        let remount = Remount::new(args, store, mountpoint, session.places());
        let advisor = Advisor::new(volume.clone(), host.clone(), repository.clone(), &facts, file, remount);
        Self {
            advisor,
            uploads: Arc::new(UploadBounds::new(settings.pipeline.store.uploads)),
            volume: Arc::clone(session.volume()),
            host: Arc::clone(session.host()),
            repository: Arc::clone(session.repository()),
            counted: Arc::clone(session.counted()),
            facts,
            settings_mark: session.settings_mark(),
            settings_file: session.settings_file().map(Path::to_owned),
            pipeline: Mutex::new(settings.pipeline.clone()),
            settings,
        }
    }

    fn listed_snapshots(&self) -> Value {
        json!({ "ok": true, "snapshots": replies::snapshots(&self.volume.snapshots()) })
    }

    fn run(&self, line: &str) -> Result<Value, ControlError> {
        // Not part of the host's grammar: snapshots are directories, only their listing needs more than names.
        if line.split_whitespace().eq(["snapshot", "list"]) {
            return Ok(self.listed_snapshots());
        }
        // A question about a file, which the host knows nothing of.
        if let Some(path) = line.strip_prefix("stat ") {
            return file_report::stat(&self.volume, &self.repository, &self.host, path.trim());
        }
        let command = parse_command(line)?;
        if !command.only_asks() {
            self.check_not_fenced()?;
        }
        if let Some(reply) = self.host.execute(&command) {
            return reply.map(|reply| replies::to_json(&reply));
        }
        match command {
            Command::Sync(SyncCommand::Whole) => self.sync(),
            Command::Sync(SyncCommand::Begin) => {
                Ok(json!({ "ok": true, "number": self.volume.sync_begin().map_err(|error| fs_error(&error))? }))
            }
            Command::Sync(SyncCommand::Wait(number)) => self.sync_wait(number),
            Command::StoreStatus => self.store_status(),
            Command::Reload { confirm } => self.reload(confirm.as_deref()),
            Command::KeyStatus => Ok(rotation::status(&self.repository)),
            Command::KeyRotate { compromised, confirm } => {
                let confirmed = confirm.as_deref() == Some(self.host.confirm_token());
                rotation::by_command(&self.repository, compromised, confirmed)
            }
            Command::Advise => {
                self.advisor.try_out();
                Ok(advice::to_json(&self.advice_now()))
            }
            Command::AuditVerify => audit::verified(&self.volume.audit_verify().map_err(|error| fs_error(&error))?),
            // The host has answered these above.
            Command::Chain(_) | Command::Plugin(_) | Command::Route(_) => Err(not_built("This command")),
        }
    }

    /// A mount that another machine has taken over from changes nothing any more: what it showed as done would be in no log.
    fn check_not_fenced(&self) -> Result<(), ControlError> {
        if self.volume.is_fenced() { Err(fs_error(&FsError::Fenced)) } else { Ok(()) }
    }

    fn sync(&self) -> Result<Value, ControlError> {
        let begun = Instant::now();
        let committed = self.volume.sync(SYNC_TIMEOUT, &|_| {}).map_err(|error| fs_error(&error))?;
        Ok(json!({
            "ok": true,
            "sequence": committed.sequence,
            "commit": status::hex(committed.commit),
            "took_ms": replies::millis(begun.elapsed()),
        }))
    }

    fn sync_wait(&self, number: u64) -> Result<Value, ControlError> {
        Ok(match self.volume.sync_wait(number, SYNC_STEP).map_err(|error| fs_error(&error))? {
            None => json!({ "ok": true, "done": false }),
            Some(committed) => json!({
                "ok": true,
                "done": true,
                "sequence": committed.sequence,
                "commit": status::hex(committed.commit),
            }),
        })
    }

    /// Asks the store, so it may take as long as the store does.
    fn store_status(&self) -> Result<Value, ControlError> {
        let begun = Instant::now();
        let store = self.repository.store();
        let space = store.space().map_err(|error| ControlError {
            code: "STORE",
            errno_name: "EIO",
            msg: crate::failure::chain(&error),
            hint: "Writes go on locally until staging.max".to_owned(),
        })?;
        Ok(json!({
            "ok": true,
            "location": store.location(),
            "free": space.map(|(free, _)| free),
            "total": space.map(|(_, total)| total),
            "took_ms": replies::millis(begun.elapsed()),
        }))
    }

    fn reload(&self, confirm: Option<&str>) -> Result<Value, ControlError> {
        let Some(file) = &self.settings_file else {
            return Err(ControlError {
                code: "NO_FILE",
                errno_name: "ENOENT",
                msg: "This mount was made without a settings file".to_owned(),
                hint: "Write to .axiomfs/chain.yaml instead, or mount with --config FILE".to_owned(),
            });
        };
        let new = config::load(file).map_err(|failure| yaml_error(failure.to_string()))?;
        let fixed = self.settings.fixed_differences(&new);
        if !fixed.is_empty() {
            return Err(self::fixed(&fixed.join(", ")));
        }
        self.apply(&new.pipeline, confirm)
    }

    /// Sends what is staged to the store, within the time that an operation may wait for it; whether all came there.
    fn drain(&self) -> bool {
        match self.volume.sync_untold(self.settings.timeout) {
            // What is lost is on its way nowhere; who asks for a sync is told.
            Ok(_) | Err(FsError::Damaged(_)) => true,
            Err(error) => {
                let text = "Frames from before the new requirement are still on their way to the store";
                self.volume.note("warning", format!("{text}: {error}"));
                false
            }
        }
    }

    fn advice_now(&self) -> Vec<Advice> {
        let pipeline = lock(&self.pipeline).clone();
        self.advisor.advice(&pipeline)
    }

    /// How many uploads the settings want.
    pub fn upload_bounds(&self) -> &Arc<UploadBounds> {
        &self.uploads
    }

    /// Takes a new sealing key into use where the settings ask for it, and records one that somebody else took.
    pub fn rotate_if_due(&self, watched: &mut rotation::Watched) {
        let rotate = lock(&self.pipeline).policies.rotate.clone();
        if let Some(deed) = watched.look(&self.repository, &rotate, SystemTime::now()) {
            self.volume.note("key", format!("{}: {}", deed.subject, deed.result));
            self.volume.audit_noted(&deed);
        }
    }

    /// Records what the host did to plugins that lost their trust.
    pub fn record_put_out(&self) {
        audit::record_put_out(&self.host, &self.volume);
    }

    /// Takes into the audit log what was done to keys beside mounts.
    pub fn carry_key_changes(&self, watched: &mut rotation::Watched) {
        watched.carry(&self.repository, &self.volume);
    }

    /// The repository.
    pub fn repository(&self) -> &Arc<Repository> {
        &self.repository
    }

    /// Tries out what advice may come of. Takes a while.
    pub fn look_for_advice(&self) {
        self.advisor.try_out();
    }

    /// Where the settings came from, if from a file.
    pub fn settings_file(&self) -> Option<&Path> {
        self.settings_file.as_deref()
    }

    /// The state of that file when the mount read it.
    pub fn settings_mark(&self) -> Mark {
        self.settings_mark.clone()
    }

    /// Whether there is a file to read again.
    pub fn has_settings_file(&self) -> bool {
        self.settings_file.is_some()
    }

    /// Reads the settings file again because of `why`; the events tell how that ended. Whether it is done with: not where another change
    /// was being made at that moment.
    pub fn reload_noted(&self, why: &str) -> bool {
        let result = self.reload(None);
        let done = !result.as_ref().is_err_and(|error| error.code == HostError::SwapRunning.code());
        self.record_settings(audit::us(), &format!("settings file, {why}"), &result);
        match result {
            Ok(reply) => {
                self.volume.note("reload", format!("Settings read again ({why}), generation {}", reply["generation"]))
            }
            Err(error) => {
                self.volume.note("refused", format!("Settings not taken over ({why}): {}; {}", error.msg, error.hint))
            }
        }
        done
    }

    fn record_settings(&self, who: Who, subject: &str, result: &Result<Value, ControlError>) {
        self.volume.audit_noted(&Deed::ended(who, "settings", subject, audit::outcome(result)));
    }

    /// Replaces chains, routes, limits and requirements at once, or nothing.
    fn apply(&self, pipeline: &Pipeline, confirm: Option<&str>) -> Result<Value, ControlError> {
        self.check_not_fenced()?;
        if pipeline.store.on_error != self.settings.pipeline.store.on_error {
            return Err(fixed("store.on_error"));
        }
        let routes = wiring::routes(pipeline)?;
        let limits = wiring::limits(pipeline);
        let wait = limits.frame_timeout;
        let require = pipeline.require.clone();
        // One change at a time, so that the file shown is the one in force.
        let mut current = lock(&self.pipeline);
        let replaced = self.host.replace(&wiring::chains(pipeline), routes, limits, require, confirm)?;
        current.clone_from(pipeline);
        self.uploads.set(pipeline.store.uploads);
        drop(current);
        // A new requirement holds once no frame is under way that began before it, and what weaker chains staged is drained.
        let drained = replaced.tightened.is_empty() || replaced.drained(wait) && self.drain();
        Ok(json!({
            "ok": true,
            "generation": replaced.generation,
            "tightened": replaced.tightened,
            "drained": drained,
            "took_ms": replies::millis(replaced.took),
        }))
    }
}

impl Control for Panel {
    fn execute(&self, line: &str, who: Who) -> ControlReply {
        let result = self.run(line);
        if let Some(deed) = audit::command(who, line, &result) {
            self.volume.audit_noted(&deed);
        }
        reply(result)
    }

    fn status(&self) -> String {
        status::to_json(&self.facts, &self.volume, &self.host).to_string()
    }

    fn chain_yaml(&self) -> String {
        wiring::pipeline_of(&self.host, &lock(&self.pipeline)).render()
    }

    fn set_chain_yaml(&self, text: &str, who: Who) -> ControlReply {
        let parsed = Pipeline::parse(text).map_err(|error| yaml_error(error.to_string()));
        let mut result = parsed.and_then(|pipeline| self.apply(&pipeline, confirmation(text)));
        if let Err(error) = &mut result
            && error.errno_name == "EPERM"
        {
            "Add a line \"# confirm=TOKEN\" with the token from status".clone_into(&mut error.hint);
        }
        self.record_settings(who, "chain.yaml", &result);
        reply(result)
    }

    fn metrics(&self) -> String {
        let counted = [self.host.metrics(), self.counted.metrics()].concat();
        metrics::render(&self.facts, &self.volume, &counted)
    }

    fn events(&self) -> String {
        status::events(&self.volume, &self.host)
    }

    fn advice(&self) -> String {
        advice::to_text(&advice::to_json(&self.advice_now()))
    }

    fn snapshots(&self) -> String {
        self.listed_snapshots().to_string()
    }

    fn audit_log(&self) -> Option<String> {
        self.record_put_out();
        match self.volume.audit_log() {
            Ok(lines) => Some(audit::to_text(&lines)),
            Err(error) => {
                self.volume.note("error", format!("The audit log can't be read: {error}"));
                None
            }
        }
    }

    fn plugins(&self) -> Vec<PluginFiles> {
        let used = (stores::plugin(&self.facts.store), self.counted.totals());
        self.host.plugins().iter().map(|plugin| plugin_files(plugin, used)).collect()
    }
}

/// The files of one plugin; `used` is the store in use and what was counted of it.
fn plugin_files(plugin: &PluginInfo, used: (&str, StoreTotals)) -> PluginFiles {
    let whole = replies::plugin(plugin);
    let pick = |keys: &[&str]| -> String {
        let part: serde_json::Map<String, Value> =
            keys.iter().map(|key| ((*key).to_owned(), whole[*key].clone())).collect();
        Value::Object(part).to_string()
    };
    PluginFiles {
        id: plugin.id.to_owned(),
        descriptor: pick(&[
            "id",
            "kind",
            "version",
            "summary",
            "writes",
            "reads",
            "provides",
            "requires",
            "before",
            "after",
            "memory",
            "skippable",
            "proven",
        ]),
        config: pick(&["loaded", "distrusted", "chains", "params"]),
        stats: match plugin.kind {
            Kind::Store => replies::store_counters(if plugin.id == used.0 { used.1 } else { StoreTotals::default() }),
            _ => pick(&replies::PLUGIN_COUNTERS),
        },
    }
}

/// The token in a line `# confirm=TOKEN` of `chain.yaml`, which has no other place for one.
fn confirmation(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.trim().strip_prefix('#')?.trim().strip_prefix("confirm=")).map(str::trim)
}

fn reply(result: Result<Value, ControlError>) -> ControlReply {
    match result {
        Ok(value) => ControlReply { json: value.to_string(), errno: 0 },
        Err(error) => {
            let json = json!({
                "ok": false,
                "code": error.code,
                "errno": error.errno_name,
                "msg": error.msg,
                "hint": error.hint,
            });
            ControlReply { json: json.to_string(), errno: errno(error.errno_name) }
        }
    }
}

/// Numbers of the errno names that commands answer with.
fn errno(name: &str) -> i32 {
    match name {
        "EINVAL" => libc::EINVAL,
        "ENOENT" => libc::ENOENT,
        "EPERM" => libc::EPERM,
        "EACCES" => libc::EACCES,
        "EBUSY" => libc::EBUSY,
        "ETIMEDOUT" => libc::ETIMEDOUT,
        "EILSEQ" => libc::EILSEQ,
        "ENOMEM" => libc::ENOMEM,
        "EROFS" => libc::EROFS,
        "ENOSPC" => libc::ENOSPC,
        "EOPNOTSUPP" => libc::EOPNOTSUPP,
        _ => libc::EIO,
    }
}

/// What to do where something was damaged before it reached the store.
pub(crate) const DAMAGED_HINT: &str =
    "Files that had it give EIO there, see `axiomfs status`: write them again; everything else is in the store";

fn fs_error(error: &FsError) -> ControlError {
    let (code, errno_name, hint) = match error {
        FsError::TimedOut(_) => ("TIMEOUT", "ETIMEDOUT", "Ask again; nothing is lost"),
        FsError::Damaged(_) => ("DAMAGED", "EIO", DAMAGED_HINT),
        FsError::Fenced => ("FENCED", "EROFS", "Another machine writes this volume now; the state directory is kept"),
        FsError::ReadOnly => ("READ_ONLY", "EROFS", ""),
        FsError::QuotaExceeded => ("QUOTA", "EDQUOT", "Raise the quota of the disk with the state directory"),
        FsError::Invalid => ("SYNTAX", "EINVAL", "Give the number that sync begin gave"),
        FsError::NoSpace => ("NO_SPACE", "ENOSPC", "Make room where the store or the state directory is"),
        _ => ("STORE", "EIO", "What is missing is safe in the state directory"),
    };
    ControlError { code, errno_name, msg: error.to_string(), hint: hint.to_owned() }
}

fn fixed(settings: &str) -> ControlError {
    ControlError {
        code: "FIXED",
        errno_name: "EINVAL",
        msg: format!("These settings can't change while mounted: {settings}"),
        hint: "Nothing was changed; set them back, or unmount and mount again".to_owned(),
    }
}

fn yaml_error(msg: String) -> ControlError {
    ControlError { code: "SETTINGS", errno_name: "EINVAL", msg, hint: "Nothing was changed".to_owned() }
}

fn not_built(what: &str) -> ControlError {
    ControlError {
        code: "UNSUPPORTED",
        errno_name: "EOPNOTSUPP",
        msg: format!("{what} is not part of this build"),
        hint: String::new(),
    }
}

/// A pipeline is replaced whole, so one whose holder panicked is still one.
fn lock(pipeline: &Mutex<Pipeline>) -> MutexGuard<'_, Pipeline> {
    pipeline.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_its_errno_and_its_words() {
        let error = parse_command("chain explode").unwrap_err();
        let answer = reply(Err(error));
        let json: Value = serde_json::from_str(&answer.json).unwrap();
        assert_eq!((answer.errno, json["ok"].as_bool(), json["errno"].as_str()), (22, Some(false), Some("EINVAL")));
        assert!(json["msg"].as_str().unwrap().contains("explode"));
        let answer = reply(Err(fs_error(&FsError::TimedOut("slow".into()))));
        assert_eq!(answer.errno, 110);
    }

    #[test]
    fn the_token_of_a_chain_file_stands_in_a_comment() {
        assert_eq!(confirmation("version: 1\n  # confirm=abc \nrequire: []\n"), Some("abc"));
        assert_eq!(confirmation("version: 1\nx: confirm=abc\n"), None);
    }
}
