//! What was sent and is not credited yet, and how much of it there may be.

use super::chunk::{Run, Runs};
use crate::{broker::ledger::RowId, limits};

/// The messages in flight of one queue, oldest first, and the credit window that bounds them.
#[derive(Debug)]
pub(super) struct InFlight {
    window_bytes: u64,
    runs: Runs,
    bytes: u64,
    /// Messages sent since the queue began.
    sent: u64,
    /// Those of them that were credited.
    credited: u64,
}

impl Default for InFlight {
    fn default() -> Self {
        let (runs, window_bytes) = (Runs::default(), limits::CREDIT_WINDOW_BYTES);
        Self { window_bytes, runs, bytes: 0, sent: 0, credited: 0 }
    }
}

impl InFlight {
    #[cfg(test)]
    pub(super) fn set_window(&mut self, bytes: u64) {
        self.window_bytes = bytes;
    }

    /// Bytes that may still be sent. As long as it is not zero one message of any size may be.
    pub(super) fn room(&self) -> u64 {
        self.window_bytes.saturating_sub(self.bytes)
    }

    /// These messages were sent.
    pub(super) fn add(&mut self, run: Run) {
        self.sent += run.messages;
        self.bytes += run.bytes;
        self.runs.add(run);
    }

    /// Settles messages up to `total`; see [`SendQueue::credit`](super::SendQueue::credit).
    pub(super) fn credit(&mut self, total: u64, mut settle: impl FnMut(RowId, u64)) {
        let mut newly = total.min(self.sent).saturating_sub(self.credited);
        self.credited += newly;
        while newly > 0
            && let Some(run) = self.runs.take(newly)
        {
            settle(run.row, run.messages);
            self.bytes -= run.bytes;
            newly -= run.messages;
        }
    }

    /// Settles `messages` more.
    pub(super) fn credit_more(&mut self, messages: u64, settle: impl FnMut(RowId, u64)) {
        self.credit(self.credited + messages, settle);
    }

    /// Gives back all.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Run> {
        self.bytes = 0;
        self.runs.drain()
    }

    pub(super) fn messages(&self) -> u64 {
        self.sent - self.credited
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}
