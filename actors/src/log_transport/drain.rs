//! The drain: empties the buffer over the bus, when the gate says so, and forgets a record only when it is stored.

use std::{collections::HashSet, fmt, future::Future, pin::Pin, sync::Arc};

use futures_util::{StreamExt, stream::FuturesOrdered};
use interlock_bus::{
    Client, PublishError, RequestError, SubscribeError,
    client::{Event as BusEvent, LinkState, Subscription},
};
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    buffer::{BufferReport, LogBuffer},
    gate::{Fact, Gate, Phase, Step},
    journal::{Batch, JournalReport},
    path::OnLogPath,
    replay::Replay,
    sending,
};
use crate::log_record::{Confirmed, ConsumerState, Level, LogRecord, ProbeAnswer};

/// Records sent before the consumer is asked to confirm them.
pub(super) const WINDOW_RECORDS_MAX: usize = 1024;
/// Bytes of them; a fraction of what a subscription may queue at the broker.
pub(super) const WINDOW_BYTES_MAX: usize = 1 << 20;
/// Windows sent and not yet confirmed: some travel while one is written. The journal's go one by one.
const WINDOWS_MAX: usize = 4;
/// Windows in a row of which nothing was stored. Then the drain fails, so that its supervisor slows it down.
const FRUITLESS_WINDOWS_MAX: u32 = 3;

/// Why a drain cannot go on. What was not confirmed is still in the buffer, for the next one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DrainError {
    /// The client will make no further session.
    #[error("the session of the log transport has ended: {reason}")]
    Closed {
        /// Why.
        reason: String,
    },
    /// The broker does not let us hear of the log consumer.
    #[error("cannot hear of the log consumer: {0}")]
    Listen(#[source] SubscribeError),
    /// The broker does not let us ask the log consumer.
    #[error("cannot ask the log consumer: {0}")]
    Ask(#[source] RequestError),
    /// A record cannot be published.
    #[error("cannot publish log records: {0}")]
    Publish(#[source] PublishError),
    /// The consumer answers, but what is sent to it does not arrive.
    #[error(
        "log records are published, but the log consumer stores none of them; see `bus why` for `logs/#`"
    )]
    Fruitless,
}

/// Where a drain stands; its text is the component's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// How much of the way is proven.
    pub phase: Phase,
    /// What became of the records.
    pub buffer: BufferReport,
    /// What is on disk; `None` without a journal.
    pub journal: Option<JournalReport>,
}

impl DrainReport {
    /// Records whose storing was confirmed, from memory and from the journal.
    pub fn flushed(&self) -> u64 {
        self.buffer.flushed + self.journal.map_or(0, |journal| journal.drained)
    }
}

impl fmt::Display for DrainReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { phase, buffer, journal } = self;
        let (flushed, dropped) = (self.flushed(), buffer.dropped_total());
        let sends_old =
            matches!(phase, Phase::Open { .. }) && journal.is_some_and(|journal| journal.records > 0);
        let draining = if sends_old { "; draining the journal" } else { "" };
        write!(
            formatter,
            "{phase}{draining}; flushed {flushed}, dropped {dropped}, waiting {}",
            buffer.waiting
        )?;
        journal.map_or(Ok(()), |journal| write!(formatter, ", {journal}"))
    }
}

/// Records that are sent together and confirmed together.
struct Sent {
    /// The incarnation that they were sent to.
    consumer: Uuid,
    records: Vec<Arc<LogRecord>>,
}

/// What a piece of work under way ended in. At most one is under way, beside confirmations.
enum Outcome {
    Listening(Result<Subscription, SubscribeError>),
    Probe(Uuid, Result<ProbeAnswer, RequestError>),
    Published(Sent, Result<(), PublishError>),
    Journal(Option<Batch>),
}

type Operation = Pin<Box<dyn Future<Output = Outcome> + Send>>;
type Answer = Result<Confirmed, RequestError>;
type Confirmation = Pin<Box<dyn Future<Output = (Sent, Answer)> + Send>>;

/// Everything that can wake the drain.
enum Event {
    Stop,
    Link(LinkState),
    Announcement(Option<BusEvent>),
    Done(Outcome),
    Confirmed(Sent, Answer),
    Readable,
}

/// Empties one buffer over one client. See [`run`](Drain::run).
pub struct Drain {
    client: Client,
    buffer: LogBuffer,
    gate: Gate,
    link: watch::Receiver<LinkState>,
    announcements: Option<Subscription>,
    operation: Option<Operation>,
    /// Of windows that are published, in order.
    confirmations: FuturesOrdered<Confirmation>,
    /// Whether something under way is missing; it is sent again, and what came after it, when all has been answered.
    again: bool,
    /// What of the journal is being sent. One that is not finished is read again by the next drain.
    replay: Option<Replay>,
    fruitless_windows: u32,
    stopping: bool,
    /// Counts when the gate opened, until what had gathered by then is flushed and reported.
    opened_with: Option<DrainReport>,
}

