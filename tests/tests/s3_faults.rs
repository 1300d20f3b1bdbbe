//! A bucket behind a network that breaks: everything arrives, nothing differs, nothing hangs.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axiomfs_tests::observe::same_for_diff;
use axiomfs_tests::proxy::{Proxy, Seen, Trick};
use axiomfs_tests::repo::{TestRepo, alone, scratch, text};
use axiomfs_tests::run::{must, wait_for};
use axiomfs_tests::s3::{S3Server, url_at};
use axiomfs_tests::source::{append_noise, check_noise, copy_real_files, write_noise};

const LONG: Duration = Duration::from_secs(600);
/// A third of this without a byte makes a request count as lost.
const TIMEOUT: Duration = Duration::from_secs(6);
/// So many more tries that a run of bad luck passes, within the timeout.
const SETTINGS: &str = "log: {max: 64MiB, segment: 4MiB}\n\
                        checkpoint: {interval: 200ms, bytes: 4MiB}\n\
                        commit: {interval: 500ms, bytes: 2MiB}\n\
                        timeout: 6s\n\
                        store: {on_error: {retry: {count: 20, backoff: [20ms, 500ms]}}}\n";

fn soak() -> bool {
    std::env::var_os("AXIOMFS_SOAK").is_some()
}

fn source(name: &str, count: usize, large: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = scratch(name);
    let tree = dir.path().join("tree");
    copy_real_files(&tree, count);
    write_noise(&tree.join("large.bin"), 7, large);
    (dir, tree)
}

/// What may happen to any request.
const ANY: [Trick; 8] = [
    Trick::Refuse(503, "SlowDown"),
    Trick::Refuse(500, "InternalError"),
    Trick::Reset,
    Trick::CutShort,
    Trick::Flip,
    Trick::LoseReply,
    Trick::Late(Duration::from_millis(200)),
    // Longer than any request may be silent.
    Trick::Silence(Duration::from_secs(TIMEOUT.as_secs() / 2)),
];
/// What may happen to a listing. A changed byte in it is not among these: nothing but TLS can tell it.
const LISTS: [Trick; 5] = [
    Trick::OldList,
    Trick::Refuse(503, "SlowDown"),
    Trick::Reset,
    Trick::CutShort,
    Trick::Silence(Duration::from_secs(3)),
];

/// Each puts a pack of data, one of nodes, an index segment and a head.
const COMMITS: u64 = 22;

/// Of each kind of request one in ten, of the rare listings every second one, meets one of the faults in turn.
fn one_in_ten() -> impl Fn(&Seen) -> Trick {
    let seen: Mutex<HashMap<String, usize>> = Mutex::default();
    move |request| {
        let mut seen = seen.lock().expect("no panic");
        let number = seen.entry(request.kind().to_owned()).or_default();
        *number += 1;
        let (every, tricks) = if request.is_list() { (2, &LISTS[..]) } else { (10, &ANY[..]) };
        if number.is_multiple_of(every) { tricks[(*number / every - 1) % tricks.len()] } else { Trick::Pass }
    }
}

/// Which of those no request of their kind has met.
fn not_met(proxy: &Proxy) -> Vec<(&'static str, Trick)> {
    let all = [("PUT", &ANY[..]), ("GET", &ANY[..]), ("LIST", &LISTS[..])];
    let all = all.into_iter().flat_map(|(kind, tricks)| tricks.iter().map(move |trick| (kind, *trick)));
    all.filter(|(kind, trick)| proxy.tricked(kind, *trick) == 0).collect()
}

/// Puts of packs by object name: length, and whether it is one of file data, told by the class that the settings give them.
type Packs = Arc<Mutex<HashMap<String, (u64, bool)>>>;

