//! The open files of `.axiomfs/`: what is read from them and what writing to them does. Knows nothing of FUSE.
//!
//! What a file shows is made when it is opened, so that a reader never sees half of two states. A write to `control`
//! is one command; its reply is read back on the same descriptor, wherever the file offset is, and stays in `reply`
//! for those who can't. `chain.yaml` is collected and applied when the descriptor is closed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axiomfs_live::Who;
use fuser::Errno;
use serde_json::json;

use crate::control::{Control, ControlReply};
use crate::nodes::{ControlFile, ControlNode, MAX_PLUGINS, PluginFile};

/// Longest command in bytes.
const MAX_COMMAND: usize = 4096;
/// Longest text of `chain.yaml` in bytes.
const MAX_CHAIN_YAML: usize = 1 << 20;
/// How many descriptors may be open at a time.
const MAX_OPEN: usize = 1024;

/// The open files of `.axiomfs/` and the table of plugins.
pub(crate) struct ControlFiles {
    control: Arc<dyn Control>,
    open: Mutex<HashMap<u64, Arc<Mutex<Content>>>>,
    next_handle: AtomicU64,
    last_reply: Mutex<String>,
    /// Plugins seen so far: the place of an id never changes, so neither does its inode number.
    plugins: Mutex<Vec<String>>,
}

/// What one descriptor shows or collects.
enum Content {
    Text(Vec<u8>),
    Command { reply: Vec<u8>, read: usize },
    ChainYaml { text: Vec<u8>, changed: bool },
}

impl ControlFiles {
    pub(crate) fn new(control: Arc<dyn Control>) -> Self {
        Self {
            control,
            open: Mutex::default(),
            next_handle: AtomicU64::new(1),
            last_reply: Mutex::default(),
            plugins: Mutex::default(),
        }
    }

    /// Opens the file `node`. `truncate` empties what can be written.
    pub(crate) fn open(&self, node: ControlNode, truncate: bool) -> Result<u64, Errno> {
        let content = self.content(node, truncate)?;
        let mut open = lock(&self.open);
        if open.len() >= MAX_OPEN {
            return Err(Errno::EMFILE);
        }
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        open.insert(handle, Arc::new(Mutex::new(content)));
        Ok(handle)
    }

    fn content(&self, node: ControlNode, truncate: bool) -> Result<Content, Errno> {
        let text = match node {
            ControlNode::File(ControlFile::Control) => return Ok(Content::Command { reply: Vec::new(), read: 0 }),
            ControlNode::File(ControlFile::ChainYaml) => {
                let text = if truncate { Vec::new() } else { self.control.chain_yaml().into_bytes() };
                // A shell closes a copy of the descriptor before the program behind it writes.
                return Ok(Content::ChainYaml { text, changed: false });
            }
            ControlNode::File(ControlFile::Status) => self.control.status(),
            ControlNode::File(ControlFile::Metrics) => self.control.metrics(),
            ControlNode::File(ControlFile::Events) => self.control.events(),
            ControlNode::File(ControlFile::Advice) => self.control.advice(),
            ControlNode::File(ControlFile::Snapshots) => self.control.snapshots(),
            ControlNode::File(ControlFile::AuditLog) => self.control.audit_log().ok_or(Errno::EIO)?,
            ControlNode::File(ControlFile::Reply) => lock(&self.last_reply).clone(),
            ControlNode::PluginFile(index, file) => self.plugin_text(index, file).ok_or(Errno::ENOENT)?,
            ControlNode::Directory | ControlNode::Plugins | ControlNode::Plugin(_) => return Err(Errno::EISDIR),
        };
        Ok(Content::Text(with_line_end(text)))
    }

    /// Up to `size` bytes. A reply to a command is read from its beginning whatever `offset` is: the descriptor's
    /// offset stands where the command ended.
    pub(crate) fn read(&self, handle: u64, offset: u64, size: usize) -> Result<Vec<u8>, Errno> {
        let content = self.get(handle)?;
        let part = match &mut *lock(&content) {
            Content::Text(text) | Content::ChainYaml { text, .. } => part(text, offset, size).to_vec(),
            Content::Command { reply, read } => {
                let part = part(reply, *read as u64, size).to_vec();
                *read += part.len();
                part
            }
        };
        Ok(part)
    }

    /// Takes `data` as a command, or collects it, at the end where there is no `offset`.
    pub(crate) fn write(&self, handle: u64, offset: Option<u64>, data: &[u8], who: Who) -> Result<u32, Errno> {
        let content = self.get(handle)?;
        match &mut *lock(&content) {
            Content::Text(_) => return Err(Errno::EBADF),
            Content::Command { .. } => {}
            Content::ChainYaml { text, changed } => {
                splice(text, offset.unwrap_or(text.len() as u64), data)?;
                *changed = true;
                return u32::try_from(data.len()).map_err(|_| Errno::EINVAL);
            }
        }
        // Nothing is locked while it runs: who reads meanwhile gets what there is.
        let answer = self.run(data, who);
        *lock(&self.last_reply) = answer.json.clone();
        if let Content::Command { reply, read } = &mut *lock(&content) {
            (*reply, *read) = (with_line_end(answer.json), 0);
        }
        result_of(answer.errno)?;
        u32::try_from(data.len()).map_err(|_| Errno::EINVAL)
    }

