//! Identity files: a DID and its secret key, readable by their owner only, optionally encrypted with a passphrase.
//!
//! The file is a JSON object, `{version, did, network, secretKey, genesisDocument?, keys?}`; encrypted, it is that object inside an
//! age file (`age-encryption.org/v1`), which the `age` program can open too. `secretKey` is the key that the DID began with.
//! `keys` are later ones, `{verificationMethod, secretKey, forVersion}`: a file that has some is of version 2.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use age::secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::{Zeroize, Zeroizing};

pub use crate::passphrase::{new_passphrase, passphrase};
use crate::{
    files::{replace_private, write_new},
    inputs::{self, InputError},
    passphrase::{self, DecryptionError, MAX_WORK_FACTOR, NewPassphraseError, encrypted},
    protocol::{
        document,
        hash::sha256,
        identity::{Identity, IdentityError},
        key::{PublicKey, SecretKey},
        network::Network,
    },
};

/// An identity file is a few kilobytes; a genesis document may be larger.
const MAX_FILE: u64 = 4 << 20;

const VERSION: u32 = 1;

/// The version of a file with later keys.
const VERSION_WITH_KEYS: u32 = 2;

/// The greatest number of later keys.
const MOST_KEYS: usize = 1_000;

/// Why an identity cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// No identity was given.
    #[error("no identity: give --identity FILE (see `identity new`), or --secret-env VAR")]
    NoIdentity,
    /// Two identities were given.
    #[error("two identities: give one of --identity FILE and --secret-env VAR")]
    TwoIdentities,
    /// An error of the file system.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// Others can read the secret.
    #[error(
        "{path} can be read by others (mode {mode:03o}): run `chmod 600 {path}`, and consider the key known if others use this machine"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is encrypted and no passphrase was given.
    #[error(
        "{0} is encrypted: give its passphrase in the environment variable BTCR2_PASSPHRASE, or run this in a terminal"
    )]
    PassphraseNeeded(PathBuf),
    /// There is no passphrase for a new file.
    #[error(transparent)]
    NewPassphrase(#[from] NewPassphraseError),
    /// The passphrase is wrong, or the file is damaged.
    #[error("{0}: the passphrase is wrong, or the file is damaged")]
    Decryption(PathBuf),
    /// The file is encrypted, but not with a passphrase.
    #[error("{0} is encrypted to a public key: encrypt it with a passphrase (`age --passphrase`)")]
    NoPassphrase(PathBuf),
    /// The file's work factor is out of bounds.
    #[error(
        "{path}: its passphrase takes 2^{required} rounds of scrypt, more than the 2^{MAX_WORK_FACTOR} that are tried: \
         encrypt it again with a smaller work factor"
    )]
    Work {
        /// The file.
        path: PathBuf,
        /// Its work factor.
        required: u8,
    },
    /// The file is not an identity file.
    #[error("{path} is not an identity file: {problem}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it. Never contains any of the content.
        problem: String,
    },
    /// The environment variable does not hold a secret key.
    #[error("the environment variable {name} does not hold a secret key: 64 hex characters expected, {found}")]
    SecretEnv {
        /// The variable.
        name: String,
        /// What was found, without any of its content.
        found: String,
    },
    /// An EXTERNAL DID of nothing.
    #[error("--external: give a genesis document, or --beacon ADDRESS[,TYPE] to make one with that beacon")]
    NoGenesis,
    /// The address of a beacon of a new DID.
    #[error("--beacon {0}")]
    Beacon(String),
    /// Another program has written the file.
    #[error("{0} was changed by another program in the meantime: run this again")]
    Changed(PathBuf),
    /// The file has no room for another key.
    #[error("{0} has {MOST_KEYS} keys already")]
    TooManyKeys(PathBuf),
    /// Key and genesis document do not match.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The genesis document is not valid.
    #[error("the genesis document {0}")]
    Genesis(String),
    /// No party could announce an update of the DID, or no party could sign one.
    #[error("{path}: {problems}; --allow-risky-document takes it all the same")]
    RiskyGenesis {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problems: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Content {
    version: u32,
    did: String,
    network: Network,
    secret_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    genesis_document: Option<Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    keys: Vec<KeyContent>,
}

impl Drop for Content {
    fn drop(&mut self) {
        self.secret_key.zeroize();
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeyContent {
    verification_method: String,
    secret_key: String,
    for_version: u64,
}

impl Drop for KeyContent {
    fn drop(&mut self) {
        self.secret_key.zeroize();
    }
}

/// A key that an update was to add to the document.
pub struct LaterKey {
    /// The absolute id of its verification method.
    pub verification_method: String,
    /// The key.
    pub key: SecretKey,
    /// The version of the document that the update leads to.
    pub for_version: u64,
}

/// An identity with all keys of its file.
pub struct KeyFile {
    /// The identity: the DID, and the key that it began with.
    pub identity: Identity,
    /// How the file protects them.
    pub protection: Protection,
    later: Vec<LaterKey>,
    path: PathBuf,
    passphrase: Option<SecretString>,
    /// The hash of the file as it was read.
    was: [u8; 32],
}

impl KeyFile {
    /// Reads an identity file. `passphrase` is called only if the file is encrypted.
    ///
    /// # Errors
    /// [`KeyFileError`], which never contains any of the secrets.
    pub fn read(path: &Path, passphrase: impl FnOnce() -> Option<SecretString>) -> Result<Self, KeyFileError> {
        let mut bytes = bytes_of(path)?;
        let was = sha256(&bytes);
        let mut used = None;
        if let Some(age) = encrypted(&bytes) {
            let passphrase = passphrase().ok_or_else(|| KeyFileError::PassphraseNeeded(path.to_owned()))?;
            let opened = decrypt(path, age, passphrase.clone())?;
            (bytes, used) = (opened, Some(passphrase));
        }
        let protection = if used.is_some() { Protection::Passphrase } else { Protection::FileMode };
        let (identity, later) = parse(path, &bytes)?;
        Ok(Self { identity, protection, later, path: path.to_owned(), passphrase: used, was })
    }

    /// Reads the file again, with the passphrase that has opened it: another program may have added a key.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn again(&self) -> Result<Self, KeyFileError> {
        Self::read(&self.path, || self.passphrase.clone())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The later keys, in the order in which they were added.
    pub fn later(&self) -> &[LaterKey] {
        &self.later
    }

    /// The secret key of `public_key`, if the file has it.
    pub fn key_of(&self, public_key: &PublicKey) -> Option<&SecretKey> {
        let keys = std::iter::once(&**self.identity.secret_key()).chain(self.later.iter().map(|later| &later.key));
        keys.into_iter().find(|key| key.public_key() == *public_key)
    }

    /// Adds a key, and replaces the file by one that has it: on disk when this returns. A file that is encrypted stays so.
    ///
    /// # Errors
    /// [`KeyFileError::Io`], [`KeyFileError::TooManyKeys`]; [`KeyFileError::Changed`]: a key that another program added would
    /// be lost.
    pub fn add(&mut self, key: LaterKey) -> Result<(), KeyFileError> {
        if self.later.len() >= MOST_KEYS {
            return Err(KeyFileError::TooManyKeys(self.path.clone()));
        }
        if sha256(&bytes_of(&self.path)?) != self.was {
            return Err(KeyFileError::Changed(self.path.clone()));
        }
        self.later.push(key);
        let bytes = encoded(&self.path, &self.identity, &self.later, self.passphrase.clone())?;
        replace_private(&self.path, &bytes).map_err(|error| KeyFileError::Io { path: self.path.clone(), error })?;
        self.was = sha256(&bytes);
        Ok(())
    }
}

/// The content of a file that only its owner can read.
fn bytes_of(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let io_error = |error| KeyFileError::Io { path: path.to_owned(), error };
    let file = File::open(path).map_err(io_error)?;
    check_private(path, &file.metadata().map_err(io_error)?)?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(io_error)?;
    Ok(bytes)
}

/// Writes a new identity file, which must not exist yet, with mode 0600.
///
/// # Errors
/// [`KeyFileError::Io`]; an existing file is never overwritten.
pub fn write(path: &Path, identity: &Identity, passphrase: Option<SecretString>) -> Result<(), KeyFileError> {
    let bytes = encoded(path, identity, &[], passphrase)?;
    write_new(path, &bytes).map_err(|error| KeyFileError::Io { path: path.to_owned(), error })
}

fn encoded(
    path: &Path,
    identity: &Identity,
    later: &[LaterKey],
    passphrase: Option<SecretString>,
) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let io_error = |error| KeyFileError::Io { path: path.to_owned(), error };
    let key = |later: &LaterKey| KeyContent {
        verification_method: later.verification_method.clone(),
        secret_key: later.key.to_hex().to_string(),
        for_version: later.for_version,
    };
    let content = Content {
        version: if later.is_empty() { VERSION } else { VERSION_WITH_KEYS },
        did: identity.did().to_string(),
        network: identity.did().network(),
        secret_key: identity.secret_key().to_hex().to_string(),
        genesis_document: identity.genesis_document().map(|document| (**document).clone()),
        keys: later.iter().map(key).collect(),
    };
    let json = Zeroizing::new(serde_json::to_vec_pretty(&content).map_err(|error| io_error(error.into()))?);
    match passphrase {
        Some(passphrase) => {
            let bytes =
                passphrase::encrypt(&json, passphrase).map_err(|error| io_error(io::Error::other(error)))?;
            Ok(Zeroizing::new(bytes))
        }
        None => Ok(json),
    }
}

/// Reads the identity of a file. `passphrase` is called only if the file is encrypted.
///
/// # Errors
/// Those of [`KeyFile::read`].
pub fn read(
    path: &Path,
    passphrase: impl FnOnce() -> Option<SecretString>,
) -> Result<(Identity, Protection), KeyFileError> {
    let file = KeyFile::read(path, passphrase)?;
    Ok((file.identity, file.protection))
}

fn decrypt(path: &Path, age: &[u8], passphrase: SecretString) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    passphrase::decrypt(age, passphrase).map_err(|error| match error {
        DecryptionError::Work { required } => KeyFileError::Work { path: path.to_owned(), required },
        DecryptionError::NoPassphrase => KeyFileError::NoPassphrase(path.to_owned()),
        DecryptionError::Refused => KeyFileError::Decryption(path.to_owned()),
    })
}

fn parse(path: &Path, bytes: &[u8]) -> Result<(Identity, Vec<LaterKey>), KeyFileError> {
    let format = |problem: &str| KeyFileError::Format { path: path.to_owned(), problem: problem.to_owned() };
    let text = inputs::text_of(bytes).map_err(|problem| format(&problem))?;
    // serde's own message may quote the text, so it is not passed on.
    let content: Content = serde_json::from_str(text).map_err(|error| {
        let found = inputs::describe(text.as_bytes()).map_or_else(String::new, |found| format!("; it {found}"));
        format(&format!("JSON with the known fields expected, line {}{found}", error.line()))
    })?;
    if content.version != VERSION && content.version != VERSION_WITH_KEYS {
        return Err(format(&format!("version {VERSION} or {VERSION_WITH_KEYS} expected")));
    }
    if content.keys.len() > MOST_KEYS {
        return Err(format(&format!("more than {MOST_KEYS} keys")));
    }
    let secret_key = |text: &str| SecretKey::from_hex(text).map_err(|_| format("secretKey is not a secret key"));
    let identity = identity(secret_key(&content.secret_key)?, content.genesis_document.clone(), content.network)?;
    if identity.did().as_str() != content.did {
        return Err(format("the DID is not the one of the secret key"));
    }
    let later = content.keys.iter().map(|key| {
        let (verification_method, for_version) = (key.verification_method.clone(), key.for_version);
        Ok(LaterKey { verification_method, key: secret_key(&key.secret_key)?, for_version })
    });
    Ok((identity, later.collect::<Result<_, KeyFileError>>()?))
}

/// How a file protects its secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Only the owner may read it.
    FileMode,
    /// In addition, it is encrypted with a passphrase.
    Passphrase,
}

