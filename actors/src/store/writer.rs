//! The one thread that writes: takes what is waiting, writes it in one transaction, answers after the commit.

use std::{
    any::Any,
    cell::RefCell,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    connection::{self, FileId, Role},
    error::StoreError,
    key::DataKey,
    limits,
};

/// A piece of work for the writer. It may be applied several times before it is committed once.
pub(super) trait Work: Send + 'static {
    /// What the caller gets after the commit.
    type Output: Send + 'static;

    /// Does the work inside a transaction that somebody else begins and ends.
    fn apply(&self, site: &Site<'_>) -> Result<Self::Output, StoreError>;

    /// Rows it adds, for the chores.
    fn rows(&self) -> usize {
        0
    }
}

/// Where work is done.
pub(super) struct Site<'a> {
    pub(super) connection: &'a Connection,
    pub(super) path: &'a Path,
    /// Whether the work has the transaction to itself because doing it together with others failed.
    /// It then keeps what it can and reports what it cannot.
    pub(super) alone: bool,
    sheet: RefCell<Option<Box<dyn Sheet>>>,
}

/// What the jobs of one transaction share, so that each need not read and write it for itself: made by the first of them,
/// written before the commit, and gone with the transaction.
pub(super) trait Sheet: Any {
    fn write(&self, connection: &Connection) -> rusqlite::Result<()>;
}

impl<'a> Site<'a> {
    pub(super) fn new(connection: &'a Connection, path: &'a Path, alone: bool) -> Self {
        Self { connection, path, alone, sheet: RefCell::default() }
    }

    /// Uses the sheet, which is made first if no job of this transaction had one. There is one kind in a database.
    pub(super) fn with_sheet<S: Sheet, T>(
        &self,
        make: impl FnOnce(&Connection) -> rusqlite::Result<S>,
        using: impl FnOnce(&mut S) -> T,
    ) -> rusqlite::Result<T> {
        let mut slot = self.sheet.borrow_mut();
        let sheet = match &mut *slot {
            Some(sheet) => sheet,
            none => none.insert(Box::new(make(self.connection)?)),
        };
        let sheet: &mut dyn Any = sheet.as_mut();
        Ok(using(sheet.downcast_mut().expect("the jobs of one database share one kind of sheet")))
    }

    fn write_sheet(&self) -> rusqlite::Result<()> {
        self.sheet.borrow().as_ref().map_or(Ok(()), |sheet| sheet.write(self.connection))
    }

    /// Classifies an error of SQLite.
    pub(super) fn fail(&self, doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
        move |error| StoreError::from_sqlite(self.path, doing, error)
    }
}

/// Work that was not done: why, and the work itself.
#[derive(Debug)]
pub struct Refused<W> {
    /// Why it was not done.
    pub error: StoreError,
    /// What was to be written, unless it was lost with the writing thread.
    pub work: Option<W>,
}

impl<W> std::fmt::Display for Refused<W> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(formatter)
    }
}

impl<W: std::fmt::Debug> std::error::Error for Refused<W> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl<W> Refused<W> {
    pub(super) fn map<V>(self, convert: impl FnOnce(W) -> V) -> Refused<V> {
        Refused { error: self.error, work: self.work.map(convert) }
    }
}

/// Work with somebody waiting for it, its type forgotten.
trait Job: Send {
    fn apply(&mut self, site: &Site<'_>) -> Result<(), StoreError>;
    fn finish(self: Box<Self>, outcome: Result<(), StoreError>);
    fn rows(&self) -> usize;
}

struct Waiting<W: Work> {
    work: W,
    output: Option<W::Output>,
    reply: oneshot::Sender<Result<W::Output, Refused<W>>>,
}

impl<W: Work> Job for Waiting<W> {
    fn apply(&mut self, site: &Site<'_>) -> Result<(), StoreError> {
        self.output = Some(self.work.apply(site)?);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>) {
        let answer = match (outcome, self.output) {
            (Ok(()), Some(output)) => Ok(output),
            (Ok(()), None) => Err(Refused { error: StoreError::Closed, work: Some(self.work) }),
            (Err(error), _) => Err(Refused { error, work: Some(self.work) }),
        };
        // Nobody waits any more: the commit stands all the same.
        let _ = self.reply.send(answer);
    }

