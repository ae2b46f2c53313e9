//! One-time passwords of programs that people have on their phones (RFC 6238: SHA-1, 6 digits, 30 s), as a second factor of a token that
//! is used in a browser.

use std::fmt;

use data_encoding::BASE32_NOPAD;
use hmac::{Hmac, Mac};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rand_chacha::rand_core::RngCore;
use serde::{Deserialize, Serialize};
use sha1::Sha1;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::{actors::runtime::Randomness, protocol::time::Timestamp};

/// The length of a step, and how many steps the clock of a phone may be off.
const STEP_SECS: u64 = 30;
const SKEW: u64 = 1;

const DIGITS: u32 = 6;

/// The length of a secret, in bytes: that of the hash.
const SECRET: usize = 20;

/// Whose codes they are, as the program shows it.
const ISSUER: &str = "btcr2-aggregation";

/// The secret that a phone and the service share, in base 32. The service needs it to check codes: it cannot be stored hashed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct TotpSecret(String);

impl Drop for TotpSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for TotpSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TotpSecret")
    }
}

impl TotpSecret {
    pub(crate) fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; SECRET]);
        Randomness::System.for_actor("one-time passwords").fill_bytes(&mut bytes[..]);
        Self(BASE32_NOPAD.encode(&bytes[..]))
    }

    /// The URI that programs read, e.g. from a QR code. `label` distinguishes this secret from others of the same user.
    pub(crate) fn uri(&self, label: &str) -> Zeroizing<String> {
        let label = utf8_percent_encode(label, NON_ALPHANUMERIC);
        let issuer = utf8_percent_encode(ISSUER, NON_ALPHANUMERIC);
        Zeroizing::new(format!("otpauth://totp/{issuer}:{label}?secret={}&issuer={issuer}", self.0))
    }

    /// The code of a step.
    fn code(&self, step: u64) -> Option<u32> {
        let key = Zeroizing::new(BASE32_NOPAD.decode(self.0.as_bytes()).ok()?);
        let mut mac = Hmac::<Sha1>::new_from_slice(&key).ok()?;
        mac.update(&step.to_be_bytes());
        let hash = mac.finalize().into_bytes();
        // RFC 4226, 5.3: the last four bits choose four bytes.
        let offset = usize::from(hash[19] & 0xf);
        let word: [u8; 4] = hash[offset..offset + 4].try_into().ok()?;
        Some(u32::from_be_bytes(word) & 0x7fff_ffff)
    }

    /// The step of a code that is valid at `now`; never one up to `last`, the step of the last login.
    pub(crate) fn step_of(&self, code: &str, now: Timestamp, last: Option<u64>) -> Option<u64> {
        let code: String = code.chars().filter(|letter| !letter.is_whitespace()).collect();
        let present = now.as_secs() / STEP_SECS;
        let mut found = None;
        // All of them, in the same time.
        for step in present.saturating_sub(SKEW)..=present + SKEW {
            let expected = format!("{:06}", self.code(step)? % 10_u32.pow(DIGITS));
            let fits = bool::from(expected.as_bytes().ct_eq(code.as_bytes()));
            if fits && last.is_none_or(|last| step > last) {
                found = Some(step);
            }
        }
        found
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    /// The code that a phone shows at `now`.
    pub(crate) fn shown(secret: &TotpSecret, now: Timestamp) -> String {
        format!("{:06}", secret.code(now.as_secs() / STEP_SECS).unwrap() % 1_000_000)
    }

    #[test]
    fn codes_are_those_of_rfc_6238() {
        let secret = TotpSecret(BASE32_NOPAD.encode(b"12345678901234567890"));
        // Appendix B, the rows of SHA1.
        let vectors = [
            (59, 94_287_082),
            (1_111_111_109, 7_081_804),
            (1_111_111_111, 14_050_471),
            (1_234_567_890, 89_005_924),
            (2_000_000_000, 69_279_037),
            (20_000_000_000, 65_353_130),
        ];
        for (secs, expected) in vectors {
            assert_eq!(secret.code(secs / STEP_SECS).unwrap() % 100_000_000, expected, "{secs}");
        }
    }

    #[test]
    fn a_code_is_valid_for_three_steps_and_once() {
        let secret = TotpSecret::generate();
        let at = |step: u64| Timestamp::from_secs(step * STEP_SECS + 7);
        let code = shown(&secret, at(1_000));
        let valid: Vec<u64> =
            (996..1_005).filter(|now| secret.step_of(&code, at(*now), None) == Some(1_000)).collect();
        assert_eq!(valid, [999, 1_000, 1_001]);
        assert_eq!(secret.step_of(&format!(" {} {} ", &code[..3], &code[3..]), at(1_000), Some(999)), Some(1_000));
        for last in [1_000, 1_001] {
            assert_eq!(secret.step_of(&code, at(1_000), Some(last)), None, "it was used, or a later one was");
        }
        for wrong in ["", "0", &format!("{code}0"), "abcdef"] {
            assert_eq!(secret.step_of(wrong, at(1_000), None), None);
        }
        let uri = secret.uri("Alice & Bob");
        assert!(
            uri.starts_with("otpauth://totp/btcr2%2Daggregation:Alice%20%26%20Bob?secret=")
                && !format!("{secret:?}").contains(&secret.0)
        );
    }
}