/// Notes the packs that are put, and does to requests what `plan` says.
fn noting<P: Fn(&Seen) -> Trick>(packs: &Packs, plan: P) -> impl Fn(&Seen) -> Trick + use<P> {
    let packs = packs.clone();
    move |request| {
        let path = request.target.split('?').next().unwrap_or_default();
        if request.method == "PUT" && path.contains("/packs/") {
            let len = request.header("content-length").and_then(|len| len.parse().ok()).expect("a length");
            let is_data = request.header("x-amz-storage-class").as_deref() == Some("STANDARD_IA");
            packs.lock().expect("no panic").insert(path.trim_start_matches("/vault/").to_owned(), (len, is_data));
        }
        plan(request)
    }
}

/// Copies `tree` into a new repository behind `proxy` and says what data its packs have: number and bytes.
fn copied(
    proxy: &Proxy,
    prefix: &str,
    tree: &Path,
    plan: impl Fn(&Seen) -> Trick + Send + Sync + 'static,
) -> (TestRepo, usize, u64) {
    let server = S3Server::shared();
    let mut repo = TestRepo::in_bucket("s3-faults", &url_at(proxy.port, prefix));
    let packs = Packs::default();
    proxy.plan(noting(&packs, plan));
    repo.settings(&format!("{SETTINGS}s3: {{storage_class: {{data: STANDARD_IA, metadata: STANDARD}}}}\n")).mount();
    must("cp", &["-a", text(tree), text(&repo.live().join("copy"))], LONG);
    same_for_diff(tree, &repo.live().join("copy"), "as it was copied");
    // A copy costs few puts. So that each kind of fault meets some there are many small commits.
    for number in 0..COMMITS {
        write_noise(&repo.live().join(format!("file-{number}")), number, 50 << 10);
        repo.sync();
    }
    repo.umount();
    // Every pack that was ever sent is there, and none besides: no try went under another name and was left behind.
    let stored = server.objects(prefix).into_iter().filter(|(name, _)| name.contains("/packs/"));
    let stored: HashMap<String, u64> = stored.collect();
    let packs = packs.lock().expect("no panic");
    let sent: HashMap<String, u64> = packs.iter().map(|(name, (len, _))| (name.clone(), *len)).collect();
    assert_eq!(sent, stored, "packs that were sent, and packs that are stored");
    let data: Vec<u64> = packs.values().filter(|(_, is_data)| *is_data).map(|(len, _)| *len).collect();
    (repo, data.len(), data.iter().sum())
}

#[test]
fn a_copy_through_a_fault_in_ten_requests_arrives_whole_and_once() {
    let _slot = alone();
    let server = S3Server::shared();
    let (_source, tree) = source("s3-faults", if soak() { 12_000 } else { 1_000 }, 64 << 20);
    let control = Proxy::start(server.port);
    let (_, control_packs, control_bytes) = copied(&control, "faultless", &tree, |_| Trick::Pass);
    let proxy = Proxy::start(server.port);
    let (mut repo, packs, bytes) = copied(&proxy, "faults", &tree, one_in_ten());
    eprintln!("{packs} packs of data, {bytes} bytes; without faults {control_packs}, {control_bytes} bytes");
    assert!(bytes.abs_diff(control_bytes) * 30 < control_bytes, "{bytes} bytes, without faults {control_bytes}");
    for _ in 0..5 {
        repo.forget_local_state();
        repo.mount();
        same_for_diff(&tree, &repo.live().join("copy"), "from the bucket, through the faults");
        for number in 0..COMMITS {
            check_noise(&repo.live().join(format!("file-{number}")), number, 50 << 10);
        }
        repo.umount();
        if not_met(&proxy).is_empty() {
            break;
        }
    }
    let counts = ["PUT", "GET", "LIST", "HEAD", "DELETE"].map(|kind| (kind, proxy.count(kind)));
    eprintln!("requests: {counts:?}");
    eprintln!("{} of {} requests met a fault", proxy.tricks(), proxy.requests());
    assert_eq!(not_met(&proxy), [], "kinds of requests and faults that never met");
}

