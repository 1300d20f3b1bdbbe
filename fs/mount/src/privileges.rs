//! Who may change a file without losing its set-user-id and set-group-id bits.
//!
//! `FUSE_HANDLE_KILLPRIV_V2` leaves clearing them to the filesystem. For writes the kernel says when; for truncation,
//! `fallocate` and `copy_file_range` fuser 0.18 does not hand that flag over, or there is none. There the same
//! question is asked here: has the caller `CAP_FSETID`?

use axiomfs_live::Caller;

/// Number of `CAP_FSETID` (capabilities(7)).
const CAP_FSETID: u32 = 4;
/// Set-user-id and set-group-id.
const SET_ID_BITS: u16 = 0o6000;

/// Whether bits of `perm` may have to be cleared at all.
pub(crate) fn has_set_id_bits(perm: u16) -> bool {
    perm & SET_ID_BITS != 0
}

/// Whether process `pid` of user `uid` keeps the bits: root with `CAP_FSETID`. Others that have the capability are
/// treated as if they hadn't: clearing too much is safe. Reads `/proc`, so ask [`has_set_id_bits`] first.
pub(crate) fn keeps_set_id_bits(uid: u32, pid: u32) -> bool {
    uid == 0 && std::fs::read_to_string(format!("/proc/{pid}/status")).map_or(true, |status| may_set_id(&status))
}

/// Whether `caller` may leave set-group-id on a file of group `group` whose mode it changes: a member of the group, or
/// root with `CAP_FSETID`. Reads `/proc`, so ask [`has_set_id_bits`] first.
pub(crate) fn keeps_set_gid(caller: Caller, group: u32) -> bool {
    if caller.gid == group || keeps_set_id_bits(caller.uid, caller.pid) {
        return true;
    }
    std::fs::read_to_string(format!("/proc/{}/status", caller.pid)).is_ok_and(|status| is_member(&status, group))
}

fn is_member(status: &str, group: u32) -> bool {
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    groups.is_some_and(|groups| groups.split_whitespace().any(|id| id.parse() == Ok(group)))
}

fn may_set_id(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_none_or(|set| set & (1 << CAP_FSETID) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_with_the_capability_keeps_the_bits() {
        assert!(may_set_id("Name:\tcp\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_set_id("Name:\tcp\nCapEff:\t000001ffffffffef\n"));
        assert!(!keeps_set_id_bits(1000, std::process::id()));
    }

    #[test]
    fn members_of_the_group_keep_its_bit() {
        let status = "Name:\tcp\nGroups:\t4 24 1000 \nCapEff:\t0000000000000000\n";
        assert!(is_member(status, 24) && !is_member(status, 2) && !is_member("Name:\tcp\n", 24));
        assert!(keeps_set_gid(Caller { uid: 1000, gid: 7, pid: u32::MAX }, 7));
        assert!(!keeps_set_gid(Caller { uid: 1000, gid: 7, pid: u32::MAX }, 8));
    }

    #[test]
    fn bits_that_matter() {
        assert!(has_set_id_bits(0o4755) && has_set_id_bits(0o2755));
        assert!(!has_set_id_bits(0o1777));
    }
}
