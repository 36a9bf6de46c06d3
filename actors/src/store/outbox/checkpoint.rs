//! Moves what is committed from the write-ahead log into the database, beside the writer: whoever waits for a commit does
//! not wait for this, too. What is not done here the writer does itself, every thousand pages.

use std::{path::PathBuf, thread::JoinHandle};

use crossbeam_channel::{Receiver, Sender};
use rusqlite::Connection;

use super::limits;
use crate::store::{
    connection::{self, Role},
    error::StoreError,
    key::DataKey,
};

/// Says when it is time for a checkpoint. Dropping it waits for the thread that makes them, so that the writer's connection
/// is the last one, which moves the rest.
pub(super) struct Checkpoints {
    /// `None` once dropped.
    wake: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    commits: usize,
    rows: usize,
}

impl Checkpoints {
    /// Starts the thread that makes them.
    pub(super) fn start(path: PathBuf, key: DataKey) -> Result<Self, StoreError> {
        // One place: a checkpoint that is asked for twice is made once.
        let (wake, asked) = crossbeam_channel::bounded(1);
        let name = "outbox-checkpoint".to_owned();
        let thread = crate::store::spawn(&path.clone(), name, move || run(&path, &key, &asked))?;
        Ok(Self { wake: Some(wake), thread: Some(thread), commits: 0, rows: 0 })
    }

    /// A commit was made that has added so many rows.
    pub(super) fn committed(&mut self, rows: usize) {
        self.commits += 1;
        self.rows += rows;
        if self.commits >= limits::CHECKPOINT_COMMITS || self.rows >= limits::CHECKPOINT_ROWS {
            (self.commits, self.rows) = (0, 0);
            // Full: one is asked for already, or made.
            let _ = self.wake.as_ref().map(|wake| wake.try_send(()));
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.wake.take();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that makes checkpoints of the outbox had panicked");
        }
    }
}

fn run(path: &std::path::Path, key: &DataKey, asked: &Receiver<()>) {
    crate::log_transport::mark_thread();
    let mut open: Option<Connection> = None;
    let mut file = None;
    for () in asked {
        // A file that was exchanged is opened anew.
        let present = connection::file_id(path);
        if present != file {
            (open, file) = (None, present);
        }
        let done =
            open.take().map_or_else(|| connection::open(path, key, Role::Writer), Ok).and_then(|own| {
                own.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
                    .map_err(|error| StoreError::from_sqlite(path, "making a checkpoint", error))?;
                Ok(own)
            });
        match done {
            Ok(own) => open = Some(own),
            // The writer meets it too, and says so.
            Err(error) => tracing::debug!(%error, "no checkpoint was made beside the writer of the outbox"),
        }
    }
}
