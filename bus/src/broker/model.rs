//! The broker as SEMANTICS.md says it, in the plainest form: lists, scans, no caches. Random
//! operations are done to it and to the hub, and both must agree on every delivery and on the ledger.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use proptest::prelude::*;

use super::{
    hub::{Hub, SessionId, SessionInfo, SessionKind},
    ledger::{Counts, DropReason},
};
use crate::{
    keys::{Permissions, Right},
    native::{
        BatchReader, BatchWriter, Block, CreditScope, Operation, Overflow, Record, Status, SubscribeSpec,
    },
    topic::{TopicFilter, TopicName},
};

/// What a session is sent, reduced to what matters.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sent {
    Deliver { subscriptions: Vec<u32>, number: u8 },
    Gap { subscription: u32, count: u64 },
    Denied { operation: Operation },
    Subscribed { id: u32 },
    Request { number: u8 },
    Reply { id: u64 },
    End { id: u64, status: Status },
    Cancel,
}

#[derive(Clone, Debug)]
struct ModelLane {
    id: u32,
    filter: TopicFilter,
    serve: bool,
    overflow: Overflow,
    messages_max: usize,
    queue: VecDeque<Queued>,
    sent: Vec<(String, String)>,
    credited: usize,
    lost: u64,
    /// The same for other subscriptions that were to share the message.
    lost_beside: Vec<(u32, u64)>,
}

impl ModelLane {
    fn lose_beside(&mut self, queued: &Queued) {
        for other in &queued.subscriptions[1..] {
            match self.lost_beside.iter_mut().find(|(id, _)| id == other) {
                Some((_, count)) => *count += 1,
                None => self.lost_beside.push((*other, 1)),
            }
        }
    }

    fn take_losses(&mut self) -> Vec<(u32, u64)> {
        let mut lost = std::mem::take(&mut self.lost_beside);
        lost.extend(Some((self.id, std::mem::take(&mut self.lost))).filter(|(_, count)| *count > 0));
        lost
    }

    /// What a message does that is not queued: whether it is, and what leaves the queue for it.
    fn take(&mut self, queued: &Queued) -> (bool, Vec<(Queued, DropReason)>) {
        let mut gone: Vec<(Queued, DropReason)> = Vec::new();
        if self.overflow == Overflow::LatestOnly && queued.request.is_none() {
            let (replaced, kept): (Vec<Queued>, _) =
                self.queue.drain(..).partition(|old| old.topic == queued.topic);
            self.queue = kept.into();
            replaced.iter().for_each(|old| self.lose_beside(old));
            gone.extend(replaced.into_iter().map(|old| (old, DropReason::Replaced)));
        }
        if !self.queue.is_empty() && self.queue.len() >= self.messages_max {
            self.lost += 1;
            if self.overflow != Overflow::DropOldest {
                self.lose_beside(queued);
                return (false, gone);
            }
            let oldest = self.queue.pop_front().unwrap();
            self.lose_beside(&oldest);
            gone.push((oldest, DropReason::SlowConsumer));
        }
        self.queue.push_back(queued.clone());
        (true, gone)
    }
}

#[derive(Clone, Debug)]
struct Queued {
    topic: String,
    publisher: String,
    subscriptions: Vec<u32>,
    number: u8,
    request: Option<u64>,
}

#[derive(Clone, Debug)]
struct ModelSession {
    peer: String,
    permissions: Permissions,
    control: VecDeque<Sent>,
    replies: VecDeque<Sent>,
    lanes: Vec<ModelLane>,
    will: Option<(TopicName, u8)>,
    next_lane: usize,
}

/// A request in flight: requester, its id, server, the server's lane.
#[derive(Clone, Debug)]
struct ModelRequest {
    key: u64,
    requester: usize,
    id: u64,
    server: usize,
    lane: u32,
}

type Rows = BTreeMap<(String, String, Option<String>), Counts>;

