//! Where log records wait: bounded by count and bytes, in order, the levels that matter kept longest.

#[cfg(test)]
mod tests;

use std::{
    collections::{HashSet, VecDeque},
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

use tokio::sync::Notify;
use uuid::Uuid;

use super::{
    captured::{Captured, RandomBytes},
    journal::{JournalHandle, JournalPlace, JournalReport},
};
use crate::log_record::{Level, LogRecord};

/// Records that wait unless chosen otherwise: some minutes of a talkative start.
pub const RECORDS_MAX: usize = 65_536;
/// Bytes that wait unless chosen otherwise.
pub const BYTES_MAX: usize = 16 << 20;

/// What part of the bounds may be in memory when there is a journal; beyond, all that waits is spilled.
const SPILL_PART: usize = 4;
/// Records after which a journal that took nothing is asked again.
const SPILL_AGAIN_RECORDS: u64 = 1024;

const LEVELS: usize = Level::ALL.len();
/// Entries taken out under one lock: whoever logs waits for so many moves, some microseconds, once in so many records.
const TAKEN_AT_ONCE: usize = 256;

/// The buffer between the layer and the drain. Cloning is cheap; all clones are the same buffer.
///
/// - Adding never waits: it takes a lock that is never held across I/O. What does not fit is
///   counted by level and leaves one summary record when the next window is taken.
/// - Lower levels make room: when it is full, the oldest record of the lowest level goes, if that is
///   lower than the new one's; otherwise the new one goes.
/// - Taking hands out a window, and then the next one; what is handed out stays under way until it is
///   [settled](LogBuffer::settle), or [handed out again](LogBuffer::send_again): records under way are never dropped.
/// - With a [journal](LogBuffer::attach_journal), a quarter of the bounds is kept in memory; what is more goes to the disk,
///   and nothing is handed out while older records are there.
#[derive(Clone)]
pub struct LogBuffer {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Becomes [`LogRecord::run`].
    run: u64,
    /// Under way, in order. Locked before the state, if both are. The first [`State::sent`] are handed out.
    window: Mutex<Vec<Arc<LogRecord>>>,
    /// Woken when something may be taken.
    added: Notify,
    journal: OnceLock<JournalHandle>,
    records_max: usize,
    bytes_max: usize,
}

#[derive(Default)]
struct State {
    /// One queue for each level.
    queues: [VecDeque<Waiting>; LEVELS],
    last_number: u64,
    /// In the queues and under way.
    records: usize,
    bytes: usize,
    /// Of those under way, the first ones, which are handed out and not settled.
    sent: usize,
    overload: Option<Overload>,
    /// Whether older records are, or may be, in the journal.
    journaled: bool,
    /// Whether the journal was told that there is too much.
    spill_asked: bool,
    /// Records accepted before it is told again.
    spill_again_at: u64,
    accepted: u64,
    flushed: u64,
    spilled: u64,
    dropped: [u64; LEVELS],
}

/// An entry in its queue, with what is asked of it under the lock.
struct Waiting {
    /// Becomes [`LogRecord::number`]; the order over all queues.
    number: u64,
    bytes: usize,
    entry: Entry,
}

/// An event as it was raised, or a record that somebody made.
enum Entry {
    // In a box, so that a growing queue moves little while somebody waits to log.
    Captured(Box<Captured>),
    Made(Box<LogRecord>),
}

impl Entry {
    fn level(&self) -> Level {
        match self {
            Self::Captured(captured) => captured.level(),
            Self::Made(record) => record.level,
        }
    }

    fn time_ns(&self) -> u64 {
        match self {
            Self::Captured(captured) => captured.time_ns,
            Self::Made(record) => record.time_ns,
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Captured(captured) => captured.memory_bytes(),
            Self::Made(record) => record.memory_bytes(),
        }
    }

    fn into_record(self, random: &mut RandomBytes) -> LogRecord {
        match self {
            Self::Captured(captured) => captured.into_record(random),
            Self::Made(record) => *record,
        }
    }
}

/// What was dropped since the last summary record.
struct Overload {
    counts: [u64; LEVELS],
    first_ns: u64,
    last_ns: u64,
}

/// The state of a buffer at one instant. `accepted == flushed + spilled + waiting + dropped`, summary records aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BufferReport {
    /// Records given to the buffer, dropped ones included.
    pub accepted: u64,
    /// Records whose storing was confirmed.
    pub flushed: u64,
    /// Records that went to the journal.
    pub spilled: u64,
    /// Records in the buffer, under way included.
    pub waiting: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Records dropped because of overload, by level, the least important first.
    pub dropped: [u64; LEVELS],
}

impl BufferReport {
    /// Records dropped at any level.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }
}

/// A buffer that others hold.
pub(super) struct WeakBuffer(Weak<Shared>);

