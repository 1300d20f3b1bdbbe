//! Takes an edited settings file over by itself.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use crate::control::Panel;

/// How often the file is looked at. A look works on every filesystem, and needs no watch that an editor's rename breaks.
const LOOK: Duration = Duration::from_secs(1);

/// What tells one state of a file from the next.
pub type Mark = Option<(SystemTime, u64)>;

/// Watches the settings file of `panel`, if it has one, until the last other owner of the panel is gone.
pub fn watch(panel: &Arc<Panel>) {
    let Some(file) = panel.settings_file().map(Path::to_owned) else { return };
    // That of the file when it was read: what changed since then counts, however soon it was.
    let mut known = panel.settings_mark();
    let panel = Arc::downgrade(panel);
    thread::spawn(move || {
        let mut seen = None;
        loop {
            thread::sleep(LOOK);
            let Some(panel) = panel.upgrade() else { return };
            // Only once it has stood still for one look: an editor may write it in pieces.
            let now = mark(&file);
            if now == seen && now != known && now.is_some() {
                known = now;
                panel.reload_noted("its file was edited");
            }
            seen = now;
        }
    });
}

/// The state of `file` now; none if it can't be told.
pub fn mark(file: &Path) -> Mark {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// How often it is looked at what advice there may be.
const ADVISE: Duration = Duration::from_secs(60);

/// Tries out what advice may come of, until the last other owner of the panel is gone.
pub fn advise(panel: &Arc<Panel>) {
    let panel = Arc::downgrade(panel);
    thread::spawn(move || {
        let mut looks = 0;
        loop {
            thread::sleep(LOOK);
            let Some(panel) = panel.upgrade() else { return };
            looks += 1;
            if looks == ADVISE.as_secs() / LOOK.as_secs() {
                looks = 0;
                panel.look_for_advice();
            }
        }
    });
}
