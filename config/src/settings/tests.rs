use super::*;
use crate::pipeline::{
    ChainSettings, OnError, OnStoreError, Pipeline, RouteSettings, Selector, StepSettings, Uploads, Verify,
};

const COMMENTED: &str = include_str!("../../axiomfs.yaml");
const CHAINS: &str = include_str!("../../chains.yaml");

/// The message for `text`, which must be refused.
fn refused(text: &str) -> String {
    match Settings::parse(text) {
        Ok(settings) => panic!("taken: {text}\n{settings:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_commented_file_says_the_defaults() {
    assert_eq!(Settings::parse(COMMENTED).unwrap(), Settings::default());
}

/// Each setting's line is preceded by a comment with its bounds; a file without the setting's key would pass the test above.
#[test]
fn the_commented_file_names_every_setting_with_its_bounds() {
    let bytes = |b: Bounds<u64>| format!("{} to {}", format_bytes(b.min), format_bytes(b.max));
    let time = |b: Bounds<Duration>| format!("{} to {}", crate::format_duration(b.min), crate::format_duration(b.max));
    for (key, bounds) in [
        ("memory: 256MiB", bytes(MEMORY)),
        ("timeout: 30s", time(TIMEOUT)),
        ("  max: 4GiB", bytes(LOG_MAX)),
        ("  segment: 256MiB", bytes(LOG_SEGMENT)),
        ("  max: 8GiB", bytes(STAGING_MAX)),
        ("  interval: 5s", time(CHECKPOINT_INTERVAL)),
        ("  bytes: 96MiB", bytes(CHECKPOINT_BYTES)),
        ("  interval: 30s", time(COMMIT_INTERVAL)),
        ("  bytes: 64MiB", bytes(COMMIT_BYTES)),
        ("  max_in_flight: 32", "1 to 32".to_owned()),
        ("  plugin_memory: 10MiB", "1MiB to 1GiB".to_owned()),
        ("  frame_timeout: 5s", "100ms to 10m".to_owned()),
        ("durability: local", "local or remote".to_owned()),
        ("  encrypt: true", "true or false".to_owned()),
    ] {
        let lines: Vec<&str> = COMMENTED.lines().collect();
        let at = lines.iter().position(|line| *line == key).unwrap_or_else(|| panic!("{key:?} is not in the file"));
        let mut comment: Vec<&str> =
            lines[..at].iter().rev().take_while(|l| l.trim_start().starts_with('#')).copied().collect();
        comment.reverse();
        assert!(comment.join(" ").contains(&bounds), "the comment of {key:?} does not say {bounds:?}: {comment:?}");
    }
}

/// The schema tells which keys it has when it is asked for one that it hasn't: each stands in the commented file.
#[test]
fn the_commented_file_has_every_key_of_the_schema() {
    const NONE: &str = "zzzzzzzzzzzz";
    let mut seen = 0;
    for group in [
        "",
        "log",
        "staging",
        "checkpoint",
        "commit",
        "cache",
        "s3",
        "s3.storage_class",
        "s3.bandwidth",
        "limits",
        "policies",
        "policies.rotate",
        "policies.verify",
        "store",
        "store.on_error",
        "store.on_error.retry",
        "store.uploads",
    ] {
        let path: Vec<&str> = group.split('.').filter(|name| !name.is_empty()).collect();
        let inner = path.iter().rev().fold(format!("{NONE}: 1"), |inside, name| format!("{name}: {{{inside}}}"));
        let message = refused(&format!("version: 1\n{inner}\n"));
        let keys = message.rsplit_once("there are ").unwrap_or_else(|| panic!("{group}: {message}")).1;
        for key in keys.split(", ") {
            seen += 1;
            let named = COMMENTED.lines().filter(|line| !line.trim_start().starts_with('#'));
            let mut places = named.flat_map(|line| line.split([' ', '{', ',']));
            assert!(places.any(|word| word == format!("{key}:")), "{group}: {key} is not in the commented file");
        }
    }
    assert!(seen > 35, "{seen} keys");
}

#[test]
fn every_value_is_read() {
    let text = "version: 1\nmemory: 128MiB\ntimeout: 7s\ndurability: remote\nlog: {max: 128MiB, segment: 8MiB}\n\
        staging: {max: 512MiB}\ncheckpoint: {interval: 200ms, bytes: 1MiB}\ncommit: {interval: 2m, bytes: 1GiB}\n\
        cache: {encrypt: false}\nrequire: []\nlimits: {max_in_flight: 4, plugin_memory: 64MiB, frame_timeout: 1s}\n\
        chains:\n  default: [{plugin: aes-256-gcm}]\n  b: [{plugin: zstd, level: -7, adapt: [1, 9], x: y, \
        on_error: {fallback: default}}, {plugin: aes-256-gcm}]\nroutes:\n  - {under: /logs/, chain: b, allow_unencrypted: true}\n\
        \x20 - {match: \"*.jpg\", chain: default}\n\
        policies: {rotate: {age: 1d, bytes: 1GiB}, verify: {builtin: always, other: always}}\n\
        store: {on_error: fail, uploads: {adapt: [1, 4]}}\n";
    let read = Settings::parse(text).unwrap();
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    let seal = || StepSettings { plugin: "aes-256-gcm".into(), params: Vec::new(), on_error: OnError::Fail };
    let zstd = StepSettings {
        plugin: "zstd".into(),
        params: vec![pair("level", "-7"), pair("adapt", "1..9"), pair("x", "y")],
        on_error: OnError::Fallback("default".into()),
    };
    assert_eq!(read.memory, 134_217_728);
    assert_eq!(read.timeout, Duration::from_secs(7));
    assert_eq!(read.durability, Durability::Remote);
    assert_eq!(read.log, LogSettings { max: 134_217_728, segment: 8_388_608 });
    assert_eq!(read.staging.max, 536_870_912);
    assert_eq!(read.checkpoint, CheckpointSettings { interval: Duration::from_millis(200), bytes: 1_048_576 });
    assert_eq!(read.commit, CommitSettings { interval: Duration::from_secs(120), bytes: 1_073_741_824 });
    assert!(!read.cache.encrypt);
    assert_eq!(read.pipeline.require, Vec::<String>::new());
    assert_eq!(read.pipeline.limits.max_in_flight, 4);
    assert_eq!(read.pipeline.chains[0], ChainSettings { name: "default".into(), steps: vec![seal()] });
    assert_eq!(read.pipeline.chains[1], ChainSettings { name: "b".into(), steps: vec![zstd, seal()] });
    assert_eq!(
        read.pipeline.routes,
        [
            RouteSettings { selector: Selector::Under("/logs".into()), chain: "b".into(), allow_unencrypted: true },
            RouteSettings {
                selector: Selector::Match("*.jpg".into()),
                chain: "default".into(),
                allow_unencrypted: false
            },
        ]
    );
    assert_eq!(read.pipeline.policies.rotate.age, Duration::from_secs(86_400));
    assert_eq!(read.pipeline.policies.verify_builtin, Verify::Always);
    let sampled = refused("version: 1\npolicies: {verify: {other: sample/3}}\n");
    assert!(sampled.contains("policies.verify.other") && sampled.contains("write always"), "{sampled}");
    assert_eq!(read.pipeline.store.on_error, OnStoreError::Fail);
    assert_eq!(read.pipeline.store.uploads, Uploads { min: 1, max: 4 });
}

#[test]
fn mistakes_are_named_with_line_key_and_remedy() {
    for (text, expected) in [
        ("", "Line 1: version is missing; write \"version: 1\" as the first line"),
        ("- a\n", "Line 1: version is missing; write \"version: 1\" as the first line"),
        ("memory: 1GiB\n", "Line 1: version is missing; write \"version: 1\" as the first line"),
        (
            "# mine\nversion: 2\nfuture: x\n",
            "Line 2: version 2 is not known here, only 1; use a newer axiomfs or \"version: 1\"",
        ),
        ("version: 1\nmemroy: 1GiB\n", "Line 2: there is no setting memroy; did you mean memory?"),
        ("version: 1\nlog:\n  maximum: 1GiB\n", "Line 3: there is no setting log.maximum; there are max, segment"),
        ("version: 1\nmemory: 1MiB\n", "Line 2: memory is 1MiB; it must be from 64MiB to 1TiB"),
        (
            "version: 1\n\nmemory: lots\n",
            "Line 3: memory is \"lots\"; write a size, as \"256MiB\" (units: B, KiB, MiB, GiB, TiB)",
        ),
        ("version: 1\ntimeout: 30\n", "Line 2: timeout is 30; write a time, as \"5s\" (units: ms, s, m, h, d)"),
        ("version: 1\ncache:\n  encrypt: maybe\n", "Line 3: cache.encrypt is \"maybe\"; write true or false"),
        ("version: 1\ndurability: cloud\n", "Line 2: durability is \"cloud\"; write local or remote"),
        (
            "version: 1\nlog:\n  max: 64MiB\n  segment: 32MiB\n",
            "Line 4: log.segment is 32MiB, but log.max is 64MiB; a segment must be a quarter of log.max at most, here 16MiB",
        ),
        (
            "version: 1\nchains: {fast: [{plugin: zstd}]}\n",
            "Line 2: chains has no chain default; name one default: it takes all that no route sends elsewhere",
        ),
        (
            "version: 1\nchains:\n  default:\n    - {plugin: zstd, on_error: explode}\n",
            "Line 4: chains.default[0].on_error is \"explode\"; write fail, skip or {fallback: CHAIN}",
        ),
        (
            "version: 1\nchains:\n  default:\n    - level: 3\n",
            "Line 4: chains.default[0].plugin is missing; write \"plugin: zstd\"",
        ),
        (
            "version: 1\nchains:\n  default: [{plugin: a, on_error: {fallback: b}}]\n  b: [{plugin: a, on_error: {fallback: default}}]\n",
            "Line 3: chains.default falls back to itself, directly or through others; break the circle of fallbacks",
        ),
        (
            "version: 1\nroutes:\n  - {under: /a, chain: defualt}\n",
            "Line 3: routes[0].chain names the chain \"defualt\", which is not there; did you mean default?",
        ),
        (
            "version: 1\nroutes:\n  - {match: '*', chain: default, allow_unencrypted: true}\n",
            "Line 3: routes[0] leaves out encryption by a glob; only a whole directory can be exempted: use \"under\", or leave allow_unencrypted out",
        ),
        (
            "version: 1\nroutes:\n  - {under: /, chain: default, allow_unencrypted: true}\n",
            "Line 3: routes[0] leaves out encryption for everything; name a directory, as \"/public\"",
        ),
        (
            "version: 1\nroutes:\n  - {under: /a//, chain: default}\n",
            "Line 3: routes[0].under is \"/a//\"; write a directory of live, as \"/logs\", or \"/\" for everything",
        ),
        (
            "version: 1\nroutes: [{chain: default}]\n",
            "Line 2: routes[0] needs under or match, and not both; write e.g. \"{under: /logs, chain: default}\"",
        ),
        ("version: 1\nlimits: {max_in_flight: 33}\n", "Line 2: limits.max_in_flight is 33; it must be from 1 to 32"),
        ("version: 1\nlimits: {max_in_flight: -1}\n", "Line 2: limits.max_in_flight is -1; it must be from 1 to 32"),
        (
            "version: 1\nstore: {uploads: {adapt: [9, 2]}}\n",
            "Line 2: store.uploads.adapt begins after its end; write the smaller number first",
        ),
        (
            "version: 1\nstore: {uploads: {adapt: [2, 33]}}\n",
            "Line 2: store.uploads.adapt[1] is 33; it must be from 1 to 32",
        ),
        (
            "version: 1\nstore: {uploads: {adapt: [0, 8]}}\n",
            "Line 2: store.uploads.adapt[0] is 0; it must be from 1 to 32",
        ),
    ] {
        assert_eq!(refused(text), expected, "for {text:?}");
    }
}

#[test]
fn what_is_no_yaml_is_refused_in_one_line_with_its_number() {
    for (text, line) in [("version: 1\nmemory: [1\n", 3), ("version: 1\nlog: {max: 1GiB\n", 3), ("a: b: c\n", 1)] {
        let error = Settings::parse(text).unwrap_err();
        assert!(matches!(error, ConfigError::Syntax { .. }), "{error}");
        assert!(!error.to_string().contains('\n'));
        assert!(error.line().is_some_and(|l| l <= line), "{error} for {text:?}");
    }
    let twice = refused("version: 1\nmemory: 1GiB\nmemory: 2GiB\n");
    assert!(twice.contains("memory") && twice.starts_with("Line "), "{twice}");
}

#[test]
fn what_would_take_the_parser_down_is_refused() {
    assert!(refused(&"x".repeat(300_000)).contains("300000 bytes"));
    assert!(refused(&format!("version: 1\nchains: {}", "[".repeat(10_000))).starts_with("Line "));
    let mut laughs = "version: 1\na: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (from, to) in "abcdefgh".chars().zip("bcdefghi".chars()) {
        laughs.push_str(&format!("{to}: &{to} [{}]\n", vec![format!("*{from}"); 9].join(",")));
    }
    assert!(refused(&laughs).starts_with("Line "));
}

#[test]
fn a_small_log_gets_small_segments() {
    assert_eq!(Settings::parse("version: 1\nlog: {max: 64MiB}\n").unwrap().log.segment, 16 << 20);
}

#[test]
fn the_root_as_a_route_is_everything() {
    let text = "version: 1\nroutes: [{under: /, chain: default}]\n";
    let pipeline = Pipeline::parse(text).unwrap();
    assert_eq!(pipeline.routes[0].selector, Selector::Under("/".into()));
    assert_eq!(Pipeline::parse(&pipeline.render()).unwrap(), pipeline);
}

#[test]
fn an_empty_group_is_the_default() {
    assert_eq!(Settings::parse("version: 1\nlog:\nchains:\nroutes:\n").unwrap(), Settings::default());
}

#[test]
fn chains_are_rendered_so_that_they_read_back() {
    let example = Settings::parse(CHAINS).unwrap().pipeline;
    assert_eq!(example.chains.len(), 3);
    for pipeline in [Pipeline::default(), example] {
        assert_eq!(Pipeline::parse(&pipeline.render()).unwrap(), pipeline, "{}", pipeline.render());
    }
    let step = |value: &str| StepSettings {
        plugin: "p".into(),
        params: vec![("k".into(), value.into())],
        on_error: OnError::Fail,
    };
    for value in [
        "3", "-7", "007", "1..9", "1..", "..", "true", "null", "~", "", "a: b", "# no", "1.0", "1e3", "0x10", "\"q\"",
        "ä\n",
    ] {
        let chains = vec![ChainSettings { name: "default".into(), steps: vec![step(value)] }];
        let pipeline = Pipeline { chains, ..Pipeline::default() };
        assert_eq!(Pipeline::parse(&pipeline.render()).unwrap(), pipeline, "{value:?}: {}", pipeline.render());
    }
}

#[test]
fn chain_yaml_has_no_settings_of_the_mount() {
    let error = Pipeline::parse("version: 1\nmemory: 1GiB\n").unwrap_err().to_string();
    assert_eq!(
        error,
        "Line 2: there is no setting memory; there are version, require, limits, chains, routes, policies, store"
    );
}

#[test]
fn settings_of_a_bucket_are_read_and_checked() {
    let text = "version: 1\ns3:\n  storage_class: {data: STANDARD_IA, metadata: STANDARD}\n  encryption: {kms: my-key}\n  \
        bandwidth: {up: 1MiB, down: 2MiB}\n  ca_bundle: /etc/ca.pem\n";
    let s3 = Settings::parse(text).unwrap().s3;
    assert_eq!((s3.data_class.as_deref(), s3.metadata_class.as_deref()), (Some("STANDARD_IA"), Some("STANDARD")));
    assert_eq!(s3.encryption, crate::S3Encryption::Kms(Some("my-key".to_owned())));
    assert_eq!((s3.up, s3.down), (Some(1 << 20), Some(2 << 20)));
    assert_eq!(s3.ca_bundle.as_deref(), Some(std::path::Path::new("/etc/ca.pem")));
    for (wrong, word) in [
        ("storage_class: {data: GLACIER}", "GLACIER_IR"),
        ("storage_class: {data: cold}", "storage class"),
        ("encryption: aes", "kms"),
        ("bandwidth: {up: 1KiB}", "64KiB"),
        ("ca_bundle: ca.pem", "absolute"),
        ("uploads: 3", "s3.uploads"),
    ] {
        assert!(refused(&format!("version: 1\ns3:\n  {wrong}\n")).contains(word), "{wrong}");
    }
}

#[test]
fn a_mount_keeps_how_it_uses_its_bucket() {
    let narrow = Settings::parse("version: 1\ns3: {bandwidth: {up: 1MiB}}\n").unwrap();
    assert_eq!(Settings::default().fixed_differences(&narrow), ["s3"]);
    assert!(narrow.fixed_differences(&narrow).is_empty());
}
