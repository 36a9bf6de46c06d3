//! What topics had in each of the last seconds. Sparse: a second in which a topic had nothing takes no room.
//!
//! Invariants: seconds rise; a second is there as a whole or not at all; never more than
//! [`limits::HISTORY_BYTES`], for which the oldest seconds are forgotten.

use std::collections::VecDeque;

use super::delay::{Delay, ShortDelay};
use crate::limits;

/// What one topic had in one second, or in several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Messages.
    pub messages: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// How long they took to the broker; `None` if none of them said when it was published.
    pub delay: Option<Delay>,
}

/// As it is kept, in 16 bytes: there are fewer topics than 2^16, and messages of a second do not reach 2^32, nor their
/// bytes 2^48.
#[derive(Debug)]
struct Entry {
    topic: u16,
    bytes_high: u16,
    bytes_low: u32,
    messages: u32,
    delay: ShortDelay,
}

const _: () = assert!(limits::TOPICS_TRACKED_MAX <= 1 << 16 && size_of::<Entry>() == 16);

impl Entry {
    fn new(topic: u32, Bucket { messages, bytes, delay }: Bucket) -> Self {
        let bytes = bytes.min((1 << 48) - 1);
        Self {
            topic: topic as u16,
            bytes_high: (bytes >> 32) as u16,
            bytes_low: bytes as u32,
            messages: u32::try_from(messages).unwrap_or(u32::MAX),
            delay: delay.into(),
        }
    }

    fn bucket(&self) -> Bucket {
        Bucket {
            messages: self.messages.into(),
            bytes: u64::from(self.bytes_high) << 32 | u64::from(self.bytes_low),
            delay: self.delay.into(),
        }
    }
}

/// Entries there is room for.
const ENTRIES_MAX: usize = limits::HISTORY_BYTES / size_of::<Entry>();

/// The last seconds of all topics.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Of all seconds, oldest first.
    entries: VecDeque<Entry>,
    /// Each second and how many of the entries are its own.
    seconds: VecDeque<(u64, u32)>,
    /// The first second that was not forgotten for want of room.
    complete_from: u64,
}

impl History {
    /// Adds a second, which is later than all before it.
    pub(super) fn add(&mut self, second: u64, counts: impl ExactSizeIterator<Item = (u32, Bucket)>) {
        while let Some((oldest, _)) = self.seconds.front().copied() {
            let is_old = oldest + limits::HISTORY_SECONDS <= second;
            let is_full = self.entries.len() + counts.len() > ENTRIES_MAX;
            if !is_old && !is_full {
                break;
            }
            self.forget_oldest();
            if !is_old {
                self.complete_from = oldest + 1;
            }
        }
        if counts.len() > 0 {
            self.seconds.push_back((second, counts.len() as u32));
        }
        let needed = self.entries.len() + counts.len();
        if needed > self.entries.capacity() {
            // Doubled, and never beyond the budget.
            let wanted = (2 * self.entries.capacity()).clamp(needed, ENTRIES_MAX.max(needed));
            self.entries.reserve_exact(wanted - self.entries.len());
        }
        self.entries.extend(counts.map(|(topic, bucket)| Entry::new(topic, bucket)));
    }

    fn forget_oldest(&mut self) {
        if let Some((_, count)) = self.seconds.pop_front() {
            self.entries.drain(..count as usize);
        }
    }

    /// Shows what each topic had in each second from `from` on and before `until`.
    pub(super) fn each(&self, from: u64, until: u64, act: &mut impl FnMut(u64, u32, Bucket)) {
        let first = self.seconds.partition_point(|(second, _)| *second < from);
        let later: usize = self.seconds.range(first..).map(|(_, count)| *count as usize).sum();
        let mut entries = self.entries.range(self.entries.len() - later..);
        for (second, count) in self.seconds.range(first..).take_while(|(second, _)| *second < until) {
            for entry in entries.by_ref().take(*count as usize) {
                act(*second, entry.topic.into(), entry.bucket());
            }
        }
    }

    /// The first second of which nothing was forgotten for want of room.
    pub(super) fn complete_from(&self) -> u64 {
        self.complete_from
    }

    #[cfg(test)]
    pub(super) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.seconds.capacity() * size_of::<(u64, u32)>()
    }
}
