//! What can stand on the command line. Help texts live here, so that `--help` and the parser cannot disagree.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  axiomfs init /srv/vault                        make a repository in a directory
  axiomfs mount /srv/vault /mnt/vault            mount it; goes to the background
  rsync -a ~/documents /mnt/vault/live/          use it: any program, unchanged
  mkdir /mnt/vault/snapshots/monday              take a snapshot (rmdir forgets it, mv renames it)
  ls /mnt/vault/snapshots/monday/documents       browse it
  axiomfs umount /mnt/vault                      wait until all is in the store, and unmount

Exit codes: 0 done, 1 failed, 2 wrong use.
The passphrase is asked for, or taken from --passphrase-file, --passphrase-fd or AXIOMFS_PASSPHRASE, in this order.";

/// A backup that is a directory: chunked, deduplicated, compressed, encrypted, with snapshots to browse.
#[derive(Debug, Parser)]
#[command(name = "axiomfs", version, after_help = EXAMPLES, disable_help_subcommand = true)]
#[command(arg_required_else_help = true, propagate_version = true)]
pub struct Cli {
    /// Print one JSON object (also for a failure) instead of text for people
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a new, empty repository
    #[command(after_help = "Examples:
  axiomfs init /srv/vault                              asks for a passphrase, twice
  axiomfs init /srv/vault --passphrase-file ~/.vault   takes the first line of a file
  axiomfs init 's3://bucket/vault?region=eu-central-1' in a bucket; credentials as for the AWS tools

The directory must be empty or not exist. Without the passphrase nobody can read the repository, also not you: keep it.")]
    Init(InitArgs),
    /// Mount a repository; returns once the mount answers
    #[command(after_help = "Examples:
  axiomfs mount /srv/vault /mnt/vault
  axiomfs mount /srv/vault /mnt/vault --cache /fast/disk/vault --config vault.yaml
  axiomfs mount /srv/vault /mnt/vault --metrics 9184   also serve metrics at http://127.0.0.1:9184/metrics
  axiomfs mount 's3://bucket/vault?region=eu-central-1' /mnt/vault
  axiomfs mount /srv/vault /mnt/vault -f               stay in the foreground, log to the terminal

A mount shows three names: live/ to read and write, snapshots/ with a read-only directory per snapshot, and (unlisted)
.axiomfs/ with status and control. The state directory may hold the only copy of what was written last: keep it until
`axiomfs umount` or `axiomfs sync` has returned. The cache directory can be deleted whenever nothing is mounted. With
--cache DIR and without --state, DIR/state is the state directory: delete only what else is in DIR.
Defaults: ~/.local/state/axiomfs/REPOSITORY-VOLUME and ~/.cache/axiomfs/REPOSITORY-VOLUME (or below XDG_STATE_HOME and
XDG_CACHE_HOME).")]
    Mount(Box<MountArgs>),
    /// Wait until everything is in the store, then unmount
    #[command(after_help = "Examples:
  axiomfs umount /mnt/vault
  axiomfs umount /mnt/vault --now    unmount at once; the daemon goes on draining in the background

Plain `umount` and `fusermount3 -u` are safe as well: the daemon drains after them. What could not reach the store stays
in the state directory and goes there after the next mount.")]
    Umount(UmountArgs),
    /// Wait until all that was written before is in the store; prints SEQUENCE:COMMIT
    #[command(after_help = "Example:
  axiomfs sync /mnt/vault && echo safe")]
    Sync(OnMount),
    /// Say how a mount is doing
    #[command(after_help = "Examples:
  axiomfs status /mnt/vault
  axiomfs status /mnt/vault --json | jq .pending_bytes")]
    Status(OnMount),
    /// Take, list, rename and forget snapshots, on a mount or straight on a store
    #[command(
        subcommand,
        after_help = "Examples:
  axiomfs snapshot create /mnt/vault monday     the same as: mkdir /mnt/vault/snapshots/monday
  axiomfs snapshot list /srv/vault              straight on a store, without mounting it
  axiomfs snapshot rename /mnt/vault monday first
  axiomfs snapshot delete /mnt/vault first      the same as: rmdir /mnt/vault/snapshots/first"
    )]
    Snapshot(SnapshotVerb),
    /// Send a command to a mount, as writing to .axiomfs/control does
    #[command(after_help = "Examples:
  axiomfs ctl /mnt/vault chain show
  axiomfs ctl /mnt/vault set zstd level=9                            compress harder from now on
  axiomfs ctl /mnt/vault chain set default 'zstd(level=9)|aes-256-gcm'
  axiomfs ctl /mnt/vault chain remove default zstd                   no compression from now on
  axiomfs ctl /mnt/vault route explain /logs/today
  axiomfs ctl /mnt/vault store status