/// The secret key in the environment variable `name`, 64 hex characters.
///
/// # Errors
/// [`KeyFileError::SecretEnv`].
pub fn secret_from_env(name: &str) -> Result<SecretKey, KeyFileError> {
    let refuse = |found: String| KeyFileError::SecretEnv { name: name.to_owned(), found };
    let text = Zeroizing::new(inputs::variable(name).ok_or_else(|| refuse("it is not set".to_owned()))?);
    let text = text.trim();
    SecretKey::from_hex(text).map_err(|_| {
        refuse(match text.chars().count() {
            64 => "64 characters found, which are not a key in hex".to_owned(),
            count => format!("{count} characters found"),
        })
    })
}

/// The identity of `secret`: a KEY DID, or with a genesis document the EXTERNAL DID.
///
/// # Errors
/// [`KeyFileError::Identity`] when key and document do not match.
pub fn identity(
    secret: SecretKey,
    genesis_document: Option<Value>,
    network: Network,
) -> Result<Identity, KeyFileError> {
    Ok(match genesis_document {
        Some(document) => Identity::from_genesis(secret, document, network)?,
        None => Identity::from_key(secret, network),
    })
}

/// Reads a genesis document. If its only verification method has no `publicKeyMultibase`, the public key of `secret` is
/// inserted, so that a document can be written before its key exists.
///
/// # Errors
/// [`KeyFileError`].
pub fn read_genesis(path: &Path, secret: &SecretKey) -> Result<Value, KeyFileError> {
    let mut document: Value = inputs::json(path).map_err(|error| match error {
        InputError::Io { path, error } => KeyFileError::Io { path, error },
        InputError::Content { .. } => KeyFileError::Genesis(error.to_string()),
    })?;
    if let Some([method]) =
        document.get_mut("verificationMethod").and_then(Value::as_array_mut).map(Vec::as_mut_slice)
        && let Some(method) = method.as_object_mut()
        && !method.contains_key("publicKeyMultibase")
    {
        method.insert("publicKeyMultibase".to_owned(), document::encode_multikey(&secret.public_key()).into());
    }
    Ok(document)
}

