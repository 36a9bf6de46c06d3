//! Keys, boxes and random bytes: the only module that names the crypto library (`dryoc`).
//!
//! Everything here is NaCl's `crypto_box` and `crypto_secretbox` (X25519, XSalsa20, Poly1305), which
//! is what CURVE is made of (ZMTP RFC 26). No primitive is written here, only typed and guarded.
//!
//! - [`PublicKey`], [`SecretKey`], [`KeyPair`]: long-term and transient keys, text form Z85 (RFC 32).
//! - [`BoxKey`]: a precomputed shared key, or a key of our own; seals and opens in place.
//! - [`seal_secret`], [`open_secret`]: small secrets at rest; in `at_rest` those that are bound to a
//!   header ([`seal_beside`]), and keys from keys ([`derive_key`]) and passphrases ([`key_from_passphrase`]).
//! - [`secret_stream`]: long texts in chunks, in constant memory; digests of them.
//! - [`self_test`]: known answers, run once whenever a broker or a client starts.

use std::fmt;
use std::str::FromStr;

use dryoc::classic::{crypto_box, crypto_core};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

mod at_rest;
mod known;
pub mod secret_stream;

pub(crate) use at_rest::short_digest;
pub use at_rest::{PassphraseCost, SALT_BYTES, derive_key, key_from_passphrase, open_beside, seal_beside};

/// Bytes of a public, secret or shared key.
pub const KEY_BYTES: usize = 32;
/// Characters of a key in Z85.
pub const KEY_TEXT_CHARS: usize = 40;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 24;
/// Bytes that a box is longer than its content.
pub const MAC_BYTES: usize = 16;

/// A nonce: never to be used twice with one key.
pub type Nonce = [u8; NONCE_BYTES];

/// What can be wrong with a key or a box. No variant holds key material.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CryptoError {
    /// The text of a key does not have the length of one.
    #[error(
        "the key has {chars} characters; a key in Z85 has {KEY_TEXT_CHARS}, copy it whole and without quotes"
    )]
    KeyLength {
        /// Characters found.
        chars: usize,
    },
    /// The text of a key has the right length, but is not Z85.
    #[error("the key is not Z85 (ZeroMQ RFC 32); copy it again from the file `interlock keys` wrote")]
    KeyText,
    /// A public key of small order: every secret key would give the same shared key.
    #[error("the public key `{key}` is not usable: it has small order; make a new one with `interlock keys`")]
    WeakKey {
        /// The offending key.
        key: PublicKey,
    },
    /// A box that this key and nonce did not seal, or that was changed on its way.
    #[error("the box does not open: another key sealed it, or it was changed")]
    BoxRefused,
    /// Too short to hold even a nonce and an authenticator.
    #[error("the box has {bytes} bytes; the shortest possible one has {least}")]
    BoxTooShort {
        /// Bytes found.
        bytes: usize,
        /// Bytes of a box with empty content.
        least: usize,
    },
    /// A passphrase that would cost more time or memory than a file may ask for.
    #[error("a passphrase with {} passes over {} KiB is outside the bounds (1 to {} passes, 8 to {} KiB)", cost.passes, cost.memory_kib, PassphraseCost::MOST.passes, PassphraseCost::MOST.memory_kib)]
    PassphraseCost {
        /// What was asked for.
        cost: PassphraseCost,
    },
    /// A known answer came out differently: the program was built wrongly, or the machine is broken.
    #[error("the known-answer test `{name}` failed; do not use this build on this machine")]
    SelfTest {
        /// Which answer.
        name: &'static str,
    },
}

