//! The loop of an outbox: what can happen, and what is done about it. What may be sent `lanes` says, what an attempt's end
//! means `attempt`; here both meet the storage and the bus.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};

use super::{
    attempt::{self, Ended, Said, Verdict},
    door::Arrival,
    lanes::{LaneBounds, Lanes, Run},
    limits,
    outbox::{Left, OutboxError, Shared},
    report::{ConsumerReport, OutboxCounts, OutboxReport, OutboxState},
    storage::{DeliveryId, Leased, OpenDelivery, Outcome, Settled, StorageError},
    words,
};
use crate::{
    client::{Client, LinkState, Request, ServeOptions, Service},
    crypto,
    envelope::{Payload, now_ns},
    error::SubscribeError,
    peer::PeerName,
};

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How often at most a report is given because figures have changed.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// Everything that can wake the loop.
enum Event {
    Stop,
    GraceOver,
    Link(LinkState),
    Step(StepEnd),
    Attempted(u64, Ended),
    Put(Request),
    PutAnswered,
    Consumes(Request),
    Look(Option<Request>),
    News,
    Clock,
    ServiceEnded(String),
}

/// A step of the storage that has ended.
enum StepEnd {
    BecameSender(Result<u64, StorageError>),
    Consumers(Result<Vec<(PeerName, u64)>, StorageError>),
    Read(PeerName, Result<Vec<OpenDelivery>, StorageError>),
    Leased(Vec<Run>, Purpose, Result<Vec<Leased>, StorageError>),
    Settled(Vec<Ending>, Result<(), StorageError>),
}

/// What deliveries are leased for.
#[derive(Clone, Copy, PartialEq)]
enum Purpose {
    Send,
    /// Their consumer is absent for too long.
    GiveUp,
}

/// A run on its way: one message of it was sent, the others follow.
struct Flight {
    sent: Leased,
    rest: VecDeque<Leased>,
    said: u64,
}

/// An outcome that is to be saved.
struct Ending {
    id: DeliveryId,
    attempt: u32,
    message: uuid::Uuid,
    outcome: Outcome,
    lost_consumer: bool,
    /// Whether it was said that it could not be saved.
    is_told: bool,
}

impl Ending {
    fn settled(&self) -> Settled {
        Settled { id: self.id.clone(), outcome: self.outcome.clone() }
    }
}

/// The three services of an outbox.
struct Services {
    put: Service,
    consume: Service,
    look: Service,
}

/// A failure of the storage that was not followed by a success yet.
struct Trouble {
    text: String,
    until: Instant,
}

pub(crate) struct Sender {
    client: Client,
    shared: Arc<Shared>,
    lanes: Lanes,
    steps: FuturesUnordered<Work<StepEnd>>,
    attempts: FuturesUnordered<Work<(u64, Ended)>>,
    puts: FuturesUnordered<Work<()>>,
    flights: HashMap<u64, Flight>,
    next_flight: u64,
    unsettled: Vec<Ending>,
    is_sender: bool,
    /// Whether leases are to be taken back first: a lease failed, and nobody knows whether it was given.
    in_doubt: bool,
    becoming: bool,
    listing: bool,
    reading: bool,
    leasing: bool,
    settling: bool,
    /// Consumers are to be listed.
    unlisted: bool,
    /// Whether what has waited too long is looked for.
    giving_up: bool,
    /// Of steps that read, and of steps that write.
    troubles: [Option<Trouble>; 2],
    /// The last settle failed: nothing new is leased, so that what is kept in memory stays bounded.
    unsaved: bool,
    /// When `pump` last looked at what is due.
    pumped_ms: u64,
    link: LinkState,
    sweep_at: Instant,
    stop_at: Option<Instant>,
    is_grace_over: bool,
    cut_off: u64,
    counts: OutboxCounts,
    /// What the storage said of each consumer when it was last asked.
    listed: BTreeMap<PeerName, u64>,
    last_reasons: BTreeMap<PeerName, String>,
    denied: BTreeMap<PeerName, String>,
    /// Something may have changed since the last report.
    is_stale: bool,
    reported_at: Option<Instant>,
    state: OutboxState,
}

