//! The list of promises and the tests that hold them can't drift apart.

use std::fs;
use std::path::Path;

#[test]
fn every_sentence_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let document = fs::read_to_string(root.join("fs/doc/semantics.md")).expect("semantics.md");
    let mut sentences = 0;
    for line in document.lines().filter(|l| l.starts_with("| ") && l.matches('|').count() == 3) {
        let held_by = line.rsplit('|').nth(1).unwrap_or_default().trim();
        if held_by == "held by" {
            continue;
        }
        sentences += 1;
        let name =
            held_by.strip_prefix('`').and_then(|n| n.strip_suffix('`')).unwrap_or_else(|| panic!("no test: {line}"));
        let (file, test) = name.split_once("::").unwrap_or_else(|| panic!("not file::test: {line}"));
        let places = ["tests/tests", "fs/live/tests"].map(|place| root.join(place).join(format!("{file}.rs")));
        let path = places.iter().find(|path| path.exists()).unwrap_or(&places[0]);
        let source = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}: {line}", path.display()));
        let twice = source.split_once("on_directory_and_bucket! {").and_then(|(_, rest)| rest.split_once('}'));
        let twice = twice.is_some_and(|(tests, _)| tests.split(',').any(|one| one.trim() == test));
        assert!(twice || source.contains(&format!("fn {test}()")), "{} has no test {test}: {line}", path.display());
    }
    assert!(sentences > 50, "only {sentences} sentences were found: was the form of the document changed?");
}