/// A Curve25519 public key. Its text form is Z85, 40 characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// Takes the 32 bytes of a key as they travel on the wire.
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// What two people compare over the telephone: the first 80 bits of the key's BLAKE2b-256, in five groups of
    /// hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let digest = at_rest::digest(&self.0);
        let groups = digest[..10].chunks(2).map(|pair| format!("{:02x}{:02x}", pair[0], pair[1]));
        groups.collect::<Vec<_>>().join("-")
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&z85::encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = CryptoError;

    fn from_str(text: &str) -> Result<Self, CryptoError> {
        key_from_z85(text).map(|bytes| Self(*bytes))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A Curve25519 secret key. Wiped when dropped; never shown by `Debug`, and has no `Display`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretKey([u8; KEY_BYTES]);

impl SecretKey {
    /// Takes the 32 bytes of a key.
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads the 40 characters of a key. The error never repeats the text.
    ///
    /// # Errors
    /// It has another length, or a character outside the alphabet of Z85 (ZeroMQ RFC 32).
    pub fn from_z85(text: &str) -> Result<Self, CryptoError> {
        key_from_z85(text).map(|bytes| Self(*bytes))
    }

    /// The secret itself as text, for a credentials file of mode 0600 and nothing else.
    pub fn expose_z85(&self) -> Zeroizing<String> {
        Zeroizing::new(z85::encode(self.0))
    }

    fn public(&self) -> PublicKey {
        let mut public = [0; KEY_BYTES];
        crypto_core::crypto_scalarmult_base(&mut public, &self.0);
        PublicKey(public)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretKey(redacted)")
    }
}

/// Compared in constant time.
impl PartialEq for SecretKey {
    fn eq(&self, other: &Self) -> bool {
        equal_in_constant_time(&self.0, &other.0)
    }
}

impl Eq for SecretKey {}

/// A secret key and the public key that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// May be known to everybody.
    pub public: PublicKey,
    /// Known to its owner only.
    pub secret: SecretKey,
}

impl KeyPair {
    /// A new pair from the operating system's random source.
    pub fn generate() -> Self {
        Self::from_secret(SecretKey(random()))
    }

    /// Computes the public key of `secret`.
    pub fn from_secret(secret: SecretKey) -> Self {
        Self { public: secret.public(), secret }
    }
}

/// A symmetric key that seals and opens boxes: shared by two key pairs ([`BoxKey::shared`], NaCl's
/// `beforenm`) or known to one holder only ([`BoxKey::from_bytes`], NaCl's `secretbox`).
///
/// Wiped when dropped; never shown.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct BoxKey([u8; KEY_BYTES]);

impl BoxKey {
    /// The key that `secret` and the owner of `public` share. Costs about 40 us.
    ///
    /// # Errors
    /// `public` is a point of small order, with which every secret shares the same key.
    pub fn shared(public: &PublicKey, secret: &SecretKey) -> Result<Self, CryptoError> {
        crypto_box::crypto_box_beforenm(&public.0, &secret.0)
            .map(Self)
            .map_err(|_| CryptoError::WeakKey { key: *public })
    }

    /// A key that is not shared, for boxes to oneself.
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// A new key that is not shared.
    pub fn generate() -> Self {
        Self(random())
    }

    /// Encrypts `data` where it lies and returns its authenticator. The hot path: nothing is
    /// allocated or copied.
    #[must_use = "without its authenticator the data cannot be opened again"]
    pub fn seal_in_place(&self, nonce: &Nonce, data: &mut [u8]) -> [u8; MAC_BYTES] {
        let mut mac = [0; MAC_BYTES];
        crypto_box::crypto_box_detached_afternm_inplace(data, &mut mac, nonce, &self.0);
        mac
    }

    /// Checks `mac` and then decrypts `data` where it lies. Refused data are left as they were.
    pub fn open_in_place(
        &self,
        nonce: &Nonce,
        mac: &[u8; MAC_BYTES],
        data: &mut [u8],
    ) -> Result<(), CryptoError> {
        crypto_box::crypto_box_open_detached_afternm_inplace(data, mac, nonce, &self.0)
            .map_err(|_| CryptoError::BoxRefused)
    }

    /// Appends a box (authenticator, then ciphertext) of the concatenated `parts` to `output`.
    pub fn seal_onto(&self, nonce: &Nonce, parts: &[&[u8]], output: &mut Vec<u8>) {
        let content_bytes: usize = parts.iter().map(|part| part.len()).sum();
        output.reserve(MAC_BYTES + content_bytes);
        let mac_at = output.len();
        output.extend_from_slice(&[0; MAC_BYTES]);
        for part in parts {
            output.extend_from_slice(part);
        }
        let mac = self.seal_in_place(nonce, &mut output[mac_at + MAC_BYTES..]);
        output[mac_at..mac_at + MAC_BYTES].copy_from_slice(&mac);
    }

    /// Opens a box (authenticator, then ciphertext) where it lies and returns the content.
    ///
    /// # Errors
    /// It is shorter than an authenticator, was sealed with another key or nonce, or was changed; it is left as it was.
    pub fn open<'a>(&self, nonce: &Nonce, sealed: &'a mut [u8]) -> Result<&'a mut [u8], CryptoError> {
        let bytes = sealed.len();
        let (mac, data) = sealed
            .split_first_chunk_mut::<MAC_BYTES>()
            .ok_or(CryptoError::BoxTooShort { bytes, least: MAC_BYTES })?;
        self.open_in_place(nonce, mac, data)?;
        Ok(data)
    }
}

