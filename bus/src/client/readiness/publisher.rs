//! The gated publisher: the handle, and the thread that drives its gate.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use futures_util::{FutureExt, future::try_join_all};
use serde_json::json;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::{
    Proof, WaitError,
    buffer::{Buffer, GateOverflow},
    gate::{Fact, Gate, Need, Phase, Round, Step},
    question_topic,
    receivers::{Change, Receivers},
    report::{Flush, GateReport, GateState},
    send_probe,
};
use crate::{
    blocking,
    client::{Client, LinkState, PublishOptions, lane::lock},
    envelope::{Header, Message, Payload},
    error::{PublishError, RequestError},
    limits,
    peer::PeerName,
    topic::TopicName,
};

/// What a gated publisher needs and holds.
#[derive(Clone, Debug)]
pub struct GateOptions {
    needs: Vec<Need>,
    messages_max: usize,
    bytes_max: usize,
    overflow: GateOverflow,
    first: u64,
}

impl Default for GateOptions {
    fn default() -> Self {
        Self {
            needs: Vec::new(),
            messages_max: limits::GATE_MESSAGES,
            bytes_max: limits::GATE_BYTES,
            overflow: GateOverflow::Refuse,
            first: 1,
        }
    }
}

impl GateOptions {
    /// These options, needing `peer` to be proven: a probe must come back through its application.
    #[must_use]
    pub fn needs(mut self, peer: PeerName) -> Self {
        self.needs.push(Need { peer, proof: Proof::Proven });
        self
    }

    /// These options, needing `peer` to subscribe: for stock sockets, which answer no probe. What is in their queue
    /// counts as taken.
    #[must_use]
    pub fn needs_subscribed(mut self, peer: PeerName) -> Self {
        self.needs.push(Need { peer, proof: Proof::Subscribed });
        self
    }

    /// These options with bounds of their own for what is held.
    #[must_use]
    pub fn buffer(mut self, messages_max: usize, bytes_max: usize) -> Self {
        (self.messages_max, self.bytes_max) = (messages_max, bytes_max);
        self
    }

    /// These options with another policy for a full buffer.
    #[must_use]
    pub fn overflow(mut self, overflow: GateOverflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// These options with a sequence that goes on where an earlier publisher of the topic stood, so that a gap tells
    /// consumers how many messages died with it.
    #[must_use]
    pub fn first_sequence(mut self, first: u64) -> Self {
        self.first = first;
        self
    }
}

/// A message that is held until it was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its message id, the same however often it is sent.
    pub id: Uuid,
    /// Its place in the stream.
    pub sequence: u64,
}

/// Why a gated publisher did not accept a message, or cannot say that all were taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// The buffer is full: a consumer is not there, or is slower than this publisher.
    #[error(
        "the gate of `{topic}` holds {messages} messages of {bytes} bytes and is full ({state}); wait with `publish_waiting`, or see `bus gates` for the consumer that is missing"
    )]
    Full {
        /// The topic.
        topic: TopicName,
        /// What was to be published.
        payload: Payload,
        /// Messages held.
        messages: usize,
        /// Their bytes.
        bytes: usize,
        /// Where the gate stands.
        state: &'static str,
    },
    /// The payload is above its limit.
    #[error("message is {bytes} bytes long; the limit is {limit} bytes")]
    TooLarge {
        /// What was to be published.
        payload: Payload,
        /// Its size.
        bytes: usize,
        /// [`limits::PAYLOAD_BYTES_MAX`].
        limit: usize,
    },
    /// The broker refuses it. It is asked once more because of this call.
    #[error("the gate of `{topic}` is refused: {reason}")]
    Refused {
        /// The topic.
        topic: TopicName,
        /// What was to be published.
        payload: Payload,
        /// What the broker says.
        reason: String,
    },
    /// The client has ended, or the publisher.
    #[error("the gate of `{topic}` is closed: {reason}; {unsent} messages are not known to be taken")]
    Closed {
        /// The topic.
        topic: TopicName,
        /// What was to be published; empty if nothing was.
        payload: Payload,
        /// Why.
        reason: String,
        /// Messages that were accepted and never confirmed.
        unsent: usize,
    },
    /// It needs nobody.
    #[error(
        "a gate needs at least one consumer; name it with `GateOptions::needs`, or publish without a gate"
    )]
    NeedsNobody,
    /// The system gave no thread.
    #[error("the gate's thread cannot start: {0}")]
    Thread(String),
}

