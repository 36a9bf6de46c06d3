//! The way to the data key for a whole process: asks for a passphrase at most once.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::{
    DataKey, KEY_FILE,
    attempts::{Attempts, Guess},
    exists,
    file::KeyFile,
};
use crate::store::{
    error::StoreError,
    passphrase::{Passphrase, PassphraseSources},
};

/// Gets the data key whenever it is needed, and keeps it: a component that is started again, or a passphrase that was
/// changed meanwhile, asks nobody.
pub struct Vault {
    keys: PathBuf,
    database: PathBuf,
    sources: PassphraseSources,
    held: Mutex<Option<DataKey>>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Vault").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Vault {
    /// The key in the directory `keys` of this database. Opens nothing yet.
    pub fn new(keys: PathBuf, database: PathBuf, sources: PassphraseSources) -> Self {
        Self { keys, database, sources, held: Mutex::default() }
    }

    /// The database it is the key of.
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// The key, for whoever reads.
    ///
    /// # Errors
    /// There is none, it is damaged, or there is no passphrase or a wrong one.
    pub fn open(&self) -> Result<DataKey, StoreError> {
        self.with(|ask| DataKey::load_with(&self.keys, &self.database, ask))
    }

    /// The key, for whoever writes: made if neither it nor the database exists, sealed if it lay bare.
    ///
    /// # Errors
    /// As [`open`](Self::open), or it cannot be made.
    pub fn open_or_create(&self) -> Result<DataKey, StoreError> {
        let path = self.keys.join(KEY_FILE);
        let new = || {
            // A new key is sealed under what is given, under the same rules as any new passphrase.
            let given = self.sources.is_given().then(|| self.ask(&path)).transpose()?;
            given.as_ref().map_or(Ok(()), |passphrase| passphrase.check_new().map_err(StoreError::from))?;
            Ok(given)
        };
        self.with(|ask| DataKey::load_or_create_with(&self.keys, &self.database, ask, new))
    }

    /// As [`open_or_create`](Self::open_or_create) if there is a key or a database: what can be asked is asked now, and what
    /// is wrong said.
    ///
    /// # Errors
    /// The same.
    pub fn unlock(&self) -> Result<(), StoreError> {
        if exists(&self.keys.join(KEY_FILE))? || exists(&self.database)? {
            self.open_or_create().map(drop)
        } else {
            Ok(())
        }
    }

    fn with(
        &self,
        load: impl FnOnce(super::wrap::Ask<'_>) -> Result<DataKey, StoreError>,
    ) -> Result<DataKey, StoreError> {
        // Held while a person is asked: nobody else should ask the same.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = &*held
            // Only as long as the file is about the same key: it may have been put back from a copy, or be gone.
            && KeyFile::read(key.origin()).is_ok_and(|file| file.check == key.check())
        {
            return Ok(key.clone());
        }
        let attempts = Attempts::of(&self.keys, Guess::DataKey);
        let loaded = load(&|path| {
            let given = self.ask(path)?;
            // Nobody is let in meanwhile, and a person may end the process as ever.
            std::thread::sleep(attempts.delay());
            Ok(given)
        });
        match &loaded {
            Err(StoreError::WrongPassphrase { .. }) => attempts.failed(),
            Ok(_) => attempts.succeeded(),
            Err(_) => {}
        }
        let key = loaded?;
        let is_sealed = matches!(KeyFile::read(key.origin())?.wrap, super::KeyWrap::Passphrase { .. });
        if self.sources.is_given() && !is_sealed {
            return Err(StoreError::PassphraseUnused { path: key.origin().to_owned() });
        }
        *held = Some(key.clone());
        Ok(key)
    }

    fn ask(&self, path: &Path) -> Result<Passphrase, StoreError> {
        Ok(self.sources.ask(&format!("passphrase of `{}`: ", path.display()))?)
    }
}