#[derive(Default)]
struct Model {
    sessions: Vec<Option<ModelSession>>,
    ledger: Rows,
    requests: Vec<ModelRequest>,
    next_key: u64,
}

impl Model {
    fn row(&mut self, publisher: &str, topic: &str, subscriber: Option<&str>) -> &mut Counts {
        let key = (publisher.to_owned(), topic.to_owned(), subscriber.map(str::to_owned));
        self.ledger.entry(key).or_default()
    }

    fn subscribe(&mut self, at: usize, spec: &SubscribeSpec) {
        let Some(session) = &mut self.sessions[at] else { return };
        let filter: TopicFilter = spec.filter.parse().unwrap();
        let right = if spec.serve { Right::Serve } else { Right::Subscribe };
        let rules = session.permissions.rules(right);
        let possible = match spec.filter.parse::<TopicName>() {
            Ok(topic) => rules.permit(&topic),
            Err(_) => rules.allow.iter().any(|allowed| allowed.overlaps(&filter)),
        };
        if session.lanes.iter().any(|lane| lane.id == spec.id) || !possible {
            let operation = if spec.serve { Operation::Serve } else { Operation::Subscribe };
            return session.control.push_back(Sent::Denied { operation });
        }
        session.control.push_back(Sent::Subscribed { id: spec.id });
        session.lanes.push(ModelLane {
            id: spec.id,
            filter,
            serve: spec.serve,
            overflow: spec.overflow,
            messages_max: spec.queue_messages_max as usize,
            queue: VecDeque::new(),
            sent: Vec::new(),
            credited: 0,
            lost: 0,
            lost_beside: Vec::new(),
        });
    }

    fn publish(&mut self, at: usize, topic: &TopicName, number: u8) {
        let Some(publisher) = &mut self.sessions[at] else { return };
        let name = publisher.peer.clone();
        if !publisher.permissions.permit(Right::Publish, topic) {
            publisher.control.push_back(Sent::Denied { operation: Operation::Publish });
            let row = self.row(&name, topic.as_str(), None);
            row.published += 1;
            row.denied += 1;
            return;
        }
        let mut concerned = false;
        for other in 0..self.sessions.len() {
            let Some(session) = &self.sessions[other] else { continue };
            let matching: Vec<u32> = session
                .lanes
                .iter()
                .filter(|lane| !lane.serve && lane.filter.matches(topic))
                .map(|lane| lane.id)
                .collect();
            let Some(first) = matching.first().copied() else { continue };
            concerned = true;
            let subscriber = session.peer.clone();
            if !session.permissions.permit(Right::Subscribe, topic) {
                let row = self.row(&name, topic.as_str(), Some(&subscriber));
                row.published += 1;
                row.denied += 1;
                continue;
            }
            let (topic, publisher) = (topic.to_string(), name.clone());
            self.push(
                other,
                first,
                Queued { topic, publisher, subscriptions: matching, number, request: None },
            );
        }
        if !concerned {
            let row = self.row(&name, topic.as_str(), None);
            row.published += 1;
            row.dropped[DropReason::NoSubscriber as usize] += 1;
        }
    }

    /// Whether it was queued.
    fn push(&mut self, at: usize, lane: u32, queued: Queued) -> bool {
        let session = self.sessions[at].as_mut().unwrap();
        let subscriber = session.peer.clone();
        let lane = session.lanes.iter_mut().find(|candidate| candidate.id == lane).unwrap();
        let (accepted, gone) = lane.take(&queued);
        for (old, reason) in gone {
            let row = self.row(&old.publisher, &old.topic, Some(&subscriber));
            row.queued -= 1;
            row.dropped[reason as usize] += 1;
            if let Some(key) = old.request {
                self.end(key, Status::Busy);
            }
        }
        let row = self.row(&queued.publisher, &queued.topic, Some(&subscriber));
        row.published += 1;
        if accepted {
            row.queued += 1;
        } else {
            row.dropped[DropReason::SlowConsumer as usize] += 1;
        }
        accepted
    }

