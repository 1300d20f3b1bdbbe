//! Keys: inode number, kind, sub-key.

use super::{
    KIND_AUDIT, KIND_CLEAR, KIND_ENTRY, KIND_EXTENT, KIND_INODE, KIND_NAME, KIND_ORPHAN, KIND_XATTR, NAME_MAX,
};

/// The key of an inode's record of `kind` with `sub`.
pub fn key(ino: u64, kind: u8, sub: &[u8]) -> Vec<u8> {
    let mut k = Vec::with_capacity(9 + sub.len());
    k.extend_from_slice(&ino.to_be_bytes());
    k.push(kind);
    k.extend_from_slice(sub);
    k
}

/// Key of an inode record.
pub fn inode_key(ino: u64) -> Vec<u8> {
    key(ino, KIND_INODE, &[])
}

/// Key of a directory entry.
pub fn entry_key(dir: u64, seq: u64) -> Vec<u8> {
    key(dir, KIND_ENTRY, &seq.to_be_bytes())
}

/// Key of a name index record.
pub fn name_key(dir: u64, name: &[u8], seq: u64) -> Vec<u8> {
    let mut sub = [0; 12];
    sub[..4].copy_from_slice(&name_hash(name).to_be_bytes());
    sub[4..].copy_from_slice(&seq.to_be_bytes());
    key(dir, KIND_NAME, &sub)
}

/// Key of an extent that ends at `end`.
pub fn extent_key(ino: u64, end: u64) -> Vec<u8> {
    key(ino, KIND_EXTENT, &end.to_be_bytes())
}

/// Key of an extended attribute.
pub fn xattr_key(ino: u64, name: &[u8]) -> Vec<u8> {
    key(ino, KIND_XATTR, name)
}

/// Key of an orphan's mark.
pub fn orphan_key(ino: u64) -> Vec<u8> {
    key(0, KIND_ORPHAN, &ino.to_be_bytes())
}

/// The key that marks file `ino` as one with clear chunks.
pub fn clear_key(ino: u64) -> Vec<u8> {
    key(0, KIND_CLEAR, &ino.to_be_bytes())
}

/// Key of an audit record.
pub fn audit_key(number: u64) -> Vec<u8> {
    key(0, KIND_AUDIT, &number.to_be_bytes())
}

/// The 8-byte number at the end of a key.
pub fn trailing_number(key: &[u8]) -> Option<u64> {
    let at = key.len().checked_sub(8)?;
    Some(u64::from_be_bytes(key[at..].try_into().ok()?))
}

/// Inode number and kind of a key.
pub fn parse_key(key: &[u8]) -> Option<(u64, u8)> {
    let ino = key.get(..8)?.try_into().ok()?;
    Some((u64::from_be_bytes(ino), *key.get(8)?))
}

/// The sub-key of a key.
pub fn sub_key(key: &[u8]) -> &[u8] {
    key.get(9..).unwrap_or(&[])
}

/// Hash of a name for the name index: the first four bytes of BLAKE3, little-endian. Entries with equal hashes stand
/// side by side, so that a collision costs one more comparison and nothing else.
pub fn name_hash(name: &[u8]) -> u32 {
    let h = blake3::hash(name);
    let b = h.as_bytes();
    u32::from_le_bytes([b[0], b[1], b[2], b[3]])
}

/// Whether `name` may stand in a directory.
pub fn valid_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name != b"."
        && name != b".."
        && !name.iter().any(|&b| b == b'/' || b == 0)
}
