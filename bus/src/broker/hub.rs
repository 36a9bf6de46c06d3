//! The broker without its sockets: sessions, routing, requests, permissions, ledger. Pure: the
//! caller brings records, stock messages and the time, and takes what is to be sent.
//!
//! Invariants:
//! - whatever is published is counted in the ledger before [`Hub`] returns;
//! - a session's output is taken in the order control, replies, deliveries;
//! - nothing here waits, and no queue is unbounded.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    bounds::Bounds,
    delay::delay_ns,
    denials::{self, Denials},
    drops::Drops,
    events::Events,
    ledger::{DropReason, Ledger, RowId, RowKey},
    readiness::Readiness,
    refusals::{RefusalEvent, Refusals},
    requests::{PendingRequest, RequestKey, Requests},
    send_queue::{Dropped, Entry, Form, Pushed, PushedRun, SendQueue, SpareChunks},
    statistics::{Statistics, TopicId},
};
use crate::{
    codec,
    crypto::PublicKey,
    envelope::{Header, Payload},
    keys::{Permissions, Right},
    limits,
    native::{
        self, BatchReader, BatchWriter, Block, BlockView, CreditScope, Incoming, Operation, Overflow, Record,
        RecordError, Status, SubscribeSpec, SubscriptionIds, batch,
    },
    peer::PeerName,
    schema::Schema,
    topic::{TopicFilter, TopicName},
};

mod drops;
#[cfg(test)]
pub(super) mod fixture;
mod hold;
#[cfg(test)]
mod limit_tests;
mod output;
mod publish;
mod publish_run;
mod readiness;
mod request;
pub(super) mod route;
mod security;
mod session;
mod slow;
mod stock_input;
mod subscribe;
mod will;

use route::{Route, RouteCache, Target};
pub(super) use session::{Lane, Matcher, Session};
pub use session::{SessionCounts, SessionId, SessionInfo, SessionKind};
use slow::Slow;

const NS_PER_MS: u64 = 1_000_000;

/// What became of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its topic.
    pub(super) topic: TopicId,
    /// Subscribers it was queued for.
    pub subscribers: u32,
    /// Subscribers it was dropped for.
    pub dropped: u32,
    /// It was to become its topic's last value, and there was no room for it.
    pub not_retained: bool,
}

/// Why a session must end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// A word for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub text: String,
}

/// All of the broker's state.
#[derive(Debug)]
pub struct Hub {
    pub(super) sessions: Vec<Option<Session>>,
    generations: Vec<u32>,
    free: Vec<u32>,
    pub(super) epoch: uuid::Uuid,
    pub(super) ledger: Ledger,
    pub(super) statistics: Statistics,
    pub(super) denials: Denials,
    pub(super) refusals: Refusals,
    pub(super) requests: Requests,
    readiness: Readiness,
    pub(super) retained: HashMap<TopicName, Block>,
    retained_bytes: usize,
    pub(super) schemas: HashMap<u64, (String, String, Bytes)>,
    origins: Vec<PeerName>,
    origin_index: HashMap<PeerName, u32>,
    /// Grows with every change that can alter a route.
    route_generation: u64,
    pub(super) sequence: u64,
    /// Filters and prefixes that may match the bus's own topics.
    reserved_matchers: usize,
    /// How many sessions each peer has.
    peer_sessions: HashMap<PeerName, usize>,
    /// Memory of send queues that are empty again.
    spare_chunks: SpareChunks,
    /// Topics whose publishers are held, and the lanes they wait for.
    held: HashMap<TopicName, HashSet<(SessionId, u32)>>,
    /// What was said of topics that are held now and then.
    holds: HashMap<TopicName, hold::Holds>,
    dirty: Vec<SessionId>,
    ending: Vec<(SessionId, Ending)>,
    pub(super) started_ms: u64,
    pub(super) now_ms: u64,
    /// The same in nanoseconds, to tell how long messages took.
    now_ns: u64,
    /// The broker itself, as the origin of its own messages.
    broker: PeerName,
    pub(super) security: security::Security,
    pub(super) events: Events,
    pub(super) bounds: Bounds,
    drops: Drops,
    /// When a value without room was last told of.
    told_full_ms: Option<u64>,
    /// Lanes that have lost messages and have no room yet.
    slow: Vec<(SessionId, u32)>,
    /// Whether one of them was not spoken of yet.
    slow_is_new: bool,
}

