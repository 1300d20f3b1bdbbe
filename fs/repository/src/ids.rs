//! Identifiers, each its own type, and the one hex codec.

use std::fmt;

pub mod hex {
    //! Lower-case hexadecimal.

    /// `bytes` as lower-case hex digits.
    pub fn encode(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(bytes.len() * 2);
        for b in bytes {
            text.push(char::from(DIGITS[usize::from(b >> 4)]));
            text.push(char::from(DIGITS[usize::from(b & 15)]));
        }
        text
    }

    /// The bytes that `text` spells; `None` unless it is exactly `2 * N` lower-case hex digits.
    pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
        fn digit(c: u8) -> Option<u8> {
            match c {
                b'0'..=b'9' => Some(c - b'0'),
                b'a'..=b'f' => Some(c - b'a' + 10),
                _ => None,
            }
        }
        let text = text.as_bytes();
        if text.len() != N * 2 {
            return None;
        }
        let mut out = [0; N];
        for (o, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
            *o = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(out)
    }
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// The bytes.
            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// All bytes as hex digits.
            pub fn to_hex(&self) -> String {
                hex::encode(&self.0)
            }

            /// Parses exactly what [`to_hex`](Self::to_hex) writes.
            pub fn from_hex(text: &str) -> Option<Self> {
                hex::decode(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), hex::encode(&self.0[..6]))
            }
        }

        impl From<[u8; $len]> for $name {
            fn from(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }
        }
    };
}

byte_id! {
    /// Keyed BLAKE3 of a chunk's plaintext.
    ChunkId, 32
}
byte_id! {
    /// BLAKE3 of a pack's bytes as stored.
    PackId, 32
}
byte_id! {
    /// Random, made by `init`.
    RepositoryId, 16
}
byte_id! {
    /// Random; the volume's name lives in the keyring.
    VolumeId, 16
}
byte_id! {
    /// Random, one per attempt to create a head.
    CommitId, 16
}
byte_id! {
    /// Random, made with a state directory; another one if that is lost or set aside.
    StateId, 16
}
byte_id! {
    /// Random, names one index segment object.
    SegmentId, 16
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $of:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $of);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number_id! {
    /// Number of a takeover of a volume; grows with each.
    Epoch, u64
}
number_id! {
    /// Number of a head within its volume; the first is 1.
    SequenceNo, u64
}
number_id! {
    /// Inode number, at most 40 bits, never reused.
    Ino, u64
}
number_id! {
    /// A snapshot's number, at most 24 bits, never reused; 0 is the live tree.
    Ordinal, u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_exact_and_lower_case() {
        let id = SegmentId(*b"\x00\x01\x7f\x80\xff\xfe0123456789");
        assert_eq!(id.to_hex(), "00017f80fffe30313233343536373839");
        assert_eq!(SegmentId::from_hex(&id.to_hex()), Some(id));
        for bad in ["", "0", "00017F80fffe30313233343536373839", "00017f80fffe303132333435363738", "zz"] {
            assert_eq!(SegmentId::from_hex(bad), None, "{bad}");
        }
        assert_eq!(format!("{id:?}"), "SegmentId(00017f80fffe)");
    }
}
