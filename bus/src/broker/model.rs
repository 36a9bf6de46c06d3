//! The broker as SEMANTICS.md says it, in the plainest form: lists, scans, no caches. Random
//! operations are done to it and to the hub, and both must agree on every delivery and on the ledger.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::ledger::{Counts, DropReason};
use crate::{
    keys::{Permissions, Right},
    native::{Block, Operation, Overflow, Status, SubscribeSpec},
    topic::{TopicFilter, TopicName},
};

mod pair;

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
    Reply { id: u64 },
    End { id: u64, status: Status },
    Cancel,
}

#[derive(Clone, Debug)]
struct ModelLane {
    id: u32,
    filter: TopicFilter,
    serve: bool,
    group: Option<String>,
    overflow: Overflow,
    messages_max: usize,
    queue: VecDeque<Queued>,
    /// Publisher and topic of what was sent, and what it counts for.
    sent: Vec<(String, String, u64)>,
    credited: usize,
    /// Lost in front of what waits.
    lost: u64,
    /// The same for other subscriptions that were to share the message.
    lost_beside: Vec<(u32, u64)>,
}

impl ModelLane {
    /// Counts messages of a subscription that were lost behind the first `waiting` ones in the queue.
    fn lose(&mut self, waiting: usize, id: u32, count: u64) {
        match waiting.checked_sub(1) {
            Some(before) => add(&mut self.queue[before].lost_behind, id, count),
            None if id == self.id => self.lost += count,
            None => add(&mut self.lost_beside, id, count),
        }
    }

    fn lose_beside(&mut self, waiting: usize, queued: &Queued) {
        queued.subscriptions[1..].iter().for_each(|other| self.lose(waiting, *other, 1));
    }

    /// Takes a message out of the queue. What was lost behind it was then lost behind the one before.
    fn remove(&mut self, at: usize) -> Queued {
        let mut queued = self.queue.remove(at).unwrap();
        for (id, count) in std::mem::take(&mut queued.lost_behind) {
            self.lose(at, id, count);
        }
        queued
    }

    fn remove_all(&mut self, goes: impl Fn(&Queued) -> bool) -> Vec<Queued> {
        let mut gone = Vec::new();
        while let Some(at) = self.queue.iter().position(&goes) {
            gone.push(self.remove(at));
        }
        gone
    }

    /// What others have lost, wherever.
    fn take_all_beside(&mut self) -> Vec<(u32, u64)> {
        let mut lost = std::mem::take(&mut self.lost_beside);
        for (id, count) in self.queue.iter_mut().flat_map(|queued| std::mem::take(&mut queued.lost_behind)) {
            if id != self.id {
                add(&mut lost, id, count);
            }
        }
        lost
    }

    fn take_loss(&mut self) -> Option<Sent> {
        let own = (self.id, self.lost);
        let (subscription, count) = self.lost_beside.pop().or_else(|| {
            self.lost = 0;
            Some(own).filter(|(_, count)| *count > 0)
        })?;
        Some(Sent::Gap { subscription, count })
    }

    /// Whether a message may be sent: what is not credited has to leave room in the window.
    fn can_send(&self) -> bool {
        let in_flight: u64 = self.sent[self.credited..].iter().map(|(.., bytes)| bytes).sum();
        !self.queue.is_empty() && in_flight < WINDOW_BYTES
    }

    fn has_output(&self) -> bool {
        self.can_send() || (self.queue.is_empty() && (self.lost > 0 || !self.lost_beside.is_empty()))
    }

    /// What a message does that is not queued: whether it is, and what leaves the queue for it.
    fn take(&mut self, queued: &Queued) -> (bool, Vec<(Queued, DropReason)>) {
        let mut gone: Vec<(Queued, DropReason)> = Vec::new();
        if self.overflow == Overflow::LatestOnly && queued.request.is_none() {
            while let Some(at) = self.queue.iter().position(|old| old.topic == queued.topic) {
                let old = self.remove(at);
                self.lose_beside(at, &old);
                gone.push((old, DropReason::Replaced));
            }
        }
        let is_full = self.is_full();
        // Publishers are held, and what they have on its way is taken.
        if is_full && self.overflow != Overflow::Wait {
            if self.overflow == Overflow::Disconnect {
                return (false, gone);
            }
            if self.overflow != Overflow::DropOldest {
                let waiting = self.queue.len();
                queued.subscriptions.iter().for_each(|id| self.lose(waiting, *id, 1));
                return (false, gone);
            }
            let oldest = self.remove(0);
            self.lost += 1;
            self.lose_beside(0, &oldest);
            gone.push((oldest, DropReason::SlowConsumer));
        }
        self.queue.push_back(queued.clone());
        (true, gone)
    }
}

/// Bytes of any message on a topic.
fn bytes_of(topic: &str) -> u64 {
    Block::new(&topic.parse().unwrap(), b"", &[1]).bytes() as u64
}

