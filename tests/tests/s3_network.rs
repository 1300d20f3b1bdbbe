//! The way to a bucket: TLS with authorities of one's own, limits of bandwidth, uploads beside each other and their checksums,
//! servers that are slow, silent or behind.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use axiomfs_tests::metrics::Metrics;
use axiomfs_tests::observe::same_for_diff;
use axiomfs_tests::proxy::{Proxy, Trick};
use axiomfs_tests::repo::{TestRepo, alone, beside_others, scratch, text};
use axiomfs_tests::run::{must, run, wait_for};
use axiomfs_tests::s3::{S3Server, url_at};
use axiomfs_tests::source::{check_noise, copy_real_files, write_noise};

const LONG: Duration = Duration::from_secs(600);
/// A third of this without a byte makes a request count as lost.
const TIMEOUT: Duration = Duration::from_secs(6);
const SETTINGS: &str = "checkpoint: {interval: 200ms, bytes: 4MiB}\n\
                        commit: {interval: 500ms, bytes: 2MiB}\n\
                        timeout: 6s\n\
                        store: {on_error: {retry: {count: 20, backoff: [20ms, 500ms]}}}\n";

fn soak() -> bool {
    std::env::var_os("AXIOMFS_SOAK").is_some()
}

fn source(name: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = scratch(name);
    let tree = dir.path().join("tree");
    copy_real_files(&tree, if soak() { 12_000 } else { 500 });
    (dir, tree)
}

