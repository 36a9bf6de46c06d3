//! The thread that has the journal: it spills what the buffer has too much of, and reads it back for the drain.

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use interlock_bus::crypto::KEY_BYTES;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use super::{Bad, Journal};
use crate::{
    log_record::{Level, LogRecord},
    log_transport::buffer::{LogBuffer, WeakBuffer},
};

/// Orders that wait for the thread: a drain has one at a time, and one more wakes it.
const ORDERS_MAX: usize = 8;
/// Bytes of memory that one write takes from the buffer.
const SPILL_BYTES_MAX: usize = 1 << 20;

/// Gives the journal's key, which may not be there yet; or says why not.
pub type KeySource = Box<dyn Fn() -> Result<Zeroizing<[u8; KEY_BYTES]>, String> + Send>;

/// Where a journal is, and what it is sealed with.
pub struct JournalPlace {
    /// Its directory, made by the first spill.
    pub directory: PathBuf,
    /// Bytes that it may take; [`super::BYTES_MAX`] unless chosen otherwise.
    pub bytes_max: u64,
    /// Asked again until it gives one.
    pub key: KeySource,
}

impl fmt::Debug for JournalPlace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("JournalPlace").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// Why the journal takes nothing at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// Its key cannot be had.
    NoKey,
    /// It has as many bytes as it may have.
    Full,
    /// The disk has no room.
    DiskFull,
    /// The disk or the directory is read-only.
    ReadOnly,
    /// Another error of the system, by its number.
    Io(i32),
}

impl Trouble {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Self::ReadOnly,
            _ => Self::Io(error.raw_os_error().unwrap_or_default()),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey => formatter.write_str("no key"),
            Self::Full => formatter.write_str("full"),
            Self::DiskFull => formatter.write_str("disk full"),
            Self::ReadOnly => formatter.write_str("read-only"),
            Self::Io(number) => write!(formatter, "{}", io::Error::from_raw_os_error(*number)),
        }
    }
}

/// The state of a journal at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalReport {
    /// Whether its files were looked at: by the first spill, or when the way to the store is open.
    pub is_known: bool,
    /// Records on disk.
    pub records: u64,
    /// Bytes of all segments.
    pub bytes: u64,
    /// Damaged segments that are kept in quarantine.
    pub quarantined: usize,
    /// Records written since the start.
    pub spilled: u64,
    /// Records of it that were stored since the start.
    pub drained: u64,
    /// Why it takes nothing.
    pub trouble: Option<Trouble>,
}

impl fmt::Display for JournalReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_known {
            true => write!(formatter, "journal {}", self.records)?,
            false => formatter.write_str("journal not read yet")?,
        }
        if self.bytes > 0 {
            write!(formatter, " ({} KiB)", self.bytes.div_ceil(1024))?;
        }
        if self.quarantined > 0 {
            write!(formatter, ", {} damaged in quarantine", self.quarantined)?;
        }
        match self.trouble {
            Some(trouble) => write!(formatter, ", cannot be used: {trouble}"),
            None => Ok(()),
        }
    }
}

/// Records of one segment, to be sent before anything of the buffer.
#[derive(Debug)]
pub struct Batch {
    /// To be named when all of them are stored.
    pub segment: u64,
    /// In order.
    pub records: Vec<Arc<LogRecord>>,
}

enum Order {
    /// The buffer may have too much.
    Look,
    /// The oldest segment is wanted; `finished` is one whose records are stored.
    Next { finished: Option<(u64, u64)>, reply: oneshot::Sender<Option<Batch>> },
    /// Everything that waits in memory is to be written.
    SpillAll { reply: oneshot::Sender<usize> },
}

/// The way to the thread. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct JournalHandle {
    orders: mpsc::Sender<Order>,
    report: Arc<Mutex<JournalReport>>,
}

