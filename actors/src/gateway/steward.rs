//! What is done for the gateway by the program that it is in, and not asked for on the bus: where a secret comes or goes, which
//! the bus must never carry, or where nobody on the bus has an answer.

use std::{fmt, time::Duration};

use interlock_bus::{PeerName, Permissions};
use serde_json::Value;
use zeroize::Zeroizing;

use super::error::ApiError;
use crate::{
    backup::{BackupName, Watcher},
    store::Passphrase,
};

/// Does what it is asked to, for the peer that asks. What it does may wait for the disk, so it is asked beside the requests of
/// others. What it tells is what the tools print with `--json`.
pub trait Steward: Send + Sync {
    /// Every peer that is enrolled.
    ///
    /// # Errors
    /// The key store cannot be read.
    fn keys(&self) -> Result<Vec<Value>, Refusal>;

    /// One of them, with each right and where it stands.
    ///
    /// # Errors
    /// There is none of that name.
    fn key(&self, name: &PeerName) -> Result<Value, Refusal>;

    /// Enrols a peer with a new key.
    ///
    /// # Errors
    /// The name is in use or not to be had; nobody was enrolled then.
    fn issue_key(&self, by: &PeerName, wanted: &NewPeer) -> Result<MadeKey, Refusal>;

    /// Revokes the key of a peer; its sessions end at once. The peer of a token is revoked with the token.
    ///
    /// # Errors
    /// There is none, or the order would cut off who gives it.
    fn revoke_key(&self, by: &PeerName, name: &PeerName) -> Result<(), Refusal>;

    /// Gives a peer a new key. The one before it is accepted for `overlap` longer.
    ///
    /// # Errors
    /// There is none, or it has ended; nothing was changed then.
    fn rotate_key(
        &self,
        by: &PeerName,
        name: &PeerName,
        overlap: Duration,
        expires_in: Option<Duration>,
    ) -> Result<MadeKey, Refusal>;

    /// The backups in the directory of backups.
    ///
    /// # Errors
    /// It cannot be read.
    fn backups(&self) -> Result<Value, Refusal>;

    /// Makes one there. Takes as long as the databases are large.
    ///
    /// # Errors
    /// Nothing was changed then, and nothing is left behind.
    fn create_backup(
        &self,
        by: &PeerName,
        wanted: NewBackup,
        watcher: &mut Watcher<'_>,
    ) -> Result<Value, Refusal>;

    /// Reads one to its end and opens each chunk of it. Without a passphrase with the one that the runtime was given.
    ///
    /// # Errors
    /// There is none of that name, or it does not open.
    fn verify_backup(
        &self,
        by: &PeerName,
        name: &BackupName,
        passphrase: Option<Passphrase>,
        watcher: &mut Watcher<'_>,
    ) -> Result<Value, Refusal>;

    /// Where the database is, its versions and size.
    ///
    /// # Errors
    /// It cannot be read.
    fn database(&self) -> Result<Value, Refusal>;

    /// Reads all of it. Takes as long as it is large.
    ///
    /// # Errors
    /// It cannot be read, or that is being done already.
    fn check_database(&self) -> Result<Value, Refusal>;

    /// Every setting that is in force and where its value comes from; what programs are called with only if that is wanted.
    fn configuration(&self, with_arguments: bool) -> Value;

    /// Judges the text of a configuration file. Nothing is changed, and no file that it names is read.
    fn check_configuration(&self, text: &str) -> Value;
}

/// A backup that is wanted.
#[derive(Debug)]
pub struct NewBackup {
    /// The name of its file; `None` for one by the time.
    pub name: Option<BackupName>,
    /// What it is sealed under; `None` for the passphrase that the runtime was given for backups.
    pub passphrase: Option<Passphrase>,
}

/// A peer that is wanted.
#[derive(Clone, Debug)]
pub struct NewPeer {
    /// Its name.
    pub name: PeerName,
    /// What it may do on the bus.
    pub permissions: Permissions,
    /// After what time its key ends; `None` for never.
    pub expires_in: Option<Duration>,
}

/// A key that was made.
pub struct MadeKey {
    /// What was done, without the secret.
    pub facts: Value,
    /// The text of the credentials file, which nobody else has; `None` where the runtime itself uses it, and keeps it.
    pub credentials: Option<Zeroizing<String>>,
}

impl fmt::Debug for MadeKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("MadeKey").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whose affair it is.
    pub kind: RefusalKind,
    /// A word for programs.
    pub code: String,
    /// A sentence for people: what is wrong, and the way out.
    pub text: String,
}

/// Whose affair a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// What was asked makes no sense.
    Misuse,
    /// What it is about is not there.
    Unknown,
    /// It does not go with what there is.
    Conflict,
    /// Not now.
    Busy,
    /// It was tried, and could not be done.
    Failed,
}

impl From<Refusal> for ApiError {
    fn from(Refusal { kind, code, text }: Refusal) -> Self {
        let status = match kind {
            RefusalKind::Misuse => 400,
            RefusalKind::Unknown => 404,
            RefusalKind::Conflict => 409,
            RefusalKind::Busy => 503,
            RefusalKind::Failed => 500,
        };
        Self::refused(status, &code, text)
    }
}
