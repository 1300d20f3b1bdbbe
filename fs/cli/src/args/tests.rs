use clap::CommandFactory;
use clap::error::ErrorKind;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_and_its_options_are_read() {
    let Verb::Mount(mount) = parse(
        "axiomfs mount /s /m --state /a --cache /b --config c.yaml --volume two --read-only -f -o allow_other,rw --passphrase-fd 3",
    )
    .unwrap()
    .verb
    else {
        panic!("not mount")
    };
    assert_eq!((mount.store.as_str(), mount.mountpoint.to_str()), ("/s", Some("/m")));
    assert_eq!(mount.repository.state, Some("/a".into()));
    assert_eq!(mount.repository.cache, Some("/b".into()));
    assert_eq!(mount.repository.config, Some("c.yaml".into()));
    assert_eq!(mount.repository.volume, "two");
    assert_eq!(mount.repository.passphrase.passphrase_fd, Some(3));
    assert!(mount.is_read_only() && mount.foreground && mount.allow_other());

    let cli = parse("axiomfs snapshot rename /m a b --json").unwrap();
    assert!(cli.json);
    assert!(matches!(cli.verb, Verb::Snapshot(SnapshotVerb::Rename { from, to, .. }) if from == "a" && to == "b"));
    for line in [
        "axiomfs init /s",
        "axiomfs --json umount /m --now",
        "axiomfs sync /m",
        "axiomfs status /m --json",
        "axiomfs snapshot create /m x",
        "axiomfs snapshot list /m",
        "axiomfs snapshot delete /m x",
        "axiomfs config check f",
    ] {
        assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
    }
}

#[test]
fn a_control_command_may_begin_with_anything() {
    for (line, json) in
        [("axiomfs ctl /m set zstd level=-3 --odd", false), ("axiomfs ctl /m set zstd level=-3 --odd --json", true)]
    {
        let cli = parse(line).unwrap();
        assert_eq!(cli.wants_json(), json);
        let Verb::Ctl(ctl) = cli.verb else { panic!("not ctl") };
        assert_eq!(ctl.line(), "set zstd level=-3 --odd");
    }
}

#[test]
fn wrong_use_ends_with_2_and_help_with_0() {
    for (line, kind) in [
        ("axiomfs mount /s", ErrorKind::MissingRequiredArgument),
        ("axiomfs frobnicate", ErrorKind::InvalidSubcommand),
        ("axiomfs mount /s /m -o dev", ErrorKind::InvalidValue),
        ("axiomfs mount /s /m --volume a/b", ErrorKind::ValueValidation),
        ("axiomfs mount /s /m --passphrase x", ErrorKind::UnknownArgument),
        ("axiomfs init /s --passphrase-file f --passphrase-fd 3", ErrorKind::ArgumentConflict),
        ("axiomfs init /s --kdf-memory 1MiB", ErrorKind::ValueValidation),
        ("axiomfs ctl /m", ErrorKind::MissingRequiredArgument),
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!((error.kind(), error.exit_code()), (kind, 2), "{line}");
    }
    for line in ["axiomfs --help", "axiomfs mount --help", "axiomfs --version"] {
        assert_eq!(parse(line).expect_err(line).exit_code(), 0, "{line}");
    }
}

#[test]
fn help_teaches_with_examples() {
    let mut command = Cli::command();
    command.build();
    for verb in command.get_subcommands_mut().filter(|verb| verb.get_name() != "config") {
        let help = verb.render_long_help().to_string();
        assert!(help.contains("Example"), "{} has no example", verb.get_name());
    }
}