fn add(lost: &mut Vec<(u32, u64)>, id: u32, count: u64) {
    match lost.iter_mut().find(|(known, _)| *known == id) {
        Some((_, known)) => *known += count,
        None => lost.push((id, count)),
    }
}

impl ModelLane {
    fn has_room(&self) -> bool {
        self.queue.len() <= self.messages_max / 2
    }

    fn must_hold(&self) -> bool {
        self.overflow == Overflow::Wait && self.queue.len() >= self.messages_max
    }

    fn is_full(&self) -> bool {
        !self.queue.is_empty() && self.queue.len() >= self.messages_max
    }

    fn depth(&self) -> usize {
        self.queue.len() + self.sent.len() - self.credited
    }

    /// The less the sooner it is its turn: whoever has no room comes after all others.
    fn load(&self) -> (bool, usize) {
        (self.is_full(), self.depth())
    }
}

/// A message as its publisher made it.
#[derive(Clone, Debug)]
struct Message {
    topic: TopicName,
    number: u8,
    deadline_ms: u64,
    retain: bool,
}

impl Message {
    fn is_late(&self, now_ms: u64) -> bool {
        self.deadline_ms != 0 && self.deadline_ms <= now_ms
    }
}

#[derive(Clone, Debug)]
struct Queued {
    topic: String,
    publisher: String,
    subscriptions: Vec<u32>,
    number: u8,
    request: Option<u64>,
    deadline_ms: u64,
    retained: bool,
    /// Messages that were lost behind it, by subscription.
    lost_behind: Vec<(u32, u64)>,
}

impl Queued {
    /// What the model keeps of it once it was sent.
    fn as_sent(&self) -> (String, String, u64) {
        let beside = 4 * (self.subscriptions.len() as u64 - 1);
        (self.publisher.clone(), self.topic.clone(), bytes_of(&self.topic) + beside)
    }

