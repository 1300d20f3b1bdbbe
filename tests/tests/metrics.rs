//! What a mount counts, as a file and over HTTP, in the form that Prometheus reads.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use axiomfs_tests::metrics::Metrics;
use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, text};
use axiomfs_tests::rng::{noise, prose};
use axiomfs_tests::run::must;

/// `AXIOMFS_PROMTOOL`, or where `scripts/test` puts it, or the one in the path.
fn promtool() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    let fetched = cache.join("axiomfs/promtool/usr/bin/promtool");
    std::env::var_os("AXIOMFS_PROMTOOL")
        .map_or_else(|| if fetched.is_file() { fetched } else { "promtool".into() }, PathBuf::from)
}

fn check(metrics: &str) {
    let mut child = Command::new(promtool())
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is needed: scripts/test fetches it");
    child.stdin.take().expect("piped").write_all(metrics.as_bytes()).expect("promtool reads");
    let done = child.wait_with_output().expect("promtool ends");
    let said = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(done.status.success() && said.trim().is_empty(), "promtool: {said}\n{metrics}");
}

#[test]
fn metrics_are_clean_for_promtool_and_count_what_happened() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("metrics");
    repo.mount();
    check(Metrics::of(&repo).text());
    fs::write(repo.live().join("text"), prose(1, 4 << 20)).expect("written");
    fs::write(repo.live().join("again"), prose(1, 4 << 20)).expect("written");
    fs::write(repo.live().join("noise"), noise(2, 1 << 20)).expect("written");
    repo.settle();
    repo.control_ok("chain set default lz4|padme|aes-256-gcm");
    fs::write(repo.live().join("more"), prose(3, 1 << 20)).expect("written");
    repo.settle();
    let metrics = Metrics::of(&repo);
    check(metrics.text());
    assert!(metrics.value("axiomfs_written_bytes_total") >= f64::from(10 << 20));
    assert!(metrics.value("axiomfs_compression_ratio") > 1.1, "text was compressed");
    assert!(metrics.value("axiomfs_dedup_ratio") > 1.5, "one file was there twice");
    assert!(metrics.value("axiomfs_chain_swaps_total") >= 1.0);
    assert!(metrics.value("axiomfs_swap_max_seconds") > 0.0);
    let plugin = |name: &str, id: &str| {
        let label = format!("plugin=\"{id}\"");
        metrics
            .series(name)
            .into_iter()
            .filter(|(labels, _)| labels.split(',').any(|l| l == label))
            .map(|(_, v)| v)
            .sum::<f64>()
    };
    for id in ["zstd", "lz4", "padme", "aes-256-gcm", "fastcdc"] {
        assert!(plugin("axiomfs_plugin_encode_seconds_count", id) > 0.0, "{id} has encoded nothing");
        assert!(plugin("axiomfs_plugin_encode_output_bytes_total", id) > 0.0, "{id}");
        assert_eq!(plugin("axiomfs_plugin_encode_errors_total", id), 0.0, "{id}");
    }
    // What was cut: three files and a part of each that came twice. What was sealed: all that was written, log and packs.
    let cut = plugin("axiomfs_plugin_encode_input_bytes_total", "fastcdc");
    assert!((f64::from(10 << 20)..f64::from(13 << 20)).contains(&cut), "{cut} bytes were cut");
    assert!(plugin("axiomfs_plugin_memory_max_bytes", "fastcdc") >= 4096.0, "its tables");
    let sealed = |name: &str| plugin(&format!("axiomfs_plugin_encode_{name}"), "aes-256-gcm");
    let (plain, out) = (sealed("input_bytes_total"), sealed("output_bytes_total"));
    assert!(plain > f64::from(10 << 20), "{plain} bytes were sealed");
    assert_eq!(out - plain, 16.0 * sealed("seconds_count"), "a tag each");
    assert!(plugin("axiomfs_plugin_memory_max_bytes", "aes-256-gcm") > 0.0);
    let puts = metrics.series("axiomfs_store_request_seconds_count").into_iter().find(|(l, _)| l.contains("put_new"));
    assert!(puts.is_some_and(|(_, count)| count >= 4.0), "packs, index and head were put");
    assert!(metrics.sum("axiomfs_store_bytes_total") > f64::from(2 << 20));
    assert_eq!(metrics.sum("axiomfs_store_errors_total"), 0.0);
    // Queues, log, staging and caches.
    for empty in ["encode_queue_bytes", "staged_bytes", "staged_packs", "pending_bytes", "frames_in_flight"] {
        assert_eq!(metrics.value(&format!("axiomfs_{empty}")), 0.0, "{empty} after all is in the store");
    }
    let (log, most) = (metrics.value("axiomfs_log_bytes"), metrics.value("axiomfs_log_max_bytes"));
    assert!(log < most && most > 0.0 && metrics.value("axiomfs_staging_max_bytes") > 0.0, "{log} of {most}");
    let read = |repo: &TestRepo| {
        let of = format!("if={}", text(&repo.live().join("text")));
        must("dd", &[&of, "of=/dev/null", "bs=64k", "iflag=direct", "status=none"], LIMIT);
        let now = Metrics::of(repo);
        (now.value("axiomfs_frames_read_total"), now.value("axiomfs_cache_hits_total"))
    };
    let (first, second) = (read(&repo), read(&repo));
    assert!(first.0 >= 4.0, "{first:?}: the frames of 4 MiB were fetched");
    assert!(second.0 == first.0 && second.1 > first.1, "{first:?}, {second:?}: and then were in memory");
    // The plugins' own files say the same.
    let own = |id: &str, file: &str| -> serde_json::Value {
        let path = repo.mnt.join(".axiomfs/plugins").join(id).join(file);
        serde_json::from_str(&fs::read_to_string(&path).expect("readable")).expect("JSON")
    };
    for (id, key, series) in [
        ("fastcdc", "encoded_frames", "axiomfs_plugin_encode_seconds_count"),
        ("fastcdc", "encoded_from_bytes", "axiomfs_plugin_encode_input_bytes_total"),
        ("fastcdc", "memory_max", "axiomfs_plugin_memory_max_bytes"),
        ("lz4", "encoded_to_bytes", "axiomfs_plugin_encode_output_bytes_total"),
        ("aes-256-gcm", "errors", "axiomfs_plugin_decode_errors_total"),
    ] {
        assert_eq!(own(id, "stats")[key].as_f64(), Some(plugin(series, id)), "{key} of {id}");
    }
    assert!(own("aes-256-gcm", "stats")["encoded_from_bytes"].as_f64() >= Some(plain));
    assert!(own("local", "stats")["bytes"].as_f64() >= Some(metrics.sum("axiomfs_store_bytes_total")));
    assert_eq!((&own("local", "stats")["errors"], &own("s3", "stats")["requests"]), (&0.into(), &0.into()));
    for file in ["descriptor", "config", "stats"] {
        let value = own("lz4", file);
        match file {
            "descriptor" => {
                assert_eq!((value["id"].as_str(), value["kind"].as_str()), (Some("lz4"), Some("transform")))
            }
            "config" => assert_eq!(value["chains"][0], "default"),
            _ => {
                assert_eq!(value["encoded_frames"].as_f64(), Some(plugin("axiomfs_plugin_encode_seconds_count", "lz4")))
            }
        }
    }
}