    fn request(&mut self, at: usize, id: u64, topic: &TopicName, number: u8) {
        let Some(session) = &mut self.sessions[at] else { return };
        if !session.permissions.permit(Right::Request, topic) {
            return session.replies.push_back(Sent::End { id, status: Status::Denied });
        }
        if self.requests.iter().any(|request| request.requester == at && request.id == id) {
            return session.replies.push_back(Sent::End { id, status: Status::Failed });
        }
        let publisher = session.peer.clone();
        let serves = |session: &ModelSession| {
            let lane = session.lanes.iter().find(|lane| lane.serve && lane.filter.matches(topic))?;
            session.permissions.permit(Right::Serve, topic).then_some(lane.id)
        };
        // One server at a time in this model, so that the choice among several is not repeated here.
        let server =
            (0..self.sessions.len()).find_map(|other| Some((other, serves(self.sessions[other].as_ref()?)?)));
        let Some((server, lane)) = server else {
            let session = self.sessions[at].as_mut().unwrap();
            return session.replies.push_back(Sent::End { id, status: Status::NoResponders });
        };
        self.next_key += 1;
        let key = self.next_key;
        self.requests.push(ModelRequest { key, requester: at, id, server, lane });
        let queued = Queued {
            topic: topic.to_string(),
            publisher,
            subscriptions: vec![lane],
            number,
            request: Some(key),
        };
        if !self.push(server, lane, queued) {
            self.end(key, Status::Busy);
        }
    }

    fn end(&mut self, key: u64, status: Status) -> Option<ModelRequest> {
        let position = self.requests.iter().position(|request| request.key == key)?;
        let request = self.requests.remove(position);
        if let Some(requester) = &mut self.sessions[request.requester] {
            requester.replies.push_back(Sent::End { id: request.id, status });
        }
        Some(request)
    }

    fn cancel(&mut self, key: u64) {
        let Some(request) = self.end(key, Status::Cancelled) else { return };
        let Some(server) = &mut self.sessions[request.server] else { return };
        let subscriber = server.peer.clone();
        let lane = server.lanes.iter_mut().find(|lane| lane.id == request.lane);
        let mut unreported = Vec::new();
        let waiting = lane.and_then(|lane| {
            let at = lane.queue.iter().position(|queued| queued.request == Some(key))?;
            let waiting = lane.queue.remove(at);
            if lane.queue.is_empty() {
                unreported = lane.take_losses();
            }
            waiting
        });
        let gaps = unreported.into_iter().map(|(subscription, count)| Sent::Gap { subscription, count });
        server.control.extend(gaps);
        match waiting {
            None => server.control.push_back(Sent::Cancel),
            Some(queued) => {
                let row = self.row(&queued.publisher, &queued.topic, Some(&subscriber));
                row.queued -= 1;
                row.dropped[DropReason::Expired as usize] += 1;
            }
        }
    }

    fn settle(&mut self, subscriber: &str, lane: &ModelLane, reason: DropReason) {
        let uncredited = lane.sent[lane.credited..].iter().cloned();
        let queued = lane.queue.iter().map(|queued| (queued.publisher.clone(), queued.topic.clone()));
        for (publisher, topic) in uncredited.chain(queued).collect::<Vec<_>>() {
            let row = self.row(&publisher, &topic, Some(subscriber));
            row.queued -= 1;
            row.dropped[reason as usize] += 1;
        }
    }

