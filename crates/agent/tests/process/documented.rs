//! `docs/envd.md` names the tests that show what it says.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn the_tests_that_the_documentation_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut sources = String::new();
    for directory in ["crates/agent/tests/files", "crates/agent/tests/process", "e2e/python"] {
        for entry in fs::read_dir(root.join(directory)).unwrap() {
            sources.push_str(&fs::read_to_string(entry.unwrap().path()).unwrap_or_default());
        }
    }
    let page = fs::read_to_string(root.join("docs/envd.md")).unwrap();
    let is_test = |text: &&str| {
        text.matches('_').count() >= 3 && text.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric())
    };
    let named: BTreeSet<&str> = page.split('`').skip(1).step_by(2).filter(is_test).collect();
    assert!(named.len() > 50, "{named:?}");
    let exists = |name: &&str| {
        sources.contains(&format!("fn {name}(")) || sources.contains(&format!("def test_{name}("))
    };
    let missing: Vec<_> = named.iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "docs/envd.md names tests that do not exist: {missing:?}");
}
