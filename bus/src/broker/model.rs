//! The broker as SEMANTICS.md says it, in the plainest form: lists, scans, no caches. Random
//! operations are done to it and to the hub, and both must agree on every delivery and on the ledger.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::Value;

use super::ledger::{Counts, DropReason};
use crate::{
    keys::{Permissions, Right},
    native::{Block, Operation, Overflow, Status, SubscribeSpec},
    topic::{TopicFilter, TopicName},
};

mod lane;
mod message;
mod output;
mod pair;
mod readiness;
mod request;

use lane::{ModelLane, bytes_of};
use message::{Message, Queued};
use readiness::ModelWatch;

/// Bytes that may be sent to a subscription and not yet credited: so few that windows close.
const WINDOW_BYTES: u64 = 100;

/// What a session is sent, reduced to what matters.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sent {
    Deliver { subscriptions: Vec<u32>, number: u8, retained: bool },
    Hold { topic: String, granted: bool },
    Gap { subscription: u32, count: u64 },
    Denied { operation: Operation },
    Subscribed { id: u32 },
    Request { number: u8 },
    Reply { id: u64, says: Value },
    End { id: u64, status: Status, says: Value },
    Grant { key: u64, parts: u64 },
    Cancel,
}

#[derive(Clone, Debug)]
struct ModelSession {
    peer: String,
    permissions: Permissions,
    control: VecDeque<Sent>,
    replies: VecDeque<Sent>,
    lanes: Vec<ModelLane>,
    will: Option<Message>,
    next_lane: usize,
    /// Topics it was told to hold.
    held: BTreeSet<String>,
}

/// A request in flight: requester, its id, server, the server's lane.
#[derive(Clone, Debug)]
struct ModelRequest {
    key: u64,
    requester: usize,
    id: u64,
    server: usize,
    lane: u32,
    deadline_ms: u64,
    /// A probe of a subscription to this topic.
    probed: Option<TopicName>,
}

type Rows = BTreeMap<(String, String, Option<String>), Counts>;

