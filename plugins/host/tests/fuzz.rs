//! Commands that nobody would write: none panics, and none that is refused changes anything.

mod plugins;

use axiomfs_host::{Host, Limits, Matcher, Route, RouteTable, parse_command};
use plugins::{registry, seal, spec, zstd};
use proptest::prelude::*;

fn standard() -> Host {
    let registry = registry().transform(axiomfs_compression_lz4::Factory).transform(axiomfs_padding_padme::Factory);
    let chains = vec![
        spec("default", vec![zstd(3), seal()]),
        spec("media", vec![seal()]),
        spec("archive", vec![zstd(5), seal()]),
    ];
    let route = Route { matcher: Matcher::Match("*.mp4".into()), chain: "media".into(), allow_unencrypted: false };
    let routes = RouteTable::new(vec![route]).expect("a route");
    Host::new(registry, chains, routes, Limits::default(), vec!["encryption".into()]).expect("a host")
}

/// Runs what is a command; all that must hold holds after it.
fn run(host: &Host, text: &str) {
    let Ok(command) = parse_command(text) else { return };
    let (before, generation, loaded) = (host.chain_specs(), host.generation(), loaded(host));
    let Some(reply) = host.execute(&command) else { return };
    match reply {
        Err(error) => {
            assert_eq!((host.chain_specs(), host.generation()), (before, generation), "{text}: refused, and changed");
            assert_eq!(self::loaded(host), loaded, "{text}: refused, and changed");
            assert!(!error.msg.is_empty() && error.errno_name.starts_with('E'), "{text}: {error:?}");
        }
        Ok(_) => assert!(host.generation() <= generation + 1, "{text}: one command is one change"),
    }
    for spec in host.chain_specs() {
        assert_eq!(spec.steps.last().map(|step| step.plugin.as_str()), Some("aes-256-gcm"), "{text}: {spec}");
    }
}

fn loaded(host: &Host) -> Vec<bool> {
    host.plugins().iter().map(|plugin| plugin.loaded).collect()
}

const WORDS: [&str; 41] = [
    "chain",
    "show",
    "set",
    "add",
    "remove",
    "test",
    "plugin",
    "list",
    "load",
    "unload",
    "route",
    "explain",
    "before",
    "after",
    "new",
    "match",
    "under",
    "*.mp4",
    "/logs",
    "default",
    "media",
    "archive",
    "zstd",
    "lz4",
    "padme",
    "xor",
    "pad",
    "aes-256-gcm",
    "|",
    "zstd(level=9)",
    "zstd(level=99)",
    "zstd(adapt=1..9)",
    "lz4(on_error=skip)",
    "zstd(on_error=fallback:media)",
    "level=4",
    "adapt=off",
    "on_error=fallback:default",
    "confirm=00",
    "media/zstd",
    "archive/zstd",
    "nonsense",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64), ..ProptestConfig::default() })]

    /// Words of the grammar in any order; most are refused, some change chains, one after the other on one host.
    #[test]
    fn words_of_the_grammar_in_any_order(lines in prop::collection::vec(prop::collection::vec(0..WORDS.len(), 1..9), 40)) {
        let host = standard();
        for line in lines {
            run(&host, &line.into_iter().map(|word| WORDS[word]).collect::<Vec<_>>().join(" "));
        }
    }

    /// Right beginnings with any continuation reach further than any bytes.
    #[test]
    fn right_beginnings_with_any_words_behind(
        lines in prop::collection::vec((0usize..6, prop::collection::vec(0..WORDS.len(), 1..6)), 40)
    ) {
        const BEGINNINGS: [&str; 6] =
            ["chain set default", "chain add default", "chain remove archive", "set", "plugin unload", "chain set media"];
        let host = standard();
        for (beginning, words) in lines {
            let words: Vec<&str> = words.into_iter().map(|word| WORDS[word]).collect();
            for joint in [" ", " | "] {
                run(&host, &format!("{} {}", BEGINNINGS[beginning], words.join(joint)));
            }
        }
    }

    #[test]
    fn arbitrary_text(lines in prop::collection::vec(".{0,80}", 50)) {
        let host = standard();
        for line in lines {
            run(&host, &line);
        }
        prop_assert_eq!(host.generation(), 1);
    }
}
