//! The records of the native protocol as values, and their bodies as bytes.
//!
//! All integers are little-endian; `text8`/`text16` are a `u8`/`u16` length and UTF-8. Readers skip
//! records of unknown kind and bytes behind the fields they know.

use bytes::Bytes;
use smallvec::SmallVec;

use super::{
    block::Block,
    body::{Body, put_part_header, put_text8, put_text16},
    words::{Operation, Overflow, Status},
};

/// Why bytes are not a record. The session that sent them ends with this as its reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The body ends before its fields do.
    #[error("record of kind {kind} ends too early")]
    Short {
        /// The record's kind byte.
        kind: u8,
    },
    /// A field holds a value outside its range.
    #[error("record of kind {kind} has an impossible {field}")]
    Field {
        /// The record's kind byte.
        kind: u8,
        /// The field's name in WIRE.md.
        field: &'static str,
    },
    /// A length that its batch cannot hold, or above the limit.
    #[error("record of {bytes} bytes does not fit; the limit here is {limit} bytes")]
    Length {
        /// What the length field says.
        bytes: usize,
        /// What is left, or allowed.
        limit: usize,
    },
}

/// The subscriptions of one session that a message matches; one or two in practice, so kept in place.
pub type SubscriptionIds = SmallVec<[u32; 4]>;

/// What a `subscribe` record asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscribeSpec {
    /// Chosen by the client, unique in its session, not zero.
    pub id: u32,
    /// Serve requests instead of receiving publishes.
    pub serve: bool,
    /// Send the retained values first.
    pub retained: bool,
    /// The client answers requests that come to this subscription: they are probes.
    pub probes: bool,
    /// What is lost when the send queue is full.
    pub overflow: Overflow,
    /// Bound of the send queue in messages; zero for the broker's default.
    pub queue_messages_max: u32,
    /// Bound of the send queue in bytes; zero for the broker's default.
    pub queue_bytes_max: u32,
    /// The filter's text.
    pub filter: String,
    /// Queue group; empty for none. One member of a group gets each message.
    pub group: String,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// First record of each side. From the broker it also says who the client is.
    Hello {
        /// [`super::VERSION_MAJOR`] of the sender.
        major: u16,
        /// [`super::VERSION_MINOR`] of the sender.
        minor: u16,
        /// Program and version, for the tool; at most 255 bytes.
        program: String,
        /// From the broker: the client's registered name. From a client: empty.
        peer: String,
        /// From the broker: its epoch, new at every start. From a client: nil.
        epoch: [u8; 16],
    },
    /// Names an origin number before its first use in this session.
    Origin {
        /// The number used in blocks.
        origin: u32,
        /// The peer's registered name.
        peer: String,
    },
    /// Asks for a subscription or offers to serve.
    Subscribe(SubscribeSpec),
    /// The subscription is in the routing table.
    Subscribed {
        /// Its id.
        id: u32,
        /// The broker's sequence from which delivery is certain.
        from_sequence: u64,
    },
    /// Ends a subscription.
    Unsubscribe {
        /// Its id.
        id: u32,
    },
    /// A message for whoever subscribes.
    Publish(Block),
    /// Answer to a publish with [`Block::ACKNOWLEDGE`]: it is in every matching queue.
    Accepted {
        /// The client's sequence.
        sequence: u64,
        /// How many subscribers it was queued for.
        subscribers: u32,
        /// How many it was dropped for, because their queue was full.
        dropped: u32,
        /// It was to be its topic's last value, and there was no room for it.
        not_retained: bool,
    },
    /// A message for the subscriptions named.
    Deliver {
        /// Every subscription of the session that it matches; the first one carries the credit.
        subscriptions: SubscriptionIds,
        /// The message.
        block: Block,
    },
    /// A question. To the broker the id is the client's; to a server it is the broker's.
    Request {
        /// The id replies carry.
        id: u64,
        /// To a server: the subscription it was routed by. To the broker: zero.
        subscription: u32,
        /// Parts the server may send before the first credit.
        window: u32,
        /// The message.
        block: Block,
    },
    /// One part of an answer.
    Reply {
        /// The request's id.
        id: u64,
        /// Header bytes, then payload.
        header: Bytes,
        /// The payload.
        payload: Bytes,
    },
    /// The end of an answer. After it nothing follows for this id.
    ReplyEnd {
        /// The request's id.
        id: u64,
        /// How it ended.
        status: Status,
        /// A word for programs, from the server if `status` is `Failed`; else empty.
        code: String,
        /// A sentence for people.
        text: String,
        /// Header of a last part; empty if there is none.
        header: Bytes,
        /// Payload of a last part; counts only if `header` is not empty.
        payload: Bytes,
    },
    /// The requester wants no more; reaches the server.
    Cancel {
        /// The request's id.
        id: u64,
    },
    /// What was consumed, as totals since the start.
    Credit {
        /// What the total counts.
        scope: CreditScope,
    },
    /// A sign of life. Answered with the same number and `answer` set.
    Ping {
        /// Any number.
        number: u64,
        /// Whether this is the answer.
        answer: bool,
    },
    /// An operation that was refused.
    Denied {
        /// Which operation.
        operation: Operation,
        /// Its sequence, subscription id or request id.
        reference: u64,
        /// A word for programs: `not_permitted`, `invalid_topic`, `too_many`, ...
        code: String,
        /// The topic or filter it was about.
        topic: String,
        /// A sentence for people.
        text: String,
    },
    /// Messages a subscription did not get.
    Gap {
        /// The subscription.
        subscription: u32,
        /// How many; `u64::MAX` if unknown.
        count: u64,
        /// Why: `slow_consumer`, `disconnected`, ...
        reason: String,
    },
    /// Registers or announces a schema.
    Schema {
        /// Fingerprint as it stands in headers.
        fingerprint: u64,
        /// Name of the type.
        name: String,
        /// `json-schema` or `fields`.
        format: String,
        /// The schema itself.
        body: Bytes,
    },
    /// The sender ends the session and says why.
    Goodbye {
        /// A word for programs: `closing`, `revoked`, `protocol`, `slow_consumer`, ...
        code: String,
        /// A sentence for people.
        text: String,
    },
    /// The broker's long-term key has changed: to be used from the next connection on.
    BrokerKey {
        /// The new public key.
        key: [u8; 32],
        /// Until when the key of this session is accepted, Unix milliseconds; zero if it is not any more.
        old_until_ms: u64,
    },
    /// What to publish for the client if it dies: a session that ends in any other way than by its goodbye.
    Will {
        /// The message; `None` takes back the one deposited before.
        block: Option<Block>,
    },
    /// A piece of a record above [`crate::limits::RECORD_BYTES_MAX`]; pieces of one record stand in
    /// order, and only control records may come between.
    Fragment {
        /// Whether this is the last piece.
        last: bool,
        /// The piece. Joined pieces are `kind u8 | body`.
        piece: Bytes,
    },
}

