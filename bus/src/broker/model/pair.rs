//! The hub and its model, driven together by random operations. `INTERLOCK_MODEL_CASES=100000` is the soak size.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    broker::hub::{Hub, SessionId, SessionInfo, SessionKind},
    native::{BatchReader, BatchWriter, CreditScope, Record},
};

/// One random operation; sessions, ids and topics are small numbers so that they meet.
#[derive(Clone, Debug)]
enum Op {
    Subscribe {
        at: usize,
        id: u32,
        filter: usize,
        serve: bool,
        overflow: usize,
        max: u32,
        group: bool,
        retained: bool,
    },
    Unsubscribe {
        at: usize,
        id: u32,
    },
    Publish {
        at: usize,
        topic: usize,
        deadline: Option<u64>,
        retain: Option<bool>,
    },
    Tick {
        ms: u64,
    },
    PublishBatch {
        at: usize,
        topics: Vec<usize>,
    },
    Request {
        at: usize,
        id: u64,
        topic: usize,
        deadline: Option<u64>,
    },
    Cancel {
        at: usize,
        id: u64,
    },
    Reply {
        at: usize,
        last: bool,
    },
    Take {
        at: usize,
        count: usize,
    },
    TakeBatch {
        at: usize,
    },
    Credit {
        at: usize,
        id: u32,
        total: u64,
    },
    Reopen {
        at: usize,
        farewell: bool,
    },
    Edit {
        at: usize,
        rights: usize,
    },
    Will {
        at: usize,
        topic: usize,
        clear: bool,
    },
}

const SESSIONS: usize = 4;
const TOPICS: [&str; 4] = ["a", "a/b", "c", "secret"];
const FILTERS: [&str; 6] = ["a", "a/#", "+", "#", "c", "secret"];
const OVERFLOWS: [Overflow; 5] =
    [Overflow::DropNewest, Overflow::DropOldest, Overflow::LatestOnly, Overflow::Disconnect, Overflow::Wait];

fn op() -> impl Strategy<Value = Op> {
    let (at, id) = (0..SESSIONS, 1..4u32);
    prop_oneof![
        3 => (at.clone(), id.clone(), 0..FILTERS.len(), 0..OVERFLOWS.len(), 1..4u32, prop::bool::weighted(0.3), any::<bool>())
            .prop_map(|(at, id, filter, overflow, max, group, retained)| {
                Op::Subscribe { at, id, filter, serve: false, overflow, max, group, retained }
            }),
        // Only session 0 serves, see `Model::request`; with one lane, whose order of choice is plain.
        1 => (2..4u32, 0..FILTERS.len(), 1..4u32)
            .prop_map(|(id, filter, max)| {
                let (group, retained) = (false, false);
                Op::Subscribe { at: 0, id, filter, serve: true, overflow: 0, max, group, retained }
            }),
        1 => (at.clone(), id.clone()).prop_map(|(at, id)| Op::Unsubscribe { at, id }),
        5 => (at.clone(), 0..TOPICS.len(), deadline(), prop::option::weighted(0.3, prop::bool::weighted(0.8)))
            .prop_map(|(at, topic, deadline, retain)| Op::Publish { at, topic, deadline, retain }),
        2 => (1..4u64).prop_map(|ms| Op::Tick { ms }),
        4 => (at.clone(), prop::collection::vec(0..TOPICS.len(), 1..6))
            .prop_map(|(at, topics)| Op::PublishBatch { at, topics }),
        4 => (at.clone(), 1..4u64, 0..TOPICS.len(), deadline())
            .prop_map(|(at, id, topic, deadline)| Op::Request { at, id, topic, deadline }),
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

/// From now on; zero is late already.
fn deadline() -> impl Strategy<Value = Option<u64>> {
    prop::option::weighted(0.3, 0..4u64)
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
    permissions.wait = at != 2;
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
            let (number, retained) = (number(&block), block.flags & Block::RETAIN != 0);
            Sent::Deliver { subscriptions: subscriptions.to_vec(), number, retained }
        }
        Record::Credit { scope: CreditScope::Topic { topic, granted } } => Sent::Hold { topic, granted },
        Record::Gap { subscription, count, .. } => Sent::Gap { subscription, count },
        Record::Denied { operation, .. } => Sent::Denied { operation },
        Record::Subscribed { id, .. } => Sent::Subscribed { id },
        Record::Request { block, .. } => Sent::Request { number: number(&block) },
        Record::Reply { id, .. } => Sent::Reply { id },
        Record::ReplyEnd { id, status, .. } => Sent::End { id, status },
        Record::Cancel { .. } => Sent::Cancel,
        other => panic!("the model knows no {other:?}"),
    })
}