/// Whether a step reads or writes: storages fail at the one and not at the other.
#[derive(Clone, Copy)]
enum Kind {
    Read,
    Write,
}

impl Sender {
    pub(crate) fn new(client: Client, shared: Arc<Shared>) -> Self {
        let options = &shared.options;
        let bounds = LaneBounds {
            window: options.window.max(1),
            messages: options.in_flight_messages.max(1),
            bytes: options.in_flight_bytes,
            wait_max_ms: u64::try_from(options.schedule.cap.as_millis()).unwrap_or(u64::MAX),
            ..LaneBounds::default()
        };
        let sweep_at = Instant::now() + options.sweep_interval;
        Self {
            lanes: Lanes::new(bounds),
            client,
            shared,
            steps: FuturesUnordered::new(),
            attempts: FuturesUnordered::new(),
            puts: FuturesUnordered::new(),
            flights: HashMap::new(),
            next_flight: 0,
            unsettled: Vec::new(),
            is_sender: false,
            in_doubt: true,
            becoming: false,
            listing: false,
            reading: false,
            leasing: false,
            settling: false,
            unlisted: true,
            giving_up: false,
            troubles: [None, None],
            unsaved: false,
            pumped_ms: 0,
            link: LinkState::Connecting,
            sweep_at,
            stop_at: None,
            is_grace_over: false,
            cut_off: 0,
            counts: OutboxCounts::default(),
            listed: BTreeMap::new(),
            last_reasons: BTreeMap::new(),
            denied: BTreeMap::new(),
            is_stale: true,
            reported_at: None,
            state: OutboxState::Starting,
        }
    }

    pub(crate) async fn run(
        mut self,
        mut stopping: Pin<&mut impl Future<Output = ()>>,
        mut on_report: impl FnMut(&OutboxReport),
    ) -> Result<Left, OutboxError> {
        let mut links = self.client.watch();
        let mut services = {
            let serving = serve(&self.client);
            tokio::select! {
                biased;
                () = stopping.as_mut() => return Ok(self.end(&mut on_report).await),
                services = serving => services?,
            }
        };
        self.link = links.borrow_and_update().clone();
        loop {
            self.pump();
            self.report(&mut on_report);
            if self.is_done() {
                return Ok(self.end(&mut on_report).await);
            }
            let wake_at = self.wake_at();
            let (stop_at, is_stopping) = (self.stop_at, self.stop_at.is_some());
            let has_put_room = self.puts.len() < limits::PUTS_IN_HAND;
            let event = tokio::select! {
                biased;
                () = stopping.as_mut(), if !is_stopping => Event::Stop,
                () = sleep_until(stop_at), if is_stopping && !self.is_grace_over => Event::GraceOver,
                Ok(()) = links.changed() => Event::Link(links.borrow_and_update().clone()),
                Some(end) = self.steps.next() => Event::Step(end),
                Some((flight, ended)) = self.attempts.next() => Event::Attempted(flight, ended),
                Some(()) = self.puts.next() => Event::PutAnswered,
                request = services.consume.next() => match request {
                    Some(request) => Event::Consumes(request),
                    None => Event::ServiceEnded(services.consume.end_reason().unwrap_or_default()),
                },
                request = services.look.next() => match request {
                    Some(request) => Event::Look(Some(request)),
                    None => Event::ServiceEnded(services.look.end_reason().unwrap_or_default()),
                },
                () = self.shared.look.notified() => Event::Look(None),
                () = self.shared.door.news.notified() => Event::News,
                request = services.put.next(), if has_put_room => match request {
                    Some(request) => Event::Put(request),
                    None => Event::ServiceEnded(services.put.end_reason().unwrap_or_default()),
                },
                () = sleep_until(Some(wake_at)) => Event::Clock,
            };
            self.is_stale = true;
            // Not by the clock's event alone, which a flood of others may keep waiting.
            if self.sweep_at <= Instant::now() {
                self.sweep();
            }
            if let Some(reason) = self.on_event(event) {
                self.give_back();
                self.pump();
                self.end(&mut on_report).await;
                return Err(OutboxError::BusLost { reason });
            }
        }
    }