/// What a `credit` record counts or holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreditScope {
    /// Client to broker: deliveries and requests consumed on this subscription, in total.
    Subscription {
        /// The subscription.
        id: u32,
        /// Messages consumed since it began.
        messages: u64,
    },
    /// Requester to server (through the broker): parts it has consumed, in total.
    Request {
        /// The request's id.
        id: u64,
        /// Parts consumed.
        parts: u64,
    },
    /// Broker to publisher: whether this topic may be published (a `wait` subscriber is full or has room again).
    Topic {
        /// The topic's text.
        topic: String,
        /// `false` withholds the credit.
        granted: bool,
    },
}

/// The end of a record that has no long pieces.
static NOTHING: Bytes = Bytes::new();

/// Kind bytes.
pub(super) mod kind {
    pub(in crate::native) const HELLO: u8 = 1;
    pub(in crate::native) const SUBSCRIBE: u8 = 2;
    pub(in crate::native) const SUBSCRIBED: u8 = 3;
    pub(in crate::native) const UNSUBSCRIBE: u8 = 4;
    pub(in crate::native) const PUBLISH: u8 = 5;
    pub(in crate::native) const DELIVER: u8 = 6;
    pub(in crate::native) const REQUEST: u8 = 7;
    pub(in crate::native) const REPLY: u8 = 8;
    pub(in crate::native) const REPLY_END: u8 = 9;
    pub(in crate::native) const CANCEL: u8 = 10;
    pub(in crate::native) const CREDIT: u8 = 11;
    pub(in crate::native) const PING: u8 = 12;
    pub(in crate::native) const DENIED: u8 = 13;
    pub(in crate::native) const GAP: u8 = 14;
    pub(in crate::native) const SCHEMA: u8 = 15;
    pub(in crate::native) const GOODBYE: u8 = 16;
    pub(in crate::native) const ORIGIN: u8 = 17;
    pub(in crate::native) const ACCEPTED: u8 = 18;
    pub(in crate::native) const FRAGMENT: u8 = 19;
    pub(in crate::native) const BROKER_KEY: u8 = 20;
    pub(in crate::native) const WILL: u8 = 21;
}