impl fmt::Debug for BoxKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("BoxKey(redacted)")
    }
}

/// Seals a small secret for storage: a random nonce, then the box.
pub fn seal_secret(key: &[u8; KEY_BYTES], plain: &[u8]) -> Vec<u8> {
    let nonce: Nonce = random();
    let mut sealed = Vec::with_capacity(NONCE_BYTES + MAC_BYTES + plain.len());
    sealed.extend_from_slice(&nonce);
    BoxKey::from_bytes(*key).seal_onto(&nonce, &[plain], &mut sealed);
    sealed
}

/// Opens what [`seal_secret`] sealed. The content is wiped when dropped.
///
/// # Errors
/// It was not sealed with this key, or was changed.
pub fn open_secret(key: &[u8; KEY_BYTES], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let least = NONCE_BYTES + MAC_BYTES;
    let (nonce, sealed_box) = sealed
        .split_first_chunk::<NONCE_BYTES>()
        .filter(|(_, sealed_box)| sealed_box.len() >= MAC_BYTES)
        .ok_or(CryptoError::BoxTooShort { bytes: sealed.len(), least })?;
    let mut content = Zeroizing::new(sealed_box.to_vec());
    BoxKey::from_bytes(*key).open(nonce, &mut content)?;
    content.drain(..MAC_BYTES);
    Ok(content)
}

/// Bytes from the operating system's random source.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    dryoc::rng::copy_randombytes(&mut bytes);
    bytes
}

/// Fills `bytes` from the operating system's random source.
pub fn fill_random(bytes: &mut [u8]) {
    dryoc::rng::copy_randombytes(bytes);
}

/// Bytes of a [`digest`].
pub const DIGEST_BYTES: usize = 32;

/// BLAKE2b of `content`, for comparing secrets that are random and long; it is no password hash.
pub fn digest(content: &[u8]) -> [u8; DIGEST_BYTES] {
    let mut digest = [0; DIGEST_BYTES];
    dryoc::classic::crypto_generichash::crypto_generichash(&mut digest, content, None)
        .expect("32 bytes and no key are within the limits of BLAKE2b");
    digest
}

/// Compares without telling by its duration where the first difference is. Different lengths are
/// different at once.
pub fn equal_in_constant_time(left: &[u8], right: &[u8]) -> bool {
    if left.len() != right.len() {
        return false;
    }
    let difference = left.iter().zip(right).fold(0, |difference, (a, b)| difference | (a ^ b));
    std::hint::black_box(difference) == 0
}

