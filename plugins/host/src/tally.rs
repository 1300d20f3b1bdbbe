//! Counts what seals and chunkers do, as is done for transforms: a few additions without a lock for each call.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use axiomfs_api::{ChunkSizes, Chunker, Descriptor, NONCE_LEN, OpenError, Seal, SealKey, Sealer, TAG_LEN};
use axiomfs_meter::measure;

use crate::stats::PluginStats;

/// A seal whose sealers are counted.
pub struct TallySeal {
    pub inner: Arc<dyn Seal>,
    pub stats: Arc<PluginStats>,
}

impl Seal for TallySeal {
    fn descriptor(&self) -> &'static Descriptor {
        self.inner.descriptor()
    }

    fn sealer(&self, key: &SealKey) -> Box<dyn Sealer> {
        let start = Instant::now();
        let (inner, usage) = measure(|| self.inner.sealer(key));
        self.stats.init_time.record(start.elapsed());
        self.stats.memory_max.fetch_max(usage.peak as u64, Relaxed);
        Box::new(TallySealer { inner, stats: self.stats.clone() })
    }
}

struct TallySealer {
    inner: Box<dyn Sealer>,
    stats: Arc<PluginStats>,
}

impl TallySealer {
    fn sealed(&self, start: Instant, len: usize) {
        self.stats.encode_time.record(start.elapsed());
        PluginStats::add(&self.stats.encode_in, len);
        PluginStats::add(&self.stats.encode_out, len + TAG_LEN);
    }

    fn opened(&self, start: Instant, sealed_len: usize, result: &Result<(), OpenError>) {
        self.stats.decode_time.record(start.elapsed());
        PluginStats::add(&self.stats.decode_in, sealed_len);
        match result {
            Ok(()) => PluginStats::add(&self.stats.decode_out, sealed_len - TAG_LEN),
            Err(OpenError) => PluginStats::add(&self.stats.decode_errors, 1),
        }
    }
}

impl Sealer for TallySealer {
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut Vec<u8>) {
        let (start, len) = (Instant::now(), buf.len());
        self.inner.seal(nonce, aad, buf);
        self.sealed(start, len);
    }

    fn seal_detached(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN] {
        let start = Instant::now();
        let tag = self.inner.seal_detached(nonce, aad, data);
        self.sealed(start, data.len());
        tag
    }

    fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut Vec<u8>) -> Result<(), OpenError> {
        let (start, len) = (Instant::now(), buf.len());
        let result = self.inner.open(nonce, aad, buf);
        self.opened(start, len, &result);
        result
    }

    fn open_detached(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), OpenError> {
        let start = Instant::now();
        let result = self.inner.open_detached(nonce, aad, data, tag);
        self.opened(start, data.len() + TAG_LEN, &result);
        result
    }
}

/// A chunker whose cuts are counted, each as something encoded.
pub struct TallyChunker<C> {
    inner: C,
    stats: Arc<PluginStats>,
}

impl<C: Chunker> TallyChunker<C> {
    /// Makes the chunker.
    pub fn new(make: impl FnOnce() -> C, stats: Arc<PluginStats>) -> Self {
        let start = Instant::now();
        let (inner, usage) = measure(make);
        stats.init_time.record(start.elapsed());
        stats.memory_max.fetch_max((usage.peak + size_of::<C>()) as u64, Relaxed);
        Self { inner, stats }
    }
}

impl<C: Chunker> Chunker for TallyChunker<C> {
    fn sizes(&self) -> ChunkSizes {
        self.inner.sizes()
    }

    fn cut(&self, data: &[u8]) -> usize {
        let start = Instant::now();
        let len = self.inner.cut(data);
        self.stats.encode_time.record(start.elapsed());
        PluginStats::add(&self.stats.encode_in, len);
        PluginStats::add(&self.stats.encode_out, len);
        len
    }
}

#[cfg(test)]
mod tests {
    use axiomfs_encryption_aes_gcm::Aes256Gcm;

    use super::*;

    #[test]
    fn seals_are_counted_and_keep_the_contract() {
        let stats = Arc::<PluginStats>::default();
        let seal = TallySeal { inner: Arc::new(Aes256Gcm), stats: stats.clone() };
        axiomfs_api::conformance::seal(&seal);
        let counted = || {
            let s = &stats;
            [&s.encode_in, &s.encode_out, &s.decode_in, &s.decode_out, &s.decode_errors].map(|n| n.load(Relaxed))
        };
        let before = counted();
        let (sealer, nonce) = (seal.sealer(&[1; 32]), [2; NONCE_LEN]);
        let mut buf = vec![3; 1000];
        sealer.seal(&nonce, b"", &mut buf);
        sealer.open(&nonce, b"other", &mut buf.clone()).expect_err("other data beside it");
        sealer.open(&nonce, b"", &mut buf).expect("opens");
        assert!(buf == [3; 1000]);
        sealer.open(&nonce, b"", &mut vec![0; 3]).expect_err("too short for a tag");
        let grown: Vec<u64> = counted().iter().zip(before).map(|(after, before)| after - before).collect();
        assert_eq!(grown, [1000, 1016, 1016 + 1016 + 3, 1000, 2]);
    }
}