impl GateError {
    /// The payload that was not accepted.
    /// `None` if the error has none.
    pub fn into_payload(self) -> Option<Payload> {
        match self {
            Self::Full { payload, .. }
            | Self::TooLarge { payload, .. }
            | Self::Refused { payload, .. }
            | Self::Closed { payload, .. } => Some(payload),
            Self::NeedsNobody | Self::Thread(_) => None,
        }
    }
}

/// Publishes on one topic, and only while each consumer it needs is proven.
///
/// Until then, and while one of them is lost, messages are held: bounded in count and bytes, refused or counted
/// beyond. Sent in order; forgotten when each consumer's application has taken them; sent again from the cursor,
/// with the same id and marked, when that is not known. A consumer that judges messages with
/// [`Continuity`](super::Continuity) has each once and in order.
///
/// Nothing here waits for time to pass. A thread of its own drives it and ends with it.
pub struct GatedPublisher {
    shared: Arc<Shared>,
    report: watch::Receiver<GateReport>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for GatedPublisher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("GatedPublisher")
            .field("report", &*self.report.borrow())
            .finish_non_exhaustive()
    }
}

/// What callers and the thread share.
#[derive(Debug)]
struct Shared {
    topic: TopicName,
    held: Mutex<Held>,
    /// Told when a message was accepted, or the publisher ends.
    changed: Notify,
    /// Told when messages were taken, or dropped, or it has ended.
    room: Notify,
}

#[derive(Debug)]
struct Held {
    buffer: Buffer,
    state: GateState,
    refused: Option<String>,
    closed: Option<String>,
    stopping: bool,
}

impl Client {
    /// A publisher on `topic` that waits for its consumers; see [`GatedPublisher`].
    ///
    /// # Errors
    /// [`GateError::NeedsNobody`], [`GateError::Thread`].
    pub fn gated_publisher(
        &self,
        topic: &TopicName,
        options: GateOptions,
    ) -> Result<GatedPublisher, GateError> {
        if options.needs.is_empty() {
            return Err(GateError::NeedsNobody);
        }
        let stream = Header::new().id;
        let GateOptions { needs, messages_max, bytes_max, overflow, first } = options;
        let shared = Arc::new(Shared {
            topic: topic.clone(),
            held: Mutex::new(Held {
                buffer: Buffer::new(stream, messages_max, bytes_max, overflow, first),
                state: GateState::NoLink,
                refused: None,
                closed: None,
                stopping: false,
            }),
            changed: Notify::new(),
            room: Notify::new(),
        });
        let driver = Driver::new(self.clone(), Arc::clone(&shared), Gate::new(needs), stream);
        let report = driver.report.subscribe();
        let thread = thread::Builder::new()
            .name("bus-gate".to_owned())
            .spawn(move || {
                crate::threads::started();
                blocking::wait(driver.run());
            })
            .map_err(|error| GateError::Thread(error.to_string()))?;
        Ok(GatedPublisher { shared, report, thread: Some(thread) })
    }
}

impl GatedPublisher {
    /// Accepts a message: it is held until each consumer has taken it.
    ///
    /// # Errors
    /// [`GateError`], with the payload.
    pub fn publish(&self, payload: Payload) -> Result<Accepted, GateError> {
        let topic = || self.shared.topic.clone();
        let bytes = payload.bytes.len();
        if bytes > limits::PAYLOAD_BYTES_MAX {
            return Err(GateError::TooLarge { payload, bytes, limit: limits::PAYLOAD_BYTES_MAX });
        }
        let header = Header::for_payload(&payload);
        let mut held = lock(&self.shared.held);
        if let Some(reason) = held.closed.clone() {
            let unsent = held.buffer.counts().buffered;
            return Err(GateError::Closed { topic: topic(), payload, reason, unsent });
        }
        if let Some(reason) = held.refused.take() {
            drop(held);
            self.shared.changed.notify_one();
            return Err(GateError::Refused { topic: topic(), payload, reason });
        }
        let accepted = held.buffer.accept(header, payload);
        let (counts, state) = (held.buffer.counts(), held.state);
        drop(held);
        self.shared.changed.notify_one();
        match accepted {
            Ok((id, sequence)) => Ok(Accepted { id, sequence }),
            Err(payload) => Err(GateError::Full {
                topic: topic(),
                payload,
                messages: counts.buffered,
                bytes: counts.bytes,
                state: state_text(state),
            }),
        }
    }