Commands:
  chain show | chain set NAME STEPS | chain new NAME STEPS | chain test NAME
  chain add NAME STEP [before ID | after ID] | chain remove NAME ID
  plugin list | plugin load ID | plugin unload ID | set ID key=value...
  route list | route explain PATH | route add under|match PATTERN CHAIN [first] | route remove NUMBER | key status | key rotate | store status | reload | sync [begin | wait NUMBER] | advise | audit verify
Commands that weaken or destroy need confirm=TOKEN; the token stands in `axiomfs status --json`.")]
    Ctl(CtlArgs),
    /// Manage the passphrases of a repository and its sealing keys
    #[command(
        subcommand,
        after_help = "Examples:
  axiomfs key list /srv/vault
  axiomfs key add /srv/vault                        a second passphrase; asks for the old one first
  axiomfs key passwd /srv/vault                     another passphrase in place of yours
  axiomfs key remove /srv/vault ID                  needs the passphrase of another key
  axiomfs key rotate /srv/vault                     a new sealing key for what is written from now on
  axiomfs key export /srv/vault /media/usb/keys     a sealed copy, for the day on which the store has lost its keys

It works beside mounts, which take a new sealing key up by themselves. Taking a passphrase away or rotating does not seal
anew what is stored: who knew the old keys and can read the store still reads what they sealed."
    )]
    Key(KeyVerb),
    /// Make and list the volumes of a repository
    #[command(
        subcommand,
        after_help = "Examples:
  axiomfs volume create /srv/vault photos                     a second tree with snapshots of its own
  axiomfs mount /srv/vault /mnt/photos --volume photos
  axiomfs volume list /srv/vault

Each volume has one writer at a time, and none waits for another. What one has stored the others do not store again."
    )]
    Volume(VolumeVerb),
    /// Say which frames hold a file, which steps made them and what that saved
    #[command(after_help = "Examples:
  axiomfs stat /mnt/vault/live/logs/today.log
  axiomfs stat /mnt/vault/snapshots/monday/photo.jpg --json | jq .ratio")]
    Stat(StatArgs),
    /// Say what a mount could do better, what shows it, and the commands for it
    #[command(after_help = "Examples:
  axiomfs advise /mnt/vault
  cat /mnt/vault/.axiomfs/advice

Advice comes from what the mount has counted since it began, and goes away once it is followed.")]
    Advise(OnMount),
    /// Bring state that was set aside into a snapshot
    #[command(after_help = "Examples:
  axiomfs recover /srv/vault                     makes snapshots/recovered-2026-11-25T15-04-05Z
  axiomfs recover /srv/vault --state /var/vault  of another state directory

When another machine took a volume over (mount --takeover), what this one had not committed can't go on top of the other's
changes. The next mount sets it aside in the state directory and says so. This verb makes a snapshot of the whole live tree
as this machine had it, leaves live/ alone, and removes what was set aside once the snapshot is in the store. It works while
the volume is not mounted; it is refused while another machine writes it.")]
    Recover(RecoverArgs),
    /// Tell about plugins
    #[command(
        subcommand,
        after_help = "Examples:
  axiomfs plugin list                what this build has
  axiomfs plugin list /mnt/vault     and what a mount does with it"
    )]
    Plugin(PluginVerb),
    /// Work on settings files
    #[command(subcommand)]
    Config(ConfigVerb),
}

/// Where the passphrase comes from.
#[derive(Debug, Args, Default, Clone)]
pub struct PassphraseArgs {
    /// Read the passphrase from the first line of this file
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_fd")]
    pub passphrase_file: Option<PathBuf>,
    /// Read the passphrase from this open file descriptor, up to its first line end
    #[arg(long, value_name = "FD")]
    pub passphrase_fd: Option<i32>,
}

/// Arguments of `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where it is to be
    #[command(flatten)]
    pub at: AtStore,
    /// Name of its first volume
    #[arg(long, value_name = "NAME", default_value = "main", value_parser = volume_name)]
    pub volume: String,
    /// Memory one guess at the passphrase costs, from 64MiB to 2GiB
    #[arg(long, value_name = "SIZE", value_parser = kdf_memory)]
    pub kdf_memory: Option<u64>,
    /// See the options
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
}

/// Which repository, and what is kept where on this machine.
#[derive(Debug, Args, Clone)]
pub struct StoreArgs {
    /// Directory for the log, staged packs and the manifest: may hold the only copy of what was written last
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Directory for what can be fetched again. Without --state, DIR/state is the state directory: don't delete that with the rest
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Settings file (`axiomfs config check` tells whether it is right)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Which volume of the repository
    #[arg(long, value_name = "NAME", default_value = "main", value_parser = volume_name)]
    pub volume: String,
    /// Take the volume over from a writer that is gone for good; it is fenced off if it comes back. What it had not committed
    /// is then only in its state directory
    #[arg(long)]
    pub takeover: bool,
    /// Accept a store that shows an older state than this machine has seen
    #[arg(long)]
    pub accept_rollback: bool,
    /// Go on where the bucket's server can't create objects exclusively: then nothing but you keeps a second writer out
    #[arg(long)]
    pub unsafe_single_writer: bool,
    /// See the options
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
}

