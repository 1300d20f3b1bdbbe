//! POSIX access control lists, in the form that the kernel reads and writes as extended attributes.
//!
//! The kernel enforces them; what it leaves to the filesystem is here: mode and list say the same (acl(5),
//! "Correspondence between ACL entries and file permission bits"), and what is made in a directory inherits its default.

/// The list that says who may do what.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// A directory's list for what is made in it.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Version of the form, its first four bytes, little-endian.
const VERSION: u32 = 2;
const HEADER: usize = 4;
/// Tag and permissions of two bytes each, and an id of four, little-endian.
const ENTRY: usize = 8;
/// The three permission bits of one class.
const RWX: u16 = 0o7;

/// Whom an entry is about: the kernel's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tag {
    Owner = 0x01,
    User = 0x02,
    OwningGroup = 0x04,
    Group = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    perm: u16,
    id: u32,
}

/// A list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    entries: Vec<Entry>,
}

/// Whether an extended attribute is a list.
pub fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

impl Acl {
    /// Reads a list; `None` if it isn't one that the kernel would take.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first_chunk::<HEADER>()?;
        if u32::from_le_bytes(*version) != VERSION || rest.len() % ENTRY != 0 {
            return None;
        }
        let entries: Vec<Entry> = rest.chunks_exact(ENTRY).map(decode_entry).collect::<Option<_>>()?;
        let count = |tag| entries.iter().filter(|entry| entry.tag == tag).count();
        let named = count(Tag::User) + count(Tag::Group);
        let once = [Tag::Owner, Tag::OwningGroup, Tag::Other].into_iter().all(|tag| count(tag) == 1);
        let masked = count(Tag::Mask) == 1 || (count(Tag::Mask) == 0 && named == 0);
        let ordered = entries.windows(2).all(|pair| pair[0].tag <= pair[1].tag);
        (once && masked && ordered).then_some(Self { entries })
    }

    /// The form that [`decode`](Self::decode) reads.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.entries.len() * ENTRY);
        out.extend_from_slice(&VERSION.to_le_bytes());
        for entry in &self.entries {
            out.extend_from_slice(&(entry.tag as u16).to_le_bytes());
            out.extend_from_slice(&entry.perm.to_le_bytes());
            out.extend_from_slice(&entry.id.to_le_bytes());
        }
        out
    }

    /// Whether it says no more than nine permission bits do.
    pub fn is_minimal(&self) -> bool {
        self.entries.len() == 3
    }

    /// The nine permission bits that stand for it.
    pub fn permissions(&self) -> u16 {
        let class = |tag| self.entries.iter().find(|entry| entry.tag == tag).map_or(0, |entry| entry.perm);
        class(Tag::Owner) << 6 | class(self.group_class()) << 3 | class(Tag::Other)
    }

    /// Makes it say what the nine permission bits of `perm` say, as `chmod` does.
    pub fn set_permissions(&mut self, perm: u16) {
        self.change_classes(|_, shift| perm >> shift & RWX);
    }

    /// Takes away what `perm`, the mode that a file is made with, doesn't give.
    pub fn restrict(&mut self, perm: u16) {
        self.change_classes(|have, shift| have & perm >> shift);
    }

    fn change_classes(&mut self, new: impl Fn(u16, u32) -> u16) {
        let group_class = self.group_class();
        for entry in &mut self.entries {
            let shift = match entry.tag {
                Tag::Owner => 6,
                tag if tag == group_class => 3,
                Tag::Other => 0,
                _ => continue,
            };
            entry.perm = new(entry.perm, shift) & RWX;
        }
    }

    /// Whose entry the middle bits of the mode are: the mask's, where there is one.
    fn group_class(&self) -> Tag {
        if self.entries.iter().any(|entry| entry.tag == Tag::Mask) { Tag::Mask } else { Tag::OwningGroup }
    }
}

fn decode_entry(bytes: &[u8]) -> Option<Entry> {
    let tag = match u16::from_le_bytes([bytes[0], bytes[1]]) {
        0x01 => Tag::Owner,
        0x02 => Tag::User,
        0x04 => Tag::OwningGroup,
        0x08 => Tag::Group,
        0x10 => Tag::Mask,
        0x20 => Tag::Other,
        _ => return None,
    };
    let perm = u16::from_le_bytes([bytes[2], bytes[3]]);
    let id = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    (perm & !RWX == 0).then_some(Entry { tag, perm, id })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `user::rw-,user:1000:rwx,group::r--,mask::rwx,other::---`, as `setfacl` writes it.
    const NAMED: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x07\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\
        \x10\0\x07\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

    fn minimal(perm: u8) -> Vec<u8> {
        let entry = |tag, perm| [tag, 0, perm & 7, 0, 255, 255, 255, 255];
        [&[2, 0, 0, 0][..], &entry(1, perm >> 6), &entry(4, perm >> 3), &entry(0x20, perm)].concat()
    }

    #[test]
    fn the_mask_is_the_middle_of_the_mode() {
        let mut acl = Acl::decode(NAMED).unwrap();
        assert_eq!(acl.encode(), NAMED);
        assert_eq!(acl.permissions(), 0o670);
        assert!(!acl.is_minimal());
        acl.set_permissions(0o751);
        assert_eq!(acl.permissions(), 0o751);
        let group = acl.entries.iter().find(|entry| entry.tag == Tag::OwningGroup).unwrap();
        assert_eq!(group.perm, 4, "chmod changes the mask and not the owning group's entry");
    }

    #[test]
    fn what_is_made_gets_no_more_than_it_asked_for() {
        let mut acl = Acl::decode(NAMED).unwrap();
        acl.restrict(0o640);
        assert_eq!(acl.permissions(), 0o640);
        let mut acl = Acl::decode(&minimal(0o175)).unwrap();
        assert!(acl.is_minimal());
        acl.restrict(0o666);
        assert_eq!(acl.permissions(), 0o064);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        assert!(Acl::decode(b"").is_none());
        assert!(Acl::decode(&NAMED[..NAMED.len() - 1]).is_none(), "cut short");
        assert!(Acl::decode(&NAMED[..NAMED.len() - 8]).is_none(), "without the others");
        assert!(Acl::decode(&[&NAMED[..28], &NAMED[36..]].concat()).is_none(), "a named user without a mask");
        let mut wrong = NAMED.to_vec();
        wrong[0] = 3;
        assert!(Acl::decode(&wrong).is_none(), "another version");
        let mut wrong = NAMED.to_vec();
        wrong[6] = 8;
        assert!(Acl::decode(&wrong).is_none(), "a permission that isn't one");
    }
}
