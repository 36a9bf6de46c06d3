//! The first 128 bytes of a backup: what is needed to open the rest. `actors/BACKUP.md` has each byte.

use std::path::Path;

use interlock_bus::crypto::{
    self, KEY_BYTES, PassphraseCost, SALT_BYTES, derive_key,
    secret_stream::{STREAM_HEADER_BYTES, StreamOpener, StreamSealer},
};
use zeroize::Zeroizing;

use super::{error::BackupError, limits};
use crate::store::Passphrase;

/// Bytes of the header.
pub(super) const HEADER_BYTES: usize = 128;
/// Not text, tells a transfer in text mode, and names what it is.
pub(super) const MAGIC: [u8; 8] = *b"\x89ILBK\r\n\x1a";
const VERSION: u16 = 1;
/// Argon2id, version 1.3.
const KDF_ARGON2ID: u8 = 1;
const LANES: u8 = 1;
/// libsodium's secretstream.
const CIPHER_SECRETSTREAM: u8 = 1;
/// What the check of the key covers, and where the check itself stands.
const CHECK_AT: usize = 104;
const SUM_AT: usize = 120;

/// Identifies what was backed up: derived from its data key, about which it says nothing.
pub type DatabaseId = [u8; 16];

/// What the header of a backup says. Nothing of it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What guessing the passphrase costs.
    pub cost: PassphraseCost,
    /// Random, so that equal passphrases give different keys.
    pub salt: [u8; SALT_BYTES],
    /// Bytes of content in each chunk but the last.
    pub chunk_bytes: u32,
    /// Bytes of content in all chunks together.
    pub plain_bytes: u64,
    /// When it was made, in nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// What was backed up.
    pub database_id: DatabaseId,
    /// The head of the sealed stream.
    pub(super) stream: [u8; STREAM_HEADER_BYTES],
}

/// The keys that a passphrase and a header give.
pub(super) struct Keys {
    stream: Zeroizing<[u8; KEY_BYTES]>,
    check: Zeroizing<[u8; KEY_BYTES]>,
}

impl Keys {
    pub(super) fn derive(
        passphrase: &Passphrase,
        salt: &[u8; SALT_BYTES],
        cost: PassphraseCost,
    ) -> Result<Self, BackupError> {
        check_cost(cost)?;
        let master = crypto::key_from_passphrase(passphrase.bytes(), salt, cost)
            .map_err(|_| BackupError::Cost { passes: cost.passes, memory_kib: cost.memory_kib })?;
        Ok(Self {
            stream: derive_key(&master, "backup stream"),
            check: derive_key(&master, "backup header check"),
        })
    }

    pub(super) fn sealer(&self) -> (StreamSealer, [u8; STREAM_HEADER_BYTES]) {
        StreamSealer::new(&self.stream)
    }

    /// The opener of the stream with this header.
    pub(super) fn opener(&self, header: &Header) -> StreamOpener {
        StreamOpener::new(&self.stream, &header.stream)
    }

    fn check_of(&self, bytes: &[u8]) -> [u8; SUM_AT - CHECK_AT] {
        let digest = crypto::digest(&Zeroizing::new([self.check.as_slice(), bytes].concat()));
        std::array::from_fn(|at| digest[at])
    }
}

fn check_cost(cost: PassphraseCost) -> Result<(), BackupError> {
    let PassphraseCost { passes, memory_kib } = cost;
    if limits::PASSES.contains(&passes) && limits::MEMORY_KIB.contains(&memory_kib) {
        return Ok(());
    }
    Err(BackupError::Cost { passes, memory_kib })
}