    /// Called for each `close` of a descriptor: applies what was collected, once.
    pub(crate) fn flush(&self, handle: u64, who: Who) -> Result<(), Errno> {
        let content = self.get(handle)?;
        let text = match &mut *lock(&content) {
            Content::ChainYaml { text, changed: changed @ true } => {
                *changed = false;
                text.clone()
            }
            _ => return Ok(()),
        };
        let answer = match std::str::from_utf8(&text) {
            Ok(text) => self.control.set_chain_yaml(text, who),
            Err(_) => refusal("The settings aren't UTF-8", "Nothing was changed; write plain text"),
        };
        *lock(&self.last_reply) = answer.json;
        result_of(answer.errno)
    }

    /// Cuts what was collected to `size`, or grows it with zeros. Nothing for other files.
    pub(crate) fn truncate(&self, handle: u64, size: u64) -> Result<(), Errno> {
        let content = self.get(handle)?;
        if let Content::ChainYaml { text, changed } = &mut *lock(&content) {
            let size = usize::try_from(size).ok().filter(|size| *size <= MAX_CHAIN_YAML).ok_or(Errno::EFBIG)?;
            text.resize(size, 0);
            *changed = true;
        }
        Ok(())
    }

    /// Forgets a descriptor.
    pub(crate) fn release(&self, handle: u64) {
        lock(&self.open).remove(&handle);
    }

    /// Ids of the plugins there are now, with their places in the table.
    pub(crate) fn plugins(&self) -> Vec<(usize, String)> {
        let now = self.control.plugins();
        let mut table = lock(&self.plugins);
        let mut found = Vec::with_capacity(now.len());
        for plugin in now {
            let known = table.iter().position(|id| *id == plugin.id);
            if known.is_none() && table.len() < MAX_PLUGINS && is_file_name(&plugin.id) {
                table.push(plugin.id.clone());
            }
            if let Some(index) = table.iter().position(|id| *id == plugin.id) {
                found.push((index, plugin.id));
            }
        }
        found.sort_unstable();
        found
    }

    fn plugin_text(&self, index: usize, file: PluginFile) -> Option<String> {
        let id = lock(&self.plugins).get(index)?.clone();
        let plugin = self.control.plugins().into_iter().find(|plugin| plugin.id == id)?;
        Some(match file {
            PluginFile::Descriptor => plugin.descriptor,
            PluginFile::Config => plugin.config,
            PluginFile::Stats => plugin.stats,
        })
    }

    fn run(&self, data: &[u8], who: Who) -> ControlReply {
        if data.len() > MAX_COMMAND {
            return refusal(
                &format!("A command has {} bytes, {MAX_COMMAND} are allowed", data.len()),
                "Write chain.yaml for more",
            );
        }
        let Ok(text) = std::str::from_utf8(data) else { return refusal("The command isn't UTF-8", "Write plain text") };
        match text.trim() {
            "" => refusal("The command is empty", "`axiomfs ctl --help` shows what can be said"),
            line if line.contains(['\n', '\0']) => {
                refusal("One write is one command: it holds a line end or a NUL", "Write one command at a time")
            }
            line => self.control.execute(line, who),
        }
    }

    fn get(&self, handle: u64) -> Result<Arc<Mutex<Content>>, Errno> {
        lock(&self.open).get(&handle).cloned().ok_or(Errno::EBADF)
    }
}

/// A refusal by the files themselves, in the form commands are refused in.
fn refusal(message: &str, hint: &str) -> ControlReply {
    let json = json!({ "ok": false, "code": "SYNTAX", "errno": "EINVAL", "msg": message, "hint": hint });
    ControlReply { json: json.to_string(), errno: libc::EINVAL }
}

fn result_of(errno: i32) -> Result<(), Errno> {
    if errno == 0 { Ok(()) } else { Err(Errno::from_i32(errno)) }
}

fn with_line_end(mut text: String) -> Vec<u8> {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.into_bytes()
}

fn part(text: &[u8], offset: u64, size: usize) -> &[u8] {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    &text[start..start.saturating_add(size).min(text.len())]
}

fn splice(text: &mut Vec<u8>, offset: u64, data: &[u8]) -> Result<(), Errno> {
    let start = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
    let end = start.checked_add(data.len()).filter(|end| *end <= MAX_CHAIN_YAML).ok_or(Errno::EFBIG)?;
    if text.len() < end {
        text.resize(end, 0);
    }
    text[start..end].copy_from_slice(data);
    Ok(())
}

fn is_file_name(id: &str) -> bool {
    !id.is_empty() && id.len() <= 255 && id != "." && id != ".." && !id.contains(['/', '\0'])
}

/// A panic of `Control` inside a lock leaves the content of one descriptor as it was; the next request may go on.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
