//! The controller's keys as they were given, and the key that an update adds.

use clap::Args;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::Value;

use super::{super::keys_of, CommonArgs, UpdateFailure, verbs::id};
use crate::{
    controller::{Keys, NotAuthorized},
    inputs,
    keyfile::{self, KeyFileError, LaterKey},
    protocol::{
        did::Did,
        document::decode_multikey,
        key::{PublicKey, SecretKey},
        update::unused_id,
    },
};

/// The new key of an update.
#[derive(Debug, Args)]
pub(super) struct NewKeyArgs {
    /// The id of the new key [default: key-N, of the version N that the update leads to]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// A public key whose secret key is elsewhere, in hex or as a Multikey [default: a new key, stored in the identity file]
    #[arg(long, value_name = "KEY", value_parser = public_key, conflicts_with = "key_secret_env")]
    public_key: Option<PublicKey>,
    /// Take the new secret key (64 hex characters) from this environment variable
    #[arg(long, value_name = "VAR")]
    key_secret_env: Option<String>,
}

fn public_key(text: &str) -> Result<PublicKey, String> {
    match text.starts_with('z') {
        true => decode_multikey(text).map_err(|error| error.to_string()),
        false => inputs::public_key(text),
    }
}

/// A key that an update adds.
pub(super) struct NewKey {
    /// The absolute id of its method.
    pub(super) method: String,
    pub(super) public_key: PublicKey,
    /// What is to be stored in the identity file before the update leaves this program.
    pub(super) stored: Option<LaterKey>,
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyError {
    #[error("{file} is the identity of {found}, not of {did}")]
    OtherDid { file: String, found: Did, did: Did },
    #[error(transparent)]
    NotAuthorized(#[from] NotAuthorized),
    #[error(
        "the new secret key would be stored nowhere: give --identity FILE, the new key by --key-secret-env VAR, or --public-key KEY"
    )]
    Nowhere,
}

/// The keys of the controller of `did`.
pub(super) fn read(args: &CommonArgs, did: &Did) -> Result<Keys, UpdateFailure> {
    let (identity, keys) = keys_of(args.identity.as_deref(), args.secret_env.as_deref(), Some(did.network()))?;
    // A secret key in a variable may be a later one of the DID.
    if let (Keys::File(_, file), found) = (&keys, identity.did())
        && found != did
    {
        return Err(KeyError::OtherDid { file: file.clone(), found: found.clone(), did: did.clone() }.into());
    }
    Ok(keys)
}

/// The key that an update to version `target` of `document` adds. One that was made for that version before is taken
/// again, so that the same command makes the same update.
pub(super) fn new_key(
    keys: &Keys,
    args: &NewKeyArgs,
    document: &Value,
    target: u64,
) -> Result<NewKey, UpdateFailure> {
    let method = match &args.id {
        Some(text) => match id(text) {
            relative if relative.starts_with(['#', '?', '/']) => {
                format!("{}{relative}", document.get("id").and_then(Value::as_str).unwrap_or_default())
            }
            absolute => absolute,
        },
        // Never an id that another key had before.
        None => unused_id(document, &format!("key-{target}")),
    };
    if let Some(public_key) = args.public_key {
        return Ok(NewKey { method, public_key, stored: None });
    }
    let given = args.key_secret_env.as_deref().map(keyfile::secret_from_env).transpose()?;
    let Keys::File(file, _) = keys else {
        let public_key = given.ok_or(KeyError::Nowhere)?.public_key();
        return Ok(NewKey { method, public_key, stored: None });
    };
    let known = |later: &&LaterKey| {
        let same = given.as_ref().is_none_or(|key| key.public_key() == later.key.public_key());
        same && later.for_version == target && later.verification_method == method
    };
    // The last one: an earlier one may have been superseded.
    if let Some(later) = file.later().iter().rev().find(known) {
        return Ok(NewKey { method, public_key: later.key.public_key(), stored: None });
    }
    let key = given.unwrap_or_else(|| SecretKey::generate(&mut ChaCha20Rng::from_os_rng()));
    let public_key = key.public_key();
    let stored = LaterKey { verification_method: method.clone(), key, for_version: target };
    Ok(NewKey { method, public_key, stored: Some(stored) })
}

/// Stores the new key of an update.
pub(super) fn store(keys: &mut Keys, new: &mut Option<NewKey>) -> Result<bool, KeyFileError> {
    match (keys, new.as_mut().and_then(|new| new.stored.take())) {
        (Keys::File(file, _), Some(key)) => file.add(key).map(|()| true),
        _ => Ok(false),
    }
}