impl fmt::Debug for Drain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Drain")
            .field("gate", &self.gate)
            .field("buffer", &self.buffer)
            .finish_non_exhaustive()
    }
}

impl Drain {
    /// A drain of `buffer` over `client`. One at a time for each buffer.
    pub fn new(client: Client, buffer: LogBuffer) -> Self {
        let link = client.watch();
        Self {
            client,
            buffer,
            gate: Gate::default(),
            link,
            announcements: None,
            operation: None,
            confirmations: FuturesOrdered::new(),
            again: false,
            replay: None,
            fruitless_windows: 0,
            stopping: false,
            opened_with: None,
        }
    }

    /// Drains until `stop` ends; then until the buffer is empty or nobody is there to take it.
    ///
    /// `report` is called whenever the phase changes or the buffer has been emptied.
    ///
    /// # Errors
    /// [`DrainError`]; a new drain goes on where this one stopped.
    pub async fn run(
        self,
        report: impl FnMut(DrainReport),
        stop: impl Future<Output = ()>,
    ) -> Result<(), DrainError> {
        OnLogPath::new(self.run_marked(report, stop)).await
    }

    async fn run_marked(
        mut self,
        mut report: impl FnMut(DrainReport),
        stop: impl Future<Output = ()>,
    ) -> Result<(), DrainError> {
        let mut stop = std::pin::pin!(stop);
        // What a drain before this one had under way.
        self.send_again();
        let state = self.link.borrow_and_update().clone();
        self.on_link(state)?;
        let mut reported = None;
        loop {
            let now = self.report();
            if reported != Some(now.phase) || now.buffer.waiting == 0 {
                reported = Some(now.phase);
                report(now);
            }
            let is_over = self.buffer.is_empty()
                || self.buffer.is_journaled()
                || matches!(now.phase, Phase::NoLink | Phase::Waiting);
            if self.stopping && is_over {
                return Ok(());
            }
            match self.next_event(stop.as_mut()).await {
                Event::Stop => self.on_stop(),
                Event::Link(state) => self.on_link(state)?,
                Event::Announcement(event) => self.on_announcement(event),
                Event::Done(outcome) => self.on_outcome(outcome)?,
                Event::Confirmed(sent, answer) => self.on_confirmed(&sent, answer)?,
                Event::Readable => self.flush(),
            }
        }
    }

