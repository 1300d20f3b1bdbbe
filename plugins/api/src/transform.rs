use std::sync::Arc;

use crate::{BoundedBuf, Descriptor, Effort, PluginError};

/// What the host knows of a frame's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hint {
    /// Nothing known.
    #[default]
    Data,
    /// Nodes of the metadata tree.
    Metadata,
}

/// Whether a step changed the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The output holds the encoded form.
    Yes,
    /// The step would not have helped; the output is unspecified and the input goes on unchanged.
    No,
}

/// What is compiled in for one transform: makes configured steps and decoders.
pub trait TransformFactory: Send + Sync {
    /// What the host must know of it, the same as its transforms'.
    fn descriptor(&self) -> &'static Descriptor;

    /// A step with `params`, each key at most once, any order.
    ///
    /// # Errors
    /// [`PluginError::UnknownParameter`], [`PluginError::BadParameter`], or what initialising met.
    fn build(&self, params: &[(String, String)]) -> Result<Arc<dyn Transform>, PluginError>;

    /// A step that decodes what an earlier one wrote in `format` with `decode_params`.
    ///
    /// # Errors
    /// [`PluginError::UnknownFormat`], or [`PluginError::Corrupt`] for parameters it never wrote.
    fn decoder(&self, format: u16, decode_params: &[u8]) -> Result<Arc<dyn Transform>, PluginError>;
}

/// A reversible step of a chain, configured. Cheap to share; makes one [`Worker`] per thread.
pub trait Transform: Send + Sync {
    /// What the host must know of it.
    fn descriptor(&self) -> &'static Descriptor;
    /// What decoding needs beside the format number, in canonical form; it goes into the chain's id. A zstd level is none.
    fn decode_params(&self) -> Vec<u8>;
    /// All parameters in canonical order, for people and for `chain.yaml`.
    fn params(&self) -> Vec<(&'static str, String)>;
    /// The dial by which the host sets how hard this step works while frames go through it; none if that is fixed.
    fn effort(&self) -> Option<&Effort> {
        None
    }
    /// A worker with its own codec state.
    ///
    /// # Errors
    /// [`PluginError`] if its memory cannot be had.
    fn worker(&self) -> Result<Box<dyn Worker>, PluginError>;
}

/// A transform's state for one thread.
pub trait Worker: Send {
    /// Encodes `src` into the empty `out`.
    ///
    /// # Errors
    /// [`PluginError`]; the step's error strategy decides what then happens.
    fn encode(&mut self, hint: Hint, src: &[u8], out: &mut BoundedBuf) -> Result<Applied, PluginError>;

    /// Decodes `src`, written in `format`, into the empty `out`, to exactly `raw_len` bytes.
    ///
    /// # Errors
    /// [`PluginError`] on anything but the exact bytes an encoder wrote. Never panics, never allocates beyond `out`'s bound.
    fn decode(&mut self, format: u16, src: &[u8], raw_len: usize, out: &mut BoundedBuf) -> Result<(), PluginError>;

    /// Decodes at least the first `len` bytes of the `raw_len` that `src` stands for into the empty `out`, whose bound is `raw_len`. What
    /// can decode from the front overrides this, so that whoever needs only those bytes does not pay for all.
    ///
    /// # Errors
    /// As [`decode`](Self::decode), except that damage behind those bytes may go unseen.
    fn decode_start(
        &mut self,
        format: u16,
        src: &[u8],
        raw_len: usize,
        len: usize,
        out: &mut BoundedBuf,
    ) -> Result<(), PluginError> {
        match len <= raw_len {
            true => self.decode(format, src, raw_len, out),
            false => Err(PluginError::LengthMismatch { expected: raw_len, actual: len }),
        }
    }
}
