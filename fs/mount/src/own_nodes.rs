//! The directories and files that are the mount's own: what they look like and what is in them.

use axiomfs_live::{Access, Attr, DirEntry, FileKind, FsError, FsResult, NodeId, ROOT_INO, Time};
use fuser::Errno;

use crate::calls::Listing;
use crate::nodes::{CONTROL_NAME, ControlFile, ControlNode, LIVE_NAME, Place, PluginFile, SNAPSHOTS_NAME};
use crate::service::Service;

/// Where entries of the mount's own directories go on: 0 to 2 are the beginning, `.` and `..`.
const FIRST_COOKIE: u64 = 3;
/// The cookie of a snapshot is its ordinal, which it keeps whatever is made and forgotten meanwhile, and this.
const SNAPSHOT_COOKIE: u64 = 16;

impl Service {
    /// What `name` stands for in one of the mount's own directories.
    pub(crate) fn own_child(&self, directory: Place, name: &[u8]) -> Result<Place, Errno> {
        match directory {
            Place::Root if name == LIVE_NAME => Ok(Place::Tree(NodeId::live(ROOT_INO))),
            Place::Root if name == SNAPSHOTS_NAME => Ok(Place::Snapshots),
            Place::Root if name == CONTROL_NAME => Ok(Place::Control(ControlNode::Directory)),
            Place::Snapshots => std::str::from_utf8(name)
                .ok()
                .and_then(|name| self.volume.snapshot(name))
                .map(|snapshot| snapshot_root(snapshot.ordinal))
                .ok_or(Errno::ENOENT),
            Place::Control(node) => self
                .control_children(node)
                .into_iter()
                .find(|(_, child)| child.as_bytes() == name)
                .map(|(child, _)| Place::Control(child))
                .ok_or(Errno::ENOENT),
            Place::Root | Place::Tree(_) => Err(Errno::ENOENT),
        }
    }

    /// The directory that `directory` is in, as `..` shows it.
    pub(crate) fn parent(&self, access: Access, directory: Place) -> FsResult<NodeId> {
        let parent = match directory {
            Place::Tree(node) if node == NodeId::live(ROOT_INO) => Place::Root,
            Place::Tree(node) if node.ino == ROOT_INO => Place::Snapshots,
            Place::Tree(node) => return self.volume.parent(access, node),
            Place::Root | Place::Snapshots | Place::Control(ControlNode::Directory) => Place::Root,
            Place::Control(ControlNode::Plugin(_)) => Place::Control(ControlNode::Plugins),
            Place::Control(_) => Place::Control(ControlNode::Directory),
        };
        Ok(parent.node())
    }

    /// Attributes of one of the mount's own nodes; none of a tree's, which the volume knows.
    pub(crate) fn own_attr(&self, place: Place) -> Option<Attr> {
        let directory = |perm, subdirectories: usize, changed| {
            let nlink = u32::try_from(subdirectories + 2).unwrap_or(u32::MAX);
            self.own(place, FileKind::Directory, perm, nlink, changed)
        };
        Some(match place {
            // `.axiomfs` isn't listed, so it isn't counted: `find` takes the count for the number of subdirectories.
            Place::Root => directory(0o755, 2, self.mounted_at()),
            Place::Snapshots => {
                let snapshots = self.volume.snapshots();
                directory(0o755, snapshots.len(), self.snapshots_changed(&snapshots))
            }
            Place::Control(node) if node.is_directory() => {
                let children = self.control_children(node);
                directory(0o700, children.iter().filter(|(node, _)| node.is_directory()).count(), self.mounted_at())
            }
            Place::Control(ControlNode::File(file)) if file.writable() => {
                self.own(place, FileKind::File, 0o600, 1, self.mounted_at())
            }
            Place::Control(_) => self.own(place, FileKind::File, 0o400, 1, self.mounted_at()),
            Place::Tree(_) => return None,
        })
    }