    /// Waits for one event. Listed by priority: what ends or closes comes before what sends.
    async fn next_event(&mut self, stop: Pin<&mut impl Future<Output = ()>>) -> Event {
        let windows_max =
            if self.again || self.replay.is_some() || self.buffer.is_journaled() { 1 } else { WINDOWS_MAX };
        let may_flush = self.operation.is_none()
            && self.confirmations.len() < windows_max
            && matches!(self.gate.phase(), Phase::Open { .. });
        let announcement = async {
            match &mut self.announcements {
                Some(subscription) => subscription.next().await,
                None => std::future::pending().await,
            }
        };
        let done = async {
            match &mut self.operation {
                Some(operation) => operation.await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            biased;
            () = stop, if !self.stopping => Event::Stop,
            changed = self.link.changed() => match changed {
                Ok(()) => Event::Link(self.link.borrow_and_update().clone()),
                Err(_) => Event::Link(LinkState::Closed),
            },
            event = announcement => Event::Announcement(event),
            Some((sent, answer)) = self.confirmations.next() => Event::Confirmed(sent, answer),
            outcome = done => Event::Done(outcome),
            () = self.buffer.readable(), if may_flush => Event::Readable,
        };
        if matches!(event, Event::Done(_)) {
            self.operation = None;
        }
        event
    }

    /// From now on an empty buffer ends the drain, and so does a consumer that is not there when asked once more.
    fn on_stop(&mut self) {
        self.stopping = true;
        if self.gate.phase() == Phase::Waiting {
            // Its announcement may be on the way to us.
            self.learn(Fact::ConsumerReady { consumer: Uuid::nil() });
        }
    }

    fn on_link(&mut self, state: LinkState) -> Result<(), DrainError> {
        match state {
            LinkState::Ready => {
                // A watch tells the last state only: this may be another session than the one before.
                self.learn(Fact::LinkLost);
                self.learn(Fact::LinkReady);
            }
            LinkState::Closed => {
                let reason = self.client.closed_reason().unwrap_or_else(|| "it was closed".to_owned());
                return Err(DrainError::Closed { reason });
            }
            _ => self.learn(Fact::LinkLost),
        }
        Ok(())
    }

    fn on_announcement(&mut self, event: Option<BusEvent>) {
        match event {
            Some(BusEvent::Message(message)) => match message.decode::<ConsumerState>() {
                Ok(ConsumerState { consumer, ready: true }) => self.learn(Fact::ConsumerReady { consumer }),
                Ok(ConsumerState { consumer, ready: false }) => {
                    self.learn(Fact::ConsumerStopping { consumer })
                }
                Err(error) => {
                    tracing::warn!(origin = %message.origin, %error, "an announcement of the log consumer cannot be read")
                }
            },
            // What was announced meanwhile is unknown; treat it as news of somebody, which is answered by a probe.
            Some(BusEvent::Gap { .. }) => self.learn(Fact::ConsumerReady { consumer: Uuid::nil() }),
            // The link has ended for good; its state says so and why.
            None => self.announcements = None,
        }
    }

    fn on_outcome(&mut self, outcome: Outcome) -> Result<(), DrainError> {
        match outcome {
            Outcome::Listening(Ok(subscription)) => {
                self.announcements = Some(subscription);
                self.learn(Fact::Listening);
            }
            // The link was lost; its state tells when to begin again.
            Outcome::Listening(Err(SubscribeError::NotConnected { .. })) => {}
            Outcome::Listening(Err(error)) => return Err(DrainError::Listen(error)),
            Outcome::Probe(probe, answer) => self.on_probe(probe, answer)?,
            Outcome::Published(sent, outcome) => self.on_published(sent, outcome)?,
            Outcome::Journal(batch) => {
                self.replay = batch.map(Replay::new);
                self.report_opening();
            }
        }
        Ok(())
    }

    fn on_probe(&mut self, probe: Uuid, answer: Result<ProbeAnswer, RequestError>) -> Result<(), DrainError> {
        match answer {
            Ok(answer) => self.learn(Fact::ProbeReturned { probe: answer.probe, consumer: answer.consumer }),
            Err(RequestError::Disconnected) => {}
            Err(RequestError::ServerGone | RequestError::TimedOut { .. }) => {
                self.learn(Fact::ProbeLost { probe })
            }
            Err(RequestError::NoResponders { .. }) => self.learn(Fact::ProbeRefused { probe }),
            // The consumer was asked in the moment of its end.
            Err(RequestError::Failed { .. }) => self.learn(Fact::ProbeRefused { probe }),
            Err(error) => return Err(DrainError::Ask(error)),
        }
        Ok(())
    }

    fn on_published(&mut self, sent: Sent, outcome: Result<(), PublishError>) -> Result<(), DrainError> {
        match outcome {
            Ok(()) => {
                let ids = sent.records.iter().map(|record| record.id).collect();
                let answer = sending::confirm(self.client.clone(), sent.consumer, ids);
                self.confirmations.push_back(Box::pin(async move { (sent, answer.await) }));
            }
            // The link was lost; its state tells when to begin again.
            Err(PublishError::NotConnected { .. } | PublishError::Unconfirmed { .. }) => self.send_again(),
            Err(error) => return Err(DrainError::Publish(error)),
        }
        Ok(())
    }

    fn on_confirmed(&mut self, sent: &Sent, answer: Answer) -> Result<(), DrainError> {
        let settled = match answer {
            Ok(Confirmed { missing, consumer }) => {
                let missing: HashSet<Uuid> = missing.into_iter().collect();
                // What went to the journal meanwhile comes again from there.
                let is_gone = self.replay.is_none() && !self.buffer.is_under_way(&sent.records);
                let settled = match &mut self.replay {
                    Some(replay) => replay.settle(&missing),
                    None => self.buffer.settle(&sent.records, &missing),
                };
                self.again |= !missing.is_empty();
                if self.again && self.confirmations.is_empty() {
                    self.send_again();
                }
                let is_another = consumer != sent.consumer && !consumer.is_nil();
                if is_another {
                    // It does not take what was sent to the one before; its path is to be proven.
                    self.learn(Fact::ConsumerReady { consumer });
                }
                if settled == 0 && (is_another || is_gone) {
                    return Ok(());
                }
                settled
            }
            Err(RequestError::Disconnected) => {
                self.send_again();
                return Ok(());
            }
            Err(error @ (RequestError::Denied { .. } | RequestError::TooLarge { .. })) => {
                return Err(DrainError::Ask(error));
            }
            Err(error) => {
                tracing::warn!(%error, "the log consumer did not confirm; its records will be sent again");
                self.send_again();
                self.learn(Fact::ConsumerLost { consumer: sent.consumer });
                // A consumer that died is nobody's fault here; one that is alive and does not see the records is.
                if !matches!(error, RequestError::TimedOut { .. }) {
                    return Ok(());
                }
                0
            }
        };
        self.fruitless_windows = if settled > 0 { 0 } else { self.fruitless_windows + 1 };
        if self.fruitless_windows >= FRUITLESS_WINDOWS_MAX {
            return Err(DrainError::Fruitless);
        }
        self.report_opening();
        Ok(())
    }

    /// Whatever is under way is sent again, from its beginning; answers that are still to come are of no use then.
    fn send_again(&mut self) {
        self.confirmations.clear();
        self.again = false;
        self.buffer.send_again();
    }

    /// Once what had gathered before an opening is flushed, one record says how much that was.
    fn report_opening(&mut self) {
        let now = self.report();
        if now.buffer.waiting > 0 || self.replay.is_some() || self.buffer.is_journaled() {
            return;
        }
        let Some(before) = self.opened_with.take() else { return };
        let (flushed, dropped) = (now.flushed() - before.flushed(), now.buffer.dropped_total());
        let drained = |report: &DrainReport| report.journal.map_or(0, |journal| journal.drained);
        let journal = drained(&now) - drained(&before);
        let message =
            format!("log path has caught up: flushed {flushed}, dropped {dropped}, journal {journal}");
        let mut record = LogRecord::new(Level::Info, "log-transport", message);
        record.target = module_path!().to_owned();
        record.fields = vec![("openings".to_owned(), self.gate.openings().to_string())];
        self.buffer.add(record);
    }

    /// Tells the gate and does what follows.
    fn learn(&mut self, fact: Fact) {
        let before = self.gate.phase();
        let step = self.gate.learn(fact, Uuid::now_v7());
        let after = self.gate.phase();
        if before.proven() != after.proven() || matches!(after, Phase::Waiting) && before != after {
            self.tell_transition(before, after);
        }
        if matches!(step, Step::Hold | Step::Listen | Step::Probe(_)) {
            self.send_again();
        }
        match step {
            Step::Stay => {}
            Step::Hold => {
                self.operation = None;
                self.announcements = None;
            }
            Step::Listen => {
                let listen = sending::listen(self.client.clone());
                self.operation = Some(Box::pin(async { Outcome::Listening(listen.await) }));
            }
            Step::Probe(id) => {
                let probe = sending::probe(self.client.clone(), id);
                self.operation = Some(Box::pin(async move { Outcome::Probe(id, probe.await) }));
            }
            Step::Flush => self.opened_with = Some(self.report()),
        }
    }

    /// Each transition is in the log, once there is a way for it.
    fn tell_transition(&self, before: Phase, after: Phase) {
        let level = if matches!(before, Phase::Open { .. }) { Level::Warn } else { Level::Info };
        let mut record = LogRecord::new(level, "log-transport", format!("log path {after}"));
        record.target = module_path!().to_owned();
        let facts = ["broker_up", "connected", "consumer_subscribed", "probe_back"].into_iter();
        record.fields = facts
            .zip(after.proven())
            .map(|(fact, is_proven)| (fact.to_owned(), is_proven.to_string()))
            .collect();
        self.buffer.add(record);
    }

    fn flush(&mut self) {
        let Phase::Open { consumer } = self.gate.phase() else { return };
        let finished =
            self.replay.take_if(|replay| replay.is_done()).map(|replay| (replay.segment, replay.records));
        let records = match &mut self.replay {
            Some(replay) => replay.window(),
            None if (finished.is_some() || self.buffer.is_journaled())
                && let Some(journal) = self.buffer.journal().cloned() =>
            {
                let next = async move { Outcome::Journal(journal.next(finished).await) };
                self.operation = Some(Box::pin(next));
                return;
            }
            None => self.buffer.window(WINDOW_RECORDS_MAX, WINDOW_BYTES_MAX),
        };
        if !records.is_empty() {
            let client = self.client.clone();
            self.operation = Some(Box::pin(async move {
                let outcome = sending::publish(client, consumer, &records).await;
                Outcome::Published(Sent { consumer, records }, outcome)
            }));
        }
    }

    fn report(&self) -> DrainReport {
        DrainReport {
            phase: self.gate.phase(),
            buffer: self.buffer.report(),
            journal: self.buffer.journal_report(),
        }
    }
}
