//! The files that the documents cite exist.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The documents, without the folder of their images.
fn documents(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file()).collect()
}

/// Every `name.rs` that a document names is a test of one of the crates, or a file of the tree.
#[test]
fn every_test_that_a_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    for document in documents(root) {
        let text = fs::read_to_string(&document).unwrap();
        for name in text.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".rs")) {
            named += 1;
            let exists = ["", "tests/it", "actors/tests/it", "protocol/tests/it"]
                .iter()
                .any(|at| root.join(at).join(name).exists());
            assert!(exists, "{}: there is no {name}", document.display());
        }
    }
    assert!(named > 10, "only {named} found");
}

/// Every relative link leads somewhere.
#[test]
fn every_relative_link_has_a_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents = documents(root);
    documents.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"].map(|name| root.join(name)));
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap();
            if path.is_empty() || link.contains("://") {
                continue;
            }
            assert!(document.parent().unwrap().join(path).exists(), "{}: {link}", document.display());
        }
    }
}
