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
    denials::Denials,
    ledger::{DropReason, Ledger, RowId, RowKey},
    refusals::{RefusalEvent, Refusals},
    requests::{PendingRequest, RequestKey, Requests},
    send_queue::{Dropped, Entry, Pushed, SendQueue},
    statistics::{Statistics, TopicId},
};
use crate::{
    codec,
    crypto::PublicKey,
    envelope::{Header, Payload},
    keys::{Permissions, Right},
    limits,
    native::{self, Block, CreditScope, Operation, Overflow, Record, Status, SubscribeSpec, SubscriptionIds},
    peer::PeerName,
    topic::{TopicFilter, TopicName},
};

/// A session, by place and by how often the place was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    index: u32,
    generation: u32,
}

/// How a session speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionKind {
    /// The record protocol over a socket.
    Native,
    /// The record protocol without a socket, in the broker's process.
    Local,
    /// PUB or XPUB.
    StockPublisher,
    /// SUB or XSUB.
    StockSubscriber,
    /// REQ or DEALER.
    StockRequester,
}

/// Who is behind a session.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// The registered name.
    pub peer: PeerName,
    /// The key it authenticated with; `None` in the broker's process.
    pub key: Option<PublicKey>,
    /// How it speaks.
    pub kind: SessionKind,
    /// Where it comes from, for the tool.
    pub address: String,
    /// What it may do.
    pub permissions: Arc<Permissions>,
}

/// One subscription or served filter of a session.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) id: u32,
    pub(super) matcher: Matcher,
    pub(super) serve: bool,
    pub(super) group: Option<String>,
    pub(super) queue: SendQueue,
}

impl Lane {
    pub(super) fn matches(&self, topic: &TopicName) -> bool {
        self.matcher.matches(topic)
    }
}

/// What a lane matches.
#[derive(Debug)]
pub(super) enum Matcher {
    Filter(TopicFilter),
    /// ZeroMQ's byte prefixes, as a set. `$` topics only for prefixes that begin with `$`.
    Prefixes(BTreeSet<Vec<u8>>),
}

impl Matcher {
    fn matches(&self, topic: &TopicName) -> bool {
        match self {
            Self::Filter(filter) => filter.matches(topic),
            Self::Prefixes(prefixes) => prefixes.iter().any(|prefix| {
                topic.as_str().as_bytes().starts_with(prefix)
                    && (!topic.is_reserved() || prefix.starts_with(b"$"))
            }),
        }
    }

    /// The matcher as the tool prints it.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Filter(filter) => filter.to_string(),
            Self::Prefixes(prefixes) => {
                let texts: Vec<_> =
                    prefixes.iter().map(|prefix| format!("\"{}\"*", prefix.escape_ascii())).collect();
                texts.join(" ")
            }
        }
    }
}

/// Counters of one session, for the tool.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct SessionCounts {
    /// Messages published and requests sent.
    pub published: u64,
    /// Messages and requests delivered to it.
    pub delivered: u64,
    /// Messages dropped on the way to it.
    pub dropped: u64,
    /// Operations refused to it.
    pub denied: u64,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) info: SessionInfo,
    pub(super) program: String,
    pub(super) opened_ms: u64,
    pub(super) counts: SessionCounts,
    pub(super) lanes: Vec<Lane>,
    /// Where the next round over the lanes begins.
    next_lane: usize,
    greeted: bool,
    control: VecDeque<Record>,
    control_bytes: usize,
    replies: VecDeque<Record>,
    reply_bytes: usize,
    announced: HashSet<u32>,
    routes: HashMap<Bytes, Rc<Route>>,
    requests_in_flight: usize,
    /// Topics this publisher is held on.
    held: HashSet<TopicName>,
    is_dirty: bool,
    is_ending: bool,
}

/// Where a topic goes, from one session. Valid for one generation of routes.
#[derive(Debug)]
struct Route {
    generation: u64,
    topic: TopicName,
    statistics: TopicId,
    may_publish: bool,
    targets: Vec<Target>,
    groups: Vec<Vec<Target>>,
    /// Rows of subscribers that ask for the topic and may not have it.
    denied: Vec<RowId>,
    /// The row of this publisher and topic without a subscriber.
    nobody: RowId,
}

#[derive(Clone, Debug)]
struct Target {
    session: SessionId,
    lane: u32,
    subscriptions: SubscriptionIds,
    row: RowId,
}