impl Record {
    /// Bytes the record will take, its length field included; exact for those with payloads.
    pub fn bytes_hint(&self) -> usize {
        const SMALL: usize = 64;
        match self {
            Self::Publish(block) | Self::Will { block: Some(block) } => 6 + block.bytes(),
            Self::Deliver { subscriptions, block } => 6 + 4 * subscriptions.len() + block.bytes(),
            Self::Request { block, .. } => 5 + 16 + block.bytes(),
            Self::Reply { header, payload, .. } => 5 + 8 + 2 + header.len() + payload.len(),
            Self::ReplyEnd { code, text, header, payload, .. } => {
                SMALL + code.len() + text.len() + header.len() + payload.len()
            }
            Self::Schema { name, format, body, .. } => SMALL + name.len() + format.len() + body.len(),
            Self::Fragment { piece, .. } => 6 + piece.len(),
            Self::Denied { code, topic, text, .. } => SMALL + code.len() + topic.len() + text.len(),
            _ => SMALL,
        }
    }

    /// Appends `kind u8 | body`.
    pub fn put(&self, out: &mut Vec<u8>) {
        let tail = self.put_but_tail(out);
        tail.iter().for_each(|piece| out.extend_from_slice(piece));
    }

    /// Appends `kind u8 | body` but for the pieces at its end that may be long, which it gives.
    pub(super) fn put_but_tail(&self, out: &mut Vec<u8>) -> [&Bytes; 2] {
        match self {
            Self::Hello { major, minor, program, peer, epoch } => {
                out.push(kind::HELLO);
                out.extend_from_slice(&major.to_le_bytes());
                out.extend_from_slice(&minor.to_le_bytes());
                put_text8(program, out);
                put_text8(peer, out);
                out.extend_from_slice(epoch);
            }
            Self::Origin { origin, peer } => {
                out.push(kind::ORIGIN);
                out.extend_from_slice(&origin.to_le_bytes());
                put_text8(peer, out);
            }
            Self::Subscribe(spec) => {
                out.push(kind::SUBSCRIBE);
                out.extend_from_slice(&spec.id.to_le_bytes());
                out.push(u8::from(spec.serve) | u8::from(spec.retained) << 1 | u8::from(spec.probes) << 2);
                out.push(spec.overflow as u8);
                out.extend_from_slice(&spec.queue_messages_max.to_le_bytes());
                out.extend_from_slice(&spec.queue_bytes_max.to_le_bytes());
                put_text8(&spec.filter, out);
                put_text8(&spec.group, out);
            }
            Self::Subscribed { id, from_sequence } => {
                out.push(kind::SUBSCRIBED);
                out.extend_from_slice(&id.to_le_bytes());
                out.extend_from_slice(&from_sequence.to_le_bytes());
            }
            Self::Unsubscribe { id } => {
                out.push(kind::UNSUBSCRIBE);
                out.extend_from_slice(&id.to_le_bytes());
            }
            Self::Publish(block) => {
                out.push(kind::PUBLISH);
                return block.put_but_tail(out);
            }
            Self::Accepted { sequence, subscribers, dropped, not_retained } => {
                out.push(kind::ACCEPTED);
                out.extend_from_slice(&sequence.to_le_bytes());
                out.extend_from_slice(&subscribers.to_le_bytes());
                out.extend_from_slice(&dropped.to_le_bytes());
                // Left out where it says nothing: the answer is then that of the versions before.
                if *not_retained {
                    out.push(1);
                }
            }
            Self::Deliver { subscriptions, block } => {
                out.reserve(self.bytes_hint());
                out.push(kind::DELIVER);
                out.push(subscriptions.len().min(255) as u8);
                subscriptions.iter().take(255).for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
                return block.put_but_tail(out);
            }
            Self::Request { id, subscription, window, block } => {
                out.push(kind::REQUEST);
                out.extend_from_slice(&id.to_le_bytes());
                out.extend_from_slice(&subscription.to_le_bytes());
                out.extend_from_slice(&window.to_le_bytes());
                return block.put_but_tail(out);
            }
            Self::Reply { id, header, payload } => {
                out.push(kind::REPLY);
                out.extend_from_slice(&id.to_le_bytes());
                put_part_header(header, out);
                return [payload, &NOTHING];
            }
            Self::ReplyEnd { id, status, code, text, header, payload } => {
                out.push(kind::REPLY_END);
                out.extend_from_slice(&id.to_le_bytes());
                out.push(*status as u8);
                put_text8(code, out);
                put_text16(text, out);
                put_part_header(header, out);
                return [payload, &NOTHING];
            }
            Self::Cancel { id } => {
                out.push(kind::CANCEL);
                out.extend_from_slice(&id.to_le_bytes());
            }
            Self::Credit { scope } => {
                out.push(kind::CREDIT);
                match scope {
                    CreditScope::Subscription { id, messages } => {
                        out.push(0);
                        out.extend_from_slice(&u64::from(*id).to_le_bytes());
                        out.extend_from_slice(&messages.to_le_bytes());
                    }
                    CreditScope::Request { id, parts } => {
                        out.push(1);
                        out.extend_from_slice(&id.to_le_bytes());
                        out.extend_from_slice(&parts.to_le_bytes());
                    }
                    CreditScope::Topic { topic, granted } => {
                        out.push(2);
                        out.push(u8::from(*granted));
                        put_text8(topic, out);
                    }
                }
            }
            Self::Ping { number, answer } => {
                out.push(kind::PING);
                out.extend_from_slice(&number.to_le_bytes());
                out.push(u8::from(*answer));
            }
            Self::Denied { operation, reference, code, topic, text } => {
                out.push(kind::DENIED);
                out.push(*operation as u8);
                out.extend_from_slice(&reference.to_le_bytes());
                put_text8(code, out);
                put_text8(topic, out);
                put_text16(text, out);
            }
            Self::Gap { subscription, count, reason } => {
                out.push(kind::GAP);
                out.extend_from_slice(&subscription.to_le_bytes());
                out.extend_from_slice(&count.to_le_bytes());
                put_text8(reason, out);
            }
            Self::Schema { fingerprint, name, format, body } => {
                out.push(kind::SCHEMA);
                out.extend_from_slice(&fingerprint.to_le_bytes());
                put_text8(name, out);
                put_text8(format, out);
                out.extend_from_slice(body);
            }
            Self::Goodbye { code, text } => {
                out.push(kind::GOODBYE);
                put_text8(code, out);
                put_text16(text, out);
            }
            Self::BrokerKey { key, old_until_ms } => {
                out.push(kind::BROKER_KEY);
                out.extend_from_slice(key);
                out.extend_from_slice(&old_until_ms.to_le_bytes());
            }
            Self::Will { block } => {
                out.push(kind::WILL);
                out.push(u8::from(block.is_some()));
                block.iter().for_each(|block| block.view().put(out));
            }
            Self::Fragment { last, piece } => {
                out.push(kind::FRAGMENT);
                out.push(u8::from(*last));
                out.extend_from_slice(piece);
            }
        }
        [&NOTHING, &NOTHING]
    }