/// Reads a file to its end and says how long that took and whether it worked.
fn read(path: &Path) -> (Duration, std::io::Result<Vec<u8>>) {
    let begun = Instant::now();
    let mut bytes = Vec::new();
    let result = fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    (begun.elapsed(), result.map(|_| bytes))
}

#[test]
fn an_outage_stops_no_writer_is_told_and_ends_by_itself_also_across_a_kill() {
    let _slot = alone();
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let (_source, tree) = source("s3-outage", 300, 8 << 20);
    let mut repo = TestRepo::in_bucket("s3-outage", &url_at(proxy.port, "outage"));
    repo.settings(SETTINGS).mount();
    for number in 0..3 {
        write_noise(&repo.live().join(format!("unread{number}")), number, 1 << 20);
        repo.sync();
    }
    // Not the tree: what is copied in the outage would be known by then, and only in the store.
    fs::create_dir(repo.live().join("before")).expect("a directory");
    fs::copy(tree.join("large.bin"), repo.live().join("before/large.bin")).expect("copied");
    repo.umount();
    repo.forget_local_state();
    repo.mount();
    let large = fs::read(repo.live().join("before/large.bin")).expect("reads while the store is there");
    assert!(repo.status()["store_problem"].is_null());

    proxy.down(true);
    let outage = Instant::now();
    must("cp", &["-a", text(&tree), text(&repo.live().join("during"))], LONG);
    same_for_diff(&tree, &repo.live().join("during"), "what was written in the outage");
    fs::create_dir(repo.snapshot("in-the-outage")).expect("a snapshot");
    wait_for("status tells of the outage", LONG, || repo.status()["store_problem"]["since"].is_string());
    assert!(repo.status_number("pending_bytes") > 0, "{}", repo.status());
    let shown = repo.axiomfs(&["status", text(&repo.mnt)]).stdout;
    assert!(shown.contains("Store fails since"), "{shown}");
    // What was read is in memory, also when the kernel has forgotten it; what was not is an error in time.
    fs::write("/proc/sys/vm/drop_caches", "1").expect("dropped");
    assert!(read(&repo.live().join("before/large.bin")).1.expect("it is in memory") == large);
    for number in 0..3 {
        let (took, result) = read(&repo.live().join(format!("unread{number}")));
        assert!(took < TIMEOUT + Duration::from_secs(3), "unread{number} took {took:?}");
        let error = result.err().and_then(|error| error.raw_os_error());
        assert_eq!(error, Some(5), "unread{number} is nowhere but in the store");
    }
    if soak() {
        std::thread::sleep(Duration::from_secs(120).saturating_sub(outage.elapsed()));
    }
    repo.kill9();
    proxy.down(false);
    repo.mount();
    same_for_diff(&tree, &repo.live().join("during"), "after a kill in the outage");
    fs::write(repo.live().join("more"), b"after").expect("writes go on");

    // Once more without a kill: it drains by itself when the store is back.
    wait_for("all drained", LONG, || repo.status_number("pending_bytes") == 0);
    proxy.down(true);
    fs::write(repo.live().join("late"), vec![7; 3 << 20]).expect("writes go on");
    wait_for("status tells of the outage", LONG, || repo.status()["store_problem"]["since"].is_string());
    proxy.down(false);
    wait_for("all drains by itself", Duration::from_secs(60), || {
        repo.status_number("pending_bytes") == 0 && repo.status()["store_problem"].is_null()
    });
    repo.umount();
    repo.forget_local_state();
    repo.mount();
    assert!(fs::read(repo.live().join("before/large.bin")).expect("reads") == large);
    same_for_diff(&tree, &repo.live().join("during"), "from the bucket, after the outage");
    same_for_diff(&tree, &repo.snapshot("in-the-outage").join("during"), "the snapshot");
    assert_eq!(fs::read(repo.live().join("late")).expect("reads"), vec![7; 3 << 20]);
    repo.umount();
}

