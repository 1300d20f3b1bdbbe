use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use axiomfs_api::{LeftOut, ObjectKey, ObjectMeta};

/// Objects under `root` as [`axiomfs_api::Store::list`] wants them, reading only directories that can hold some.
pub fn list(
    root: &Path,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
    left_out: &LeftOut,
) -> io::Result<Vec<ObjectMeta>> {
    // The deepest directory that holds every name with this prefix.
    let start = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
    let mut walk = Walk { root, prefix, after: after.unwrap_or(""), limit, left_out, found: Vec::new() };
    let proper = start.is_empty() || ObjectKey::new(&start[..start.len() - 1]).is_ok();
    if proper && limit > 0 && !crate::is_reserved(start) {
        walk.directory(start)?;
    }
    Ok(walk.found)
}

struct Walk<'a> {
    root: &'a Path,
    prefix: &'a str,
    after: &'a str,
    limit: usize,
    left_out: &'a LeftOut,
    found: Vec<ObjectMeta>,
}

impl Walk<'_> {
    /// Lists `directory`, which is empty or ends in `/`.
    fn directory(&mut self, directory: &str) -> io::Result<()> {
        let entries = match fs::read_dir(self.root.join(directory)) {
            Ok(entries) => entries,
            // No such prefix, or removed since its parent was read. The root itself is never absent.
            Err(error) if !directory.is_empty() && is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            let mut name = format!("{directory}{}", entry.file_name().to_string_lossy());
            if crate::is_reserved(&name) {
                continue;
            }
            if ObjectKey::new(name.as_str()).is_err() {
                if name.starts_with(self.prefix) {
                    self.left_out.note(&name);
                }
                continue;
            }
            // With its slash a directory sorts where its objects do: `a-b` before `a/b` before `a0`.
            if kind.is_dir() {
                name.push('/');
            } else if !kind.is_file() {
                continue;
            }
            if self.may_hold(&name) {
                names.push(name);
            }
        }
        names.sort_unstable();
        for name in names {
            if self.found.len() >= self.limit {
                break;
            }
            if name.ends_with('/') {
                self.directory(&name)?;
            } else {
                self.object(name)?;
            }
        }
        Ok(())
    }

    /// Whether `name`, or for a directory something in it, has the prefix and comes after `after`.
    fn may_hold(&self, name: &str) -> bool {
        if name.ends_with('/') {
            (name.starts_with(self.prefix) || self.prefix.starts_with(name))
                && (name > self.after || self.after.starts_with(name))
        } else {
            name.starts_with(self.prefix) && name > self.after
        }
    }

    fn object(&mut self, name: String) -> io::Result<()> {
        match fs::metadata(self.root.join(&name)) {
            Ok(metadata) => {
                if let Ok(key) = ObjectKey::new(name) {
                    self.found.push(ObjectMeta { key, len: metadata.len() });
                }
                Ok(())
            }
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}