impl Header {
    /// The bytes at the head of the file.
    pub(super) fn encode(&self, keys: &Keys) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(10, &(HEADER_BYTES as u16).to_le_bytes());
        put(12, &[KDF_ARGON2ID, LANES, CIPHER_SECRETSTREAM, 0]);
        put(16, &self.cost.passes.to_le_bytes());
        put(20, &self.cost.memory_kib.to_le_bytes());
        put(24, &self.salt);
        put(40, &self.chunk_bytes.to_le_bytes());
        put(48, &self.plain_bytes.to_le_bytes());
        put(56, &self.created_ns.to_le_bytes());
        put(64, &self.database_id);
        put(80, &self.stream);
        let check = keys.check_of(&bytes[..CHECK_AT]);
        bytes[CHECK_AT..SUM_AT].copy_from_slice(&check);
        let sum = sum_of(&bytes);
        bytes[SUM_AT..].copy_from_slice(&sum);
        bytes
    }

    /// Reads the header of the file at `path`, which is only named in errors. Nothing is derived from a passphrase here, and
    /// what would cost too much is refused.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES], path: &Path) -> Result<Self, BackupError> {
        let bad = |problem| BackupError::Header { path: path.to_owned(), problem };
        let field = |at: usize| bytes[at..].first_chunk().copied();
        let number = |at| u32::from_le_bytes(field(at).unwrap_or_default());
        let long = |at: usize| u64::from_le_bytes(bytes[at..].first_chunk().copied().unwrap_or_default());
        if bytes[..MAGIC.len()] != MAGIC {
            return Err(bad("it begins with something else"));
        }
        // Each version keeps its length, and its sum at the end: damage is not taken for another version.
        if bytes[SUM_AT..] != sum_of(bytes) {
            return Err(bad("it does not fit its own sum"));
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version > VERSION {
            return Err(BackupError::NewerFormat { path: path.to_owned(), found: version, known: VERSION });
        }
        if version != VERSION || bytes[10..12] != (HEADER_BYTES as u16).to_le_bytes() {
            return Err(bad("its version or length is none"));
        }
        if bytes[12..16] != [KDF_ARGON2ID, LANES, CIPHER_SECRETSTREAM, 0] || number(44) != 0 {
            return Err(bad("it names algorithms that this program does not know"));
        }
        let header = Self {
            cost: PassphraseCost { passes: number(16), memory_kib: number(20) },
            salt: bytes[24..].first_chunk().copied().unwrap_or_default(),
            chunk_bytes: number(40),
            plain_bytes: long(48),
            created_ns: long(56),
            database_id: bytes[64..].first_chunk().copied().unwrap_or_default(),
            stream: bytes[80..].first_chunk().copied().unwrap_or_default(),
        };
        check_cost(header.cost)
            .map_err(|_| bad("it asks for less work than is safe, or for more than a file may"))?;
        if !limits::CHUNK_BYTES.contains(&header.chunk_bytes) {
            return Err(bad("its chunks are smaller or larger than they may be"));
        }
        Ok(header)
    }

    /// The keys that `passphrase` gives, if it is the one that the header with these bytes was made with.
    pub(super) fn unlock(
        &self,
        bytes: &[u8; HEADER_BYTES],
        passphrase: &Passphrase,
        path: &Path,
    ) -> Result<Keys, BackupError> {
        let keys = Keys::derive(passphrase, &self.salt, self.cost)?;
        if crypto::equal_in_constant_time(&keys.check_of(&bytes[..CHECK_AT]), &bytes[CHECK_AT..SUM_AT]) {
            return Ok(keys);
        }
        Err(BackupError::WrongPassphrase { path: path.to_owned() })
    }

    /// Bytes of the whole file, if nothing is missing.
    pub fn file_bytes(&self) -> u64 {
        let chunks = self.plain_bytes.div_ceil(self.chunk_bytes.into()).max(1);
        let overhead =
            chunks.saturating_mul(interlock_bus::crypto::secret_stream::CHUNK_OVERHEAD_BYTES as u64);
        (HEADER_BYTES as u64).saturating_add(self.plain_bytes).saturating_add(overhead)
    }
}

