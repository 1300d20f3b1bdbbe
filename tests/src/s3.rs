//! A real S3 server (SeaweedFS) on free ports of 127.0.0.1, with its data in a temporary directory, that never outlives
//! the tests.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::repo::scratch;

/// The access key that the server knows.
pub const ACCESS_KEY: &str = "AKAXIOMFSTEST";
/// Its secret: no test may find it in anything that the program writes.
pub const SECRET_KEY: &str = "a-secret-that-must-not-be-logged";
/// Longest wait for the server to answer.
const START: Duration = Duration::from_secs(30);

/// Ends the server when the pipe from the test closes, however the test ended.
const GUARD: &str = r#""$@" > "$LOG" 2>&1 < /dev/null &
server=$!
read -r _
kill -9 $server
wait $server 2> /dev/null
rm -rf "$DATA"
for port in $PORTS; do rm -f /tmp/seaweedfs-*-grpc-$((port + 10000)).sock; done"#;

/// A running server with one bucket, `vault`.
#[derive(Debug)]
pub struct S3Server {
    guard: Child,
    /// Where S3 requests go.
    pub port: u16,
    filer: u16,
    log: PathBuf,
}

/// The `weed` binary: `AXIOMFS_WEED`, or where `scripts/test` puts it.
///
/// # Panics
/// When there is none.
fn weed() -> PathBuf {
    if let Some(path) = std::env::var_os("AXIOMFS_WEED") {
        return path.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let path = cache.unwrap_or_default().join("axiomfs/s3-venv/bin/weed");
    assert!(path.is_file(), "{} is missing: scripts/test installs it; or set AXIOMFS_WEED", path.display());
    path
}

/// A port that nobody uses, and nobody uses the one ten thousand above it, where the server speaks with itself.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..2000 {
        // Spread over processes, since tests of several binaries may start servers at once.
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + ((std::process::id() * 37 + step * 7) % 12_000) as u16;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
    panic!("no free ports between 20000 and 42000");
}

