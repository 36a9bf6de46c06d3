//! Secrets at rest: keys made from keys and from passphrases, and boxes bound to what stands beside them.

use dryoc::classic::{
    crypto_aead_xchacha20poly1305_ietf as aead, crypto_generichash::crypto_generichash, crypto_pwhash,
};
use zeroize::Zeroizing;

use super::{CryptoError, KEY_BYTES, MAC_BYTES, NONCE_BYTES, Nonce, random};

/// Bytes of the salt of a passphrase.
pub const SALT_BYTES: usize = 16;

/// What guessing a passphrase costs (Argon2id, RFC 9106, one lane).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassphraseCost {
    /// Passes over the memory.
    pub passes: u32,
    /// The memory, in KiB.
    pub memory_kib: u32,
}

impl PassphraseCost {
    /// Second recommendation of RFC 9106, section 4, but for its four lanes: 64 MiB, three passes; 0.15 s on a machine of 2026.
    pub const DEFAULT: Self = Self { passes: 3, memory_kib: 64 << 10 };
    /// What is believed when it is read from a file: more would be somebody's way to occupy the machine.
    pub const MOST: Self = Self { passes: 16, memory_kib: 1 << 20 };

    /// Whether it is one to use: at least one pass and 8 KiB, at most [`MOST`](Self::MOST).
    pub fn is_bearable(self) -> bool {
        (1..=Self::MOST.passes).contains(&self.passes)
            && (8..=Self::MOST.memory_kib).contains(&self.memory_kib)
    }
}

/// A key from a passphrase. Takes the time and the memory that `cost` says.
///
/// # Errors
/// The cost is not [bearable](PassphraseCost::is_bearable).
pub fn key_from_passphrase(
    passphrase: &[u8],
    salt: &[u8; SALT_BYTES],
    cost: PassphraseCost,
) -> Result<Zeroizing<[u8; KEY_BYTES]>, CryptoError> {
    let refused = CryptoError::PassphraseCost { cost };
    if !cost.is_bearable() {
        return Err(refused);
    }
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    crypto_pwhash::crypto_pwhash(
        key.as_mut_slice(),
        passphrase,
        salt,
        u64::from(cost.passes),
        cost.memory_kib as usize * 1024,
        crypto_pwhash::PasswordHashAlgorithm::Argon2id13,
    )
    .map_err(|_| refused)?;
    Ok(key)
}

/// A key of its own for `purpose`: knowing it tells nothing of `master` nor of the key for another purpose (keyed BLAKE2b).
pub fn derive_key(master: &[u8; KEY_BYTES], purpose: &str) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    let context = ["interlock derived key v1\0", purpose].concat();
    crypto_generichash(key.as_mut_slice(), context.as_bytes(), Some(master))
        .expect("32 bytes and a key of 32 bytes are within the limits of BLAKE2b");
    key
}

/// BLAKE2b-256.
pub(super) fn digest(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    crypto_generichash(&mut digest, bytes, None).expect("32 bytes are within the limits of BLAKE2b");
    digest
}

/// The first bytes of the BLAKE2b-256: whether something was changed by accident.
pub(crate) fn short_digest<const N: usize>(bytes: &[u8]) -> [u8; N] {
    const { assert!(N <= 32) };
    let mut short = [0; N];
    short.copy_from_slice(&digest(bytes)[..N]);
    short
}

/// Seals `plain` so that it opens only beside the same `associated` bytes: a random nonce, then the box
/// (XChaCha20-Poly1305, ciphertext and then authenticator).
pub fn seal_beside(key: &[u8; KEY_BYTES], associated: &[u8], plain: &[u8]) -> Vec<u8> {
    let nonce: Nonce = random();
    let mut sealed = nonce.to_vec();
    sealed.resize(NONCE_BYTES + plain.len() + MAC_BYTES, 0);
    let output = &mut sealed[NONCE_BYTES..];
    aead::crypto_aead_xchacha20poly1305_ietf_encrypt(output, plain, Some(associated), &nonce, key)
        .expect("the output is as long as content and authenticator");
    sealed
}

