//! What was done to the passphrases and sealing keys of a repository, told in its keyring (format.md §4): so that it comes
//! into the audit logs of all volumes, whether a mount runs then or not.

use crate::audit::cut;
use crate::codec::{Malformed, Put, Reader};

/// Most changes that a keyring tells of; with each one more the oldest goes.
pub(crate) const KEY_CHANGES_KEPT: usize = 512;
/// Longest text of a change, in bytes.
const TEXT_MAX: usize = 256;
/// Bytes of a change without its texts.
const FIXED: usize = 4 + 8 + 4 + 4 + 2 + 2;

/// Something that was done to passphrases or keys beside mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyChange {
    /// Counts up from 1 without gaps.
    pub number: u32,
    /// When, in nanoseconds since 1970.
    pub time_ns: i64,
    /// The user who did it.
    pub uid: u32,
    /// The process that did it.
    pub pid: u32,
    /// What was done.
    pub what: String,
    /// How it ended; `begun` stands before anything is done.
    pub result: String,
}

/// One that is to be told.
#[derive(Debug, Clone, Copy)]
pub struct NewKeyChange<'a> {
    /// The user who does it.
    pub uid: u32,
    /// The process that does it.
    pub pid: u32,
    /// What is done. Never a secret.
    pub what: &'a str,
    /// How it ended.
    pub result: &'a str,
}

impl NewKeyChange<'_> {
    pub(crate) fn numbered(self, number: u32, time_ns: i64) -> KeyChange {
        let (what, result) = (cut(self.what, TEXT_MAX).to_owned(), cut(self.result, TEXT_MAX).to_owned());
        KeyChange { number, time_ns, uid: self.uid, pid: self.pid, what, result }
    }
}

impl KeyChange {
    /// Bytes that [`encode_all`](Self::encode_all) appends.
    pub(crate) fn encoded_len(changes: &[Self]) -> usize {
        let one = |change: &Self| FIXED + change.what.len() + change.result.len();
        if changes.is_empty() { 0 } else { 2 + changes.iter().map(one).sum::<usize>() }
    }

    /// Appends all; nothing where there are none.
    pub(crate) fn encode_all(changes: &[Self], out: &mut Vec<u8>) {
        if changes.is_empty() {
            return;
        }
        out.put_u16(u16::try_from(changes.len()).expect("few are kept"));
        for change in changes {
            out.put_u32(change.number);
            out.put_i64(change.time_ns);
            out.put_u32(change.uid);
            out.put_u32(change.pid);
            out.put_bytes16(change.what.as_bytes());
            out.put_bytes16(change.result.as_bytes());
        }
    }

    /// What is left of `r` by then.
    pub(crate) fn decode_all(r: &mut Reader<'_>) -> Result<Vec<Self>, Malformed> {
        let mut changes: Vec<Self> = Vec::new();
        if r.is_empty() {
            return Ok(changes);
        }
        for _ in 0..r.count16(FIXED, KEY_CHANGES_KEPT)? {
            let (number, time_ns, uid, pid) = (r.u32()?, r.i64()?, r.u32()?, r.u32()?);
            let (what, result) = (text(r)?, text(r)?);
            if number == 0 || changes.last().is_some_and(|last| last.number.checked_add(1) != Some(number)) {
                return Err(Malformed("its changes are not numbered one by one"));
            }
            changes.push(Self { number, time_ns, uid, pid, what, result });
        }
        if changes.is_empty() { Err(Malformed("it tells of no changes, at length")) } else { Ok(changes) }
    }
}

fn text(r: &mut Reader<'_>) -> Result<String, Malformed> {
    let bytes = r.bytes16()?;
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed("a change is not told in UTF-8"))?;
    if bytes.len() <= TEXT_MAX { Ok(text.to_owned()) } else { Err(Malformed("a change is told at too great length")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_as_they_were_written_and_nothing_else_is() {
        let new = |what| NewKeyChange { uid: 1000, pid: 7, what, result: "ok" };
        let long = "ä".repeat(200);
        let all = vec![new("a passphrase added").numbered(8, -5), new(&long).numbered(9, 1_700_000_000_000_000_000)];
        assert_eq!(all[1].what.len(), TEXT_MAX);
        let mut bytes = Vec::new();
        KeyChange::encode_all(&all, &mut bytes);
        assert_eq!(bytes.len(), KeyChange::encoded_len(&all));
        let mut r = Reader::new(&bytes);
        assert_eq!(KeyChange::decode_all(&mut r).ok().unwrap(), all);
        assert!(r.is_empty());
        for cut in 1..bytes.len() {
            assert!(KeyChange::decode_all(&mut Reader::new(&bytes[..cut])).is_err(), "{cut}");
        }
        let mut gap = Vec::new();
        KeyChange::encode_all(&[all[0].clone(), KeyChange { number: 10, ..all[1].clone() }], &mut gap);
        assert!(KeyChange::decode_all(&mut Reader::new(&gap)).is_err(), "one is missing");
        assert!(KeyChange::decode_all(&mut Reader::new(&[0, 0])).is_err(), "none are not written");
    }
}
