//! Files that a passphrase encrypts: age files (`age-encryption.org/v1`), which the `age` program can open too.

use age::{DecryptError, EncryptError, secrecy::SecretString};
use zeroize::Zeroizing;

use crate::inputs;

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
    if let Some(passphrase) = inputs::variable("BTCR2_PASSPHRASE") {
        return Some(SecretString::from(passphrase));
    }
    std::io::IsTerminal::is_terminal(&std::io::stdin())
        .then(|| rpassword::prompt_password(prompt).ok())
        .flatten()
        .map(SecretString::from)
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