/// An authority that nobody knows, and a certificate of it for 127.0.0.1: files `ca.pem`, `server.pem`, `server.key`.
fn certificates(dir: &Path) {
    fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n").expect("a file");
    let openssl = |args: &[&str]| {
        let done = run(Command::new("openssl").args(args).current_dir(dir), LONG);
        assert!(done.status.success(), "openssl {args:?}: {}", done.stderr);
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let authority = ["req", "-x509", "-days", "2", "-subj", "/CN=Tests", "-keyout", "ca.key", "-out", "ca.pem"];
    openssl(&[&authority[..], &key[..]].concat());
    let request = ["req", "-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr"];
    openssl(&[&request[..], &key[..]].concat());
    let signing = ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
    openssl(&[&signing[..], &["-days", "2", "-extfile", "names", "-out", "server.pem"]].concat());
}

#[test]
fn a_server_with_an_authority_of_its_own_is_trusted_with_its_bundle_only() {
    let _slot = beside_others();
    let dir = scratch("s3-tls");
    certificates(dir.path());
    let server = S3Server::start_with_tls(&dir.path().join("server.pem"), &dir.path().join("server.key"));
    let url = url_at(server.port, "tls").replace("http://", "https://");
    let mut repo = TestRepo::without_init("s3-tls");
    repo.store = PathBuf::from(&url);
    repo.settings(SETTINGS);
    let config = repo.dir.join("settings.yaml");
    let init = |repo: &TestRepo| repo.axiomfs(&["init", &url, "--config", text(&config), "--kdf-memory", "64MiB"]);
    let begun = Instant::now();
    let refused = init(&repo);
    assert_eq!(refused.code(), 1, "{}{}", refused.stdout, refused.stderr);
    assert!(refused.stderr.to_lowercase().contains("certificate"), "{}", refused.stderr);
    assert!(refused.stderr.contains("ca_bundle"), "it says what to do: {}", refused.stderr);
    assert!(begun.elapsed() < TIMEOUT + Duration::from_secs(3), "it took {:?}", begun.elapsed());
    assert_eq!(server.objects("tls"), [], "nothing was stored");

    let trusted = format!("{SETTINGS}s3: {{ca_bundle: {}}}\n", dir.path().join("ca.pem").display());
    repo.settings(&trusted);
    let made = init(&repo);
    assert!(made.status.success(), "{}{}", made.stdout, made.stderr);
    repo.mount();
    write_noise(&repo.live().join("file"), 3, 8 << 20);
    repo.umount();
    repo.forget_local_state();
    repo.mount();
    check_noise(&repo.live().join("file"), 3, 8 << 20);
    repo.umount();
    repo.settings(SETTINGS);
    let error = repo.try_mount(&[]).expect_err("without the bundle the server is a stranger again");
    assert!(error.to_lowercase().contains("certificate"), "{error}");
}

/// Bytes per second between the begin of the first body and the end of the last.
fn rate_of_uploads(proxy: &Proxy) -> f64 {
    // Keys, heads and leases are sent signed in one piece, before and after.
    let bodies: Vec<_> = proxy.uploads().into_iter().filter(|upload| upload.bytes > 1 << 20).collect();
    let begun = bodies.iter().map(|upload| upload.begun).min().expect("uploads");
    let ended = bodies.iter().map(|upload| upload.ended).max().expect("uploads");
    bodies.iter().map(|upload| upload.bytes).sum::<u64>() as f64 / (ended - begun).as_secs_f64()
}

#[test]
fn limits_of_bandwidth_hold_within_a_tenth_both_ways() {
    let _slot = alone();
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let mut repo = TestRepo::in_bucket("s3-bandwidth", &url_at(proxy.port, "bandwidth"));
    let (limit, len) = (8u64 << 20, 40u64 << 20);
    repo.settings("commit: {interval: 1h, bytes: 1GiB}\ns3: {bandwidth: {up: 8MiB, down: 8MiB}}\n").mount();
    write_noise(&repo.live().join("file"), 3, len);
    repo.umount();
    let up = rate_of_uploads(&proxy) / limit as f64;
    repo.forget_local_state();
    repo.mount();
    let begun = Instant::now();
    must("dd", &[&format!("if={}", text(&repo.live().join("file"))), "of=/dev/null", "bs=1M"], LONG);
    let down = len as f64 / begun.elapsed().as_secs_f64() / limit as f64;
    repo.umount();
    eprintln!("of the limits: {up:.3} up, {down:.3} down");
    for (way, rate) in [("up", up), ("down", down)] {
        assert!((0.9..=1.1).contains(&rate), "{way}: {rate:.3} of the limit");
    }
}

/// Writes into a line of 8 MiB/s until room had to be waited for; the events that came of it.
fn through_a_narrow_line(name: &str, uploads: &str, seed: u64, len: u64) -> String {
    let server = S3Server::shared();
    let mut repo = TestRepo::in_bucket(name, &url_at(server.port, name));
    let line = format!("timeout: 3s\ns3: {{bandwidth: {{up: 8MiB}}}}\nstore: {{uploads: {{adapt: {uploads}}}}}\n");
    repo.settings(&format!("log: {{max: 64MiB, segment: 4MiB}}\nstaging: {{max: 64MiB}}\n{line}")).mount();
    let file = repo.live().join("file");
    let begun = Instant::now();
    write_noise(&file, seed, len);
    let took = begun.elapsed();
    eprintln!("{} MiB into a line of 8 MiB/s took {took:?}", len >> 20);
    assert!(took > 2 * Duration::from_secs(3), "{took:?}: nobody had to wait");
    let events = repo.events();
    repo.umount();
    repo.forget_local_state();
    repo.mount();
    check_noise(&file, seed, len);
    repo.umount();
    events
}

#[test]
fn a_line_that_takes_longer_than_timeout_for_a_pack_refuses_no_writer() {
    let _slot = alone();
    // Two packs of 32 MiB beside each other take eight seconds.
    through_a_narrow_line("s3-slow-line", "[2, 2]", 4, 160 << 20);
}

#[test]
fn a_narrow_line_gets_no_more_uploads_than_fill_it() {
    let _slot = alone();
    let events = through_a_narrow_line("s3-narrow", "[1, 16]", 5, 160 << 20);
    assert!(events.contains("uploads in flight go from 1 to 2: all of them are busy"), "{events}");
    assert!(!events.contains("uploads in flight go from 2 to 3"), "a second brought nothing: {events}");
}

/// Stages packs, each large enough to be uploaded by itself, and has them stored, each late: the most uploads that ran at once.
fn most_uploads(repo: &TestRepo, proxy: &Proxy, seed: u64, count: u64) -> u64 {
    let staged = || Metrics::of(repo).value("axiomfs_staged_packs") as u64;
    for number in 0..count {
        let before = staged();
        write_noise(&repo.live().join(format!("file-{}", seed + number)), seed + number, 18 << 20);
        wait_for("a pack is staged", LONG, || staged() > before);
    }
    proxy.plan(|request| if request.method == "PUT" { Trick::Late(Duration::from_millis(300)) } else { Trick::Pass });
    proxy.most_at_once("PUT");
    repo.sync();
    proxy.plan(|_| Trick::Pass);
    proxy.most_at_once("PUT")
}

#[test]
fn as_many_uploads_run_beside_each_other_as_the_settings_say() {
    let _slot = alone();
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let mut repo = TestRepo::in_bucket("s3-uploads", &url_at(proxy.port, "uploads"));
    let settings = |uploads: u64| {
        format!(
            "checkpoint: {{interval: 1h, bytes: 17MiB}}\ncommit: {{interval: 1h, bytes: 1GiB}}\n\
             store: {{uploads: {{adapt: [{uploads}, {uploads}]}}}}\n"
        )
    };
    repo.settings(&settings(1)).mount();
    assert_eq!(most_uploads(&repo, &proxy, 0, 3), 1);
    // More than the mount began with.
    repo.settings(&settings(6));
    repo.control_ok("reload");
    wait_for("the settings hold", LONG, || Metrics::of(&repo).value("axiomfs_uploads_limit") as u64 == 6);
    assert_eq!(most_uploads(&repo, &proxy, 10, 8), 6);
    repo.settings(&settings(33));
    let refused = repo.control("reload").to_string();
    assert!(refused.contains("store.uploads.adapt[0] is 33; it must be from 1 to 32"), "{refused}");
    repo.umount();
}

/// CRC-32 bit by bit, in base64: as S3 wants it.
fn crc32(bytes: &[u8]) -> String {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    let crc = !bytes.iter().fold(!0, |crc: u32, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)));
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u64::from(crc) << 4;
    (0..6).map(|i| char::from(DIGITS[(bits >> (30 - 6 * i)) as usize & 63])).collect::<String>() + "=="
}

