//! The loop of an outbox: what can happen, and what is done about it. What may be sent `lanes` says, what an attempt's end
//! means `attempt`; here both meet the storage and the bus.

mod attempts;
mod standing;
mod steps;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};

use super::{
    attempt::{self, Ended, Said, Verdict},
    door::{self, Arrival},
    error::DurableError,
    lanes::{LaneBounds, Lanes, Run},
    limits,
    outbox::{Left, OutboxError, Shared},
    report::{ConsumerReport, OutboxCounts, OutboxReport, OutboxState},
    storage::{DeliveryId, Leased, OpenDelivery, OutboxStorage, Outcome, Settled, StorageError},
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

/// Events that are taken in one turn of the loop: the stop and the clock wait for no more.
const EVENTS_AT_ONCE: usize = 64;

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
    /// Its consumer was lost in the middle; with what that had said about itself when this was taken.
    lost: Option<u64>,
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

impl Services {
    /// The next request. Those who put, those who serve and those who look take turns by chance: none keeps another waiting.
    async fn next(&mut self, has_put_room: bool) -> Event {
        let Self { put, consume, look } = self;
        let ended = tokio::select! {
            request = put.next(), if has_put_room => match request {
                Some(request) => return Event::Put(request),
                None => put,
            },
            request = consume.next() => match request {
                Some(request) => return Event::Consumes(request),
                None => consume,
            },
            request = look.next() => match request {
                Some(request) => return Event::Look(Some(request)),
                None => look,
            },
        };
        Event::ServiceEnded(ended.end_reason().unwrap_or_default())
    }
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
    cut_off: Vec<DeliveryId>,
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
            cut_off: Vec::new(),
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
                () = self.shared.look.notified() => Event::Look(None),
                () = self.shared.door.news.notified() => Event::News,
                event = services.next(has_put_room) => event,
                () = sleep_until(Some(wake_at)) => Event::Clock,
            };
            self.is_stale = true;
            let mut ended = self.on_event(event);
            // What is there already, before the next look at what can be begun.
            for _ in 0..EVENTS_AT_ONCE {
                let Some(event) = self.at_hand(&mut services).await else { break };
                ended = ended.or(self.on_event(event));
            }
            // Not by the clock's event alone, which a flood of others may keep waiting.
            if self.sweep_at <= Instant::now() {
                self.sweep();
            }
            if let Some(reason) = ended {
                self.give_back();
                self.pump();
                self.end(&mut on_report).await;
                return Err(OutboxError::BusLost { reason });
            }
        }
    }

    /// What comes often and has come already.
    async fn at_hand(&mut self, services: &mut Services) -> Option<Event> {
        let has_put_room = self.puts.len() < limits::PUTS_IN_HAND;
        tokio::select! {
            biased;
            Some(end) = self.steps.next() => Some(Event::Step(end)),
            Some((flight, ended)) = self.attempts.next() => Some(Event::Attempted(flight, ended)),
            Some(()) = self.puts.next() => Some(Event::PutAnswered),
            event = services.next(has_put_room) => Some(event),
            () = std::future::ready(()) => None,
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
            let error = DurableError::Invalid { text };
            return self.answer(async move { request.fail(error.code(), &error.to_string()).await });
        };
        let arrival = Arrival {
            id: request.message.header.id,
            topic,
            key: request.message.header.key().map(str::to_owned),
            origin: request.message.origin.clone(),
            header: request.header.clone(),
            payload: request.message.payload.clone(),
        };
        let began = Instant::now();
        let (cancelled, patience) = (request.cancelled(), door::patience(request.deadline_ms, now_ms()));
        self.answer(async move {
            // A refusal that comes behind the deadline is none: nobody would know that it was not accepted.
            let given_up = || {
                let left = patience.saturating_sub(began.elapsed());
                tokio::time::timeout(left, async move { cancelled.wait().await }).map(drop)
            };
            match shared.door.put(arrival, given_up).await {
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
        // An `async` block would hold it twice, and each put moves it.
        self.puts.push(Box::pin(answer.map(drop)));
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
            self.cut_off.push(sent.id.clone());
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
        let is_in_time =
            self.becoming || tokio::time::timeout(limits::LAST_STEP_TIMEOUT, self.save()).await.is_ok();
        let is_saved = is_in_time && self.unsettled.is_empty();
        if !is_saved {
            tracing::error!(
                "the outbox's storage did not take what became of the last attempts; they are made again"
            );
        }
        let open =
            tokio::time::timeout(limits::LAST_STEP_TIMEOUT, self.shared.storage.open_consumers()).await;
        let open =
            open.ok().and_then(Result::ok).map(|open| open.into_iter().map(|(_, count)| count).sum::<u64>());
        let waiting = still_waiting(&self.shared.storage, &self.cut_off);
        let waiting = tokio::time::timeout(limits::LAST_STEP_TIMEOUT, waiting).await;
        let cut_off = by_consumer(waiting.unwrap_or_else(|_| self.cut_off.clone()));
        match open {
            Some(0) => tracing::info!("the outbox has stopped; nothing is left in it"),
            Some(open) => tracing::info!(
                cut_off = ?cut_off,
                "the outbox has stopped; {open} deliveries are still pending and go on at the next start"
            ),
            None => {
                tracing::error!("the outbox has stopped, and its storage would not say what is left in it")
            }
        }
        self.state = OutboxState::Stopped;
        self.publish(on_report);
        Left { open, cut_off, is_saved }
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
}

/// Those of them that will be sent again: a person may have dropped some meanwhile.
async fn still_waiting(storage: &Arc<dyn OutboxStorage>, cut_off: &[DeliveryId]) -> Vec<DeliveryId> {
    let mut waiting = Vec::new();
    for id in cut_off {
        let next = storage.open_deliveries(&id.consumer, id.number.saturating_sub(1), 1).await;
        // What cannot be read may be sent again.
        if next.map_or(true, |next| next.first().is_some_and(|next| next.id == *id)) {
            waiting.push(id.clone());
        }
    }
    waiting
}

fn by_consumer(deliveries: Vec<DeliveryId>) -> BTreeMap<PeerName, u64> {
    let mut counts = BTreeMap::new();
    for id in deliveries {
        *counts.entry(id.consumer).or_default() += 1;
    }
    counts
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

fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
