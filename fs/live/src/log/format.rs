//! The bytes of segments and records, as `fs/doc/format-log.md` says. No I/O.

use axiomfs_api::{NONCE_LEN, Sealer, TAG_LEN};

use super::{LogIdentity, SealerFactory};

/// Longest meta of a record, in bytes.
pub const MAX_META: usize = 256 << 10;
/// Longest data of a record, in bytes.
pub const MAX_DATA: usize = 4 << 20;

/// What is written at once behind the last record, so that no write has to read a page first.
pub(super) const PAGE: u64 = 4096;
/// Offset of a segment's first record.
pub(super) const FIRST_RECORD: u64 = PAGE;
/// Length of a segment's header.
pub(super) const SEGMENT_HEADER: usize = 128;
/// Length of a record's header.
pub(super) const RECORD_HEADER: usize = 56;
/// Records begin at multiples of this.
pub(super) const ALIGN: u64 = 8;
/// Where the tag stands in a record's header.
const RECORD_TAG: usize = 40;
const SEGMENT_TAG: usize = 112;
const MAGIC: &[u8; 8] = b"axfs-log";
const VERSION: u16 = 1;
const NO_PREVIOUS: u64 = u64::MAX;

/// A place in the log. Later places are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Position {
    pub segment: u64,
    pub offset: u64,
}

/// What guards a segment's records.
enum Guard {
    Crc,
    Seal(Box<dyn Sealer>),
}

/// A segment's header with its expanded key.
pub(super) struct SegmentHeader {
    pub identity: LogIdentity,
    pub segment: u64,
    /// The segment before, and its end.
    pub previous: Option<Position>,
    salt: [u8; 32],
    guard: Guard,
}

/// Why a segment's header was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    Invalid,
    Version { version: u16, seal: u8 },
    Foreign,
}

/// A record's header, without mark and tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub number: u64,
    pub durable: u64,
    pub meta_len: u32,
    pub data_len: u32,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Operation = 1,
    /// Carries nothing but the durable position.
    Note = 2,
}

impl SegmentHeader {
    pub fn new(
        identity: LogIdentity,
        segment: u64,
        previous: Option<Position>,
        salt: [u8; 32],
        sealer: Option<&SealerFactory>,
    ) -> Self {
        let guard = sealer.map_or(Guard::Crc, |factory| Guard::Seal(factory(&salt)));
        Self { identity, segment, previous, salt, guard }
    }

    pub fn is_sealed(&self) -> bool {
        matches!(self.guard, Guard::Seal(_))
    }

