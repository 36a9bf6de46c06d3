//! The key file: its text, how it is read and how it is replaced. Knows nothing of what seals the key.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use interlock_bus::{
    crypto::{PassphraseCost, SALT_BYTES},
    keys::private_file,
};
use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{KEY_BYTES, hex, unhex};
use crate::store::error::StoreError;

/// A key file is some 500 bytes; anything much longer is not one.
const FILE_BYTES_MAX: u64 = 4096;
/// Permission bits that would let others see the file.
const OTHERS: u32 = 0o077;
/// The version that is written. Version 1 had the key bare.
const VERSION: u32 = 2;

/// What the key in the file is sealed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyWrap {
    /// Nothing: an earlier version of the program wrote it. It is sealed when the store is opened the next time.
    Bare,
    /// The wrapping key beside it.
    KeyStore,
    /// A passphrase.
    Passphrase {
        /// Random, so that equal passphrases seal differently.
        salt: [u8; SALT_BYTES],
        /// What guessing costs.
        cost: PassphraseCost,
    },
}

impl KeyWrap {
    /// As the file and `interlock db status` call it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Bare => "none",
            Self::KeyStore => "keystore",
            Self::Passphrase { .. } => "passphrase",
        }
    }
}

/// The content of a key file: a header that anybody may read, and the sealed key.
pub(super) struct KeyFile {
    pub(super) wrap: KeyWrap,
    /// Tells two data keys apart and says nothing about either.
    pub(super) check: String,
    /// The key itself if it is bare.
    pub(super) sealed: Zeroizing<Vec<u8>>,
}

/// The file as TOML.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    wrap: String,
    salt: Option<String>,
    passes: Option<u32>,
    memory_kib: Option<u32>,
    key: Zeroizing<String>,
    check: String,
    sum: Option<String>,
}

impl KeyFile {
    /// What the sealed key is bound to: a changed header does not open.
    pub(super) fn associated(&self) -> Vec<u8> {
        Self::associated_with(self.wrap, &self.check)
    }

    pub(super) fn associated_with(wrap: KeyWrap, check: &str) -> Vec<u8> {
        let mut text = format!("interlock data key v{VERSION}\n{}\n{check}\n", wrap.as_str());
        if let KeyWrap::Passphrase { salt, cost } = wrap {
            text.push_str(&format!("{}\n{}\n{}\n", hex(&salt), cost.passes, cost.memory_kib));
        }
        text.into_bytes()
    }

    /// Tells a damaged file from a wrong passphrase, which both fail to open. Anybody can compute it: against changes on
    /// purpose the seal stands.
    fn sum(&self) -> String {
        let digest = Sha256::new().chain_update(self.associated()).chain_update(&*self.sealed).finalize();
        hex(&digest[..8])
    }

    /// The text of the file.
    pub(super) fn text(&self) -> Zeroizing<String> {
        let mut text = format!(
            "# The data key of this installation, sealed. Without it nobody can read the database: keep a copy in a safe place{}.\n\
             version = {VERSION}\nwrap = \"{}\"\n",
            if self.wrap == KeyWrap::KeyStore { ",\n# with `wrap.key`, which opens it" } else { "" },
            self.wrap.as_str()
        );
        if let KeyWrap::Passphrase { salt, cost } = self.wrap {
            text.push_str(&format!(
                "salt = \"{}\"\npasses = {}\nmemory_kib = {}\n",
                hex(&salt),
                cost.passes,
                cost.memory_kib
            ));
        }
        text.push_str(&format!(
            "key = \"{}\"\ncheck = \"{}\"\nsum = \"{}\"\n",
            hex(&self.sealed),
            self.check,
            self.sum()
        ));
        Zeroizing::new(text)
    }

    /// The file at `path`.
    pub(super) fn read(path: &Path) -> Result<Self, StoreError> {
        Self::parse(path, &read_text(path)?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, StoreError> {
        let damaged = |problem| StoreError::KeyDamaged { path: path.to_owned(), problem };
        // The parser's own message is dropped: it quotes the line, and the line can be the key.
        let held: toml::Table = toml::from_str(text).map_err(|_| damaged("it is not a key file's TOML"))?;
        if let Some(found) = held.get("version").and_then(toml::Value::as_integer)
            && found > i64::from(VERSION)
        {
            return Err(StoreError::KeyVersion { path: path.to_owned(), found, known: VERSION });
        }
        let held: Text = toml::from_str(text).map_err(|_| damaged("it is not a key file's TOML"))?;
        let wrap = match (held.version, held.wrap.as_str(), held.salt, held.passes, held.memory_kib) {
            (1, "none", None, None, None) => KeyWrap::Bare,
            (VERSION, "keystore", None, None, None) => KeyWrap::KeyStore,
            (VERSION, "passphrase", Some(salt), Some(passes), Some(memory_kib)) => {
                let salt = unhex(&salt).and_then(|salt| salt.as_slice().try_into().ok());
                let salt = salt.ok_or_else(|| damaged("its salt is not 32 hexadecimal digits"))?;
                KeyWrap::Passphrase { salt, cost: PassphraseCost { passes, memory_kib } }
            }
            _ => return Err(damaged("its version or wrap is not one this program knows")),
        };
        let sealed = unhex(&held.key).ok_or_else(|| damaged("its key is not made of hexadecimal digits"))?;
        let file = Self { wrap, check: held.check, sealed };
        match (wrap, held.sum) {
            (KeyWrap::Bare, None) if file.sealed.len() == KEY_BYTES => {}
            (KeyWrap::Bare, _) => return Err(damaged("its key is not 64 hexadecimal digits")),
            (_, Some(sum)) if sum == file.sum() => {}
            _ => return Err(damaged("it does not fit its own sum")),
        }
        if let KeyWrap::Passphrase { cost, .. } = wrap
            && !cost.is_bearable()
        {
            return Err(damaged("it asks for more time or memory than a passphrase may cost"));
        }
        Ok(file)
    }
}

/// The text of a small private file.
pub(super) fn read_text(path: &Path) -> Result<Zeroizing<String>, StoreError> {
    let damaged = |problem| StoreError::KeyDamaged { path: path.to_owned(), problem };
    let flags = O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| {
        StoreError::file(path, "open the key file (symbolic links are not followed)", error)
    })?;
    let about = file.metadata().map_err(|error| StoreError::file(path, "look at the key file", error))?;
    if !about.is_file() || about.len() > FILE_BYTES_MAX {
        return Err(damaged("it is not a small ordinary file"));
    }
    let mode = about.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(StoreError::KeyExposed { path: path.to_owned(), mode });
    }
    // As large as it may get: growing would leave copies behind that nobody wipes.
    let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize));
    match file.take(FILE_BYTES_MAX).read_to_string(&mut text) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(damaged("it is not text")),
        Err(error) => Err(StoreError::file(path, "read the key file", error)),
        Ok(_) => Ok(text),
    }
}