/// What became of a publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Subscribers it was queued for.
    pub subscribers: u32,
    /// Subscribers it was dropped for.
    pub dropped: u32,
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
    pub(super) retained: HashMap<TopicName, Block>,
    retained_bytes: usize,
    pub(super) schemas: HashMap<u64, (String, String, Bytes)>,
    origins: Vec<PeerName>,
    origin_index: HashMap<PeerName, u32>,
    /// Grows with every change that can alter a route.
    route_generation: u64,
    pub(super) sequence: u64,
    /// Topics whose publishers are held, and the lanes they wait for.
    held: HashMap<TopicName, HashSet<(SessionId, u32)>>,
    dirty: Vec<SessionId>,
    ending: Vec<(SessionId, Ending)>,
    pub(super) started_ms: u64,
    pub(super) now_ms: u64,
    /// The broker itself, as the origin of its own messages.
    broker: PeerName,
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
            retained: HashMap::new(),
            retained_bytes: 0,
            schemas: HashMap::new(),
            origins: Vec::new(),
            origin_index: HashMap::new(),
            route_generation: 1,
            sequence: 0,
            held: HashMap::new(),
            dirty: Vec::new(),
            ending: Vec::new(),
            started_ms: now_ms,
            now_ms,
            broker: broker.clone(),
        };
        hub.origin(&broker);
        hub
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
            announced: HashSet::new(),
            routes: HashMap::new(),
            requests_in_flight: 0,
            held: HashSet::new(),
            is_dirty: false,
            is_ending: false,
        };
        if presence == SessionKind::StockSubscriber {
            let matcher = Matcher::Prefixes(BTreeSet::new());
            let queue = SendQueue::new(Overflow::DropNewest, 0, 0);
            session.lanes.push(Lane { id: 1, matcher, serve: false, group: None, queue });
        }
        let peer = session.info.peer.clone();
        self.sessions[index as usize] = Some(session);
        self.publish_presence(&peer, presence, "connected");
        id
    }

    /// Removes a session and settles everything it leaves behind.
    pub fn close(&mut self, id: SessionId) {
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
        let Some(session) = self.sessions[id.index as usize].take() else { return };
        self.generations[id.index as usize] = self.generations[id.index as usize].wrapping_add(1);
        self.free.push(id.index);
        self.route_generation += 1;
        self.publish_presence(&session.info.peer, session.info.kind, "disconnected");
    }

    fn session(&self, id: SessionId) -> Option<&Session> {
        let current = *self.generations.get(id.index as usize)?;
        self.sessions.get(id.index as usize)?.as_ref().filter(|_| current == id.generation)
    }

    fn session_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        let current = *self.generations.get(id.index as usize)?;
        self.sessions.get_mut(id.index as usize)?.as_mut().filter(|_| current == id.generation)
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

    /// How many requests are in flight.
    pub fn requests_in_flight(&self) -> usize {
        self.requests.len()
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
                Ok(permissions) => session.info.permissions = permissions,
                Err(ending) => self.end(id, ending),
            }
        }
        self.route_generation += 1;
    }

    /// Sessions that have something to send and were not named since.
    pub fn take_dirty(&mut self) -> Vec<SessionId> {
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

    // ---- output ---------------------------------------------------------------------------

    /// The next record to send to a session: control first, then replies, then deliveries in turn.
    pub fn next_record(&mut self, id: SessionId) -> Option<Record> {
        if let Some(record) = self.next_control(id) {
            return Some(record);
        }
        let session = self.session_mut(id)?;
        if let Some(record) = session.replies.pop_front() {
            session.reply_bytes -= record.bytes_hint();
            if session.info.kind == SessionKind::StockRequester {
                self.credit_for_stock(id, &record);
            }
            return Some(record);
        }
        let entry = self.next_entry(id)?;
        self.deliver(id, entry)
    }

    /// The next control record only; they may go between the fragments of another.
    pub fn next_control(&mut self, id: SessionId) -> Option<Record> {
        let session = self.session_mut(id)?;
        let record = session.control.pop_front()?;
        session.control_bytes -= record.bytes_hint();
        Some(record)
    }

    /// Whether [`Hub::next_record`] would give something.
    pub fn has_output(&self, id: SessionId) -> bool {
        self.session(id).is_some_and(|session| {
            !session.control.is_empty()
                || !session.replies.is_empty()
                || session.lanes.iter().any(|lane| lane.queue.can_pop())
        })
    }

    fn next_entry(&mut self, id: SessionId) -> Option<(usize, Entry)> {
        let session = self.session_mut(id)?;
        let lanes = session.lanes.len();
        for step in 0..lanes {
            let at = (session.next_lane + step) % lanes;
            if let Some(entry) = session.lanes[at].queue.pop() {
                session.next_lane = (at + 1) % lanes;
                return Some((at, entry));
            }
        }
        None
    }

    /// Turns a queued entry into its record. Gaps and origin names that must come first are put into
    /// the control queue, with the record behind them.
    fn deliver(&mut self, id: SessionId, (at, entry): (usize, Entry)) -> Option<Record> {
        let origin = entry.block.origin;
        let peer = self.origins.get(origin as usize).cloned();
        let session = self.session_mut(id)?;
        let lane = &mut session.lanes[at];
        let record = match entry.request {
            None => Record::Deliver { subscriptions: entry.subscriptions, block: entry.block },
            // A request that ended meanwhile was withdrawn, or a cancel follows it.
            Some(key) => Record::Request {
                id: key.0,
                subscription: lane.id,
                window: limits::REPLY_WINDOW,
                block: entry.block,
            },
        };
        let lane_id = lane.id;
        let lost = lane.queue.take_lost();
        let is_native = matches!(session.info.kind, SessionKind::Native | SessionKind::Local);
        session.counts.delivered += 1;
        self.release_held_by(id, lane_id);
        if !is_native {
            return Some(record);
        }
        let session = self.session_mut(id)?;
        let mut first = Vec::new();
        if lost > 0 {
            first.push(Record::Gap {
                subscription: lane_id,
                count: lost,
                reason: "slow_consumer".to_owned(),
            });
        }
        if let Some(peer) = peer.filter(|_| session.announced.insert(origin)) {
            first.push(Record::Origin { origin, peer: peer.to_string() });
        }
        if first.is_empty() {
            return Some(record);
        }
        // Control goes before replies and deliveries, so these reach the client in this order.
        session.replies.push_front(record);
        session.reply_bytes += session.replies[0].bytes_hint();
        for record in first.into_iter().rev() {
            session.control_bytes += record.bytes_hint();
            session.control.push_front(record);
        }
        self.next_control(id)
    }

    // ---- input: native ---------------------------------------------------------------------

    /// Takes a record of a native or local session.
    pub fn record(&mut self, id: SessionId, record: Record) {
        let Some(session) = self.session_mut(id) else { return };
        if !session.greeted && !matches!(record, Record::Hello { .. } | Record::Goodbye { .. }) {
            let text = "the first record must be `hello`".to_owned();
            return self.end(id, Ending { code: "protocol", text });
        }
        match record {
            Record::Hello { major, minor, program, .. } => self.on_hello(id, major, minor, program),
            Record::Subscribe(spec) => self.on_subscribe(id, spec),
            Record::Unsubscribe { id: subscription } => self.on_unsubscribe(id, subscription),
            Record::Publish(block) => self.on_publish(id, block),
            Record::Request { id: request, block, .. } => self.on_request(id, request, block),
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
            Record::Schema { fingerprint, name, format, body } => {
                self.on_schema(id, fingerprint, name, format, body);
            }
            Record::Goodbye { .. } => {
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
            | Record::Fragment { .. } => {}
        }
    }

    fn on_hello(&mut self, id: SessionId, major: u16, _minor: u16, program: String) {
        let epoch = *self.epoch.as_bytes();
        let Some(session) = self.session_mut(id) else { return };
        session.program = program;
        session.greeted = true;
        let peer = session.info.peer.to_string();
        if major != native::VERSION_MAJOR {
            let text =
                format!("the peer speaks version {major}, this broker version {}", native::VERSION_MAJOR);
            return self.end(id, Ending { code: "version", text });
        }
        let (major, minor) = (native::VERSION_MAJOR, native::VERSION_MINOR);
        let program = concat!("interlock-bus ", env!("CARGO_PKG_VERSION")).to_owned();
        self.send_control(id, Record::Hello { major, minor, program, peer, epoch });
    }

    fn on_subscribe(&mut self, id: SessionId, spec: SubscribeSpec) {
        let (operation, right) = match spec.serve {
            true => (Operation::Serve, Right::Serve),
            false => (Operation::Subscribe, Right::Subscribe),
        };
        let reference = u64::from(spec.id);
        let Some(session) = self.session(id) else { return };
        let filter = match spec.filter.parse::<TopicFilter>() {
            Ok(filter) => filter,
            Err(error) => {
                return self.deny(
                    id,
                    operation,
                    reference,
                    "invalid_filter",
                    &spec.filter,
                    &error.to_string(),
                );
            }
        };
        if spec.id == 0 || session.lanes.iter().any(|lane| lane.id == spec.id) {
            let text = format!("subscription id {} is zero or in use", spec.id);
            return self.deny(id, operation, reference, "invalid_id", &spec.filter, &text);
        }
        if session.lanes.len() >= limits::SUBSCRIPTIONS_PER_SESSION_MAX {
            let text =
                format!("a session has at most {} subscriptions", limits::SUBSCRIPTIONS_PER_SESSION_MAX);
            return self.deny(id, operation, reference, "too_many", &spec.filter, &text);
        }
        let permissions = Arc::clone(&session.info.permissions);
        let rules = permissions.rules(right);
        let concrete = spec.filter.parse::<TopicName>().ok();
        let possible = match &concrete {
            Some(topic) => rules.permit(topic),
            None => rules.allow.iter().any(|allowed| allowed.overlaps(&filter)),
        };
        if !possible {
            let text = format!("`{}` may not {} `{}`", session.info.peer, operation.as_str(), spec.filter);
            return self.deny(id, operation, reference, "not_permitted", &spec.filter, &text);
        }
        if spec.overflow == Overflow::Wait && !permissions.wait {
            let text = format!("`{}` may not hold publishers; give it `wait = true`", session.info.peer);
            return self.deny(id, operation, reference, "wait_not_permitted", &spec.filter, &text);
        }
        let lane = Lane {
            id: spec.id,
            matcher: Matcher::Filter(filter.clone()),
            serve: spec.serve,
            group: (!spec.group.is_empty()).then_some(spec.group),
            queue: SendQueue::new(spec.overflow, spec.queue_messages_max, spec.queue_bytes_max),
        };
        if let Some(session) = self.session_mut(id) {
            session.lanes.push(lane);
        }
        self.route_generation += 1;
        self.send_control(id, Record::Subscribed { id: spec.id, from_sequence: self.sequence + 1 });
        if spec.retained && !spec.serve {
            self.send_retained(id, spec.id, &filter);
        }
    }

    fn send_retained(&mut self, id: SessionId, lane: u32, filter: &TopicFilter) {
        let Some(session) = self.session(id) else { return };
        let (subscriber, permissions) = (session.info.peer.clone(), Arc::clone(&session.info.permissions));
        let mut values: Vec<(TopicName, Block)> = self
            .retained
            .iter()
            .filter(|(topic, _)| filter.matches(topic) && permissions.permit(Right::Subscribe, topic))
            .map(|(topic, block)| (topic.clone(), block.clone()))
            .collect();
        values.sort_by_key(|(_, block)| block.sequence);
        for (topic, mut block) in values {
            block.flags = (block.flags & Block::PARTS) | Block::RETAIN;
            let publisher = self.origins.get(block.origin as usize).cloned();
            let row = self.ledger.row(RowKey {
                publisher,
                topic: Some(topic),
                subscriber: Some(subscriber.clone()),
            });
            let target =
                Target { session: id, lane, subscriptions: SubscriptionIds::from_slice(&[lane]), row };
            self.push(&target, block, None, id);
        }
    }

    fn on_unsubscribe(&mut self, id: SessionId, subscription: u32) {
        let Some(session) = self.session_mut(id) else { return };
        let Some(at) = session.lanes.iter().position(|lane| lane.id == subscription) else { return };
        let mut lane = session.lanes.remove(at);
        session.next_lane = 0;
        self.route_generation += 1;
        self.settle_lane(id, &mut lane, DropReason::Unsubscribed);
        for key in
            self.requests.matching(|request| request.server == id && request.subscription == subscription)
        {
            self.end_request(key, Status::ServerGone, "", "the server stopped serving the topic");
        }
    }

    fn settle_lane(&mut self, id: SessionId, lane: &mut Lane, reason: DropReason) {
        let ledger = &mut self.ledger;
        lane.queue.abandon(|row, messages| ledger.dropped_from_queue(row, messages, reason));
        self.release_held(id, lane.id);
    }

    fn on_credit(&mut self, id: SessionId, subscription: u32, messages: u64) {
        let current = self.generations.get(id.index as usize).copied();
        let Some(Some(session)) = self.sessions.get_mut(id.index as usize) else { return };
        if current != Some(id.generation) {
            return;
        }
        let Some(lane) = session.lanes.iter_mut().find(|lane| lane.id == subscription) else { return };
        let ledger = &mut self.ledger;
        lane.queue.credit(messages, |row, messages| ledger.delivered(row, messages));
        if lane.queue.can_pop() {
            self.mark_dirty(id);
        }
        self.release_held_by(id, subscription);
    }

    fn on_schema(&mut self, id: SessionId, fingerprint: u64, name: String, format: String, body: Bytes) {
        const SCHEMAS_MAX: usize = 1024;
        const SCHEMA_BYTES_MAX: usize = 64 << 10;
        if body.len() > SCHEMA_BYTES_MAX
            || (self.schemas.len() >= SCHEMAS_MAX && !self.schemas.contains_key(&fingerprint))
        {
            let text = format!(
                "schema `{name}` is refused: {SCHEMAS_MAX} schemas of {SCHEMA_BYTES_MAX} bytes at most"
            );
            return self.deny(id, Operation::Publish, fingerprint, "schema_limit", "", &text);
        }
        self.schemas.insert(fingerprint, (name, format, body));
    }

    // ---- publish -----------------------------------------------------------------------------

    fn on_publish(&mut self, id: SessionId, block: Block) {
        let (reference, flags) = (block.sequence, block.flags);
        match self.publish(id, block) {
            Ok(published) if flags & Block::ACKNOWLEDGE != 0 => self.send_control(
                id,
                Record::Accepted {
                    sequence: reference,
                    subscribers: published.subscribers,
                    dropped: published.dropped,
                },
            ),
            Ok(_) => {}
            Err((code, topic, text)) => self.deny(id, Operation::Publish, reference, code, &topic, &text),
        }
    }

    /// Routes a message of a session. The error is code, topic and text.
    ///
    /// # Errors
    /// An invalid topic, a payload that is too large, a missing permission.
    pub fn publish(
        &mut self,
        id: SessionId,
        mut block: Block,
    ) -> Result<Published, (&'static str, String, String)> {
        let topic_text = |block: &Block| String::from_utf8_lossy(block.topic()).into_owned();
        let payload_bytes = block.payload().len();
        if payload_bytes > limits::PAYLOAD_BYTES_MAX {
            let text = format!(
                "payload has {payload_bytes} bytes; the limit is {} bytes",
                limits::PAYLOAD_BYTES_MAX
            );
            return Err(("too_large", topic_text(&block), text));
        }
        let route = self
            .route(id, &block)
            .map_err(|error| ("invalid_topic", topic_text(&block), error.to_string()))?;
        if !route.may_publish {
            self.ledger.denied(route.nobody);
            self.statistics.count_denied(route.statistics);
            let peer = self.info(id).map(|info| info.peer.to_string()).unwrap_or_default();
            return Err((
                "not_permitted",
                topic_text(&block),
                format!("`{peer}` may not publish `{}`", route.topic),
            ));
        }
        if let Some(session) = self.session_mut(id) {
            session.counts.published += 1;
            block.origin = self.origin_of(id);
        }
        Ok(self.publish_routed(&route, block, payload_bytes, id))
    }

    fn publish_routed(
        &mut self,
        route: &Route,
        mut block: Block,
        payload_bytes: usize,
        from: SessionId,
    ) -> Published {
        self.sequence += 1;
        block.sequence = self.sequence;
        self.statistics.count(route.statistics, payload_bytes, self.now_ms);
        let retain = block.flags & Block::RETAIN != 0;
        block.flags &= Block::PARTS;
        if retain {
            self.retain(&route.topic, &block, payload_bytes);
        }
        route.denied.iter().for_each(|row| self.ledger.denied(*row));
        let mut published = Published::default();
        if block.deadline_ms != 0 && block.deadline_ms <= self.now_ms {
            self.ledger.dropped(route.nobody, DropReason::Expired);
            return published;
        }
        let mut tally = |was_queued: bool| match was_queued {
            true => published.subscribers += 1,
            false => published.dropped += 1,
        };
        for target in &route.targets {
            tally(self.push(target, block.clone(), None, from));
        }
        for members in &route.groups {
            // The member after the one served last goes first; one that is full is passed over.
            let first = (self.sequence as usize) % members.len();
            let order = (0..members.len()).map(|step| &members[(first + step) % members.len()]);
            let free = order.clone().find(|member| self.depth(member) == 0);
            let least = free.or_else(|| order.min_by_key(|member| self.depth(member)));
            if let Some(member) = least {
                tally(self.push(member, block.clone(), None, from));
            }
        }
        if route.targets.is_empty() && route.groups.is_empty() && route.denied.is_empty() {
            self.ledger.dropped(route.nobody, DropReason::NoSubscriber);
        }
        published
    }

    fn depth(&self, target: &Target) -> u64 {
        let lanes = self.session(target.session).map(|session| &session.lanes);
        let lane = lanes.and_then(|lanes| lanes.iter().find(|lane| lane.id == target.lane));
        lane.map_or(u64::MAX, |lane| lane.queue.depth())
    }

    /// Publishes a message of the broker itself.
    pub fn publish_own(&mut self, topic: &str, value: &impl serde::Serialize) {
        let (Ok(topic), Ok(payload)) = (topic.parse::<TopicName>(), Payload::json(value)) else {
            debug_assert!(false, "the broker's own topics are legal and its events are plain JSON");
            return;
        };
        let route = self.build_route(None, topic);
        let mut header = Vec::new();
        codec::put_header(&Header::for_payload(&payload), &mut header);
        let block = Block::new(&route.topic, &header, &payload.bytes);
        let nobody = SessionId { index: u32::MAX, generation: 0 };
        self.publish_routed(&route, block, payload.bytes.len(), nobody);
    }

    fn retain(&mut self, topic: &TopicName, block: &Block, payload_bytes: usize) {
        let old_bytes = self.retained.get(topic).map_or(0, Block::bytes);
        if payload_bytes == 0 {
            self.retained.remove(topic);
            self.retained_bytes -= old_bytes;
        } else if self.retained_bytes - old_bytes + block.bytes() <= limits::RETAINED_BYTES_MAX {
            self.retained.insert(topic.clone(), block.clone());
            self.retained_bytes = self.retained_bytes - old_bytes + block.bytes();
        } else {
            self.denials.retained_full();
        }
    }

    /// Queues a message for one subscriber; `false` if it was dropped instead.
    fn push(&mut self, target: &Target, block: Block, request: Option<RequestKey>, from: SessionId) -> bool {
        let current = self.generations.get(target.session.index as usize).copied();
        let Some(Some(session)) = self.sessions.get_mut(target.session.index as usize) else { return false };
        if current != Some(target.session.generation) {
            return false;
        }
        let Some(lane) = session.lanes.iter_mut().find(|lane| lane.id == target.lane) else { return false };
        let topic = (lane.queue.overflow() == Overflow::Wait).then(|| block.topic().to_vec());
        let entry = Entry { subscriptions: target.subscriptions.clone(), request, block, row: target.row };
        let mut dropped: Vec<Dropped> = Vec::new();
        let outcome = lane.queue.push(entry, &mut dropped);
        session.counts.dropped += dropped.len() as u64;
        for (row, request, reason) in dropped {
            self.ledger.dropped_from_queue(row, 1, reason);
            if let Some(key) = request {
                self.end_request(key, Status::Busy, "", "the server's queue was full");
            }
        }
        match outcome {
            Pushed::Queued => self.ledger.queued(target.row),
            Pushed::QueuedAndFull => {
                self.ledger.queued(target.row);
                if let Some(topic) = topic.and_then(|topic| TopicName::from_bytes(&topic).ok()) {
                    self.hold(topic, target, from);
                }
            }
            Pushed::Refused | Pushed::Disconnect => {
                self.ledger.dropped(target.row, DropReason::SlowConsumer);
                if let Some(session) = self.session_mut(target.session) {
                    session.counts.dropped += 1;
                }
                if outcome == Pushed::Disconnect {
                    let text = "its send queue was full and its policy is `disconnect`".to_owned();
                    self.end(target.session, Ending { code: "slow_consumer", text });
                }
                return false;
            }
        }
        self.mark_dirty(target.session);
        true
    }

    // ---- the overflow policy `wait` --------------------------------------------------------------

    fn hold(&mut self, topic: TopicName, target: &Target, publisher: SessionId) {
        self.held.entry(topic.clone()).or_default().insert((target.session, target.lane));
        if let Some(session) = self.session_mut(publisher)
            && session.held.insert(topic.clone())
        {
            let scope = CreditScope::Topic { topic: topic.to_string(), granted: false };
            self.send_control(publisher, Record::Credit { scope });
        }
    }

    /// Whether a session is held on any topic. Stock publishers know no credit: their socket is
    /// not read while this is so.
    pub fn is_held(&self, id: SessionId) -> bool {
        self.session(id).is_some_and(|session| !session.held.is_empty())
    }

    fn release_held_by(&mut self, id: SessionId, lane: u32) {
        if self.held.is_empty() {
            return;
        }
        let lanes = self.session(id).map(|session| &session.lanes);
        let has_room = lanes
            .and_then(|lanes| lanes.iter().find(|candidate| candidate.id == lane))
            .is_none_or(|lane| lane.queue.has_room());
        if has_room {
            self.release_held(id, lane);
        }
    }

    fn release_held(&mut self, id: SessionId, lane: u32) {
        let mut released = Vec::new();
        self.held.retain(|topic, waiting_for| {
            waiting_for.remove(&(id, lane));
            if waiting_for.is_empty() {
                released.push(topic.clone());
            }
            !waiting_for.is_empty()
        });
        for topic in released {
            let ids: Vec<SessionId> = self.each_session().map(|(id, _)| id).collect();
            for id in ids {
                if let Some(session) = self.session_mut(id)
                    && session.held.remove(&topic)
                {
                    let scope = CreditScope::Topic { topic: topic.to_string(), granted: true };
                    self.send_control(id, Record::Credit { scope });
                }
            }
        }
    }

    // ---- routes ----------------------------------------------------------------------------------

    fn route(&mut self, id: SessionId, block: &Block) -> Result<Rc<Route>, crate::topic::TopicError> {
        const ROUTES_CACHED_MAX: usize = 4096;
        let generation = self.route_generation + self.ledger.evictions();
        if let Some(session) = self.session(id)
            && let Some(route) = session.routes.get(block.topic())
            && route.generation == generation
        {
            return Ok(Rc::clone(route));
        }
        let topic = TopicName::from_bytes(block.topic())?;
        let route = Rc::new(self.build_route(Some(id), topic));
        if let Some(session) = self.session_mut(id) {
            if session.routes.len() >= ROUTES_CACHED_MAX {
                session.routes.clear();
            }
            session.routes.insert(Bytes::copy_from_slice(block.topic()), Rc::clone(&route));
        }
        Ok(route)
    }

    fn build_route(&mut self, from: Option<SessionId>, topic: TopicName) -> Route {
        let publisher = from.and_then(|id| self.info(id)).map_or(&self.broker, |info| &info.peer).clone();
        let may_publish = match from.and_then(|id| self.info(id)) {
            Some(info) => !is_brokers_own(&topic) && info.permissions.permit(Right::Publish, &topic),
            None => true,
        };
        let mut targets = Vec::new();
        let mut groups: HashMap<(String, String), Vec<Target>> = HashMap::new();
        let mut denied = Vec::new();
        let sessions: Vec<SessionId> = self.each_session().map(|(id, _)| id).collect();
        for session_id in sessions {
            let Some(session) = self.session(session_id) else { continue };
            let matching = || session.lanes.iter().filter(|lane| !lane.serve && lane.matcher.matches(&topic));
            if matching().next().is_none() {
                continue;
            }
            let subscriber = session.info.peer.clone();
            let permitted = session.info.permissions.permit(Right::Subscribe, &topic);
            let plain: SubscriptionIds =
                matching().filter(|lane| lane.group.is_none()).map(|lane| lane.id).collect();
            let grouped: Vec<_> = matching()
                .filter_map(|lane| Some(((lane.group.clone()?, lane.matcher.describe()), lane.id)))
                .collect();
            let key = RowKey {
                publisher: Some(publisher.clone()),
                topic: Some(topic.clone()),
                subscriber: Some(subscriber),
            };
            let row = self.ledger.row(key);
            if !permitted {
                denied.push(row);
                continue;
            }
            if let Some(lane) = plain.first().copied() {
                targets.push(Target { session: session_id, lane, subscriptions: plain, row });
            }
            for (group, lane) in grouped {
                let subscriptions = SubscriptionIds::from_slice(&[lane]);
                groups.entry(group).or_default().push(Target {
                    session: session_id,
                    lane,
                    subscriptions,
                    row,
                });
            }
        }
        let statistics = self.statistics.topic(&topic);
        if may_publish {
            self.statistics.published_by(statistics, &publisher);
        }
        let nobody = self.ledger.row(RowKey {
            publisher: Some(publisher),
            topic: Some(topic.clone()),
            subscriber: None,
        });
        // Read last: making rows above may have evicted one, which shifts the generation.
        let generation = self.route_generation + self.ledger.evictions();
        let groups = groups.into_values().collect();
        Route { generation, topic, statistics, may_publish, targets, groups, denied, nobody }
    }

    fn origin_of(&mut self, id: SessionId) -> u32 {
        let peer = self.info(id).map(|info| info.peer.clone());
        peer.map_or(0, |peer| self.origin(&peer))
    }

    fn origin(&mut self, peer: &PeerName) -> u32 {
        if let Some(origin) = self.origin_index.get(peer) {
            return *origin;
        }
        self.origins.push(peer.clone());
        let origin = self.origins.len() as u32 - 1;
        self.origin_index.insert(peer.clone(), origin);
        origin
    }

    // ---- requests ----------------------------------------------------------------------------------

    fn on_request(&mut self, id: SessionId, request: u64, mut block: Block) {
        let text = String::from_utf8_lossy(block.topic()).into_owned();
        let topic = match TopicName::from_bytes(block.topic()) {
            Ok(topic) => topic,
            Err(error) => {
                return self.refuse_request(id, request, "invalid_topic", &text, &error.to_string());
            }
        };
        let Some(session) = self.session(id) else { return };
        let (requester, permissions) = (session.info.peer.clone(), Arc::clone(&session.info.permissions));
        let (in_flight, is_known) = (session.requests_in_flight, self.requests.key_of(id, request).is_some());
        let payload_bytes = block.payload().len();
        let statistics = self.statistics.topic(&topic);
        if !permissions.permit(Right::Request, &topic) {
            self.statistics.count_denied(statistics);
            let explanation = format!("`{requester}` may not request `{topic}`");
            return self.refuse_request(id, request, "not_permitted", &text, &explanation);
        }
        if payload_bytes > limits::PAYLOAD_BYTES_MAX {
            let explanation = format!(
                "payload has {payload_bytes} bytes; the limit is {} bytes",
                limits::PAYLOAD_BYTES_MAX
            );
            return self.refuse_request(id, request, "too_large", &text, &explanation);
        }
        if is_known {
            let explanation = format!("request id {request} is in use");
            return self.end_for(id, request, Status::Failed, "invalid_id", &explanation, None);
        }
        self.statistics.count(statistics, payload_bytes, self.now_ms);
        self.statistics.count_request(statistics);
        self.statistics.published_by(statistics, &requester);
        if let Some(session) = self.session_mut(id) {
            session.counts.published += 1;
        }
        if let Some(answer) = super::control::answer(self, &topic) {
            return self.end_for(id, request, Status::Done, "", "", Some(answer));
        }
        if in_flight >= limits::REQUESTS_PER_SESSION_MAX {
            let explanation = format!("{in_flight} requests of this session are in flight, the limit");
            return self.end_for(id, request, Status::Busy, "", &explanation, None);
        }
        let servers = self.servers(&topic, &requester);
        if servers.is_empty() {
            let explanation = format!("nobody serves `{topic}`");
            return self.end_for(id, request, Status::NoResponders, "", &explanation, None);
        }
        self.sequence += 1;
        block.sequence = self.sequence;
        block.origin = self.origin_of(id);
        let first = (self.sequence as usize) % servers.len();
        let order = (0..servers.len()).map(|step| &servers[(first + step) % servers.len()]);
        let Some(target) = order.min_by_key(|target| self.depth(target)) else { return };
        let default_deadline_ms = self.now_ms + limits::REQUEST_TIMEOUT.as_millis() as u64;
        let deadline_ms = if block.deadline_ms == 0 { default_deadline_ms } else { block.deadline_ms };
        let (server, subscription) = (target.session, target.lane);
        let pending =
            PendingRequest { requester: id, requester_id: request, server, subscription, topic, parts: 0 };
        let key = self.requests.add(pending, deadline_ms);
        if let Some(session) = self.session_mut(id) {
            session.requests_in_flight += 1;
        }
        if !self.push(target, block, Some(key), id) {
            self.end_request(key, Status::Busy, "", "the server's queue is full");
        }
    }

    fn servers(&mut self, topic: &TopicName, requester: &PeerName) -> Vec<Target> {
        let mut found = Vec::new();
        for (session_id, session) in self.each_session() {
            let lane = session.lanes.iter().find(|lane| lane.serve && lane.matcher.matches(topic));
            if let Some(lane) =
                lane.filter(|_| !session.is_ending && session.info.permissions.permit(Right::Serve, topic))
            {
                found.push((session_id, lane.id, session.info.peer.clone()));
            }
        }
        let target = |(session, lane, server)| {
            let (publisher, topic) = (Some(requester.clone()), Some(topic.clone()));
            let row = self.ledger.row(RowKey { publisher, topic, subscriber: Some(server) });
            Target { session, lane, subscriptions: SubscriptionIds::from_slice(&[lane]), row }
        };
        found.into_iter().map(target).collect()
    }

    fn on_reply(&mut self, server: SessionId, key: RequestKey, header: Bytes, payload: Bytes) {
        let Some(request) = self.requests.get_mut(key).filter(|request| request.server == server) else {
            return;
        };
        request.parts += 1;
        let (requester, requester_id) = (request.requester, request.requester_id);
        let record = Record::Reply { id: requester_id, header, payload };
        let bytes = record.bytes_hint();
        let Some(session) = self.session_mut(requester) else { return };
        if session.reply_bytes + bytes > limits::REPLY_QUEUE_BYTES && session.reply_bytes > 0 {
            let text = format!("{} bytes of replies wait and are not read", session.reply_bytes);
            self.send_control(server, Record::Cancel { id: key.0 });
            return self.end_request(key, Status::Failed, "slow_consumer", &text);
        }
        session.reply_bytes += bytes;
        session.replies.push_back(record);
        self.mark_dirty(requester);
    }

    fn on_reply_end(
        &mut self,
        server: SessionId,
        key: RequestKey,
        status: Status,
        (code, text): (String, String),
        part: (Bytes, Bytes),
    ) {
        if self.requests.get_mut(key).is_none_or(|request| request.server != server) {
            return;
        }
        // A server may end with done or failed; every other status is the broker's to say.
        let status = if status == Status::Done { Status::Done } else { Status::Failed };
        let Some(request) = self.remove_request(key) else { return };
        self.end_for(request.requester, request.requester_id, status, &code, &text, Some(part));
    }

    /// Ends a request on the broker's word.
    fn end_request(&mut self, key: RequestKey, status: Status, code: &str, text: &str) {
        if let Some(request) = self.remove_request(key) {
            self.end_for(request.requester, request.requester_id, status, code, text, None);
        }
    }

    fn remove_request(&mut self, key: RequestKey) -> Option<PendingRequest> {
        let request = self.requests.remove(key)?;
        if let Some(session) = self.session_mut(request.requester) {
            session.requests_in_flight = session.requests_in_flight.saturating_sub(1);
        }
        Some(request)
    }

    /// Sends a request's end, behind its parts.
    fn end_for(
        &mut self,
        id: SessionId,
        request: u64,
        status: Status,
        code: &str,
        text: &str,
        part: Option<(Bytes, Bytes)>,
    ) {
        let (header, payload) = part.unwrap_or_default();
        let record = Record::ReplyEnd {
            id: request,
            status,
            code: code.to_owned(),
            text: text.to_owned(),
            header,
            payload,
        };
        if let Some(session) = self.session_mut(id) {
            session.reply_bytes += record.bytes_hint();
            session.replies.push_back(record);
            self.mark_dirty(id);
        }
    }

    fn refuse_request(&mut self, id: SessionId, request: u64, code: &'static str, topic: &str, text: &str) {
        self.note_denial(id, Operation::Request, code, topic, text);
        self.end_for(id, request, Status::Denied, code, text, None);
    }

    /// The requester wants no more: the server is told, unless it never got the request.
    fn cancel(&mut self, key: RequestKey) {
        let Some(request) = self.remove_request(key) else { return };
        self.end_for(
            request.requester,
            request.requester_id,
            Status::Cancelled,
            "",
            "the requester cancelled it",
            None,
        );
        self.recall(key, &request);
    }

    fn recall(&mut self, key: RequestKey, request: &PendingRequest) {
        let Some(server) = self.session_mut(request.server) else { return };
        let lane = server.lanes.iter_mut().find(|lane| lane.id == request.subscription);
        match lane.and_then(|lane| lane.queue.withdraw(key)) {
            Some(row) => self.ledger.dropped_from_queue(row, 1, DropReason::Expired),
            None => self.send_control(request.server, Record::Cancel { id: key.0 }),
        }
    }

    fn on_request_credit(&mut self, id: SessionId, request: u64, parts: u64) {
        let Some(key) = self.requests.key_of(id, request) else { return };
        let Some(server) = self.requests.get_mut(key).map(|request| request.server) else { return };
        self.send_control(server, Record::Credit { scope: CreditScope::Request { id: key.0, parts } });
    }

    /// Stock requesters know no credit: the broker grants it as their parts leave.
    fn credit_for_stock(&mut self, id: SessionId, record: &Record) {
        if let Record::Reply { id: request, .. } = record
            && let Some(key) = self.requests.key_of(id, *request)
            && let Some(parts) = self.requests.get_mut(key).map(|request| request.parts)
        {
            let waiting = self.session(id).map_or(0, |session| {
                let same = |record: &&Record| matches!(record, Record::Reply { id, .. } if id == request);
                session.replies.iter().filter(same).count() as u64
            });
            self.on_request_credit(id, *request, parts - waiting);
        }
    }

    // ---- stock sessions -------------------------------------------------------------------------------

    /// Changes a stock subscriber's set of prefixes.
    pub fn stock_subscribe(&mut self, id: SessionId, prefix: Vec<u8>, add: bool) {
        let Some(session) = self.session_mut(id) else { return };
        let Some(Lane { matcher: Matcher::Prefixes(prefixes), .. }) = session.lanes.first_mut() else {
            return;
        };
        if !add {
            prefixes.remove(&prefix);
        } else if prefixes.len() < limits::SUBSCRIPTIONS_PER_SESSION_MAX {
            prefixes.insert(prefix);
        } else {
            let text = format!("a session has at most {} prefixes", limits::SUBSCRIPTIONS_PER_SESSION_MAX);
            return self.end(id, Ending { code: "too_many", text });
        }
        self.route_generation += 1;
    }

    /// Publishes a message of a stock publisher.
    pub fn stock_publish(&mut self, id: SessionId, topic: &[u8], parts: &[Bytes]) {
        let denied = |hub: &mut Self, code, text: String| {
            hub.note_denial(id, Operation::Publish, code, &String::from_utf8_lossy(topic), &text);
        };
        let name = match TopicName::from_bytes(topic) {
            Ok(name) => name,
            Err(error) => return denied(self, "invalid_topic", error.to_string()),
        };
        if let Err((code, _, text)) = self.publish(id, stock_block(&name, parts)) {
            denied(self, code, text);
        }
    }

    /// Takes a request of a stock requester; the answer comes as [`Record::Reply`] and
    /// [`Record::ReplyEnd`] with this id.
    pub fn stock_request(&mut self, id: SessionId, request: u64, topic: &[u8], parts: &[Bytes]) {
        match TopicName::from_bytes(topic) {
            Ok(name) => self.on_request(id, request, stock_block(&name, parts)),
            Err(error) => {
                let text = String::from_utf8_lossy(topic).into_owned();
                self.refuse_request(id, request, "invalid_topic", &text, &error.to_string());
            }
        }
    }

    /// Counts deliveries that were written to the kernel for a stock session.
    pub fn stock_delivered(&mut self, id: SessionId, messages: u64) {
        let current = self.generations.get(id.index as usize).copied();
        let Some(Some(session)) = self.sessions.get_mut(id.index as usize) else { return };
        if current != Some(id.generation) {
            return;
        }
        if let Some(lane) = session.lanes.first_mut() {
            let ledger = &mut self.ledger;
            lane.queue.credit_more(messages, |row, messages| ledger.delivered(row, messages));
        }
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
        if let Some(event) = self.denials.note(peer, operation, code, topic, text, now_ms) {
            self.publish_own("$sys/denied", &event);
        }
    }

    fn publish_presence(&mut self, peer: &PeerName, kind: SessionKind, state: &str) {
        let sessions = self.each_session().filter(|(_, session)| session.info.peer == *peer).count();
        let event = serde_json::json!({ "peer": peer, "kind": kind, "state": state, "sessions": sessions });
        self.publish_own(&format!("$peers/{peer}"), &event);
    }

    /// Remembers a connection that was refused and publishes it on `$sys/auth/refused`.
    pub fn refused(&mut self, event: RefusalEvent) {
        self.refusals.add(event.clone());
        self.publish_own("$sys/auth/refused", &event);
    }

    /// Lets time pass: deadlines and delayed events.
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        while let Some(key) = self.requests.pop_expired(now_ms) {
            if let Some(request) = self.remove_request(key) {
                let text = format!("`{}` was not answered before its deadline", request.topic);
                self.end_for(request.requester, request.requester_id, Status::TimedOut, "", &text, None);
                self.recall(key, &request);
            }
        }
        for event in self.denials.take_changed() {
            self.publish_own("$sys/denied", &event);
        }
    }

    /// Sets the clock without letting anything expire; cheap enough for every turn of the loop.
    pub fn set_now(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }
}

/// Topics that nobody but the broker publishes.
fn is_brokers_own(topic: &TopicName) -> bool {
    ["$sys", "$peers"].iter().any(|own| topic.as_str().split('/').next() == Some(own))
}

/// A message of a stock client: no header, and its frames joined if there are several.
fn stock_block(topic: &TopicName, parts: &[Bytes]) -> Block {
    match parts {
        [] => Block::new(topic, b"", b""),
        [payload] => Block::new(topic, b"", payload),
        several => {
            let mut joined = Vec::with_capacity(several.iter().map(|part| part.len() + 4).sum());
            for part in several {
                joined.extend_from_slice(&(part.len() as u32).to_le_bytes());
                joined.extend_from_slice(part);
            }
            let mut block = Block::new(topic, b"", &joined);
            block.flags = Block::PARTS;
            block
        }
    }
}