#[derive(Default)]
struct Model {
    sessions: Vec<Option<ModelSession>>,
    ledger: Rows,
    requests: Vec<ModelRequest>,
    next_key: u64,
    now_ms: u64,
    /// By topic: whose it is, and when it came.
    retained: BTreeMap<String, (u64, String, Message)>,
    retained_count: u64,
    /// Topics whose publishers are held, and the lanes they wait for.
    held: BTreeMap<String, BTreeSet<(usize, u32)>>,
    /// Sessions that must end, because a queue with the policy `disconnect` was full.
    ending: BTreeSet<usize>,
    watches: Vec<ModelWatch>,
    /// Probes that wait for room.
    waiting: Vec<u64>,
    /// Probes that ever were in a queue: the broker gives each a number.
    probes: u64,
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
        let operation = if spec.serve { Operation::Serve } else { Operation::Subscribe };
        if session.lanes.iter().any(|lane| lane.id == spec.id) || !possible {
            return session.control.push_back(Sent::Denied { operation });
        }
        if spec.overflow == Overflow::Wait && !session.permissions.wait {
            return session.control.push_back(Sent::Denied { operation });
        }
        session.control.push_back(Sent::Subscribed { id: spec.id });
        session.lanes.push(ModelLane {
            group: (!spec.group.is_empty()).then(|| spec.group.clone()),
            id: spec.id,
            filter,
            serve: spec.serve,
            probes: spec.probes,
            overflow: spec.overflow,
            messages_max: spec.queue_messages_max as usize,
            queue: VecDeque::new(),
            sent: Vec::new(),
            credited: 0,
            lost: 0,
            lost_beside: Vec::new(),
        });
        if spec.retained && !spec.serve {
            self.send_retained(at, spec.id);
        }
        self.receivers_changed(at);
    }

    /// The last values of what a new subscription matches, the oldest first.
    fn send_retained(&mut self, at: usize, id: u32) {
        let session = self.sessions[at].as_ref().unwrap();
        let filter = session.lanes.last().unwrap().filter.clone();
        let mut values: Vec<_> = self.retained.values().cloned().collect();
        values.retain(|(.., value)| {
            filter.matches(&value.topic) && session.permissions.permit(Right::Subscribe, &value.topic)
        });
        values.sort_by_key(|(order, ..)| *order);
        for (_, publisher, value) in values {
            let queued = Queued {
                topic: value.topic.to_string(),
                publisher,
                subscriptions: vec![id],
                number: value.number,
                request: None,
                deadline_ms: value.deadline_ms,
                retained: true,
                lost_behind: Vec::new(),
            };
            self.push(at, id, queued, None);
        }
    }

    fn retain(&mut self, publisher: &str, message: &Message) {
        self.retained_count += 1;
        let value = (self.retained_count, publisher.to_owned(), message.clone());
        // An empty payload takes the last value away.
        match message.number {
            0 => drop(self.retained.remove(message.topic.as_str())),
            _ => drop(self.retained.insert(message.topic.to_string(), value)),
        }
    }

    /// Members of each group that get `topic`, in the order of sessions and subscriptions.
    fn groups(&self, topic: &TopicName) -> Vec<Vec<(usize, u32)>> {
        let mut groups: BTreeMap<(String, String), Vec<(usize, u32)>> = BTreeMap::new();
        for (at, session) in self.sessions.iter().enumerate() {
            let Some(session) = session else { continue };
            let lanes = session.lanes.iter().filter(|lane| !lane.serve && lane.filter.matches(topic));
            for lane in lanes.filter(|_| session.permissions.permit(Right::Subscribe, topic)) {
                if let Some(group) = &lane.group {
                    let key = (group.clone(), lane.filter.to_string());
                    groups.entry(key).or_default().push((at, lane.id));
                }
            }
        }
        groups.into_values().collect()
    }

    fn lane(&self, at: usize, id: u32) -> &ModelLane {
        self.sessions[at].as_ref().unwrap().lanes.iter().find(|lane| lane.id == id).unwrap()
    }

    /// `sequence` is the number that the broker gives the message: it decides who of a group has the turn.
    fn publish(&mut self, at: usize, message: &Message, sequence: u64) {
        let topic = &message.topic;
        let Some(publisher) = &mut self.sessions[at] else { return };
        let name = publisher.peer.clone();
        if !publisher.permissions.permit(Right::Publish, topic) {
            publisher.control.push_back(Sent::Denied { operation: Operation::Publish });
            let row = self.row(&name, topic.as_str(), None);
            row.published += 1;
            row.denied += 1;
            return;
        }
        if message.retain {
            self.retain(&name, message);
        }
        let is_late = message.is_late(self.now_ms);
        let groups = self.groups(topic);
        let mut concerned = !groups.is_empty();
        for other in 0..self.sessions.len() {
            let Some(session) = &self.sessions[other] else { continue };
            let matching: Vec<u32> = session
                .lanes
                .iter()
                .filter(|lane| !lane.serve && lane.group.is_none() && lane.filter.matches(topic))
                .map(|lane| lane.id)
                .collect();
            if !session.lanes.iter().any(|lane| !lane.serve && lane.filter.matches(topic)) {
                continue;
            }
            concerned = true;
            let subscriber = session.peer.clone();
            if !session.permissions.permit(Right::Subscribe, topic) {
                let row = self.row(&name, topic.as_str(), Some(&subscriber));
                row.published += 1;
                row.denied += 1;
                continue;
            }
            if let Some(first) = matching.first().copied().filter(|_| !is_late) {
                let queued = message.queued(&name, matching);
                self.push(other, first, queued, Some(at));
            }
        }
        if is_late {
            let row = self.row(&name, topic.as_str(), None);
            row.published += 1;
            row.dropped[DropReason::Expired as usize] += 1;
            return;
        }
        for members in groups {
            // The turn goes round; one who has nothing to do goes before others, else who has room and least.
            let first = sequence as usize % members.len();
            let turn = |step: usize| members[(first + step) % members.len()];
            let load = |step: &usize| self.lane(turn(*step).0, turn(*step).1).load();
            let (member, lane) = turn((0..members.len()).min_by_key(load).unwrap());
            self.push(member, lane, message.queued(&name, vec![lane]), Some(at));
        }
        if !concerned {
            let row = self.row(&name, topic.as_str(), None);
            row.published += 1;
            row.dropped[DropReason::NoSubscriber as usize] += 1;
        }
    }

    /// Whether it was queued. `from` is who is held for it.
    fn push(&mut self, at: usize, lane: u32, queued: Queued, from: Option<usize>) -> bool {
        let session = self.sessions[at].as_mut().unwrap();
        let subscriber = session.peer.clone();
        let lane = session.lanes.iter_mut().find(|candidate| candidate.id == lane).unwrap();
        let (accepted, gone) = lane.take(&queued);
        let (id, must_hold) = (lane.id, lane.must_hold());
        if !accepted && lane.overflow == Overflow::Disconnect {
            self.ending.insert(at);
        }
        if must_hold && !queued.topic.starts_with('$') {
            self.hold(&queued.topic, (at, id), from);
        }
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

    fn hold(&mut self, topic: &str, lane: (usize, u32), from: Option<usize>) {
        self.held.entry(topic.to_owned()).or_default().insert(lane);
        if let Some(session) = from.and_then(|from| self.sessions[from].as_mut())
            && session.held.insert(topic.to_owned())
        {
            session.control.push_back(Sent::Hold { topic: topic.to_owned(), granted: false });
        }
    }

    /// A lane may have room: for publishers that are held, and for probes that wait.
    fn make_use_of_room(&mut self, at: usize, id: u32) {
        self.release(at, id);
        self.push_waiting_probes(at, id);
    }

    /// Nobody waits for a lane any more that has room, or is gone.
    fn release(&mut self, at: usize, id: u32) {
        let lanes = self.sessions[at].iter().flat_map(|session| &session.lanes);
        if lanes.into_iter().any(|lane| lane.id == id && !lane.has_room()) {
            return;
        }
        self.held.values_mut().for_each(|lanes| lanes.retain(|lane| *lane != (at, id)));
        let (free, held) =
            std::mem::take(&mut self.held).into_iter().partition(|(_, lanes)| lanes.is_empty());
        self.held = held;
        let free: BTreeMap<String, _> = free;
        for topic in free.into_keys() {
            for session in self.sessions.iter_mut().flatten().filter(|session| session.held.contains(&topic))
            {
                session.held.remove(&topic);
                session.control.push_back(Sent::Hold { topic: topic.clone(), granted: true });
            }
        }
    }

    fn settle(&mut self, subscriber: &str, lane: &ModelLane, reason: DropReason) {
        let uncredited = lane.sent[lane.credited..].iter().cloned();
        let queued = lane.queue.iter().map(Queued::as_sent);
        for (publisher, topic, _) in uncredited.chain(queued).collect::<Vec<_>>() {
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
        for (other, count) in lane.take_all_beside() {
            if let Some(other) = session.lanes.iter_mut().find(|lane| lane.id == other) {
                other.lose(other.queue.len(), other.id, count);
            }
        }
        let (shared, own) = lane.queue.drain(..).partition(|queued| queued.subscriptions.len() > 1);
        lane.queue = own;
        self.settle(&peer, &lane, DropReason::Unsubscribed);
        self.release(at, id);
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
        self.receivers_changed(at);
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
                if !accepted && lane.overflow == Overflow::Disconnect {
                    self.ending.insert(at);
                }
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
        if session.permissions == permissions {
            return;
        }
        let (subscriber, mut withheld, mut lanes) = (session.peer.clone(), Vec::new(), Vec::new());
        for lane in &mut session.lanes {
            let right = if lane.serve { Right::Serve } else { Right::Subscribe };
            let may = |queued: &Queued| {
                let probe = self.requests.iter().find(|request| Some(request.key) == queued.request);
                let probed = probe.and_then(|request| request.probed.clone());
                permissions.permit(right, &probed.unwrap_or_else(|| queued.topic.parse().unwrap()))
            };
            withheld.extend(lane.remove_all(|queued| !may(queued)));
            let operation = if lane.serve { Operation::Serve } else { Operation::Subscribe };
            lanes.push((lane.id, operation, lane.overflow == Overflow::Wait && !permissions.wait));
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
        for (id, operation, may_not_wait) in lanes {
            if may_not_wait {
                let session = self.sessions[at].as_mut().unwrap();
                session.control.push_back(Sent::Denied { operation });
                self.unsubscribe(at, id);
            } else {
                self.make_use_of_room(at, id);
            }
        }
        self.reauthorise_watches();
    }

    /// Judged now, and again when it is published.
    fn will(&mut self, at: usize, will: Option<Message>) {
        let Some(session) = &mut self.sessions[at] else { return };
        let may = |will: &Message| session.permissions.permit(Right::Publish, &will.topic);
        if !will.as_ref().is_none_or(may) {
            return session.control.push_back(Sent::Denied { operation: Operation::Publish });
        }
        session.will = will;
    }

    fn close(&mut self, at: usize, farewell: bool, sequence: u64) {
        self.ending.remove(&at);
        let Some(session) = self.sessions[at].clone() else { return };
        let probes = self.probes;
        for lane in &session.lanes {
            self.settle(&session.peer, lane, DropReason::Disconnected);
        }
        if let Some(session) = &mut self.sessions[at] {
            session.lanes.clear();
        }
        session.lanes.iter().for_each(|lane| self.release(at, lane.id));
        let keys = |model: &Self, matches: &dyn Fn(&ModelRequest) -> bool| -> Vec<u64> {
            model.requests.iter().filter(|request| matches(request)).map(|request| request.key).collect()
        };
        for key in keys(self, &|request| request.server == at) {
            self.end(key, Status::ServerGone);
        }
        for key in keys(self, &|request| request.requester == at) {
            self.cancel(key, Status::Cancelled);
        }
        // Its subscriptions and requests are gone; nothing else is.
        if let Some(will) = session.will.filter(|_| !farewell) {
            self.publish(at, &will, sequence + self.probes - probes);
        }
        self.sessions[at] = None;
        self.receivers_changed(at);
        self.presence_changed(at);
    }

    fn credit(&mut self, at: usize, id: u32, total: u64) {
        let Some(session) = &mut self.sessions[at] else { return };
        let peer = session.peer.clone();
        let Some(lane) = session.lanes.iter_mut().find(|lane| lane.id == id) else { return };
        let upto = (total as usize).min(lane.sent.len());
        let newly: Vec<_> = lane.sent.get(lane.credited..upto).unwrap_or_default().to_vec();
        lane.credited = lane.credited.max(upto);
        for (publisher, topic, _) in newly {
            let row = self.row(&publisher, &topic, Some(&peer));
            row.queued -= 1;
            row.delivered += 1;
        }
        self.make_use_of_room(at, id);
    }
}
