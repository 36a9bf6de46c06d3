//! The data key: what the database is encrypted with, and the file it lives in.
//!
//! Reading order: [`DataKey`], `file` (the text, read and replaced), `wrap` (what seals it), `vault` (a process asks once).

use std::{
    fmt,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use interlock_bus::{crypto::PassphraseCost, keys::private_file};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{error::StoreError, passphrase::Passphrase};

pub mod attempts;
mod file;
mod vault;
mod wrap;

pub use file::KeyWrap;
pub use vault::Vault;
pub use wrap::{NewWrap, WRAPPING_KEY_FILE};

use file::KeyFile;

/// Name of the key file inside the directory of keys.
pub const KEY_FILE: &str = "data.key";
const KEY_BYTES: usize = 32;
/// How often a file that is being changed is read again.
const READS_MAX: usize = 10;

/// The random key of the database.
///
/// - Made once per installation, never over an existing database.
/// - Lives sealed in `keys/data.key`, mode 0600, not through a symbolic link: under the wrapping key beside it, or under a
///   passphrase. Changing that seals these 32 bytes anew and never touches the database.
/// - Does not appear in `Debug`, in errors or in logs, and is wiped from memory when dropped.
#[derive(Clone)]
pub struct DataKey {
    bytes: Zeroizing<[u8; KEY_BYTES]>,
    origin: PathBuf,
    /// What it was opened from, or sealed as since: who replaces a seal must have opened that one.
    sealed: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for DataKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("DataKey").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl DataKey {
    /// The key in `keys/data.key`; if neither it nor the database exists yet, a new one. One that is sealed under a
    /// passphrase is `PassphraseNeeded`: a [`Vault`] opens it.
    ///
    /// Safe with many processes at once: one of them makes the key, all of them get it.
    pub fn load_or_create(keys: &Path, database: &Path) -> Result<Self, StoreError> {
        Self::load_or_create_with(keys, database, &no_passphrase, || Ok(None))
    }

    /// The key in `keys/data.key`; never makes one. One that is sealed under a passphrase is `PassphraseNeeded`.
    pub fn load(keys: &Path, database: &Path) -> Result<Self, StoreError> {
        Self::load_with(keys, database, &no_passphrase)
    }

    pub(super) fn load_or_create_with(
        keys: &Path,
        database: &Path,
        ask: wrap::Ask<'_>,
        new: impl FnOnce() -> Result<Option<Passphrase>, StoreError>,
    ) -> Result<Self, StoreError> {
        let path = keys.join(KEY_FILE);
        // The database first: whoever makes both makes the key before the database, so that
        // "database, but no key" can only be seen when the key is really gone.
        let database_exists = exists(database)?;
        if exists(&path)? {
            let (mut key, wrap) = Self::read(&path, ask)?;
            match wrap {
                KeyWrap::Bare => key.seal_bare(keys),
                KeyWrap::Passphrase { .. } => key.forget_abandoned(keys),
                KeyWrap::KeyStore => {}
            }
            return Ok(key);
        }
        if database_exists {
            return Err(StoreError::KeyMissing { path: database.to_owned(), key: path });
        }
        create_private_directory(keys)?;
        let lock = file::lock(keys)?;
        if exists(&path)? {
            drop(lock);
            return Ok(Self::read(&path, ask)?.0);
        }
        let bytes = Zeroizing::new(interlock_bus::crypto::random());
        let mut key = Self { bytes, origin: path, sealed: Zeroizing::default() };
        match new()? {
            Some(passphrase) => {
                wrap::seal(&mut key, &NewWrap::Passphrase(&passphrase, PassphraseCost::DEFAULT))?;
            }
            None => wrap::seal(&mut key, &NewWrap::KeyStore)?,
        }
        Ok(key)
    }

    pub(super) fn load_with(keys: &Path, database: &Path, ask: wrap::Ask<'_>) -> Result<Self, StoreError> {
        let path = keys.join(KEY_FILE);
        match (exists(&path)?, exists(database)?) {
            (true, _) => {
                let (key, wrap) = Self::read(&path, ask)?;
                if matches!(wrap, KeyWrap::Passphrase { .. }) {
                    key.forget_abandoned(keys);
                }
                Ok(key)
            }
            (false, true) => Err(StoreError::KeyMissing { path: database.to_owned(), key: path }),
            (false, false) => Err(StoreError::NotInitialised { path: database.to_owned() }),
        }
    }

    /// What the key in `keys/data.key` is sealed under; `None` if there is none.
    pub fn wrap(keys: &Path) -> Result<Option<KeyWrap>, StoreError> {
        let path = keys.join(KEY_FILE);
        if exists(&path)? { KeyFile::read(&path).map(|file| Some(file.wrap)) } else { Ok(None) }
    }

    /// Seals the key anew, under something else. The old seal counts until the new one was read back from the disk and
    /// opened; killed at any point, it leaves exactly one of them. Others who have the database open notice nothing.
    ///
    /// Of two who do it at once, one succeeds. No lock is held between opening the key and this, because a person may be
    /// typing meanwhile; instead the seal that is replaced must be, byte for byte, the one that was opened.
    ///
    /// # Errors
    /// `KeyChanged` if the file has another seal than the one this key was opened from, be it of the same key: who was let
    /// in by a passphrase that was replaced meanwhile may not replace the new one.
    pub fn reseal(&mut self, wrap: &NewWrap<'_>) -> Result<(), StoreError> {
        let path = self.origin.as_path();
        let _lock = file::lock(path.parent().unwrap_or(Path::new(".")))?;
        let present = KeyFile::read(path)?;
        if present.sealed != self.sealed || present.check != self.check() {
            return Err(StoreError::KeyChanged { path: path.to_owned() });
        }
        wrap::seal(self, wrap)
    }

    /// Takes away what a killed `keys passphrase --remove` has left: a seal that never came into force, and the wrapping key
    /// that opens it without the passphrase. What cannot be taken away now is so the next time.
    fn forget_abandoned(&self, keys: &Path) {
        let wrapping = keys.join(WRAPPING_KEY_FILE);
        if !exists(&wrapping).unwrap_or(false) {
            return;
        }
        let Ok(_lock) = file::lock(keys) else { return };
        // Somebody may have sealed it under that very key meanwhile.
        if KeyFile::read(&self.origin).is_ok_and(|file| matches!(file.wrap, KeyWrap::Passphrase { .. })) {
            private_file::remove_abandoned(keys);
            wrap::forget_wrapping_key(&wrapping);
        }
    }

    /// A key that lies bare, as earlier versions wrote it, is sealed. One that cannot be is as good as it was.
    fn seal_bare(&mut self, keys: &Path) {
        let sealed = file::lock(keys).and_then(|_lock| match KeyFile::read(&self.origin)?.wrap {
            KeyWrap::Bare => wrap::seal(self, &NewWrap::KeyStore),
            // Somebody else was here meanwhile.
            KeyWrap::KeyStore | KeyWrap::Passphrase { .. } => Ok(()),
        });
        match sealed {
            Ok(()) => {
                tracing::info!(path = %self.origin.display(), "the data key lay bare and is sealed now")
            }
            Err(error) => tracing::warn!(%error, "the data key lies bare and could not be sealed"),
        }
    }

    /// Reads and opens the file. One that does not open is read again if it has changed meanwhile.
    fn read(path: &Path, ask: wrap::Ask<'_>) -> Result<(Self, KeyWrap), StoreError> {
        let mut file = KeyFile::read(path)?;
        for _ in 1..READS_MAX {
            match wrap::open(path, &file, ask) {
                Ok(key) => return Ok((key, file.wrap)),
                // It and the wrapping key are two files: between two reads somebody may have changed both.
                Err(error) => match KeyFile::read(path)? {
                    now if now.sealed == file.sealed => return Err(error),
                    now => file = now,
                },
            }
        }
        wrap::open(path, &file, ask).map(|key| (key, file.wrap))
    }

    /// A key for one file that is needed for a while only. It is never written to a disk bare; who loses it has wiped the file.
    pub(crate) fn one_time(file: &Path) -> Self {
        let bytes = Zeroizing::new(interlock_bus::crypto::random());
        Self { bytes, origin: file.to_owned(), sealed: Zeroizing::default() }
    }

    /// The key with these [`digits`](Self::digits); `None` if they are none.
    pub(crate) fn from_digits(digits: &str, origin: &Path) -> Option<Self> {
        let bytes = unhex(digits)?.as_slice().try_into().ok().map(Zeroizing::new)?;
        Some(Self { bytes, origin: origin.to_owned(), sealed: Zeroizing::default() })
    }

    /// The key itself, 64 hexadecimal digits: for a backup, inside of what is sealed.
    pub(crate) fn digits(&self) -> Zeroizing<String> {
        Zeroizing::new(hex(self.bytes.as_slice()))
    }

    /// Whether it is the same key.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        interlock_bus::crypto::equal_in_constant_time(self.bytes.as_slice(), other.bytes.as_slice())
    }

    /// Seals this key in the directory `keys`, whatever is there: for a key that came out of a backup.
    pub(crate) fn seal_in(&mut self, keys: &Path, wrap: &NewWrap<'_>) -> Result<(), StoreError> {
        self.origin = keys.join(KEY_FILE);
        let _lock = file::lock(keys)?;
        wrap::seal(self, wrap)
    }

    /// Holds the key files of the directory `keys` as they are: nobody seals anew until it is dropped.
    pub(crate) fn hold(keys: &Path) -> Result<File, StoreError> {
        file::lock(keys)
    }

    /// What the key file in `keys` says that it is sealed under, and whether it is about this key.
    pub(crate) fn is_sealed_in(&self, keys: &Path) -> Result<(KeyWrap, bool), StoreError> {
        let file = KeyFile::read(&keys.join(KEY_FILE))?;
        Ok((file.wrap, file.check == self.check()))
    }

    /// Where the key came from.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// A key of its own for something beside the database that is encrypted too, such as a journal. `purpose` is a
    /// constant of that something: the same one always gives the same key.
    pub fn derive(&self, purpose: &str) -> Zeroizing<[u8; KEY_BYTES]> {
        interlock_bus::crypto::derive_key(&self.bytes, purpose)
    }

    /// A short value that tells two keys apart and says nothing about either.
    pub(super) fn check(&self) -> String {
        let digest = Sha256::new()
            .chain_update(b"interlock data key check v1")
            .chain_update(self.bytes.as_slice())
            .finalize();
        hex(&digest[..8])
    }

    /// The key as SQLCipher takes it without deriving anything from it.
    pub(super) fn pragma(&self) -> Zeroizing<String> {
        let digits = Zeroizing::new(hex(self.bytes.as_slice()));
        Zeroizing::new(format!("PRAGMA key = \"x'{}'\"", digits.as_str()))
    }

    /// The same for a database that is open with another key.
    pub(super) fn pragma_rekey(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("PRAGMA rekey = \"x'{}'\"", self.digits().as_str()))
    }

    /// The same for a file whose first 16 bytes, the salt, are not to be believed. `salt` is 32 hexadecimal digits.
    pub(super) fn pragma_with_salt(&self, salt: &str) -> Zeroizing<String> {
        let digits = Zeroizing::new(hex(self.bytes.as_slice()));
        let salt: String = salt.chars().filter(char::is_ascii_hexdigit).collect();
        Zeroizing::new(format!("PRAGMA key = \"x'{}{salt}'\"", digits.as_str()))
    }
}

fn no_passphrase(path: &Path) -> Result<super::Passphrase, StoreError> {
    Err(StoreError::PassphraseNeeded { path: path.to_owned() })
}

/// Makes `directory` and its missing parents, for the owner only. One that exists is left as it is.
pub(super) fn create_private_directory(directory: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| StoreError::file(directory, "create directory", error))
}

/// Makes a rename or a new name in the directory of `path` survive a power cut.
pub(super) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|handle| handle.sync_all())
        .map_err(|error| StoreError::file(directory, "sync directory", error))
}

/// Whether there is something under this name, be it a dangling link.
pub(crate) fn exists(path: &Path) -> Result<bool, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(false)
        }
        Err(error) => Err(StoreError::file(path, "look for", error)),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2));
    for at in (0..text.len()).step_by(2) {
        bytes.push(u8::from_str_radix(&text[at..at + 2], 16).ok()?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