    /// Dispatches. Gives why it cannot go on.
    fn on_event(&mut self, event: Event) -> Option<String> {
        match event {
            Event::Stop => self.on_stop(),
            Event::GraceOver => {
                self.is_grace_over = true;
                self.give_back();
            }
            Event::Link(state) => return self.on_link(state),
            Event::Step(end) => self.on_step(end),
            Event::Attempted(flight, ended) => self.on_attempted(flight, ended),
            Event::Put(request) => self.on_put(request),
            Event::PutAnswered => {}
            Event::Consumes(request) => self.on_consumes(request),
            Event::Look(request) => {
                request.into_iter().for_each(|request| self.answer(request.end_empty()));
                self.sweep();
            }
            Event::News => {
                for consumer in self.shared.door.take_news() {
                    self.lanes.news(&consumer);
                }
            }
            Event::Clock => {}
            Event::ServiceEnded(reason) => return Some(reason),
        }
        None
    }

    // ---- what comes over the bus ----------------------------------------------------------

    fn on_put(&mut self, request: Request) {
        let shared = Arc::clone(&self.shared);
        let topic = request.message.topic.as_str().strip_prefix(words::PUT).map(str::parse);
        let Some(Ok(topic)) = topic else {
            let text = format!("`{}` names no topic behind `{}`", request.message.topic, words::PUT);
            return self.answer(async move { request.fail("invalid", &text).await });
        };
        let arrival = Arrival {
            id: request.message.header.id,
            topic,
            key: request.message.header.key().map(str::to_owned),
            origin: request.message.origin.clone(),
            header: request.header.clone(),
            payload: request.message.payload.clone(),
        };
        let cancelled = request.cancelled();
        self.answer(async move {
            match shared.door.put(arrival, cancelled.wait()).await {
                Ok(accepted) => {
                    let answer = Payload::json(&accepted).expect("an id and a number have a form in JSON");
                    request.end(answer).await
                }
                Err(error) => {
                    let figures = error.figures().payload();
                    request.fail_with(error.code(), &error.to_string(), figures).await
                }
            }
        });
    }

    fn on_consumes(&mut self, request: Request) {
        let consumer = request.message.origin.clone();
        if self.lanes.serves(&consumer) {
            tracing::info!(%consumer, "a consumer is back; what waits for it goes on");
        }
        self.answer(request.end_empty());
    }

    /// An answer on its way. Whoever wants none any more is no failure of ours.
    fn answer(
        &mut self,
        answer: impl Future<Output = Result<(), crate::error::ReplyError>> + Send + 'static,
    ) {
        self.puts.push(Box::pin(async move {
            let _ = answer.await;
        }));
    }

    fn on_link(&mut self, state: LinkState) -> Option<String> {
        self.link = state;
        match &self.link {
            // Who was absent may have come back while we were away.
            LinkState::Ready => self.lanes.try_absent(),
            LinkState::Closed => return Some(self.client.closed_reason().unwrap_or_default()),
            LinkState::Connecting | LinkState::Lost { .. } => {}
        }
        None
    }

    fn sweep(&mut self) {
        self.sweep_at = Instant::now() + self.shared.options.sweep_interval;
        self.unlisted = true;
        self.giving_up = !self.shared.options.absent_max.is_zero();
        self.lanes.sweep();
        // Somebody else may have made room.
        self.shared.door.room();
    }

    // ---- steps of the storage -------------------------------------------------------------

    /// Starts every step that can be started.
    fn pump(&mut self) {
        self.pumped_ms = now_ms();
        if !self.must_pause(Kind::Write) {
            self.start_writes();
        }
        if self.is_sender && !self.in_doubt && self.stop_at.is_none() && !self.must_pause(Kind::Read) {
            self.start_reads();
        }
    }

    fn must_pause(&self, kind: Kind) -> bool {
        self.troubles[kind as usize].as_ref().is_some_and(|trouble| trouble.until > Instant::now())
    }

