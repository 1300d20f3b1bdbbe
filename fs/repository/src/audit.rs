//! The audit log: who did what, as a chain of records in the live tree whose last hash every head carries
//! (format-records.md, "Audit records").

use std::collections::VecDeque;

use crate::ids::{RepositoryId, VolumeId};
use crate::record::{Fields, KIND_AUDIT, RecordError, Time, put_time, put_varint};

/// How many records are kept: the oldest goes when one more comes.
pub const AUDIT_KEPT: u64 = 16_384;
/// Longest text of an action, of what it was about, and of its result, in bytes; a longer one is cut off.
const ACTION_MAX: usize = 32;
const SUBJECT_MAX: usize = 1024;
const RESULT_MAX: usize = 256;
const VERSION: u8 = 1;

/// A hash of the chain; zeros before its first record.
pub type AuditHash = [u8; 32];

/// One thing that somebody did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// Hash of the record before; zeros for the first.
    pub previous: AuditHash,
    /// When.
    pub time: Time,
    /// The user.
    pub uid: u32,
    /// The process; 0 where none is known.
    pub pid: u32,
    /// What kind of thing, as `mount` or `command`.
    pub action: String,
    /// What about: a name, a command without its confirmation.
    pub subject: String,
    /// How it ended; `ok` where it was done.
    pub result: String,
}

impl AuditRecord {
    /// The value in the tree. Texts beyond their bounds are cut off.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96 + self.subject.len());
        out.push(VERSION);
        out.extend_from_slice(&self.previous);
        put_time(&mut out, self.time);
        put_varint(&mut out, u64::from(self.uid));
        put_varint(&mut out, u64::from(self.pid));
        for (text, max) in [(&self.action, ACTION_MAX), (&self.subject, SUBJECT_MAX), (&self.result, RESULT_MAX)] {
            let text = cut(text, max);
            put_varint(&mut out, text.len() as u64);
            out.extend_from_slice(text.as_bytes());
        }
        out
    }

    /// Parses a value of the tree.
    ///
    /// # Errors
    /// [`RecordError`] on anything that [`encode`](Self::encode) does not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut f = Fields::new(KIND_AUDIT, bytes);
        if f.byte()? != VERSION {
            return Err(f.error("its version is not 1; a newer axiomfs would read it"));
        }
        let mut previous = [0; 32];
        previous.copy_from_slice(f.bytes(32)?);
        let (time, uid, pid) = (f.time()?, f.varint32()?, f.varint32()?);
        let mut text = |max: usize| {
            let len = f.varint()?;
            let len = usize::try_from(len).ok().filter(|len| *len <= max);
            let bytes = f.bytes(len.ok_or_else(|| f.error("a text is out of bounds"))?)?;
            std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| f.error("a text is not UTF-8"))
        };
        let (action, subject, result) = (text(ACTION_MAX)?, text(SUBJECT_MAX)?, text(RESULT_MAX)?);
        f.finish()?;
        Ok(Self { previous, time, uid, pid, action, subject, result })
    }
}

pub(crate) fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

/// The hash of the record `number`, whose value is `value`.
pub fn audit_hash(repository: RepositoryId, volume: VolumeId, number: u64, value: &[u8]) -> AuditHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"axiomfs audit\0").update(&repository.0).update(&volume.0);
    hasher.update(&number.to_le_bytes()).update(value);
    *hasher.finalize().as_bytes()
}

/// What `audit verify` found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditReport {
    /// Records looked at.
    pub records: u64,
    /// Number of the oldest that is kept; 0 if there is none.
    pub first: u64,
    /// Number of the newest.
    pub last: u64,
    /// Number of the one whose hash the head carries; 0 if it carries none.
    pub committed: u64,
    /// Hash of the newest.
    pub hash: AuditHash,
    /// What is wrong, one line each; nothing if the log is whole. Bounded: a broken log has many faults.
    pub faults: Vec<String>,
}

/// Checks records in ascending order of their numbers against each other and against the hash that the newest head carries.
pub struct AuditCheck {
    repository: RepositoryId,
    volume: VolumeId,
    head: AuditHash,
    report: AuditReport,
    faults: VecDeque<String>,
}

/// Faults that are told.
const FAULTS_TOLD: usize = 16;

impl AuditCheck {
    /// For the log of `volume`, whose newest head carries `head`.
    pub fn new(repository: RepositoryId, volume: VolumeId, head: AuditHash) -> Self {
        Self { repository, volume, head, report: AuditReport::default(), faults: VecDeque::new() }
    }

    /// Takes the next record.
    pub fn record(&mut self, number: u64, value: &[u8]) {
        let (before, hash) = (self.report.last, self.report.hash);
        if self.report.records == 0 {
            self.report.first = number;
        }
        self.report.records += 1;
        self.report.last = number;
        self.report.hash = audit_hash(self.repository, self.volume, number, value);
        if self.report.hash == self.head {
            self.report.committed = number;
        }
        match AuditRecord::decode(value) {
            Err(error) => self.fault(format!("Record {number} can't be read: {error}")),
            Ok(record) if before == 0 => {
                if number == 1 && record.previous != [0; 32] {
                    self.fault("Record 1 names one before it".to_owned());
                }
            }
            Ok(_) if number != before + 1 => {
                self.fault(format!("Records {} to {} are gone", before + 1, number - 1));
            }
            Ok(record) if record.previous != hash => {
                self.fault(format!(
                    "Record {number} does not follow record {before}: one of them is not what was written"
                ));
            }
            Ok(_) => {}
        }
    }