    /// Reads `kind u8 | body`. `None` for a kind this version does not know.
    ///
    /// # Errors
    /// [`RecordError`]: the body is too short for its fields, or one of them is impossible.
    pub fn take(record: Bytes) -> Result<Option<Self>, RecordError> {
        let mut body = Body { kind: 0, bytes: record };
        body.kind = body.u8()?;
        let record = match body.kind {
            kind::HELLO => Self::Hello {
                major: body.u16()?,
                minor: body.u16()?,
                program: body.text8()?,
                peer: body.text8()?,
                epoch: body.array()?,
            },
            kind::ORIGIN => Self::Origin { origin: body.u32()?, peer: body.text8()? },
            kind::SUBSCRIBE => {
                let id = body.u32()?;
                let flags = body.u8()?;
                let overflow = body.enumerated("overflow policy", Overflow::from_byte)?;
                Self::Subscribe(SubscribeSpec {
                    id,
                    serve: flags & 1 != 0,
                    retained: flags & 2 != 0,
                    probes: flags & 4 != 0,
                    overflow,
                    queue_messages_max: body.u32()?,
                    queue_bytes_max: body.u32()?,
                    filter: body.text8()?,
                    group: body.text8()?,
                })
            }
            kind::SUBSCRIBED => Self::Subscribed { id: body.u32()?, from_sequence: body.u64()? },
            kind::UNSUBSCRIBE => Self::Unsubscribe { id: body.u32()? },
            kind::PUBLISH => Self::Publish(Block::take(&mut body)?),
            kind::WILL => {
                let is_kept = body.u8()? != 0;
                Self::Will { block: is_kept.then(|| Block::take(&mut body)).transpose()? }
            }
            kind::ACCEPTED => {
                let (sequence, subscribers, dropped) = (body.u64()?, body.u32()?, body.u32()?);
                let not_retained = body.bytes.first().is_some_and(|flags| flags & 1 != 0);
                Self::Accepted { sequence, subscribers, dropped, not_retained }
            }
            kind::DELIVER => {
                let count = body.u8()?;
                let subscriptions = match count {
                    1 => SubscriptionIds::from_slice(&[body.u32()?]),
                    _ => (0..count).map(|_| body.u32()).collect::<Result<_, _>>()?,
                };
                Self::Deliver { subscriptions, block: Block::take(&mut body)? }
            }
            kind::REQUEST => Self::Request {
                id: body.u64()?,
                subscription: body.u32()?,
                window: body.u32()?,
                block: Block::take(&mut body)?,
            },
            kind::REPLY => {
                let id = body.u64()?;
                let (header, payload) = body.part()?;
                Self::Reply { id, header, payload }
            }
            kind::REPLY_END => {
                let id = body.u64()?;
                let status = body.enumerated("status", Status::from_byte)?;
                let (code, text) = (body.text8()?, body.text16()?);
                let (header, payload) = body.part()?;
                Self::ReplyEnd { id, status, code, text, header, payload }
            }
            kind::CANCEL => Self::Cancel { id: body.u64()? },
            kind::CREDIT => Self::Credit { scope: body.credit_scope()? },
            kind::PING => Self::Ping { number: body.u64()?, answer: body.u8()? != 0 },
            kind::DENIED => Self::Denied {
                operation: body.enumerated("operation", Operation::from_byte)?,
                reference: body.u64()?,
                code: body.text8()?,
                topic: body.text8()?,
                text: body.text16()?,
            },
            kind::GAP => Self::Gap { subscription: body.u32()?, count: body.u64()?, reason: body.text8()? },
            kind::SCHEMA => Self::Schema {
                fingerprint: body.u64()?,
                name: body.text8()?,
                format: body.text8()?,
                body: body.rest(),
            },
            kind::GOODBYE => Self::Goodbye { code: body.text8()?, text: body.text16()? },
            kind::BROKER_KEY => Self::BrokerKey { key: body.array()?, old_until_ms: body.u64()? },
            kind::FRAGMENT => Self::Fragment { last: body.u8()? != 0, piece: body.rest() },
            _unknown => return Ok(None),
        };
        Ok(Some(record))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn block() -> Block {
        let mut block = Block::new(&"a/b".parse().unwrap(), b"HEAD", b"payload");
        (block.flags, block.origin, block.sequence, block.deadline_ms) = (Block::RETAIN, 2, 3, 4);
        block
    }

    fn every_record() -> Vec<Record> {
        vec![
            Record::Hello { major: 1, minor: 2, program: "p".into(), peer: "n".into(), epoch: [5; 16] },
            Record::Origin { origin: 7, peer: "gateway".into() },
            Record::Subscribe(SubscribeSpec {
                id: 9,
                serve: true,
                retained: true,
                probes: false,
                overflow: Overflow::LatestOnly,
                queue_messages_max: 10,
                queue_bytes_max: 11,
                filter: "a/#".into(),
                group: "g".into(),
            }),
            Record::Subscribed { id: 9, from_sequence: 12 },
            Record::Unsubscribe { id: 9 },
            Record::Publish(block()),
            Record::Accepted { sequence: 3, subscribers: 2, dropped: 1, not_retained: false },
            Record::Accepted { sequence: 3, subscribers: 0, dropped: 0, not_retained: true },
            Record::Deliver { subscriptions: SubscriptionIds::from_slice(&[1, 9]), block: block() },
            Record::Request { id: 13, subscription: 9, window: 64, block: block() },
            Record::Reply { id: 13, header: Bytes::from_static(b"H"), payload: Bytes::from_static(b"P") },
            Record::ReplyEnd {
                id: 13,
                status: Status::Failed,
                code: "c".into(),
                text: "t".into(),
                header: Bytes::new(),
                payload: Bytes::new(),
            },
            Record::Cancel { id: 13 },
            Record::Credit { scope: CreditScope::Subscription { id: 9, messages: 14 } },
            Record::Credit { scope: CreditScope::Request { id: 13, parts: 15 } },
            Record::Credit { scope: CreditScope::Topic { topic: "a/b".into(), granted: true } },
            Record::Ping { number: 16, answer: true },
            Record::Denied {
                operation: Operation::Serve,
                reference: 9,
                code: "not_permitted".into(),
                topic: "a/#".into(),
                text: "no".into(),
            },
            Record::Gap { subscription: 9, count: u64::MAX, reason: "slow_consumer".into() },
            Record::Schema {
                fingerprint: 17,
                name: "T".into(),
                format: "fields".into(),
                body: Bytes::from_static(b"{}"),
            },
            Record::Goodbye { code: "closing".into(), text: "bye".into() },
            Record::Fragment { last: true, piece: Bytes::from_static(b"piece") },
            Record::BrokerKey { key: [0x4b; 32], old_until_ms: 18 },
            Record::Will { block: Some(block()) },
            Record::Will { block: None },
        ]
    }

    fn encoded(record: &Record) -> Bytes {
        let mut bytes = Vec::new();
        record.put(&mut bytes);
        bytes.into()
    }

    #[test]
    fn every_record_reads_back_as_it_was_written() {
        for record in every_record() {
            assert_eq!(Record::take(encoded(&record)).unwrap(), Some(record));
        }
    }

    #[test]
    fn the_bytes_of_version_1_are_golden() {
        let golden = include_str!("golden_v1.txt");
        let lines: Vec<String> = every_record()
            .iter()
            .map(|record| encoded(record).iter().map(|byte| format!("{byte:02x}")).collect())
            .collect();
        assert_eq!(lines.join("\n"), golden.trim(), "the wire format changed; that needs a new version");
    }

    /// The rows of the first table of WIRE.md behind `section`, cell by cell.
    fn documented_rows(section: &str) -> Vec<Vec<String>> {
        let text = include_str!("../../WIRE.md").split_once(section).expect("WIRE.md has the section").1;
        let rows = text.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
        let cells =
            |row: &str| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
        rows.take_while(|row| row.starts_with('|')).map(cells).collect()
    }

    /// Reads a body as WIRE.md describes it; panics if the bytes end before the fields.
    struct Reader<'a> {
        bytes: &'a [u8],
        /// The last number that was read: what a count or a condition refers to.
        last: u64,
        /// By name, what the parts of a block are as long as.
        lengths: std::collections::HashMap<String, u64>,
    }

