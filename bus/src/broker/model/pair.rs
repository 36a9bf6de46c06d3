//! The hub and its model, driven together by random operations. `INTERLOCK_MODEL_CASES=100000` is the soak size.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::{readiness::WATCH_PARTS, *};
use crate::{
    broker::hub::{Hub, SessionId, SessionInfo, SessionKind},
    native::{BatchReader, BatchWriter, CreditScope, Record},
};

mod cases;
mod op;

use op::{FILTERS, OVERFLOWS, Op, SESSIONS, TOPICS, op};

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
        Record::Credit { scope: CreditScope::Request { id, parts } } => Sent::Grant { key: id, parts },
        Record::Reply { id, payload, .. } => Sent::Reply { id, says: says(&payload) },
        Record::ReplyEnd { id, status, payload, .. } => Sent::End { id, status, says: says(&payload) },
        Record::Cancel { .. } => Sent::Cancel,
        other => panic!("the model knows no {other:?}"),
    })
}

/// What the broker says in a part, but for words that name its own sessions. `Null` if it says nothing.
fn says(payload: &[u8]) -> Value {
    fn forget_sessions(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|name, _| name != "session" && name != "kind");
                fields.values_mut().for_each(forget_sessions);
            }
            Value::Array(values) => values.iter_mut().for_each(forget_sessions),
            _ => {}
        }
    }
    let mut value = serde_json::from_slice(payload).unwrap_or_default();
    forget_sessions(&mut value);
    value
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
        self.model.presence_changed(at);
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
            Op::Subscribe { at, id, filter, serve, overflow, max, group, retained, probes } => {
                let spec = SubscribeSpec {
                    id,
                    serve,
                    retained,
                    probes,
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
            Op::Watch { at, id, topic, at_least, ref peers, deadline } => {
                let message = self.message(topic, deadline);
                self.model.watch(at, id, (&message.topic, message.deadline_ms), at_least, peers);
                let peers: Vec<String> = peers.iter().map(|peer| format!("peer{peer}")).collect();
                let question = json!({ "topic": message.topic, "at_least": at_least, "peers": peers });
                self.question(at, id, "receivers", &question, message.deadline_ms);
            }
            Op::Probe { at, id, topic, peer, deadline } => {
                let message = self.message(topic, deadline);
                self.model.probe(at, id, (&message.topic, message.deadline_ms), peer);
                let peer = peer.map(|peer| format!("peer{peer}"));
                let question = json!({ "topic": message.topic, "peer": peer });
                self.question(at, id, "probe", &question, message.deadline_ms);
            }
            Op::Grant { at, id, parts } => {
                self.model.grant(at, id, parts);
                let scope = CreditScope::Request { id, parts };
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

    fn question(&mut self, at: usize, id: u64, word: &str, question: &Value, deadline_ms: u64) {
        let topic = format!("$sys/broker/{word}").parse().unwrap();
        let mut block = Block::new(&topic, b"", question.to_string().as_bytes());
        block.deadline_ms = deadline_ms;
        let window = WATCH_PARTS as u32;
        self.hub.record(self.ids[at], Record::Request { id, subscription: 0, window, block });
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
            let proof = |topic| self.model.proof(request.requester, topic, at, "proven");
            let says = request.probed.as_ref().map_or(Value::Null, proof);
            self.model.end_saying(request.key, Status::Done, says);
            let (code, text) = (String::new(), String::new());
            let end = Record::ReplyEnd { id: request.key, status: Status::Done, code, text, header, payload };
            return self.hub.record(self.ids[at], end);
        }
        let requester = self.model.sessions[request.requester].as_mut().unwrap();
        requester.replies.push_back(Sent::Reply { id: request.id, says: Value::Null });
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
