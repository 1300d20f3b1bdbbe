//! Credentials and endpoints from where AWS's own tools take them, and nothing secret anywhere else.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axiomfs_tests::credentials::{
    METADATA_TOKEN, PORTAL_TOKEN, SESSION_TOKEN, Source, TEMPORARY_SECRET, door, sign_on,
};
use axiomfs_tests::repo::{TestRepo, beside_others, text};
use axiomfs_tests::run::{Finished, run};
use axiomfs_tests::s3::{ACCESS_KEY, S3Server, SECRET_KEY, url_at};
use axiomfs_tests::source::{check_noise, write_noise};

const LONG: Duration = Duration::from_secs(600);
/// The passphrase of the tests' repositories.
const PASSPHRASE: &str = "correct horse battery staple";

/// Nothing secret stands in `said`.
fn no_secret(said: &str, whence: &str) {
    for secret in [SECRET_KEY, TEMPORARY_SECRET, SESSION_TOKEN, METADATA_TOKEN, PORTAL_TOKEN, PASSPHRASE] {
        let at = said.find(secret).map(|at| said[..at].lines().last().unwrap_or_default());
        assert!(at.is_none(), "{secret} in {whence}, after: {at:?}");
    }
}

/// All files below `dir` that can be read, as one text.
fn contents(dir: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())).flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.push_str(&contents(&path));
        } else {
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            all.push_str(&format!("\n== {}\n{}", path.display(), String::from_utf8_lossy(&bytes)));
        }
    }
    all
}

/// Nothing secret in what a mount shows and keeps: control files, log, state, cache.
fn shows_no_secret(repo: &TestRepo) {
    let shown = contents(&repo.mnt.join(".axiomfs"));
    for file in ["status", "events", "metrics", "plugins/s3/config", "chain.yaml"] {
        assert!(shown.contains(&format!(".axiomfs/{file}\n")), "{file} was read");
    }
    no_secret(&shown, "the control files");
    no_secret(&contents(&repo.state), "the state directory");
    no_secret(&contents(&repo.cache), "the cache directory");
}

/// Something is written, stored, and read again from the bucket alone, with whatever credentials there are.
fn works(repo: &mut TestRepo, what: &str) {
    repo.try_mount(&[]).unwrap_or_else(|error| panic!("{what}: {error}"));
    write_noise(&repo.live().join("file"), 3, 2 << 20);
    repo.sync();
    shows_no_secret(repo);
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.try_mount(&[]).unwrap_or_else(|error| panic!("{what}: {error}"));
    check_noise(&repo.live().join("file"), 3, 2 << 20);
    repo.umount();
    let log = fs::read_to_string(repo.dir.join("daemon.log")).expect("what the daemon said");
    no_secret(&log, "the log");
}