/// Arguments of `mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Directory of the repository, or s3://BUCKET/PREFIX?endpoint=URL&region=NAME&profile=NAME
    pub store: String,
    /// An empty directory
    pub mountpoint: PathBuf,
    /// See the options
    #[command(flatten)]
    pub repository: StoreArgs,
    /// Change nothing: live/ is read-only
    #[arg(long)]
    pub read_only: bool,
    /// Refuse a store whose newest head is neither this one, as `axiomfs sync` printed it, nor came after it
    #[arg(long, value_name = "SEQUENCE:COMMIT", value_parser = expected_head)]
    pub expect_head: Option<(u64, [u8; 16])>,
    /// Stay in the foreground and log to the terminal
    #[arg(short = 'f', long)]
    pub foreground: bool,
    /// Serve metrics for Prometheus at http://ADDRESS/metrics; a port alone is for this machine only
    #[arg(long, value_name = "ADDRESS", value_parser = crate::metrics_http::parse_address)]
    pub metrics: Option<std::net::SocketAddr>,
    /// Mount options, comma-separated: allow_other (other users may enter, by their permissions), ro, rw
    #[arg(short = 'o', value_name = "OPTION", value_delimiter = ',', value_parser = ["allow_other", "ro", "rw"])]
    pub options: Vec<String>,
}

impl MountArgs {
    /// Whether other users may enter.
    pub fn allow_other(&self) -> bool {
        self.options.iter().any(|option| option == "allow_other")
    }

    /// Whether `live/` is read-only.
    pub fn is_read_only(&self) -> bool {
        self.read_only || self.options.iter().any(|option| option == "ro")
    }
}

/// Arguments of `recover`.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// Directory of the repository, or s3://BUCKET/PREFIX?endpoint=URL&region=NAME&profile=NAME
    pub store: String,
    /// See the options
    #[command(flatten)]
    pub repository: StoreArgs,
}

/// Arguments of `umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// A mounted axiomfs
    pub mountpoint: PathBuf,
    /// Do not wait for the store: the daemon goes on draining in the background
    #[arg(long)]
    pub now: bool,
}

/// A mount, and nothing else.
#[derive(Debug, Args)]
pub struct OnMount {
    /// A mounted axiomfs
    pub mountpoint: PathBuf,
}

/// What can be done with keys.
#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// List the keys: one for each passphrase. Needs none of them
    List {
        /// Which repository
        #[command(flatten)]
        at: AtStore,
    },
    /// Add a passphrase
    Add {
        /// Which repository
        #[command(flatten)]
        key: KeyArgs,
        /// The new one
        #[command(flatten)]
        new: NewPassphraseArgs,
    },
    /// Change a passphrase
    Passwd {
        /// Which repository
        #[command(flatten)]
        key: KeyArgs,
        /// The new one
        #[command(flatten)]
        new: NewPassphraseArgs,
    },
    /// Take a passphrase away; the one given must be another
    Remove {
        /// Which repository
        #[command(flatten)]
        key: KeyArgs,
        /// The key, as the list names it
        id: String,
    },
    /// Take a new sealing key into use
    Rotate {
        /// Which repository
        #[command(flatten)]
        key: KeyArgs,
        /// The keys so far may be known to others: store anew what comes again, rather than refer to what they sealed
        #[arg(long)]
        compromised: bool,
    },
    /// Write a copy of the sealed keys to a file, for the day on which the store has lost them
    Export {
        /// Which repository
        #[command(flatten)]
        key: KeyArgs,
        /// The file, which must not be there yet
        file: PathBuf,
    },
    /// Put sealed keys from such a file back into the store, where they are missing
    Import {
        /// Which repository
        #[command(flatten)]
        at: AtStore,
        /// The file
        file: PathBuf,
    },
}

/// What can be done with volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Make a volume
    Create {
        /// Which repository
        #[command(flatten)]
        key: KeyArgs,
        /// Its name
        #[arg(value_parser = volume_name)]
        name: String,
    },
    /// List the volumes, the oldest first. Their names are sealed
    List {
        /// Which repository
        #[command(flatten)]
        key: KeyArgs,
    },
}

/// A repository, and how its store is used.
#[derive(Debug, Args)]
pub struct AtStore {
    /// Directory of the repository, or s3://BUCKET/PREFIX?endpoint=URL&region=NAME&profile=NAME
    pub store: String,
    /// Settings file, for how a bucket is used
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Go on where the bucket's server can't create objects exclusively: then nothing but you keeps a second writer out
    #[arg(long)]
    pub unsafe_single_writer: bool,
}