    fn start_writes(&mut self) {
        let storage = Arc::clone(&self.shared.storage);
        if self.in_doubt && !self.becoming && self.stop_at.is_none() && !self.has_anything_in_hand() {
            self.becoming = true;
            let storage = Arc::clone(&storage);
            self.steps.push(Box::pin(async move { StepEnd::BecameSender(storage.become_sender().await) }));
        }
        if !self.is_sender {
            return;
        }
        if !self.settling && !self.unsettled.is_empty() {
            self.settling = true;
            let endings = std::mem::take(&mut self.unsettled);
            let settled = endings.iter().map(Ending::settled).collect();
            let storage = Arc::clone(&storage);
            self.steps.push(Box::pin(async move {
                let result = storage.settle(settled).await;
                StepEnd::Settled(endings, result)
            }));
        }
        let may_lease = !self.leasing && !self.unsaved && !self.in_doubt && self.stop_at.is_none();
        if !may_lease || self.link != LinkState::Ready {
            return;
        }
        let (runs, purpose) = self.next_runs();
        if !runs.is_empty() {
            self.leasing = true;
            let ids = runs.iter().flat_map(ids_of).collect();
            self.steps.push(Box::pin(async move {
                let result = storage.lease(ids).await;
                StepEnd::Leased(runs, purpose, result)
            }));
        }
    }

    fn start_reads(&mut self) {
        let storage = Arc::clone(&self.shared.storage);
        if self.unlisted && !self.listing {
            (self.unlisted, self.listing) = (false, true);
            let storage = Arc::clone(&storage);
            self.steps.push(Box::pin(async move { StepEnd::Consumers(storage.open_consumers().await) }));
        }
        if !self.reading
            && let Some(read) = self.lanes.begin_read()
        {
            self.reading = true;
            self.steps.push(Box::pin(async move {
                let result = storage.open_deliveries(&read.consumer, read.after, read.limit).await;
                StepEnd::Read(read.consumer, result)
            }));
        }
    }

    fn next_runs(&mut self) -> (Vec<Run>, Purpose) {
        let now_ms = now_ms();
        if self.giving_up {
            let absent_max_ms = self.absent_max_ms();
            match self.lanes.take_overdue(now_ms.saturating_sub(absent_max_ms)) {
                Some(run) => return (vec![run], Purpose::GiveUp),
                None => self.giving_up = false,
            }
        }
        (self.lanes.take(now_ms), Purpose::Send)
    }

    fn absent_max_ms(&self) -> u64 {
        u64::try_from(self.shared.options.absent_max.as_millis()).unwrap_or(u64::MAX)
    }

    fn on_step(&mut self, end: StepEnd) {
        match end {
            StepEnd::BecameSender(result) => {
                self.becoming = false;
                if let Some(taken_back) = self.judge(Kind::Write, "take the lock of the sender", result) {
                    if taken_back > 0 {
                        tracing::info!(taken_back, "leases that were left behind are taken back");
                    }
                    self.counts.taken_back += taken_back;
                    (self.is_sender, self.in_doubt) = (true, false);
                    self.lanes.sweep();
                }
            }
            StepEnd::Consumers(result) => {
                self.listing = false;
                match self.judge(Kind::Read, "read who is waited for", result) {
                    Some(listed) => {
                        for (consumer, _) in &listed {
                            self.lanes.meet(consumer);
                        }
                        self.listed = listed.into_iter().collect();
                    }
                    None => self.unlisted = true,
                }
            }
            StepEnd::Read(consumer, result) => {
                self.reading = false;
                match self.judge(Kind::Read, "read what is open", result) {
                    Some(found) => self.lanes.loaded(&consumer, found, now_ms()),
                    None => self.lanes.unread(&consumer),
                }
            }
            StepEnd::Leased(runs, purpose, result) => {
                self.leasing = false;
                match self.judge(Kind::Write, "write down that attempts begin", result) {
                    Some(leased) => self.on_leased(runs, purpose, leased),
                    None => {
                        // Nothing is sent. Whether the leases stand nobody knows; they are taken back before the next.
                        self.in_doubt = true;
                        runs.iter().flat_map(ids_of).for_each(|id| self.lanes.back(&id));
                    }
                }
            }
            StepEnd::Settled(endings, result) => {
                self.settling = false;
                self.on_settled(endings, result);
            }
        }
    }

