//! The drain: empties the buffer over the bus, when the gate says so, and forgets a record only when it is stored.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use interlock_bus::{
    Client, Header, Payload, PublishError, RequestError, SubscribeError, TopicName,
    client::{Event as BusEvent, LinkState, PublishOptions, SubscribeOptions, Subscription},
};
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    buffer::{BufferReport, LogBuffer},
    gate::{Fact, Gate, Phase, Step},
    journal::{Batch, JournalReport},
    path::OnLogPath,
};
use crate::{
    log_record::{Confirm, Confirmed, ConsumerState, Level, LogRecord, Probe, ProbeAnswer},
    topics,
};

/// Records sent before the consumer is asked to confirm them.
const WINDOW_RECORDS_MAX: usize = 1024;
/// Bytes of them; a fraction of what a subscription may queue at the broker.
const WINDOW_BYTES_MAX: usize = 1 << 20;
/// How long the consumer may take to answer. Then it counts as lost and everything is proven again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
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
        write!(formatter, "{phase}; flushed {flushed}, dropped {dropped}, waiting {}", buffer.waiting)?;
        journal.map_or(Ok(()), |journal| write!(formatter, ", {journal}"))
    }
}

/// Records of the journal on their way.
struct Replay {
    segment: u64,
    records: u64,
    waiting: VecDeque<Arc<LogRecord>>,
    window: Vec<Arc<LogRecord>>,
}

impl Replay {
    fn new(batch: Batch) -> Self {
        let Batch { segment, records } = batch;
        Self { segment, records: records.len() as u64, waiting: records.into(), window: Vec::new() }
    }

    /// The same until it is settled.
    fn window(&mut self) -> Vec<Arc<LogRecord>> {
        let mut bytes = 0;
        while self.window.len() < WINDOW_RECORDS_MAX && bytes < WINDOW_BYTES_MAX {
            let Some(record) = self.waiting.pop_front() else { break };
            bytes += record.memory_bytes();
            self.window.push(record);
        }
        self.window.clone()
    }

    fn settle(&mut self, missing: &HashSet<Uuid>) -> usize {
        let before = self.window.len();
        self.window.retain(|record| missing.contains(&record.id));
        before - self.window.len()
    }

    fn is_done(&self) -> bool {
        self.window.is_empty() && self.waiting.is_empty()
    }
}

/// What a piece of work under way ended in. At most one is under way.
enum Outcome {
    Listening(Result<Subscription, SubscribeError>),
    Probe(Uuid, Result<ProbeAnswer, RequestError>),
    Flush(Uuid, Result<HashSet<Uuid>, FlushError>),
    Journal(Option<Batch>),
}

enum FlushError {
    Publish(PublishError),
    Ask(RequestError),
}