    fn unsubscribe(&mut self, at: usize, id: u32) {
        let Some(session) = &mut self.sessions[at] else { return };
        let Some(position) = session.lanes.iter().position(|lane| lane.id == id) else { return };
        let lane = session.lanes.remove(position);
        session.next_lane = 0;
        let peer = session.peer.clone();
        let mut lane = lane;
        for (subscription, count) in std::mem::take(&mut lane.lost_beside) {
            session.control.push_back(Sent::Gap { subscription, count });
        }
        let (shared, own) = lane.queue.drain(..).partition(|queued| queued.subscriptions.len() > 1);
        lane.queue = own;
        self.settle(&peer, &lane, DropReason::Unsubscribed);
        let shared: VecDeque<Queued> = shared;
        shared.into_iter().for_each(|queued| self.hand_over(at, queued));
        let keys: Vec<u64> = self
            .requests
            .iter()
            .filter(|request| request.server == at && request.lane == id)
            .map(|request| request.key)
            .collect();
        for key in keys {
            self.end(key, Status::ServerGone);
        }
    }

    /// A shared message whose first subscription has ended.
    fn hand_over(&mut self, at: usize, mut queued: Queued) {
        let session = self.sessions[at].as_mut().unwrap();
        let subscriber = session.peer.clone();
        queued.subscriptions.retain(|id| session.lanes.iter().any(|lane| lane.id == *id));
        let heir = queued.subscriptions.first().copied();
        let mut gone = match session.lanes.iter_mut().find(|lane| Some(lane.id) == heir) {
            None => vec![(queued, DropReason::Unsubscribed)],
            Some(lane) => {
                let (accepted, mut gone) = lane.take(&queued);
                gone.extend((!accepted).then_some((queued, DropReason::SlowConsumer)));
                gone
            }
        };
        for (old, reason) in gone.drain(..) {
            let row = self.row(&old.publisher, &old.topic, Some(&subscriber));
            row.queued -= 1;
            row.dropped[reason as usize] += 1;
        }
    }

    /// New rights: what waits and may not be received any more is not sent.
    fn edit(&mut self, at: usize, permissions: Permissions) {
        let Some(session) = &mut self.sessions[at] else { return };
        let (subscriber, mut withheld) = (session.peer.clone(), Vec::new());
        for lane in &mut session.lanes {
            let right = if lane.serve { Right::Serve } else { Right::Subscribe };
            let may = |queued: &Queued| permissions.permit(right, &queued.topic.parse().unwrap());
            let (kept, out): (Vec<Queued>, Vec<Queued>) = lane.queue.drain(..).partition(may);
            lane.queue = kept.into();
            withheld.extend(out);
            if lane.queue.is_empty() {
                let gaps = lane.take_losses().into_iter();
                session.control.extend(gaps.map(|(subscription, count)| Sent::Gap { subscription, count }));
            }
        }
        session.permissions = permissions;
        for old in withheld {
            let row = self.row(&old.publisher, &old.topic, Some(&subscriber));
            row.queued -= 1;
            row.denied += 1;
            if let Some(key) = old.request {
                self.end(key, Status::ServerGone);
            }
        }
    }

    /// Judged now, and again when it is published.
    fn will(&mut self, at: usize, topic: &TopicName, number: Option<u8>) {
        let Some(session) = &mut self.sessions[at] else { return };
        if number.is_some() && !session.permissions.permit(Right::Publish, topic) {
            return session.control.push_back(Sent::Denied { operation: Operation::Publish });
        }
        session.will = number.map(|number| (topic.clone(), number));
    }

    fn close(&mut self, at: usize, farewell: bool) {
        let Some(session) = self.sessions[at].clone() else { return };
        for lane in &session.lanes {
            self.settle(&session.peer, lane, DropReason::Disconnected);
        }
        if let Some(session) = &mut self.sessions[at] {
            session.lanes.clear();
        }
        let keys = |model: &Self, matches: &dyn Fn(&ModelRequest) -> bool| -> Vec<u64> {
            model.requests.iter().filter(|request| matches(request)).map(|request| request.key).collect()
        };
        for key in keys(self, &|request| request.server == at) {
            self.end(key, Status::ServerGone);
        }
        for key in keys(self, &|request| request.requester == at) {
            self.cancel(key);
        }
        // Its subscriptions and requests are gone; nothing else is.
        if let Some((topic, number)) = session.will.filter(|_| !farewell) {
            self.publish(at, &topic, number);
        }
        self.sessions[at] = None;
    }