    fn rows(&self) -> usize {
        self.work.rows()
    }
}

/// Everything that can wake the writer.
pub(super) enum Command {
    Write(BoxedJob),
    /// Look at once for what is kept no longer. The mark is taken back when that begins.
    Trim(Arc<AtomicBool>),
    Close,
}

/// A job in a box, so that [`Command`] can be named without naming the trait, and its place in the queue, which is
/// free again when the writer takes the job.
pub(super) struct BoxedJob(Box<dyn Job>, OwnedSemaphorePermit);

/// The way to the writer: a bounded queue, of which a place can be waited for.
pub(super) struct Queue {
    jobs: Sender<Command>,
    places: Arc<Semaphore>,
    limit: usize,
    /// Whether a wish to trim is on its way: one is enough.
    trims: Arc<AtomicBool>,
    end: Arc<End>,
}

/// The writer's end of a [`Queue`]. When it is dropped, however the writer has ended, whoever waits is told.
pub(super) struct Commands {
    commands: Receiver<Command>,
    end: Arc<End>,
}

impl Commands {
    pub(super) fn receiver(&self) -> &Receiver<Command> {
        &self.commands
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        self.end.has_come.store(true, Ordering::SeqCst);
        self.end.refuse_rest();
    }
}

/// What comes to a writer that has ended, for example while it closed its connection, is refused: a channel keeps what
/// nobody receives, and whoever had sent it would wait for ever.
struct End {
    has_come: AtomicBool,
    rest: Receiver<Command>,
}

impl End {
    fn refuse_rest(&self) {
        for command in self.rest.try_iter() {
            if let Command::Write(BoxedJob(job, _place)) = command {
                job.finish(Err(StoreError::Closed));
            }
        }
    }

    /// To be called after something was sent: either the writer has seen it, or the end is seen here.
    fn refuse_if_come(&self) {
        if self.has_come.load(Ordering::SeqCst) {
            self.refuse_rest();
        }
    }
}

impl Queue {
    /// A queue for `limit` jobs, and its other end.
    pub(super) fn new(limit: usize) -> (Self, Commands) {
        // Two more: the wishes to close and to trim never take a job's place.
        let (jobs, commands) = crossbeam_channel::bounded(limit + 2);
        let end = Arc::new(End { has_come: AtomicBool::new(false), rest: commands.clone() });
        let queue = Self {
            jobs,
            places: Arc::new(Semaphore::new(limit)),
            limit,
            trims: Arc::default(),
            end: Arc::clone(&end),
        };
        (queue, Commands { commands, end })
    }

    /// Jobs that wait.
    pub(super) fn waiting(&self) -> usize {
        self.limit - self.places.available_permits()
    }

    /// After the jobs that are there the writer ends. Blocks while two others want the same.
    pub(super) fn close(&self) {
        if !self.end.has_come.load(Ordering::SeqCst) {
            // Never an error: the other end is held here, too.
            let _ = self.jobs.send(Command::Close);
            self.end.refuse_if_come();
        }
    }

    /// Lets the writer look for what is kept no longer, as soon as it has written what is queued.
    pub(super) fn trim(&self) {
        if !self.trims.swap(true, Ordering::Relaxed) {
            // An error says that the queue is full, and then the writer looks by itself.
            let _ = self.jobs.try_send(Command::Trim(Arc::clone(&self.trims)));
            self.end.refuse_if_come();
        }
    }

    /// Gives `work` to the writer and waits for its commit. Never blocks: a full queue refuses at once.
    pub(super) async fn submit<W: Work>(&self, work: W) -> Result<W::Output, Refused<W>> {
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => self.submit_at(place, work).await,
            Err(_) => Err(Refused { error: StoreError::QueueFull { limit: self.limit }, work: Some(work) }),
        }
    }

