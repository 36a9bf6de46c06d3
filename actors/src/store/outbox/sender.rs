//! One of all processes sends: who holds the lock on `outbox.lock`, which ends with its process.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use tokio::sync::oneshot;

use crate::store::{StoreError, spawn};

/// The lock, held until it is dropped.
#[derive(Debug)]
pub(super) struct SenderLock {
    /// Closing it ends the lock.
    _file: File,
}

impl SenderLock {
    /// Waits for the lock that belongs to this database. Whoever stops waiting lets it go when it comes.
    pub(super) async fn wait(database: &Path) -> Result<Self, StoreError> {
        let path = lock_path(database);
        let (reply, answer) = oneshot::channel();
        let place = path.clone();
        // Ends when the lock is there: at the latest when its holder's process ends, or this one.
        spawn(&path, "outbox-lock".to_owned(), move || {
            crate::log_transport::mark_thread();
            // Nobody waits any more: the file is closed with the answer, and with it the lock ends.
            let _ = reply.send(lock(&place));
        })?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

fn lock(path: &Path) -> Result<SenderLock, StoreError> {
    let fail = |doing| move |error: io::Error| StoreError::file(path, doing, error);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(fail("open the sender's lock"))?;
    loop {
        match file.lock() {
            Ok(()) => return Ok(SenderLock { _file: file }),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(fail("take the sender's lock")(error)),
        }
    }
}

/// `outbox.lock` beside `outbox.db`.
fn lock_path(database: &Path) -> PathBuf {
    database.with_extension("lock")
}
