//! Ids of messages whose effect has happened: with them each effect happens once.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    future::ready,
    sync::{Mutex, PoisonError},
};

use uuid::Uuid;

use super::{
    limits,
    storage::{Step, StorageError},
};

/// Remembers which messages a consumer has dealt with.
///
/// An inbox that shares a transaction with the effect makes it happen exactly once: let [`Inbox::record`] do nothing, and
/// write the id where the effect is written. One that is kept apart leaves a moment between effect and id, in which a
/// crash repeats the effect.
pub trait Inbox: fmt::Debug + Send + Sync + 'static {
    /// Whether the effect of this message has happened.
    fn seen(&self, id: Uuid) -> Step<'_, Result<bool, StorageError>>;

    /// The effect of this message has happened.
    fn record(&self, id: Uuid) -> Step<'_, Result<(), StorageError>>;
}

/// Remembers the last ids in memory: a message that comes twice in one life of the program has its effect once.
#[derive(Debug)]
pub struct MemoryInbox {
    ids: Mutex<Ids>,
    ids_max: usize,
}

#[derive(Debug, Default)]
struct Ids {
    known: HashSet<Uuid>,
    /// In the order in which they came.
    order: VecDeque<Uuid>,
}

impl Default for MemoryInbox {
    fn default() -> Self {
        Self::new(limits::INBOX_IDS)
    }
}

impl MemoryInbox {
    /// One that remembers so many ids, the latest.
    pub fn new(ids_max: usize) -> Self {
        Self { ids: Mutex::default(), ids_max: ids_max.max(1) }
    }
}

impl Inbox for MemoryInbox {
    fn seen(&self, id: Uuid) -> Step<'_, Result<bool, StorageError>> {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        Box::pin(ready(Ok(ids.known.contains(&id))))
    }

    fn record(&self, id: Uuid) -> Step<'_, Result<(), StorageError>> {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if ids.known.insert(id) {
            ids.order.push_back(id);
            if ids.order.len() > self.ids_max
                && let Some(oldest) = ids.order.pop_front()
            {
                ids.known.remove(&oldest);
            }
        }
        Box::pin(ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocking;

    #[test]
    fn an_inbox_remembers_its_bound_and_forgets_the_oldest() {
        let inbox = MemoryInbox::new(2);
        let ids: Vec<Uuid> = (1..=3).map(Uuid::from_u128).collect();
        for id in [ids[0], ids[1], ids[1], ids[2]] {
            blocking::wait(inbox.record(id)).unwrap();
        }
        let seen: Vec<bool> = ids.iter().map(|id| blocking::wait(inbox.seen(*id)).unwrap()).collect();
        assert_eq!(seen, [false, true, true]);
    }
}