    impl Reader<'_> {
        fn number(&mut self, bytes: usize) -> u64 {
            let (number, rest) = self.bytes.split_at(bytes);
            self.bytes = rest;
            let mut wide = [0; 8];
            wide[..bytes].copy_from_slice(number);
            self.last = u64::from_le_bytes(wide);
            self.last
        }

        fn skip(&mut self, bytes: u64) {
            self.bytes = &self.bytes[bytes as usize..];
        }

        /// The definition of `block` or `part`.
        fn defined(&mut self, name: &str) {
            let text = include_str!("../../WIRE.md");
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix("= "));
            line.expect("WIRE.md defines it").split(" | ").for_each(|field| self.field(field));
        }

        fn field(&mut self, field: &str) {
            let (name, kind) = field.rsplit_once(' ').unwrap_or(("", field));
            match kind {
                "u8" | "u16" | "u32" | "u64" => {
                    let number = self.number(kind[1..].parse::<usize>().unwrap() / 8);
                    if let Some(name) = name.strip_suffix(" bytes") {
                        self.lengths.insert(name.to_owned(), number);
                    }
                }
                "text8" | "text16" => {
                    let length = self.number(kind[4..].parse::<usize>().unwrap() / 8);
                    self.skip(length);
                }
                "bytes" => self.skip(name.rsplit_once(' ').unwrap().1.parse().unwrap()),
                "block" | "part" => self.defined(kind),
                "rest)" | "payload" => self.bytes = &[],
                part => self.skip(self.lengths[part]),
            }
        }

        /// All fields of one cell.
        fn body(&mut self, cell: &str) {
            match cell.trim_matches('`') {
                "count u8, count * (subscription u32), block" => {
                    let count = self.number(1);
                    self.skip(4 * count);
                    self.field("block");
                }
                "scope u8`, then as below" => {
                    let scope = self.number(1).to_string();
                    let rows = documented_rows("## Credit");
                    let row = rows.iter().find(|row| row[0] == scope).expect("the scope is documented");
                    self.body(&row[1]);
                }
                "kept u8`, and if it is 1 a `block" => {
                    if self.number(1) == 1 {
                        self.field("block");
                    }
                }
                fields => {
                    let (always, more) =
                        fields.split_once("`, and if it says more: `").unwrap_or((fields, ""));
                    always.split(", ").for_each(|field| self.field(field));
                    if !self.bytes.is_empty() && !more.is_empty() {
                        more.split(", ").for_each(|field| self.field(field));
                    }
                }
            }
        }
    }

    #[test]
    fn each_record_has_the_number_and_the_fields_that_wire_md_gives_it() {
        let rows = documented_rows("## Records");
        let numbers: Vec<u8> = rows.iter().map(|row| row[0].parse().unwrap()).collect();
        assert_eq!(numbers, (kind::HELLO..=kind::WILL).collect::<Vec<_>>());
        let mut written = std::collections::BTreeSet::new();
        for record in every_record() {
            let bytes = encoded(&record);
            let row = &rows[usize::from(bytes[0]) - 1];
            let shown = format!("{record:?}").to_lowercase();
            assert!(shown.starts_with(&row[1].replace('-', "")), "{shown} has the number of `{}`", row[1]);
            let mut reader = Reader { bytes: &bytes[1..], last: 0, lengths: Default::default() };
            reader.body(row[3].split(" (minor").next().unwrap());
            assert_eq!(reader.bytes, b"", "`{}` has more than WIRE.md says", row[1]);
            written.insert(bytes[0]);
        }
        assert_eq!(written.into_iter().collect::<Vec<_>>(), numbers, "records that no test writes");
    }

    #[test]
    fn each_word_has_the_number_that_wire_md_gives_it() {
        let text = include_str!("../../WIRE.md").split_whitespace().collect::<Vec<_>>().join(" ");
        let list = |names: Vec<&str>| {
            let words =
                names.iter().enumerate().map(|(number, name)| format!("{number} {}", name.replace('_', " ")));
            words.collect::<Vec<_>>().join(", ")
        };
        let overflows = (0..=255).filter_map(Overflow::from_byte).map(Overflow::as_str).collect();
        let operations = (0..=255).filter_map(Operation::from_byte).map(Operation::as_str).collect();
        for words in
            [format!("`overflow`: {}.", list(overflows)), format!("`operation`: {};", list(operations))]
        {
            assert!(text.contains(&words), "{words}");
        }
        let statuses = (0..=255).filter_map(Status::from_byte).enumerate();
        let all = text.split_once("`status`: ").unwrap().1;
        for (number, status) in statuses {
            let words = format!("{number} {}", status.as_str().replace('_', " "));
            assert!(all.contains(&words), "{words}");
        }
        let (retain, acknowledge, parts) = (Block::RETAIN, Block::ACKNOWLEDGE, Block::PARTS);
        for words in [
            format!("`flags`: {retain} retain"),
            format!("{acknowledge} acknowledge"),
            format!("{parts} parts"),
        ] {
            assert!(text.contains(&words), "{words}");
        }
    }

    #[test]
    fn the_limits_in_wire_md_are_those_of_the_code() {
        use crate::limits;
        let text = include_str!("../../WIRE.md").split_whitespace().collect::<Vec<_>>().join(" ");
        let (kib, mib) = (|bytes: usize| bytes >> 10, |bytes: usize| bytes >> 20);
        let frame = limits::NATIVE_FRAME_BYTES_MAX;
        let seconds = |time: std::time::Duration| time.as_secs();
        for words in [
            format!(
                "Metadata are at most {} KiB. The handshake must end within {} s.",
                kib(limits::METADATA_BYTES_MAX),
                seconds(limits::HANDSHAKE_TIMEOUT)
            ),
            format!(
                "at most {} bytes ({} KiB of batch, one record of {} KiB, 64 bytes)",
                thousands(frame),
                kib(limits::BATCH_BYTES),
                kib(limits::RECORD_BYTES_MAX)
            ),
            format!("A record above {} KiB travels as", kib(limits::RECORD_BYTES_MAX)),
            format!("at most {} MiB of payload", mib(limits::PAYLOAD_BYTES_MAX)),
            format!("(zero: {}, which is the most)", limits::REPLY_WINDOW),
            format!("(zero: {} s)", seconds(limits::REQUEST_TIMEOUT)),
            format!(
                "silent for {} s and gives it up after {} s more",
                seconds(limits::PING_INTERVAL),
                seconds(limits::PING_TIMEOUT)
            ),
            format!("more than {} places in one queue", limits::LOSS_PLACES_MAX),
            format!("At most {} KiB. With the acknowledge flag", kib(limits::WILL_BYTES_MAX)),
            format!("At most {} bytes in all. Skip tags", thousands(limits::HEADER_BYTES_MAX)),
            format!("at most {} MiB uncredited", limits::CREDIT_WINDOW_BYTES >> 20),
            format!("1 to {} bytes, UTF-8, no empty level", limits::TOPIC_BYTES_MAX),
            format!(
                "{} frames and {} MiB for a message, {} KiB for an envelope, {} bytes for a prefix",
                limits::STOCK_FRAMES_MAX,
                mib(limits::STOCK_FRAME_BYTES_MAX),
                kib(limits::STOCK_ENVELOPE_BYTES_MAX),
                limits::TOPIC_BYTES_MAX
            ),
            format!("takes no bytes for {} s", seconds(limits::WRITE_TIMEOUT)),
            format!("(of more than {0}, once for each {0})", crate::native::batch::SUBSCRIPTIONS_NAMED_MAX),
        ] {
            assert!(text.contains(&words), "WIRE.md does not say `{words}`");
        }
    }

    fn thousands(number: usize) -> String {
        format!("{},{:03}", number / 1000, number % 1000)
    }

    #[test]
    fn a_record_cut_short_is_an_error_and_never_a_panic() {
        for record in every_record() {
            let bytes = encoded(&record);
            for length in 0..bytes.len() {
                let _ = Record::take(bytes.slice(..length));
            }
        }
        assert_eq!(Record::take(Bytes::from_static(&[2, 1])), Err(RecordError::Short { kind: 2 }));
    }

    #[test]
    fn an_unknown_kind_and_trailing_bytes_are_skipped() {
        assert_eq!(Record::take(Bytes::from_static(&[200, 1, 2, 3])).unwrap(), None);
        let mut longer = encoded(&Record::Cancel { id: 1 }).to_vec();
        longer.extend_from_slice(b"later versions");
        assert_eq!(Record::take(longer.into()).unwrap(), Some(Record::Cancel { id: 1 }));
    }

    #[test]
    fn names_are_those_serde_writes() {
        for status in (0..=255).filter_map(Status::from_byte) {
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
        for overflow in (0..=255).filter_map(Overflow::from_byte) {
            assert_eq!(serde_json::to_value(overflow).unwrap(), overflow.as_str());
        }
        for operation in (0..=255).filter_map(Operation::from_byte) {
            assert_eq!(serde_json::to_value(operation).unwrap(), operation.as_str());
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Record::take(bytes.into());
        }
    }
}