fn key_from_z85(text: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, CryptoError> {
    let chars = text.chars().count();
    if chars != KEY_TEXT_CHARS {
        return Err(CryptoError::KeyLength { chars });
    }
    // The crate also takes a padded form of its own, which decodes to fewer bytes.
    let bytes = Zeroizing::new(z85::decode(text).map_err(|_| CryptoError::KeyText)?);
    let bytes = <[u8; KEY_BYTES]>::try_from(bytes.as_slice()).map_err(|_| CryptoError::KeyText)?;
    Ok(Zeroizing::new(bytes))
}

/// Known answers: the test of "Cryptography in NaCl" (its keys are those of RFC 7748, section 6.1)
/// and the test key of ZeroMQ RFC 26 and 32. Takes about 0.2 ms.
///
/// # Errors
/// The first answer that is wrong. Nothing may be sealed or opened then.
pub fn self_test() -> Result<(), CryptoError> {
    let check = |name, passed| if passed { Ok(()) } else { Err(CryptoError::SelfTest { name }) };
    let failed = |name| move |_| CryptoError::SelfTest { name };

    let bob = KeyPair::from_secret(SecretKey(known::BOB_SECRET));
    check("x25519 public key", bob.public.0 == known::BOB_PUBLIC)?;
    let key =
        BoxKey::shared(&PublicKey(known::ALICE_PUBLIC), &bob.secret).map_err(failed("x25519 shared key"))?;
    check("x25519 shared key", key.0 == known::SHARED_KEY)?;

    let mut sealed = Vec::new();
    key.seal_onto(&known::NONCE, &[&known::CONTENT], &mut sealed);
    check("xsalsa20-poly1305 seal", sealed == known::SEALED)?;
    let opened = key.open(&known::NONCE, &mut sealed).map_err(failed("xsalsa20-poly1305 open"))?;
    check("xsalsa20-poly1305 open", *opened == known::CONTENT)?;
    let mut forged = known::SEALED;
    forged[known::SEALED.len() - 1] ^= 1;
    check("xsalsa20-poly1305 refuse", key.open(&known::NONCE, &mut forged).is_err())?;

    let secret = SecretKey::from_z85(known::Z85_SECRET).map_err(failed("z85 decode"))?;
    check("z85 encode", *secret.expose_z85() == known::Z85_SECRET)?;
    check("z85 key pair", secret.public().to_string() == known::Z85_PUBLIC)?;

    let (first, second) = (random::<KEY_BYTES>(), random::<KEY_BYTES>());
    check("random bytes differ", first != second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_answers_come_out() {
        assert_eq!(self_test(), Ok(()));
    }

    #[test]
    fn the_test_keys_of_rfc_32_belong_together() {
        for (public, secret) in [
            ("Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID", "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"),
            ("rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7", "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6"),
        ] {
            let keys = KeyPair::from_secret(SecretKey::from_z85(secret).unwrap());
            assert_eq!(keys.public.to_string(), public);
            assert_eq!(public.parse(), Ok(keys.public));
        }
    }

    #[test]
    fn a_key_text_of_wrong_length_or_alphabet_is_refused_without_repeating_it() {
        assert_eq!("short".parse::<PublicKey>(), Err(CryptoError::KeyLength { chars: 5 }));
        assert_eq!("".parse::<PublicKey>(), Err(CryptoError::KeyLength { chars: 0 }));
        for text in [
            "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf\"",
            "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H#]yf7",
            "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H#0001",
            "#####rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]y",
            "\u{e9}q:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7",
        ] {
            let error = SecretKey::from_z85(text).unwrap_err();
            assert_eq!(error, CryptoError::KeyText);
            assert!(!error.to_string().contains(&text[5..10]));
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let keys = KeyPair::from_secret(SecretKey([7; KEY_BYTES]));
        let text = format!("{keys:?} {:?}", BoxKey::from_bytes([7; KEY_BYTES]));
        assert!(text.contains("redacted") && !text.contains(keys.secret.expose_z85().as_str()));
        assert!(!text.contains("7, 7"));
    }

    #[test]
    fn a_public_key_of_small_order_is_refused() {
        let keys = KeyPair::generate();
        let mut one = [0; KEY_BYTES];
        one[0] = 1;
        for bytes in [[0; KEY_BYTES], one] {
            let key = PublicKey(bytes);
            let error = BoxKey::shared(&key, &keys.secret).unwrap_err();
            assert_eq!(error, CryptoError::WeakKey { key });
        }
    }

    #[test]
    fn both_sides_share_one_key_and_a_changed_box_is_refused_and_left_alone() {
        let (alice, bob) = (KeyPair::generate(), KeyPair::generate());
        let alices = BoxKey::shared(&bob.public, &alice.secret).unwrap();
        let bobs = BoxKey::shared(&alice.public, &bob.secret).unwrap();
        for content_bytes in [0, 1, 31, 32, 33, 64, 1000, 70_000] {
            let content: Vec<u8> = (0..content_bytes).map(|at| at as u8).collect();
            let nonce = random();
            let mut sealed = Vec::new();
            alices.seal_onto(
                &nonce,
                &[&content[..content_bytes / 3], &content[content_bytes / 3..]],
                &mut sealed,
            );
            let mut changed = sealed.clone();
            changed[content_bytes / 2] ^= 0x80;
            let before = changed.clone();
            assert_eq!(bobs.open(&nonce, &mut changed), Err(CryptoError::BoxRefused));
            assert_eq!(changed, before);
            assert_eq!(bobs.open(&nonce, &mut sealed).unwrap(), content);
        }
    }

    #[test]
    fn a_stored_secret_opens_with_its_key_only() {
        let key = random();
        let sealed = seal_secret(&key, b"correct horse");
        assert_eq!(open_secret(&key, &sealed).unwrap().as_slice(), b"correct horse");
        assert_ne!(sealed, seal_secret(&key, b"correct horse"), "a nonce was used twice");
        assert_eq!(open_secret(&random(), &sealed), Err(CryptoError::BoxRefused));
        for bytes in 0..NONCE_BYTES + MAC_BYTES {
            let error = open_secret(&key, &sealed[..bytes]).unwrap_err();
            assert_eq!(error, CryptoError::BoxTooShort { bytes, least: NONCE_BYTES + MAC_BYTES });
        }
    }
}