    /// The head's own tree ends with the record `number`, as the head says. Where that is older than all that are kept, it need not be among them.
    pub fn passed(&mut self, number: u64) {
        if number > 0 && number < self.report.first {
            self.report.committed = number;
        }
    }

    /// What was found. `whole` if nothing may have come after the head.
    pub fn finish(mut self, whole: bool) -> AuditReport {
        let report = &self.report;
        if report.first > 1 && report.records < AUDIT_KEPT {
            let text = format!("The log begins with record {}, though only {} are kept", report.first, report.records);
            self.fault(text);
        }
        let report = &self.report;
        let said = self.head != [0; 32];
        let text = match (said, report.committed) {
            (true, 0) => {
                "The newest head names a record that is not in the log: its end was cut off or changed".to_owned()
            }
            (true, at) if whole && at != report.last => {
                format!("The newest head names record {at} as the last, and there are records up to {}", report.last)
            }
            (false, _) if whole && report.records > 0 => {
                "There are records, and the newest head names none: it was not made by this version".to_owned()
            }
            _ => {
                self.report.faults = self.faults.into();
                return self.report;
            }
        };
        self.fault(text);
        self.report.faults = self.faults.into();
        self.report
    }

    fn fault(&mut self, text: String) {
        if self.faults.len() < FAULTS_TOLD {
            self.faults.push_back(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: (RepositoryId, VolumeId) = (RepositoryId([1; 16]), VolumeId([2; 16]));

    fn chain(count: u64) -> Vec<(u64, Vec<u8>)> {
        let mut previous = [0; 32];
        (1..=count)
            .map(|number| {
                let record = AuditRecord {
                    previous,
                    time: Time { secs: -3 + number as i64, nanos: 5 },
                    uid: 1000,
                    pid: 7,
                    action: "command".into(),
                    subject: format!("set zstd level={number}"),
                    result: "ok".into(),
                };
                let value = record.encode();
                assert_eq!(AuditRecord::decode(&value), Ok(record));
                previous = audit_hash(PLACE.0, PLACE.1, number, &value);
                (number, value)
            })
            .collect()
    }

    fn hash(record: &(u64, Vec<u8>)) -> AuditHash {
        audit_hash(PLACE.0, PLACE.1, record.0, &record.1)
    }

    fn check(records: &[(u64, Vec<u8>)], head: AuditHash, whole: bool) -> AuditReport {
        let mut check = AuditCheck::new(PLACE.0, PLACE.1, head);
        for (number, value) in records {
            check.record(*number, value);
        }
        check.finish(whole)
    }

    #[test]
    fn a_whole_chain_has_no_fault() {
        let records = chain(20);
        let report = check(&records, hash(&records[19]), true);
        assert_eq!((report.faults, report.records, report.committed), (Vec::<String>::new(), 20, 20));
        // What came after the head is not in it yet.
        let report = check(&records, hash(&records[16]), false);
        assert_eq!((report.faults, report.committed, report.last), (Vec::<String>::new(), 17, 20));
        // A volume of an older version, and a new one.
        assert_eq!(check(&[], [0; 32], true).faults, Vec::<String>::new());
        assert_eq!(check(&records, [0; 32], false).faults, Vec::<String>::new());
    }

    #[test]
    fn every_removal_change_exchange_and_cut_is_found() {
        let records = chain(20);
        let head = hash(&records[19]);
        for at in 0..20 {
            let mut removed = records.clone();
            removed.remove(at);
            assert_ne!(check(&removed, head, true).faults, Vec::<String>::new(), "removed {at}");
            assert_ne!(check(&records[..at], head, true).faults, Vec::<String>::new(), "cut at {at}");
            for byte in 0..records[at].1.len() {
                let mut changed = records.clone();
                changed[at].1[byte] ^= 1;
                assert_ne!(check(&changed, head, true).faults, Vec::<String>::new(), "byte {byte} of {at}");
            }
            if at > 0 {
                let mut exchanged = records.clone();
                let (a, b) = (records[at - 1].1.clone(), records[at].1.clone());
                (exchanged[at - 1].1, exchanged[at].1) = (b, a);
                assert_ne!(check(&exchanged, head, true).faults, Vec::<String>::new(), "exchanged {at}");
            }
        }
        assert_ne!(check(&records, hash(&records[10]), true).faults, Vec::<String>::new(), "more than the head says");
    }

    #[test]
    fn only_a_full_log_may_have_lost_its_beginning() {
        let records = chain(AUDIT_KEPT + 3);
        let head = hash(&records[records.len() - 1]);
        assert_eq!(check(&records[3..], head, true).faults, Vec::<String>::new());
        assert_ne!(check(&records[4..], head, true).faults, Vec::<String>::new());
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let mut record = AuditRecord::decode(&chain(1)[0].1).unwrap();
        record.subject = "ä".repeat(800);
        assert_eq!(AuditRecord::decode(&record.encode()).unwrap().subject, "ä".repeat(512));
        for len in 0..200 {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
            assert!(AuditRecord::decode(&bytes).is_err(), "noise is no record");
        }
    }
}