/// A repository and one of its passphrases.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// Which repository
    #[command(flatten)]
    pub at: AtStore,
    /// See the options
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
}

/// Where a new passphrase comes from; without either it is asked for, twice.
#[derive(Debug, Args)]
pub struct NewPassphraseArgs {
    /// Read the new passphrase from the first line of this file
    #[arg(long, value_name = "FILE", conflicts_with = "new_passphrase_fd")]
    pub new_passphrase_file: Option<PathBuf>,
    /// Read the new passphrase from this open file descriptor, up to its first line end
    #[arg(long, value_name = "FD")]
    pub new_passphrase_fd: Option<i32>,
}

impl NewPassphraseArgs {
    /// The same as the source of any passphrase.
    pub fn source(&self) -> PassphraseArgs {
        PassphraseArgs { passphrase_file: self.new_passphrase_file.clone(), passphrase_fd: self.new_passphrase_fd }
    }
}

/// Arguments of `stat`.
#[derive(Debug, Args)]
pub struct StatArgs {
    /// A file below live/ or snapshots/ of a mounted axiomfs
    pub path: PathBuf,
}

/// Arguments of `ctl`.
#[derive(Debug, Args)]
pub struct CtlArgs {
    /// A mounted axiomfs
    pub mountpoint: PathBuf,
    /// The command, as one or as several words
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// The command takes all words that follow, also ones with a dash; this one is meant for us wherever it stands.
const JSON: &str = "--json";

impl CtlArgs {
    /// The command as one line.
    pub fn line(&self) -> String {
        self.command.iter().map(String::as_str).filter(|word| *word != JSON).collect::<Vec<_>>().join(" ")
    }
}

impl Cli {
    /// Whether the answer is to be JSON.
    pub fn wants_json(&self) -> bool {
        self.json || matches!(&self.verb, Verb::Ctl(ctl) if ctl.command.iter().any(|word| word == JSON))
    }
}

/// What can be done with snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Take a snapshot of live/
    Create {
        /// Where
        #[command(flatten)]
        target: TargetArgs,
        /// Its name: no slash, at most 255 bytes
        name: String,
    },
    /// List all snapshots, the oldest first
    List {
        /// Where
        #[command(flatten)]
        target: TargetArgs,
    },
    /// Give a snapshot another name
    Rename {
        /// Where
        #[command(flatten)]
        target: TargetArgs,
        /// Its name now
        from: String,
        /// Its new name
        to: String,
    },
    /// Forget a snapshot
    Delete {
        /// Where
        #[command(flatten)]
        target: TargetArgs,
        /// Its name
        name: String,
    },
}

/// A mount or a store.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// A mounted axiomfs, or the directory of a repository that is not mounted
    #[arg(value_name = "MOUNTPOINT|STORE")]
    pub target: String,
    /// See the options
    #[command(flatten)]
    pub repository: StoreArgs,
}

/// What can be told about plugins.
#[derive(Debug, Subcommand)]
pub enum PluginVerb {
    /// List the plugins of this build, or of a mount with the chains they are in and what they did
    #[command(after_help = "Examples:
  axiomfs plugin list
  axiomfs plugin list /mnt/vault --json")]
    List {
        /// A mounted axiomfs
        mountpoint: Option<PathBuf>,
    },
}

/// What can be done with settings files.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Say whether a settings file is right, or the line, key and remedy of its first mistake
    #[command(after_help = "Example:
  axiomfs config check vault.yaml

config/axiomfs.yaml in the source tree is a file with every setting, its default, unit and bounds.")]
    Check {
        /// The file
        file: PathBuf,
    },
}

fn volume_name(name: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if (1..=64).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(name.to_owned());
    }
    Err("a volume's name is 1 to 64 letters, digits, \"-\" or \"_\"".to_owned())
}

fn expected_head(text: &str) -> Result<(u64, [u8; 16]), String> {
    let parts = text.split_once(':').and_then(|(sequence, commit)| {
        let commit = axiomfs_repository::ids::CommitId::from_hex(commit)?;
        Some((sequence.parse().ok()?, commit.0))
    });
    parts.ok_or_else(|| "a head is SEQUENCE:COMMIT, a number and 32 hex digits, as `axiomfs sync` prints it".to_owned())
}

fn kdf_memory(text: &str) -> Result<u64, String> {
    match axiomfs_config::parse_bytes(text) {
        Some(bytes) if (64 << 20..=2 << 30).contains(&bytes) => Ok(bytes),
        _ => Err("give a size from 64MiB to 2GiB".to_owned()),
    }
}

#[cfg(test)]
mod tests;
