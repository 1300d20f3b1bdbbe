//! Where the passphrase comes from. Never a command line: anybody could read it in the process list.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zeroize::Zeroizing;

use crate::args::PassphraseArgs;
use crate::failure::Failure;
use crate::{output, system};

/// Name of the variable that may hold a passphrase.
pub const VARIABLE: &str = "AXIOMFS_PASSPHRASE";
/// Longest passphrase in bytes.
const MAX_LEN: u64 = 4096;

/// Bytes that are wiped when they are dropped.
pub type Secret = Zeroizing<Vec<u8>>;

/// What the environment held when the process began. It is taken out of there before anything else runs, also when
/// another source wins, so that no child process inherits it.
pub struct Environment(Option<Secret>);

impl Environment {
    /// Takes the variable. Call it before any thread exists.
    pub fn take() -> Self {
        Self(system::take_secret_from_environment(VARIABLE).filter(|secret| !secret.is_empty()))
    }

    /// One that holds nothing: for a passphrase that must not come from there.
    pub fn none() -> Self {
        Self(None)
    }
}

/// Whether a typed passphrase is asked for once or, because a typing error would lock the user out, twice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// To open.
    Once,
    /// To set.
    Twice,
}

/// The passphrase from the first source there is: file, descriptor, environment, terminal.
///
/// # Errors
/// [`Failure`] if the source can't be read, is empty or too long.
pub fn obtain(args: &PassphraseArgs, environment: Environment, ask: Ask) -> Result<Secret, Failure> {
    if let Some(path) = &args.passphrase_file {
        return from_file(path);
    }
    if let Some(fd) = args.passphrase_fd {
        let file = system::adopt_descriptor(fd)
            .map_err(|error| Failure::usage(format!("Descriptor {fd} of --passphrase-fd is not open: {error}")))?;
        return first_line(file, &format!("Descriptor {fd}"));
    }
    if let Some(secret) = environment.0 {
        output::complain(&format!(
            "axiomfs: warning: the passphrase came from {VARIABLE}, which other programs of this user can read; \
             --passphrase-file is safer"
        ));
        return checked(secret, VARIABLE);
    }
    from_terminal(ask)
}

fn from_file(path: &Path) -> Result<Secret, Failure> {
    let name = path.display();
    let unreadable = |error: io::Error| Failure::caused(format!("Could not read the passphrase file {name}"), &error);
    let file = File::open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if meta.is_dir() {
        return Err(Failure::usage(format!("The passphrase file {name} is a directory")));
    }
    if meta.is_file() && meta.mode() & 0o077 != 0 {
        output::complain(&format!(
            "axiomfs: warning: other users may read the passphrase file {name}; run: chmod 600 {name}"
        ));
    }
    first_line(file, &format!("The passphrase file {name}"))
}

fn first_line(mut source: impl Read, name: &str) -> Result<Secret, Failure> {
    // One buffer of the full size: growing would leave copies behind that nobody wipes.
    let mut buffer = Secret::new(vec![0; MAX_LEN as usize + 2]);
    let mut filled = 0;
    while filled < buffer.len() && !buffer[..filled].contains(&b'\n') {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::caused(format!("{name} can't be read"), &error)),
        }
    }
    let end = buffer[..filled].iter().position(|byte| *byte == b'\n').unwrap_or(filled);
    buffer.truncate(end);
    if end < filled && buffer.last() == Some(&b'\r') {
        buffer.pop();
    }
    checked(buffer, name)
}

fn checked(secret: Secret, name: &str) -> Result<Secret, Failure> {
    match secret.len() as u64 {
        0 => Err(Failure::usage(format!("{name} holds no passphrase")).hint("a passphrase has at least one character")),
        1..=MAX_LEN => Ok(secret),
        _ => Err(Failure::usage(format!("{name} holds a passphrase longer than {MAX_LEN} bytes"))),
    }
}

