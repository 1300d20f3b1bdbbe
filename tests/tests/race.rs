//! Many writers of one volume at the same moment.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axiomfs_tests::proxy::{Proxy, Trick};
use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, text};
use axiomfs_tests::run::{Finished, run};
use axiomfs_tests::s3::{S3Server, url_at};
use serde_json::Value;

fn soak() -> bool {
    std::env::var_os("AXIOMFS_SOAK").is_some()
}

/// All create the same head at the same moment: the proxy lets none through before all are there.
#[test]
fn of_twenty_takeovers_at_once_one_wins() {
    let _slot = beside_others();
    const WRITERS: usize = 20;
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let repo = TestRepo::in_bucket("race", &url_at(proxy.port, "race"));
    let make = |name: &str, state: &Path| {
        let mut command = repo.command(&["snapshot", "create", text(&repo.store), name, "--takeover", "--json"]);
        command.args(["--state", text(&state.join("state")), "--cache", text(&state.join("cache"))]);
        command
    };
    let first = run(&mut make("first", &repo.dir.join("first")), LIMIT);
    assert_eq!(first.code(), 0, "{}", first.stderr);
    let mut winners = vec!["first".to_owned()];
    for round in 0..if soak() { 20 } else { 2 } {
        let waiting: Arc<Mutex<usize>> = Arc::default();
        let arrived = waiting.clone();
        proxy.plan(move |seen| {
            if seen.method == "PUT" && seen.target.contains("/heads/") {
                *arrived.lock().expect("no panic") += 1;
                let begun = Instant::now();
                while *arrived.lock().expect("no panic") < WRITERS && begun.elapsed() < LIMIT / 2 {
                    thread::sleep(Duration::from_millis(2));
                }
            }
            Trick::Pass
        });
        let names: Vec<String> = (0..WRITERS).map(|i| format!("round-{round}-writer-{i}")).collect();
        let done: Vec<(String, Finished)> = thread::scope(|scope| {
            let race = |name: &String| {
                let (name, mut command) = (name.clone(), make(name, &repo.dir.join(name)));
                scope.spawn(move || (name, run(&mut command, 2 * LIMIT)))
            };
            let threads: Vec<_> = names.iter().map(race).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let won: Vec<&String> = done.iter().filter(|(_, done)| done.code() == 0).map(|(name, _)| name).collect();
        let said: Vec<&str> = done.iter().map(|(_, done)| done.stderr.as_str()).collect();
        assert_eq!(won.len(), 1, "round {round}: {won:?}: {said:#?}");
        for (name, done) in done.iter().filter(|(name, _)| name != won[0]) {
            assert!(done.stderr.contains("while the volume was being taken over"), "{name}: {}", done.stderr);
        }
        winners.push(won[0].clone());
    }
    proxy.plan(|_| Trick::Pass);
    let listed = run(&mut repo.command(&["snapshot", "list", text(&repo.store), "--json"]), LIMIT);
    let reply: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let mut have: Vec<&str> =
        reply["snapshots"].as_array().expect("a list").iter().filter_map(|s| s["name"].as_str()).collect();
    have.sort_unstable();
    winners.sort_unstable();
    assert_eq!(have, winners, "the store has what the winners said, and nothing else");
}

/// The same without a proxy that holds them back, on a directory: whoever says it is done is done.
#[test]
fn of_many_writers_on_a_directory_each_that_succeeds_is_kept() {
    let _slot = beside_others();
    let repo = TestRepo::new("race-local");
    let make = |name: &str| {
        let state = repo.dir.join(name);
        let mut command = repo.command(&["snapshot", "create", text(&repo.store), name, "--takeover"]);
        command.args(["--state", text(&state.join("state")), "--cache", text(&state.join("cache"))]);
        run(&mut command, 2 * LIMIT)
    };
    let names: Vec<String> = (0..if soak() { 60 } else { 12 }).map(|i| format!("writer-{i:02}")).collect();
    let mut done: Vec<&String> = thread::scope(|scope| {
        let threads: Vec<_> = names.iter().map(|name| (name, scope.spawn(|| make(name)))).collect();
        let ended = threads.into_iter().map(|(name, thread)| (name, thread.join().expect("no panic")));
        ended.filter(|(_, done)| done.code() == 0).map(|(name, _)| name).collect()
    });
    done.sort();
    assert!(!done.is_empty());
    let listed = repo.axiomfs(&["snapshot", "list", text(&repo.store), "--json"]);
    let reply: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let mut have: Vec<&str> =
        reply["snapshots"].as_array().expect("a list").iter().filter_map(|s| s["name"].as_str()).collect();
    have.sort_unstable();
    assert_eq!(have, done.iter().map(|name| name.as_str()).collect::<Vec<_>>());
}
