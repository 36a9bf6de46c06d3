//! Where the log path's own events go: standard error, bounded, never waiting, never back into the log.

use std::{
    fmt,
    io::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;

use crate::log_record::{Level, LogRecord};

/// Lines that may wait for standard error. More are counted and dropped: a pipe that nobody reads must not hold us up.
const LINES_WAITING_MAX: usize = 256;
/// Lines at once, after a quiet time.
const BURST_LINES: u32 = 100;
/// After a burst, one line in so much time. More are counted and dropped.
const LINE_EVERY: Duration = Duration::from_millis(100);
/// Bytes of one line; the rest is cut off.
const LINE_BYTES_MAX: usize = 2048;

/// The sink. Cloning is cheap; all clones write to the same place.
#[derive(Clone)]
pub struct Sink {
    shared: Arc<Shared>,
}

struct Shared {
    lines: Sender<String>,
    /// Below this level events are counted and not written.
    min_level: Level,
    rate: Mutex<Rate>,
    seen: AtomicU64,
    written: AtomicU64,
    suppressed: AtomicU64,
}

/// What became of the log path's own events. `seen == written + suppressed + below the level`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkReport {
    /// Events of the log path.
    pub seen: u64,
    /// Lines handed to standard error.
    pub written: u64,
    /// Events at or above the level that were too many.
    pub suppressed: u64,
}

impl fmt::Debug for Sink {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Sink").field(&self.report()).finish()
    }
}

impl Sink {
    /// A sink on standard error for warnings and errors.
    pub fn standard_error() -> std::io::Result<Self> {
        Self::new(Box::new(std::io::stderr()), Level::Warn)
    }

    /// A sink on any writer.
    pub fn new(mut to: Box<dyn Write + Send>, min_level: Level) -> std::io::Result<Self> {
        let (lines, waiting) = crossbeam_channel::bounded::<String>(LINES_WAITING_MAX);
        // Ends when the last clone of the sink is dropped; it owns nothing that must be saved, so nobody joins it.
        std::thread::Builder::new().name("log-sink".to_owned()).spawn(move || {
            super::mark_thread();
            for line in waiting {
                // There is no further place to report to.
                let _ = to.write_all(line.as_bytes()).and_then(|()| to.flush());
            }
        })?;
        let shared = Shared {
            lines,
            min_level,
            rate: Mutex::new(Rate::new(Instant::now())),
            seen: AtomicU64::new(0),
            written: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Counts an event below the level, or answers that it should be written.
    pub(crate) fn wants(&self, level: Level) -> bool {
        let wanted = level >= self.shared.min_level;
        if !wanted {
            self.shared.seen.fetch_add(1, Ordering::Relaxed);
        }
        wanted
    }

    /// Writes a record if it is serious enough, and counts it in any case.
    pub fn take(&self, record: &LogRecord) {
        if self.wants(record.level) {
            self.write(record);
        }
    }

    /// Writes a record as one line, or counts it.
    pub fn write(&self, record: &LogRecord) {
        let shared = &self.shared;
        shared.seen.fetch_add(1, Ordering::Relaxed);
        let allowed = shared.rate.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        let sent = allowed && shared.lines.try_send(line(record)).is_ok();
        let counter = if sent { &shared.written } else { &shared.suppressed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The present counts.
    pub fn report(&self) -> SinkReport {
        SinkReport {
            seen: self.shared.seen.load(Ordering::Relaxed),
            written: self.shared.written.load(Ordering::Relaxed),
            suppressed: self.shared.suppressed.load(Ordering::Relaxed),
        }
    }
}

/// Tokens for lines: so many at once, then one in a while.
struct Rate {
    tokens: u32,
    since: Instant,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self { tokens: BURST_LINES, since: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.since).as_millis() / LINE_EVERY.as_millis();
        if gained > 0 {
            self.tokens =
                self.tokens.saturating_add(u32::try_from(gained).unwrap_or(u32::MAX)).min(BURST_LINES);
            self.since = now;
        }
        let allowed = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        allowed
    }
}

/// One line of printable ASCII: what else a console makes of bytes is not in our hands.
fn line(record: &LogRecord) -> String {
    let mut text = format!("{} {}: {}", record.level, record.target, record.message);
    for (key, value) in &record.fields {
        text.push_str(&format!(" {key}={value}"));
    }
    let mut line = String::with_capacity(text.len() + 1);
    for character in text.chars() {
        if line.len() > LINE_BYTES_MAX {
            line.push_str("...");
            break;
        }
        match character {
            ' '..='~' => line.push(character),
            other => line.extend(other.escape_default()),
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_a_trickle() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        assert_eq!((0..1000).filter(|_| rate.take(start)).count(), BURST_LINES as usize);
        assert!(rate.take(start + LINE_EVERY));
        assert!(!rate.take(start + LINE_EVERY));
        let later = start + LINE_EVERY * 10_000;
        assert_eq!((0..1000).filter(|_| rate.take(later)).count(), BURST_LINES as usize);
    }

    #[test]
    fn a_line_is_ascii_and_bounded() {
        let mut record = LogRecord::new(Level::Error, "x", "caf\u{e9} \u{1f600}\nsecond \u{1b}[31m");
        record.fields = vec![("key".to_owned(), "v".repeat(100_000))];
        let line = line(&record);
        assert!(
            line.trim_end().bytes().all(|byte| (b' '..=b'~').contains(&byte)) && line.lines().count() == 1,
            "{line}"
        );
        assert!(line.len() < 2 * LINE_BYTES_MAX);
    }

    #[test]
    fn a_writer_that_never_takes_anything_holds_nobody_up() {
        struct Stuck(crossbeam_channel::Receiver<()>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (release, stuck) = crossbeam_channel::bounded(0);
        let sink = Sink::new(Box::new(Stuck(stuck)), Level::Trace).unwrap();
        let record = LogRecord::new(Level::Error, "x", "text");
        (0..10_000).for_each(|_| sink.write(&record));
        let report = sink.report();
        assert_eq!(report.seen, 10_000);
        assert_eq!(report.written + report.suppressed, 10_000);
        assert!(report.written <= u64::from(BURST_LINES) + LINES_WAITING_MAX as u64);
        drop(release);
    }
}