    /// What a step has given; a failure is told of once, and makes the steps after it wait.
    fn judge<T>(&mut self, kind: Kind, what: &str, result: Result<T, StorageError>) -> Option<T> {
        match result {
            Ok(value) => {
                if self.troubles[kind as usize].take().is_some() {
                    tracing::info!("the outbox's storage can be used again");
                }
                Some(value)
            }
            Err(error) => {
                self.counts.storage_failures += 1;
                let trouble = &mut self.troubles[kind as usize];
                if trouble.is_none() {
                    tracing::error!(%error, "the outbox cannot {what}; it tries again");
                }
                let until = Instant::now() + self.shared.options.storage_pause;
                *trouble = Some(Trouble { text: format!("cannot {what}: {error}"), until });
                None
            }
        }
    }

    fn on_leased(&mut self, runs: Vec<Run>, purpose: Purpose, leased: Vec<Leased>) {
        let mut leased: HashMap<DeliveryId, Leased> =
            leased.into_iter().map(|leased| (leased.id.clone(), leased)).collect();
        for run in runs {
            let mut given = VecDeque::new();
            for id in ids_of(&run) {
                match leased.remove(&id) {
                    Some(leased) => given.push_back(leased),
                    // Somebody dropped it, or it could not be read.
                    None => self.lanes.gone(&id),
                }
            }
            match purpose {
                Purpose::GiveUp => given.into_iter().for_each(|leased| self.give_up(leased)),
                Purpose::Send if self.stop_at.is_some() => self.not_sent(given),
                Purpose::Send => self.send_next(given, run.said),
            }
        }
    }

    fn on_settled(&mut self, mut endings: Vec<Ending>, result: Result<(), StorageError>) {
        let error = result.as_ref().err().cloned();
        self.unsaved = self.judge(Kind::Write, "save what became of attempts", result).is_none();
        if self.unsaved {
            for ending in endings.iter_mut().filter(|ending| !ending.is_told) {
                ending.is_told = true;
                let Ending { id, attempt, message, outcome, .. } = ending;
                let (cause, consumer) = (said_of(outcome), &id.consumer);
                let problem = error.as_ref().map(ToString::to_string).unwrap_or_default();
                tracing::error!(
                    %message, number = id.number, %consumer, attempt = *attempt, outcome = %cause, %problem,
                    "what became of a delivery cannot be saved; it is kept in memory, and sent again if this process ends"
                );
            }
            endings.append(&mut self.unsettled);
            self.unsettled = endings;
            return;
        }
        let mut has_room = false;
        for Ending { id, attempt, outcome, lost_consumer, .. } in endings {
            match outcome {
                Outcome::Acknowledged => {
                    self.counts.acknowledged += 1;
                    has_room = true;
                    self.lanes.gone(&id);
                }
                Outcome::Dead { .. } => {
                    self.counts.dead += 1;
                    has_room = true;
                    self.lanes.gone(&id);
                }
                Outcome::Retry { due_ms, .. } => {
                    self.counts.retried += 1;
                    self.lanes.waits(&id, attempt, due_ms, lost_consumer);
                }
                Outcome::Unsent => {
                    self.counts.unsent += 1;
                    self.lanes.back(&id);
                }
            }
        }
        if has_room {
            self.shared.door.room();
        }
    }

    // ---- attempts -------------------------------------------------------------------------

    /// Sends the next message of a run.
    fn send_next(&mut self, mut rest: VecDeque<Leased>, said: u64) {
        let Some(sent) = rest.pop_front() else { return };
        self.counts.attempts += 1;
        let flight = self.next_flight;
        self.next_flight += 1;
        let attempt =
            attempt::attempt(self.client.clone(), sent.clone(), self.shared.options.attempt_deadline);
        self.attempts.push(Box::pin(async move { (flight, attempt.await) }));
        self.flights.insert(flight, Flight { sent, rest, said });
    }

