//! The state of a client, whatever its link: subscriptions, services, requests in flight, refusals.
//! Records come in through [`Core::on_records`] and go out through the [`Link`].
//!
//! Locks are taken in the order state, then acknowledgements, then a lane or the link, and none is
//! held across a wait. Nothing is sent under the state's lock except while records are taken in.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::{oneshot, watch};

use super::{
    gate::Gate,
    lane::{Deliveries, Item, Lane, SharedTicket, Ticket, lock},
    link::{Link, LinkError, LinkState, Place},
    options::{Ack, PublishOptions},
    reply_stream::{ReplyEnd, ReplyQueue, ReplyStream},
    service::Served,
};
use crate::{
    codec,
    envelope::{Header, Payload, now_ns},
    error::{Denial, PublishError, ReplyError, RequestError, SubscribeError},
    limits,
    native::{
        self, BatchReader, Block, CreditScope, DeliverRun, Operation, PublishParts, Received, Record,
        RecordError, SubscribeSpec,
    },
    peer::PeerName,
    topic::{TopicFilter, TopicName},
};

/// How long after a request's deadline the client waits for the broker to say so.
const DEADLINE_GRACE: Duration = Duration::from_secs(1);
/// Origins one session may name. More is no broker of ours.
const ORIGINS_MAX: usize = 1 << 20;

/// What [`crate::Client`] and all that comes from it hold; when the last is dropped, the link closes.
pub(crate) struct Handle {
    pub(crate) core: Arc<Core>,
    /// The thread of a remote link; taken by the one who joins it.
    pub(crate) thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Handle").field("name", &self.core.name.get()).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.link.begin_close();
    }
}

/// Why a session cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    /// The broker said goodbye.
    Goodbye { code: String, text: String },
    /// The broker speaks another major version.
    Version { major: u16 },
    /// The broker sent what none of ours sends.
    Protocol { problem: String },
}

impl From<RecordError> for SessionEnd {
    fn from(error: RecordError) -> Self {
        Self::Protocol { problem: error.to_string() }
    }
}

impl fmt::Display for SessionEnd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Goodbye { code, text } if text.is_empty() => {
                write!(formatter, "the broker said goodbye ({code})")
            }
            Self::Goodbye { code, text } => write!(formatter, "the broker said goodbye ({code}): {text}"),
            Self::Version { major } => write!(
                formatter,
                "the broker speaks version {major} of the protocol, this client version {}",
                native::VERSION_MAJOR
            ),
            Self::Protocol { problem } => write!(formatter, "the broker broke the protocol: {problem}"),
        }
    }
}

/// The state of one client.
#[derive(Debug)]
pub(crate) struct Core {
    link: Arc<dyn Link>,
    name: OnceLock<PeerName>,
    server_name: PeerName,
    pub(super) state: Mutex<State>,
    pub(super) acknowledgements: Mutex<HashMap<u64, oneshot::Sender<Result<Ack, AckFailure>>>>,
    pub(crate) gate: Gate,
    link_state: watch::Sender<LinkState>,
    next_subscription: AtomicU32,
    pub(super) next_id: AtomicU64,
    /// Since when a consumer that waits owes credit.
    credit_owed_since: Mutex<Option<Instant>>,
}

/// Why an acknowledgement will not come.
#[derive(Debug)]
pub(crate) enum AckFailure {
    Denied(Box<Denial>),
    Lost(String),
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Counts sessions; zero before the first.
    session: u32,
    pub(super) closed: Option<String>,
    origins: HashMap<u32, PeerName>,
    subscriptions: HashMap<u32, Subscribed>,
    requests: HashMap<u64, InFlight>,
    deadlines: BinaryHeap<Reverse<(Instant, u64)>>,
    /// When the clocks will be looked at next; `None` before they were.
    planned: Option<Instant>,
    served: HashMap<u64, (Arc<Served>, u32)>,
    pings: HashMap<u64, (Instant, oneshot::Sender<Duration>)>,
    /// Registered again in each session.
    schemas: HashMap<u64, Record>,
    /// Deposited in every session.
    pub(super) will: Option<Record>,
    /// The minor version of the broker's protocol, known from its `hello` on.
    pub(super) broker_minor: Option<u16>,
}

