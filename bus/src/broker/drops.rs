//! Dropped messages, told without flooding: the first of a kind at once, those after it together, once a second. Pure.

use std::collections::HashMap;

use super::ledger::{DropReason, RowId, RowKey};

/// Kinds of drops that are told apart at the same time. Those beyond are counted together.
const KINDS_MAX: usize = 1024;
/// How often repetitions are told.
const REPEATED_EVERY_MS: u64 = 1000;

/// What was dropped, of a row of the ledger, and why.
pub(super) type Kind = (RowKey, DropReason);

/// Counts drops by row and reason. A kind that was quiet for a second is forgotten: its next drop is a first one.
#[derive(Debug, Default)]
pub(super) struct Drops {
    kinds: HashMap<(RowId, DropReason), (RowKey, u64)>,
    others: u64,
    told_ms: u64,
    /// The ledger's evictions when rows were last looked up: after another one a row may be another.
    evictions: u64,
}

/// Drops since they were last told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Repeated {
    /// How often each kind came.
    pub(super) kinds: Vec<(Kind, u64)>,
    /// How often others came that were too many to be told apart.
    pub(super) others: u64,
}

impl Drops {
    /// Counts. Gives what is to be told now: the first of a kind, and what would be mistaken for another.
    pub(super) fn note(
        &mut self,
        (row, reason): (RowId, DropReason),
        count: u64,
        evictions: u64,
        key: impl FnOnce() -> RowKey,
    ) -> Vec<(Kind, u64)> {
        let mut told = Vec::new();
        if self.evictions != evictions {
            self.evictions = evictions;
            told = self.take_counts();
            self.kinds.clear();
        }
        let is_full = self.kinds.len() >= KINDS_MAX;
        match self.kinds.get_mut(&(row, reason)) {
            Some((_, counted)) => *counted += count,
            None if is_full => self.others += count,
            None => {
                let key = key();
                told.push(((key.clone(), reason), count));
                self.kinds.insert((row, reason), (key, 0));
            }
        }
        told
    }

    /// What came again, once a second.
    pub(super) fn take(&mut self, now_ms: u64) -> Repeated {
        if now_ms < self.told_ms.saturating_add(REPEATED_EVERY_MS) {
            return Repeated::default();
        }
        self.told_ms = now_ms;
        self.kinds.retain(|_, (_, count)| *count > 0);
        Repeated { kinds: self.take_counts(), others: std::mem::take(&mut self.others) }
    }

    fn take_counts(&mut self) -> Vec<(Kind, u64)> {
        let counted = self.kinds.iter_mut().filter(|(_, (_, count))| *count > 0);
        counted.map(|((_, reason), (key, count))| ((key.clone(), *reason), std::mem::take(count))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::ledger::Ledger;

    const REASON: DropReason = DropReason::SlowConsumer;

    fn key(name: &str) -> RowKey {
        RowKey { publisher: name.parse().ok(), topic: None, subscriber: None }
    }

    fn note(drops: &mut Drops, row: RowId, count: u64, evictions: u64, name: &str) -> Vec<(Kind, u64)> {
        drops.note((row, REASON), count, evictions, || key(name))
    }

    #[test]
    fn the_first_drop_is_told_at_once_and_the_others_together_once_a_second() {
        let (mut drops, row) = (Drops::default(), Ledger::default().row(key("a")));
        assert_eq!(note(&mut drops, row, 3, 0, "a"), [((key("a"), REASON), 3)]);
        assert!(note(&mut drops, row, 2, 0, "a").is_empty() && note(&mut drops, row, 5, 0, "a").is_empty());
        assert_eq!(drops.take(1000).kinds, [((key("a"), REASON), 7)]);
        assert!(note(&mut drops, row, 1, 0, "a").is_empty());
        assert_eq!(drops.take(1999), Repeated::default(), "a second has not passed");
        assert_eq!(drops.take(2000).kinds, [((key("a"), REASON), 1)]);
        assert_eq!(drops.take(3000), Repeated::default());
        assert_eq!(note(&mut drops, row, 1, 0, "a").len(), 1, "after a quiet second it is a first one again");
    }

    #[test]
    fn kinds_that_are_too_many_are_counted_together_and_nothing_is_left_out() {
        let (mut drops, mut ledger, mut told) = (Drops::default(), Ledger::default(), 0);
        for number in 0..KINDS_MAX + 100 {
            let name = format!("peer{number}");
            let row = ledger.row(key(&name));
            told += note(&mut drops, row, 2, 0, &name).iter().map(|(_, count)| count).sum::<u64>();
        }
        let repeated = drops.take(1000);
        assert_eq!((told, repeated.kinds.len(), repeated.others), (2 * KINDS_MAX as u64, 0, 200));
    }

    #[test]
    fn a_row_that_got_another_key_is_told_under_its_old_one_first() {
        let (mut drops, row) = (Drops::default(), Ledger::default().row(key("a")));
        note(&mut drops, row, 1, 0, "a");
        note(&mut drops, row, 4, 0, "a");
        let told = note(&mut drops, row, 2, 1, "b");
        assert_eq!(told, [((key("a"), REASON), 4), ((key("b"), REASON), 2)]);
    }
}
