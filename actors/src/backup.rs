//! Backup and restore: one sealed file with everything that an installation cannot do without.
//!
//! - [`create`]: databases as they are at one moment, key store and configuration, sealed under a passphrase of the backup's
//!   own; the file appears under its name only when it was read back whole.
//! - [`verify`]: reads and opens a whole file; with a drill, everything that a restore does before it touches anything.
//! - [`restore`]: the same, and then what is live is exchanged in one step that a kill cannot leave halfway.
//! - [`list`]: what can be known of files without their passphrase.
//!
//! The format is described byte by byte in `actors/BACKUP.md`, so that others can read and write it. Memory does not grow with
//! the databases. What is unfinished lies in a private directory in the data directory, databases in it under a key that only
//! the process knows; it is wiped at the end, or found by the next run.
//!
//! Reading order: `header`, `sealed` (the format), `manifest` (what is in it), `create`, `open`, `restore`, `exchange`.

mod create;
mod error;
mod exchange;
#[cfg(test)]
mod forged;
mod header;
pub mod limits;
mod list;
mod manifest;
mod name;
mod open;
mod place;
mod progress;
mod restore;
mod sealed;
mod workspace;

pub use create::{CreateOptions, Created, create, default_name};
pub use error::BackupError;
pub use exchange::{Finished, finish_pending, hold_alone, who_has_open};
#[cfg(test)]
pub(crate) use forged::forge;
pub use header::{DatabaseId, Header};
pub use list::{Listed, list};
pub use manifest::{Contents, DatabaseFacts, Part, PartKind};
pub use name::{BackupName, BackupNameError};
pub use open::{Verified, verify};
pub use progress::{Phase, Progress, Watcher};
pub use restore::{KEPT_MARK, RestoreOptions, Restored, drill, restore};

use std::path::{Path, PathBuf};

use interlock_bus::crypto::DIGEST_BYTES;

use crate::wipe::WipedCounts;

/// What is backed up, or restored into. Naming one touches nothing.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The data directory.
    pub root: PathBuf,
    /// The file with the configuration, if there is one.
    pub config: Option<PathBuf>,
}

impl Installation {
    fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// Why the configuration file cannot lie where it is to, if so: a restore exchanges, wipes or makes something of that name,
    /// or above or below it, and what is put there would be lost.
    pub fn config_in_the_way(&self) -> Option<PathBuf> {
        place::config_in_the_way(&self.root, self.config.as_deref()?)
    }

    /// Where backups go that nobody gave another place.
    pub fn backups(&self) -> PathBuf {
        self.root.join("backups")
    }
}

/// Whether the file at `path` begins as a backup does.
pub fn is_backup(path: &Path) -> bool {
    let mut head = [0; header::MAGIC.len()];
    let read = std::fs::File::open(path).and_then(|mut file| sealed::read_full(&mut file, &mut head));
    read.is_ok() && head == header::MAGIC
}

/// Wipes what backups and restores that were killed have left in the data directory; `None` if there was nothing.
pub fn sweep(root: &Path) -> Option<WipedCounts> {
    workspace::sweep(root)
}