    pub fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut out = [0; SEGMENT_HEADER];
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10] = u8::from(self.is_sealed());
        out[16..32].copy_from_slice(&self.identity.repository);
        out[32..48].copy_from_slice(&self.identity.volume);
        out[48..56].copy_from_slice(&self.identity.epoch.to_le_bytes());
        out[56..64].copy_from_slice(&self.segment.to_le_bytes());
        out[64..96].copy_from_slice(&self.salt);
        let previous = self.previous.unwrap_or(Position { segment: NO_PREVIOUS, offset: 0 });
        out[96..104].copy_from_slice(&previous.segment.to_le_bytes());
        out[104..112].copy_from_slice(&previous.offset.to_le_bytes());
        let tag = self.tag(&header_nonce(), &out[..SEGMENT_TAG], &mut []);
        out[SEGMENT_TAG..].copy_from_slice(&tag);
        out
    }

    /// Parses and verifies the header of segment `segment`.
    pub fn decode(
        bytes: &[u8; SEGMENT_HEADER],
        segment: u64,
        expected: &LogIdentity,
        sealer: &SealerFactory,
    ) -> Result<Self, HeaderError> {
        if &bytes[..8] != MAGIC {
            return Err(HeaderError::Invalid);
        }
        let version = u16::from_le_bytes(array(bytes, 8));
        let seal = bytes[10];
        if version != VERSION || seal > 1 {
            return Err(HeaderError::Version { version, seal });
        }
        let identity = LogIdentity {
            repository: array(bytes, 16),
            volume: array(bytes, 32),
            epoch: u64::from_le_bytes(array(bytes, 48)),
        };
        let previous =
            Position { segment: u64::from_le_bytes(array(bytes, 96)), offset: u64::from_le_bytes(array(bytes, 104)) };
        let previous = (previous.segment != NO_PREVIOUS).then_some(previous);
        if identity.repository != expected.repository || identity.volume != expected.volume {
            return Err(HeaderError::Foreign);
        }
        let header = Self::new(identity, segment, previous, array(bytes, 64), (seal == 1).then_some(sealer));
        let consistent = bytes[11..16] == [0; 5]
            && u64::from_le_bytes(array(bytes, 56)) == segment
            && previous.is_none_or(|p| p.segment < segment)
            && header.verify(&header_nonce(), &bytes[..SEGMENT_TAG], &mut [], &array(bytes, SEGMENT_TAG));
        if consistent { Ok(header) } else { Err(HeaderError::Invalid) }
    }

    /// The first 8 bytes of every record of this segment.
    pub fn mark(&self) -> [u8; 8] {
        array(&self.salt, 0)
    }

    /// Fills in the header of `record` (header, meta, data) that is to stand at `offset`, and encrypts the rest in place.
    pub fn seal_record(&self, offset: u64, header: &RecordHeader, record: &mut [u8]) {
        let (head, body) = record.split_at_mut(RECORD_HEADER);
        head[..8].copy_from_slice(&self.mark());
        head[8..16].copy_from_slice(&header.number.to_le_bytes());
        head[16..24].copy_from_slice(&header.durable.to_le_bytes());
        head[24..28].copy_from_slice(&header.meta_len.to_le_bytes());
        head[28..32].copy_from_slice(&header.data_len.to_le_bytes());
        head[32..RECORD_TAG].fill(0);
        head[32] = header.kind as u8;
        let associated = self.associated(offset, &head[..RECORD_TAG]);
        let tag = self.tag(&record_nonce(header.number), &associated, body);
        head[RECORD_TAG..].copy_from_slice(&tag);
    }

    /// Reads the header of a record at `offset`, or of what may be one: nothing is verified yet but the ranges of its fields.
    pub fn parse_record(&self, offset: u64, head: &[u8; RECORD_HEADER]) -> Option<RecordHeader> {
        if head[..8] != self.salt[..8] || head[33..RECORD_TAG] != [0; 7] {
            return None;
        }
        let kind = match head[32] {
            1 => Kind::Operation,
            2 => Kind::Note,
            _ => return None,
        };
        let header = RecordHeader {
            number: u64::from_le_bytes(array(head, 8)),
            durable: u64::from_le_bytes(array(head, 16)),
            meta_len: u32::from_le_bytes(array(head, 24)),
            data_len: u32::from_le_bytes(array(head, 28)),
            kind,
        };
        let sized = header.meta_len as usize <= MAX_META && header.data_len as usize <= MAX_DATA;
        (sized && header.durable <= offset).then_some(header)
    }

    /// Verifies `record` (header, meta, data, nothing behind) at `offset` and decrypts it in place.
    pub fn open_record(&self, offset: u64, header: &RecordHeader, record: &mut [u8]) -> bool {
        let (head, body) = record.split_at_mut(RECORD_HEADER);
        let associated = self.associated(offset, &head[..RECORD_TAG]);
        self.verify(&record_nonce(header.number), &associated, body, &array(head, RECORD_TAG))
    }

    fn associated(&self, offset: u64, head: &[u8]) -> [u8; 56 + RECORD_TAG] {
        let mut out = [0; 56 + RECORD_TAG];
        out[..16].copy_from_slice(&self.identity.repository);
        out[16..32].copy_from_slice(&self.identity.volume);
        out[32..40].copy_from_slice(&self.identity.epoch.to_le_bytes());
        out[40..48].copy_from_slice(&self.segment.to_le_bytes());
        out[48..56].copy_from_slice(&offset.to_le_bytes());
        out[56..].copy_from_slice(head);
        out
    }

    fn tag(&self, nonce: &[u8; NONCE_LEN], associated: &[u8], body: &mut [u8]) -> [u8; TAG_LEN] {
        match &self.guard {
            Guard::Seal(sealer) => sealer.seal_detached(nonce, associated, body),
            Guard::Crc => self.crc_tag(associated, body),
        }
    }

    fn verify(&self, nonce: &[u8; NONCE_LEN], associated: &[u8], body: &mut [u8], tag: &[u8; TAG_LEN]) -> bool {
        match &self.guard {
            Guard::Seal(sealer) => sealer.open_detached(nonce, associated, body, tag).is_ok(),
            Guard::Crc => self.crc_tag(associated, body) == *tag,
        }
    }

    fn crc_tag(&self, associated: &[u8], body: &[u8]) -> [u8; TAG_LEN] {
        let mut crc = crc32fast::Hasher::new();
        crc.update(associated);
        crc.update(body);
        let mut tag = [0; TAG_LEN];
        tag[..4].copy_from_slice(&crc.finalize().to_le_bytes());
        tag[4..].copy_from_slice(&self.salt[8..20]);
        tag
    }
}

impl RecordHeader {
    /// Bytes of header, meta and data.
    pub fn len(&self) -> usize {
        RECORD_HEADER + self.meta_len as usize + self.data_len as usize
    }

    /// Bytes from this record's offset to the next one's.
    pub fn stride(&self) -> u64 {
        (self.len() as u64).next_multiple_of(ALIGN)
    }
}

fn record_nonce(number: u64) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    nonce
}

fn header_nonce() -> [u8; NONCE_LEN] {
    [0xff; NONCE_LEN]
}

/// `N` bytes at `at`. The callers' offsets are constants within arrays of fixed length.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
