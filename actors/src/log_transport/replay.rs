//! What of the journal is being sent.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use uuid::Uuid;

use super::{
    drain::{WINDOW_BYTES_MAX, WINDOW_RECORDS_MAX},
    journal::Batch,
};
use crate::log_record::LogRecord;

/// Records of the journal on their way.
pub(super) struct Replay {
    pub(super) segment: u64,
    pub(super) records: u64,
    waiting: VecDeque<Arc<LogRecord>>,
    window: Vec<Arc<LogRecord>>,
}

impl Replay {
    pub(super) fn new(batch: Batch) -> Self {
        let Batch { segment, records } = batch;
        Self { segment, records: records.len() as u64, waiting: records.into(), window: Vec::new() }
    }

    /// The same until it is settled.
    pub(super) fn window(&mut self) -> Vec<Arc<LogRecord>> {
        let mut bytes = 0;
        while self.window.len() < WINDOW_RECORDS_MAX && bytes < WINDOW_BYTES_MAX {
            let Some(record) = self.waiting.pop_front() else { break };
            bytes += record.memory_bytes();
            self.window.push(record);
        }
        self.window.clone()
    }

    pub(super) fn settle(&mut self, missing: &HashSet<Uuid>) -> usize {
        let before = self.window.len();
        self.window.retain(|record| missing.contains(&record.id));
        before - self.window.len()
    }

    pub(super) fn is_done(&self) -> bool {
        self.window.is_empty() && self.waiting.is_empty()
    }
}