/// Each object's first upload is damaged on its way.
#[test]
fn what_is_damaged_on_its_way_to_the_bucket_is_refused_there_and_sent_again() {
    let _slot = beside_others();
    assert_eq!(crc32(b"123456789"), "y/Q5Jg==", "the check value of CRC-32");
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let mut repo = TestRepo::in_bucket("s3-checksums", &url_at(proxy.port, "checksums"));
    repo.settings(SETTINGS).mount();
    let first = Mutex::new(HashSet::new());
    proxy.plan(move |request| {
        let is_first = request.method == "PUT" && first.lock().expect("no panic").insert(request.target.clone());
        if is_first { Trick::Flip } else { Trick::Pass }
    });
    proxy.record();
    write_noise(&repo.live().join("file"), 3, 8 << 20);
    repo.umount();
    let mut sent: HashMap<String, Vec<Vec<u8>>> = HashMap::new();
    for exchange in proxy.recorded() {
        let request = exchange.request;
        if request.method != "PUT" {
            continue;
        }
        assert_eq!(request.header("x-amz-checksum-crc32"), Some(crc32(&exchange.sent)), "{}", request.headers);
        let path = request.target.split('?').next().unwrap_or_default();
        let answer = String::from_utf8_lossy(&exchange.answered);
        let tries = sent.entry(path.trim_start_matches("/vault/").to_owned()).or_default();
        // A slow machine may give up an answer that then says that the object is there.
        let fits = |status: &&str| answer.starts_with(&format!("HTTP/1.1 {status}"));
        let expected = if tries.is_empty() { &["400"][..] } else { &["200", "412"][..] };
        assert!(answer.is_empty() || expected.iter().any(fits), "{path}: {answer}");
        tries.push(exchange.sent);
    }
    for kind in ["/packs/", "/index/", "/heads/", "/lease/"] {
        assert!(sent.keys().any(|name| name.contains(kind)), "{kind} was put: {:?}", sent.keys());
    }
    for (name, tries) in &sent {
        assert!(tries.len() >= 2 || name.contains("/lease/"), "{name} was sent once and damaged");
        let last = tries.last().expect("it was sent");
        assert!(tries.iter().all(|sent| sent == last) || name.contains("/lease/"), "{name} changed between its tries");
        assert!(&server.read(name) == last, "{name} is not what was sent");
    }
    proxy.plan(|_| Trick::Pass);
    repo.forget_local_state();
    repo.mount();
    check_noise(&repo.live().join("file"), 3, 8 << 20);
    repo.umount();
}

