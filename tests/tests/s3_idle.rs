//! What a bucket costs while nobody uses the mount. Takes more than a minute of waiting, so it runs beside other tests.

use std::fs;
use std::time::{Duration, Instant};

use axiomfs_tests::proxy::Proxy;
use axiomfs_tests::repo::{LIMIT, TestRepo};
use axiomfs_tests::run::wait_for;
use axiomfs_tests::s3::{S3Server, url_at};

const KINDS: [&str; 5] = ["GET", "HEAD", "PUT", "DELETE", "LIST"];

#[test]
fn an_idle_writer_asks_at_most_once_a_minute_and_lists_nothing() {
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let mut repo = TestRepo::in_bucket("s3-idle", &url_at(proxy.port, "idle"));
    repo.mount();
    fs::write(repo.live().join("file"), vec![7; 1 << 20]).expect("writes");
    repo.settle();
    // A mount looks once for objects of others, beside its work; on a slow machine that is late.
    let (mut last, mut since) = (proxy.requests(), Instant::now());
    wait_for("ten seconds without a request", LIMIT, || {
        if proxy.requests() != last {
            (last, since) = (proxy.requests(), Instant::now());
        }
        since.elapsed() >= Duration::from_secs(10)
    });
    let (counts, all) = (KINDS.map(|kind| proxy.count(kind)), proxy.requests());
    let begun = Instant::now();
    let minutes = if std::env::var_os("AXIOMFS_SOAK").is_some() { 10 } else { 2 };
    std::thread::sleep(Duration::from_secs(minutes * 60 + 1));
    let made = proxy.requests() - all;
    let by_kind: Vec<u64> = KINDS.iter().zip(counts).map(|(kind, before)| proxy.count(kind) - before).collect();
    eprintln!("idle for {:?}: {made} requests, {by_kind:?} of {KINDS:?}", begun.elapsed());
    assert!(made <= minutes, "an idle writer made {made} requests in {minutes} minutes: {by_kind:?} of {KINDS:?}");
    assert_eq!(proxy.count("LIST"), counts[4], "and no listing");
    // It was idle, not gone.
    fs::write(repo.live().join("more"), b"more").expect("writes");
    repo.sync();
    assert!(proxy.requests() > all + made, "what is written later is stored");
    repo.umount();
}
