//! Commands that nobody would write: none panics, and none that is refused changes anything.

mod plugins;

use axiomfs_host::{
    ChainCommand, ChainSpec, Command, Host, Limits, Matcher, PluginCommand, Reply, Route, RouteCommand, RouteTable,
    StepSpec, parse_command,
};
use plugins::{Standing, registry, seal, spec, zstd};
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
    let before = Standing::of(host);
    let generation = host.generation();
    let Some(reply) = host.execute(&command) else { return };
    match reply {
        Err(error) => {
            before.assert_same(host, text);
            assert!(!error.msg.is_empty() && error.errno_name.starts_with('E'), "{text}: {error:?}");
        }
        Ok(reply) => applied(host, text, &command, &reply, generation, &before),
    }
    for spec in host.chain_specs() {
        assert_eq!(spec.steps.last().map(|step| step.plugin.as_str()), Some("aes-256-gcm"), "{text}: {spec}");
    }
}

/// One command is one change, whole: what it asked for stands there, and nothing else has moved.
fn applied(host: &Host, text: &str, command: &Command, reply: &Reply, generation: u64, before: &Standing) {
    let chain = match (command, reply) {
        (Command::Chain(_), Reply::Swapped { generation: told, chain, .. }) => {
            assert_eq!((*told, host.generation()), (generation + 1, generation + 1), "{text}");
            chain
        }
        (Command::Route(RouteCommand::Add { .. } | RouteCommand::Remove { .. }), Reply::Routes(routes)) => {
            assert_eq!(host.generation(), generation + 1, "{text}");
            assert!(host.routes().routes().eq(routes), "{text}: the routes that were told are in force");
            return;
        }
        (Command::Plugin(PluginCommand::Load(id) | PluginCommand::Unload(id)), Reply::Plugin { plugin, .. }) => {
            let load = matches!(command, Command::Plugin(PluginCommand::Load(_)));
            let stays = plugin.kind == axiomfs_api::Kind::Seal;
            assert_eq!(
                (plugin.id, plugin.loaded, host.generation()),
                (id.as_str(), load || stays, generation),
                "{text}"
            );
            return;
        }
        _ => return before.assert_same(host, text),
    };
    let now = host.chain_specs();
    let spec = now.iter().find(|spec| spec.name == chain.name).expect("the chain that was told");
    assert_eq!(spec.to_string(), chain.steps, "{text}: the chain that was told is in force");
    let others = |specs: &[ChainSpec]| specs.iter().filter(|s| s.name != chain.name).cloned().collect::<Vec<_>>();
    assert_eq!(others(&now), others(&before.chains), "{text}: no other chain has changed");
    let ids = |steps: &[StepSpec]| steps.iter().map(|step| step.plugin.clone()).collect::<Vec<_>>();
    let old =
        before.chains.iter().find(|spec| spec.name == chain.name).map(|spec| ids(&spec.steps)).unwrap_or_default();
    match command {
        Command::Chain(ChainCommand::Set { steps, .. } | ChainCommand::New { steps, .. }) => {
            assert_eq!(ids(&spec.steps), ids(steps), "{text}");
            for (step, asked) in spec.steps.iter().zip(steps) {
                assert_eq!(step.on_error, asked.on_error, "{text}");
                assert!(has_params(step, &asked.params), "{text}: {spec}");
            }
        }
        Command::Chain(ChainCommand::Add { step, .. }) => {
            let now = ids(&spec.steps);
            assert!(now.contains(&step.plugin) && now.len() == old.len() + 1, "{text}: {spec}");
        }
        Command::Chain(ChainCommand::Remove { plugin, .. }) => {
            assert_eq!(ids(&spec.steps), old.into_iter().filter(|id| id != plugin).collect::<Vec<_>>(), "{text}");
        }
        Command::Chain(ChainCommand::Configure { plugin, params, .. }) => {
            let step = spec.steps.iter().find(|step| step.plugin == *plugin).expect("its step");
            let params: Vec<_> = params.iter().filter(|(key, _)| key != "on_error").cloned().collect();
            assert!(ids(&spec.steps) == old && has_params(step, &params), "{text}: {spec}");
        }
        _ => {}
    }
}

/// Whether the step has each of `params`; one that is set to what it is without may not be shown.
fn has_params(step: &StepSpec, params: &[(String, String)]) -> bool {
    params.iter().all(|(key, value)| value == "off" || step.params.iter().any(|(k, v)| k == key && v == value))
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
