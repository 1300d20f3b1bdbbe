use super::*;
use crate::control::PluginFiles;

/// Answers every command with itself; refuses those that begin with "bad". Remembers what it was told.
#[derive(Default)]
struct Scripted {
    heard: Mutex<Vec<(String, u32)>>,
    chains: Mutex<String>,
}

impl Control for Scripted {
    fn execute(&self, line: &str, Who { uid, .. }: Who) -> ControlReply {
        lock(&self.heard).push((line.into(), uid));
        let errno = if line.starts_with("bad") { libc::EBUSY } else { 0 };
        ControlReply { json: format!("{{\"heard\":\"{line}\"}}"), errno }
    }
    fn status(&self) -> String {
        "{\"state\":\"ok\"}".into()
    }
    fn chain_yaml(&self) -> String {
        lock(&self.chains).clone()
    }
    fn set_chain_yaml(&self, text: &str, Who { uid, .. }: Who) -> ControlReply {
        lock(&self.heard).push((text.into(), uid));
        if text.is_empty() {
            return ControlReply { json: "{\"ok\":false}".into(), errno: libc::EINVAL };
        }
        *lock(&self.chains) = text.into();
        ControlReply { json: "{\"ok\":true}".into(), errno: 0 }
    }
    fn metrics(&self) -> String {
        "m 1\n".into()
    }
    fn events(&self) -> String {
        String::new()
    }
    fn audit_log(&self) -> Option<String> {
        None
    }
    fn snapshots(&self) -> String {
        "{}".into()
    }
    fn advice(&self) -> String {
        "No advice".into()
    }
    fn plugins(&self) -> Vec<PluginFiles> {
        ["zstd", "../etc", "aes"]
            .map(|id| PluginFiles {
                id: id.into(),
                descriptor: format!("d {id}"),
                config: "c".into(),
                stats: "s".into(),
            })
            .into()
    }
}

fn user(uid: u32) -> Who {
    Who { uid, pid: 1 }
}

const CONTROL: ControlNode = ControlNode::File(ControlFile::Control);
const CHAINS: ControlNode = ControlNode::File(ControlFile::ChainYaml);

fn files() -> (Arc<Scripted>, ControlFiles) {
    let control = Arc::new(Scripted::default());
    (control.clone(), ControlFiles::new(control))
}

fn whole(files: &ControlFiles, node: ControlNode) -> String {
    let handle = files.open(node, false).unwrap();
    let bytes = files.read(handle, 0, 1 << 20).unwrap();
    files.release(handle);
    String::from_utf8(bytes).unwrap()
}

#[test]
fn the_reply_is_read_back_on_the_descriptor_of_the_command() {
    let (control, files) = files();
    let handle = files.open(CONTROL, true).unwrap();
    assert_eq!(files.read(handle, 0, 100).unwrap(), b"");
    assert_eq!(files.write(handle, Some(0), b"chain show\n", user(1000)), Ok(11));
    assert_eq!(*lock(&control.heard), [("chain show".to_owned(), 1000)]);
    let reply = b"{\"heard\":\"chain show\"}\n";
    assert_eq!(files.read(handle, 11, 5).unwrap(), &reply[..5]);
    assert_eq!(files.read(handle, 16, 100).unwrap(), &reply[5..]);
    assert_eq!(files.read(handle, 100, 100).unwrap(), b"", "a reply is read once");
    assert_eq!(files.write(handle, Some(200), b"second", user(0)), Ok(6));
    assert_eq!(files.read(handle, 206, 100).unwrap(), b"{\"heard\":\"second\"}\n");
}

#[test]
fn who_can_only_write_gets_errno_and_finds_the_text_in_reply() {
    let (_, files) = files();
    let handle = files.open(CONTROL, true).unwrap();
    assert_eq!(files.write(handle, Some(0), b"bad luck\n", user(0)), Err(Errno::EBUSY));
    files.release(handle);
    assert_eq!(whole(&files, ControlNode::File(ControlFile::Reply)), "{\"heard\":\"bad luck\"}\n");
}

#[test]
fn what_is_no_command_never_reaches_the_commands() {
    let (control, files) = files();
    let handle = files.open(CONTROL, false).unwrap();
    let long = vec![b'x'; MAX_COMMAND + 1];
    for data in [b"\n".as_slice(), b"", b"one\ntwo\n", b"\xff\xfe", b"a\0b", &long] {
        assert_eq!(files.write(handle, Some(0), data, user(0)), Err(Errno::EINVAL));
        let reply = String::from_utf8(files.read(handle, 0, 4096).unwrap()).unwrap();
        let reply: serde_json::Value = serde_json::from_str(&reply).unwrap();
        assert_eq!((&reply["ok"], &reply["errno"]), (&json!(false), &json!("EINVAL")));
    }
    assert!(lock(&control.heard).is_empty());
    assert_eq!(files.write(handle, Some(0), &long[..MAX_COMMAND], user(0)), Ok(4096));
}