#[derive(Debug)]
struct Subscribed {
    lane: Arc<Lane>,
    spec: SubscribeSpec,
    filter: TopicFilter,
    /// Requested, without waiting for the answer, whenever a later session has made it anew.
    announced: Option<TopicName>,
    /// Whoever waits for the first answer.
    waiter: Option<oneshot::Sender<Result<u64, SubscribeError>>>,
}

#[derive(Debug)]
struct InFlight {
    queue: Arc<ReplyQueue>,
    place: Place,
}

/// Header bytes of a reply, or its size and the limit it exceeds.
pub(crate) fn part_header(payload: &Payload) -> Result<Bytes, (usize, usize)> {
    encoded_header(&Header::for_payload(payload), payload)
}

/// Header bytes of something small enough, or its size and the limit it exceeds.
fn encoded_header(header: &Header, payload: &Payload) -> Result<Bytes, (usize, usize)> {
    if payload.bytes.len() > limits::PAYLOAD_BYTES_MAX {
        return Err((payload.bytes.len(), limits::PAYLOAD_BYTES_MAX));
    }
    let mut bytes = Vec::with_capacity(128);
    codec::put_header(header, &mut bytes);
    if bytes.len() > limits::HEADER_BYTES_MAX {
        return Err((bytes.len(), limits::HEADER_BYTES_MAX));
    }
    Ok(bytes.into())
}

/// `after` from now as Unix milliseconds.
fn deadline_ms(after: Duration) -> u64 {
    let now_ms = now_ns() / 1_000_000;
    now_ms.saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)).max(1)
}

impl Core {
    pub(crate) fn new(link: Arc<dyn Link>) -> Arc<Self> {
        let server_name = ReplyStream::ORIGIN.parse().expect("the constant is a peer name");
        Arc::new(Self {
            link,
            name: OnceLock::new(),
            server_name,
            state: Mutex::default(),
            acknowledgements: Mutex::default(),
            gate: Gate::default(),
            link_state: watch::Sender::new(LinkState::Connecting),
            next_subscription: AtomicU32::new(1),
            next_id: AtomicU64::new(1),
            credit_owed_since: Mutex::default(),
        })
    }

    pub(crate) fn link(&self) -> &dyn Link {
        &*self.link
    }

    pub(crate) fn server_name(&self) -> &PeerName {
        &self.server_name
    }

    /// Known from the first `hello` on; a local client knows it before.
    pub(crate) fn name(&self) -> Option<&PeerName> {
        self.name.get()
    }

    pub(crate) fn set_name(&self, name: PeerName) {
        // A later session under another name keeps the first: the name is handed out by reference.
        let _ = self.name.set(name);
    }

    pub(crate) fn watch(&self) -> watch::Receiver<LinkState> {
        self.link_state.subscribe()
    }

    pub(crate) fn closed_reason(&self) -> Option<String> {
        lock(&self.state).closed.clone()
    }

    /// Why nothing can be sent now.
    fn absence(&self) -> String {
        match &*self.link_state.borrow() {
            LinkState::Connecting => "the first session is being made".to_owned(),
            LinkState::Ready => "the session has just ended".to_owned(),
            LinkState::Lost { reason } => format!("{reason}; trying again"),
            LinkState::Closed => {
                format!("the client is closed ({})", self.closed_reason().unwrap_or_default())
            }
        }
    }

    // ---- sessions -------------------------------------------------------------------------

    /// The first record of a session.
    pub(crate) fn hello() -> Record {
        Record::Hello {
            major: native::VERSION_MAJOR,
            minor: native::VERSION_MINOR,
            program: program(),
            peer: String::new(),
            epoch: [0; 16],
        }
    }