type Operation = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Everything that can wake the drain.
enum Event {
    Stop,
    Link(LinkState),
    Announcement(Option<BusEvent>),
    Done(Outcome),
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
        let state = self.link.borrow_and_update().clone();
        self.on_link(state)?;
        let mut reported = None;
        loop {
            let now = self.report();
            if reported != Some(now.phase) || now.buffer.waiting == 0 {
                reported = Some(now.phase);
                report(now);
            }
            if self.stopping
                && (self.buffer.is_empty() || matches!(now.phase, Phase::NoLink | Phase::Waiting))
            {
                return Ok(());
            }
            match self.next_event(stop.as_mut()).await {
                Event::Stop => self.on_stop(),
                Event::Link(state) => self.on_link(state)?,
                Event::Announcement(event) => self.on_announcement(event),
                Event::Done(outcome) => self.on_outcome(outcome)?,
                Event::Readable => self.flush(),
            }
        }
    }

    /// Waits for one event. Listed by priority: what ends or closes comes before what sends.
    async fn next_event(&mut self, stop: Pin<&mut impl Future<Output = ()>>) -> Event {
        let may_flush = self.operation.is_none() && matches!(self.gate.phase(), Phase::Open { .. });
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
            Outcome::Flush(consumer, answer) => self.on_flush(consumer, answer)?,
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

    fn on_flush(
        &mut self,
        consumer: Uuid,
        answer: Result<HashSet<Uuid>, FlushError>,
    ) -> Result<(), DrainError> {
        let settled = match answer {
            Ok(missing) => match &mut self.replay {
                Some(replay) => replay.settle(&missing),
                None => match self.buffer.settle(&missing) {
                    // What was under way went to the journal meanwhile, and comes again from there.
                    0 if missing.is_empty() => return Ok(()),
                    settled => settled,
                },
            },
            Err(
                FlushError::Ask(RequestError::Disconnected)
                | FlushError::Publish(PublishError::NotConnected { .. } | PublishError::Unconfirmed { .. }),
            ) => return Ok(()),
            Err(FlushError::Ask(error @ (RequestError::Denied { .. } | RequestError::TooLarge { .. }))) => {
                return Err(DrainError::Ask(error));
            }
            Err(FlushError::Ask(error)) => {
                tracing::warn!(%error, "the log consumer did not confirm; its records will be sent again");
                self.learn(Fact::ConsumerLost { consumer });
                // A consumer that died is nobody's fault here; one that is alive and does not see the records is.
                if !matches!(error, RequestError::TimedOut { .. }) {
                    return Ok(());
                }
                0
            }
            Err(FlushError::Publish(error)) => return Err(DrainError::Publish(error)),
        };
        self.fruitless_windows = if settled > 0 { 0 } else { self.fruitless_windows + 1 };
        if self.fruitless_windows >= FRUITLESS_WINDOWS_MAX {
            return Err(DrainError::Fruitless);
        }
        self.report_opening();
        Ok(())
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
        let message = format!("log gate opened: flushed {flushed}, dropped {dropped}, journal {journal}");
        let mut record = LogRecord::new(Level::Info, "log-transport", message);
        record.target = module_path!().to_owned();
        record.fields = vec![("openings".to_owned(), self.gate.openings().to_string())];
        self.buffer.add(record);
    }

    /// Tells the gate and does what follows.
    fn learn(&mut self, fact: Fact) {
        match self.gate.learn(fact, Uuid::now_v7()) {
            Step::Stay => {}
            Step::Hold => {
                self.operation = None;
                self.announcements = None;
            }
            Step::Listen => self.operation = Some(Box::pin(listen(self.client.clone()))),
            Step::Probe(id) => self.operation = Some(Box::pin(probe(self.client.clone(), id))),
            Step::Flush => self.opened_with = Some(self.report()),
        }
    }

    fn flush(&mut self) {
        let Phase::Open { consumer } = self.gate.phase() else { return };
        let finished =
            self.replay.take_if(|replay| replay.is_done()).map(|replay| (replay.segment, replay.records));
        let window = match &mut self.replay {
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
        if !window.is_empty() {
            self.operation = Some(Box::pin(flush(self.client.clone(), consumer, window)));
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

async fn listen(client: Client) -> Outcome {
    let filter = topics::filter(topics::LOG_CONSUMER_STATE);
    Outcome::Listening(client.subscribe(&filter, SubscribeOptions::default()).await)
}

async fn probe(client: Client, probe: Uuid) -> Outcome {
    Outcome::Probe(probe, ask(&client, topics::LOG_CONSUMER_PROBE, &Probe { probe }).await)
}

async fn flush(client: Client, consumer: Uuid, window: Vec<Arc<LogRecord>>) -> Outcome {
    Outcome::Flush(consumer, send(&client, consumer, &window).await)
}

/// Publishes a window in order and asks which of it did not arrive.
async fn send(
    client: &Client,
    consumer: Uuid,
    window: &[Arc<LogRecord>],
) -> Result<HashSet<Uuid>, FlushError> {
    let Some((last, others)) = window.split_last() else { return Ok(HashSet::new()) };
    for record in others {
        let (topic, payload, options) = message(record);
        client.publish_waiting(&topic, payload, &options).await.map_err(FlushError::Publish)?;
    }
    let (topic, payload, options) = message(last);
    match client.publish_acknowledged(&topic, payload, options.clone()).await {
        Ok(_) => {}
        // No room for the question; the answer to the confirmation will do.
        Err(PublishError::Full { payload } | PublishError::Held { payload, .. }) => {
            client.publish_waiting(&topic, payload, &options).await.map_err(FlushError::Publish)?;
        }
        Err(error) => return Err(FlushError::Publish(error)),
    }
    let ids = window.iter().map(|record| record.id).collect();
    let confirmed: Confirmed = ask(client, topics::LOG_CONSUMER_CONFIRM, &Confirm { consumer, ids })
        .await
        .map_err(FlushError::Ask)?;
    Ok(confirmed.missing.into_iter().collect())
}

/// A record as it goes over the bus: JSON, so that every watcher of `logs/#` can read it.
fn message(record: &LogRecord) -> (TopicName, Payload, PublishOptions) {
    let topic = record.topic().parse().unwrap_or_else(|_| topics::topic("logs/unknown/info"));
    // A record is made of strings and numbers, so it has a form in JSON; a text about it is better than none.
    let payload = Payload::json(record).unwrap_or_else(|_| Payload::text(record.message.clone()));
    let header = Header { id: record.id, ..Header::for_payload(&payload) };
    (topic, payload, PublishOptions { header: Some(header), ..PublishOptions::default() })
}

async fn ask<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
    client: &Client,
    topic: &'static str,
    question: &Q,
) -> Result<A, RequestError> {
    let topic = topics::topic(topic);
    let failed = |code: &str, text: String| RequestError::Failed { code: code.to_owned(), text };
    let payload = Payload::json(question).map_err(|error| failed("codec", error.to_string()))?;
    let answer = client.request(&topic, payload, ANSWER_TIMEOUT).await?;
    answer.decode().map_err(|error| failed("bad_answer", error.to_string()))
}