    /// [`GatedPublisher::publish`], waiting while the buffer is full.
    ///
    /// # Errors
    /// [`GateError`] other than `Full`.
    pub async fn publish_waiting(&self, mut payload: Payload) -> Result<Accepted, GateError> {
        loop {
            let room = self.shared.room.notified();
            match self.publish(payload) {
                Err(GateError::Full { payload: back, .. }) => payload = back,
                other => return other,
            }
            room.await;
        }
    }

    /// Waits until everything accepted so far, and until then, was taken by every consumer.
    ///
    /// # Errors
    /// [`GateError::Closed`].
    pub async fn flushed(&self) -> Result<(), GateError> {
        loop {
            let room = self.shared.room.notified();
            {
                let held = lock(&self.shared.held);
                if held.buffer.is_empty() {
                    return Ok(());
                }
                if let Some(reason) = held.closed.clone() {
                    let (topic, unsent) = (self.shared.topic.clone(), held.buffer.counts().buffered);
                    return Err(GateError::Closed { topic, payload: Payload::default(), reason, unsent });
                }
            }
            room.await;
        }
    }

    /// Where it stands, and every change of it.
    pub fn watch(&self) -> watch::Receiver<GateReport> {
        self.report.clone()
    }

    /// Where it stands.
    pub fn report(&self) -> GateReport {
        self.report.borrow().clone()
    }
}

impl Drop for GatedPublisher {
    fn drop(&mut self) {
        lock(&self.shared.held).stopping = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It waits for nothing but us; a panic in it was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn state_text(state: GateState) -> &'static str {
    match state {
        GateState::NoLink => "not connected to the broker",
        GateState::Asking => "the broker is asked who receives it",
        GateState::Waiting => "a consumer has not subscribed",
        GateState::Probing => "a consumer has not answered a probe",
        GateState::Flushing | GateState::Open => "a consumer does not take what was sent",
        GateState::Refused => "the broker refuses it",
        GateState::Closed => "it has ended",
    }
}

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How a round of probes ended.
struct RoundEnd {
    number: u64,
    /// What was sent before it.
    through: Option<u64>,
    outcome: Result<Vec<u64>, LostProbe>,
}

/// A probe that did not come back.
enum LostProbe {
    /// The consumer is gone, or its queue has lost the probe.
    Consumer {
        session: String,
        gone: bool,
    },
    Refused {
        reason: String,
    },
    /// The link is lost; its state says so.
    Link,
}

/// Why nothing more is sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocked {
    Nothing,
    Full,
    Held,
}

/// Everything that can wake the driver.
enum Event {
    Changed,
    Link(LinkState),
    Asked(Result<Receivers, WaitError>),
    Told(Result<Change, WaitError>),
    Round(RoundEnd),
    Reported(Result<Message, RequestError>),
    MaySend,
}

struct Driver {
    client: Client,
    shared: Arc<Shared>,
    gate: Gate,
    stream: Uuid,
    link: watch::Receiver<LinkState>,
    asking: Option<Work<Result<Receivers, WaitError>>>,
    receivers: Option<Receivers>,
    round: Option<Work<RoundEnd>>,
    report: watch::Sender<GateReport>,
    reporting: Option<Work<Result<Message, RequestError>>>,
    /// What the broker was told last in this session; `None` in the report's place if it does not listen.
    told: Told,
    /// How many were flushed and accepted when it opened, until what had gathered is flushed.
    opening: Option<(u64, u64)>,
    dropped_before: u64,
    last_flush: Option<Flush>,
}

enum Told {
    Nothing,
    Report(Box<GateReport>),
    NotHeard,
}

impl Driver {
    fn new(client: Client, shared: Arc<Shared>, gate: Gate, stream: Uuid) -> Self {
        let link = client.watch();
        let counts = lock(&shared.held).buffer.counts();
        let report = GateReport {
            gate: stream,
            topic: shared.topic.clone(),
            state: GateState::NoLink,
            reason: None,
            needs: gate.needs(),
            accepted: 0,
            buffered: 0,
            buffered_bytes: 0,
            cursor: counts.cursor,
            flushed: 0,
            dropped: 0,
            refused: 0,
            again: 0,
            openings: 0,
            last_flush: None,
        };
        Self {
            client,
            shared,
            gate,
            stream,
            link,
            asking: None,
            receivers: None,
            round: None,
            report: watch::Sender::new(report),
            reporting: None,
            told: Told::Nothing,
            opening: None,
            dropped_before: 0,
            last_flush: None,
        }
    }