impl WeakBuffer {
    pub(super) fn upgrade(&self) -> Option<LogBuffer> {
        self.0.upgrade().map(|shared| LogBuffer { shared })
    }
}

impl Default for LogBuffer {
    fn default() -> Self {
        Self::new(RECORDS_MAX, BYTES_MAX)
    }
}

impl fmt::Debug for LogBuffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("LogBuffer").field(&self.report()).finish()
    }
}

impl LogBuffer {
    /// A buffer for so many records and bytes.
    pub fn new(records_max: usize, bytes_max: usize) -> Self {
        // SQLite's integers are signed; zero means unknown.
        let run = (u64::from_le_bytes(interlock_bus::crypto::random()) >> 1).max(1);
        let shared = Shared {
            state: Mutex::default(),
            run,
            window: Mutex::default(),
            added: Notify::new(),
            journal: OnceLock::new(),
            records_max,
            bytes_max,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Gives it a journal on disk, once. What an earlier run left there is sent first.
    ///
    /// # Errors
    /// The journal's thread cannot be started.
    pub fn attach_journal(&self, place: JournalPlace) -> io::Result<()> {
        let handle = JournalHandle::start(self, place)?;
        self.state().journaled = true;
        // A second one is dropped, and its thread ends.
        let _ = self.shared.journal.set(handle);
        self.shared.added.notify_one();
        Ok(())
    }

    /// The way to its journal.
    pub fn journal(&self) -> Option<&JournalHandle> {
        self.shared.journal.get()
    }

    /// Lets the journal look whether it can be used again.
    pub(super) fn look_at_journal(&self) {
        if let Some(journal) = self.journal() {
            journal.look();
        }
    }

    /// The counts of its journal.
    pub fn journal_report(&self) -> Option<JournalReport> {
        self.journal().map(JournalHandle::report)
    }

    /// Adds a record, or counts it as dropped. Gives it run and number.
    pub fn add(&self, record: LogRecord) {
        self.push(Entry::Made(Box::new(record)));
    }

    /// Adds an event, or counts it as dropped.
    pub(super) fn capture(&self, captured: Captured) {
        self.push(Entry::Captured(Box::new(captured)));
    }

    fn push(&self, entry: Entry) {
        let (records_max, bytes_max) = (self.shared.records_max, self.shared.bytes_max);
        let (level, bytes) = (entry.level(), entry.memory_bytes());
        // Dropped after the lock is.
        let mut evicted = Vec::new();
        let mut state = self.state();
        state.accepted += 1;
        let number = state.number();
        let fits = |state: &State| state.records < records_max && state.bytes + bytes <= bytes_max;
        while !fits(&state) {
            match state.evict_below(level) {
                Some(victim) => evicted.push(victim),
                None => break,
            }
        }
        let was_idle = !state.has_unsent();
        if fits(&state) {
            state.records += 1;
            state.bytes += bytes;
            state.queues[index(level)].push_back(Waiting { number, bytes, entry });
        } else {
            state.count_drop(&entry);
            evicted.push(entry);
        }
        let look = self.has_too_much(&state) && !std::mem::replace(&mut state.spill_asked, true);
        drop(state);
        // Whoever waits for something to take waits only while there is nothing.
        if was_idle {
            self.shared.added.notify_one();
        }
        if look && let Some(journal) = self.journal() {
            journal.look();
        }
    }

    fn has_too_much(&self, state: &State) -> bool {
        let over = state.records >= self.shared.records_max / SPILL_PART
            || state.bytes >= self.shared.bytes_max / SPILL_PART;
        over && state.accepted >= state.spill_again_at && self.shared.journal.get().is_some()
    }

    /// The oldest records that are not handed out, at most so many and so many bytes (but at least one).
    pub fn window(&self, records_max: usize, bytes_max: usize) -> Vec<Arc<LogRecord>> {
        let mut under_way = self.under_way();
        let sent = self.state().sent;
        if under_way.len() == sent && !self.is_journaled() {
            let mut next = Vec::new();
            self.fill(&mut next, Level::Trace, records_max, bytes_max);
            under_way.append(&mut next);
        }
        let mut bytes = 0;
        let window: Vec<_> = under_way[sent..]
            .iter()
            .take(records_max)
            .take_while(|record| {
                let is_first = bytes == 0;
                bytes += record.memory_bytes();
                is_first || bytes <= bytes_max
            })
            .cloned()
            .collect();
        self.state().sent += window.len();
        window
    }

    /// Everything under way is handed out again, the oldest first.
    pub fn send_again(&self) {
        let _under_way = self.under_way();
        self.state().sent = 0;
        self.shared.added.notify_one();
    }

    /// Makes records of the oldest entries at or above `least`, and one of what was dropped.
    fn fill(&self, records: &mut Vec<Arc<LogRecord>>, least: Level, records_max: usize, bytes_max: usize) {
        let (mut bytes, mut random) = (0, RandomBytes::new());
        while records.len() < records_max {
            let wanted = (records_max - records.len()).min(TAKEN_AT_ONCE);
            let taken = self.state().take(least, wanted, &mut bytes, bytes_max);
            if taken.is_empty() {
                break;
            }
            let before: usize = taken.iter().map(|waiting| waiting.bytes).sum();
            // Here and not under the lock: this is most of the work.
            let made = taken.into_iter().map(|Waiting { number, entry, .. }| {
                Arc::new(LogRecord { run: self.shared.run, number, ..entry.into_record(&mut random) })
            });
            let first = records.len();
            records.extend(made);
            let after: usize = records[first..].iter().map(|record| record.memory_bytes()).sum();
            let mut state = self.state();
            state.bytes = state.bytes + after - before;
        }
        let mut state = self.state();
        if let Some(overload) = state.overload.take() {
            let mut summary = overload.summary();
            (summary.run, summary.number) = (self.shared.run, state.number());
            state.records += 1;
            state.bytes += summary.memory_bytes();
            records.push(Arc::new(summary));
        }
    }

    /// Removes what of a window is not in `missing`; how many. The others stay under way, handed out.
    pub fn settle(&self, window: &[Arc<LogRecord>], missing: &HashSet<Uuid>) -> usize {
        let done: HashSet<Uuid> =
            window.iter().map(|record| record.id).filter(|id| !missing.contains(id)).collect();
        let mut under_way = self.under_way();
        let (done, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *under_way).into_iter().partition(|record| done.contains(&record.id));
        *under_way = kept;
        let mut state = self.state();
        // None of it is handed out if all was to be sent again meanwhile.
        state.sent = state.sent.saturating_sub(done.len());
        state.forget(&done);
        state.flushed += done.len() as u64;
        done.len()
    }

    /// Whether a window that was handed out is under way still. The journal takes all that is, to hand it out again.
    pub(super) fn is_under_way(&self, window: &[Arc<LogRecord>]) -> bool {
        let under_way = self.under_way();
        window.first().is_some_and(|first| under_way.iter().any(|record| Arc::ptr_eq(record, first)))
    }

    /// Whether the journal should take what waits.
    pub(super) fn wants_spill(&self) -> bool {
        self.state().spill_asked
    }

    /// The oldest records at or above `least` for the journal, what is under way first; none are handed out meanwhile.
    pub(super) fn take_to_spill(&self, least: Level, bytes_max: usize) -> Vec<Arc<LogRecord>> {
        let mut under_way = self.under_way();
        let mut state = self.state();
        (state.journaled, state.sent) = (true, 0);
        drop(state);
        let mut records = std::mem::take(&mut *under_way);
        if records.is_empty() {
            self.fill(&mut records, least, usize::MAX, bytes_max);
        }
        records
    }

    /// These are on disk.
    pub(super) fn spilled(&self, records: &[Arc<LogRecord>]) {
        let mut state = self.state();
        state.forget(records);
        state.spilled += records.len() as u64;
    }

    /// The journal did not take these, and is or is not empty now. It is asked again later.
    pub(super) fn spill_refused(&self, records: Vec<Arc<LogRecord>>, journal_is_empty: bool) {
        let mut state = self.state();
        state.spill_asked = false;
        state.spill_again_at = state.accepted + SPILL_AGAIN_RECORDS;
        state.take_back(records.into_iter().map(Arc::unwrap_or_clone).collect());
        state.journaled = !journal_is_empty;
        drop(state);
        self.shared.added.notify_one();
    }

    /// All that was in the journal is stored: memory has the oldest records.
    pub(super) fn journal_is_empty(&self) {
        self.state().journaled = false;
        self.shared.added.notify_one();
    }

    /// Whether older records may be in the journal.
    pub fn is_journaled(&self) -> bool {
        self.state().journaled
    }

    pub(super) fn downgrade(&self) -> WeakBuffer {
        WeakBuffer(Arc::downgrade(&self.shared))
    }

    /// Everything that waits in memory, in order, when nobody drains any more. It counts as flushed.
    pub fn take_rest(&self) -> Vec<LogRecord> {
        let mut under_way = self.under_way();
        let mut rest = std::mem::take(&mut *under_way);
        self.state().sent = 0;
        self.fill(&mut rest, Level::Trace, usize::MAX, usize::MAX);
        let mut state = self.state();
        state.forget(&rest);
        state.flushed += rest.len() as u64;
        drop(state);
        rest.into_iter().map(Arc::unwrap_or_clone).collect()
    }

    /// Takes back what [`take_rest`](Self::take_rest) gave.
    pub fn give_back(&self, records: Vec<LogRecord>) {
        let mut state = self.state();
        state.flushed -= records.len() as u64;
        state.records += records.len();
        state.bytes += records.iter().map(LogRecord::memory_bytes).sum::<usize>();
        state.take_back(records);
    }

    /// Waits until there is something to hand out, or something in the journal.
    pub async fn readable(&self) {
        while !self.state().has_unsent() {
            self.shared.added.notified().await;
        }
    }

    /// Whether there is nothing to take, here or in the journal.
    pub fn is_empty(&self) -> bool {
        let state = self.state();
        state.records == 0 && state.overload.is_none() && !state.journaled
    }

    /// The present counts.
    pub fn report(&self) -> BufferReport {
        let state = self.state();
        BufferReport {
            accepted: state.accepted,
            flushed: state.flushed,
            spilled: state.spilled,
            waiting: state.records,
            bytes: state.bytes,
            dropped: state.dropped,
        }
    }

    // Nothing inside of either lock panics half way; one poisoned from elsewhere still guards whole values.
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn under_way(&self) -> MutexGuard<'_, Vec<Arc<LogRecord>>> {
        self.shared.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether there is something that is not handed out, or something in the journal.
    fn has_unsent(&self) -> bool {
        self.records > self.sent || self.overload.is_some() || self.journaled
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// These are no longer ours.
    fn forget(&mut self, records: &[Arc<LogRecord>]) {
        self.records -= records.len();
        self.bytes -= records.iter().map(|record| record.memory_bytes()).sum::<usize>();
    }

    /// Back to where they came from: they are older than all that waits at their level.
    fn take_back(&mut self, records: Vec<LogRecord>) {
        for record in records.into_iter().rev() {
            let (number, bytes, level) = (record.number, record.memory_bytes(), index(record.level));
            let entry = Entry::Made(Box::new(record));
            self.queues[level].push_front(Waiting { number, bytes, entry });
        }
    }

    /// The level from `least` whose first record is the oldest of all that wait.
    fn oldest_level(&self, least: Level) -> Option<usize> {
        let fronts = self.queues.iter().enumerate().skip(index(least));
        fronts.filter_map(|(level, queue)| Some((queue.front()?.number, level))).min().map(|(_, level)| level)
    }

    /// Takes the oldest entries, at most so many, as long as `bytes` stay below `bytes_max`; but one if there is one.
    fn take(
        &mut self,
        least: Level,
        entries_max: usize,
        bytes: &mut usize,
        bytes_max: usize,
    ) -> Vec<Waiting> {
        let mut taken = Vec::with_capacity(entries_max);
        while taken.len() < entries_max {
            let Some(level) = self.oldest_level(least) else { break };
            let size = self.queues[level].front().map_or(0, |waiting| waiting.bytes);
            if *bytes + size > bytes_max && *bytes > 0 {
                break;
            }
            *bytes += size;
            taken.extend(self.queues[level].pop_front());
        }
        taken
    }

    /// Drops the oldest waiting record of the lowest level, if that is lower than `level`.
    fn evict_below(&mut self, level: Level) -> Option<Entry> {
        let lowest = (0..index(level)).find(|level| !self.queues[*level].is_empty())?;
        let Waiting { bytes, entry, .. } = self.queues[lowest].pop_front()?;
        self.records -= 1;
        self.bytes -= bytes;
        self.count_drop(&entry);
        Some(entry)
    }

    fn count_drop(&mut self, entry: &Entry) {
        let (level, time_ns) = (index(entry.level()), entry.time_ns());
        self.dropped[level] += 1;
        let overload = self.overload.get_or_insert(Overload {
            counts: [0; LEVELS],
            first_ns: time_ns,
            last_ns: time_ns,
        });
        overload.counts[level] += 1;
        overload.first_ns = overload.first_ns.min(time_ns);
        overload.last_ns = overload.last_ns.max(time_ns);
    }
}

impl Overload {
    fn summary(&self) -> LogRecord {
        let time = |ns: u64| {
            jiff::Timestamp::from_nanosecond(ns.into())
                .map_or_else(|_| ns.to_string(), |time| time.to_string())
        };
        let total: u64 = self.counts.iter().sum();
        let message = format!(
            "{total} log records dropped between {} and {}: the log buffer was full",
            time(self.first_ns),
            time(self.last_ns),
        );
        let mut record = LogRecord::new(Level::Warn, "log-transport", message);
        record.target = module_path!().to_owned();
        record.fields = Level::ALL
            .into_iter()
            .filter(|level| self.counts[index(*level)] > 0)
            .map(|level| (format!("dropped_{level}"), self.counts[index(level)].to_string()))
            .collect();
        record
    }
}

fn index(level: Level) -> usize {
    level as usize - 1
}