    fn is_late(&self, now_ms: u64) -> bool {
        self.request.is_none() && self.deadline_ms != 0 && self.deadline_ms <= now_ms
    }
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
        if spec.overflow == Overflow::Wait && !session.permissions.wait {
            return session.control.push_back(Sent::Denied { operation: Operation::Subscribe });
        }
        session.control.push_back(Sent::Subscribed { id: spec.id });
        session.lanes.push(ModelLane {
            group: (!spec.group.is_empty()).then(|| spec.group.clone()),
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
        if spec.retained && !spec.serve {
            self.send_retained(at, spec.id);
        }
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
        if must_hold {
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

    fn request(&mut self, at: usize, id: u64, message: &Message) {
        let (topic, number) = (&message.topic, message.number);
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
        let deadline_ms = if message.deadline_ms == 0 { u64::MAX } else { message.deadline_ms };
        self.requests.push(ModelRequest { key, requester: at, id, server, lane, deadline_ms });
        let queued = Queued {
            topic: topic.to_string(),
            publisher,
            subscriptions: vec![lane],
            number,
            request: Some(key),
            deadline_ms: message.deadline_ms,
            retained: false,
            lost_behind: Vec::new(),
        };
        if !self.push(server, lane, queued, Some(at)) {
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

    /// Time passes: requests end at their deadlines.
    fn tick(&mut self, ms: u64) {
        self.now_ms += ms;
        let mut late: Vec<(u64, u64)> =
            self.requests.iter().map(|request| (request.deadline_ms, request.key)).collect();
        late.retain(|(deadline_ms, _)| *deadline_ms <= self.now_ms);
        late.sort_unstable();
        late.into_iter().for_each(|(_, key)| self.cancel(key, Status::TimedOut));
    }

    fn cancel(&mut self, key: u64, status: Status) {
        let Some(request) = self.end(key, status) else { return };
        let Some(server) = &mut self.sessions[request.server] else { return };
        let subscriber = server.peer.clone();
        let lane = server.lanes.iter_mut().find(|lane| lane.id == request.lane);
        let waiting = lane.and_then(|lane| {
            let at = lane.queue.iter().position(|queued| queued.request == Some(key))?;
            Some(lane.remove(at))
        });
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
            let may = |queued: &Queued| permissions.permit(right, &queued.topic.parse().unwrap());
            withheld.extend(lane.remove_all(|queued| !may(queued)));
            lanes.push((lane.id, lane.overflow == Overflow::Wait && !permissions.wait));
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
        for (id, may_not_wait) in lanes {
            if may_not_wait {
                let session = self.sessions[at].as_mut().unwrap();
                session.control.push_back(Sent::Denied { operation: Operation::Subscribe });
                self.unsubscribe(at, id);
            } else {
                self.release(at, id);
            }
        }
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
            self.publish(at, &will, sequence);
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
        for (publisher, topic, _) in newly {
            let row = self.row(&publisher, &topic, Some(&peer));
            row.queued -= 1;
            row.delivered += 1;
        }
        self.release(at, id);
    }

    /// Drops what is next in a queue and nobody wants any more.
    fn drop_late(&mut self, at: usize) {
        let now_ms = self.now_ms;
        let Some(session) = self.sessions[at].as_mut() else { return };
        let (mut late, mut lanes) = (Vec::new(), Vec::new());
        for lane in &mut session.lanes {
            let before = late.len();
            while lane.queue.front().is_some_and(|queued| queued.is_late(now_ms)) {
                late.push(lane.remove(0));
            }
            if late.len() > before {
                lanes.push(lane.id);
            }
        }
        let subscriber = session.peer.clone();
        for old in late {
            let row = self.row(&old.publisher, &old.topic, Some(&subscriber));
            row.queued -= 1;
            row.dropped[DropReason::Expired as usize] += 1;
        }
        lanes.into_iter().for_each(|lane| self.release(at, lane));
    }

    /// The next `count` deliveries of the lane whose turn it is, in one batch: what they cause comes after it.
    fn next_batch(&mut self, at: usize, count: usize) -> Vec<Sent> {
        let session = self.sessions[at].as_mut().unwrap();
        assert!(session.control.is_empty() && session.replies.is_empty(), "answers go first");
        let lanes = session.lanes.len();
        let turn = (0..lanes).map(|step| (session.next_lane + step) % lanes);
        let position = turn.into_iter().find(|at| session.lanes[*at].has_output()).unwrap();
        session.next_lane = (position + 1) % lanes;
        let lane = &mut session.lanes[position];
        let mut sent: Vec<Sent> = std::iter::from_fn(|| lane.take_loss()).collect();
        for _ in 0..count {
            assert_eq!(lane.take_loss(), None, "a loss was passed over");
            assert!(lane.can_send(), "the window was closed");
            let queued = lane.remove(0);
            lane.sent.push(queued.as_sent());
            sent.push(queued.sent());
        }
        let id = lane.id;
        self.release(at, id);
        sent
    }

    /// Whether what goes out next goes out together with what is behind it.
    fn is_batch_next(&self, at: usize) -> bool {
        let Some(session) = &self.sessions[at] else { return false };
        let lanes = session.lanes.len();
        let mut turn = (0..lanes).map(|step| &session.lanes[(session.next_lane + step) % lanes]);
        let lane = turn.find(|lane| lane.has_output());
        let is_plain = |queued: &Queued| queued.request.is_none() && queued.deadline_ms == 0;
        session.control.is_empty()
            && session.replies.is_empty()
            && lane.is_some_and(|lane| {
                lane.overflow != Overflow::LatestOnly && lane.queue.front().is_some_and(is_plain)
            })
    }

    fn next(&mut self, at: usize) -> Option<Sent> {
        let session = self.sessions[at].as_mut()?;
        if let Some(sent) = session.control.pop_front().or_else(|| session.replies.pop_front()) {
            return Some(sent);
        }
        self.drop_late(at);
        let session = self.sessions[at].as_mut()?;
        let lanes = session.lanes.len();
        for step in 0..lanes {
            let position = (session.next_lane + step) % lanes;
            let lane = &mut session.lanes[position];
            if !lane.has_output() {
                continue;
            }
            // A gap stands where the messages are missing.
            if let Some(gap) = lane.take_loss() {
                return Some(gap);
            }
            let queued = lane.remove(0);
            session.next_lane = (position + 1) % lanes;
            lane.sent.push(queued.as_sent());
            let id = lane.id;
            self.release(at, id);
            return Some(queued.sent());
        }
        None
    }
}

impl Message {
    fn queued(&self, publisher: &str, subscriptions: Vec<u32>) -> Queued {
        Queued {
            topic: self.topic.to_string(),
            publisher: publisher.to_owned(),
            subscriptions,
            number: self.number,
            request: None,
            deadline_ms: self.deadline_ms,
            retained: false,
            lost_behind: Vec::new(),
        }
    }

    fn block(&self) -> Block {
        let payload: &[u8] = if self.number == 0 { b"" } else { &[self.number] };
        // Each has the same size: of neighbours in one row credit settles the average.
        let header: &[u8] = if self.number == 0 { b"-" } else { b"" };
        let mut block = Block::new(&self.topic, header, payload);
        block.deadline_ms = self.deadline_ms;
        block.flags = if self.retain { Block::RETAIN } else { 0 };
        block
    }
}

impl Queued {
    fn sent(self) -> Sent {
        match self.request {
            None => Sent::Deliver {
                subscriptions: self.subscriptions,
                number: self.number,
                retained: self.retained,
            },
            Some(_) => Sent::Request { number: self.number },
        }
    }
}