    async fn run(mut self) {
        let client = self.client.clone();
        let core = client.core();
        let state = self.link.borrow_and_update().clone();
        let mut reason = self.on_link(state);
        while reason.is_none() {
            let space = core.link().space().notified();
            let released = core.gate.released().notified();
            let blocked = self.send();
            self.probe_what_was_sent();
            self.bring_report_up_to_date();
            let may_send = async {
                match blocked {
                    Blocked::Nothing => std::future::pending().await,
                    Blocked::Full => space.await,
                    Blocked::Held => released.await,
                }
            };
            let event = self.next_event(may_send).await;
            reason = self.on_event(event);
        }
        self.end(&reason.unwrap_or_default());
    }

    /// Waits for one event. Listed by priority: what closes the gate comes before what sends.
    async fn next_event(&mut self, may_send: impl Future<Output = ()>) -> Event {
        let told = async {
            match &mut self.receivers {
                Some(receivers) => std::future::poll_fn(|context| receivers.poll_change(context)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = self.link.changed() => match changed {
                Ok(()) => Event::Link(self.link.borrow_and_update().clone()),
                Err(_) => Event::Link(LinkState::Closed),
            },
            change = told => Event::Told(change),
            asked = done(&mut self.asking) => Event::Asked(asked),
            end = done(&mut self.round) => Event::Round(end),
            () = self.shared.changed.notified() => Event::Changed,
            () = may_send => Event::MaySend,
            answer = done(&mut self.reporting) => Event::Reported(answer),
        }
    }

    /// The reason is why it ends.
    fn on_event(&mut self, event: Event) -> Option<String> {
        match event {
            Event::Changed => return self.on_changed(),
            Event::Link(state) => return self.on_link(state),
            Event::Asked(Ok(receivers)) => {
                self.asking = None;
                self.receivers = Some(receivers);
            }
            Event::Asked(Err(error)) | Event::Told(Err(error)) => {
                (self.asking, self.receivers) = (None, None);
                self.on_untold(error);
            }
            Event::Told(Ok(change)) => self.learn(Fact::Told(change)),
            Event::Round(end) => {
                self.round = None;
                self.on_round(end);
            }
            Event::Reported(answer) => {
                self.reporting = None;
                if matches!(answer, Err(ref error) if *error != RequestError::Disconnected) {
                    // An older broker, or one that is full: the report is for the tool only.
                    self.told = Told::NotHeard;
                }
            }
            Event::MaySend => {}
        }
        None
    }

    fn on_changed(&mut self) -> Option<String> {
        let held = lock(&self.shared.held);
        if held.stopping {
            return Some("dropped by its owner".to_owned());
        }
        let ask_again = held.refused.is_none();
        drop(held);
        if ask_again {
            self.learn(Fact::AskAgain);
        }
        None
    }

    fn on_link(&mut self, state: LinkState) -> Option<String> {
        match state {
            LinkState::Ready => {
                // A watch tells the last state only: this may be another session than the one before.
                self.learn(Fact::LinkLost);
                self.learn(Fact::LinkReady);
            }
            LinkState::Closed => {
                return Some(
                    self.client.closed_reason().unwrap_or_else(|| "the client is closed".to_owned()),
                );
            }
            _ => self.learn(Fact::LinkLost),
        }
        None
    }

    fn on_untold(&mut self, error: WaitError) {
        match error {
            // The link's state says so, and when to ask again.
            WaitError::NotConnected { .. } => {}
            error => self.learn(Fact::Refused { reason: error.to_string() }),
        }
    }

    fn on_round(&mut self, RoundEnd { number, through, outcome }: RoundEnd) {
        match outcome {
            Ok(dropped) => {
                let step = self.gate.learn(Fact::Proven { round: number, dropped });
                if step == Step::Confirm
                    && let Some(through) = through
                {
                    lock(&self.shared.held).buffer.confirm(through);
                    self.shared.room.notify_waiters();
                    self.tell_flush();
                } else {
                    self.act(step);
                }
            }
            Err(LostProbe::Consumer { session, gone }) => {
                self.learn(Fact::ProbeLost { round: number, session, gone });
            }
            Err(LostProbe::Refused { reason }) => self.learn(Fact::Refused { reason }),
            Err(LostProbe::Link) => {}
        }
    }

    fn learn(&mut self, fact: Fact) {
        let step = self.gate.learn(fact);
        self.act(step);
    }

    fn act(&mut self, step: Step) {
        match step {
            Step::Stay | Step::Confirm => {}
            Step::Hold => {
                self.round = None;
                if matches!(self.gate.phase(), Phase::NoLink | Phase::Refused { .. }) {
                    (self.asking, self.receivers, self.reporting) = (None, None, None);
                    self.told = Told::Nothing;
                }
                self.say_closed();
            }
            Step::Ask => {
                let (client, topic) = (self.client.clone(), self.shared.topic.clone());
                let peers: Vec<PeerName> = self.gate.needs().into_iter().map(|need| need.peer).collect();
                self.receivers = None;
                self.asking = Some(Box::pin(async move { client.receivers(&topic, &peers).await }));
            }
            Step::Probe(round) => {
                self.say_closed();
                self.send_round(round, None);
            }
            Step::Open => {
                let mut held = lock(&self.shared.held);
                held.buffer.rewind();
                let counts = held.buffer.counts();
                drop(held);
                let first = self.opening.map_or(counts.flushed, |(first, _)| first);
                self.opening = Some((first, counts.accepted));
                tracing::debug!(topic = %self.shared.topic, gathered = counts.buffered, "gate opened");
                self.tell_flush();
            }
        }
    }

    /// Says once for each time that it does not send any more.
    fn say_closed(&self) {
        if matches!(lock(&self.shared.held).state, GateState::Open | GateState::Flushing) {
            tracing::info!(topic = %self.shared.topic, state = ?self.gate.phase(), "gate closed; messages are held");
        }
    }

    /// Once what had gathered at an opening is taken, says how much that was.
    fn tell_flush(&mut self) {
        let Some((first, end)) = self.opening else { return };
        let counts = lock(&self.shared.held).buffer.counts();
        if counts.flushed + counts.dropped < end {
            return;
        }
        self.opening = None;
        let (flushed, dropped) = (counts.flushed - first, counts.dropped - self.dropped_before);
        self.dropped_before = counts.dropped;
        self.last_flush = Some(Flush { flushed, dropped });
        tracing::info!(topic = %self.shared.topic, flushed, dropped, "gate open: flushed {flushed}, dropped {dropped}");
    }

    /// Sends what the gate and the window let through, in order.
    fn send(&mut self) -> Blocked {
        if !self.gate.is_open() {
            return Blocked::Nothing;
        }
        loop {
            // Nobody but this thread sends, so the order is kept although the lock is not.
            let Some(entry) = lock(&self.shared.held).buffer.next() else { return Blocked::Nothing };
            let options = PublishOptions { header: Some(entry.header), ..PublishOptions::default() };
            match self.client.publish_with(&self.shared.topic, entry.payload, &options) {
                Ok(()) => lock(&self.shared.held).buffer.mark_sent(entry.sequence),
                Err(PublishError::Full { .. }) => return Blocked::Full,
                Err(PublishError::Held { .. }) => return Blocked::Held,
                // The link's state says so.
                Err(PublishError::NotConnected { .. }) => return Blocked::Nothing,
                Err(error) => {
                    self.learn(Fact::Refused { reason: error.to_string() });
                    return Blocked::Nothing;
                }
            }
        }
    }

    /// One round is under way at a time, so the more is sent meanwhile, the more one proves.
    fn probe_what_was_sent(&mut self) {
        if !self.gate.is_open() || self.round.is_some() {
            return;
        }
        let Some(through) = lock(&self.shared.held).buffer.sent_through() else { return };
        let round = self.gate.probe_again();
        self.send_round(round, Some(through));
    }

    fn send_round(&mut self, Round { number, routes }: Round, through: Option<u64>) {
        let (client, topic) = (self.client.clone(), self.shared.topic.clone());
        self.round = Some(Box::pin(async move {
            let probes = routes.iter().map(|route| {
                let (client, topic) = (&client, &topic);
                async move {
                    let lost = |gone| LostProbe::Consumer { session: route.session.clone(), gone };
                    let session = Some(route.session.as_str());
                    match send_probe(client, topic, &route.peer, session, Duration::MAX).await {
                        Ok(answer) => match answer.subscriber {
                            Some(receiver) if receiver.subscription == route.subscription => {
                                Ok(answer.dropped)
                            }
                            _ => Err(lost(true)),
                        },
                        Err(RequestError::Disconnected) => Err(LostProbe::Link),
                        // Its queue has lost the probe; it is still there.
                        Err(RequestError::Busy { .. } | RequestError::TimedOut { .. }) => Err(lost(false)),
                        Err(error @ (RequestError::Denied { .. } | RequestError::Damaged { .. })) => {
                            Err(LostProbe::Refused { reason: error.to_string() })
                        }
                        Err(_) => Err(lost(true)),
                    }
                }
            });
            let outcome = try_join_all(probes).await;
            RoundEnd { number, through, outcome }
        }));
    }

    fn state(&self) -> GateState {
        match self.gate.phase() {
            Phase::NoLink => GateState::NoLink,
            Phase::Asking => GateState::Asking,
            Phase::Waiting => GateState::Waiting,
            Phase::Probing => GateState::Probing,
            Phase::Open if self.opening.is_some() => GateState::Flushing,
            Phase::Open => GateState::Open,
            Phase::Refused { .. } => GateState::Refused,
        }
    }

    fn bring_report_up_to_date(&mut self) {
        let reason = match self.gate.phase() {
            Phase::Refused { reason } => Some(reason.clone()),
            _ => None,
        };
        self.set_report(self.state(), reason);
        self.tell_broker();
    }

    fn set_report(&mut self, state: GateState, reason: Option<String>) {
        let counts = {
            let mut held = lock(&self.shared.held);
            if state != held.state {
                held.state = state;
                held.refused.clone_from(&reason.clone().filter(|_| state == GateState::Refused));
            }
            held.buffer.counts()
        };
        let now = GateReport {
            gate: self.stream,
            topic: self.shared.topic.clone(),
            state,
            reason,
            needs: self.gate.needs(),
            accepted: counts.accepted,
            buffered: counts.buffered,
            buffered_bytes: counts.bytes,
            cursor: counts.cursor,
            flushed: counts.flushed,
            dropped: counts.dropped,
            refused: counts.refused,
            again: counts.again,
            openings: self.gate.openings(),
            last_flush: self.last_flush,
        };
        self.report.send_if_modified(|report| {
            let is_new = *report != now;
            *report = now;
            is_new
        });
    }

    /// Tells the broker how it stands, for the tool. The broker answers a few times a second, and then what has
    /// changed since is told: the pace is the broker's, and the sending of messages never waits for it.
    fn tell_broker(&mut self) {
        if matches!(self.gate.phase(), Phase::NoLink | Phase::Refused { .. }) || self.reporting.is_some() {
            return;
        }
        let report = self.report.borrow().clone();
        let is_told = match &self.told {
            Told::Nothing => false,
            Told::Report(told) => **told == report,
            Told::NotHeard => true,
        };
        if is_told {
            return;
        }
        let Ok(payload) = Payload::json(&report) else { return };
        self.told = Told::Report(Box::new(report));
        let client = self.client.clone();
        self.reporting =
            Some(Box::pin(
                async move { client.request(&question_topic("gate"), payload, Duration::MAX).await },
            ));
    }

    fn end(mut self, reason: &str) {
        let unsent = {
            let mut held = lock(&self.shared.held);
            held.closed = Some(reason.to_owned());
            held.buffer.counts().buffered
        };
        self.set_report(GateState::Closed, Some(reason.to_owned()));
        self.shared.room.notify_waiters();
        if unsent > 0 {
            tracing::warn!(topic = %self.shared.topic, unsent, reason, "gate ended with messages not known to be taken");
        }
        let last = json!({ "topic": self.shared.topic, "gate": self.stream, "state": "closed", "last": true, "unsent": unsent });
        if let Ok(payload) = Payload::json(&last) {
            // Leaves at once if it can; nobody waits for the answer.
            let topic = question_topic("gate");
            let _ = self.client.request(&topic, payload, limits::REQUEST_TIMEOUT).now_or_never();
        }
    }
}

/// The end of work under way; never, if there is none.
async fn done<T>(work: &mut Option<Work<T>>) -> T {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}
