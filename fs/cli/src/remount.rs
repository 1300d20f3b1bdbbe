//! The command that makes a mount once more, as advice gives it.

use std::path::Path;

use crate::args::MountArgs;
use crate::output::quoted;
use crate::places::{self, Places};

/// The words of the command, but for the settings file.
pub struct Remount {
    words: Vec<String>,
}

impl Remount {
    /// For a mount of `store` on `mountpoint` that was made with `args`: what it may do and whom it lets in stays as it is. Not what was
    /// asked for that one time, as a takeover or a head to expect, nor a passphrase that came by a descriptor, nor `-f`: who follows advice goes on.
    pub fn new(args: &MountArgs, store: &str, mountpoint: &Path, places: &Places) -> Self {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut words = vec!["axiomfs".to_owned(), "mount".to_owned(), quoted(store), quoted(&text(mountpoint))];
        let mut option = |name: &str, value: Option<String>| {
            words.push(name.to_owned());
            words.extend(value.map(|value| quoted(&value)));
        };
        option("--state", Some(text(&places.state)));
        option("--cache", Some(text(&places.cache)));
        option("--volume", Some(args.repository.volume.clone()));
        if args.read_only {
            option("--read-only", None);
        }
        if !args.options.is_empty() {
            option("-o", Some(args.options.join(",")));
        }
        if let Some(address) = args.metrics {
            option("--metrics", Some(address.to_string()));
        }
        if args.repository.unsafe_single_writer {
            option("--unsafe-single-writer", None);
        }
        if let Some(file) = &args.repository.passphrase.passphrase_file {
            // The working directory may be another one then.
            let file = places::absolute(file).unwrap_or_else(|_| file.clone());
            option("--passphrase-file", Some(text(&file)));
        }
        Self { words }
    }

    /// The command with the settings of `file`.
    pub fn with_settings(&self, file: &str) -> String {
        format!("{} --config {}", self.words.join(" "), quoted(file))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Verb};

    fn command(line: &str) -> String {
        let Verb::Mount(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().verb else { panic!("not mount") };
        let places = Places { state: "/s".into(), cache: "/c".into() };
        Remount::new(&args, "s3://b/p?region=x", Path::new("/my mnt"), &places).with_settings("/my file")
    }

    #[test]
    fn a_mount_is_made_again_as_it_was() {
        let plain = "axiomfs mount 's3://b/p?region=x' '/my mnt' --state /s --cache /c --volume main";
        assert_eq!(command("axiomfs mount s m --takeover --accept-rollback"), format!("{plain} --config '/my file'"));
        let given =
            "--read-only -o allow_other,ro --metrics 127.0.0.1:9184 --unsafe-single-writer --passphrase-file /p";
        let head = "--expect-head 7:000102030405060708090a0b0c0d0e0f";
        let again = command(&format!("axiomfs mount s m {given} {head} --config c -f"));
        assert_eq!(again, format!("{plain} {given} --config '/my file'"));
    }
}