    /// Fills `reply` with what is in one of the mount's own directories, after `cookie`.
    pub(crate) fn list_own<L: Listing>(
        &self,
        access: Access,
        directory: Place,
        cookie: u64,
        reply: &mut L,
    ) -> FsResult<()> {
        let (mut added, mut away) = (false, false);
        for (child, name, next) in self.own_children(directory).into_iter().filter(|(_, _, next)| *next > cookie) {
            let attr = match self.own_attr(child) {
                Some(attr) => Some(attr),
                None if !L::WITH_ATTRIBUTES || away => None,
                None => match self.volume.getattr(access, child.node()) {
                    Ok(attr) => Some(attr),
                    // A snapshot that was forgotten just now.
                    Err(FsError::Stale | FsError::NotFound) => continue,
                    Err(FsError::WouldBlock) if added => return Ok(()),
                    Err(FsError::WouldBlock) => return Err(FsError::WouldBlock),
                    // It is there all the same, and so are those after it. A store that doesn't answer is waited for once.
                    Err(error) => {
                        away = matches!(error, FsError::TimedOut(_));
                        None
                    }
                },
            };
            // Those that are not our own are roots of trees.
            let kind = attr.as_ref().map_or(FileKind::Directory, |attr| attr.kind);
            let entry = DirEntry { node: child.node(), kind, name, cookie: next, attr };
            if reply.add(&entry) {
                return Ok(());
            }
            added = true;
        }
        Ok(())
    }

    /// Node, name and cookie of all that is listed in one of the mount's own directories.
    fn own_children(&self, directory: Place) -> Vec<(Place, Vec<u8>, u64)> {
        match directory {
            Place::Root => [(Place::Tree(NodeId::live(ROOT_INO)), LIVE_NAME), (Place::Snapshots, SNAPSHOTS_NAME)]
                .into_iter()
                .zip(FIRST_COOKIE..)
                .map(|((place, name), cookie)| (place, name.to_vec(), cookie))
                .collect(),
            Place::Snapshots => {
                let mut snapshots = self.volume.snapshots();
                snapshots.sort_unstable_by_key(|snapshot| snapshot.ordinal);
                snapshots
                    .into_iter()
                    .map(|snapshot| {
                        let cookie = SNAPSHOT_COOKIE + u64::from(snapshot.ordinal);
                        (snapshot_root(snapshot.ordinal), snapshot.name.into_bytes(), cookie)
                    })
                    .collect()
            }
            Place::Control(node) => self
                .control_children(node)
                .into_iter()
                .zip(FIRST_COOKIE..)
                .map(|((child, name), cookie)| (Place::Control(child), name.into_bytes(), cookie))
                .collect(),
            Place::Tree(_) => Vec::new(),
        }
    }

    fn control_children(&self, directory: ControlNode) -> Vec<(ControlNode, String)> {
        match directory {
            ControlNode::Directory => ControlFile::ALL
                .iter()
                .map(|(file, name)| (ControlNode::File(*file), (*name).to_owned()))
                .chain([(ControlNode::Plugins, ControlFile::PLUGINS_NAME.to_owned())])
                .collect(),
            ControlNode::Plugins => {
                self.files.plugins().into_iter().map(|(index, id)| (ControlNode::Plugin(index), id)).collect()
            }
            ControlNode::Plugin(index) => PluginFile::ALL
                .iter()
                .map(|(file, name)| (ControlNode::PluginFile(index, *file), (*name).to_owned()))
                .collect(),
            ControlNode::File(_) | ControlNode::PluginFile(..) => Vec::new(),
        }
    }

    /// Their size is shown as 0, as in `/proc`: what they hold is made when they are opened.
    fn own(&self, place: Place, kind: FileKind, perm: u16, nlink: u32, changed: Time) -> Attr {
        Attr {
            ino: place.node().ino,
            ordinal: 0,
            kind,
            perm,
            nlink,
            uid: self.owner.uid,
            gid: self.owner.gid,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: changed,
            mtime: changed,
            ctime: changed,
            btime: self.mounted_at(),
        }
    }
}

fn snapshot_root(ordinal: u32) -> Place {
    Place::Tree(NodeId { ordinal, ino: ROOT_INO })
}