#[cfg(unix)]
fn check_private(path: &Path, metadata: &fs::Metadata) -> Result<(), KeyFileError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(KeyFileError::Exposed { path: path.to_owned(), mode }) }
}

#[cfg(not(unix))]
fn check_private(_: &Path, _: &fs::Metadata) -> Result<(), KeyFileError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_bytes(&[byte; 32]).unwrap()
    }

    fn later(byte: u8) -> LaterKey {
        LaterKey { verification_method: format!("did:example#{byte}"), key: key(byte), for_version: byte.into() }
    }

    #[test]
    fn later_keys_are_stored_beside_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity");
        write(&path, &Identity::from_key(key(1), Network::Regtest), None).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"version\": 1") && !text.contains("keys"), "as older programs write it");
        let mut file = KeyFile::read(&path, || None).unwrap();
        file.add(later(2)).unwrap();
        file.add(later(3)).unwrap();
        // One that another program has changed is not overwritten.
        let mut old = KeyFile::read(&path, || None).unwrap();
        file.add(later(5)).unwrap();
        assert!(matches!(old.add(later(6)), Err(KeyFileError::Changed(_))));
        let file = KeyFile::read(&path, || None).unwrap();
        assert_eq!(file.later().iter().map(|key| key.for_version).collect::<Vec<_>>(), [2, 3, 5]);
        assert!([1, 2, 3, 5].iter().all(|byte| file.key_of(&key(*byte).public_key()).is_some()));
        assert!(file.key_of(&key(4).public_key()).is_none());
        assert_eq!(file.identity.public_key(), key(1).public_key());
        assert!(check_private(&path, &fs::metadata(&path).unwrap()).is_ok());
    }

    #[test]
    fn an_encrypted_file_stays_encrypted_with_a_later_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity");
        let passphrase = || Some(SecretString::from("correct horse"));
        write(&path, &Identity::from_key(key(1), Network::Regtest), passphrase()).unwrap();
        KeyFile::read(&path, passphrase).unwrap().add(later(2)).unwrap();
        assert!(fs::read(&path).unwrap().starts_with(passphrase::AGE_MAGIC));
        let file = KeyFile::read(&path, passphrase).unwrap();
        assert_eq!((file.later().len(), file.protection), (1, Protection::Passphrase));
    }
}