fn number(block: &Block) -> u8 {
    block.payload().first().copied().unwrap_or(0)
}

/// The hub, its sessions, and the model, driven together.
struct Pair {
    hub: Hub,
    ids: Vec<SessionId>,
    model: Model,
    number: u8,
    /// Sessions that the hub has asked to be written to, and that had something to send ever since.
    woken: BTreeSet<SessionId>,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            hub: Hub::new("broker".parse().unwrap(), 1),
            ids: Vec::new(),
            model: Model { now_ms: 1, ..Model::default() },
            number: 0,
            woken: BTreeSet::new(),
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
            held: BTreeSet::new(),
        });
    }

    fn apply(&mut self, op: &Op) {
        self.apply_one(op);
        // As the reactor does at the end of a turn; a will may end the next one.
        loop {
            let ending = self.hub.take_ending();
            if ending.is_empty() {
                break;
            }
            for (id, ending) in ending {
                assert_eq!(ending.code, "slow_consumer");
                let at = self.ids.iter().position(|other| *other == id).unwrap();
                assert!(self.model.ending.contains(&at), "session {at} has no reason to end");
                self.reopen(at, false);
            }
        }
        assert!(self.model.ending.is_empty(), "sessions {:?} must end", self.model.ending);
        self.woken.extend(self.hub.take_dirty());
        self.woken.retain(|id| self.hub.has_output(*id));
        for (at, id) in self.ids.iter().enumerate() {
            assert_eq!(self.hub.has_output(*id), self.woken.contains(id), "nobody writes to session {at}");
        }
    }

    fn reopen(&mut self, at: usize, farewell: bool) {
        self.model.close(at, farewell, self.hub.sequence + 1);
        if farewell {
            let (code, text) = ("closing".to_owned(), String::new());
            self.hub.record(self.ids[at], Record::Goodbye { code, text });
        }
        self.hub.close(self.ids[at], "lost", "");
        self.ids[at] = self.open(at);
        self.open_model(at);
    }

    fn publish(&mut self, at: usize, message: &Message) {
        self.model.publish(at, message, self.hub.sequence + 1);
        self.hub.record(self.ids[at], Record::Publish(message.block()));
    }

    fn apply_one(&mut self, op: &Op) {
        match *op {
            Op::Subscribe { at, id, filter, serve, overflow, max, group, retained } => {
                let spec = SubscribeSpec {
                    id,
                    serve,
                    retained,
                    probes: false,
                    overflow: OVERFLOWS[overflow],
                    queue_messages_max: max,
                    queue_bytes_max: 0,
                    filter: FILTERS[filter].to_owned(),
                    group: if group { "group".to_owned() } else { String::new() },
                };
                self.model.subscribe(at, &spec);
                self.hub.record(self.ids[at], Record::Subscribe(spec));
                self.hub.set_windows(self.ids[at], WINDOW_BYTES);
            }
            Op::Tick { ms } => {
                self.model.tick(ms);
                self.hub.tick(self.model.now_ms);
            }
            Op::Unsubscribe { at, id } => {
                self.model.unsubscribe(at, id);
                self.hub.record(self.ids[at], Record::Unsubscribe { id });
            }
            Op::Publish { at, topic, deadline, retain } => {
                let mut message = self.message(topic, deadline);
                message.retain = retain.is_some();
                message.number = if retain == Some(false) { 0 } else { message.number };
                self.publish(at, &message);
            }
            Op::PublishBatch { at, ref topics } => {
                let messages: Vec<Message> = topics.iter().map(|topic| self.message(*topic, None)).collect();
                // Whose turn it is in a group depends on numbers that are read before each message.
                if messages.iter().any(|message| !self.model.groups(&message.topic).is_empty()) {
                    return messages.iter().for_each(|message| self.publish(at, message));
                }
                let mut batch = Vec::new();
                for message in messages {
                    self.model.publish(at, &message, 0);
                    BatchWriter::default().put(&Record::Publish(message.block()), &mut batch);
                }
                self.hub.batch(self.ids[at], &mut BatchReader::default(), &batch).unwrap();
            }
            Op::Request { at, id, topic, deadline } => {
                let message = self.message(topic, deadline);
                self.model.request(at, id, &message);
                let block = message.block();
                self.hub.record(self.ids[at], Record::Request { id, subscription: 0, window: 8, block });
            }
            Op::Cancel { at, id } => {
                let request =
                    self.model.requests.iter().find(|request| request.requester == at && request.id == id);
                if let Some(key) = request.map(|request| request.key) {
                    self.model.cancel(key, Status::Cancelled);
                }
                self.hub.record(self.ids[at], Record::Cancel { id });
            }
            Op::Will { at, topic, clear } => {
                let message = Some(self.message(topic, None)).filter(|_| !clear);
                let block = message.as_ref().map(Message::block);
                self.model.will(at, message);
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
            Op::Reopen { at, farewell } => self.reopen(at, farewell),
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

    fn message(&mut self, topic: usize, deadline: Option<u64>) -> Message {
        self.number = self.number % u8::MAX + 1;
        let deadline_ms = deadline.map_or(0, |ms| self.model.now_ms + ms);
        Message { topic: TOPICS[topic].parse().unwrap(), number: self.number, deadline_ms, retain: false }
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
        let is_over = !self.hub.put_next(self.ids[at], &mut BatchWriter::default(), &mut batch);
        reader.begin(batch.into());
        let mut theirs = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            theirs.extend(sent(record));
        }
        let delivered = theirs.iter().filter(|sent| matches!(sent, Sent::Deliver { .. })).count();
        let ours: Vec<Sent> = match self.model.is_batch_next(at) && delivered > 0 {
            true => self.model.next_batch(at, delivered),
            // An origin, of which the model knows nothing, has gone out alone.
            false if theirs.is_empty() && !is_over => Vec::new(),
            false => self.model.next(at).into_iter().collect(),
        };
        assert_eq!(theirs, ours, "what session {at} is sent in a batch");
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
    pair.apply(&Op::Subscribe {
        at: 0,
        id: 2,
        filter: 0,
        serve: true,
        overflow: 0,
        max: 1,
        group: false,
        retained: false,
    });
    pair.apply(&Op::Request { at: 2, id: 2, topic: 0, deadline: None });
    pair.apply(&Op::Request { at: 0, id: 1, topic: 0, deadline: None });
    pair.apply(&Op::Cancel { at: 2, id: 2 });
    pair.apply(&Op::Edit { at: 0, rights: 0 });
    let told: Vec<Sent> = std::iter::from_fn(|| pair.hub.next_record(pair.ids[0])).filter_map(sent).collect();
    assert!(told.contains(&Sent::Gap { subscription: 2, count: 1 }), "{told:?}");
}

#[test]
fn a_gap_stands_where_the_messages_are_missing_in_a_batch_and_alone() {
    let subscribe = |id, filter| {
        let (serve, overflow, group, retained) = (false, 0, false, false);
        Op::Subscribe { at: 0, id, filter, serve, overflow, max: 2, group, retained }
    };
    let publish = || Op::PublishBatch { at: 1, topics: vec![0] };
    let numbers = |sent: Vec<Sent>| -> String {
        let word = |sent| match sent {
            Sent::Deliver { number, .. } => Some(number.to_string()),
            Sent::Gap { subscription, count } => Some(format!("gap {count} of {subscription}")),
            _ => None,
        };
        sent.into_iter().filter_map(word).collect::<Vec<_>>().join(", ")
    };
    for in_batches in [false, true] {
        let mut pair = Pair::new();
        [subscribe(1, 0), subscribe(2, 1)].iter().for_each(|op| pair.apply(op));
        pair.apply(&Op::Take { at: 0, count: 9 });
        (0..4).for_each(|_| pair.apply(&publish()));
        let first = pair.hub.next_record(pair.ids[0]).and_then(sent);
        let first = first.into_iter().chain(pair.hub.next_record(pair.ids[0]).and_then(sent)).collect();
        assert_eq!(numbers(first), "1");
        (0..2).for_each(|_| pair.apply(&publish()));
        let mut rest = Vec::new();
        if in_batches {
            let (mut reader, mut batch) = (BatchReader::default(), Vec::new());
            while pair.hub.put_next(pair.ids[0], &mut BatchWriter::default(), &mut batch) {}
            reader.begin(batch.into());
            rest.extend(std::iter::from_fn(|| reader.next_record().unwrap()).filter_map(sent));
        } else {
            rest.extend(std::iter::from_fn(|| pair.hub.next_record(pair.ids[0])).filter_map(sent));
        }
        assert_eq!(numbers(rest), "2, gap 2 of 2, gap 2 of 1, 5, gap 1 of 2, gap 1 of 1");
    }
}

/// `Pair::apply` sees to it that the session is written to.
#[test]
fn a_loss_behind_a_closed_window_is_told_when_what_stood_in_front_of_it_goes() {
    let subscribe = |id, filter, serve| {
        let (overflow, group, retained) = (0, false, false);
        Op::Subscribe { at: 0, id, filter, serve, overflow, max: 1, group, retained }
    };
    let publish = || Op::PublishBatch { at: 3, topics: vec![0] };
    let request = |id| Op::Request { at: 2, id, topic: 0, deadline: None };
    let take = || Op::Take { at: 0, count: 9 };
    let window = WINDOW_BYTES.div_ceil(bytes_of(TOPICS[0]));
    let close_window = || (0..window).flat_map(|_| [publish(), take()]);
    // A request is withdrawn, a right is taken away, and a subscription ends whose loss was another's, too.
    let withdrawn = [subscribe(2, 0, true), take()].into_iter();
    let withdrawn = withdrawn.chain((0..window).flat_map(|id| [request(100 + id), take()]));
    let withdrawn = withdrawn.chain([request(4), request(5), Op::Cancel { at: 2, id: 4 }]);
    let withheld = [subscribe(2, 0, false), take()].into_iter().chain(close_window());
    let withheld = withheld.chain([publish(), publish(), Op::Edit { at: 0, rights: 1 }]);
    let inherited = [subscribe(1, 0, false), take()].into_iter().chain(close_window());
    let inherited = inherited.chain([
        publish(),
        subscribe(2, 1, false),
        take(),
        publish(),
        Op::Unsubscribe { at: 0, id: 1 },
    ]);
    let cases: [Vec<Op>; 3] = [withdrawn.collect(), withheld.collect(), inherited.collect()];
    for ops in cases {
        let mut pair = Pair::new();
        ops.iter().for_each(|op| pair.apply(op));
        let told: Vec<Sent> =
            std::iter::from_fn(|| pair.hub.next_record(pair.ids[0])).filter_map(sent).collect();
        assert_eq!(told.last(), Some(&Sent::Gap { subscription: 2, count: 1 }), "{told:?} after {ops:?}");
    }
}

fn cases() -> u32 {
    std::env::var("INTERLOCK_MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(600)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

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