impl JournalHandle {
    /// Starts the thread for `buffer`. It ends with the buffer: what is to be saved is saved by
    /// [`spill_all`](Self::spill_all), so nobody joins it.
    pub(in crate::log_transport) fn start(buffer: &LogBuffer, place: JournalPlace) -> io::Result<Self> {
        let (orders, waiting) = mpsc::channel(ORDERS_MAX);
        let report = Arc::<Mutex<JournalReport>>::default();
        let keeper = Keeper {
            buffer: buffer.downgrade(),
            place,
            journal: None,
            report: Arc::clone(&report),
            told: None,
        };
        std::thread::Builder::new().name("log-journal".to_owned()).spawn(move || keeper.run(waiting))?;
        Ok(Self { orders, report })
    }

    /// The present counts.
    pub fn report(&self) -> JournalReport {
        *locked(&self.report)
    }

    /// Never waits: with a full queue the thread is at work, and looks at the buffer after each order.
    pub(in crate::log_transport) fn look(&self) {
        let _ = self.orders.try_send(Order::Look);
    }

    /// The oldest records, if there are any. `finished` names a segment and how many of its records were sent, all of
    /// which are stored.
    pub(in crate::log_transport) async fn next(&self, finished: Option<(u64, u64)>) -> Option<Batch> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order::Next { finished, reply }).await.ok()?;
        answer.await.ok().flatten()
    }

    /// Writes all that waits in memory; how many records that were.
    pub async fn spill_all(&self) -> usize {
        let (reply, answer) = oneshot::channel();
        match self.orders.send(Order::SpillAll { reply }).await {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_) => 0,
        }
    }
}

struct Keeper {
    buffer: WeakBuffer,
    place: JournalPlace,
    /// `None` until its key and its directory could be read.
    journal: Option<Journal>,
    report: Arc<Mutex<JournalReport>>,
    /// The trouble that was told last: each once.
    told: Option<Trouble>,
}