    /// As [`submit`](Queue::submit), but waits for a place, in the order of asking. A place comes as soon as the writer
    /// takes a job, which it does within [`limits::BUSY_LIMIT`], or when it ends.
    pub(super) async fn submit_waiting<W: Work>(&self, work: W) -> Result<W::Output, Refused<W>> {
        match Arc::clone(&self.places).acquire_owned().await {
            Ok(place) => self.submit_at(place, work).await,
            Err(_) => Err(Refused { error: StoreError::Closed, work: Some(work) }),
        }
    }

    async fn submit_at<W: Work>(
        &self,
        place: OwnedSemaphorePermit,
        work: W,
    ) -> Result<W::Output, Refused<W>> {
        let (reply, answer) = oneshot::channel();
        let job = BoxedJob(Box::new(Waiting { work, output: None, reply }), place);
        match self.jobs.try_send(Command::Write(job)) {
            Ok(()) => self.end.refuse_if_come(),
            // Whoever has a place finds the queue full only while it is being closed.
            Err(
                TrySendError::Full(Command::Write(BoxedJob(job, _)))
                | TrySendError::Disconnected(Command::Write(BoxedJob(job, _))),
            ) => job.finish(Err(StoreError::Closed)),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
        answer.await.unwrap_or(Err(Refused { error: StoreError::Closed, work: None }))
    }
}

/// A write that changes nothing, to see whether the disk takes one.
struct Probe;

impl Work for Probe {
    type Output = ();

    fn apply(&self, site: &Site<'_>) -> Result<(), StoreError> {
        site.connection
            .execute("UPDATE schema_migrations SET version = version", [])
            .map(drop)
            .map_err(site.fail("trying to write"))
    }
}

/// What a writer does of itself while nobody asks. A step is short enough for jobs to wait for it.
pub(super) trait Chores: Send + 'static {
    /// How long to wait for jobs before a step.
    fn pause(&self) -> Duration;

    /// Jobs were committed that had added so many rows.
    fn added(&mut self, rows: usize);

    /// Whether a transaction may wait a moment for those who came together before.
    fn gathers(&self) -> bool {
        false
    }

    /// Whether a step must be done although jobs may wait.
    fn is_overdue(&self) -> bool;

    /// What is kept no longer is to go now, whatever was added.
    fn begin_trim(&mut self);

    /// Does a step.
    fn step(&mut self, hand: &mut Hand);
}

/// The writing thread's own state.
pub(super) struct Writer<C> {
    // Dropped first: the connection is the last thing to go.
    chores: C,
    hand: Hand,
    /// Jobs in each of the last three transactions.
    groups: [usize; 3],
}

/// What writes: the connection, and how to get another one.
pub(super) struct Hand {
    path: PathBuf,
    key: Arc<DataKey>,
    /// `None` after an error that ends a connection; the next batch opens and probes a new one.
    connection: Option<Connection>,
    /// The file that is open. Another one in its place is opened: what is written to a file without a name is lost.
    file: FileId,
    counts: Arc<Counts>,
}

/// What the writer has done since the store was opened.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) jobs: AtomicU64,
    pub(super) commits: AtomicU64,
    pub(super) failures: AtomicU64,
    /// Failures, not of a job's own making, since something was written. A commit that had nothing to write proves nothing.
    pub(super) failed_in_a_row: AtomicU64,
    /// Woken when something was written after a failure, and when the writer has ended.
    recovered: Notify,
    ended: AtomicBool,
}