/// One request by hand: what is answered, up to the end of the connection.
fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the daemon listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

#[test]
fn metrics_are_served_over_http_on_this_machine_only() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("metrics-http");
    // Port 0: the kernel chooses one that is free, and the mount says which.
    repo.try_mount(&["--json", "--metrics", "0"]).unwrap_or_else(|e| panic!("{e}"));
    let log = repo.daemon_log();
    let url = log.split("\"metrics\":\"http://").nth(1).and_then(|rest| rest.split('"').next());
    let address = url.and_then(|url| url.strip_suffix("/metrics")).unwrap_or_else(|| panic!("no address in {log}"));
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    check(body);
    assert!(ask(address, "GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(ask(address, "POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(ask(address, "\r\n\r\n").starts_with("HTTP/1.1 400 "));
    // Who sends nothing, or without end, keeps the others waiting only for a bounded time.
    let silent = TcpStream::connect(address).expect("the daemon listens");
    let start = Instant::now();
    assert!(ask(address, "GET /metrics?x HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200 "));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    drop(silent);
    fs::write(repo.live().join("f"), b"the mount goes on").expect("written");
    repo.umount();
    assert!(TcpStream::connect(address).is_err(), "nobody listens after the daemon's end");
}

#[test]
fn plugins_are_listed_with_and_without_a_mount() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("plugin-list");
    let listed = |done: axiomfs_tests::run::Finished| -> Vec<String> {
        assert!(done.status.success(), "{}{}", done.stdout, done.stderr);
        let json: serde_json::Value = serde_json::from_str(&done.stdout).expect("JSON");
        json["plugins"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|p| p["id"].as_str().expect("an id").to_owned())
            .collect()
    };
    let of_the_build = listed(repo.axiomfs(&["plugin", "list", "--json"]));
    for id in ["aes-256-gcm", "fastcdc", "local", "lz4", "padme", "zstd"] {
        assert!(of_the_build.iter().any(|known| known == id), "{id} is not in {of_the_build:?}");
    }
    repo.mount();
    assert_eq!(listed(repo.axiomfs(&["plugin", "list", text(&repo.mnt), "--json"])), of_the_build);
    let names = fs::read_dir(repo.mnt.join(".axiomfs/plugins")).expect("listed");
    let mut names: Vec<String> = names.map(|e| e.expect("an entry").file_name().into_string().expect("text")).collect();
    names.sort();
    assert_eq!(names, of_the_build);
    let shown = repo.axiomfs(&["plugin", "list"]).stdout;
    assert!(
        shown.contains("padme") && shown.contains("store") && shown.lines().count() == of_the_build.len(),
        "{shown}"
    );
}