impl Keeper {
    fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        crate::log_transport::mark_thread();
        while let Some(order) = orders.blocking_recv() {
            let Some(buffer) = self.buffer.upgrade() else { return };
            // Told before the answer. Whoever asked may have been killed meanwhile: nothing is forgotten by an answer that
            // nobody hears.
            match order {
                Order::Look => self.try_again(&buffer),
                Order::Next { finished, reply } => {
                    let batch = self.next(&buffer, finished);
                    self.tell();
                    let _ = reply.send(batch);
                }
                Order::SpillAll { reply } => {
                    let spilled = self.spill(&buffer);
                    self.tell();
                    let _ = reply.send(spilled);
                }
            }
            if buffer.wants_spill() {
                self.spill(&buffer);
                self.tell();
            }
        }
    }

    /// The journal, opened if that is possible now.
    fn open(&mut self) -> Option<&mut Journal> {
        if self.journal.is_none() {
            let key = match (self.place.key)() {
                Ok(key) => key,
                Err(reason) => {
                    self.trouble(Trouble::NoKey, &reason);
                    return None;
                }
            };
            match Journal::open(&self.place.directory, key, self.place.bytes_max) {
                Ok(journal) => self.journal = Some(journal),
                Err(error) => {
                    self.trouble(Trouble::of(&error), &error);
                    return None;
                }
            }
        }
        self.journal.as_mut()
    }

    /// Looks whether what was in the way still is, though nothing is to be spilled: otherwise it would be told for ever.
    fn try_again(&mut self, buffer: &LogBuffer) {
        if self.told.is_none() || buffer.wants_spill() {
            return;
        }
        let Some(journal) = self.open() else { return };
        let is_full = journal.takes() != Some(Level::Trace);
        match journal.probe() {
            Ok(()) if !is_full => self.well(),
            Ok(()) => {}
            Err(error) => self.trouble(Trouble::of(&error), &error),
        }
        self.tell();
    }

    fn trouble(&mut self, trouble: Trouble, reason: &dyn fmt::Display) {
        locked(&self.report).trouble = Some(trouble);
        if self.told.replace(trouble) != Some(trouble) {
            let directory = self.place.directory.display();
            tracing::warn!(%directory, %reason, "the journal of the log cannot be used; records stay in memory");
        }
    }

    fn well(&mut self) {
        locked(&self.report).trouble = None;
        if self.told.take().is_some() {
            tracing::warn!(directory = %self.place.directory.display(), "the journal of the log can be used again");
        }
    }

    /// Moves everything that waits to the disk, as far as that takes it; how many records went.
    fn spill(&mut self, buffer: &LogBuffer) -> usize {
        let mut spilled = 0;
        loop {
            let Some(journal) = self.open() else {
                buffer.spill_refused(Vec::new(), true);
                return spilled;
            };
            let Some(least) = journal.takes() else {
                buffer.spill_refused(Vec::new(), journal.is_empty());
                self.trouble(Trouble::Full, &"it has as many bytes as it may have");
                return spilled;
            };
            let records = buffer.take_to_spill(least, SPILL_BYTES_MAX);
            if records.is_empty() {
                // With what is left the levels of less importance are meant: memory drops those when it must.
                buffer.spill_refused(Vec::new(), journal.is_empty());
                if least == Level::Trace {
                    self.well();
                } else {
                    self.trouble(Trouble::Full, &format!("it takes {least} and above only"));
                }
                return spilled;
            }
            match journal.append(&records) {
                Ok(()) => {
                    buffer.spilled(&records);
                    spilled += records.len();
                    locked(&self.report).spilled += records.len() as u64;
                }
                Err(error) => {
                    buffer.spill_refused(records, journal.is_empty());
                    self.trouble(Trouble::of(&error), &error);
                    return spilled;
                }
            }
        }
    }

    fn next(&mut self, buffer: &LogBuffer, finished: Option<(u64, u64)>) -> Option<Batch> {
        if let (Some((segment, sent)), Some(journal)) = (finished, &mut self.journal) {
            if let Err(error) = journal.finish(segment) {
                // It is sent again after the next start, and then is there already.
                tracing::warn!(segment, %error, "a segment of the log's journal cannot be removed");
            }
            locked(&self.report).drained += sent;
        }
        loop {
            let Some(journal) = self.open() else {
                buffer.journal_is_empty();
                return None;
            };
            let Some(content) = journal.next() else {
                buffer.journal_is_empty();
                return None;
            };
            match content {
                Ok(content) => {
                    let path = journal.path(content.segment);
                    content.bad.iter().for_each(|bad| buffer.add(damage(&path, bad)));
                    if !content.records.is_empty() {
                        return Some(Batch { segment: content.segment, records: content.records });
                    }
                    if let Err(error) = journal.finish(content.segment) {
                        tracing::warn!(%error, "a segment of the log's journal cannot be removed");
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "a segment of the log's journal cannot be read; it is left")
                }
            }
        }
    }

    fn tell(&mut self) {
        let Some(journal) = &self.journal else { return };
        let (records, bytes, quarantined) = (journal.records(), journal.bytes(), journal.quarantined());
        let mut report = locked(&self.report);
        report.is_known = true;
        (report.records, report.bytes, report.quarantined) = (records, bytes, quarantined);
    }
}

/// What is said in the log of a damaged stretch.
fn damage(path: &std::path::Path, bad: &Bad) -> LogRecord {
    let Bad { offset, bytes, fault } = bad;
    let message = format!(
        "the log's journal `{}` is not whole: {} at byte {offset}, {bytes} bytes; the rest is sent, the file kept in `{}`",
        path.display(),
        fault.as_str(),
        super::QUARANTINE,
    );
    let mut record = LogRecord::new(Level::Warn, "log-transport", message);
    record.target = module_path!().to_owned();
    record.fields = vec![
        ("file".to_owned(), path.display().to_string()),
        ("offset".to_owned(), offset.to_string()),
        ("bytes".to_owned(), bytes.to_string()),
    ];
    record
}

fn locked(report: &Mutex<JournalReport>) -> MutexGuard<'_, JournalReport> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}