fn sum_of(bytes: &[u8; HEADER_BYTES]) -> [u8; HEADER_BYTES - SUM_AT] {
    let digest = crypto::digest(&bytes[..SUM_AT]);
    std::array::from_fn(|at| digest[at])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// As cheap as is allowed.
    pub(in crate::backup) const CHEAP: PassphraseCost =
        PassphraseCost { passes: *limits::PASSES.start(), memory_kib: *limits::MEMORY_KIB.start() };

    pub(in crate::backup) fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(Zeroizing::new(text.as_bytes().to_vec()), "a test").unwrap()
    }

    fn header() -> (Header, Keys) {
        let header = Header {
            cost: CHEAP,
            salt: [1; SALT_BYTES],
            chunk_bytes: 64 << 10,
            plain_bytes: 1,
            created_ns: 2,
            database_id: [3; 16],
            stream: [4; STREAM_HEADER_BYTES],
        };
        let keys = Keys::derive(&passphrase("a long enough one"), &header.salt, CHEAP).unwrap();
        (header, keys)
    }

    fn with_sum(mut bytes: [u8; HEADER_BYTES]) -> [u8; HEADER_BYTES] {
        let sum = sum_of(&bytes);
        bytes[SUM_AT..].copy_from_slice(&sum);
        bytes
    }

    #[test]
    fn what_is_written_is_read_and_each_changed_bit_is_damage() {
        let (header, keys) = header();
        let bytes = header.encode(&keys);
        let path = Path::new("x");
        assert_eq!(Header::decode(&bytes, path).unwrap(), header);
        for bit in 0..HEADER_BYTES * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            let error = Header::decode(&changed, path).unwrap_err();
            assert_eq!(error.exit_code(), 8, "bit {bit}: {error}");
        }
    }

    #[test]
    fn each_changed_byte_is_refused_though_its_sum_was_made_to_fit() {
        let (header, keys) = header();
        let bytes = header.encode(&keys);
        let (path, passphrase) = (Path::new("x"), passphrase("a long enough one"));
        header.unlock(&bytes, &passphrase, path).unwrap();
        for at in MAGIC.len()..SUM_AT {
            let mut changed = bytes;
            changed[at] ^= 1;
            let changed = with_sum(changed);
            let opened = Header::decode(&changed, path)
                .and_then(|header| header.unlock(&changed, &passphrase, path).map(drop));
            let exit = opened.unwrap_err().exit_code();
            assert!(matches!(exit, 4 | 8 | 9), "byte {at}: {exit}");
        }
    }

    #[test]
    fn a_header_that_asks_for_too_much_or_too_little_is_refused_before_any_work() {
        let (header, keys) = header();
        let gigabyte = 1 << 20;
        for (passes, memory_kib, chunk_bytes) in [
            (11, 19 << 10, 64 << 10),
            (2, gigabyte + 1, 64 << 10),
            (u32::MAX, u32::MAX, 64 << 10),
            (1, gigabyte, 64 << 10),
            (10, (19 << 10) - 1, 64 << 10),
            (0, 0, 64 << 10),
            (2, 19 << 10, (64 << 10) - 1),
            (2, 19 << 10, (4 << 20) + 1),
            (2, 19 << 10, 0),
            (2, 19 << 10, u32::MAX),
        ] {
            let cost = PassphraseCost { passes, memory_kib };
            let bytes = Header { cost, chunk_bytes, ..header.clone() }.encode(&keys);
            let began = std::time::Instant::now();
            let error = Header::decode(&bytes, Path::new("x")).unwrap_err();
            assert!(error.exit_code() == 8 && began.elapsed().as_millis() < 100, "{error}");
        }
    }

    #[test]
    fn a_wrong_passphrase_and_a_later_version_are_told_apart_from_damage() {
        let (header, keys) = header();
        let bytes = header.encode(&keys);
        let error = header.unlock(&bytes, &passphrase("another long one"), Path::new("x")).err().unwrap();
        assert!(matches!(error, BackupError::WrongPassphrase { .. }), "{error}");
        let mut later = bytes;
        later[8] = 2;
        let error = Header::decode(&with_sum(later), Path::new("x")).unwrap_err();
        assert!(matches!(error, BackupError::NewerFormat { found: 2, known: 1, .. }), "{error}");
    }
}
