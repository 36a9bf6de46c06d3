//! The data key: what the database is encrypted with, and the file it lives in.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::libc::O_NOFOLLOW;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::error::StoreError;

/// Name of the key file inside the directory of keys.
pub const KEY_FILE: &str = "data.key";
const KEY_BYTES: usize = 32;
/// A key file is some 250 bytes; anything much longer is not one.
const KEY_FILE_BYTES_MAX: u64 = 4096;
/// Permission bits that would let others see the file.
const OTHERS: u32 = 0o077;

/// The random key of the database.
///
/// - Made once per installation, never over an existing database.
/// - Lives in `keys/data.key`, mode 0600, not through a symbolic link. The file's mode protects it;
///   its field `wrap` leaves room for a key that is itself sealed under a passphrase, which changes
///   these 32 bytes' wrapping and never the database.
/// - Does not appear in `Debug`, in errors or in logs, and is wiped from memory when dropped.
#[derive(Clone)]
pub struct DataKey {
    bytes: Zeroizing<[u8; KEY_BYTES]>,
    origin: PathBuf,
}

impl fmt::Debug for DataKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("DataKey").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// The content of the key file.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    version: u32,
    wrap: String,
    key: Zeroizing<String>,
    check: String,
}

impl DataKey {
    /// The key in `keys/data.key`; if neither it nor the database exists yet, a new one.
    ///
    /// Safe with many processes at once: one of them makes the key, all of them get it.
    pub fn load_or_create(keys: &Path, database: &Path) -> Result<Self, StoreError> {
        let path = keys.join(KEY_FILE);
        // The database first: whoever makes both makes the key before the database, so that
        // "database, but no key" can only be seen when the key is really gone.
        let database_exists = exists(database)?;
        if exists(&path)? {
            return Self::read(&path);
        }
        if database_exists {
            return Err(StoreError::KeyMissing { path: database.to_owned(), key: path });
        }
        create_private_directory(keys)?;
        Self::create(&path)
    }

