//! Where temporary credentials come from: an instance's metadata service and the portal of single sign-on, both on 127.0.0.1;
//! and a server that takes them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::proxy::Proxy;
use crate::s3::{ACCESS_KEY, S3Server, SECRET_KEY};
use crate::sigv4::{Signer, sign_again};

/// The access key that is handed out.
pub const TEMPORARY_KEY: &str = "ASIATEMPORARYTEST";
/// Its secret.
pub const TEMPORARY_SECRET: &str = "a-temporary-secret-that-must-not-be-logged";
/// The session token, without which the two are worth nothing.
pub const SESSION_TOKEN: &str = "a-session-token-that-must-not-be-logged";
/// What the metadata service wants to see before it says anything.
pub const METADATA_TOKEN: &str = "a-metadata-token-that-must-not-be-logged";
/// What the portal wants to see.
pub const PORTAL_TOKEN: &str = "a-portal-token-that-must-not-be-logged";
/// Where the portal's user would log in: names the file of his token.
const START_URL: &str = "https://axiomfs.example/start";
/// SHA-1 of that, as the AWS tools name the file.
const TOKEN_FILE: &str = "b4d9c86050be83c674aa3e11d6cdabc1e88f9b45.json";

/// A proxy that takes the temporary credentials, with their token, and nothing else.
///
/// # Panics
/// When it can't be started.
pub fn door(server: &S3Server) -> Proxy {
    let proxy = Proxy::start(server.port);
    let by = Signer { access_key: TEMPORARY_KEY, secret_key: TEMPORARY_SECRET };
    let with = Signer { access_key: ACCESS_KEY, secret_key: SECRET_KEY };
    proxy.rewrite(move |head| {
        let again = sign_again(head, by, SESSION_TOKEN, with);
        again.or_else(|| Some(head.replace("Credential=", "Credential=STRANGER")))
    });
    proxy
}

/// Hands out credentials to who asks as the AWS tools do.
#[derive(Debug)]
pub struct Source {
    /// Where it listens.
    pub port: u16,
    handed_out: Arc<AtomicU64>,
}

impl Source {
    /// Starts one; it ends with the process.
    ///
    /// # Panics
    /// When there is no port.
    pub fn start() -> Source {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let handed_out = Arc::<AtomicU64>::default();
        let counter = handed_out.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Err(error) = answer(&client, &counter) {
                    eprintln!("a source of credentials could not answer: {error}");
                }
            }
        });
        Source { port, handed_out }
    }

    /// How often credentials were handed out.
    pub fn handed_out(&self) -> u64 {
        self.handed_out.load(Ordering::SeqCst)
    }
}

/// One request, one answer, and the end of the connection.
fn answer(mut client: &TcpStream, handed_out: &AtomicU64) -> std::io::Result<()> {
    let mut lines = BufReader::new(client.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut headers = Vec::new();
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        headers.push(line);
    }
    let has = |name: &str, value: &str| {
        let is_it = |line: &String| {
            line.split_once(':').is_some_and(|(n, v)| n.eq_ignore_ascii_case(name) && v.trim() == value)
        };
        headers.iter().any(is_it)
    };
    let instance = has("x-aws-ec2-metadata-token", METADATA_TOKEN);
    let body = match request.split(' ').take(2).collect::<Vec<_>>()[..] {
        ["PUT", "/latest/api/token"] => Some(METADATA_TOKEN.to_owned()),
        ["GET", "/latest/meta-data/iam/security-credentials/"] if instance => Some("backup".to_owned()),
        ["GET", "/latest/meta-data/iam/security-credentials/backup"] if instance => {
            handed_out.fetch_add(1, Ordering::SeqCst);
            Some(format!(
                r#"{{"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z", "AccessKeyId": "{TEMPORARY_KEY}",
                "SecretAccessKey": "{TEMPORARY_SECRET}", "Token": "{SESSION_TOKEN}", "Expiration": "2099-01-01T00:00:00Z"}}"#
            ))
        }
        ["GET", target]
            if target.starts_with("/federation/credentials?") && has("x-amz-sso_bearer_token", PORTAL_TOKEN) =>
        {
            handed_out.fetch_add(1, Ordering::SeqCst);
            Some(format!(
                r#"{{"roleCredentials": {{"accessKeyId": "{TEMPORARY_KEY}", "secretAccessKey": "{TEMPORARY_SECRET}",
                "sessionToken": "{SESSION_TOKEN}", "expiration": 4070908800000}}}}"#
            ))
        }
        _ => None,
    };
    let (status, body) = body.map_or(("403 Forbidden", String::new()), |body| ("200 OK", body));
    let len = body.len();
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nx-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\
         Content-Length: {len}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// Writes what `aws sso login` leaves in a home directory: a configuration with the profile `sso`, and a token.
///
/// # Panics
/// When it can't be written.
pub fn sign_on(home: &Path) {
    let cache = home.join(".aws/sso/cache");
    fs::create_dir_all(&cache).expect("directories");
    let config = format!(
        "[profile sso]\nsso_start_url = {START_URL}\nsso_region = us-east-1\nsso_account_id = 123456789012\nsso_role_name = backup\n"
    );
    fs::write(home.join(".aws/config"), config).expect("a configuration");
    let token = format!(
        r#"{{"startUrl": "{START_URL}", "region": "us-east-1", "accessToken": "{PORTAL_TOKEN}", "expiresAt": "2099-01-01T00:00:00Z"}}"#
    );
    fs::write(cache.join(TOKEN_FILE), token).expect("a token");
}
