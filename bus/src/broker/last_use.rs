//! Writes down when keys were last used, on a thread of its own: a slow disk delays no message.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::keys::LastUse;

/// How soon after a session began or ended this is written down: the disk is written once for all that come within it.
pub(super) const WRITTEN_AFTER: Duration = Duration::from_secs(5);
/// How often sessions that go on are written down. A broker that is killed forgets at most so much of them.
pub(super) const NOTED_EVERY: Duration = Duration::from_secs(600);

/// The thread, and what it is given: one state at a time, the next one when it is done with that.
#[derive(Debug)]
pub(super) struct Keeper {
    states: Option<Sender<LastUse>>,
    thread: Option<thread::JoinHandle<()>>,
    /// When something was last handed over, and when all open sessions were last noted.
    pub(super) written: Instant,
    pub(super) noted: Instant,
}

impl Keeper {
    /// Keeps what is known in this file; `None` if there is none, or no thread to be had.
    pub(super) fn start(path: PathBuf, now: Instant) -> Option<Self> {
        let (sender, states) = bounded(1);
        let thread = thread::Builder::new().name("bus-last-use".to_owned()).spawn(move || {
            crate::threads::started();
            keep(&path, &states);
        });
        match thread {
            Ok(thread) => Some(Self { states: Some(sender), thread: Some(thread), written: now, noted: now }),
            Err(error) => {
                tracing::warn!(%error, "the last use of keys is not written down: no thread");
                None
            }
        }
    }

    /// Hands over a state; gives it back if the one before is still being written.
    pub(super) fn offer(&self, state: LastUse) -> Result<(), LastUse> {
        match &self.states {
            Some(states) => states.try_send(state).map_err(crossbeam_channel::TrySendError::into_inner),
            None => Ok(()),
        }
    }
}

impl Keeper {
    /// Hands over the last state, after the one that is being written.
    pub(super) fn finish(&self, state: LastUse) {
        if let Some(states) = &self.states {
            // Without its thread there is nobody to write it.
            let _ = states.send(state);
        }
    }
}

impl Drop for Keeper {
    /// Waits until everything that was handed over is on the disk.
    fn drop(&mut self) {
        self.states = None;
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it has, nothing is left to wait for.
            let _ = thread.join();
        }
    }
}

fn keep(path: &Path, states: &Receiver<LastUse>) {
    let mut has_failed = false;
    for mut state in states {
        // What another broker on this key store has written meanwhile, or one before us. A damaged file is made anew.
        state.merge(LastUse::load(path).unwrap_or_default());
        let written = state.save(path);
        if let Err(error) = &written
            && !has_failed
        {
            tracing::warn!(%error, "the last use of keys is not written down");
        }
        has_failed = written.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_handed_over_is_on_the_disk_when_the_keeper_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("last-use.json");
        let keeper = Keeper::start(path.clone(), Instant::now()).unwrap();
        let mut state = LastUse::default();
        state.note(&"ada".parse().unwrap(), None, 7);
        keeper.offer(state).unwrap();
        drop(keeper);
        assert_eq!(LastUse::load(&path).unwrap().of_peer(&"ada".parse().unwrap()), Some(7));
    }
}