    fn on_attempted(&mut self, flight: u64, ended: Ended) {
        let Some(Flight { sent, rest, said }) = self.flights.remove(&flight) else { return };
        let goes_on = self.conclude(sent, ended, said);
        if goes_on && self.stop_at.is_none() && self.link == LinkState::Ready {
            self.send_next(rest, said);
        } else {
            self.not_sent(rest);
        }
    }

    /// Takes note of an attempt's end. Gives whether those behind it in its lane may be sent.
    fn conclude(&mut self, leased: Leased, ended: Ended, said: u64) -> bool {
        let Leased { id, attempt, message, .. } = leased;
        let chance = u64::from_le_bytes(crypto::random());
        let now_ms = now_ms();
        let Verdict { outcome, consumer } =
            attempt::verdict(ended, attempt, &self.shared.options.schedule, now_ms, chance);
        match consumer {
            Said::Absent => {
                self.counts.attempts -= 1;
                if self.lanes.absent(&id.consumer, said, now_ms) {
                    tracing::info!(consumer = %id.consumer, "nobody serves as this consumer; what is for it waits");
                }
            }
            Said::Present | Said::Lost | Said::Denied => {
                self.lanes.present(&id.consumer);
            }
            Said::Nothing => {}
        }
        match (consumer, reason_of(&outcome)) {
            (Said::Denied, Some(reason)) => self.on_denied(&id.consumer, reason),
            (Said::Present | Said::Lost, _) => drop(self.denied.remove(&id.consumer)),
            _ => {}
        }
        match (&outcome, reason_of(&outcome)) {
            (Outcome::Acknowledged, _) => drop(self.last_reasons.remove(&id.consumer)),
            (_, Some(reason)) => drop(self.last_reasons.insert(id.consumer.clone(), reason.to_owned())),
            _ => {}
        }
        if let Outcome::Dead { reason } = &outcome {
            tracing::warn!(%message, number = id.number, consumer = %id.consumer, attempt, reason, "a message became a dead letter");
        }
        let is_over = matches!(outcome, Outcome::Acknowledged | Outcome::Dead { .. });
        self.settle(Ending {
            id,
            attempt,
            message,
            outcome,
            lost_consumer: consumer == Said::Lost,
            is_told: false,
        });
        is_over
    }

    fn on_denied(&mut self, consumer: &PeerName, reason: &str) {
        if self.denied.insert(consumer.clone(), reason.to_owned()).is_none() {
            tracing::error!(%consumer, reason, "the broker does not let the outbox deliver");
        }
    }

    fn settle(&mut self, ending: Ending) {
        if matches!(ending.outcome, Outcome::Acknowledged | Outcome::Dead { .. }) {
            self.lanes.ended(&ending.id);
        }
        self.unsettled.push(ending);
    }

    /// Takes leases back, and with them the attempts: nothing was sent.
    fn not_sent(&mut self, leased: impl IntoIterator<Item = Leased>) {
        for Leased { id, attempt, message, .. } in leased {
            let outcome = Outcome::Unsent;
            self.settle(Ending { id, attempt, message, outcome, lost_consumer: false, is_told: false });
        }
    }

    /// Makes a dead letter of what has waited too long for its consumer.
    fn give_up(&mut self, leased: Leased) {
        let absent_max_ms = self.absent_max_ms();
        if leased.accepted_ms.saturating_add(absent_max_ms) > now_ms() || self.stop_at.is_some() {
            self.giving_up = false;
            return self.not_sent([leased]);
        }
        let Leased { id, attempt, message, .. } = leased;
        let reason = format!(
            "`{}` did not serve for {} s, the limit (`outbox.absent_max`); this attempt was not sent",
            id.consumer,
            absent_max_ms / 1000
        );
        tracing::warn!(%message, number = id.number, consumer = %id.consumer, reason, "a message became a dead letter");
        let outcome = Outcome::Dead { reason };
        self.settle(Ending { id, attempt, message, outcome, lost_consumer: false, is_told: false });
    }

    // ---- the stop -------------------------------------------------------------------------

    fn on_stop(&mut self) {
        self.shared.door.close();
        // Nothing is sent from here on; a lease under way is taken back when it comes.
        self.stop_at = Some(Instant::now() + self.shared.options.grace);
    }