impl Hub {
    /// An empty hub. `now_ms` is Unix time in milliseconds, here and in [`Hub::tick`].
    pub fn new(broker: PeerName, now_ms: u64) -> Self {
        let mut hub = Self {
            sessions: Vec::new(),
            generations: Vec::new(),
            free: Vec::new(),
            epoch: uuid::Uuid::now_v7(),
            ledger: Ledger::default(),
            statistics: Statistics::default(),
            denials: Denials::default(),
            refusals: Refusals::default(),
            requests: Requests::default(),
            readiness: Readiness::default(),
            retained: HashMap::new(),
            retained_bytes: 0,
            schemas: HashMap::new(),
            origins: Vec::new(),
            origin_index: HashMap::new(),
            route_generation: 1,
            sequence: 0,
            reserved_matchers: 0,
            peer_sessions: HashMap::new(),
            spare_chunks: SpareChunks::default(),
            held: HashMap::new(),
            holds: HashMap::new(),
            dirty: Vec::new(),
            ending: Vec::new(),
            started_ms: now_ms,
            now_ms,
            now_ns: now_ms * NS_PER_MS,
            broker: broker.clone(),
            security: security::Security::default(),
            events: Events::default(),
            bounds: Bounds::default(),
            drops: Drops::default(),
            told_full_ms: None,
            slow: Vec::new(),
            slow_is_new: false,
        };
        hub.origin(&broker);
        hub
    }

    /// Bounds other than the default, for sessions to come.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    // ---- sessions -------------------------------------------------------------------------