    fn credit(&mut self, at: usize, id: u32, total: u64) {
        let Some(session) = &mut self.sessions[at] else { return };
        let peer = session.peer.clone();
        let Some(lane) = session.lanes.iter_mut().find(|lane| lane.id == id) else { return };
        let upto = (total as usize).min(lane.sent.len());
        let newly: Vec<_> = lane.sent.get(lane.credited..upto).unwrap_or_default().to_vec();
        lane.credited = lane.credited.max(upto);
        for (publisher, topic) in newly {
            let row = self.row(&publisher, &topic, Some(&peer));
            row.queued -= 1;
            row.delivered += 1;
        }
    }

    /// The next delivery of the lane that had its turn last: what shares a batch with its message.
    fn next_of_same_lane(&mut self, at: usize) -> Option<Sent> {
        let session = self.sessions[at].as_mut()?;
        let lanes = session.lanes.len();
        session.next_lane = (session.next_lane + lanes - 1) % lanes;
        self.next(at)
    }

    fn next(&mut self, at: usize) -> Option<Sent> {
        let session = self.sessions[at].as_mut()?;
        if let Some(sent) = session.control.pop_front().or_else(|| session.replies.pop_front()) {
            return Some(sent);
        }
        let lanes = session.lanes.len();
        for step in 0..lanes {
            let position = (session.next_lane + step) % lanes;
            let lane = &mut session.lanes[position];
            let Some(queued) = lane.queue.pop_front() else { continue };
            session.next_lane = (position + 1) % lanes;
            lane.sent.push((queued.publisher.clone(), queued.topic.clone()));
            let number = queued.number;
            let sent = match queued.request {
                None => Sent::Deliver { subscriptions: queued.subscriptions, number },
                Some(_) => Sent::Request { number },
            };
            let lost = lane.take_losses();
            if lost.is_empty() {
                return Some(sent);
            }
            session.replies.push_front(sent);
            for (subscription, count) in lost {
                session.control.push_back(Sent::Gap { subscription, count });
            }
            return session.control.pop_front();
        }
        None
    }
}

/// One random operation; sessions, ids and topics are small numbers so that they meet.
#[derive(Clone, Debug)]
enum Op {
    Subscribe { at: usize, id: u32, filter: usize, serve: bool, overflow: usize, max: u32 },
    Unsubscribe { at: usize, id: u32 },
    Publish { at: usize, topic: usize },
    PublishBatch { at: usize, topics: Vec<usize> },
    Request { at: usize, id: u64, topic: usize },
    Cancel { at: usize, id: u64 },
    Reply { at: usize, last: bool },
    Take { at: usize, count: usize },
    TakeBatch { at: usize },
    Credit { at: usize, id: u32, total: u64 },
    Reopen { at: usize, farewell: bool },
    Edit { at: usize, rights: usize },
    Will { at: usize, topic: usize, clear: bool },
}

const SESSIONS: usize = 4;
const TOPICS: [&str; 4] = ["a", "a/b", "c", "secret"];
const FILTERS: [&str; 6] = ["a", "a/#", "+", "#", "c", "secret"];
const OVERFLOWS: [Overflow; 3] = [Overflow::DropNewest, Overflow::DropOldest, Overflow::LatestOnly];