    /// A new session begins: what the last one numbered means nothing any more.
    pub(crate) fn begin_session(&self) {
        let mut state = lock(&self.state);
        state.session += 1;
        state.origins.clear();
    }

    fn on_hello(&self, state: &mut State, (major, minor): (u16, u16), peer: &str) -> Result<(), SessionEnd> {
        if major != native::VERSION_MAJOR {
            return Err(SessionEnd::Version { major });
        }
        state.broker_minor = Some(minor);
        let name = peer.parse::<PeerName>();
        let name = name.map_err(|error| SessionEnd::Protocol { problem: error.to_string() })?;
        self.set_name(name);
        let session = state.session;
        self.link.begin_session();
        for subscribed in state.subscriptions.values().filter(|subscribed| subscribed.waiter.is_none()) {
            subscribed.lane.begin_session(session);
            self.link.send_control(Record::Subscribe(subscribed.spec.clone()));
        }
        for schema in state.schemas.values() {
            self.link.send_control(schema.clone());
        }
        if let Some(will) = &state.will {
            self.link.send_control(will.clone());
        }
        self.link_state.send_replace(LinkState::Ready);
        Ok(())
    }

    /// The session was lost and another one will be tried.
    pub(crate) fn session_lost(&self, reason: &str) {
        let mut state = lock(&self.state);
        self.end_session(&mut state, reason);
        for subscribed in state.subscriptions.values() {
            if !subscribed.spec.serve {
                let reason = "disconnected".to_owned();
                subscribed.lane.push(Item::Gap { count: None, reason });
            }
        }
        self.link_state.send_replace(LinkState::Lost { reason: reason.to_owned() });
    }

    /// An attempt has failed; the state's reason becomes the latest one.
    pub(crate) fn still_lost(&self, reason: &str) {
        self.link_state.send_replace(LinkState::Lost { reason: reason.to_owned() });
    }

    /// No session will follow.
    pub(crate) fn session_closed(&self, reason: &str) {
        let mut state = lock(&self.state);
        if state.closed.is_some() {
            return;
        }
        state.closed = Some(reason.to_owned());
        self.end_session(&mut state, reason);
        for (_, subscribed) in state.subscriptions.drain() {
            subscribed.lane.end(reason);
        }
        self.link_state.send_replace(LinkState::Closed);
    }

    /// Ends whatever belongs to one session only.
    fn end_session(&self, state: &mut State, reason: &str) {
        state.subscriptions.retain(|_, subscribed| match subscribed.waiter.take() {
            None => true,
            Some(waiter) => {
                let _ = waiter.send(Err(SubscribeError::NotConnected { reason: reason.to_owned() }));
                false
            }
        });
        for (_, request) in state.requests.drain() {
            request.queue.end(ReplyEnd::Disconnected);
        }
        state.deadlines.clear();
        for (_, (served, _)) in state.served.drain() {
            served.close(ReplyError::Disconnected);
        }
        state.pings.clear();
        for (_, waiter) in lock(&self.acknowledgements).drain() {
            let _ = waiter.send(Err(AckFailure::Lost(reason.to_owned())));
        }
        self.gate.release_all();
        self.link.space().notify_waiters();
    }

    // ---- records from the broker ----------------------------------------------------------

    /// Takes what the broker sent. After an error the session must end.
    pub(crate) fn on_records(&self, records: &mut Vec<Record>) -> Result<(), SessionEnd> {
        let mut state = lock(&self.state);
        records.drain(..).try_for_each(|record| self.on_record(&mut state, record))
    }

