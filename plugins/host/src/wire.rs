//! A chain's descriptor as it is stored in packs. All numbers are little-endian.
//!
//! ```text
//! u8   version = 1
//! u8   number of transform steps, at most 32
//!      per step, in encoding order:
//! u8     length of the plugin's id, 1..=64      then the id, [a-z0-9_-]
//! u16    format number
//! u16    length of the decode parameters        then the parameters
//! u8   length of the seal's id, 0 where the chain has no seal; then the id
//! u16  format number of the seal                (only where there is one)
//! ```
//!
//! Nothing may follow. One chain has exactly one form, so its id is the BLAKE3 hash of these bytes.
//!
//! A frame's `applied` is a bit per step, the first step's lowest. The encoded frame is the output of the last applied
//! step; where `n > 1` steps were applied, the lengths of the outputs of all applied steps but the last follow it, in
//! encoding order, as `n - 1` u32. Where none was, it is the frame itself.
//!
//! A chain with fallbacks lists their steps too (behind its own, shared where equal), so a frame's bits alone say which
//! steps to undo.

use std::fmt;

use crate::HostError;

/// Most transform steps a chain may have, its fallbacks' included: a frame's record has a bit for each.
pub const MAX_STEPS: usize = 32;
const VERSION: u8 = 1;
const MAX_ID: usize = 64;

/// BLAKE3 of a chain's descriptor bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainId(pub [u8; 32]);

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainId({})", &blake3::Hash::from_bytes(self.0).to_hex()[..8])
    }
}

/// What decoding one step needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRecord {
    /// The plugin's id.
    pub plugin: String,
    /// The format number it writes.
    pub format: u16,
    /// Its decode parameters in canonical form.
    pub params: Vec<u8>,
}

/// What decoding a chain's frames needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainRecord {
    /// The transform steps in encoding order.
    pub steps: Vec<StepRecord>,
    /// The seal's id and format number.
    pub seal: Option<(String, u16)>,
}

impl ChainRecord {
    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, self.steps.len() as u8];
        for step in &self.steps {
            put_id(&mut out, &step.plugin);
            out.extend(step.format.to_le_bytes());
            out.extend((step.params.len() as u16).to_le_bytes());
            out.extend(&step.params);
        }
        match &self.seal {
            Some((id, format)) => {
                put_id(&mut out, id);
                out.extend(format.to_le_bytes());
            }
            None => out.push(0),
        }
        out
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// [`HostError::BadDescriptor`] on anything else.
    pub fn parse(bytes: &[u8]) -> Result<Self, HostError> {
        let mut reader = Reader(bytes);
        if reader.byte()? != VERSION {
            return Err(damaged("its version is not 1"));
        }
        let count = usize::from(reader.byte()?);
        if count > MAX_STEPS {
            return Err(damaged("it has more than 32 steps"));
        }
        let mut steps = Vec::with_capacity(count);
        for _ in 0..count {
            let plugin = reader.id()?.ok_or(damaged("a step has no id"))?;
            let format = reader.number()?;
            let len = usize::from(reader.number()?);
            steps.push(StepRecord { plugin, format, params: reader.take(len)?.to_vec() });
        }
        let seal = match reader.id()? {
            Some(id) => Some((id, reader.number()?)),
            None => None,
        };
        if !reader.0.is_empty() {
            return Err(damaged("bytes follow its end"));
        }
        Ok(Self { steps, seal })
    }

    /// Whether every part fits its field, which [`encode`](Self::encode) relies on.
    pub(crate) fn is_encodable(&self) -> bool {
        let ids = self.steps.iter().map(|s| &s.plugin).chain(self.seal.iter().map(|(id, _)| id));
        self.steps.len() <= MAX_STEPS
            && self.steps.iter().all(|s| s.params.len() <= usize::from(u16::MAX))
            && ids.into_iter().all(|id| is_id(id.as_bytes()))
    }
}

/// The id of the chain whose descriptor this is.
pub fn chain_id(descriptor: &[u8]) -> ChainId {
    ChainId(*blake3::hash(descriptor).as_bytes())
}

/// Whether `id` can be a plugin's.
pub fn is_id(id: &[u8]) -> bool {
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    (1..=MAX_ID).contains(&id.len()) && id.iter().all(plain)
}

fn put_id(out: &mut Vec<u8>, id: &str) {
    out.push(id.len() as u8);
    out.extend(id.as_bytes());
}

fn damaged(reason: &'static str) -> HostError {
    HostError::BadDescriptor { reason }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], HostError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(damaged("it ends early"))?;
        self.0 = rest;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, HostError> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u16, HostError> {
        let bytes = self.take(2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn id(&mut self) -> Result<Option<String>, HostError> {
        let len = usize::from(self.byte()?);
        let bytes = self.take(len)?;
        match bytes {
            [] => Ok(None),
            id if is_id(id) => Ok(Some(id.iter().copied().map(char::from).collect())),
            _ => Err(damaged("an id has characters outside of a-z, 0-9, - and _")),
        }
    }
}