    /// Adds an authenticated session.
    pub fn open(&mut self, info: SessionInfo) -> SessionId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.sessions.push(None);
            self.generations.push(0);
            self.sessions.len() as u32 - 1
        });
        let id = SessionId { index, generation: self.generations[index as usize] };
        let presence = info.kind;
        let mut session = Session {
            info,
            program: String::new(),
            opened_ms: self.now_ms,
            counts: SessionCounts::default(),
            lanes: Vec::new(),
            next_lane: 0,
            greeted: false,
            control: VecDeque::new(),
            control_bytes: 0,
            replies: VecDeque::new(),
            reply_bytes: 0,
            ends_waiting: 0,
            announced: HashSet::new(),
            last_origin: None,
            routes: RouteCache::default(),
            last_route: None,
            requests_in_flight: 0,
            held: HashSet::new(),
            will: None,
            is_dirty: false,
            is_ending: false,
        };
        if presence == SessionKind::StockSubscriber {
            let matcher = Matcher::Prefixes(BTreeSet::new());
            let (messages_max, bytes_max) = self.bounds.of_queue(0, 0);
            let queue = SendQueue::new(Overflow::DropNewest, Form::Wire, messages_max, bytes_max);
            session.lanes.push(Lane::new(1, matcher, queue));
        }
        let info = session.info.clone();
        self.sessions[index as usize] = Some(session);
        *self.peer_sessions.entry(info.peer.clone()).or_default() += 1;
        self.note_use(&info);
        self.publish_presence(&info, "connected", None);
        id
    }

    /// Removes a session, for the reason in `code` and `text`, and settles everything it leaves behind: first what
    /// waits for it, then its requests, then its will, then its presence.
    pub fn close(&mut self, id: SessionId, code: &str, text: &str) {
        // A session that was ending for another reason ends for that one: its goodbye, and not the end of its socket.
        let ending =
            self.ending.iter().position(|(ending, _)| *ending == id).map(|at| self.ending.remove(at).1);
        let (code, text) = ending.as_ref().map_or((code, text), |ending| (ending.code, &ending.text));
        let Some(session) = self.session_mut(id) else { return };
        session.is_ending = true;
        for lane in &mut session.lanes.drain(..).collect::<Vec<_>>() {
            self.settle_lane(id, lane, DropReason::Disconnected);
        }
        for key in self.requests.matching(|request| request.server == id) {
            self.end_request(key, Status::ServerGone, "", "the server's session ended before it answered");
        }
        for key in self.requests.matching(|request| request.requester == id) {
            self.cancel(key);
        }
        self.route_generation += 1;
        self.execute_will(id, code);
        let Some(session) = self.sessions[id.index as usize].take() else { return };
        if let Some(sessions) = self.peer_sessions.get_mut(&session.info.peer) {
            *sessions -= 1;
            if *sessions == 0 {
                self.peer_sessions.remove(&session.info.peer);
            }
        }
        self.generations[id.index as usize] = self.generations[id.index as usize].wrapping_add(1);
        self.free.push(id.index);
        self.route_generation += 1;
        self.readiness.gates.retain(|(owner, _), _| *owner != id);
        self.receivers_changed(id);
        self.note_use(&session.info);
        self.publish_presence(&session.info, "disconnected", Some((code, text)));
    }

    fn session(&self, id: SessionId) -> Option<&Session> {
        let current = *self.generations.get(id.index as usize)?;
        self.sessions.get(id.index as usize)?.as_ref().filter(|_| current == id.generation)
    }

    fn session_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        find(&mut self.sessions, &self.generations, id)
    }

    /// All sessions.
    pub(super) fn each_session(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.sessions.iter().enumerate().filter_map(|(index, session)| {
            let id = SessionId { index: index as u32, generation: self.generations[index] };
            session.as_ref().map(|session| (id, session))
        })
    }

    /// Who is behind a session.
    pub fn info(&self, id: SessionId) -> Option<&SessionInfo> {
        self.session(id).map(|session| &session.info)
    }

    /// The rows of the ledger.
    pub fn ledger_rows(&self) -> impl Iterator<Item = (RowKey, super::ledger::Counts)> {
        self.ledger.rows()
    }

    /// How many requests are in flight.
    pub fn requests_in_flight(&self) -> usize {
        self.requests.in_flight()
    }

    /// The sessions that authenticated with this key.
    pub fn sessions_of_key(&self, key: &PublicKey) -> Vec<SessionId> {
        self.each_session()
            .filter(|(_, session)| session.info.key.as_ref() == Some(key))
            .map(|(id, _)| id)
            .collect()
    }

    /// Puts new permissions into force for every session, or ends those that `judge` refuses.
    pub fn reauthorise(&mut self, judge: impl Fn(&SessionInfo) -> Result<Arc<Permissions>, Ending>) {
        let ids: Vec<SessionId> = self.each_session().map(|(id, _)| id).collect();
        for id in ids {
            let Some(session) = self.session_mut(id) else { continue };
            match judge(&session.info) {
                Ok(permissions) if *permissions == *session.info.permissions => {
                    session.info.permissions = permissions;
                }
                Ok(permissions) => {
                    session.info.permissions = permissions;
                    self.withhold(id);
                }
                Err(ending) => self.end(id, ending),
            }
        }
        self.route_generation += 1;
        self.reauthorise_watches();
    }

    /// Sessions that have something to send and were not named since.
    pub fn take_dirty(&mut self) -> Vec<SessionId> {
        if std::mem::take(&mut self.slow_is_new) {
            self.look_at_slow_lanes();
        }
        self.publish_pending();
        let dirty = std::mem::take(&mut self.dirty);
        for id in &dirty {
            if let Some(session) = self.session_mut(*id) {
                session.is_dirty = false;
            }
        }
        dirty
    }

    /// Sessions that must end. The caller says goodbye, closes the socket and calls [`Hub::close`].
    pub fn take_ending(&mut self) -> Vec<(SessionId, Ending)> {
        std::mem::take(&mut self.ending)
    }

    /// Asks for a session to end.
    pub fn end(&mut self, id: SessionId, ending: Ending) {
        if let Some(session) = self.session_mut(id)
            && !session.is_ending
        {
            session.is_ending = true;
            self.ending.push((id, ending));
        }
    }

    fn mark_dirty(&mut self, id: SessionId) {
        if let Some(session) = self.session_mut(id)
            && !session.is_dirty
        {
            session.is_dirty = true;
            self.dirty.push(id);
        }
    }

    fn send_control(&mut self, id: SessionId, record: Record) {
        let Some(session) = self.session_mut(id) else { return };
        session.control_bytes += record.bytes_hint();
        session.control.push_back(record);
        if session.control_bytes > limits::CONTROL_QUEUE_BYTES {
            let text = format!("{} bytes of answers wait and are not read", session.control_bytes);
            self.end(id, Ending { code: "control_queue_full", text });
        }
        self.mark_dirty(id);
    }

    // ---- input: native ---------------------------------------------------------------------

    /// Takes a record of a native or local session.
    pub fn record(&mut self, id: SessionId, record: Record) {
        let Some(session) = self.session_mut(id) else { return };
        let is_first = matches!(record, Record::Hello { .. } | Record::Goodbye { .. }) && !session.is_ending;
        if !session.greeted && !is_first {
            let text = "the first record must be `hello`".to_owned();
            return self.end(id, Ending { code: "protocol", text });
        }
        match record {
            Record::Hello { major, minor, program, .. } => self.on_hello(id, major, minor, program),
            Record::Subscribe(spec) => self.on_subscribe(id, spec),
            Record::Unsubscribe { id: subscription } => self.on_unsubscribe(id, subscription),
            Record::Publish(block) => self.on_publish(id, block),
            Record::Request { id: request, window, block, .. } => {
                let window =
                    if window == 0 { limits::REPLY_WINDOW } else { window.min(limits::REPLY_WINDOW) };
                self.on_request(id, request, window, block);
            }
            Record::Reply { id: key, header, payload } => self.on_reply(id, RequestKey(key), header, payload),
            Record::ReplyEnd { id: key, status, code, text, header, payload } => {
                self.on_reply_end(id, RequestKey(key), status, (code, text), (header, payload));
            }
            Record::Cancel { id: request } => {
                if let Some(key) = self.requests.key_of(id, request) {
                    self.cancel(key);
                }
            }
            Record::Credit { scope: CreditScope::Subscription { id: subscription, messages } } => {
                self.on_credit(id, subscription, messages);
            }
            Record::Credit { scope: CreditScope::Request { id: request, parts } } => {
                self.on_request_credit(id, request, parts);
            }
            Record::Ping { number, answer: false } => {
                self.send_control(id, Record::Ping { number, answer: true });
            }
            Record::Will { block } => self.on_will(id, block),
            Record::Schema { fingerprint, name, format, body } => {
                self.on_schema(id, fingerprint, name, format, body);
            }
            Record::Goodbye { .. } => {
                // At once: the socket may close before the session has ended in order.
                session.will = None;
                session.greeted = false;
                self.end(id, Ending { code: "closing", text: "the peer said goodbye".to_owned() })
            }
            // A broker's records from a client, or answers that need none.
            Record::Ping { .. }
            | Record::Credit { .. }
            | Record::Origin { .. }
            | Record::Subscribed { .. }
            | Record::Accepted { .. }
            | Record::Deliver { .. }
            | Record::Denied { .. }
            | Record::Gap { .. }
            | Record::BrokerKey { .. }
            | Record::Fragment { .. } => {}
        }
    }

    fn on_hello(&mut self, id: SessionId, major: u16, _minor: u16, program: String) {
        let epoch = *self.epoch.as_bytes();
        let Some(session) = self.session_mut(id) else { return };
        session.program = program;
        if major != native::VERSION_MAJOR {
            let text =
                format!("the peer speaks version {major}, this broker version {}", native::VERSION_MAJOR);
            return self.end(id, Ending { code: "version", text });
        }
        session.greeted = true;
        let peer = session.info.peer.to_string();
        let (major, minor) = (native::VERSION_MAJOR, native::VERSION_MINOR);
        let program = concat!("interlock-bus ", env!("CARGO_PKG_VERSION")).to_owned();
        self.send_control(id, Record::Hello { major, minor, program, peer, epoch });
        self.tell_broker_key(id);
    }

    // ---- denials, presence, time -----------------------------------------------------------------------

    fn deny(
        &mut self,
        id: SessionId,
        operation: Operation,
        reference: u64,
        code: &'static str,
        topic: &str,
        text: &str,
    ) {
        self.note_denial(id, operation, code, topic, text);
        let (code, topic, text) = (code.to_owned(), topic.to_owned(), text.to_owned());
        self.send_control(id, Record::Denied { operation, reference, code, topic, text });
    }

    /// Counts a refused operation and publishes it on `$sys/denied`.
    fn note_denial(
        &mut self,
        id: SessionId,
        operation: Operation,
        code: &'static str,
        topic: &str,
        text: &str,
    ) {
        let now_ms = self.now_ms;
        let Some(session) = self.session_mut(id) else { return };
        session.counts.denied += 1;
        let peer = session.info.peer.clone();
        let (topic, text) = (denials::on_one_line(topic), denials::on_one_line(text));
        if let Some(event) = self.denials.note(peer, operation, code, &topic, &text, now_ms) {
            tracing::warn!(peer = %event.peer, operation = operation.as_str(), topic = %event.topic, code, "denied: {text}");
            self.publish_own("$sys/denied", &event);
        }
    }

    fn publish_presence(&mut self, info: &SessionInfo, state: &str, reason: Option<(&str, &str)>) {
        let SessionInfo { peer, kind, address, .. } = info;
        let sessions = self.peer_sessions.get(peer).copied().unwrap_or(0);
        let mut event = serde_json::json!({
            "peer": peer, "kind": kind, "address": address, "state": state, "sessions": sessions,
        });
        if let Some((code, text)) = reason {
            event["code"] = code.into();
            event["text"] = text.into();
        }
        // Retained as long as the peer has a session, so that whoever subscribes later knows who is there.
        self.publish_own_last(&format!("$peers/{peer}"), &event, sessions > 0);
        self.presence_changed(peer);
    }

    /// Remembers a connection that was refused and publishes it on `$sys/auth/refused`.
    pub fn refused(&mut self, event: RefusalEvent) {
        self.refusals.add(event.clone());
        self.publish_own("$sys/auth/refused", &event);
    }

    /// Lets time pass: deadlines and delayed events.
    pub fn tick(&mut self, now_ms: u64) {
        self.set_now(now_ms * NS_PER_MS);
        while let Some(key) = self.requests.pop_expired(now_ms) {
            let last_words = self.last_words(key);
            if let Some(request) = self.remove_request(key) {
                let (text, part) = match last_words {
                    Some((text, part)) => (text, Some(part)),
                    None => (format!("`{}` was not answered before its deadline", request.topic), None),
                };
                self.end_for(request.requester, request.requester_id, Status::TimedOut, "", &text, part);
                self.recall(key, &request);
            }
        }
        self.answer_gates();
        for event in self.denials.take_changed() {
            self.publish_own("$sys/denied", &event);
        }
        self.look_at_holds();
        self.look_at_drops();
        self.look_at_slow_lanes();
    }

    /// Sets the clock, in nanoseconds since the Unix epoch, without letting anything expire; cheap enough for every turn
    /// of the loop.
    pub fn set_now(&mut self, now_ns: u64) {
        (self.now_ms, self.now_ns) = (now_ns / NS_PER_MS, now_ns);
    }

    /// Notes how long a message took that was just counted.
    fn count_delay(&mut self, topic: TopicId, published_at_ns: Option<u64>) {
        if let Some(delay_ns) = delay_ns(published_at_ns, self.now_ns) {
            self.statistics.delayed(topic, delay_ns);
        }
    }
}

/// A session, while other parts of the hub are in use.
fn find<'a>(
    sessions: &'a mut [Option<Session>],
    generations: &[u32],
    id: SessionId,
) -> Option<&'a mut Session> {
    let current = *generations.get(id.index as usize)?;
    sessions.get_mut(id.index as usize)?.as_mut().filter(|_| current == id.generation)
}
