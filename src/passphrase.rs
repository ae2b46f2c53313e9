//! Files that a passphrase encrypts: age files (`age-encryption.org/v1`), which the `age` program can open too.

use age::{DecryptError, EncryptError, secrecy::SecretString};
use zeroize::Zeroizing;

use crate::inputs;

/// The environment variable that has the passphrase.
const VARIABLE: &str = "BTCR2_PASSPHRASE";

/// The first bytes of a file that age has encrypted.
pub(crate) const AGE_MAGIC: &[u8] = b"age-encryption.org/";

/// The first bytes of its text form, as `age --armor` writes it.
const AGE_ARMOR: &[u8] = b"-----BEGIN AGE ENCRYPTED FILE-----";

/// The highest work factor of a passphrase: 2^22 rounds of scrypt, 4 GiB of memory and about ten seconds. age chooses
/// the work factor for about one second on the encrypting machine; this limit leaves a margin for fast ones. The files
/// come from their owner, not from an unauthenticated peer, so a slow machine may take longer.
pub(crate) const MAX_WORK_FACTOR: u8 = 22;

/// Why an encrypted file cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecryptionError {
    /// The passphrase is wrong, or the file is damaged.
    #[error("the passphrase is wrong, or the file is damaged")]
    Refused,
    /// The file is encrypted, but not with a passphrase.
    #[error("it is encrypted to a public key: encrypt it with a passphrase (`age --passphrase`)")]
    NoPassphrase,
    /// The file's work factor is out of bounds.
    #[error(
        "its passphrase takes 2^{required} rounds of scrypt, more than the 2^{MAX_WORK_FACTOR} that are tried: encrypt it \
         again with a smaller work factor"
    )]
    Work {
        /// Its work factor.
        required: u8,
    },
}

/// The passphrase: from `BTCR2_PASSPHRASE`, otherwise from a prompt if there is a terminal.
pub fn passphrase(prompt: &str) -> Option<SecretString> {
    if let Some(passphrase) = inputs::variable(VARIABLE) {
        return Some(SecretString::from(passphrase));
    }
    std::io::IsTerminal::is_terminal(&std::io::stdin())
        .then(|| rpassword::prompt_password(prompt).ok())
        .flatten()
        .map(SecretString::from)
}

/// Why there is no passphrase for a new file.
#[derive(Debug, thiserror::Error)]
pub enum NewPassphraseError {
    /// There is neither the variable nor a terminal.
    #[error("--encrypt: give a passphrase in the environment variable BTCR2_PASSPHRASE, or run this in a terminal")]
    Nowhere,
    /// It has no characters, so that it protects nothing.
    #[error("the passphrase is empty: nothing was written. Give one in BTCR2_PASSPHRASE, or at the prompt")]
    Empty,
    /// The two that were typed are not the same.
    #[error("the two passphrases are not the same: nothing was written. Try again")]
    Differs,
    /// The terminal cannot be read.
    #[error("the passphrase cannot be read: {0}")]
    Unreadable(#[from] std::io::Error),
}

/// The passphrase for a new file: from `BTCR2_PASSPHRASE`, otherwise from a terminal, where it is asked for twice. A file with a
/// passphrase that was mistyped could never be opened again.
///
/// # Errors
/// [`NewPassphraseError`].
pub fn new_passphrase(prompt: &str) -> Result<SecretString, NewPassphraseError> {
    let given = match inputs::variable(VARIABLE).map(Zeroizing::new) {
        Some(given) => given,
        None if std::io::IsTerminal::is_terminal(&std::io::stdin()) => {
            let first = Zeroizing::new(rpassword::prompt_password(prompt)?);
            // An empty one is refused at once.
            if !first.is_empty() && first != Zeroizing::new(rpassword::prompt_password("The same again: ")?) {
                return Err(NewPassphraseError::Differs);
            }
            first
        }
        None => return Err(NewPassphraseError::Nowhere),
    };
    match given.is_empty() {
        true => Err(NewPassphraseError::Empty),
        false => Ok(SecretString::from(given.to_string())),
    }
}

/// The age file with this content.
///
/// # Errors
/// Those of age, whose text contains none of the content.
pub(crate) fn encrypt(content: &[u8], passphrase: SecretString) -> Result<Vec<u8>, EncryptError> {
    age::encrypt(&age::scrypt::Recipient::new(passphrase), content)
}

/// The age file in `bytes`, if there is one: binary, or as text.
pub(crate) fn encrypted(bytes: &[u8]) -> Option<&[u8]> {
    let armored = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let age = if armored.starts_with(AGE_ARMOR) { armored } else { bytes };
    (age.starts_with(AGE_MAGIC) || age.starts_with(AGE_ARMOR)).then_some(age)
}

/// The content of an age file.
///
/// # Errors
/// [`DecryptionError`].
pub(crate) fn decrypt(age: &[u8], passphrase: SecretString) -> Result<Zeroizing<Vec<u8>>, DecryptionError> {
    let mut identity = age::scrypt::Identity::new(passphrase);
    identity.set_max_work_factor(MAX_WORK_FACTOR);
    let opened = age::decrypt(&identity, age).map_err(|error| match error {
        DecryptError::ExcessiveWork { required, .. } => DecryptionError::Work { required },
        DecryptError::NoMatchingKeys => DecryptionError::NoPassphrase,
        _ => DecryptionError::Refused,
    });
    Ok(Zeroizing::new(opened?))
}