fn op() -> impl Strategy<Value = Op> {
    let (at, id) = (0..SESSIONS, 1..4u32);
    prop_oneof![
        3 => (at.clone(), id.clone(), 0..FILTERS.len(), 0..OVERFLOWS.len(), 1..4u32)
            .prop_map(|(at, id, filter, overflow, max)| Op::Subscribe { at, id, filter, serve: false, overflow, max }),
        // Only session 0 serves, see `Model::request`; with one lane, whose order of choice is plain.
        1 => (2..4u32, 0..FILTERS.len(), 1..4u32)
            .prop_map(|(id, filter, max)| Op::Subscribe { at: 0, id, filter, serve: true, overflow: 0, max }),
        1 => (at.clone(), id.clone()).prop_map(|(at, id)| Op::Unsubscribe { at, id }),
        4 => (at.clone(), 0..TOPICS.len()).prop_map(|(at, topic)| Op::Publish { at, topic }),
        4 => (at.clone(), prop::collection::vec(0..TOPICS.len(), 1..6))
            .prop_map(|(at, topics)| Op::PublishBatch { at, topics }),
        4 => (at.clone(), 1..4u64, 0..TOPICS.len()).prop_map(|(at, id, topic)| Op::Request { at, id, topic }),
        1 => (at.clone(), 1..4u64).prop_map(|(at, id)| Op::Cancel { at, id }),
        3 => (at.clone(), any::<bool>()).prop_map(|(at, last)| Op::Reply { at, last }),
        3 => (at.clone(), 1..6usize).prop_map(|(at, count)| Op::Take { at, count }),
        3 => at.clone().prop_map(|at| Op::TakeBatch { at }),
        2 => (at.clone(), id, 0..8u64).prop_map(|(at, id, total)| Op::Credit { at, id, total }),
        1 => (at.clone(), any::<bool>()).prop_map(|(at, farewell)| Op::Reopen { at, farewell }),
        2 => (at.clone(), 0..TOPICS.len(), prop::bool::weighted(0.2))
            .prop_map(|(at, topic, clear)| Op::Will { at, topic, clear }),
        1 => (at, 0..SESSIONS).prop_map(|(at, rights)| Op::Edit { at, rights }),
    ]
}

/// Session 0 may do everything but with `secret`; 1 only publish; 2 only below `a`; 3 everything.
fn permissions(at: usize) -> Permissions {
    let lists: [[&[&str]; 4]; SESSIONS] = [
        [&["#"], &["#"], &["#"], &["#"]],
        [&["#"], &[], &[], &["a/#"]],
        [&["a/#"], &["a/#"], &[], &["#"]],
        [&["#"], &["#"], &[], &["#"]],
    ];
    let [publish, subscribe, serve, request] = lists[at];
    let mut permissions = Permissions::from_lists(publish, subscribe, serve, request).unwrap();
    if at == 0 {
        permissions.subscribe.deny.push("secret".parse().unwrap());
    }
    permissions
}

/// A record of the hub in the model's words; `None` if the model does not speak of it.
fn sent(record: Record) -> Option<Sent> {
    Some(match record {
        Record::Origin { .. } => return None,
        Record::Deliver { subscriptions, block } => {
            Sent::Deliver { subscriptions: subscriptions.to_vec(), number: block.payload()[0] }
        }
        Record::Gap { subscription, count, .. } => Sent::Gap { subscription, count },
        Record::Denied { operation, .. } => Sent::Denied { operation },
        Record::Subscribed { id, .. } => Sent::Subscribed { id },
        Record::Request { block, .. } => Sent::Request { number: block.payload()[0] },
        Record::Reply { id, .. } => Sent::Reply { id },
        Record::ReplyEnd { id, status, .. } => Sent::End { id, status },
        Record::Cancel { .. } => Sent::Cancel,
        other => panic!("the model knows no {other:?}"),
    })
}