    /// Takes one batch from the broker, each part of it after `watch` has seen it. Gives the number of its records.
    ///
    /// # Errors
    /// Why the session must end. What came before is taken.
    pub(crate) fn on_batch<E: From<SessionEnd> + From<RecordError>>(
        &self,
        reader: &mut BatchReader,
        mut watch: impl FnMut(&Received) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut state = lock(&self.state);
        let mut records = 0;
        while let Some(received) = reader.next_received()? {
            watch(&received)?;
            match received {
                Received::Deliveries(run) => {
                    records += run.messages();
                    on_run(&state, run)?;
                }
                Received::Record(record) => {
                    records += 1;
                    self.on_record(&mut state, record)?;
                }
            }
        }
        Ok(records)
    }

    fn on_record(&self, state: &mut State, record: Record) -> Result<(), SessionEnd> {
        match record {
            Record::Hello { major, minor, peer, .. } => self.on_hello(state, (major, minor), &peer)?,
            Record::Origin { origin, peer } => on_origin(state, origin, &peer)?,
            Record::Deliver { subscriptions, block } => on_deliver(state, &subscriptions, block)?,
            Record::Request { id, subscription, window, block } => {
                self.on_request(state, id, subscription, window, block)?;
            }
            Record::Reply { id, header, payload } => {
                if let Some(request) = state.requests.get(&id) {
                    request.queue.push(header, payload);
                }
            }
            Record::ReplyEnd { id, status, code, text, header, payload } => {
                if let Some(request) = state.requests.remove(&id) {
                    if !header.is_empty() {
                        request.queue.push(header, payload);
                    }
                    request.queue.end(ReplyEnd::Record { status, code, text });
                }
            }
            Record::Cancel { id } => {
                if let Some((served, _)) = state.served.remove(&id) {
                    served.close(ReplyError::Cancelled);
                }
            }
            Record::Credit { scope } => self.on_credit(state, scope),
            Record::Subscribed { id, from_sequence } => {
                let Some(subscribed) = state.subscriptions.get_mut(&id) else { return Ok(()) };
                if let Some(waiter) = subscribed.waiter.take() {
                    let _ = waiter.send(Ok(from_sequence));
                } else if let Some(topic) = &subscribed.announced {
                    let mut block = Block::new(topic, &[], &[]);
                    block.deadline_ms = deadline_ms(limits::REQUEST_TIMEOUT);
                    // Nobody knows its id: the answer is ignored.
                    let id = self.next_id.fetch_add(1, Ordering::Relaxed);
                    let window = limits::REPLY_WINDOW;
                    self.link.send_control(Record::Request { id, subscription: 0, window, block });
                }
            }
            Record::Accepted { sequence, subscribers, dropped, not_retained } => {
                if let Some(waiter) = lock(&self.acknowledgements).remove(&sequence) {
                    let _ = waiter.send(Ok(Ack { subscribers, dropped, not_retained }));
                }
            }
            Record::Denied { operation, reference, code, topic, text } => {
                let denial = Denial { operation, topic, code, text, count: 1 };
                self.on_denied(state, reference, denial);
            }
            Record::Gap { subscription, count, reason } => {
                if let Some(subscribed) = state.subscriptions.get(&subscription) {
                    let count = (count != u64::MAX).then_some(count);
                    subscribed.lane.push(Item::Gap { count, reason });
                }
            }
            Record::Ping { number, answer: false } => {
                self.link.send_control(Record::Ping { number, answer: true });
            }
            Record::Ping { number, answer: true } => {
                if let Some((since, waiter)) = state.pings.remove(&number) {
                    let _ = waiter.send(since.elapsed());
                }
            }
            Record::Goodbye { code, text } => return Err(SessionEnd::Goodbye { code, text }),
            // A client's records from the broker, or nothing this client acts on.
            Record::Subscribe(_)
            | Record::Unsubscribe { .. }
            | Record::Publish(_)
            | Record::Schema { .. }
            | Record::BrokerKey { .. }
            | Record::Will { .. }
            | Record::Fragment { .. } => {}
        }
        Ok(())
    }

