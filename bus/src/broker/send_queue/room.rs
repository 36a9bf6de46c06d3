//! When a queue is full, and what its policy does about it.

use super::{Dropped, Item, Pushed, SendQueue, SpareChunks};
use crate::{broker::ledger::DropReason, limits, native::Overflow};

impl SendQueue {
    /// Makes room for a message of `bytes` as the policy says, or says why there is none.
    pub(super) fn make_room(
        &mut self,
        bytes: usize,
        subscriptions: &[u32],
        spare: &mut SpareChunks,
        dropped: &mut Vec<Dropped>,
    ) -> Option<Pushed> {
        if !self.is_full_for(bytes) {
            return None;
        }
        match self.overflow {
            Overflow::DropOldest => {
                while self.is_full_for(bytes) {
                    let Some(oldest) = self.drop_front(spare) else { break };
                    dropped.push(oldest);
                }
                None
            }
            // Whatever its own bounds are: what held publishers have on their way must not be lost.
            Overflow::Wait if !self.is_overrun() => None,
            Overflow::Disconnect => Some(Pushed::Disconnect),
            Overflow::DropNewest | Overflow::LatestOnly | Overflow::Wait => {
                self.losses.behind(self.behind_last(), subscriptions);
                Some(Pushed::Refused)
            }
        }
    }

    /// Whether a block of `bytes` fits only if something else goes, or somebody is held. An empty queue takes any.
    pub fn is_full_for(&self, bytes: usize) -> bool {
        self.messages > 0 && (self.messages >= self.messages_max || self.bytes + bytes > self.bytes_max)
    }

    /// Whether publishers must be held: well before the queue is full, so that what waits stays in the
    /// processor's cache.
    pub fn must_hold(&self) -> bool {
        self.overflow == Overflow::Wait
            && (self.messages >= self.messages_max || self.bytes > self.hold_bytes())
    }

    fn hold_bytes(&self) -> usize {
        self.bytes_max.min(limits::HOLD_BYTES)
    }

    fn drop_front(&mut self, spare: &mut SpareChunks) -> Option<Dropped> {
        let Some(Item::Chunk(chunk)) = self.items.front_mut() else {
            let entry = self.take_front_entry()?;
            self.losses.in_front(&entry.subscriptions);
            return Some((entry.row, entry.request, DropReason::SlowConsumer));
        };
        self.losses.in_front(&chunk.front_subscriptions());
        let run = chunk.drop_front()?;
        self.bytes -= run.bytes as usize;
        self.messages -= 1;
        self.losses.pass(1);
        self.remove_spent_front(spare);
        Some((run.row, None, DropReason::SlowConsumer))
    }

    /// A publisher was told to hold: what it has on its way will come.
    pub fn expect_overrun(&mut self) {
        self.held_publishers += 1;
    }

    /// Held publishers were released.
    pub fn forget_overruns(&mut self) {
        self.held_publishers = 0;
    }

    /// Whether more has come than publishers that obey can have had on their way when they were held.
    fn is_overrun(&self) -> bool {
        self.bytes >= self.bytes_max + self.held_publishers.max(1) * limits::OVERRUN_BYTES
    }

    /// Whether a queue for which publishers were held has room again: half of it is free.
    pub fn has_room(&self) -> bool {
        self.messages <= self.messages_max / 2 && self.bytes <= self.hold_bytes() / 2
    }
}
