//! The store in memory against the suite.

use axiomfs_api::{Body, ObjectKey, Store, conformance};
use axiomfs_storage_memory::MemoryStore;

#[test]
fn keeps_the_contract() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    conformance::store(&MemoryStore::new(), scratch.path());
}

#[test]
fn tampering_changes_what_is_read() {
    let store = MemoryStore::new();
    let key = ObjectKey::new("a").expect("a name");
    assert!(!store.tamper(&key, Vec::clear));
    store.put_new(&key, Body::Bytes(b"abc")).expect("creates");
    assert!(store.tamper(&key, |bytes| bytes[1] = b'x'));
    assert_eq!(store.get(&key, 3).expect("gets"), b"axc");
    assert_eq!(store.total_bytes(), 3);
}