    fn on_request(
        &self,
        state: &mut State,
        id: u64,
        subscription: u32,
        window: u32,
        block: Block,
    ) -> Result<(), SessionEnd> {
        let origin = origin_of(state, block.origin)?;
        let served = Arc::new(Served::new(id, window));
        let Some(subscribed) = state.subscriptions.get(&subscription) else {
            // It was on its way when the service was dropped.
            served.end_dropped(self.link());
            return Ok(());
        };
        let ticket = Ticket::Own { session: state.session };
        subscribed.lane.push(Item::Request { origin, block, served: Arc::clone(&served), ticket });
        state.served.insert(id, (served, window));
        Ok(())
    }

    fn on_credit(&self, state: &State, scope: CreditScope) {
        match scope {
            CreditScope::Topic { topic, granted: true } => self.gate.release(&topic),
            CreditScope::Topic { topic, granted: false } => self.gate.hold(topic),
            CreditScope::Request { id, parts } => {
                if let Some((served, window)) = state.served.get(&id) {
                    served.credit(*window, parts);
                }
            }
            CreditScope::Subscription { .. } => {}
        }
    }

    fn on_denied(&self, state: &mut State, reference: u64, denial: Denial) {
        match denial.operation {
            Operation::Publish => {
                let waiter = lock(&self.acknowledgements).remove(&reference);
                self.gate.deny(denial.clone(), waiter.is_none());
                if let Some(waiter) = waiter {
                    let _ = waiter.send(Err(AckFailure::Denied(Box::new(denial))));
                }
            }
            Operation::Subscribe | Operation::Serve => {
                let subscribed = u32::try_from(reference).ok().and_then(|id| state.subscriptions.remove(&id));
                let Some(subscribed) = subscribed else { return };
                let Denial { code, text, .. } = denial.clone();
                match subscribed.waiter {
                    Some(waiter) => {
                        let filter = subscribed.filter;
                        let _ = waiter.send(Err(SubscribeError::Denied { filter, code, text }));
                        self.gate.deny(denial, false);
                    }
                    // It was refused when it was renewed in a later session.
                    None => {
                        subscribed.lane.end(&denial.to_string());
                        self.gate.deny(denial, true);
                    }
                }
            }
            // Its id is in use: the request that has it goes on.
            Operation::Request => self.gate.deny(denial, true),
        }
    }

    // ---- publish --------------------------------------------------------------------------

    /// Publishes; `numbered` learns the sequence before the message can leave.
    pub(crate) fn publish(
        &self,
        topic: &TopicName,
        payload: Payload,
        options: &PublishOptions,
        mut waiter: Option<oneshot::Sender<Result<Ack, AckFailure>>>,
    ) -> Result<(), PublishError> {
        let bytes = payload.bytes.len();
        if bytes > limits::PAYLOAD_BYTES_MAX {
            return Err(PublishError::TooLarge { payload, bytes, limit: limits::PAYLOAD_BYTES_MAX });
        }
        let payload = self.gate.pass(topic, payload)?;
        let header = match &options.header {
            None => Header::for_payload(&payload).traced(),
            Some(header) => Header {
                content_type: payload.content_type.clone(),
                schema: payload.schema.or(header.schema),
                ..header.clone()
            }
            .traced(),
        };
        let acknowledge = if waiter.is_some() { Block::ACKNOWLEDGE } else { 0 };
        let retain = if options.retain { Block::RETAIN } else { 0 };
        let parts = PublishParts {
            flags: acknowledge | retain,
            deadline_ms: options.expires_after.map_or(0, deadline_ms),
            topic,
            header: &header,
            payload: &payload.bytes,
        };
        let mut numbered = |sequence| {
            if let Some(waiter) = waiter.take() {
                lock(&self.acknowledgements).insert(sequence, waiter);
            }
        };
        match self.link.publish(&parts, &mut numbered) {
            Ok(()) => Ok(()),
            Err(LinkError::Full) => Err(PublishError::Full { payload }),
            Err(LinkError::Closed) => Err(PublishError::NotConnected { payload, reason: self.absence() }),
            Err(LinkError::HeaderTooLarge { bytes }) => {
                Err(PublishError::TooLarge { payload, bytes, limit: limits::HEADER_BYTES_MAX })
            }
        }
    }

