//! The store's contract, against a real server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axiomfs_api::{Body, ObjectKey, Store, StoreErrorKind, conformance};
use axiomfs_host::{Call, Fault, Faulty, Retry, RetryPolicy};
use axiomfs_storage_s3::{Location, S3Options, S3Store};
use axiomfs_tests::s3::{ACCESS_KEY, S3Server, SECRET_KEY, environment};

const QUICK: RetryPolicy = RetryPolicy {
    count: 60,
    first_pause: Duration::from_micros(100),
    longest_pause: Duration::from_millis(5),
    deadline: Duration::from_secs(60),
};

fn options(prefix: &str) -> S3Options {
    let location = Location::parse(&S3Server::shared().url(prefix)).expect("a location");
    S3Options::new(location)
}

/// The SDK takes its credentials from this process's environment, as it does from a user's.
fn open(options: S3Options) -> S3Store {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // SAFETY: every test of this file comes through here first, and no thread of the SDK exists before.
    ONCE.call_once(|| {
        let here = format!("http://127.0.0.1:{}", S3Server::shared().port);
        let endpoint = [("AWS_ENDPOINT_URL_S3", here.as_str())];
        environment().into_iter().chain(endpoint).for_each(|(name, value)| unsafe { std::env::set_var(name, value) });
    });
    S3Store::open(options).expect("opens")
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(name).expect("a valid name")
}

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

#[test]
fn the_contract_holds() {
    conformance::store(&open(options("contract/here")), temp().path());
}

/// Whoever names the server, listings of it are sorted here.
#[test]
fn the_contract_holds_with_an_endpoint_from_the_environment() {
    let location = Location::parse("s3://vault/contract/told?region=us-east-1").expect("a location");
    conformance::store(&open(S3Options::new(location)), temp().path());
}

#[test]
fn the_contract_holds_in_the_wrappers() {
    let faulty = Arc::new(Faulty::new(Arc::new(open(options("wrapped")))));
    faulty.set_plan(|call: &Call<'_>| match conformance::Noise::new(call.number).below(9) {
        0 => Fault::Refuse(StoreErrorKind::Unavailable),
        1 => Fault::LoseAnswer(StoreErrorKind::Timeout),
        _ => Fault::None,
    });
    let retry = Retry::new(faulty, QUICK);
    conformance::store(&retry, temp().path());
    assert!(retry.retries() > 100);
}

/// Through the retries, as the program creates: an answer that a busy server gives too late is made good
/// by reading back whose bytes are there, so that a winner knows that it won.
#[test]
fn twenty_creators_have_one_winner_each_time() {
    let store = Retry::new(Arc::new(open(options("race"))), QUICK);
    for round in 0..5 {
        let name = key(&format!("heads/{round:04}"));
        let barrier = std::sync::Barrier::new(20);
        let won: usize = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..20u8)
                .map(|i| {
                    let (store, name, barrier) = (&store, &name, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        match store.put_new(name, Body::Bytes(&[i; 100])) {
                            Ok(()) => 1,
                            Err(error) => {
                                assert_eq!(error.kind, StoreErrorKind::AlreadyExists, "{error:?}");
                                0
                            }
                        }
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().expect("no racer panics")).sum()
        });
        assert_eq!(won, 1, "round {round}");
    }
}

#[test]
fn listings_pass_over_what_is_foreign_and_go_on_after_a_thousand_names() {
    let server = S3Server::shared();
    let store = open(options("listed"));
    for name in ["listed/README.TXT", "listed/packs/UPPER", "listed/packs/a%20b", "listed-not/x"] {
        server.write(name, b"foreign");
    }
    std::thread::scope(|scope| {
        for part in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for i in (part..1100).step_by(8) {
                    store.put_new(&key(&format!("packs/{i:04}")), Body::Bytes(b"x")).expect("creates");
                }
            });
        }
    });
    let names: Vec<String> =
        store.list("", None, usize::MAX).expect("lists").into_iter().map(|meta| meta.key.to_string()).collect();
    let expected: Vec<String> = (0..1100).map(|i| format!("packs/{i:04}")).collect();
    assert_eq!(names, expected);
}

#[test]
fn a_missing_bucket_is_not_taken_for_an_empty_store() {
    let port = S3Server::shared().port;
    let url = format!("s3://nowhere/x?endpoint=http://127.0.0.1:{port}&region=us-east-1");
    let store = open(S3Options::new(Location::parse(&url).expect("a location")));
    let name = key("config");
    for (what, error) in [
        ("get", store.get(&name, 10).map(drop)),
        ("range", store.get_range(&name, 0, 1).map(drop)),
        ("stat", store.stat(&name).map(drop)),
        ("list", store.list("", None, 1).map(drop)),
    ] {
        let error = error.expect_err(what);
        assert_eq!(error.kind, StoreErrorKind::Invalid, "{what}: {error:?}");
        assert!(format!("{error:?}").contains("bucket"), "{what}: {error:?}");
    }
}

#[test]
fn failures_and_debug_forms_show_no_credential() {
    let port = S3Server::shared().port;
    let store = open(options("secret"));
    // Nobody listens there.
    let url = Location::parse("s3://vault/x?endpoint=http://127.0.0.1:1&region=us-east-1").expect("a location");
    let deaf = open(S3Options::new(url));
    let refused = deaf.get(&key("config"), 10).expect_err("nobody answers");
    assert_eq!(refused.kind, StoreErrorKind::Unavailable);
    let missing = store.get(&key("config"), 10).expect_err("nothing there");
    for text in [format!("{store:?} {deaf:?}"), format!("{refused:?}"), format!("{missing:?}")] {
        assert!(!text.contains(SECRET_KEY) && !text.contains(ACCESS_KEY), "{text}");
    }
    assert!(store.location().contains(&port.to_string()));
}

#[test]
fn a_server_that_is_silent_is_given_up_in_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let url = format!("s3://vault/x?endpoint=http://127.0.0.1:{port}&region=us-east-1");
    let mut options = S3Options::new(Location::parse(&url).expect("a location"));
    options.timeout = Duration::from_millis(300);
    let store = open(options);
    let begun = Instant::now();
    let error = store.get(&key("config"), 10).expect_err("nobody answers");
    assert_eq!(error.kind, StoreErrorKind::Timeout, "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

/// Within ten per cent, both ways.
#[test]
fn limits_of_bandwidth_hold() {
    const RATE: u64 = 4 << 20;
    let data = conformance::Noise::new(3).bytes(10 << 20);
    let mut options = options("limited");
    (options.upload_rate, options.download_rate) = (Some(RATE), Some(RATE));
    let store = open(options);
    let halves: Vec<&[u8]> = data.chunks(data.len() / 2).collect();
    let names = [key("packs/a"), key("packs/b")];
    let timed = |what: &str, work: &(dyn Fn(usize) + Sync)| {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for i in 0..2 {
                scope.spawn(move || work(i));
            }
        });
        let rate = data.len() as f64 / begun.elapsed().as_secs_f64();
        let of_limit = rate / RATE as f64;
        assert!((0.9..=1.1).contains(&of_limit), "{what} ran at {of_limit:.2} of the limit");
    };
    timed("uploads", &|i| store.put_new(&names[i], Body::Bytes(halves[i])).expect("puts"));
    timed("downloads", &|i| assert!(store.get(&names[i], 10 << 20).expect("gets") == halves[i]));
}