/// Puts `text` at `path`: written beside, synced, judged by `verify` as it is on the disk, and only then renamed; the
/// directory is synced. Killed at any point, it leaves the old file or the new one, and perhaps one beside that the next
/// call removes. The caller holds the [`lock`].
pub(super) fn replace(
    path: &Path,
    text: &str,
    verify: impl FnOnce(&Path) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // A name that `private_file` knows as one of a writer that may have been killed.
    let random = hex(&interlock_bus::crypto::random::<16>());
    let new = path.with_file_name(format!(".{name}.{random}"));
    private_file::remove_abandoned(path.parent().unwrap_or(Path::new(".")));
    let fail = |doing| {
        let new = new.clone();
        move |error| StoreError::file(&new, doing, error)
    };
    let written = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW)
            .open(&new)
            .map_err(fail("create the key file"))?;
        // Held until it has its name: others take one without a lock for abandoned.
        file.lock().map_err(fail("lock the new key file"))?;
        file.write_all(text.as_bytes()).map_err(fail("write the key file"))?;
        file.sync_all().map_err(fail("sync the key file"))?;
        verify(&new)?;
        fs::rename(&new, path).map_err(fail("rename the key file"))?;
        super::sync_directory(path)
    };
    written().inspect_err(|_| drop(fs::remove_file(&new)))
}

/// Lets one process at a time make or change key files in `directory`. Ends with the value, or with the process.
pub(super) fn lock(directory: &Path) -> Result<File, StoreError> {
    let handle = File::open(directory).map_err(|error| StoreError::file(directory, "open", error))?;
    handle.lock().map_err(|error| StoreError::file(directory, "lock", error))?;
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(wrap: KeyWrap) -> KeyFile {
        KeyFile { wrap, check: "0123456789abcdef".to_owned(), sealed: Zeroizing::new(vec![7; 72]) }
    }

    const PASSPHRASE: KeyWrap =
        KeyWrap::Passphrase { salt: [3; SALT_BYTES], cost: PassphraseCost { passes: 1, memory_kib: 8 } };

    #[test]
    fn what_is_written_is_read_again_and_each_changed_character_is_noticed() {
        for wrap in [KeyWrap::KeyStore, PASSPHRASE] {
            let text = file(wrap).text();
            let read = KeyFile::parse(Path::new("x"), &text).unwrap();
            assert_eq!((read.wrap, read.check.as_str(), read.sealed.len()), (wrap, "0123456789abcdef", 72));
            let content = text.find("version").unwrap();
            for at in content..text.len() - 1 {
                let mut changed = text.as_bytes().to_vec();
                changed[at] = if changed[at] == b'1' { b'2' } else { b'1' };
                let changed = String::from_utf8(changed).unwrap();
                // Which digits are written large or small, and blanks, are not content.
                let error = KeyFile::parse(Path::new("x"), &changed).err();
                assert!(error.is_some_and(|error| matches!(error.exit_code(), 8 | 9)), "{changed}");
            }
            for cut in content..text.len() - 1 {
                assert!(KeyFile::parse(Path::new("x"), &text[..cut]).is_err(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_file_that_asks_for_a_hundred_gigabytes_is_refused_though_its_sum_fits() {
        for (passes, memory_kib) in [(1, 100 << 20), (u32::MAX, 64), (0, 64)] {
            let cost = PassphraseCost { passes, memory_kib };
            let text = file(KeyWrap::Passphrase { salt: [0; SALT_BYTES], cost }).text();
            let Err(error) = KeyFile::parse(Path::new("x"), &text) else { panic!("{cost:?}") };
            assert!(error.exit_code() == 8 && error.to_string().contains("memory"), "{error}");
        }
    }

    #[test]
    fn a_file_of_a_later_version_is_not_called_damaged() {
        let text = file(PASSPHRASE).text().replace("version = 2", "version = 3\nshape = \"new\"");
        let Err(error) = KeyFile::parse(Path::new("x"), &text) else { panic!() };
        assert!(
            matches!(error, StoreError::KeyVersion { found: 3, .. }) && error.exit_code() == 9,
            "{error}"
        );
    }
}