    // ---- subscriptions --------------------------------------------------------------------

    /// An id for a new subscription.
    pub(crate) fn next_subscription(&self) -> u32 {
        self.next_subscription.fetch_add(1, Ordering::Relaxed)
    }

    /// Asks for a subscription. The receiver gets the broker's answer.
    pub(crate) fn subscribe(
        &self,
        filter: &TopicFilter,
        spec: SubscribeSpec,
        announced: Option<&TopicName>,
    ) -> Result<(Arc<Lane>, SubscribeAnswer), SubscribeError> {
        let mut state = lock(&self.state);
        if state.closed.is_some() || matches!(*self.link_state.borrow(), LinkState::Lost { .. }) {
            drop(state);
            return Err(SubscribeError::NotConnected { reason: self.absence() });
        }
        let (waiter, answer) = oneshot::channel();
        let lane = Arc::new(Lane::new(spec.id, state.session));
        let subscribed = Subscribed {
            lane: Arc::clone(&lane),
            spec: spec.clone(),
            filter: filter.clone(),
            announced: announced.cloned(),
            waiter: Some(waiter),
        };
        state.subscriptions.insert(spec.id, subscribed);
        // A link in the same process may have to wait for the broker's thread, which needs the lock.
        drop(state);
        self.link.send_control(Record::Subscribe(spec));
        Ok((lane, answer))
    }

    /// Ends a subscription. Its record stays behind messages already queued: a service that has just
    /// answered must not be taken off before its answer.
    pub(crate) fn unsubscribe(&self, id: u32) {
        if lock(&self.state).subscriptions.remove(&id).is_some() {
            self.link.send_last(Record::Unsubscribe { id });
        }
    }

    /// Forgets a request that was served.
    pub(crate) fn forget_served(&self, id: u64) {
        lock(&self.state).served.remove(&id);
    }

    // ---- requests -------------------------------------------------------------------------

    /// Sends a request, waiting for room in the outgoing queue.
    pub(crate) async fn request(
        &self,
        topic: &TopicName,
        payload: Payload,
        deadline: Duration,
    ) -> Result<(u64, Arc<ReplyQueue>), RequestError> {
        let too_large = |(bytes, limit)| RequestError::TooLarge { bytes, limit };
        let header = encoded_header(&Header::for_payload(&payload).traced(), &payload).map_err(too_large)?;
        self.request_as_it_is(topic, &header, payload.bytes, deadline).await
    }