/// Half a minute in `scripts/soak`; here longer than the timeout of a request and of an operation, too.
#[test]
fn a_silent_server_stops_no_writer_and_all_arrives_once_it_speaks() {
    let _slot = alone();
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let (_source, tree) = source("s3-silent");
    let mut repo = TestRepo::in_bucket("s3-silent", &url_at(proxy.port, "silent"));
    repo.settings(SETTINGS).mount();
    let silence = if soak() { Duration::from_secs(30) } else { TIMEOUT + Duration::from_secs(2) };
    proxy.plan(move |_| Trick::Silence(silence));
    let begun = Instant::now();
    must("cp", &["-a", text(&tree), text(&repo.live().join("copy"))], LONG);
    same_for_diff(&tree, &repo.live().join("copy"), "in the silence");
    wait_for("status tells of it", LONG, || repo.status()["store_problem"]["since"].is_string());
    std::thread::sleep(silence.saturating_sub(begun.elapsed()));
    assert!(repo.status_number("pending_bytes") > 0, "nothing can have arrived: {}", repo.status());
    proxy.plan(|_| Trick::Pass);
    wait_for("all drains by itself", Duration::from_secs(60), || {
        repo.status_number("pending_bytes") == 0 && repo.status()["store_problem"].is_null()
    });
    repo.umount();
    repo.forget_local_state();
    repo.mount();
    same_for_diff(&tree, &repo.live().join("copy"), "from the bucket");
    repo.umount();
}

#[test]
fn with_200_ms_on_each_request_writers_feel_nothing_and_all_arrives() {
    let _slot = alone();
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let (_source, tree) = source("s3-late");
    let mut repo = TestRepo::in_bucket("s3-late", &url_at(proxy.port, "late"));
    repo.settings(SETTINGS).mount();
    proxy.plan(|_| Trick::Late(Duration::from_millis(200)));
    let mut slowest = Duration::ZERO;
    for number in 0..200 {
        let begun = Instant::now();
        fs::write(repo.live().join(format!("small-{number}")), [7; 5000]).expect("writes");
        slowest = slowest.max(begun.elapsed());
    }
    eprintln!("the slowest of 200 files took {slowest:?}");
    assert!(slowest < Duration::from_millis(200), "a writer waited {slowest:?}: for a request");
    must("cp", &["-a", text(&tree), text(&repo.live().join("copy"))], LONG);
    repo.umount();
    repo.forget_local_state();
    repo.mount();
    same_for_diff(&tree, &repo.live().join("copy"), "from the bucket");
    repo.umount();
}

/// Each listing shows what the same one showed first: an old state for ever.
#[test]
fn a_listing_that_lags_hides_no_commit() {
    let _slot = beside_others();
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let mut repo = TestRepo::in_bucket("s3-lag", &url_at(proxy.port, "lag"));
    proxy.plan(|_| Trick::OldList);
    repo.settings(SETTINGS).mount();
    for number in 0..8 {
        fs::write(repo.live().join("file"), format!("version {number}")).expect("writes");
        repo.sync();
    }
    repo.umount();
    for round in 0..2 {
        repo.forget_local_state();
        repo.mount();
        let shown = fs::read_to_string(repo.live().join("file")).expect("reads");
        assert_eq!(shown, if round == 0 { "version 7" } else { "version 8" }, "the newest commit is found");
        fs::write(repo.live().join("file"), "version 8").expect("writes");
        repo.sync();
        repo.umount();
    }
    let reader = repo.elsewhere(&repo.store, "s3-lag-reader");
    let mut reader = reader;
    reader.try_mount(&["--read-only"]).expect("mounts");
    assert_eq!(fs::read_to_string(reader.live().join("file")).expect("reads"), "version 8");
    reader.umount();
}