/// The hub, its sessions, and the model, driven together.
struct Pair {
    hub: Hub,
    ids: Vec<SessionId>,
    model: Model,
    number: u8,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            hub: Hub::new("broker".parse().unwrap(), 1),
            ids: Vec::new(),
            model: Model::default(),
            number: 0,
        };
        for at in 0..SESSIONS {
            let id = pair.open(at);
            pair.ids.push(id);
            pair.model.sessions.push(None);
            pair.open_model(at);
        }
        pair
    }

    fn open(&mut self, at: usize) -> SessionId {
        let id = self.hub.open(SessionInfo {
            peer: format!("peer{at}").parse().unwrap(),
            key: None,
            kind: SessionKind::Native,
            address: String::new(),
            server_key: None,
            permissions: permissions(at).into(),
        });
        let (program, peer) = (String::new(), String::new());
        self.hub.record(id, Record::Hello { major: 1, minor: 0, program, peer, epoch: [0; 16] });
        assert!(matches!(self.hub.next_record(id), Some(Record::Hello { .. })));
        id
    }

    fn open_model(&mut self, at: usize) {
        self.model.sessions[at] = Some(ModelSession {
            peer: format!("peer{at}"),
            permissions: permissions(at),
            control: VecDeque::new(),
            replies: VecDeque::new(),
            lanes: Vec::new(),
            will: None,
            next_lane: 0,
        });
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Subscribe { at, id, filter, serve, overflow, max } => {
                let spec = SubscribeSpec {
                    id,
                    serve,
                    retained: false,
                    probes: false,
                    overflow: OVERFLOWS[overflow],
                    queue_messages_max: max,
                    queue_bytes_max: 0,
                    filter: FILTERS[filter].to_owned(),
                    group: String::new(),
                };
                self.model.subscribe(at, &spec);
                self.hub.record(self.ids[at], Record::Subscribe(spec));
            }
            Op::Unsubscribe { at, id } => {
                self.model.unsubscribe(at, id);
                self.hub.record(self.ids[at], Record::Unsubscribe { id });
            }
            Op::Publish { at, topic } => {
                let (topic, number) = self.message(topic);
                self.model.publish(at, &topic, number);
                self.hub.record(self.ids[at], Record::Publish(Block::new(&topic, b"", &[number])));
            }
            Op::PublishBatch { at, ref topics } => {
                let mut batch = Vec::new();
                for topic in topics {
                    let (topic, number) = self.message(*topic);
                    self.model.publish(at, &topic, number);
                    let record = Record::Publish(Block::new(&topic, b"", &[number]));
                    BatchWriter::default().put(&record, &mut batch);
                }
                self.hub.batch(self.ids[at], &mut BatchReader::default(), &batch).unwrap();
            }
            Op::Request { at, id, topic } => {
                let (topic, number) = self.message(topic);
                self.model.request(at, id, &topic, number);
                let block = Block::new(&topic, b"", &[number]);
                self.hub.record(self.ids[at], Record::Request { id, subscription: 0, window: 8, block });
            }
            Op::Cancel { at, id } => {
                let request =
                    self.model.requests.iter().find(|request| request.requester == at && request.id == id);
                if let Some(key) = request.map(|request| request.key) {
                    self.model.cancel(key);
                }
                self.hub.record(self.ids[at], Record::Cancel { id });
            }
            Op::Will { at, topic, clear } => {
                let (topic, number) = self.message(topic);
                self.model.will(at, &topic, (!clear).then_some(number));
                let block = (!clear).then(|| Block::new(&topic, b"", &[number]));
                self.hub.record(self.ids[at], Record::Will { block });
            }
            Op::Reply { at, last } => self.reply(at, last),
            Op::TakeBatch { at } => self.take_batch(at),
            Op::Take { at, count } => (0..count).for_each(|_| self.take(at)),
            Op::Credit { at, id, total } => {
                self.model.credit(at, id, total);
                let scope = CreditScope::Subscription { id, messages: total };
                self.hub.record(self.ids[at], Record::Credit { scope });
            }
            Op::Reopen { at, farewell } => {
                self.model.close(at, farewell);
                if farewell {
                    let (code, text) = ("closing".to_owned(), String::new());
                    self.hub.record(self.ids[at], Record::Goodbye { code, text });
                }
                self.hub.close(self.ids[at], "lost", "");
                self.ids[at] = self.open(at);
                self.open_model(at);
            }
            Op::Edit { at, rights } => {
                self.model.edit(at, permissions(rights));
                let peer = format!("peer{at}");
                self.hub.reauthorise(|info| match info.peer.as_str() == peer {
                    true => Ok(permissions(rights).into()),
                    false => Ok(Arc::clone(&info.permissions)),
                });
            }
        }
    }

    fn message(&mut self, topic: usize) -> (TopicName, u8) {
        self.number = self.number.wrapping_add(1);
        (TOPICS[topic].parse().unwrap(), self.number)
    }

    /// Answers the oldest request that this session serves.
    fn reply(&mut self, at: usize, last: bool) {
        let Some(request) = self.model.requests.iter().find(|request| request.server == at).cloned() else {
            return;
        };
        let (header, payload) = (bytes::Bytes::new(), bytes::Bytes::new());
        if last {
            self.model.end(request.key, Status::Done);
            let (code, text) = (String::new(), String::new());
            let end = Record::ReplyEnd { id: request.key, status: Status::Done, code, text, header, payload };
            return self.hub.record(self.ids[at], end);
        }
        let requester = self.model.sessions[request.requester].as_mut().unwrap();
        requester.replies.push_back(Sent::Reply { id: request.id });
        self.hub.record(self.ids[at], Record::Reply { id: request.key, header, payload });
    }

    /// Takes one record from both and compares them.
    fn take(&mut self, at: usize) {
        let ours = self.model.next(at);
        let theirs = std::iter::from_fn(|| self.hub.next_record(self.ids[at])).find_map(sent);
        assert_eq!(theirs, ours, "what session {at} is sent");
    }

    /// Takes what the hub puts into a batch at once, and the same from the model.
    fn take_batch(&mut self, at: usize) {
        let (mut reader, mut batch) = (BatchReader::default(), Vec::new());
        self.hub.put_next(self.ids[at], &mut BatchWriter::default(), &mut batch);
        reader.begin(batch.into());
        let mut has_delivered = false;
        while let Some(record) = reader.next_record().unwrap() {
            let Some(theirs) = sent(record) else { continue };
            let ours = if has_delivered { self.model.next_of_same_lane(at) } else { self.model.next(at) };
            has_delivered |= matches!(theirs, Sent::Deliver { .. });
            assert_eq!(Some(theirs), ours, "what session {at} is sent in a batch");
        }
    }

    fn compare_ledgers(&self) {
        let mut theirs = Rows::new();
        for (key, counts) in self.hub.ledger_rows() {
            assert!(counts.balances(), "{key:?} {counts:?}");
            let publisher = key.publisher.unwrap().to_string();
            if publisher != "broker" && counts != Counts::default() {
                theirs.insert(
                    (publisher, key.topic.unwrap().to_string(), key.subscriber.map(|name| name.to_string())),
                    counts,
                );
            }
        }
        assert_eq!(theirs, self.model.ledger);
    }
}

#[test]
fn losses_behind_a_request_that_was_withdrawn_are_told_at_once() {
    let mut pair = Pair::new();
    pair.apply(&Op::Subscribe { at: 0, id: 2, filter: 0, serve: true, overflow: 0, max: 1 });
    pair.apply(&Op::Request { at: 2, id: 2, topic: 0 });
    pair.apply(&Op::Request { at: 0, id: 1, topic: 0 });
    pair.apply(&Op::Cancel { at: 2, id: 2 });
    pair.apply(&Op::Edit { at: 0, rights: 0 });
    let told: Vec<Sent> = std::iter::from_fn(|| pair.hub.next_record(pair.ids[0])).filter_map(sent).collect();
    assert!(told.contains(&Sent::Gap { subscription: 2, count: 1 }), "{told:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn the_hub_agrees_with_the_model_on_every_delivery_and_on_the_ledger(ops in prop::collection::vec(op(), 1..80)) {
        let mut pair = Pair::new();
        for op in &ops {
            pair.apply(op);
            pair.compare_ledgers();
        }
        for at in 0..SESSIONS {
            (0..200).for_each(|_| pair.take(at));
        }
    }
}
