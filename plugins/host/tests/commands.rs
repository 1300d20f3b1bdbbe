//! The grammar of control commands.

use axiomfs_host::{
    ChainCommand, Command, Matcher, OnError, PluginCommand, Position, RouteCommand, StepSpec, SyncCommand,
    parse_command,
};
use proptest::prelude::*;

fn chain(text: &str) -> ChainCommand {
    match parse_command(text).unwrap_or_else(|error| panic!("{text:?}: {error}")) {
        Command::Chain(command) => command,
        other => panic!("{text:?} gives {other:?}"),
    }
}

fn zstd(level: i32) -> StepSpec {
    StepSpec::new("zstd").with("level", level)
}

#[test]
fn chains_are_shown_set_and_edited() {
    let (name, confirm) = ("default".to_owned(), None);
    let aes = StepSpec::new("aes-256-gcm");
    assert_eq!(chain("chain show"), ChainCommand::Show { name: None });
    assert_eq!(chain(" chain\tshow  default\n"), ChainCommand::Show { name: Some(name.clone()) });
    for text in [
        "chain set default zstd(level=9)|aes-256-gcm",
        "chain set default zstd(level=9) | aes-256-gcm\n",
        "chain set default zstd( level=9 )| aes-256-gcm",
    ] {
        let want = ChainCommand::Set { name: name.clone(), steps: vec![zstd(9), aes.clone()], confirm: None };
        assert_eq!(chain(text), want, "{text}");
    }
    let steps =
        vec![StepSpec::new("a").with("x", "1").with("y", "p/q:r").on_error(OnError::Fallback("default".into()))];
    let want = ChainCommand::Set { name: "b_2".into(), steps, confirm: Some("ab12".into()) };
    assert_eq!(chain("chain set b_2 a(x=1,on_error=fallback:default,y=p/q:r) confirm=ab12"), want);
    let add = |position| ChainCommand::Add { name: name.clone(), step: zstd(3), position };
    assert_eq!(chain("chain add default zstd(level=3)"), add(None));
    let before = Position::Before("aes-256-gcm".into());
    assert_eq!(chain("chain add default zstd(level=3) before aes-256-gcm"), add(Some(before)));
    assert_eq!(chain("chain add default zstd(level=3) after x"), add(Some(Position::After("x".into()))));
    let plugin = "zstd".to_owned();
    assert_eq!(chain("chain remove default zstd"), ChainCommand::Remove { name: name.clone(), plugin, confirm });
    assert_eq!(chain("chain test default"), ChainCommand::Test { name });
}

#[test]
fn the_short_form_sets_parameters() {
    let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    let want = ChainCommand::Configure { chain: None, plugin: "zstd".into(), params: vec![pair("level", "-7")] };
    assert_eq!(chain("set zstd level=-7"), want);
    let params = vec![pair("level", "9"), pair("on_error", "skip")];
    let want = ChainCommand::Configure { chain: Some("archive".into()), plugin: "zstd".into(), params };
    assert_eq!(chain("set archive/zstd level=9 on_error=skip"), want);
}

#[test]
fn all_other_commands() {
    let path = |p: &str| Command::Route(RouteCommand::Explain(p.into()));
    for (text, want) in [
        ("plugin list", Command::Plugin(PluginCommand::List)),
        ("plugin load zstd", Command::Plugin(PluginCommand::Load("zstd".into()))),
        ("plugin unload zstd", Command::Plugin(PluginCommand::Unload("zstd".into()))),
        ("route list", Command::Route(RouteCommand::List)),
        ("route explain /logs/a", path("/logs/a")),
        ("route explain  my file (1) | explain.txt", path("my file (1) | explain.txt")),
        (
            "route add match *.log archive",
            Command::Route(RouteCommand::Add {
                matcher: Matcher::Match("*.log".into()),
                chain: "archive".into(),
                first: false,
            }),
        ),
        (
            "route add under /logs archive first",
            Command::Route(RouteCommand::Add {
                matcher: Matcher::Under("/logs".into()),
                chain: "archive".into(),
                first: true,
            }),
        ),
        ("route remove 2", Command::Route(RouteCommand::Remove { number: 2, confirm: None })),
        (
            "chain new plain aes-256-gcm",
            Command::Chain(ChainCommand::New { name: "plain".into(), steps: vec![StepSpec::new("aes-256-gcm")] }),
        ),
        ("key status", Command::KeyStatus),
        ("key rotate", Command::KeyRotate { compromised: false, confirm: None }),
        ("key rotate compromised confirm=1", Command::KeyRotate { compromised: true, confirm: Some("1".into()) }),
        ("store status", Command::StoreStatus),
        ("reload", Command::Reload { confirm: None }),
        ("reload confirm=aa", Command::Reload { confirm: Some("aa".into()) }),
        ("sync", Command::Sync(SyncCommand::Whole)),
        ("sync begin", Command::Sync(SyncCommand::Begin)),
        ("sync wait 17", Command::Sync(SyncCommand::Wait(17))),
        ("advise", Command::Advise),
        ("audit verify", Command::AuditVerify),
    ] {
        assert_eq!(parse_command(text).unwrap_or_else(|error| panic!("{text:?}: {error}")), want, "{text}");
    }
}