impl Counts {
    /// Waits while the store cannot write. A store that is closed is not waited for.
    pub(super) async fn writable(&self) {
        loop {
            let recovered = self.recovered.notified();
            // Registered before the look: a recovery in between is not missed.
            let mut recovered = std::pin::pin!(recovered);
            recovered.as_mut().enable();
            if self.failed_in_a_row.load(Ordering::Relaxed) == 0 || self.ended.load(Ordering::Relaxed) {
                return;
            }
            recovered.await;
        }
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.counts.ended.store(true, Ordering::Relaxed);
        self.counts.recovered.notify_waiters();
    }
}

fn unheard<W: Work>(work: W) -> Box<dyn Job> {
    Box::new(Waiting { work, output: None, reply: oneshot::channel().0 })
}

impl<C: Chores> Writer<C> {
    pub(super) fn new(hand: Hand, chores: C) -> Self {
        Self { chores, hand, groups: [0; 3] }
    }

    /// Writes until [`Command::Close`] or until nobody can ask any more. What is queued by then is written.
    /// While nothing can be written it tries again by itself, so that those who wait are told of the end of it.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        crate::log_transport::mark_thread();
        loop {
            let mut batch = Vec::new();
            let mut closing = false;
            match self.next(commands) {
                Ok(Command::Write(BoxedJob(job, _place))) => batch.push(job),
                Ok(Command::Trim(asked)) => {
                    asked.store(false, Ordering::Relaxed);
                    self.chores.begin_trim();
                    continue;
                }
                Ok(Command::Close) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout)
                    if self.hand.counts.failed_in_a_row.load(Ordering::Relaxed) > 0 =>
                {
                    batch.push(unheard(Probe));
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.chores.step(&mut self.hand);
                    continue;
                }
            }
            self.gather(commands);
            while batch.len() < limits::GROUP_JOBS_MAX {
                match commands.try_recv() {
                    Ok(Command::Write(BoxedJob(job, _place))) => batch.push(job),
                    Ok(Command::Trim(asked)) => {
                        asked.store(false, Ordering::Relaxed);
                        self.chores.begin_trim();
                    }
                    Ok(Command::Close) => {
                        closing = true;
                        break;
                    }
                    Err(_) => break,
                }
            }
            self.hand.counts.jobs.fetch_add(batch.len() as u64, Ordering::Relaxed);
            let rows = batch.iter().map(|job| job.rows()).sum::<usize>();
            self.groups = [self.groups[1], self.groups[2], batch.len()];
            self.hand.commit(batch);
            if closing {
                return;
            }
            self.chores.added(rows);
            while self.chores.is_overdue() {
                self.chores.step(&mut self.hand);
            }
        }
    }

    /// Waits while many come one after the other: whoever was answered with the last groups is on the way with the next job,
    /// and a commit for the first few of them would cost as much as one for all. Half of those who were answered are one
    /// group; the other half comes while it is written. Where few come at a time nobody waits.
    fn gather(&self, commands: &Receiver<Command>) {
        let wanted = (self.groups.iter().sum::<usize>() / 2).min(limits::GROUP_JOBS_MAX);
        if wanted < limits::GATHER_FROM || !self.chores.gathers() {
            return;
        }
        let until = Instant::now() + limits::GATHER_TIME;
        loop {
            let come = commands.len();
            if come + 1 >= wanted || Instant::now() >= until {
                return;
            }
            std::thread::sleep(limits::GATHER_STEP);
            if commands.len() == come {
                return;
            }
        }
    }

    fn next(&self, commands: &Receiver<Command>) -> Result<Command, RecvTimeoutError> {
        match self.hand.counts.failed_in_a_row.load(Ordering::Relaxed) {
            // Jobs come first: of work of its own it does a step whenever none waits.
            0 => commands.recv_timeout(self.chores.pause()),
            _ => commands.recv_timeout(limits::PROBE_EVERY),
        }
    }
}

impl Hand {
    pub(super) fn new(path: PathBuf, key: Arc<DataKey>, connection: Connection, counts: Arc<Counts>) -> Self {
        let file = connection::file_id(&path);
        Self { path, key, connection: Some(connection), file, counts }
    }