impl S3Server {
    /// The server of this test binary, started by the first test that needs it. Each test takes a prefix of its own.
    pub fn shared() -> &'static S3Server {
        static SERVER: OnceLock<S3Server> = OnceLock::new();
        SERVER.get_or_init(S3Server::start)
    }

    /// Starts a server and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn start() -> S3Server {
        S3Server::start_with(&[])
    }

    /// Starts one that speaks TLS with this certificate and key, both PEM files.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn start_with_tls(certificate: &Path, key: &Path) -> S3Server {
        S3Server::start_with(&[
            format!("-s3.cert.file={}", certificate.display()),
            format!("-s3.key.file={}", key.display()),
        ])
    }

    fn start_with(options: &[String]) -> S3Server {
        // Its guard removes the directory: the server writes into it until its end.
        let dir = scratch("weed").keep();
        let (port, filer, master, volume) = (free_port(), free_port(), free_port(), free_port());
        let identities = format!(
            r#"{{"identities": [{{"name": "test", "credentials": [{{"accessKey": "{ACCESS_KEY}", "secretKey": "{SECRET_KEY}"}}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"]}}]}}"#
        );
        let config = dir.join("s3.json");
        fs::write(&config, identities).expect("the server's configuration can be written");
        let log = dir.join("weed.log");
        let mut command = Command::new("sh");
        command.arg("-c").arg(GUARD).arg("sh").arg(weed()).arg("server");
        command.arg(format!("-dir={}", dir.display())).arg("-s3").arg(format!("-s3.config={}", config.display()));
        command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=100", "-master.volumeSizeLimitMB=128"]);
        // Nothing but 127.0.0.1 is ever asked for anything.
        command.args(["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
        command.arg(format!("-s3.localSocket={}", dir.join("s3.sock").display()));
        command.arg(format!("-filer.localSocket={}", dir.join("filer.sock").display()));
        for (option, port) in
            [("s3.port", port), ("filer.port", filer), ("master.port", master), ("volume.port", volume)]
        {
            command.arg(format!("-{option}={port}"));
        }
        command.args(options);
        // It leaves sockets of its own in the directory for temporary files.
        command.env("PORTS", format!("{port} {filer} {master} {volume}"));
        command.env("LOG", &log).env("DATA", &dir).current_dir(&dir);
        let guard = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the server can be started");
        let server = S3Server { guard, port, filer, log };
        let begun = Instant::now();
        while !server.answers() {
            assert!(begun.elapsed() < START, "the S3 server does not answer: {}", server.said());
            thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// Whether the bucket can be made and a small object written and read back through S3's door.
    fn answers(&self) -> bool {
        let made = self.filer("POST", "/buckets/vault/", b"").is_ok_and(|(status, _)| status < 300 || status == 409);
        // An object can be stored once a volume is ready for it.
        made && self.filer("PUT", "/buckets/vault/ready", b"ready").is_ok_and(|(status, _)| status < 300)
            && self.filer("DELETE", "/buckets/vault/ready", b"").is_ok_and(|(status, _)| status < 300)
            && TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    /// What the server has written so far, its end.
    pub fn said(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        crate::run::tail(&String::from_utf8_lossy(&text)).to_owned()
    }

    /// `s3://vault/PREFIX?…` of this server.
    pub fn url(&self, prefix: &str) -> String {
        url_at(self.port, prefix)
    }

    /// The objects below a prefix, by name, straight from the server's disk.
    pub fn objects(&self, prefix: &str) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        let mut open = vec![prefix.trim_matches('/').to_owned()];
        while let Some(directory) = open.pop() {
            let path = format!("/buckets/vault/{directory}/?limit=100000");
            let Ok((200, body)) = self.filer("GET", &path, b"") else { continue };
            let listing: Value = serde_json::from_slice(&body).expect("a listing");
            for entry in listing["Entries"].as_array().into_iter().flatten() {
                let full = entry["FullPath"].as_str().expect("a path");
                let name = full.strip_prefix("/buckets/vault/").expect("a path in the bucket").to_owned();
                let is_directory = entry["Mode"].as_u64().is_some_and(|mode| mode & (1 << 31) != 0);
                if is_directory { open.push(name) } else { found.push((name, entry["FileSize"].as_u64().unwrap_or(0))) }
            }
        }
        found.sort();
        found
    }

    /// An object's bytes, straight from the server's disk.
    pub fn read(&self, name: &str) -> Vec<u8> {
        let (status, body) = self.filer("GET", &format!("/buckets/vault/{name}"), b"").expect("the server answers");
        assert_eq!(status, 200, "reading {name}");
        body
    }

    /// Replaces an object behind everybody's back.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        let (status, _) = self.filer("PUT", &format!("/buckets/vault/{name}"), bytes).expect("the server answers");
        assert!(status < 300, "writing {name}: {status}");
    }

    /// Removes an object behind everybody's back.
    pub fn remove(&self, name: &str) {
        let (status, _) = self.filer("DELETE", &format!("/buckets/vault/{name}"), b"").expect("the server answers");
        assert!(status < 300, "removing {name}: {status}");
    }

    /// One request to the server's own interface, which needs no signature.
    fn filer(&self, method: &str, path: &str, body: &[u8]) -> std::io::Result<(u16, Vec<u8>)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.filer))?;
        stream.set_read_timeout(Some(START))?;
        let kind = if method == "PUT" { "Content-Type: application/octet-stream\r\n" } else { "" };
        let len = body.len();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n{kind}Content-Length: {len}\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(answer.len().saturating_sub(4));
        let status = String::from_utf8_lossy(&answer[..end.min(32)]);
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Ok((status, answer.split_off((end + 4).min(answer.len()))))
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        if let Err(error) = self.guard.wait() {
            eprintln!("the S3 server's guard can't be waited for: {error}");
        }
    }
}

/// `s3://vault/PREFIX?…` of whatever answers at `port`.
pub fn url_at(port: u16, prefix: &str) -> String {
    format!("s3://vault/{prefix}?endpoint=http://127.0.0.1:{port}&region=us-east-1")
}

/// The variables that give the program the server's credentials and keep it from any other.
pub fn environment() -> [(&'static str, &'static str); 5] {
    [
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
    ]
}
