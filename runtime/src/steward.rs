//! What the runtime does for the gateway in this process: what has secrets in it, or is no affair of the bus. The command line
//! does the same with the same functions.

mod backups;
mod configuration;
mod database;
mod keys;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use interlock_actors::{
    backup::{BackupName, Watcher},
    gateway::steward::{MadeKey, NewBackup, NewPeer, Refusal, RefusalKind, Steward},
    store::Passphrase,
};
use interlock_bus::PeerName;
use serde_json::Value;

use crate::site::Site;

/// Does it for one installation.
pub(crate) struct SiteSteward {
    site: Arc<Site>,
    /// Whether a backup is being verified: each needs as much memory as its key derivation.
    verifying: Arc<AtomicBool>,
    /// Whether the database is being checked.
    checking: Arc<AtomicBool>,
}

/// The only one who does something now.
struct Turn(Arc<AtomicBool>);

impl Turn {
    /// `None` while somebody else does it.
    fn take(is_busy: &Arc<AtomicBool>) -> Option<Self> {
        (!is_busy.swap(true, Ordering::Relaxed)).then(|| Self(Arc::clone(is_busy)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl fmt::Debug for SiteSteward {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SiteSteward")
    }
}

impl SiteSteward {
    pub(crate) fn new(site: &Arc<Site>) -> Self {
        Self { site: Arc::clone(site), verifying: Arc::default(), checking: Arc::default() }
    }
}

impl Steward for SiteSteward {
    fn keys(&self) -> Result<Vec<Value>, Refusal> {
        keys::list(&self.site.keys)
    }

    fn key(&self, name: &PeerName) -> Result<Value, Refusal> {
        keys::show(&self.site.keys, name)
    }

    fn issue_key(&self, by: &PeerName, wanted: &NewPeer) -> Result<MadeKey, Refusal> {
        keys::issue(&self.site, by, wanted)
    }

    fn revoke_key(&self, by: &PeerName, name: &PeerName) -> Result<(), Refusal> {
        keys::revoke(&self.site, by, name)
    }

    fn rotate_key(
        &self,
        by: &PeerName,
        name: &PeerName,
        overlap: Duration,
        expires_in: Option<Duration>,
    ) -> Result<MadeKey, Refusal> {
        keys::rotate(&self.site, by, name, overlap, expires_in)
    }

    fn backups(&self) -> Result<Value, Refusal> {
        backups::list(&self.site)
    }

    fn create_backup(
        &self,
        by: &PeerName,
        wanted: NewBackup,
        watcher: &mut Watcher<'_>,
    ) -> Result<Value, Refusal> {
        backups::create(&self.site, by, wanted, watcher)
    }

    fn verify_backup(
        &self,
        by: &PeerName,
        name: &BackupName,
        passphrase: Option<Passphrase>,
        watcher: &mut Watcher<'_>,
    ) -> Result<Value, Refusal> {
        backups::verify(&self.site, &self.verifying, by, name, passphrase, watcher)
    }

    fn database(&self) -> Result<Value, Refusal> {
        database::status(&self.site)
    }

    fn check_database(&self) -> Result<Value, Refusal> {
        database::check(&self.site, &self.checking)
    }

    fn configuration(&self, with_arguments: bool) -> Value {
        configuration::show(&self.site, with_arguments)
    }

    fn check_configuration(&self, text: &str) -> Value {
        configuration::check(&self.site, text)
    }
}

fn refused(kind: RefusalKind, code: &str, text: impl Into<String>) -> Refusal {
    Refusal { kind, code: code.to_owned(), text: text.into() }
}
