//! Fuzz targets for all input from unauthenticated peers, relays and disks, each with a property that must hold for every
//! input. A target is a module with a `check` function; README.md describes how to run them.
//!
//! There are two kinds of input. Most are the data itself, as text. Where a signature is verified, no input that a fuzzer
//! generates would ever pass; there an input that starts with [`EDIT`] is a list of edits of something that we signed, and
//! the property is that no edit which changes the signed content is accepted.

pub mod envelope;
pub mod journal_record;
pub mod message;
pub mod nostr_event;
pub mod participant;
pub mod request_auth;
pub mod resolution;
pub mod smt_proof;
pub mod update;

use btcr2_aggregation_protocol::{
    hash::sha256, identity::Identity, key::SecretKey, network::Network, time::Timestamp,
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

/// The first byte of an input that is a list of edits. No text that a target reads starts with it.
pub const EDIT: u8 = b'~';

/// More edits than this are cut off, so that an input stays small.
const MAX_EDITS: usize = 16;

/// The name of a target, and its check.
pub type Target = (&'static str, fn(&[u8]));

/// Every target, by the name of its binary and of its corpus.
pub const TARGETS: [Target; 9] = [
    ("envelope", envelope::check),
    ("journal_record", journal_record::check),
    ("message", message::check),
    ("nostr_event", nostr_event::check),
    ("participant", participant::check),
    ("request_auth", request_auth::check),
    ("resolution", resolution::check),
    ("smt_proof", smt_proof::check),
    ("update", update::check),
];

/// The time of everything.
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_750_000_000);

/// Randomness that is the same in every run, so that an input has the same meaning in every run.
pub(crate) fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(7)
}

/// An identity whose key no input can know.
pub(crate) fn identity(name: &str) -> Identity {
    let key = SecretKey::from_bytes(&sha256(name.as_bytes())).expect("a hash is a secret key, but for bad luck");
    Identity::from_key(key, Network::Regtest)
}

/// `original` with edits of four bytes each: the operation, the place (two bytes, modulo the length), and the byte. `None`
/// if the result is not text, which is the only input of a target.
pub(crate) fn edited(original: &str, edits: &[u8]) -> Option<String> {
    let mut bytes = original.as_bytes().to_vec();
    for edit in edits.chunks_exact(4).take(MAX_EDITS) {
        let at = usize::from(u16::from_be_bytes([edit[1], edit[2]])) % (bytes.len() + 1);
        match edit[0] % 4 {
            0 => bytes.insert(at, edit[3]),
            1 if at < bytes.len() => bytes[at] = edit[3],
            2 if at < bytes.len() => {
                bytes.remove(at);
            }
            // A piece again, as a duplicated field would be.
            3 => {
                let piece = bytes[at..bytes.len().min(at + usize::from(edit[3]))].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {}
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// The targets hold for the committed corpora on any compiler, without a fuzzer.
    #[test]
    fn every_target_holds_on_its_corpus() {
        for (name, check) in TARGETS {
            let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
            let files = fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
            let mut tried = 0;
            for file in files {
                check(&fs::read(file.expect("a file").path()).expect("a file"));
                tried += 1;
            }
            assert!(tried >= 3, "{name} has a corpus of {tried}");
        }
    }

    #[test]
    fn edits_do_what_they_say() {
        assert_eq!(edited("abc", &[]).as_deref(), Some("abc"));
        assert_eq!(edited("abc", &[0, 0, 3, b'd', 1, 0, 0, b'x', 2, 0, 1, 0]).as_deref(), Some("xcd"));
        assert_eq!(edited("abc", &[3, 0, 1, 9]).as_deref(), Some("abcbc"));
        assert_eq!(edited("abc", &[1, 0, 0, 0xff]), None);
    }
}