    /// Takes back what is under way.
    fn give_back(&mut self) {
        self.shared.door.close();
        self.stop_at.get_or_insert_with(Instant::now);
        // Their requests are cancelled.
        self.attempts = FuturesUnordered::new();
        for (_, Flight { sent, rest, said }) in std::mem::take(&mut self.flights) {
            self.cut_off += 1;
            self.conclude(sent, Ended::Stopped, said);
            self.not_sent(rest);
        }
    }

    fn has_anything_in_hand(&self) -> bool {
        !self.flights.is_empty() || self.leasing || self.settling || !self.unsettled.is_empty()
    }

    /// Whether a stop was asked for and there is nothing left to wait for but a storage that fails.
    fn is_done(&self) -> bool {
        let is_quiet = self.flights.is_empty() && !self.leasing && !self.settling && self.puts.is_empty();
        let is_saved = self.unsettled.is_empty() || self.must_pause(Kind::Write);
        self.stop_at.is_some() && (self.is_grace_over || (is_quiet && is_saved))
    }

    /// The last words: what could not be saved, and what waits for the next start.
    async fn end(&mut self, on_report: &mut impl FnMut(&OutboxReport)) -> Left {
        self.shared.door.close();
        // A wait for the lock of another process may last for ever, and nothing is in hand then.
        if !self.becoming && tokio::time::timeout(limits::LAST_STEP_TIMEOUT, self.save()).await.is_err() {
            tracing::error!(
                "the outbox's storage did not take what became of the last attempts; they are made again"
            );
        }
        let open =
            tokio::time::timeout(limits::LAST_STEP_TIMEOUT, self.shared.storage.open_consumers()).await;
        let open =
            open.ok().and_then(Result::ok).map(|open| open.into_iter().map(|(_, count)| count).sum::<u64>());
        let cut_off = self.cut_off;
        match open {
            Some(0) => tracing::info!("the outbox has stopped; nothing is left in it"),
            Some(open) => tracing::info!(
                cut_off,
                "the outbox has stopped; {open} deliveries are still pending and go on at the next start"
            ),
            None => {
                tracing::error!("the outbox has stopped, and its storage would not say what is left in it")
            }
        }
        self.state = OutboxState::Stopped;
        self.publish(on_report);
        Left { open, cut_off }
    }

    /// Waits for the steps under way, and saves what is in memory, once.
    async fn save(&mut self) {
        while let Some(end) = self.steps.next().await {
            self.on_step(end);
        }
        if !self.unsettled.is_empty() {
            let endings = std::mem::take(&mut self.unsettled);
            let result = self.shared.storage.settle(endings.iter().map(Ending::settled).collect()).await;
            self.on_settled(endings, result);
        }
    }

    // ---- how it stands --------------------------------------------------------------------