/// Writes noise, a MiB a call, and holds each call to its bound. If one fails: what it took, and the error.
fn written_in_time(path: &Path, seed: u64, len: u64) -> Result<(), (Duration, std::io::Error)> {
    fn bounded<T>(call: impl FnOnce() -> std::io::Result<T>) -> Result<T, (Duration, std::io::Error)> {
        let begun = Instant::now();
        let result = call();
        let took = begun.elapsed();
        assert!(took < TIMEOUT + Duration::from_secs(3), "a call took {took:?}: {:?}", result.err());
        result.map_err(|error| (took, error))
    }
    let mut bytes = Vec::new();
    append_noise(&mut bytes, seed, len);
    let mut file = bounded(|| fs::File::create(path))?;
    bytes.chunks(1 << 20).try_for_each(|part| bounded(|| file.write_all(part)))
}

#[test]
fn while_the_bucket_is_gone_writes_go_on_up_to_staging_max_and_then_are_refused() {
    const FILE: u64 = 4 << 20;
    let _slot = alone();
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let mut repo = TestRepo::in_bucket("s3-staging", &url_at(proxy.port, "staging"));
    repo.settings(&format!("{SETTINGS}staging: {{max: 64MiB}}\n")).mount();
    proxy.down(true);
    let name = |number: u64| format!("f{number:03}");
    let mut written = 0;
    let (took, error) = loop {
        match written_in_time(&repo.live().join(name(written)), written, FILE) {
            Ok(()) => written += 1,
            Err(refused) => break refused,
        }
        // staging.max, log.max, and what was on its way from one to the other.
        assert!(written * FILE < 256 << 20, "{} MiB were taken and nothing was refused", (written * FILE) >> 20);
    };
    eprintln!("{written} files of 4 MiB were taken, the next was refused after {took:?}: {error}");
    assert_eq!(error.raw_os_error(), Some(28), "{error}");
    assert!(written * FILE >= 64 << 20, "only {written} files of 4 MiB were taken");
    // What makes room is not refused, and what was written reads.
    match fs::remove_file(repo.live().join(name(written))) {
        // It was refused as it was created.
        Err(error) if error.raw_os_error() == Some(2) => {}
        removed => removed.expect("the refused one goes"),
    }
    fs::remove_file(repo.live().join(name(0))).expect("another goes");
    check_noise(&repo.live().join(name(written - 1)), written - 1, FILE);

    proxy.down(false);
    wait_for("all drains by itself", LONG, || repo.status_number("pending_bytes") == 0);
    fs::write(repo.live().join("after"), b"after").expect("writes go on");
    repo.umount();
    repo.forget_local_state();
    repo.mount();
    for number in 1..written {
        check_noise(&repo.live().join(name(number)), number, FILE);
    }
    assert_eq!(
        fs::read_dir(repo.live()).expect("lists").count() as u64,
        written,
        "files 1 to the last, and the one after"
    );
    repo.umount();
}

#[test]
fn reads_that_can_not_reach_the_bucket_fail_in_time_and_come_back() {
    let server = S3Server::shared();
    let proxy = Arc::new(Proxy::start(server.port));
    let mut repo = TestRepo::in_bucket("s3-silence", &url_at(proxy.port, "silence"));
    repo.settings(SETTINGS).mount();
    write_noise(&repo.live().join("file"), 5, 4 << 20);
    let want = fs::read(repo.live().join("file")).expect("reads");
    repo.umount();
    repo.forget_local_state();
    repo.mount();
    fs::metadata(repo.live().join("file")).expect("the entry");
    proxy.plan(|_| Trick::Silence(Duration::from_secs(60)));
    let (took, result) = read(&repo.live().join("file"));
    let error = result.expect_err("nobody answers");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert!(took < TIMEOUT + Duration::from_secs(3), "it took {took:?}");
    proxy.plan(|_| Trick::Pass);
    assert!(fs::read(repo.live().join("file")).expect("the store is back") == want);
    repo.umount();
}
