//! Changing chains while they are in use.

mod plugins;

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use axiomfs_api::Hint;
use axiomfs_api::conformance::Noise;
use axiomfs_host::{
    ChainSpec, ControlError, Host, HostError, Limits, Matcher, OnError, Pressure, Registry, Reply, Route, RouteTable,
    StepSpec, parse_command,
};
use plugins::{Plugin, Standing, Trouble, host, registry, seal, spec, zstd};

fn run(host: &Host, text: &str) -> Result<Reply, ControlError> {
    let command = parse_command(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    host.execute(&command).expect("a command of the host")
}

#[track_caller]
fn steps(host: &Host, text: &str) -> String {
    match run(host, text) {
        Ok(Reply::Swapped { chain, generation, .. }) => {
            assert_eq!(generation, host.generation());
            chain.steps
        }
        other => panic!("{text}: {other:?}"),
    }
}

#[track_caller]
fn refused(host: &Host, text: &str) -> ControlError {
    let before = Standing::of(host);
    let error = run(host, text).expect_err(text);
    before.assert_same(host, text);
    assert!(!error.msg.is_empty() && !error.hint.is_empty(), "{text}: what is wrong, and what to do: {error:?}");
    error
}

fn standard() -> Host {
    let chains = vec![
        spec("default", vec![zstd(3), seal()]),
        spec("media", vec![seal()]),
        spec("archive", vec![zstd(19), seal()]),
    ];
    let require = vec!["encryption".to_owned()];
    Host::new(registry(), chains, RouteTable::default(), Limits::default(), require).expect("a host")
}

#[test]
fn commands_change_chains() {
    let host = standard();
    assert_eq!(steps(&host, "set zstd level=9"), "zstd(level=9)|aes-256-gcm");
    assert_eq!(steps(&host, "chain remove default zstd"), "aes-256-gcm");
    assert_eq!(steps(&host, "chain add default zstd(level=3) before aes-256-gcm"), "zstd(level=3)|aes-256-gcm");
    assert_eq!(steps(&host, "chain add default xor after zstd"), "zstd(level=3)|xor|aes-256-gcm");
    assert_eq!(steps(&host, "chain set default aes-256-gcm"), "aes-256-gcm");
    assert_eq!(steps(&host, "chain add default zstd"), "zstd(level=3)|aes-256-gcm", "before the seal by itself");
    assert_eq!(steps(&host, "chain add default pad"), "zstd(level=3)|pad|aes-256-gcm");
    assert_eq!(steps(&host, "set archive/zstd level=22 on_error=skip"), "zstd(level=22,on_error=skip)|aes-256-gcm");
    let archive = "zstd(level=19,on_error=fallback:default)|aes-256-gcm";
    assert_eq!(steps(&host, &format!("chain set archive {archive}")), archive);
    match run(&host, "chain show") {
        Ok(Reply::Chains { chains, .. }) => {
            let names: Vec<_> = chains.iter().map(|c| (c.name.as_str(), c.steps.as_str())).collect();
            assert_eq!(names[0], ("archive", archive));
            assert_eq!(names[1], ("default", "zstd(level=3)|pad|aes-256-gcm"));
            assert_eq!(names[2], ("media", "aes-256-gcm"));
        }
        other => panic!("{other:?}"),
    }
    let events = host.events_after(0);
    assert_eq!(events.len(), 9);
    assert_eq!(events[1].text, "Chain default is now aes-256-gcm, generation 3");
    assert_eq!(host.events_after(events[7].number), events[8..]);
}

#[test]
fn refusals_change_nothing_and_say_why() {
    let host = standard();
    for (text, errno, code, word) in [
        ("chain show nochain", "ENOENT", "UNKNOWN", "archive, default, media"),
        ("chain set nochain zstd", "ENOENT", "UNKNOWN", "nochain"),
        ("chain remove nochain zstd", "ENOENT", "UNKNOWN", "nochain"),
        ("chain remove media zstd", "ENOENT", "UNKNOWN", "no step zstd"),
        ("chain set default nonsense|aes-256-gcm", "ENOENT", "UNKNOWN", "nonsense"),
        ("chain set default zstd(level=99)|aes-256-gcm", "EINVAL", "PARAMETER", "-7 to 22"),
        ("chain set default zstd(flavour=sweet)|aes-256-gcm", "EINVAL", "PARAMETER", "flavour"),
        ("chain set default aes-256-gcm(x=1)", "EINVAL", "PARAMETER", "x"),
        ("set zstd level=many", "EINVAL", "PARAMETER", "many"),
        ("set nonsense a=1", "ENOENT", "UNKNOWN", "nonsense"),
        ("set xor a=1", "ENOENT", "UNKNOWN", "no step xor"),
        ("chain set default aes-256-gcm|zstd(level=3)", "EINVAL", "ORDER", "the seal is always the last step"),
        ("chain set default pad|zstd|aes-256-gcm", "EINVAL", "ORDER", "zstd must stand before pad"),
        ("chain set default zstd|zstd|aes-256-gcm", "EINVAL", "INVALID", "twice"),
        ("chain add default zstd", "EINVAL", "INVALID", "twice"),
        ("chain add media zstd after aes-256-gcm", "EINVAL", "ORDER", "last step"),
        ("chain set default aes-256-gcm(on_error=skip)", "EINVAL", "INVALID", "seal"),
        ("chain set default xor(on_error=skip)|aes-256-gcm", "EINVAL", "INVALID", "not right without it"),
        ("chain set default zstd(on_error=fallback:default)|aes-256-gcm", "EINVAL", "INVALID", "circle"),
        ("chain remove default aes-256-gcm", "EPERM", "POLICY", "aes-256-gcm"),
        ("chain set default zstd(level=3)", "EPERM", "POLICY", "encryption"),
        ("chain new archive aes-256-gcm", "EINVAL", "INVALID", "archive"),
        ("chain new open zstd", "EPERM", "POLICY", "encryption"),
        ("route add match *.{a archive", "EINVAL", "ROUTE", "unclosed"),
        ("route add under logs archive", "EINVAL", "ROUTE", "from the live root"),
        ("route add match *.a nochain", "EINVAL", "ROUTE", "archive, default, media"),
        ("route remove 1", "ENOENT", "UNKNOWN", "there are 0"),
        ("plugin unload nonsense", "ENOENT", "UNKNOWN", "nonsense"),
        ("plugin unload zstd", "EBUSY", "BUSY", "chain archive has it"),
        ("plugin unload aes-256-gcm", "EBUSY", "BUSY", "seal"),
    ] {
        let error = refused(&host, text);
        assert_eq!((error.errno_name, error.code), (errno, code), "{text}: {error}");
        let all = format!("{} {}", error.msg, error.hint);
        assert!(all.contains(word), "{text}: {all}");
    }
    let error = refused(&host, "chain set default pad|xor|zstd|aes-256-gcm");
    assert!(error.hint.contains("xor | zstd | pad | aes-256-gcm"), "the right order is told: {}", error.hint);
}

#[test]
fn requirements_and_conflicts_name_what_helps() {
    let registry = registry()
        .transform(Plugin::new("needy").with(|d| d.requires = &["compression"]))
        .transform(Plugin::new("lost").with(|d| d.requires = &["magic"]))
        .transform(Plugin::new("egg").with(|d| (d.provides, d.after) = (&["egg"], &["hen"])))
        .transform(Plugin::new("hen").with(|d| (d.provides, d.after) = (&["hen"], &["egg"])))
        .transform(Plugin::new("first").with(|d| d.before = &["xor"]))
        .transform(Plugin::new("wedge").with(|d| (d.before, d.after) = (&["xor"], &["first"])))
        .transform(Plugin::new("fat").with(|d| d.memory = 1 << 30));
    let chains = vec![spec("default", vec![StepSpec::new("xor"), seal()])];
    let host = Host::new(registry, chains, RouteTable::default(), Limits::default(), vec![]).expect("a host");
    let error = refused(&host, "chain add default needy");
    assert_eq!((error.errno_name, error.code), ("EINVAL", "MISSING"));
    assert!(error.msg.contains("compression") && error.hint.contains("zstd"), "{error:?}");
    assert_eq!(steps(&host, "chain set default needy|zstd|xor|aes-256-gcm"), "needy|zstd(level=3)|xor|aes-256-gcm");
    assert!(refused(&host, "chain add default lost").msg.contains("nothing in this build"));
    assert!(refused(&host, "chain set default egg|hen|aes-256-gcm").msg.contains("each must stand before the other"));
    assert_eq!(refused(&host, "chain set default fat|aes-256-gcm").errno_name, "ENOMEM");
    assert_eq!(steps(&host, "chain set default xor|aes-256-gcm"), "xor|aes-256-gcm");
    assert_eq!(steps(&host, "chain add default first"), "first|xor|aes-256-gcm", "each where its rules put it");
    assert_eq!(steps(&host, "chain add default wedge"), "first|wedge|xor|aes-256-gcm");
}

#[test]
fn weakening_needs_the_token() {
    let chains = vec![spec("default", vec![zstd(3), seal()])];
    let host = Host::new(registry(), chains.clone(), RouteTable::default(), Limits::default(), vec![]).expect("a host");
    for text in ["chain remove default aes-256-gcm", "chain set default zstd confirm=0000"] {
        let error = refused(&host, text);
        assert_eq!((error.errno_name, error.code), ("EPERM", "CONFIRM"), "{text}");
        assert!(error.hint.contains("status"), "{error:?}");
    }
    let confirmed = format!("chain remove default aes-256-gcm confirm={}", host.confirm_token());
    assert_eq!(steps(&host, &confirmed), "zstd(level=3)");
    assert_ne!(host.confirm_token(), standard().confirm_token(), "every host has its own");

    let host = standard();
    let relax = |confirm: Option<&str>| {
        let before = Standing::of(&host);
        let done = host.replace(&host.chain_specs(), RouteTable::default(), host.limits(), vec![], confirm);
        done.map(|done| done.generation).inspect_err(|error| before.assert_same(&host, &error.to_string()))
    };
    assert!(matches!(relax(None), Err(HostError::Unconfirmed { .. })));
    assert!(matches!(relax(Some("x")), Err(HostError::Unconfirmed { .. })));
    assert_eq!(host.require(), ["encryption"]);
    assert_eq!(relax(Some(host.confirm_token())).expect("confirmed"), 2);
    let tighter = vec!["encryption".to_owned(), "compression".to_owned()];
    let done = host.replace(&chains, RouteTable::default(), host.limits(), tighter, None).expect("tighter");
    assert_eq!(done.tightened, ["encryption", "compression"]);
}

#[test]
fn only_whole_directories_may_be_clear() {
    let host = standard();
    let clear =
        |allow_unencrypted| Route { matcher: Matcher::Under("/pub".into()), chain: "clear".into(), allow_unencrypted };
    let mut chains = host.chain_specs();
    chains.push(spec("clear", vec![zstd(3)]));
    let replace = |routes: Vec<Route>, confirm| {
        let (before, routes) = (Standing::of(&host), RouteTable::new(routes).expect("good routes"));
        let done = host.replace(&chains, routes, host.limits(), host.require(), confirm).map(drop);
        done.inspect_err(|error| before.assert_same(&host, &error.to_string()))
    };
    let token = Some(host.confirm_token());
    assert!(matches!(replace(vec![], token), Err(HostError::Policy { .. })), "no route leads there");
    assert!(matches!(replace(vec![clear(false)], token), Err(HostError::Policy { .. })), "not exempted");
    assert!(matches!(replace(vec![clear(true)], None), Err(HostError::Unconfirmed { .. })));
    assert!(!host.place(b"pub/x").1);
    replace(vec![clear(true)], token).expect("an exempted directory");
    assert_eq!((host.place(b"pub/x"), host.place(b"public").1), (("clear".into(), true), false));
    assert!(host.has_exemptions());
    // A route by command comes before it or behind it, and never exempts.
    run(&host, "route add match *.jpg media first").expect("a route");
    assert_eq!(host.place(b"pub/x.jpg"), ("media".into(), false));
    assert_eq!(refused(&host, "route add match *.txt clear").errno_name, "EPERM");
    // It takes files from an exempted directory: without it they would be in clear.
    assert_eq!(refused(&host, "route remove 1").errno_name, "EPERM");
    assert!(!host.place(b"pub/x.jpg").1);
    run(&host, &format!("route remove 1 confirm={}", host.confirm_token())).expect("removed");
    assert_eq!(&*host.route(b"pub/x"), "clear");
    assert_eq!(host.chain("clear").expect("a chain").seal_id(), None);
    // The seal of a chain that only an exempted directory has.
    let sealed = [host.chain_specs(), vec![spec("scratch", vec![zstd(3), seal()])]].concat();
    let scratch =
        Route { matcher: Matcher::Under("/pub/scratch".into()), chain: "scratch".into(), allow_unencrypted: true };
    let routes = RouteTable::new(vec![scratch.clone(), clear(true)]).expect("good routes");
    host.replace(&sealed, routes, host.limits(), host.require(), token).expect("exempted, and sealed");
    let unseal = "chain remove scratch aes-256-gcm";
    assert_eq!(refused(&host, unseal).errno_name, "EPERM");
    assert!(!host.place(b"pub/scratch/x").1, "the refused command took the seal away");
    // Nor by another order or number of routes in the settings.
    for routes in [vec![clear(true), scratch.clone()], vec![clear(true)]] {
        let specs = if routes.len() == 2 { &sealed[..] } else { &chains[..] };
        let routes = RouteTable::new(routes).expect("good routes");
        let done = host.replace(specs, routes, host.limits(), host.require(), None);
        assert!(matches!(done, Err(HostError::Unconfirmed { .. })), "{done:?}");
    }
    run(&host, &format!("{unseal} confirm={}", host.confirm_token())).expect("confirmed");
    let mixed = Route { matcher: Matcher::Match("*.x".into()), chain: "clear".into(), allow_unencrypted: false };
    assert!(
        matches!(replace(vec![clear(true), mixed], token), Err(HostError::Policy { .. })),
        "every way must be exempt"
    );
}

#[test]
fn settings_are_replaced_whole_or_not_at_all() {
    let host = standard();
    let route =
        |chain: &str| Route { matcher: Matcher::Match("*.log".into()), chain: chain.into(), allow_unencrypted: false };
    let table = |chain: &str| RouteTable::new(vec![route(chain)]).expect("good routes");
    let replace = |chains: &[ChainSpec], routes, limits| {
        let before = Standing::of(&host);
        let done = host.replace(chains, routes, limits, host.require(), None).map(drop);
        done.inspect_err(|error| before.assert_same(&host, &error.to_string()))
    };
    let specs = host.chain_specs();
    let error = replace(&specs, table("nowhere"), host.limits()).expect_err("no such chain");
    assert!(error.to_string().contains("archive, default, media"), "{error}");
    assert!(matches!(replace(&specs[2..], table("media"), host.limits()), Err(HostError::UnknownChain { .. })));
    let doubled = [specs.clone(), specs.clone()].concat();
    assert!(matches!(replace(&doubled, table("media"), host.limits()), Err(HostError::Duplicate { .. })));
    let limits = Limits { max_in_flight: 33, ..host.limits() };
    assert!(matches!(replace(&specs, table("media"), limits), Err(HostError::BadLimit { limit: "max_in_flight", .. })));
    let bad_name = [specs.clone(), vec![spec("No", vec![seal()])]].concat();
    assert!(matches!(replace(&bad_name, table("media"), host.limits()), Err(HostError::BadName { .. })));
    assert_eq!((host.generation(), host.chain_specs()), (1, specs.clone()));
    replace(&specs[1..], table("media"), host.limits()).expect("good settings");
    assert_eq!(&*host.route(b"a/b.log"), "media");
    let retired = host.chain("archive").expect("work under way for a chain that is gone goes on");
    assert_eq!(&**retired.name(), "default");
    assert!(host.chain("never").is_err());
    match run(&host, "route explain a/.b.log.Xy12Zz").expect("explains") {
        Reply::Explained { chain, rule, .. } => assert_eq!((chain.as_str(), rule), ("media", Some(route("media")))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_chain_that_fails_its_test_never_runs() {
    let trouble = Trouble::default();
    let registry = registry()
        .transform(Plugin::new("flaky").troubled(&trouble))
        .unproven_transform(Plugin::new("slow").troubled(&trouble));
    let chains = vec![spec("default", vec![zstd(3), seal()])];
    let host = Host::new(registry, chains, RouteTable::default(), Limits::default(), vec![]).expect("a host");
    let add = "chain add default flaky(on_error=skip)";
    trouble.corrupt_encoding(true);
    let error = refused(&host, add);
    assert_eq!((error.errno_name, error.code), ("EILSEQ", "SELF_TEST"), "{error}");
    trouble.corrupt_encoding(false);
    for panics in [false, true] {
        trouble.fail_encoding(true, panics);
        assert_eq!(refused(&host, add).errno_name, "EILSEQ", "its strategy does not count in the test");
    }
    trouble.fail_encoding(false, false);
    trouble.slow_init(Duration::from_millis(400));
    let start = Instant::now();
    let error = refused(&host, "chain add default slow");
    assert_eq!((error.errno_name, error.code), ("ETIMEDOUT", "TIMEOUT"), "{error}");
    assert!(start.elapsed() < Duration::from_millis(350), "its time is bounded");
    trouble.slow_init(Duration::ZERO);
    steps(&host, "chain add default slow");
    steps(&host, add);
    match run(&host, "chain test default").expect("tests") {
        Reply::Tested { report, .. } => assert!(report.frames >= 6 && report.encoded_bytes < report.raw_bytes),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_chain_follows_the_one_it_falls_back_to() {
    let trouble = Trouble::default();
    let registry =
        registry().transform(Plugin::new("one").troubled(&trouble)).transform(Plugin::new("two").troubled(&trouble));
    let to_b = OnError::Fallback("b".into());
    let chains = vec![
        spec("default", vec![seal()]),
        spec("a", vec![StepSpec::new("one").on_error(to_b), seal()]),
        spec("b", vec![StepSpec::new("two"), seal()]),
    ];
    let host = Host::new(registry, chains, RouteTable::default(), Limits::default(), vec![]).expect("a host");
    let encode = || host.chain("a").expect("a chain").encode(Hint::Data, b"bytes").map(|encoded| encoded.applied);
    assert_eq!(encode().expect("encodes"), 0b01);
    trouble.fail_encoding(true, false);
    assert!(encode().is_err(), "both steps fail");
    trouble.fail_encoding(false, false);
    steps(&host, "set b/two on_error=skip");
    trouble.fail_encoding(true, false);
    assert_eq!(encode().expect("the fallback's step is skipped now"), 0);
    trouble.fail_encoding(false, false);
    steps(&host, "chain set b zstd|aes-256-gcm");
    trouble.fail_encoding(true, false);
    let text = Noise::new(1).text(5000);
    let encoded = host.chain("a").expect("a chain").encode(Hint::Data, &text).expect("encodes");
    assert_eq!(encoded.applied, 0b10);
}

#[test]
fn plugins_are_loaded_and_unloaded() {
    let host = host(vec![spec("default", vec![zstd(3), seal()])]);
    let loaded = |id: &str| host.plugins().into_iter().find(|p| p.id == id).expect("a plugin").loaded;
    run(&host, "plugin unload xor").expect("nobody uses it");
    assert!(!loaded("xor") && loaded("zstd"));
    let error = refused(&host, "chain add default xor");
    assert_eq!((error.errno_name, error.hint.as_str()), ("ENOENT", "plugin load xor"));
    run(&host, "plugin load xor").expect("loads");
    steps(&host, "chain add default xor");
    let old = host.chain("default").expect("a chain");
    host.decoder(old.descriptor_bytes()).expect("a decoder");
    steps(&host, "chain remove default xor");
    let error = refused(&host, "plugin unload xor");
    assert_eq!(error.errno_name, "EBUSY");
    assert!(error.msg.contains("decoding"), "{error}");
    assert!(loaded("xor"), "it stays usable");

    let trouble = Trouble::default();
    let registry = registry().transform(Plugin::new("slow").troubled(&trouble));
    let chains = vec![spec("default", vec![StepSpec::new("slow"), seal()])];
    let host = Host::new(registry, chains, RouteTable::default(), Limits::default(), vec![]).expect("a host");
    let busy = host.chain("default").expect("a chain");
    steps(&host, "chain set default aes-256-gcm");
    trouble.slow(Duration::from_millis(400));
    std::thread::scope(|scope| {
        let frame = scope.spawn(|| busy.encode(Hint::Data, b"bytes").map(drop));
        while busy.in_flight() == 0 {
            std::thread::yield_now();
        }
        let error = refused(&host, "plugin unload slow");
        assert!(error.errno_name == "ETIMEDOUT" && error.msg.contains("did not end the frames"), "{error}");
        frame.join().expect("no panic").expect("the frame ends well");
    });
    run(&host, "plugin unload slow").expect("its frames have ended");
}

#[test]
fn routes_and_chains_come_and_go_by_command() {
    let host = standard();
    assert_eq!(steps(&host, "chain new plain pad|aes-256-gcm"), "pad|aes-256-gcm");
    let shown = |text: &str| match run(&host, text).expect(text) {
        Reply::Routes(routes) => routes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        other => panic!("{other:?}"),
    };
    assert_eq!(shown("route add match *.log archive"), "match *.log -> archive");
    assert_eq!(shown("route add under /raw plain first"), "under /raw -> plain, match *.log -> archive");
    assert_eq!((&*host.route(b"raw/a.log"), &*host.route(b"a.log")), ("plain", "archive"));
    assert_eq!(shown("route remove 1"), "match *.log -> archive");
    assert_eq!(&*host.route(b"raw/a.log"), "archive");
    assert!(!host.has_exemptions() && host.place(b"a.log") == ("archive".into(), false));
}

/// Frames go on, whole, while the chain changes under them; each decodes by its own descriptor.
#[test]
fn swaps_disturb_no_frame() {
    let host = standard();
    let (stop, seen) = (AtomicBool::new(false), Mutex::new(HashSet::new()));
    let longest = std::thread::scope(|scope| {
        for seed in 0..3 {
            let (host, stop, seen) = (&host, &stop, &seen);
            scope.spawn(move || {
                let mut noise = Noise::new(seed);
                while !stop.load(SeqCst) {
                    let len = noise.below(40_000);
                    let raw = if len.is_multiple_of(3) { noise.bytes(len) } else { noise.text(len) };
                    let chain = host.chain("default").expect("there is always one");
                    let encoded = chain.encode(Hint::Data, &raw).expect("no frame fails for a swap");
                    let decoder = host.decoder(chain.descriptor_bytes()).expect("a decoder");
                    let decoded = decoder.decode_vec(encoded.applied, encoded.bytes, raw.len()).expect("decodes");
                    assert!(decoded == raw, "a frame comes back whole");
                    seen.lock().expect("not poisoned").insert(chain.id());
                }
            });
        }
        let mut longest = Duration::ZERO;
        for round in 0..40 {
            let text = match round % 4 {
                0 => "set zstd level=9",
                1 => "chain remove default zstd",
                2 => "chain set default xor|zstd(level=1)|aes-256-gcm",
                _ => "chain set default zstd(level=3)|aes-256-gcm",
            };
            let start = Instant::now();
            steps(&host, text);
            longest = longest.max(start.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, SeqCst);
        longest
    });
    assert_eq!(seen.into_inner().expect("not poisoned").len(), 3, "frames went through every kind of chain");
    assert!(longest < Duration::from_secs(5), "a swap took {longest:?}");
    let metrics = host.metrics();
    let value = |name: &str| metrics.iter().find(|m| m.name == name).expect("a metric").value;
    assert_eq!(value("axiomfs_chain_swaps_total"), 40.0);
    assert_eq!(value("axiomfs_frames_in_flight"), 0.0);
    assert!(value("axiomfs_frames_verified_total") > 0.0);
}

/// A request takes a chain while a slow plugin is being set up for the next one.
#[test]
fn no_frame_waits_for_a_swap() {
    let trouble = Trouble::default();
    let registry = registry().transform(Plugin::new("slow").troubled(&trouble));
    let limits = Limits { init_timeout: Duration::from_secs(2), ..Limits::default() };
    let chains = vec![spec("default", vec![zstd(3), seal()])];
    let host = Host::new(registry, chains, RouteTable::default(), limits, vec![]).expect("a host");
    trouble.slow_init(Duration::from_millis(300));
    std::thread::scope(|scope| {
        let swap = scope.spawn(|| run(&host, "chain add default slow"));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(refused(&host, "set zstd level=5").errno_name, "EBUSY", "one change at a time");
        let mut frames = 0;
        while !swap.is_finished() {
            host.chain("default").expect("a chain").encode(Hint::Data, b"some bytes").expect("encodes");
            host.route(b"some/path");
            frames += 1;
        }
        swap.join().expect("no panic").expect("swaps");
        assert!(frames > 20, "only {frames} frames in a quarter of a second");
        let metrics = host.metrics();
        let value = |name, series| metrics.iter().find(|m| m.name == name && m.series == series).expect(name).value;
        assert!(value("axiomfs_swap_wait_seconds", "_count") > 20.0, "those that came during the change were timed");
        assert!(value("axiomfs_swap_max_seconds", "") >= 0.3);
    });
    assert!(host.chain("default").expect("a chain").spec().to_string().contains("slow"));
}

#[test]
fn dials_turn_with_what_presses_and_events_say_why() {
    let adaptive = StepSpec::new("zstd").with("level", 3).with("adapt", "1..5");
    let host = host(vec![spec("default", vec![adaptive, seal()]), spec("fixed", vec![zstd(9), seal()])]);
    let level = || {
        let metrics = host.metrics();
        let all: Vec<_> = metrics.iter().filter(|m| m.name == "axiomfs_plugin_effort").map(|m| m.value).collect();
        assert_eq!(all.len(), 1, "only the step that adapts has a dial");
        all[0]
    };
    let mut seen = vec![level()];
    let all = [[Pressure::Store; 3], [Pressure::None; 3], [Pressure::Encoders; 3], [Pressure::None; 3]];
    for pressure in all.into_iter().flatten() {
        host.pace(pressure);
        seen.push(level());
    }
    assert_eq!(seen, [3.0, 4.0, 5.0, 5.0, 4.0, 3.0, 3.0, 2.0, 1.0, 1.0, 2.0, 3.0, 3.0]);
    let events: Vec<_> = host.events_after(0).into_iter().filter(|event| event.kind == "adapt").collect();
    assert_eq!(events.len(), 8, "only what moves is told");
    assert_eq!(events[0].text, "zstd of chain default goes from 3 to 4: the store takes less than the encoders make");
    assert_eq!(host.generation(), 1, "a dial is no change of the chain");
}

#[test]
fn an_empty_host_says_what_is_missing() {
    let new = |chains| Host::new(Registry::new(), chains, RouteTable::default(), Limits::default(), vec![]).map(drop);
    assert!(matches!(new(vec![]), Err(HostError::UnknownChain { name, .. }) if name == "default"));
    let error = new(vec![spec("default", vec![seal()])]).expect_err("no plugins");
    assert!(matches!(error, HostError::UnknownPlugin { plugin, .. } if plugin == "aes-256-gcm"));
}
