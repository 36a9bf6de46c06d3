//! What the data key is sealed under: a wrapping key in a file of its own, or a passphrase.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use interlock_bus::crypto::{self, PassphraseCost};
use nix::libc::O_NOFOLLOW;
use zeroize::Zeroizing;

use super::{
    DataKey, KEY_BYTES, KEY_FILE,
    file::{self, KeyFile, KeyWrap},
    hex, unhex,
};
use crate::store::{error::StoreError, passphrase::Passphrase};

/// Name of the wrapping key inside the directory of keys.
pub const WRAPPING_KEY_FILE: &str = "wrap.key";

/// What a data key is to be sealed under from now on.
#[derive(Debug)]
pub enum NewWrap<'a> {
    /// A new wrapping key beside it.
    KeyStore,
    /// A passphrase.
    Passphrase(&'a Passphrase, PassphraseCost),
}

/// Where a passphrase comes from when one is needed; gets the path of the key file.
pub(in crate::store) type Ask<'a> = &'a dyn Fn(&Path) -> Result<Passphrase, StoreError>;

/// Opens the key in the file at `path`.
pub(super) fn open(path: &Path, file: &KeyFile, ask: Ask<'_>) -> Result<DataKey, StoreError> {
    let bytes = match file.wrap {
        KeyWrap::Bare => file.sealed.clone(),
        KeyWrap::KeyStore => {
            let wrapping = path.with_file_name(WRAPPING_KEY_FILE);
            let key = read_wrapping_key(&wrapping, path)?;
            crypto::open_beside(&key, &file.associated(), &file.sealed)
                .map_err(|_| StoreError::WrongWrappingKey { path: path.to_owned(), key: wrapping })?
        }
        KeyWrap::Passphrase { salt, cost } => {
            let passphrase = ask(path)?;
            let key = crypto::key_from_passphrase(passphrase.bytes(), &salt, cost).map_err(|_| {
                StoreError::KeyDamaged { path: path.to_owned(), problem: "its cost is out of bounds" }
            })?;
            crypto::open_beside(&key, &file.associated(), &file.sealed)
                .map_err(|_| StoreError::WrongPassphrase { path: path.to_owned() })?
        }
    };
    let damaged = |problem| StoreError::KeyDamaged { path: path.to_owned(), problem };
    let bytes = <[u8; KEY_BYTES]>::try_from(bytes.as_slice()).map(Zeroizing::new);
    let bytes = bytes.map_err(|_| damaged("what is sealed in it is no key"))?;
    let key = DataKey { bytes, origin: path.to_owned(), sealed: file.sealed.clone() };
    if key.check() == file.check { Ok(key) } else { Err(damaged("its key does not fit its check value")) }
}

/// Seals `key` and puts it at its place. What is written is read back and opened before it takes the old one's name.
/// The caller holds the lock of the directory.
pub(super) fn seal(key: &mut DataKey, wrap: &NewWrap<'_>) -> Result<(), StoreError> {
    let path = key.origin.as_path();
    let wrapping_path = path.with_file_name(WRAPPING_KEY_FILE);
    let (wrap, wrapping) = match wrap {
        NewWrap::KeyStore => {
            // What is at `path` until the rename is not sealed under it, so it may be a new one.
            let wrapping = Zeroizing::new(crypto::random());
            write_wrapping_key(&wrapping_path, &wrapping)?;
            (KeyWrap::KeyStore, wrapping)
        }
        NewWrap::Passphrase(passphrase, cost) => {
            let salt = crypto::random();
            let wrapping = crypto::key_from_passphrase(passphrase.bytes(), &salt, *cost).map_err(|_| {
                StoreError::KeyDamaged { path: path.to_owned(), problem: "its cost is out of bounds" }
            })?;
            (KeyWrap::Passphrase { salt, cost: *cost }, wrapping)
        }
    };
    let associated = KeyFile::associated_with(wrap, &key.check());
    let sealed = Zeroizing::new(crypto::seal_beside(&wrapping, &associated, key.bytes.as_slice()));
    let new_file = KeyFile { wrap, check: key.check(), sealed };
    file::replace(path, &new_file.text(), |new| {
        // From what is on the disk now, with what a later start will have.
        let damaged = |problem| StoreError::KeyDamaged { path: new.to_owned(), problem };
        let wrapping = match wrap {
            KeyWrap::KeyStore => read_wrapping_key(&wrapping_path, path)?,
            KeyWrap::Passphrase { .. } | KeyWrap::Bare => wrapping,
        };
        let read = KeyFile::read(new)?;
        let opened = crypto::open_beside(&wrapping, &read.associated(), &read.sealed)
            .map_err(|_| damaged("what was written does not open; the disk may be failing"))?;
        if crypto::equal_in_constant_time(&opened, key.bytes.as_slice()) {
            Ok(())
        } else {
            Err(damaged("another key was read back than was written; the disk may be failing"))
        }
    })?;
    if wrap != KeyWrap::KeyStore {
        forget_wrapping_key(&wrapping_path);
    }
    key.sealed = new_file.sealed;
    Ok(())
}

/// The wrapping key: 32 bytes and their check, of use to nobody without `data.key`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct WrappingKey {
    version: u32,
    key: Zeroizing<String>,
    check: String,
}

fn check_of(key: &[u8; KEY_BYTES]) -> String {
    hex(&crypto::derive_key(key, "check of a wrapping key")[..8])
}

fn read_wrapping_key(path: &Path, data_key: &Path) -> Result<Zeroizing<[u8; KEY_BYTES]>, StoreError> {
    if !super::exists(path)? {
        return Err(StoreError::WrappingKeyMissing { path: data_key.to_owned(), key: path.to_owned() });
    }
    let damaged = |problem| StoreError::KeyDamaged { path: path.to_owned(), problem };
    let text = file::read_text(path)?;
    let held: WrappingKey = toml::from_str(&text).map_err(|_| damaged("it is not a key file's TOML"))?;
    if held.version != 1 {
        return Err(damaged("its version is not one this program knows"));
    }
    let key = unhex(&held.key).and_then(|key| <[u8; KEY_BYTES]>::try_from(key.as_slice()).ok());
    let key = Zeroizing::new(key.ok_or_else(|| damaged("its key is not 64 hexadecimal digits"))?);
    if check_of(&key) == held.check { Ok(key) } else { Err(damaged("its key does not fit its check value")) }
}

fn write_wrapping_key(path: &Path, key: &[u8; KEY_BYTES]) -> Result<(), StoreError> {
    let digits = Zeroizing::new(hex(key));
    let text = Zeroizing::new(format!(
        "# Opens `{KEY_FILE}`, the data key of this installation. Whoever has both can read the database.\n\
         version = 1\nkey = \"{}\"\ncheck = \"{}\"\n",
        digits.as_str(),
        check_of(key)
    ));
    file::replace(path, &text, |_| Ok(()))
}

/// Takes away a wrapping key that opens nothing any more. Overwritten first, which helps where the file system writes in
/// place; a failure costs nothing, because what it sealed is gone.
pub(super) fn forget_wrapping_key(path: &Path) {
    let overwrite = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).custom_flags(O_NOFOLLOW).open(path)?;
        let bytes = file.metadata()?.len();
        file.write_all(&vec![b'0'; bytes as usize])?;
        file.sync_all()
    };
    let _ = overwrite();
    let _ = fs::remove_file(path);
}