/// Opens what [`seal_beside`] sealed. The content is wiped when dropped.
///
/// # Errors
/// It was not sealed with this key beside these bytes, or was changed.
pub fn open_beside(
    key: &[u8; KEY_BYTES],
    associated: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let least = NONCE_BYTES + MAC_BYTES;
    let (nonce, sealed_box) = sealed
        .split_first_chunk::<NONCE_BYTES>()
        .filter(|(_, sealed_box)| sealed_box.len() >= MAC_BYTES)
        .ok_or(CryptoError::BoxTooShort { bytes: sealed.len(), least })?;
    let mut content = Zeroizing::new(vec![0; sealed_box.len() - MAC_BYTES]);
    aead::crypto_aead_xchacha20poly1305_ietf_decrypt(&mut content, sealed_box, Some(associated), nonce, key)
        .map_err(|_| CryptoError::BoxRefused)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers of libsodium 1.0.18 and of Python's `hashlib.blake2b`.
    const KEY: [u8; KEY_BYTES] = {
        let mut key = [0; KEY_BYTES];
        let mut at = 0;
        while at < KEY_BYTES {
            key[at] = at as u8;
            at += 1;
        }
        key
    };

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn derived_keys_passphrases_and_boxes_are_those_of_the_standards() {
        assert_eq!(
            hex(derive_key(&KEY, "journal").as_slice()),
            "b81e040eb84ea6f76ad414e3fd39637d6387a97ca3235ed7359fb25de16fd771"
        );
        let salt = *KEY.first_chunk().unwrap();
        let cost = PassphraseCost { passes: 2, memory_kib: 64 };
        assert_eq!(
            hex(key_from_passphrase(b"correct horse battery", &salt, cost).unwrap().as_slice()),
            "8b43092dd6040f5014c8c8fdc04f1e15a8057ef0595f6cd2d61193c9b691cc8c"
        );
        let nonce: Vec<u8> = KEY[..NONCE_BYTES].to_vec();
        let answer = "99c5087897d58aa9344321c9cc55afef4c402fa2fad11aec781d38b13aaaf25e2445762aede15f897010bd4e170df581";
        let answer =
            (0..answer.len()).step_by(2).map(|at| u8::from_str_radix(&answer[at..at + 2], 16).unwrap());
        let sealed: Vec<u8> = nonce.into_iter().chain(answer).collect();
        assert_eq!(**open_beside(&KEY, b"header", &sealed).unwrap(), [7; 32]);
    }

    #[test]
    fn a_fingerprint_is_what_every_blake2b_gives() {
        // Python: hashlib.blake2b(bytes(range(32)), digest_size=32).hexdigest()[:20]
        assert_eq!(super::super::PublicKey::from_bytes(KEY).fingerprint(), "cb2f-5160-fc1f-7e05-a55e");
    }

    #[test]
    fn a_sealed_key_opens_only_whole_with_its_key_and_beside_its_header() {
        let sealed = seal_beside(&KEY, b"header", b"secret");
        assert_eq!(**open_beside(&KEY, b"header", &sealed).unwrap(), *b"secret");
        assert_ne!(sealed, seal_beside(&KEY, b"header", b"secret"), "a nonce was used twice");
        assert_eq!(open_beside(&KEY, b"Header", &sealed), Err(CryptoError::BoxRefused));
        assert_eq!(open_beside(&[9; KEY_BYTES], b"header", &sealed), Err(CryptoError::BoxRefused));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(open_beside(&KEY, b"header", &changed), Err(CryptoError::BoxRefused));
            assert!(open_beside(&KEY, b"header", &sealed[..at]).is_err());
        }
    }

    #[test]
    fn a_cost_that_would_occupy_the_machine_is_refused_before_it_does() {
        for (passes, memory_kib) in [(0, 64), (17, 64), (1, 7), (1, (1 << 20) + 1), (u32::MAX, u32::MAX)] {
            let cost = PassphraseCost { passes, memory_kib };
            let refused = key_from_passphrase(b"text", &[0; SALT_BYTES], cost).unwrap_err();
            assert_eq!(refused, CryptoError::PassphraseCost { cost });
        }
    }
}
