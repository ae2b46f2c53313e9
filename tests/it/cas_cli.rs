//! The command `cas`: content by its hash.

use std::fs;

use crate::cas_support::{Behaviour, Node};
use crate::support::{Run, directory, path, run};
use btcr2_aggregation::cas::ContentHash;
use serde_json::Value;

/// Runs the program on a thread, so that the node can answer it.
async fn ran(arguments: &[&str]) -> Run {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    actix_rt::task::spawn_blocking(move || run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()))
        .await
        .unwrap()
}

#[actix_rt::test]
async fn a_document_is_stored_canonically_and_found_by_its_hash() {
    let node = Node::start(Behaviour::Honest);
    let directory = directory("cas-put");
    let (file, store) = (path(&directory, "document.json"), format!("dir={}", path(&directory, "store")));
    let ipfs = format!("ipfs={}", node.url());
    fs::write(&file, "{\n  \"b\": 1.0,\n  \"a\": \"\\u20ac\"\n}\n").unwrap();
    let canonical = r#"{"a":"€","b":1}"#;
    let hash = ContentHash::of(canonical.as_bytes());

    let put = ran(&["cas", "put", &file, "--cas", &store, "--cas", &ipfs, "--json"]).await.succeeded();
    let put: Value = serde_json::from_str(&put.stdout).unwrap();
    assert_eq!((&put["hash"], &put["cid"]), (&Value::from(hash.to_string()), &Value::from(hash.cid())));
    assert!(node.has(&hash));
    for spelling in [hash.to_string(), hash.hex(), hash.cid()] {
        for store in [&store, &ipfs] {
            let shown = ran(&["cas", "show", &spelling, "--cas", store]).await.succeeded();
            assert_eq!(shown.stdout, canonical, "{spelling} {store}");
        }
    }
    // The same bytes without canonicalization have another hash.
    let put = ran(&["cas", "put", &file, "--raw", "--cas", &store]).await.succeeded();
    assert!(put.stdout.contains(&ContentHash::of(&fs::read(&file).unwrap()).to_string()), "{}", put.stdout);
    node.stop().await;
}

#[test]
fn a_hash_that_begins_with_a_hyphen_is_not_an_option() {
    let directory = directory("cas-hyphen");
    let (file, store) = (path(&directory, "document.json"), format!("dir={}", path(&directory, "store")));
    let (number, hash) = (0..)
        .map(|number: u32| (number, ContentHash::of(number.to_string().as_bytes()).to_string()))
        .find(|(_, hash)| hash.starts_with('-'))
        .unwrap();
    fs::write(&file, number.to_string()).unwrap();
    run(&["cas", "put", &file, "--cas", &store]).succeeded();
    for arguments in [["cas", "show", &hash, "--cas", &store], ["cas", "show", "--cas", &store, &hash]] {
        assert_eq!(run(&arguments).succeeded().stdout, number.to_string());
    }
    // The arguments after it are still read as options.
    let help = run(&["cas", "show", &hash, "--help"]).succeeded();
    assert!(help.stdout.contains("Usage"), "{}", help.stdout);
}

#[actix_rt::test]
async fn a_failing_store_is_named_and_the_others_are_used() {
    let node = Node::start(Behaviour::Broken);
    let directory = directory("cas-failing");
    let (file, store) = (path(&directory, "document.json"), format!("dir={}", path(&directory, "store")));
    let ipfs = format!("ipfs={}", node.url());
    fs::write(&file, "{}").unwrap();
    let put = ran(&["cas", "put", &file, "--cas", &ipfs, "--cas", &store]).await;
    assert_eq!(put.status, Some(1));
    assert!(put.stderr.contains(&ipfs) && put.stderr.contains("repo is locked"), "{}", put.stderr);
    let hash = ContentHash::of(b"{}").to_string();
    let shown = ran(&["cas", "show", &hash, "--cas", &ipfs, "--cas", &store]).await.succeeded();
    assert_eq!(shown.stdout, "{}");
    assert!(shown.stderr.contains(&ipfs), "{}", shown.stderr);

    let missing = ContentHash::of(b"missing").to_string();
    let shown = ran(&["cas", "show", &missing, "--cas", &store]).await;
    assert_eq!((shown.status, shown.stdout.as_str()), (Some(1), ""));
    assert!(shown.stderr.contains("does not have"), "{}", shown.stderr);
    node.stop().await;
}

#[test]
fn invalid_calls_are_refused() {
    let directory = directory("cas-refused");
    let (file, store) = (path(&directory, "text"), format!("dir={}", path(&directory, "store")));
    fs::write(&file, "no JSON").unwrap();
    let refused = |arguments: &[&str], why: &str| {
        let run = run(arguments);
        assert!(run.usage().contains(why), "{why:?} is missing in {}", run.stderr);
    };
    refused(&["cas", "put", &file, "--cas", &store], "--raw");
    refused(&["cas", "put", &file], "--cas");
    refused(&["cas", "put", &file, "--cas", "/tmp"], "dir=PATH or ipfs=URL");
    refused(&["cas", "put", &path(&directory, "nowhere"), "--cas", &store], "nowhere");
    refused(&["cas", "show", "abc", "--cas", &store], "bafkrei");
    fs::write(&file, vec![b'x'; (1 << 20) + 1]).unwrap();
    refused(&["cas", "put", &file, "--raw", "--cas", &store], "1048576");
    fs::write(&file, "{\"a\":9007199254740993}").unwrap();
    refused(&["cas", "put", &file, "--cas", &store], "canonical");
    assert!(!directory.join("store").exists());
}
