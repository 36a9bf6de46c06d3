//! Where log records wait: bounded by count and bytes, in order, the levels that matter kept longest.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use uuid::Uuid;

use super::captured::{Captured, RandomBytes};
use crate::log_record::{Level, LogRecord};

/// Records that wait unless chosen otherwise: some minutes of a talkative start.
pub const RECORDS_MAX: usize = 65_536;
/// Bytes that wait unless chosen otherwise.
pub const BYTES_MAX: usize = 16 << 20;

const LEVELS: usize = Level::ALL.len();
/// Entries taken out under one lock: whoever logs waits for so many moves, some microseconds, once in so many records.
const TAKEN_AT_ONCE: usize = 256;

/// The buffer between the layer and the drain. Cloning is cheap; all clones are the same buffer.
///
/// - Adding never waits: it takes a lock that is never held across I/O. What does not fit is
///   counted by level and leaves one summary record when the next window is taken.
/// - Lower levels make room: when it is full, the oldest record of the lowest level goes, if that is
///   lower than the new one's; otherwise the new one goes.
/// - Taking hands out a window, which stays the same until it is [settled](LogBuffer::settle):
///   records under way are never dropped.
#[derive(Clone)]
pub struct LogBuffer {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Becomes [`LogRecord::run`].
    run: u64,
    /// Under way, in order. Locked before the state, if both are.
    window: Mutex<Vec<Arc<LogRecord>>>,
    /// Woken when something may be taken.
    added: Notify,
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
    overload: Option<Overload>,
    accepted: u64,
    flushed: u64,
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

/// The state of a buffer at one instant. `accepted == flushed + waiting + dropped`, summary records aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BufferReport {
    /// Records given to the buffer, dropped ones included.
    pub accepted: u64,
    /// Records whose storing was confirmed.
    pub flushed: u64,
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
            records_max,
            bytes_max,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Adds a record, or counts it as dropped.
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
        let was_empty = state.records == 0 && state.overload.is_none();
        if fits(&state) {
            state.records += 1;
            state.bytes += bytes;
            state.queues[index(level)].push_back(Waiting { number, bytes, entry });
        } else {
            state.count_drop(&entry);
            evicted.push(entry);
        }
        drop(state);
        // Whoever waits for something to take waits only while there is nothing.
        if was_empty {
            self.shared.added.notify_one();
        }
    }

    /// The oldest records, at most so many and so many bytes (but at least one). The same ones again
    /// until they are [settled](Self::settle).
    pub fn window(&self, records_max: usize, bytes_max: usize) -> Vec<Arc<LogRecord>> {
        let mut window = self.under_way();
        if window.is_empty() {
            let (mut bytes, mut random) = (0, RandomBytes::new());
            while window.len() < records_max {
                let wanted = (records_max - window.len()).min(TAKEN_AT_ONCE);
                let taken = self.state().take(wanted, &mut bytes, bytes_max);
                if taken.is_empty() {
                    break;
                }
                let before: usize = taken.iter().map(|waiting| waiting.bytes).sum();
                // Here and not under the lock: this is most of the work.
                let records = taken.into_iter().map(|Waiting { number, entry, .. }| {
                    Arc::new(LogRecord { run: self.shared.run, number, ..entry.into_record(&mut random) })
                });
                let first = window.len();
                window.extend(records);
                let after: usize = window[first..].iter().map(|record| record.memory_bytes()).sum();
                let mut state = self.state();
                state.bytes = state.bytes + after - before;
            }
            let mut state = self.state();
            if let Some(overload) = state.overload.take() {
                let mut summary = overload.summary();
                (summary.run, summary.number) = (self.shared.run, state.number());
                state.records += 1;
                state.bytes += summary.memory_bytes();
                window.push(Arc::new(summary));
            }
        }
        window.clone()
    }

    /// Removes what is under way and not in `missing`; those stay the window. How many were removed.
    pub fn settle(&self, missing: &HashSet<Uuid>) -> usize {
        let mut window = self.under_way();
        let (kept, done): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *window).into_iter().partition(|record| missing.contains(&record.id));
        *window = kept;
        let bytes = done.iter().map(|record| record.memory_bytes()).sum::<usize>();
        let mut state = self.state();
        state.records -= done.len();
        state.bytes -= bytes;
        state.flushed += done.len() as u64;
        done.len()
    }

    /// Everything that is left, in order, when nobody drains any more. It counts as flushed.
    pub fn take_rest(&self) -> Vec<LogRecord> {
        let mut rest = Vec::new();
        loop {
            let window = self.window(usize::MAX, usize::MAX);
            if window.is_empty() {
                return rest;
            }
            self.settle(&HashSet::new());
            rest.extend(
                window
                    .into_iter()
                    .map(|record| Arc::try_unwrap(record).unwrap_or_else(|shared| (*shared).clone())),
            );
        }
    }

    /// Waits until there is something to take.
    pub async fn readable(&self) {
        while self.is_empty() {
            self.shared.added.notified().await;
        }
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        let state = self.state();
        state.records == 0 && state.overload.is_none()
    }

    /// The present counts.
    pub fn report(&self) -> BufferReport {
        let state = self.state();
        BufferReport {
            accepted: state.accepted,
            flushed: state.flushed,
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
    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// The level whose first record is the oldest of all that wait.
    fn oldest_level(&self) -> Option<usize> {
        let fronts = self.queues.iter().enumerate();
        fronts.filter_map(|(level, queue)| Some((queue.front()?.number, level))).min().map(|(_, level)| level)
    }

    /// Takes the oldest entries, at most so many, as long as `bytes` stay below `bytes_max`; but one if there is one.
    fn take(&mut self, entries_max: usize, bytes: &mut usize, bytes_max: usize) -> Vec<Waiting> {
        let mut taken = Vec::with_capacity(entries_max);
        while taken.len() < entries_max {
            let Some(level) = self.oldest_level() else { break };
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(level: Level, text: &str) -> LogRecord {
        LogRecord::new(level, "test", text)
    }

    fn texts(window: &[Arc<LogRecord>]) -> Vec<&str> {
        window.iter().map(|record| record.message.as_str()).collect()
    }

    #[test]
    fn records_come_out_in_the_order_in_which_they_went_in_whatever_their_level() {
        let buffer = LogBuffer::default();
        for (text, level) in
            [("a", Level::Info), ("b", Level::Error), ("c", Level::Trace), ("d", Level::Info)]
        {
            buffer.add(record(level, text));
        }
        assert_eq!(texts(&buffer.window(3, usize::MAX)), ["a", "b", "c"]);
        assert_eq!(
            texts(&buffer.window(9, usize::MAX)),
            ["a", "b", "c"],
            "a window is the same until it is settled"
        );
        let b = buffer.window(9, usize::MAX)[1].id;
        assert_eq!(buffer.settle(&HashSet::from([b])), 2);
        assert_eq!(texts(&buffer.window(9, usize::MAX)), ["b"], "what is missing goes first again");
        buffer.settle(&HashSet::new());
        assert_eq!(texts(&buffer.window(9, usize::MAX)), ["d"]);
        buffer.settle(&HashSet::new());
        assert!(buffer.is_empty() && buffer.window(9, 9).is_empty());
    }

    #[test]
    fn overload_drops_the_lowest_levels_first_and_leaves_one_summary() {
        let buffer = LogBuffer::new(3, usize::MAX);
        let add = |text, level| buffer.add(record(level, text));
        add("d1", Level::Debug);
        add("i1", Level::Info);
        add("d2", Level::Debug);
        add("d3", Level::Debug); // the newest of equals goes
        add("w1", Level::Warn); // d1 makes room
        add("e1", Level::Error); // d2 makes room
        add("e2", Level::Error); // i1 makes room
        add("t1", Level::Trace); // nothing is lower
        let window = buffer.window(9, usize::MAX);
        assert_eq!(texts(&window[..3]), ["w1", "e1", "e2"]);
        let summary = &window[3];
        assert!(summary.message.starts_with("5 log records dropped between "), "{}", summary.message);
        let counts: Vec<_> = summary.fields.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(counts, ["dropped_trace=1", "dropped_debug=3", "dropped_info=1"]);
        assert_eq!(buffer.report().dropped_total(), 5);
        buffer.settle(&HashSet::new());
        assert!(buffer.is_empty(), "the summary is made once");
    }

    #[test]
    fn bytes_are_bounded_and_what_is_under_way_is_never_dropped() {
        let one = record(Level::Info, &"x".repeat(1000)).memory_bytes();
        let buffer = LogBuffer::new(usize::MAX, 2 * one);
        buffer.add(record(Level::Info, &"a".repeat(1000)));
        buffer.add(record(Level::Info, &"b".repeat(1000)));
        let under_way = buffer.window(9, usize::MAX);
        buffer.add(record(Level::Error, &"c".repeat(1000)));
        assert_eq!(buffer.window(9, usize::MAX).len(), under_way.len());
        assert_eq!(buffer.report().dropped_total(), 1);
        assert!(buffer.report().bytes <= 2 * one);
    }

    #[test]
    fn a_window_is_bounded_in_bytes_but_holds_at_least_one_record() {
        let buffer = LogBuffer::default();
        (0..3).for_each(|_| buffer.add(record(Level::Info, &"x".repeat(5000))));
        assert_eq!(buffer.window(9, 1).len(), 1);
        buffer.settle(&HashSet::new());
        assert_eq!(buffer.window(9, 12_000).len(), 2);
        assert_eq!(buffer.take_rest().len(), 2);
    }

    #[test]
    fn a_drain_that_waits_is_woken_by_the_first_record() {
        let buffer = LogBuffer::default();
        let adder = buffer.clone();
        let thread = std::thread::spawn(move || adder.add(record(Level::Info, "x")));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(buffer.readable());
        assert_eq!(buffer.report().waiting, 1);
        thread.join().unwrap();
    }

    proptest! {
        #[test]
        fn every_record_is_flushed_waiting_or_dropped(
            steps in prop::collection::vec((0..8usize, 0..200usize), 1..200),
            records_max in 1..20usize,
            bytes_max in 500..20_000usize,
        ) {
            let buffer = LogBuffer::new(records_max, bytes_max);
            let (mut added, mut seen, mut summaries) = (0, Vec::new(), 0u64);
            for (kind, size) in steps {
                match kind {
                    0..5 => {
                        buffer.add(record(Level::ALL[kind], &format!("{added:06}{}", "x".repeat(size))));
                        added += 1;
                    }
                    5..7 => {
                        let window = buffer.window(size % 7 + 1, size * 10);
                        summaries += window.iter().filter(|record| record.component == "log-transport").count() as u64;
                        seen.extend(window.iter().filter(|record| record.component == "test").map(|record| record.message[..6].to_owned()));
                        buffer.settle(&HashSet::new());
                    }
                    _ => drop(buffer.window(3, 1000)),
                }
                let report = buffer.report();
                // Summary records pass through the window only.
                prop_assert!(report.waiting <= records_max + 1);
                let window_summaries = buffer.under_way().iter().filter(|record| record.component == "log-transport").count() as u64;
                prop_assert_eq!(
                    report.accepted + summaries + window_summaries,
                    report.flushed + report.waiting as u64 + report.dropped_total()
                );
            }
            prop_assert!(seen.is_sorted(), "{:?}", seen);
        }
    }
}
