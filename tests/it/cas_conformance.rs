//! The properties of every content-addressed store, and the failures of each kind.

use std::{fs, path::Path, sync::Arc, time::Duration};

use crate::cas_support::{Behaviour, Node, content};
use btcr2_aggregation::cas::{Cas, CasFault, Content, Directory, Ipfs, MAX_CONTENT, Publication};
use tempfile::TempDir;
use tokio::net::TcpSocket;

/// Far more than a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

fn ipfs(node: &Node) -> Ipfs {
    Ipfs::new(node.url().parse().unwrap(), PATIENCE).unwrap()
}

fn file(directory: &Path, content: &Content) -> std::path::PathBuf {
    directory.join(content.hash().hex())
}

/// The URL of a port that is taken, so that no other program gets it, but does not listen.
fn unused_port() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", socket.local_addr().unwrap());
    (socket, url)
}

/// The tests that every store must pass.
async fn returns_what_was_stored(store: &dyn Cas) {
    let contents = [
        content(*b"{}"),
        content(*b""),
        content((0..=255).collect::<Vec<u8>>()),
        // The end of a multipart body.
        content(*b"\r\n--boundary--\r\n\r\n"),
        content(vec![b'x'; MAX_CONTENT]),
    ];
    for content in &contents {
        assert_eq!(store.get(&content.hash()).await.unwrap_err().fault, CasFault::NotFound(content.hash()));
        store.put(content).await.unwrap();
        assert_eq!(store.get(&content.hash()).await.unwrap(), *content);
        // Again, as after a restart.
        store.put(content).await.unwrap();
    }
    for content in &contents {
        assert_eq!(store.get(&content.hash()).await.unwrap(), *content);
    }
    let twins = content(*b"twins");
    let (one, other) = futures::join!(store.put(&twins), store.put(&twins));
    assert_eq!((one, other), (Ok(()), Ok(())));
    assert_eq!(store.get(&twins.hash()).await.unwrap(), twins);
}