    /// One transaction for all; if the content of one is at fault, or a page that perhaps only one needs, one for each.
    fn commit(&mut self, mut batch: Vec<Box<dyn Job>>) {
        match self.transact(&mut batch, false) {
            Err(error) if error.is_about_content() || error.is_about_a_page() => {
                self.connection.take_if(|_| error.ends_connection());
                for mut job in batch {
                    let outcome = self.transact(std::slice::from_mut(&mut job), true);
                    self.judge(&outcome);
                    job.finish(outcome.map(drop));
                }
            }
            outcome => {
                self.judge(&outcome);
                let outcome = outcome.map(drop);
                batch.into_iter().for_each(|job| job.finish(outcome.clone()));
            }
        }
    }

    /// Counts an outcome, and never writes again on a connection that had an I/O error: what the system dropped of its
    /// pages then is unknown. A new one reads what is really there.
    fn judge(&mut self, outcome: &Result<Wrote, StoreError>) {
        let failed = &self.counts.failed_in_a_row;
        // Not in the event's fields: those are not evaluated where nobody listens.
        let had_failed =
            if matches!(outcome, Ok(Wrote(true))) { failed.swap(0, Ordering::Relaxed) } else { 0 };
        if had_failed > 0 {
            tracing::warn!(failed = had_failed, "the store can write again");
            self.counts.recovered.notify_waiters();
        }
        // A conversation that is not there is an answer to the caller, who knows what to do.
        if let Err(error) = outcome
            && !matches!(error, StoreError::NoSuchConversation { .. })
        {
            self.counts.failures.fetch_add(1, Ordering::Relaxed);
            if error.is_about_content() {
                // Whoever asked for the job is told; the store itself is well.
                tracing::debug!(%error, "the store refused a job");
            } else {
                // On a full disk each attempt fails: once is enough, and the end of it.
                if failed.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!(%error, "the store could not write");
                } else {
                    tracing::debug!(%error, "the store could not write");
                }
            }
            if error.ends_connection() {
                self.connection = None;
            }
        }
    }

    fn transact(&mut self, jobs: &mut [Box<dyn Job>], alone: bool) -> Result<Wrote, StoreError> {
        let began = Instant::now();
        let mut attempt = 0;
        loop {
            let outcome = self.attempt(jobs, alone);
            match outcome {
                Err(StoreError::Busy { .. }) if began.elapsed() < limits::BUSY_LIMIT => {
                    std::thread::sleep(connection::backoff(attempt));
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    fn attempt(&mut self, jobs: &mut [Box<dyn Job>], alone: bool) -> Result<Wrote, StoreError> {
        let fail = |doing, path: &Path| {
            let path = path.to_owned();
            move |error| StoreError::from_sqlite(&path, doing, error)
        };
        let (begin, end) = (fail("beginning to write", &self.path), fail("committing", &self.path));
        let file = connection::file_id(&self.path);
        if self.file != file {
            tracing::warn!(path = %self.path.display(), "another file is in the place of the database; it is opened");
            (self.connection, self.file) = (None, file);
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            gone => gone.insert(connection::open(&self.path, &self.key, Role::Writer)?),
        };
        let changes = connection.total_changes();
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(begin)?;
        let site = Site::new(&transaction, &self.path, alone);
        jobs.iter_mut().try_for_each(|job| job.apply(&site))?;
        site.write_sheet().map_err(&end)?;
        drop(site);
        if let Err(error) = transaction.commit() {
            let error = end(error);
            if !matches!(error, StoreError::Busy { .. }) {
                bury_commit(connection);
            }
            return Err(error);
        }
        self.counts.commits.fetch_add(1, Ordering::Relaxed);
        Ok(Wrote(connection.total_changes() != changes))
    }

    /// Does work in a transaction of its own. `None` if it could not be done; that is counted and told.
    pub(super) fn alone<W: Work>(&mut self, work: W) -> Option<W::Output> {
        let (reply, mut answer) = oneshot::channel();
        let mut job: Box<dyn Job> = Box::new(Waiting { work, output: None, reply });
        let outcome = self.transact(std::slice::from_mut(&mut job), true);
        self.judge(&outcome);
        job.finish(outcome.map(drop));
        answer.try_recv().ok()?.ok()
    }
}

/// Writes over what a commit that failed has left behind the end of the write-ahead log. If only its sync failed, it is there
/// as a whole, and whoever opens the database next would take it for committed, although everybody has been told that
/// nothing was stored. It is written on the same connection, which alone knows where the log ended; that it succeeds
/// means nothing.
fn bury_commit(connection: &mut Connection) {
    let buried =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(|transaction| {
            transaction.execute("UPDATE schema_migrations SET version = version", [])?;
            transaction.commit()
        });
    if let Err(error) = buried {
        tracing::debug!(%error, "what a failed commit has left could not be written over, or not be synced");
    }
}

/// Whether a commit had anything to write. One that had not succeeds on a full disk too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wrote(bool);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log_record::{Level, LogRecord},
        store::{logs, migrate},
    };

    #[test]
    fn only_what_was_written_proves_that_the_store_can_write_again() {
        let (_place, mut hand) = hand();
        let counts = Arc::clone(&hand.counts);
        let mut failed_after = |job: Box<dyn Job>| {
            hand.commit(vec![job]);
            counts.failed_in_a_row.load(Ordering::Relaxed)
        };
        let record = LogRecord::new(Level::Info, "test", "once".to_owned());
        let append = || logs::Append(vec![record.clone()]);
        assert_eq!(failed_after(unheard(append())), 0);

        counts.failed_in_a_row.store(3, Ordering::Relaxed);
        let mut writable = std::pin::pin!(counts.writable());
        let mut is_told = || futures_util::FutureExt::now_or_never(writable.as_mut()).is_some();
        assert!(!is_told());
        assert_eq!(failed_after(unheard(append())), 3, "it was there already");
        assert!(!is_told(), "nothing was written");
        assert_eq!(failed_after(unheard(Probe)), 0);
        assert!(is_told(), "whoever waits for the store is not told that it can write again");
    }

    #[test]
    fn whoever_waits_for_a_store_that_ends_is_told() {
        let (_place, hand) = hand();
        let counts = Arc::clone(&hand.counts);
        counts.failed_in_a_row.store(1, Ordering::Relaxed);
        let waiting = std::thread::spawn(move || interlock_bus::blocking::wait(counts.writable()));
        drop(hand);
        waiting.join().unwrap();
    }

    #[test]
    fn a_store_that_could_not_write_tries_again_unasked() {
        let (_place, hand) = hand();
        let counts = Arc::clone(&hand.counts);
        counts.failed_in_a_row.store(1, Ordering::Relaxed);
        let writer = Writer::new(hand, Idle);
        let (queue, commands) = Queue::new(1);
        let thread = std::thread::spawn(move || writer.run(commands.receiver()));
        interlock_bus::blocking::wait(counts.writable());
        assert_eq!(counts.failed_in_a_row.load(Ordering::Relaxed), 0);
        queue.close();
        thread.join().unwrap();
    }

    struct Idle;

    impl Chores for Idle {
        fn pause(&self) -> Duration {
            Duration::MAX
        }

        fn added(&mut self, _rows: usize) {}

        fn is_overdue(&self) -> bool {
            false
        }

        fn begin_trim(&mut self) {}

        fn step(&mut self, _hand: &mut Hand) {}
    }

    fn hand() -> (tempfile::TempDir, Hand) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.db");
        let key = DataKey::load_or_create(&place.path().join("keys"), &path).unwrap();
        connection::create_private_file(&path).unwrap();
        let mut connection = connection::open(&path, &key, Role::Writer).unwrap();
        migrate::migrate(&mut connection, &path, migrate::MIGRATIONS).unwrap();
        (place, Hand::new(path, Arc::new(key), connection, Arc::default()))
    }
}