fn from_terminal(ask: Ask) -> Result<Secret, Failure> {
    let terminal = File::options().read(true).write(true).open("/dev/tty").map_err(|_| {
        Failure::usage("There is no terminal to ask for the passphrase")
            .hint("use --passphrase-file FILE or --passphrase-fd FD")
    })?;
    let secret = prompt(&terminal, "Passphrase: ")?;
    if ask == Ask::Twice && *prompt(&terminal, "The same again: ")? != *secret {
        return Err(Failure::new("The two passphrases differ").hint("nothing was made; try again"));
    }
    Ok(secret)
}

fn prompt(mut terminal: &File, question: &str) -> Result<Secret, Failure> {
    let failed = |error: io::Error| Failure::caused("Could not ask on the terminal", &error);
    let silent = system::SilentTerminal::new(terminal).map_err(failed)?;
    terminal.write_all(question.as_bytes()).map_err(failed)?;
    let line = typed_line(terminal).map_err(failed);
    drop(silent);
    terminal.write_all(b"\n").map_err(failed)?;
    match line? {
        Some(line) => checked(line, "The terminal"),
        None => Err(Failure::new("Interrupted").hint("nothing was changed")),
    }
}

/// What is typed up to the end of the line, with the keys that edit one; `None` after Ctrl-C.
///
/// Byte by byte: a buffered reader would keep a copy, and swallow what is typed for the next question.
fn typed_line(mut terminal: impl Read) -> io::Result<Option<Secret>> {
    const INTERRUPT: u8 = 0x03;
    const END: u8 = 0x04;
    const BACKSPACE: u8 = 0x08;
    const KILL_LINE: u8 = 0x15;
    const DELETE: u8 = 0x7f;
    let mut line = Secret::new(Vec::with_capacity(MAX_LEN as usize + 1));
    let mut byte = [0u8; 1];
    while line.len() as u64 <= MAX_LEN && terminal.read(&mut byte)? == 1 {
        match byte[0] {
            b'\n' | b'\r' | END => break,
            INTERRUPT => return Ok(None),
            KILL_LINE => line.clear(),
            // One character, not one byte of UTF-8.
            BACKSPACE | DELETE => while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            other => line.push(other),
        }
    }
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_line_counts_without_its_end() {
        for (text, expected) in
            [("abc", "abc"), ("abc\n", "abc"), ("abc\r\nmore", "abc"), (" a b \n", " a b "), ("ä\n", "ä")]
        {
            assert_eq!(first_line(text.as_bytes(), "x").unwrap().as_slice(), expected.as_bytes(), "{text:?}");
        }
    }

    #[test]
    fn empty_and_endless_are_refused() {
        for text in ["", "\n", "\nabc"] {
            assert_eq!(first_line(text.as_bytes(), "It").unwrap_err().code(), 2, "{text:?}");
        }
        let longest = "x".repeat(4096);
        assert_eq!(first_line(longest.as_bytes(), "It").unwrap().len(), 4096);
        assert!(
            first_line(format!("{longest}y").as_bytes(), "It").unwrap_err().to_string().contains("longer than 4096")
        );
    }

    #[test]
    fn a_typed_line_can_be_edited() {
        let typed = |keys: &str| typed_line(keys.as_bytes()).unwrap().map(|line| line.to_vec());
        assert_eq!(typed("abc\nrest"), Some(b"abc".to_vec()));
        assert_eq!(typed("ab\u{7f}\u{8}xy\r"), Some(b"xy".to_vec()));
        assert_eq!(typed("aäö\u{7f}b\n"), Some("aäb".as_bytes().to_vec()));
        assert_eq!(typed("\u{7f}\u{7f}a\n"), Some(b"a".to_vec()));
        assert_eq!(typed("wrong\u{15}right\n"), Some(b"right".to_vec()));
        assert_eq!(typed("half\u{3}\n"), None);
        assert_eq!(typed("end\u{4}"), Some(b"end".to_vec()));
    }

    #[test]
    fn a_missing_file_is_named() {
        let failure = from_file(Path::new("/nonexistent/secret")).unwrap_err().to_string();
        assert!(failure.contains("/nonexistent/secret") && failure.contains("No such file"), "{failure}");
    }
}