    /// The key in `keys/data.key`; never makes one.
    pub fn load(keys: &Path, database: &Path) -> Result<Self, StoreError> {
        let path = keys.join(KEY_FILE);
        match (exists(&path)?, exists(database)?) {
            (true, _) => Self::read(&path),
            (false, true) => Err(StoreError::KeyMissing { path: database.to_owned(), key: path }),
            (false, false) => Err(StoreError::NotInitialised { path: database.to_owned() }),
        }
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

    /// The same for a file whose first 16 bytes, the salt, are not to be believed. `salt` is 32 hexadecimal digits.
    pub(super) fn pragma_with_salt(&self, salt: &str) -> Zeroizing<String> {
        let digits = Zeroizing::new(hex(self.bytes.as_slice()));
        let salt: String = salt.chars().filter(char::is_ascii_hexdigit).collect();
        Zeroizing::new(format!("PRAGMA key = \"x'{}{salt}'\"", digits.as_str()))
    }

    fn read(path: &Path) -> Result<Self, StoreError> {
        let damaged = |problem| StoreError::KeyDamaged { path: path.to_owned(), problem };
        let file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(path).map_err(|error| {
            StoreError::file(path, "open the key file (symbolic links are not followed)", error)
        })?;
        let about = file.metadata().map_err(|error| StoreError::file(path, "look at the key file", error))?;
        if !about.is_file() || about.len() > KEY_FILE_BYTES_MAX {
            return Err(damaged("it is not a small ordinary file"));
        }
        let mode = about.permissions().mode() & 0o7777;
        if mode & OTHERS != 0 {
            return Err(StoreError::KeyExposed { path: path.to_owned(), mode });
        }
        let mut text = Zeroizing::new(String::new());
        match file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(damaged("it is not text"));
            }
            Err(error) => return Err(StoreError::file(path, "read the key file", error)),
            Ok(_) => {}
        }
        // The parser's own message is dropped: it quotes the line, and the line can be the key.
        let content: KeyFile = toml::from_str(&text).map_err(|_| damaged("it is not a key file's TOML"))?;
        if content.version != 1 || content.wrap != "none" {
            return Err(damaged("its version or wrap is not one this program knows"));
        }
        let bytes = unhex(&content.key).ok_or_else(|| damaged("its key is not 64 hexadecimal digits"))?;
        let key = Self { bytes, origin: path.to_owned() };
        if key.check() != content.check {
            return Err(damaged("its key does not fit its check value"));
        }
        Ok(key)
    }

    /// Makes the key file: written under another name, synced, renamed, directory synced. The
    /// other name's lock decides between processes; whoever waited for it finds the key made.
    fn create(path: &Path) -> Result<Self, StoreError> {
        let new = path.with_extension("key.new");
        let fail = |doing| {
            let new = new.clone();
            move |error| StoreError::file(&new, doing, error)
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW)
            .open(&new)
            .map_err(fail("create the key file"))?;
        file.lock().map_err(fail("lock the new key file"))?;
        if exists(path)? {
            // Somebody else made it. What we hold is either that very file or one nobody needs.
            let _ = fs::remove_file(&new);
            return Self::read(path);
        }
        let key = Self { bytes: Zeroizing::new(interlock_bus::crypto::random()), origin: path.to_owned() };
        let digits = Zeroizing::new(hex(key.bytes.as_slice()));
        let text = Zeroizing::new(format!(
            "# The data key of this installation. Who has it can read the database; without it nobody can.\n\
             # Keep a copy in a safe place.\nversion = 1\nwrap = \"none\"\nkey = \"{}\"\ncheck = \"{}\"\n",
            digits.as_str(),
            key.check(),
        ));
        file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(fail("protect the key file"))?;
        file.set_len(0).map_err(fail("empty the new key file"))?;
        file.write_all(text.as_bytes()).map_err(fail("write the key file"))?;
        file.sync_all().map_err(fail("sync the key file"))?;
        fs::rename(&new, path).map_err(fail("rename the key file"))?;
        sync_directory(path)?;
        Ok(key)
    }
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
pub(super) fn exists(path: &Path) -> Result<bool, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(false)
        }
        Err(error) => Err(StoreError::file(path, "look for", error)),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    if text.len() != 2 * KEY_BYTES || !text.is_ascii() {
        return None;
    }
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let (keys, database) = (place.path().join("deep/keys"), place.path().join("interlock.db"));
        (place, keys, database)
    }

    #[test]
    fn the_key_is_made_once_private_and_read_back() {
        let (_place, keys, database) = place();
        let made = DataKey::load_or_create(&keys, &database).unwrap();
        let read = DataKey::load_or_create(&keys, &database).unwrap();
        assert_eq!(*made.bytes, *read.bytes);
        assert_eq!(made.derive("journal"), read.derive("journal"));
        assert!(made.derive("journal") != made.derive("backup") && *made.derive("") != *made.bytes);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&keys), mode(&keys.join(KEY_FILE))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&keys).unwrap().count(), 1, "something was left beside the key");
    }

    #[test]
    fn many_threads_get_one_key_also_over_the_remains_of_a_killed_one() {
        let (_place, keys, database) = place();
        create_private_directory(&keys).unwrap();
        fs::write(keys.join("data.key.new"), "half a ke").unwrap();
        let checks: Vec<String> = std::thread::scope(|scope| {
            let load = || DataKey::load_or_create(&keys, &database).unwrap().check();
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(load)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(checks.iter().all(|check| *check == checks[0]), "{checks:?}");
        assert_eq!(fs::read_dir(&keys).unwrap().count(), 1);
    }

    #[test]
    fn no_key_is_made_over_an_existing_database() {
        let (_place, keys, database) = place();
        fs::write(&database, "something").unwrap();
        let error = DataKey::load_or_create(&keys, &database).unwrap_err();
        assert!(matches!(error, StoreError::KeyMissing { .. }), "{error}");
        assert_eq!(error.exit_code(), 4);
        assert!(!keys.exists());
    }

    #[test]
    fn a_key_that_others_can_read_a_link_or_a_damaged_one_is_refused() {
        let (_place, keys, database) = place();
        DataKey::load_or_create(&keys, &database).unwrap();
        let path = keys.join(KEY_FILE);
        let text = fs::read_to_string(&path).unwrap();
        let load = || DataKey::load(&keys, &database).unwrap_err();

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load(), StoreError::KeyExposed { mode: 0o640, .. }));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();

        let key_at = text.find("key = \"").unwrap() + 7;
        let flipped = if &text[key_at..=key_at] == "0" { "1" } else { "0" };
        for bad in [
            String::new(),
            "\u{0}".repeat(99),
            text.replace("version = 1", "version = 2"),
            format!("{}{flipped}{}", &text[..key_at], &text[key_at + 1..]),
            format!("{}\"\"\"", text.trim_end()),
        ] {
            fs::write(&path, &bad).unwrap();
            let error = load();
            assert!(matches!(error, StoreError::KeyDamaged { .. }), "{error}");
            assert!(
                !format!("{error} {error:?}").contains(&text[key_at..key_at + 8]),
                "the key is in the error"
            );
        }

        fs::rename(&path, keys.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(keys.join("elsewhere"), &path).unwrap();
        assert!(matches!(load(), StoreError::File { .. }));
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let (_place, keys, database) = place();
        let key = DataKey::load_or_create(&keys, &database).unwrap();
        let shown = format!("{key:?}");
        assert!(
            !shown.contains(&hex(&key.bytes[..4])) && !shown.contains(&format!("{:?}", &key.bytes[..4])),
            "{shown}"
        );
    }
}
