//! Takes an edited settings file over by itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use crate::control::Panel;

/// How often the file is looked at. A look works on every filesystem, and needs no watch that an editor's rename breaks.
const LOOK: Duration = Duration::from_secs(1);

/// What tells one state of a file from the next: where its links lead to, when it was changed, and its length.
pub type Mark = Option<(PathBuf, SystemTime, u64)>;

/// Watches the settings file of `panel`, if it has one, until the last other owner of the panel is gone.
pub fn watch(panel: &Arc<Panel>) {
    let Some(file) = panel.settings_file().map(Path::to_owned) else { return };
    // That of the file when it was read: what changed since then counts, however soon it was.
    let mut watched = Watched { known: panel.settings_mark(), seen: None };
    let panel = Arc::downgrade(panel);
    thread::spawn(move || {
        loop {
            thread::sleep(LOOK);
            let Some(panel) = panel.upgrade() else { return };
            watched.look(mark(&file), || panel.reload_noted("its file was edited"));
        }
    });
}

/// The file as it was taken over, and as it was at the last look.
struct Watched {
    known: Mark,
    seen: Mark,
}

impl Watched {
    /// Calls `reload` for a file that is another one `now` and has stood still for one look: an editor may write it in pieces. Where
    /// `reload` says that it isn't done with, the next look calls it again.
    fn look(&mut self, now: Mark, reload: impl FnOnce() -> bool) {
        if now == self.seen && now != self.known && now.is_some() && reload() {
            self.known.clone_from(&now);
        }
        self.seen = now;
    }
}

/// The state of `file` now; none if it can't be told.
pub fn mark(file: &Path) -> Mark {
    let file = file.canonicalize().ok()?;
    let metadata = std::fs::metadata(&file).ok()?;
    Some((file, metadata.modified().ok()?, metadata.len()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_stands_still_is_read_until_it_is_done_with() {
        let state = |len: u64| Some((PathBuf::from("/f"), SystemTime::UNIX_EPOCH, len));
        let mut watched = Watched { known: state(1), seen: None };
        let mut calls = Vec::new();
        // What is seen, and whether reading it then is done with.
        for (now, done) in [
            (state(1), true),
            (state(1), true),
            (state(2), true),
            (state(3), true),
            (state(3), false),
            (state(3), true),
        ] {
            let mut called = false;
            watched.look(now, || {
                called = true;
                done
            });
            calls.push(called);
        }
        assert_eq!(calls, [false, false, false, false, true, true]);
        watched.look(state(3), || panic!("it was taken over"));
        watched.look(None, || panic!("it is not there"));
        watched.look(None, || panic!("it is not there"));
    }

    #[test]
    fn a_link_to_another_file_is_another_state() {
        let directory = std::env::temp_dir().join(format!("axiomfs-cli-{}-mark", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (a, b, link) = (directory.join("a"), directory.join("b"), directory.join("link"));
        std::fs::write(&a, "one").unwrap();
        // With the same length and time of change.
        std::fs::hard_link(&a, &b).unwrap();
        std::os::unix::fs::symlink(&a, &link).unwrap();
        let before = mark(&link);
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&b, &link).unwrap();
        assert!(before.is_some() && before != mark(&link));
        assert_eq!(mark(&link), mark(&b));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