    /// [`Core::request`] with the bytes of a header that is there already.
    pub(crate) async fn request_as_it_is(
        &self,
        topic: &TopicName,
        header: &[u8],
        payload: Bytes,
        deadline: Duration,
    ) -> Result<(u64, Arc<ReplyQueue>), RequestError> {
        for (bytes, limit) in
            [(header.len(), limits::HEADER_BYTES_MAX), (payload.len(), limits::PAYLOAD_BYTES_MAX)]
        {
            if bytes > limit {
                return Err(RequestError::TooLarge { bytes, limit });
            }
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut block = Block::with_payload(topic, header, payload);
        block.deadline_ms = deadline_ms(deadline);
        let mut record = Record::Request { id, subscription: 0, window: limits::REPLY_WINDOW, block };
        let queue = Arc::new(ReplyQueue::default());
        let in_flight = InFlight { queue: Arc::clone(&queue), place: Place(u64::MAX) };
        self.begin_request(
            id,
            in_flight,
            Instant::now().checked_add(deadline.saturating_add(DEADLINE_GRACE)),
        )?;
        let registered = Registered { core: self, id, keep: false };
        loop {
            let room = self.link.space().notified();
            match self.link.send(record) {
                Ok(place) => {
                    if let Some(request) = lock(&self.state).requests.get_mut(&id) {
                        request.place = place;
                    }
                    registered.keep();
                    return Ok((id, queue));
                }
                Err((LinkError::Full, back)) => record = back,
                Err(_) => return Err(RequestError::Disconnected),
            }
            room.await;
            super::yield_once().await;
        }
    }

    fn begin_request(
        &self,
        id: u64,
        request: InFlight,
        expires: Option<Instant>,
    ) -> Result<(), RequestError> {
        let mut state = lock(&self.state);
        if state.closed.is_some() {
            return Err(RequestError::Disconnected);
        }
        state.requests.insert(id, request);
        let mut is_early = false;
        if let Some(expires) = expires {
            state.deadlines.push(Reverse((expires, id)));
            is_early = state.planned.is_some_and(|planned| expires < planned);
        }
        if state.deadlines.len() > 2 * state.requests.len() + 1024 {
            let State { deadlines, requests, .. } = &mut *state;
            deadlines.retain(|Reverse((_, id))| requests.contains_key(id));
        }
        drop(state);
        if is_early {
            self.link.plan_again();
        }
        Ok(())
    }

    /// Tells the broker that no more is wanted; its end record is still awaited.
    pub(crate) fn cancel_request(&self, id: u64) {
        let place = lock(&self.state).requests.get(&id).map(|request| request.place);
        if let Some(place) = place {
            self.link.send_cancel(id, place);
        }
    }

    /// Cancels a request nobody waits for any more.
    pub(crate) fn abandon_request(&self, id: u64) {
        let request = lock(&self.state).requests.remove(&id);
        if let Some(request) = request {
            self.link.send_cancel(id, request.place);
        }
    }

    /// Ends requests whose deadline passed and of which the broker said nothing. Returns when to look again.
    pub(crate) fn expire(&self, now: Instant) -> Option<Instant> {
        let mut expired = Vec::new();
        let mut state = lock(&self.state);
        let next = loop {
            let Some(Reverse((expires, id))) = state.deadlines.peek().copied() else { break None };
            if state.requests.contains_key(&id) && expires > now {
                break Some(expires);
            }
            state.deadlines.pop();
            expired.extend(state.requests.remove(&id).map(|request| (id, request)));
        };
        drop(state);
        for (id, request) in expired {
            // In this order: what its owner sends when it knows comes behind the cancel.
            self.link.send_cancel(id, request.place);
            request.queue.end(ReplyEnd::Expired);
        }
        next
    }

    /// Takes note of when the clocks will be looked at next, and gives it back, or what has become due before.
    /// A request that is due earlier has them looked at again.
    pub(crate) fn plan(&self, next: Instant) -> Instant {
        let mut state = lock(&self.state);
        let next = state.deadlines.peek().map_or(next, |Reverse((expires, _))| next.min(*expires));
        state.planned = Some(next);
        next
    }

    // ---- credit ---------------------------------------------------------------------------

    /// A consumer waits and has not credited what it consumed. The thread that waits sees to it.
    pub(crate) fn owe_credit(&self) {
        lock(&self.credit_owed_since).get_or_insert_with(Instant::now);
    }

    /// Since when credit is owed.
    pub(crate) fn owes_credit_since(&self) -> Option<Instant> {
        *lock(&self.credit_owed_since)
    }

    /// Puts the credit that is owed into the queue. The caller sees to it that it is written.
    pub(crate) fn send_owed_credit(&self) {
        if lock(&self.credit_owed_since).take().is_none() {
            return;
        }
        let lanes: SmallVec<[Arc<Lane>; 4]> =
            lock(&self.state).subscriptions.values().map(|subscribed| Arc::clone(&subscribed.lane)).collect();
        lanes.iter().for_each(|lane| lane.flush_credit(self.link(), true));
    }

    // ---- the rest -------------------------------------------------------------------------

    /// Sends a ping. The receiver gets the time it took, or ends with the session.
    pub(crate) fn ping(&self) -> oneshot::Receiver<Duration> {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (waiter, answer) = oneshot::channel();
        let mut state = lock(&self.state);
        if state.closed.is_none() && !matches!(*self.link_state.borrow(), LinkState::Lost { .. }) {
            state.pings.insert(number, (Instant::now(), waiter));
            drop(state);
            self.link.send_control(Record::Ping { number, answer: false });
        }
        answer
    }

    /// Registers a schema in this session and all later ones.
    pub(crate) fn register_schema(&self, fingerprint: u64, record: Record) {
        let is_new = lock(&self.state).schemas.insert(fingerprint, record.clone()).is_none();
        if is_new {
            self.link.send_control(record);
        }
    }
}

/// What the broker answers to a subscribe.
pub(crate) type SubscribeAnswer = oneshot::Receiver<Result<u64, SubscribeError>>;

/// Takes a request out of the table again if it was never sent.
struct Registered<'a> {
    core: &'a Core,
    id: u64,
    keep: bool,
}