#[actix_rt::test]
async fn a_directory_conforms() {
    let directory = TempDir::new().unwrap();
    // So that the first `get` reports a missing entry of an empty store, and not a missing store.
    returns_what_was_stored(&Directory::new(directory.path())).await;
    let unfinished = fs::read_dir(directory.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
    assert_eq!(unfinished.count(), 0);
}

#[actix_rt::test]
async fn an_ipfs_node_conforms() {
    let node = Node::start(Behaviour::Honest);
    returns_what_was_stored(&ipfs(&node)).await;
    node.stop().await;
}

#[actix_rt::test]
async fn a_damaged_file_is_not_returned_and_is_replaced() {
    let directory = TempDir::new().unwrap();
    let store = Directory::new(directory.path());
    let good = content(*b"good");
    store.put(&good).await.unwrap();
    for damage in [b"gooe".to_vec(), b"".to_vec(), b"good!".to_vec(), vec![0; MAX_CONTENT + 1]] {
        fs::write(file(directory.path(), &good), damage).unwrap();
        assert!(matches!(store.get(&good.hash()).await.unwrap_err().fault, CasFault::Wrong(_)));
        store.put(&good).await.unwrap();
        assert_eq!(store.get(&good.hash()).await.unwrap(), good);
    }
}

#[actix_rt::test]
async fn put_creates_the_directory_that_get_reports_as_missing() {
    let parent = TempDir::new().unwrap();
    let store = Directory::new(parent.path().join("a/b"));
    let good = content(*b"good");
    assert!(matches!(store.get(&good.hash()).await.unwrap_err().fault, CasFault::Unavailable(_)));
    store.put(&good).await.unwrap();
    assert_eq!(store.get(&good.hash()).await.unwrap(), good);

    let in_the_way = Directory::new(file(&parent.path().join("a/b"), &good));
    assert!(matches!(in_the_way.put(&good).await.unwrap_err().fault, CasFault::Unavailable(_)));
}

#[cfg(unix)]
#[actix_rt::test]
async fn published_files_can_be_read_by_other_users() {
    use std::os::unix::fs::PermissionsExt;
    let directory = TempDir::new().unwrap();
    let good = content(*b"good");
    Directory::new(directory.path()).put(&good).await.unwrap();
    // The umask may remove permissions; the store removes no others.
    let mode = fs::metadata(file(directory.path(), &good)).unwrap().permissions().mode();
    assert_eq!(mode & 0o600, 0o600);
    let reference = directory.path().join("reference");
    fs::write(&reference, "").unwrap();
    assert_eq!(mode & 0o777, fs::metadata(reference).unwrap().permissions().mode() & 0o755 & !0o111);
}

#[actix_rt::test]
async fn a_js_ipfs_node_works() {
    let node = Node::start(Behaviour::JavaScript);
    let good = content(*b"good");
    ipfs(&node).put(&good).await.unwrap();
    assert!(node.has(&good.hash()));
    assert_eq!(ipfs(&node).get(&good.hash()).await.unwrap(), good);
    node.stop().await;
    // The same hash as another kind of block is another CID.
    let dag_pb = format!("f01701220{}", good.hash().hex());
    assert_eq!(btcr2_aggregation::cas::ContentHash::from_any_cid(&dag_pb), None);
    let hash = good.hash();
    let base58 = format!("z{}", bs58_of(&[&[1, 0x55, 0x12, 0x20], &hash.as_bytes()[..]].concat()));
    for cid in [hash.cid(), hash.cid().to_ascii_uppercase(), base58] {
        assert_eq!(btcr2_aggregation::cas::ContentHash::from_any_cid(&cid), Some(hash), "{cid}");
    }
}

/// Base58 with Bitcoin's alphabet.
fn bs58_of(bytes: &[u8]) -> String {
    const ALPHABET: &[u8] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let mut digits: Vec<u32> = Vec::new();
    for byte in bytes {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            carry += *digit << 8;
            *digit = carry % 58;
            carry /= 58;
        }
        while carry > 0 {
            digits.push(carry % 58);
            carry /= 58;
        }
    }
    digits.iter().rev().map(|digit| char::from(ALPHABET[*digit as usize])).collect()
}

#[actix_rt::test]
async fn a_node_that_returns_false_data_is_detected() {
    for behaviour in [Behaviour::OtherCid, Behaviour::OtherBytes, Behaviour::Forgets, Behaviour::Endless] {
        let node = Node::start(behaviour);
        let error = ipfs(&node).put(&content(*b"good")).await.unwrap_err();
        assert!(matches!(error.fault, CasFault::Wrong(_)), "{behaviour:?}: {error}");
        assert!(error.to_string().starts_with("ipfs=http://127.0.0.1:"), "{error}");
        node.stop().await;
    }
    for behaviour in [Behaviour::OtherBytes, Behaviour::Endless] {
        let good = content(*b"good");
        let node = Node::start_with(behaviour, std::slice::from_ref(&good));
        let error = ipfs(&node).get(&good.hash()).await.unwrap_err();
        assert!(matches!(error.fault, CasFault::Wrong(_)), "{behaviour:?}: {error}");
        node.stop().await;
    }
}

#[actix_rt::test]
async fn the_error_of_a_failing_node_is_reported() {
    for (behaviour, words) in [
        (Behaviour::Broken, r"the node reports: pin: \u{1b}[2Jrepo is locked"),
        (Behaviour::Website, "HTTP 404 Not Found: is this the RPC API"),
        (Behaviour::Redirects, "HTTP 307 Temporary Redirect"),
    ] {
        let node = Node::start(behaviour);
        let store = ipfs(&node);
        for error in [
            store.put(&content(*b"good")).await.unwrap_err(),
            store.get(&content(*b"good").hash()).await.unwrap_err(),
        ] {
            let CasFault::Unavailable(problem) = error.fault else { panic!("{behaviour:?}: {error}") };
            assert!(problem.contains(words), "{behaviour:?}: {problem}");
        }
        node.stop().await;
    }
}

