//! Decoded frames, whole or from the front as far as they were needed, and those that are being decoded.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::error::RepositoryError;
use crate::ids::ChunkId;
use crate::tree::Node;

/// A decoded frame.
#[derive(Clone)]
pub(crate) enum Decoded {
    Data(Arc<DataFrame>),
    Nodes(Arc<HashMap<ChunkId, Arc<Node>>>),
}

pub(crate) struct DataFrame {
    /// The raw bytes, or as many of the first ones as were needed.
    pub(crate) raw: Arc<Vec<u8>>,
    /// Where those are not all: the encoded frame, of which the others can be made.
    pub(crate) encoded: Option<Vec<u8>>,
    /// Chunks whose ids were checked, by offset.
    pub(crate) verified: Mutex<HashMap<u32, (u32, ChunkId)>>,
}

impl DataFrame {
    /// Whether its raw bytes up to `end` are here, if it has so many.
    pub(crate) fn reaches(&self, end: u32) -> bool {
        self.encoded.is_none() || self.raw.len() >= end as usize
    }
}

impl Decoded {
    pub(crate) fn reaches(&self, end: u32) -> bool {
        match self {
            Self::Data(frame) => frame.reaches(end),
            Self::Nodes(_) => true,
        }
    }
}

/// A frame that one thread fetches and others wait for.
#[derive(Default)]
pub(crate) struct Flight {
    landed: Mutex<Option<Result<Decoded, RepositoryError>>>,
    changed: Condvar,
}

impl Flight {
    /// Tells those who wait what came of it.
    pub(crate) fn land(&self, result: Result<Decoded, RepositoryError>) {
        *self.landed.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        self.changed.notify_all();
    }

    /// What came of it; blocks until it has landed.
    pub(crate) fn wait(&self) -> Result<Decoded, RepositoryError> {
        let mut landed = self.landed.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(result) = &*landed {
                return result.clone();
            }
            landed = self.changed.wait(landed).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