#[test]
fn mistakes_are_named() {
    for (text, word) in [
        ("", "a command"),
        ("  \n", "a command"),
        ("frobnicate", "frobnicate"),
        ("chain", "show"),
        ("chain frob", "frob"),
        ("chain set", "chain's name"),
        ("chain set default", "a step"),
        ("chain set default |||", "\"|\""),
        ("chain set default a|", "a step"),
        ("chain set default |a", "\"|\""),
        ("chain set default a b", "\"b\""),
        ("chain set default zstd(((", "do not match"),
        ("chain set default zstd(level=3", "not closed"),
        ("chain set default zstd)", "do not match"),
        ("chain set default zstd(level=3)x", "follow the parenthesis"),
        ("chain set default zstd(level)", "key=value"),
        ("chain set default zstd(level=)", "key=value"),
        ("chain set default zstd(=3)", "key=value"),
        ("chain set default zstd(level=3,level=4)", "twice"),
        ("chain set default zstd(level=3,)", "key=value"),
        ("chain set default zstd(on_error=retry)", "on_error"),
        ("chain set DEFAULT zstd", "DEFAULT"),
        ("chain set ../x zstd", "../x"),
        ("chain set default Zstd", "Zstd"),
        ("chain set default zstd confirm=", "token"),
        ("chain set default zstd confirm=a confirm=b", "confirm=b"),
        ("chain add default zstd beside x", "beside"),
        ("chain add default zstd before", "plugin's id"),
        ("chain remove default", "plugin's id"),
        ("chain remove default zstd too", "too"),
        ("chain test", "chain's name"),
        ("set", "plugin's id"),
        ("set zstd", "level=9"),
        ("set zstd level", "key=value"),
        ("set zstd level=9 level=10", "twice"),
        ("plugin", "list"),
        ("plugin frob", "frob"),
        ("plugin load", "plugin's id"),
        ("plugin load a/../b", "a/../b"),
        ("route", "list"),
        ("route explain", "path"),
        ("route explain   ", "path"),
        ("route list x", "\"x\""),
        ("route add", "under or match"),
        ("route add like *.x y", "like"),
        ("route add match *.x", "chain's name"),
        ("route add match *.x y last", "last"),
        ("route remove", "number"),
        ("route remove 0", "number"),
        ("route remove -1", "number"),
        ("chain new", "chain's name"),
        ("chain new plain", "a step"),
        ("key", "status"),
        ("key rotate now", "now"),
        ("store", "status"),
        ("store x", "\"x\""),
        ("audit", "verify"),
        ("sync now", "now"),
        ("sync wait", "number"),
        ("sync wait soon", "soon"),
        ("sync begin now", "now"),
        ("reload confirm=../..", "token"),
        ("sync\nsync", "control characters"),
        ("sync\0", "control characters"),
    ] {
        let error = parse_command(text).expect_err(text);
        assert_eq!((error.code, error.errno_name), ("SYNTAX", "EINVAL"), "{text}");
        assert!(format!("{} {}", error.msg, error.hint).contains(word), "{text:?}: {error}, {}", error.hint);
    }
    let error = parse_command(&"x".repeat(4097)).expect_err("too long");
    assert!(error.msg.contains("4096"), "{error}");
    let many = format!("chain set default {}", vec!["a"; 17].join("|"));
    assert!(parse_command(&many).expect_err("too many").msg.contains("16"));
}

/// Any step that can be asked for, from its parts.
fn step() -> impl Strategy<Value = StepSpec> {
    let params = prop::collection::btree_map("[a-z][a-z0-9_]{0,8}", "[A-Za-z0-9.:/_+-]{1,8}", 0..4);
    let on_error =
        prop_oneof![Just(OnError::Fail), Just(OnError::Skip), "[a-z0-9_-]{1,32}".prop_map(OnError::Fallback),];
    ("[a-z0-9_-]{1,20}", params, on_error).prop_map(|(plugin, params, on_error)| StepSpec {
        plugin,
        params: params.into_iter().filter(|(key, _)| key != "on_error").collect(),
        on_error,
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(steps in prop::collection::vec(step(), 1..6)) {
        let spec = axiomfs_host::ChainSpec::new("default", steps);
        let text = format!("chain set {} {spec}", spec.name);
        prop_assert_eq!(chain(&text), ChainCommand::Set { name: spec.name, steps: spec.steps, confirm: None });
    }

    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}") {
        if let Err(error) = parse_command(&text) {
            prop_assert_eq!(error.errno_name, "EINVAL");
        }
    }

    #[test]
    fn any_words_of_the_grammar_are_answered(
        words in prop::collection::vec(prop::sample::select(vec![
            "chain", "set", "add", "remove", "show", "test", "default", "zstd", "zstd(level=3)", "(", ")", "|", "=", ",",
            "before", "after", "plugin", "load", "route", "explain", "key", "rotate", "confirm=1", "level=3", "/", "\n",
        ]), 0..12),
        glue in prop::sample::select(vec!["", " ", "  "]),
    ) {
        if let Err(error) = parse_command(&words.join(glue)) {
            prop_assert_eq!(error.errno_name, "EINVAL");
        }
    }
}