#[actix_rt::test]
async fn a_hanging_or_missing_node_is_given_up() {
    let node = Node::start(Behaviour::Hangs);
    let store = Ipfs::new(node.url().parse().unwrap(), Duration::from_millis(50)).unwrap();
    let error = store.put(&content(*b"good")).await.unwrap_err();
    assert_eq!(error.fault, CasFault::Unavailable("it did not answer in time".to_owned()));

    node.stop().await;

    let (_socket, url) = unused_port();
    let store = Ipfs::new(url.parse().unwrap(), PATIENCE).unwrap();
    let error = store.get(&content(*b"good").hash()).await.unwrap_err();
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}

#[actix_rt::test]
async fn published_content_is_verified_on_the_node_itself() {
    let good = content(*b"good");
    // The network has it, so an online read would succeed although the node does not have it.
    let node = Node::start_with(Behaviour::Forgets, std::slice::from_ref(&good));
    assert!(matches!(ipfs(&node).put(&good).await.unwrap_err().fault, CasFault::Wrong(_)));
    assert_eq!(ipfs(&node).get(&good.hash()).await.unwrap(), good);
    node.stop().await;
}

#[actix_rt::test]
async fn a_password_is_sent_and_never_shown() {
    let node = Node::start(Behaviour::Broken);
    let url = node.url().replace("http://", "http://operator:secret@");
    let store = Ipfs::new(url.parse().unwrap(), PATIENCE).unwrap();
    let error = store.put(&content(*b"good")).await.unwrap_err();
    for shown in [error.to_string(), format!("{error:?}"), format!("{store:?}"), store.name().to_owned()] {
        assert!(!shown.contains("secret") && !shown.contains("operator"), "{shown}");
    }
    // base64 of operator:secret
    assert_eq!(node.requests()[0].authorization.as_deref(), Some("Basic b3BlcmF0b3I6c2VjcmV0"));
    node.stop().await;

    let (_socket, url) = unused_port();
    let url = url.replace("http://", "http://operator:secret@");
    let store = Ipfs::new(url.parse().unwrap(), PATIENCE).unwrap();
    let error = store.put(&content(*b"good")).await.unwrap_err();
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[actix_rt::test]
async fn a_publication_tries_every_store_and_holds_if_required() {
    let directory = TempDir::new().unwrap();
    let (broken, honest) = (Node::start(Behaviour::Broken), Node::start(Behaviour::Honest));
    let contents: Vec<Content> = (0..20u8).map(|number| content([number])).collect();
    let mut publication = Publication {
        stores: vec![Arc::new(ipfs(&broken)), Arc::new(Directory::new(directory.path())), Arc::new(ipfs(&honest))],
        hold_on_failure: false,
    };
    let report = publication.publish(&contents).await.unwrap();
    assert!(!report.is_complete());
    assert_eq!(report.failures().count(), 1);
    let published: Vec<usize> = report.stores.iter().map(|store| store.published).collect();
    assert_eq!(published, [0, 20, 20]);
    assert_eq!(report.stores[0].failure.as_ref().unwrap().0, contents[0].hash());
    assert!(contents.iter().all(|content| honest.has(&content.hash())));
    // The failing store did not get all of them.
    assert!(broken.requests().len() < contents.len());

    publication.hold_on_failure = true;
    let held = publication.publish(&contents).await.unwrap_err();
    assert!(held.to_string().contains(publication.stores[0].name()), "{held}");
    assert_eq!(held.0.stores[1].published, 20);

    publication.stores.remove(0);
    assert!(publication.publish(&contents).await.unwrap().is_complete());
    assert!(Publication::default().publish(&contents).await.unwrap().is_complete());
    broken.stop().await;
    honest.stop().await;
}