    /// When the loop is to look again although nothing has happened.
    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let pauses = self.troubles.iter().flatten().map(|trouble| trouble.until).filter(|until| *until > now);
        let mut wake_at = pauses.fold(self.sweep_at, Instant::min);
        // What was due when `pump` looked is taken after the step under way.
        if let Some(due_ms) = self.lanes.next_due_ms().filter(|due_ms| *due_ms > self.pumped_ms) {
            wake_at = wake_at.min(now + Duration::from_millis(due_ms.saturating_sub(now_ms())));
        }
        if let Some(reported_at) = self.reported_at.filter(|_| self.is_stale) {
            wake_at = wake_at.min(reported_at + REPORT_INTERVAL);
        }
        wake_at
    }

    fn report(&mut self, on_report: &mut impl FnMut(&OutboxReport)) {
        let state = self.derived_state();
        let is_due = self.is_stale && self.reported_at.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL);
        if is_due || self.state != state {
            self.state = state;
            self.publish(on_report);
        }
    }

    fn publish(&mut self, on_report: &mut impl FnMut(&OutboxReport)) {
        self.is_stale = false;
        self.reported_at = Some(Instant::now());
        let report = self.current_report();
        if *self.shared.report.borrow() != report {
            on_report(&report);
            self.shared.report.send_replace(report);
        }
    }

    fn derived_state(&self) -> OutboxState {
        match () {
            () if self.stop_at.is_some() => OutboxState::Stopping,
            () if self.is_impaired() => OutboxState::Impaired,
            () if !self.is_sender => OutboxState::Waiting,
            () => OutboxState::Running,
        }
    }

    fn is_impaired(&self) -> bool {
        let is_lost = matches!(self.link, LinkState::Lost { .. });
        is_lost || self.unsaved || !self.denied.is_empty() || self.troubles.iter().any(Option::is_some)
    }

    /// Why it is impaired.
    fn reasons(&self) -> Vec<String> {
        let mut reasons: Vec<_> =
            self.troubles.iter().flatten().map(|trouble| trouble.text.clone()).collect();
        let unsaved = self.unsettled.iter().filter(|ending| ending.is_told).count();
        if unsaved > 0 {
            reasons.push(format!("what became of {unsaved} deliveries could not be saved yet"));
        }
        if let LinkState::Lost { reason } = &self.link {
            reasons.push(format!("the link to the broker is lost: {reason}"));
        }
        reasons.extend(self.denied.values().cloned());
        reasons
    }

    fn current_report(&self) -> OutboxReport {
        let mut consumers: BTreeMap<PeerName, ConsumerReport> = BTreeMap::new();
        for name in self.shared.door.routes().names() {
            consumers.entry(name.clone()).or_default();
        }
        for (name, standing) in self.lanes.standings() {
            let listed = self.listed.get(name).copied().unwrap_or(0);
            let known = if standing.is_partial { standing.known.max(listed) } else { standing.known };
            let report = ConsumerReport {
                waiting: known.saturating_sub(standing.in_hand),
                in_flight: standing.in_hand,
                absent_since_ms: standing.absent_since_ms,
                last_reason: None,
            };
            consumers.insert(name.clone(), report);
        }
        for (name, reason) in &self.last_reasons {
            consumers.entry(name.clone()).or_default().last_reason = Some(reason.clone());
        }
        let door = self.shared.door.counts();
        let counts = OutboxCounts {
            accepted: door.accepted,
            accepted_again: door.again,
            refused: door.refused,
            puts_waiting: door.waiting,
            ..self.counts.clone()
        };
        OutboxReport { state: self.state, reasons: self.reasons(), consumers, counts }
    }
}

/// Serves all that an outbox serves, as soon as there is a session.
async fn serve(client: &Client) -> Result<Services, OutboxError> {
    let mut links = client.watch();
    loop {
        let serving = async {
            let put = words::filter(&format!("{}#", words::PUT));
            let [consume, look] = [words::CONSUME, words::LOOK].map(words::filter);
            Ok::<_, SubscribeError>(Services {
                consume: client.serve(&consume, ServeOptions::default()).await?,
                look: client.serve(&look, ServeOptions::default()).await?,
                // Last: who can put can count on the rest.
                put: client.serve(&put, ServeOptions::default()).await?,
            })
        };
        match serving.await {
            Ok(services) => return Ok(services),
            Err(SubscribeError::NotConnected { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let state = links.wait_for(|state| matches!(state, LinkState::Ready | LinkState::Closed)).await;
        if state.is_ok_and(|state| *state == LinkState::Closed) {
            return Err(OutboxError::BusLost { reason: client.closed_reason().unwrap_or_default() });
        }
    }
}

fn ids_of(run: &Run) -> impl Iterator<Item = DeliveryId> {
    run.numbers.iter().map(|number| DeliveryId { number: *number, consumer: run.consumer.clone() })
}

fn reason_of(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Retry { reason, .. } | Outcome::Dead { reason } => Some(reason),
        Outcome::Acknowledged | Outcome::Unsent => None,
    }
}

/// An outcome in a sentence.
fn said_of(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Acknowledged => "acknowledged".to_owned(),
        Outcome::Unsent => "not sent".to_owned(),
        Outcome::Retry { reason, .. } => format!("failed: {reason}"),
        Outcome::Dead { reason } => format!("failed for good: {reason}"),
    }
}

fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