impl Registered<'_> {
    fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if !self.keep {
            lock(&self.core.state).requests.remove(&self.id);
        }
    }
}

/// Name and version of this program, for the tool.
fn program() -> String {
    let name = std::env::current_exe().ok();
    let name = name.as_deref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy());
    let name = name.as_deref().unwrap_or("program");
    super::service::cut(&format!("{name} (interlock-bus {})", env!("CARGO_PKG_VERSION")), 255)
}

fn on_origin(state: &mut State, origin: u32, peer: &str) -> Result<(), SessionEnd> {
    let protocol = |problem| SessionEnd::Protocol { problem };
    let peer = peer.parse::<PeerName>().map_err(|error| protocol(error.to_string()))?;
    if state.origins.len() >= ORIGINS_MAX && !state.origins.contains_key(&origin) {
        return Err(protocol(format!("the broker named more than {ORIGINS_MAX} origins")));
    }
    state.origins.insert(origin, peer);
    Ok(())
}

fn origin_of(state: &State, origin: u32) -> Result<PeerName, SessionEnd> {
    state.origins.get(&origin).cloned().ok_or_else(|| SessionEnd::Protocol {
        problem: format!("the broker used origin {origin} and never named it"),
    })
}

/// Deliveries for one subscription alone, in one piece: its lane is looked up, locked and woken once.
fn on_run(state: &State, run: DeliverRun) -> Result<(), SessionEnd> {
    let origin = origin_of(state, run.origin())?;
    if let Some(subscribed) = state.subscriptions.get(&run.subscription()) {
        subscribed.lane.push(Item::Deliveries(Deliveries { origin, run, session: state.session }));
    }
    Ok(())
}

/// A delivery by itself, which several subscriptions may share.
fn on_deliver(state: &State, subscriptions: &[u32], block: Block) -> Result<(), SessionEnd> {
    let origin = origin_of(state, block.origin)?;
    let session = state.session;
    let lane = |id: &u32| state.subscriptions.get(id).map(|subscribed| &subscribed.lane);
    if let [only] = subscriptions {
        let ticket = Ticket::Own { session };
        if let Some(lane) = lane(only) {
            lane.push(Item::Delivery { origin, block, ticket });
        }
        return Ok(());
    }
    let Some(first) = subscriptions.first() else { return Ok(()) };
    let lanes: Vec<_> = subscriptions.iter().filter_map(lane).collect();
    let shared = lane(first).map(|lane| Arc::new(SharedTicket { lane: Arc::clone(lane), session }));
    // The last lane gets the ticket itself: no reference may be left here when all have consumed it.
    let tickets = std::iter::repeat_n(shared.map_or(Ticket::Nobody, Ticket::Shared), lanes.len());
    for (lane, ticket) in lanes.into_iter().zip(tickets) {
        lane.push(Item::Delivery { origin: origin.clone(), block: block.clone(), ticket });
    }
    Ok(())
}
