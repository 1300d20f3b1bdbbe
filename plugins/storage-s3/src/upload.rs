//! Bodies that are read while they are sent.

use std::fs::File;
use std::future::Future;
use std::io::{self, Cursor, Read, Seek};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axiomfs_api::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;

use crate::limiter::Limiter;
use crate::watch::Progress;

/// Bytes sent at a time: small enough for a limit to be even.
const PIECE: usize = 64 << 10;
/// Bytes summed at a time.
const SUMMED: usize = 1 << 20;

/// What is to be sent: its length and checksum, known before the first byte goes out.
pub(crate) struct Source {
    reader: Reader,
    /// In bytes.
    pub len: u64,
    /// CRC-32 (ISO-HDLC), as S3 takes it in `x-amz-checksum-crc32`.
    pub crc32: u32,
}

enum Reader {
    File(File),
    Bytes(Cursor<Bytes>),
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Bytes(bytes) => bytes.read(buffer),
        }
    }
}

impl Source {
    /// Reads the body once for its checksum.
    ///
    /// # Errors
    /// What reading its file met.
    pub fn new(body: Body<'_>) -> io::Result<Self> {
        match body {
            Body::Bytes(bytes) => Ok(Self {
                len: bytes.len() as u64,
                crc32: crc32fast::hash(bytes),
                reader: Reader::Bytes(Cursor::new(Bytes::copy_from_slice(bytes))),
            }),
            Body::File(path) => {
                let mut file = File::open(path)?;
                let (mut hasher, mut len) = (crc32fast::Hasher::new(), 0);
                let mut buffer = vec![0; SUMMED];
                loop {
                    let read = file.read(&mut buffer)?;
                    if read == 0 {
                        break;
                    }
                    hasher.update(&buffer[..read]);
                    len += read as u64;
                }
                file.rewind()?;
                Ok(Self { reader: Reader::File(file), len, crc32: hasher.finalize() })
            }
        }
    }

    /// The body as the SDK sends it.
    pub fn into_upload(self, limiter: Arc<Limiter>, progress: Arc<Progress>) -> Upload {
        Upload { reader: self.reader, left: self.len, limiter, progress, pause: None }
    }
}

/// A body that is read in pieces, no faster than the limit.
///
/// The file is read where the request is driven, without a hand-over to another thread: it was written moments ago and
/// summed just now, so its bytes lie in the page cache.
pub(crate) struct Upload {
    reader: Reader,
    left: u64,
    limiter: Arc<Limiter>,
    progress: Arc<Progress>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(context));
            this.pause = None;
        }
        this.progress.made();
        if this.left == 0 {
            return Poll::Ready(None);
        }
        let mut piece = vec![0; PIECE.min(usize::try_from(this.left).unwrap_or(PIECE))];
        this.reader.read_exact(&mut piece)?;
        this.left -= piece.len() as u64;
        let pause = this.limiter.pass(piece.len());
        this.progress.sent(piece.len());
        if !pause.is_zero() {
            this.progress.paused_for(pause);
            this.pause = Some(Box::pin(tokio::time::sleep(pause)));
        }
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