#[test]
fn chains_are_applied_when_closed_and_only_once() {
    let (control, files) = files();
    let handle = files.open(CHAINS, true).unwrap();
    files.write(handle, Some(0), b"chains: ", user(0)).unwrap();
    files.write(handle, Some(8), b"{}\n", user(0)).unwrap();
    assert!(lock(&control.heard).is_empty(), "nothing is applied before the descriptor is closed");
    assert_eq!(files.flush(handle, user(7)), Ok(()));
    assert_eq!(files.flush(handle, user(7)), Ok(()), "a second close of a copied descriptor");
    assert_eq!(*lock(&control.heard), [("chains: {}\n".to_owned(), 7)]);
    assert_eq!(whole(&files, CHAINS), "chains: {}\n");
}

#[test]
fn closing_reports_why_chains_were_refused() {
    let (control, files) = files();
    let handle = files.open(CHAINS, true).unwrap();
    assert_eq!(files.flush(handle, user(0)), Ok(()), "a shell closes a copy before the program behind it writes");
    assert!(lock(&control.heard).is_empty());
    files.truncate(handle, 0).unwrap();
    assert_eq!(files.flush(handle, user(0)), Err(Errno::EINVAL), "cut and closed is a change");
    assert_eq!(whole(&files, ControlNode::File(ControlFile::Reply)), "{\"ok\":false}\n");
    files.write(handle, Some(0), b"\xff", user(0)).unwrap();
    assert_eq!(files.flush(handle, user(0)), Err(Errno::EINVAL));
    assert_eq!(lock(&control.heard).len(), 1, "what isn't UTF-8 isn't passed on");
}

#[test]
fn a_reader_of_chains_applies_nothing() {
    let (control, files) = files();
    *lock(&control.chains) = "abc".into();
    let handle = files.open(CHAINS, false).unwrap();
    assert_eq!(files.read(handle, 1, 10).unwrap(), b"bc");
    assert_eq!(files.flush(handle, user(0)), Ok(()));
    assert!(lock(&control.heard).is_empty());
    files.truncate(handle, 1).unwrap();
    files.write(handle, Some(3), b"d", user(0)).unwrap();
    assert_eq!(files.flush(handle, user(0)), Ok(()));
    assert_eq!(*lock(&control.chains), "a\0\0d");
}

#[test]
fn what_is_collected_is_bounded() {
    let (_, files) = files();
    let handle = files.open(CHAINS, true).unwrap();
    assert_eq!(files.write(handle, Some(MAX_CHAIN_YAML as u64), b"x", user(0)), Err(Errno::EFBIG));
    assert_eq!(files.write(handle, Some(u64::MAX), b"x", user(0)), Err(Errno::EFBIG));
    assert_eq!(files.truncate(handle, u64::MAX), Err(Errno::EFBIG));
}

#[test]
fn an_open_file_shows_one_state_and_can_not_be_written() {
    let (control, files) = files();
    *lock(&control.chains) = "old".into();
    let handle = files.open(CHAINS, false).unwrap();
    *lock(&control.chains) = "new".into();
    assert_eq!(files.read(handle, 0, 10).unwrap(), b"old");
    let status = files.open(ControlNode::File(ControlFile::Status), false).unwrap();
    assert_eq!(files.write(status, Some(0), b"x", user(0)), Err(Errno::EBADF));
    assert_eq!(whole(&files, ControlNode::File(ControlFile::Events)), "");
}

#[test]
fn handles_end_with_release_and_are_bounded() {
    let (_, files) = files();
    let first = files.open(CONTROL, false).unwrap();
    files.release(first);
    assert_eq!(files.read(first, 0, 1), Err(Errno::EBADF));
    for _ in 0..MAX_OPEN {
        files.open(CONTROL, false).unwrap();
    }
    assert_eq!(files.open(CONTROL, false), Err(Errno::EMFILE));
}

#[test]
fn plugins_with_names_that_are_no_file_names_are_left_out() {
    let (_, files) = files();
    assert_eq!(files.plugins(), [(0, "zstd".to_owned()), (1, "aes".to_owned())]);
    assert_eq!(whole(&files, ControlNode::PluginFile(1, PluginFile::Descriptor)), "d aes\n");
    assert_eq!(files.open(ControlNode::PluginFile(2, PluginFile::Stats), false), Err(Errno::ENOENT));
}