#[test]
fn credentials_come_from_a_profile_and_stand_nowhere() {
    let _slot = beside_others();
    let server = S3Server::shared();
    let mut repo = TestRepo::without_init("s3-profile");
    let url = format!("{}&profile=vault", server.url("profile"));
    repo.store = PathBuf::from(&url);
    let file = repo.dir.join("credentials");
    fs::write(&file, format!("[vault]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"))
        .expect("a file of credentials");
    let axiomfs = |args: &[&str]| {
        let mut command = repo.command(args);
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        command.env("AWS_SHARED_CREDENTIALS_FILE", &file).env("AXIOMFS_LOG", "trace");
        run(&mut command, LONG)
    };
    let made = axiomfs(&["init", &url, "--kdf-memory", "64MiB"]);
    assert!(made.status.success(), "{}{}", made.stdout, made.stderr);
    let args: Vec<String> = [vec!["mount".to_owned()], repo.mount_args()].concat();
    let mounted = axiomfs(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(mounted.status.success(), "{}{}", mounted.stdout, mounted.stderr);
    fs::write(repo.live().join("file"), b"text").expect("writes");
    shows_no_secret(&repo);
    let ended = axiomfs(&["umount", text(&repo.mnt)]);
    assert!(ended.status.success(), "{}{}", ended.stdout, ended.stderr);
    let log = fs::read_to_string(repo.state.join("axiomfs.log")).expect("the log of a mount in the background");
    assert!(log.contains("mounted"), "{log}");
    no_secret(&contents(&repo.state), "the state directory");
    let mut nobody = repo.command(&["snapshot", "list", &url]);
    let nobody = run(nobody.env_remove("AWS_ACCESS_KEY_ID").env("AXIOMFS_LOG", "trace"), LONG);
    assert!(!nobody.status.success(), "without the profile's file there are no credentials");
    for Finished { stdout, stderr, .. } in [made, mounted, ended, nobody] {
        no_secret(&(stdout + &stderr), "an answer");
    }
}

/// Temporary ones, with a session token, from an instance's metadata service and from single sign-on, all logged as can be.
#[test]
fn temporary_credentials_come_from_the_instance_or_single_sign_on_and_stand_nowhere() {
    let _slot = beside_others();
    let server = S3Server::shared();
    let (door, source) = (door(server), Source::start());
    let url = url_at(door.port, "temporary");
    let mut repo = TestRepo::in_bucket("s3-temporary", &server.url("temporary"));
    repo.store = PathBuf::from(&url);
    let error = repo.try_mount(&[]).expect_err("the door knows temporary credentials only");
    assert!(error.contains("credentials"), "{error}");
    let at = format!("http://127.0.0.1:{}", source.port);
    repo.environment("AXIOMFS_LOG", "trace")
        .environment("AWS_ACCESS_KEY_ID", "")
        .environment("AWS_SECRET_ACCESS_KEY", "");

    repo.environment("AWS_EC2_METADATA_DISABLED", "false").environment("AWS_EC2_METADATA_SERVICE_ENDPOINT", &at);
    works(&mut repo, "an instance");
    let handed_out = source.handed_out();
    assert!((1..=4).contains(&handed_out), "two mounts asked {handed_out} times: what was told is kept");

    repo.environment("AWS_EC2_METADATA_DISABLED", "true").environment("AWS_ENDPOINT_URL_SSO", &at);
    let home = repo.dir.join("home");
    sign_on(&home);
    repo.environment("HOME", text(&home)).environment("AWS_CONFIG_FILE", text(&home.join(".aws/config")));
    repo.store = PathBuf::from(format!("{url}&profile=sso"));
    works(&mut repo, "single sign-on");
    assert!(source.handed_out() > handed_out, "the portal was asked");
    let log = fs::read_to_string(repo.dir.join("daemon.log")).expect("what the daemon said");
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "it was as verbose as it can be");

    fs::remove_dir_all(home.join(".aws/sso")).expect("logged out");
    let error = repo.try_mount(&[]).expect_err("nobody is signed on");
    assert!(error.contains("credentials"), "{error}");
    no_secret(&error, "an error");
}

/// With a server that AWS's own configuration names everything is as with one that the URL names.
#[test]
fn an_endpoint_of_the_environment_or_the_profile_counts_like_one_in_the_url() {
    let _slot = beside_others();
    let server = S3Server::shared();
    let mut repo = TestRepo::in_bucket("s3-endpoint", &server.url("endpoint"));
    // By a name: with an address the bucket stands in the path anyway.
    let at = format!("http://localhost:{}", server.port);
    let config = repo.dir.join("config");
    let profiles =
        format!("[default]\nregion = eu-nowhere-1\n[profile here]\nendpoint_url = {at}\nregion = us-east-1\n");
    fs::write(&config, profiles).expect("a configuration");
    let list = |url: &str, environment: &[(&str, &str)]| {
        let mut command = repo.command(&["snapshot", "list", url]);
        run(command.envs(environment.iter().copied()), LONG)
    };
    let file = ("AWS_CONFIG_FILE", text(&config));
    for (url, environment) in [
        ("s3://vault/endpoint", [("AWS_ENDPOINT_URL", at.as_str()), ("AWS_REGION", "us-east-1")]),
        (
            "s3://vault/endpoint?region=us-east-1",
            [("AWS_ENDPOINT_URL_S3", at.as_str()), ("AWS_ENDPOINT_URL", "http://127.0.0.1:1")],
        ),
        ("s3://vault/endpoint", [("AWS_PROFILE", "here"), file]),
        ("s3://vault/endpoint?profile=here", [("AWS_PROFILE", "default"), file]),
    ] {
        let listed = list(url, &environment);
        assert!(listed.status.success(), "{url} {environment:?}: {}{}", listed.stdout, listed.stderr);
        // No metadata service is asked for a region, which would take seconds.
        assert!(listed.took < Duration::from_secs(20), "{url} {environment:?} took {:?}", listed.took);
    }
    // The URL goes first.
    let listed = list(&server.url("endpoint"), &[("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")]);
    assert!(listed.status.success(), "{}{}", listed.stdout, listed.stderr);

    repo.store = PathBuf::from("s3://vault/endpoint?region=us-east-1");
    repo.environment("AWS_ENDPOINT_URL", &at);
    works(&mut repo, "an endpoint in the environment");
}
