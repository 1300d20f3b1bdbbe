//! Which node ids are the mount's own: the root, `snapshots/` and all of `.axiomfs/`.

use axiomfs_live::{FIRST_FILE_INO, NodeId, ROOT_INO};

/// Name of the live tree in the root.
pub(crate) const LIVE_NAME: &[u8] = b"live";
/// Name of the directory of snapshots in the root.
pub(crate) const SNAPSHOTS_NAME: &[u8] = b"snapshots";
/// Name of the control directory in the root. Not listed there.
pub(crate) const CONTROL_NAME: &[u8] = b".axiomfs";

const ROOT: u64 = 1;
const SNAPSHOTS: u64 = 3;
const CONTROL: u64 = 4;
const FIRST_CONTROL_FILE: u64 = 5;
/// Behind room for ten files.
const PLUGINS: u64 = 15;
const FIRST_PLUGIN: u64 = 16;
/// A directory and its three files.
const NODES_PER_PLUGIN: u64 = 4;
/// How many plugins have a directory in `.axiomfs/plugins`; bounded by the inode numbers reserved for the mount.
pub(crate) const MAX_PLUGINS: usize = ((FIRST_FILE_INO - FIRST_PLUGIN) / NODES_PER_PLUGIN) as usize;

/// What a node id stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// The root of the mount.
    Root,
    /// `snapshots/`.
    Snapshots,
    /// A node of `.axiomfs/`.
    Control(ControlNode),
    /// A node of the live tree or of a snapshot.
    Tree(NodeId),
}

/// A node of `.axiomfs/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ControlNode {
    /// `.axiomfs` itself.
    Directory,
    /// A file in it.
    File(ControlFile),
    /// `plugins/`.
    Plugins,
    /// `plugins/ID/`, by its place in the table of plugins.
    Plugin(usize),
    /// A file in there.
    PluginFile(usize, PluginFile),
}

/// Files in `.axiomfs/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ControlFile {
    /// State of the mount, JSON.
    Status,
    /// Takes commands.
    Control,
    /// The reply to the last command.
    Reply,
    /// The chains, to read and to replace.
    ChainYaml,
    /// Counters in the text form of Prometheus.
    Metrics,
    /// Recent events.
    Events,
    /// What could be better.
    Advice,
    /// Who did what.
    AuditLog,
    /// The snapshots with their times, JSON.
    Snapshots,
}

/// Files in `.axiomfs/plugins/ID/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum PluginFile {
    /// What it is.
    Descriptor,
    /// Its parameters.
    Config,
    /// Its counters.
    Stats,
}

impl ControlFile {
    /// All of them, in the order of their inode numbers.
    pub(crate) const ALL: [(Self, &'static str); 9] = [
        (Self::Status, "status"),
        (Self::Control, "control"),
        (Self::Reply, "reply"),
        (Self::ChainYaml, "chain.yaml"),
        (Self::Metrics, "metrics"),
        (Self::Events, "events"),
        (Self::Advice, "advice"),
        (Self::AuditLog, "audit.log"),
        (Self::Snapshots, "snapshots"),
    ];
    /// Name of the directory of plugins beside them.
    pub(crate) const PLUGINS_NAME: &'static str = "plugins";

    /// Whether it can be opened for writing.
    pub(crate) fn writable(self) -> bool {
        matches!(self, Self::Control | Self::ChainYaml)
    }
}

impl PluginFile {
    /// All of them, in the order of their inode numbers.
    pub(crate) const ALL: [(Self, &'static str); 3] =
        [(Self::Descriptor, "descriptor"), (Self::Config, "config"), (Self::Stats, "stats")];
}

impl Place {
    /// What the packed node id `packed` stands for. Reserved numbers nobody gave out count as nodes of the live tree,
    /// which knows none of them.
    pub(crate) fn of(packed: u64) -> Self {
        let node = NodeId::unpack(packed);
        if node.ordinal != 0 || node.ino >= FIRST_FILE_INO || node.ino == ROOT_INO {
            return Self::Tree(node);
        }
        match node.ino {
            ROOT => Self::Root,
            SNAPSHOTS => Self::Snapshots,
            CONTROL => Self::Control(ControlNode::Directory),
            PLUGINS => Self::Control(ControlNode::Plugins),
            ino if ino >= FIRST_PLUGIN => Self::Control(plugin_node(ino)),
            ino => match ino
                .checked_sub(FIRST_CONTROL_FILE)
                .and_then(|index| ControlFile::ALL.get(usize::try_from(index).ok()?))
            {
                Some((file, _)) => Self::Control(ControlNode::File(*file)),
                None => Self::Tree(node),
            },
        }
    }

    /// The inverse of [`of`](Self::of).
    pub(crate) fn node(self) -> NodeId {
        match self {
            Self::Root => NodeId::live(ROOT),
            Self::Snapshots => NodeId::live(SNAPSHOTS),
            Self::Control(node) => NodeId::live(node.ino()),
            Self::Tree(node) => node,
        }
    }
}

impl ControlNode {
    fn ino(self) -> u64 {
        match self {
            Self::Directory => CONTROL,
            Self::Plugins => PLUGINS,
            Self::File(file) => FIRST_CONTROL_FILE + position(&ControlFile::ALL, file),
            Self::Plugin(index) => FIRST_PLUGIN + index as u64 * NODES_PER_PLUGIN,
            Self::PluginFile(index, file) => {
                FIRST_PLUGIN + index as u64 * NODES_PER_PLUGIN + 1 + position(&PluginFile::ALL, file)
            }
        }
    }

    /// Whether it is a directory.
    pub(crate) fn is_directory(self) -> bool {
        matches!(self, Self::Directory | Self::Plugins | Self::Plugin(_))
    }
}

fn plugin_node(ino: u64) -> ControlNode {
    let index = ((ino - FIRST_PLUGIN) / NODES_PER_PLUGIN) as usize;
    match (ino - FIRST_PLUGIN) % NODES_PER_PLUGIN {
        0 => ControlNode::Plugin(index),
        file => ControlNode::PluginFile(index, PluginFile::ALL[file as usize - 1].0),
    }
}

fn position<T: PartialEq>(all: &[(T, &str)], one: T) -> u64 {
    all.iter().position(|(other, _)| *other == one).unwrap_or_default() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_of_the_mount_is_found_by_its_number() {
        let mut places = vec![
            Place::Root,
            Place::Snapshots,
            Place::Control(ControlNode::Directory),
            Place::Control(ControlNode::Plugins),
        ];
        places.extend(ControlFile::ALL.map(|(file, _)| Place::Control(ControlNode::File(file))));
        for index in [0, 1, MAX_PLUGINS - 1] {
            places.push(Place::Control(ControlNode::Plugin(index)));
            places.extend(PluginFile::ALL.map(|(file, _)| Place::Control(ControlNode::PluginFile(index, file))));
        }
        let mut numbers: Vec<u64> = places.iter().map(|place| place.node().ino).collect();
        for (place, number) in places.iter().zip(&numbers) {
            assert_eq!(Place::of(*number), *place);
            assert!(*number < FIRST_FILE_INO, "{place:?} has the number of a file");
            assert_ne!(*number, ROOT_INO);
        }
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), places.len());
    }

    #[test]
    fn trees_keep_their_numbers() {
        for node in [NodeId::live(2), NodeId::live(1024), NodeId { ordinal: 1, ino: 2 }, NodeId { ordinal: 9, ino: 4 }]
        {
            assert_eq!(Place::of(node.pack()), Place::Tree(node));
        }
    }
}
