//! What a stock session's frames mean, and which frames a record becomes for it.
//!
//! | socket | in | out |
//! |---|---|---|
//! | PUB, XPUB | `[topic][payload...]` | SUBSCRIBE for everything |
//! | SUB, XSUB | SUBSCRIBE, CANCEL, or `0x01`/`0x00` and a prefix | `[topic][payload...]` |
//! | REQ, DEALER | `[envelope...][empty][topic][payload...]`, a DEALER's envelope may be absent | `[envelope...][empty][status][payload]` |

use std::collections::HashMap;

use bytes::Bytes;

use super::hub::{Hub, SessionId, SessionKind};
use crate::{
    limits,
    native::{Block, BlockView, Operation, Record, Status},
    zmtp::{Command, Engine, FrameFlags, ZmtpError},
};

/// Status frame of a part after which more follow.
pub const STATUS_MORE: &[u8] = b"more";
/// Status frame of the last part. Any other status frame is an error's name.
pub const STATUS_FINAL: &[u8] = b"final";

/// Why a stock session must end.
#[derive(Debug, thiserror::Error)]
pub(super) enum StockError {
    #[error("a message has more than {} frames", limits::STOCK_FRAMES_MAX)]
    TooManyFrames,
    #[error("a message has more than {} bytes in all its frames", limits::STOCK_FRAME_BYTES_MAX)]
    TooLong,
    #[error(
        "the frames in front of a request have {bytes} bytes; the limit is {} bytes",
        limits::STOCK_ENVELOPE_BYTES_MAX
    )]
    EnvelopeTooLong { bytes: usize },
    #[error("a REQ sent a request before the answer to the one before")]
    SecondRequest,
}

impl StockError {
    /// A word for programs, as `bus auth` shows it.
    fn code(&self) -> &'static str {
        match self {
            Self::TooManyFrames => "too_many_frames",
            Self::TooLong => "too_large",
            Self::EnvelopeTooLong { .. } => "envelope_too_large",
            Self::SecondRequest => "second_request",
        }
    }
}

/// The state of one stock session between frames.
#[derive(Debug)]
pub(super) struct Stock {
    kind: SessionKind,
    /// Whether it is a REQ, which gets one reply.
    single_reply: bool,
    /// A publisher's first frame, while the rest of its message is awaited. Its memory is used again.
    topic: Vec<u8>,
    /// The other frames.
    frames: Vec<Bytes>,
    /// Frames of the message that is coming in, and their bytes.
    frames_count: usize,
    frames_bytes: usize,
    envelopes: HashMap<u64, Envelope>,
    next_request: u64,
}

/// What is echoed in front of an answer.
#[derive(Debug)]
struct Envelope {
    frames: Vec<Bytes>,
    /// The last part so far, for a REQ.
    last_part: Option<Bytes>,
}

impl Stock {
    pub(super) fn new(kind: SessionKind, single_reply: bool) -> Self {
        Self {
            kind,
            single_reply,
            topic: Vec::new(),
            frames: Vec::new(),
            frames_count: 0,
            frames_bytes: 0,
            envelopes: HashMap::new(),
            next_request: 0,
        }
    }

    /// Whether it is sent deliveries, and nothing else.
    pub(super) fn is_subscriber(&self) -> bool {
        self.kind == SessionKind::StockSubscriber
    }

    /// Takes one frame of a message; `owner` is the memory it lies in, if that is its own. What its session must end for
    /// is counted and named first.
    pub(super) fn frame(
        &mut self,
        hub: &mut Hub,
        id: SessionId,
        body: &[u8],
        owner: Option<&Bytes>,
        more: bool,
    ) -> Result<(), StockError> {
        if let Err(error) = self.check(body) {
            let (operation, topic) = self.subject(body);
            hub.stock_refused(id, operation, error.code(), topic, &error.to_string());
            return Err(error);
        }
        self.frames_count += 1;
        if self.kind == SessionKind::StockPublisher {
            self.publisher_frame(hub, id, body, owner, more);
        } else {
            self.frames.push(owned(body, owner));
        }
        if !more {
            (self.frames_count, self.frames_bytes) = (0, 0);
            let frames = std::mem::take(&mut self.frames);
            self.message(hub, id, frames)?;
        }
        Ok(())
    }

    /// Whether a message may have this frame, too.
    fn check(&mut self, body: &[u8]) -> Result<(), StockError> {
        if self.frames_count >= limits::STOCK_FRAMES_MAX {
            return Err(StockError::TooManyFrames);
        }
        self.frames_bytes += body.len();
        if self.frames_bytes > limits::STOCK_FRAME_BYTES_MAX {
            return Err(StockError::TooLong);
        }
        Ok(())
    }

    /// What the message that is coming in is for, and on which topic, as far as its frames say before `next`.
    fn subject<'a>(&'a self, next: &'a [u8]) -> (Operation, &'a [u8]) {
        match self.kind {
            SessionKind::StockPublisher if self.frames_count > 0 => (Operation::Publish, &self.topic),
            SessionKind::StockPublisher => (Operation::Publish, next),
            SessionKind::StockRequester => (Operation::Request, topic_of(&self.frames).unwrap_or(next)),
            _ => (Operation::Subscribe, self.frames.first().map_or(next, |frame| frame)),
        }
    }

    /// Most messages are two frames, topic and payload, and nothing of them is kept.
    fn publisher_frame(
        &mut self,
        hub: &mut Hub,
        id: SessionId,
        body: &[u8],
        owner: Option<&Bytes>,
        more: bool,
    ) {
        /// A topic is no longer than this; what is, is not kept.
        const TOPIC_BYTES_KEPT_MAX: usize = 4 * limits::TOPIC_BYTES_MAX;
        match (self.frames_count, more) {
            (1, true) => {
                self.topic.clear();
                self.topic.shrink_to(TOPIC_BYTES_KEPT_MAX);
                self.topic.extend_from_slice(body);
            }
            (1, false) => hub.stock_publish_one(id, body, &[], None),
            (2, false) => hub.stock_publish_one(id, &self.topic, body, owner),
            (_, true) => self.frames.push(owned(body, owner)),
            (_, false) => {
                self.frames.push(owned(body, owner));
                hub.stock_publish(id, &self.topic, &std::mem::take(&mut self.frames));
            }
        }
    }

    fn message(&mut self, hub: &mut Hub, id: SessionId, frames: Vec<Bytes>) -> Result<(), StockError> {
        match self.kind {
            SessionKind::StockPublisher => {}
            SessionKind::StockSubscriber => {
                // ZMTP 3.0: a subscription is a message of one frame.
                if let Some((add @ (0 | 1), prefix)) = frames.first().and_then(|frame| frame.split_first()) {
                    hub.stock_subscribe(id, prefix, *add == 1);
                }
            }
            SessionKind::StockRequester => self.request(hub, id, frames)?,
            SessionKind::Native | SessionKind::Local => unreachable!("native sessions have no stock state"),
        }
        Ok(())
    }

    /// What is kept until the answer has left is bounded here: as many envelopes as requests may be in flight, each
    /// of a few hundred bytes; and one last part of a REQ, which asks for nothing else before it has it.
    fn request(&mut self, hub: &mut Hub, id: SessionId, mut frames: Vec<Bytes>) -> Result<(), StockError> {
        let body = frames.split_off(envelope_frames(&frames));
        let bytes = frames.iter().map(Bytes::len).sum();
        let problem = if bytes > limits::STOCK_ENVELOPE_BYTES_MAX {
            Some(StockError::EnvelopeTooLong { bytes })
        } else {
            (self.single_reply && !self.envelopes.is_empty()).then_some(StockError::SecondRequest)
        };
        if let Some(error) = problem {
            hub.stock_refused(id, Operation::Request, error.code(), &body[0], &error.to_string());
            return Err(error);
        }
        self.next_request += 1;
        self.envelopes.insert(self.next_request, Envelope { frames, last_part: None });
        hub.stock_request(id, self.next_request, &body[0], &body[1..]);
        Ok(())
    }

    /// Takes a command.
    pub(super) fn command(&mut self, hub: &mut Hub, id: SessionId, command: Command) {
        if self.kind != SessionKind::StockSubscriber {
            return;
        }
        match command {
            Command::Subscribe(prefix) => hub.stock_subscribe(id, &prefix, true),
            Command::Cancel(prefix) => hub.stock_subscribe(id, &prefix, false),
            _ => {}
        }
    }

    /// The frames a record becomes; none if it means nothing to this session.
    pub(super) fn frames_of(&mut self, record: Record) -> Vec<Bytes> {
        match record {
            Record::Reply { id, payload, .. } => {
                let Some(envelope) = self.envelopes.get_mut(&id) else { return Vec::new() };
                if self.single_reply {
                    envelope.last_part = Some(payload);
                    return Vec::new();
                }
                answer(envelope.frames.clone(), STATUS_MORE, payload)
            }
            Record::ReplyEnd { id, status, code, text, header, payload } => {
                let Some(envelope) = self.envelopes.remove(&id) else { return Vec::new() };
                if status != Status::Done {
                    let text = if code.is_empty() { text } else { format!("{code}: {text}") };
                    return answer(envelope.frames, status.as_str().as_bytes(), text.into());
                }
                let has_part = !header.is_empty() || !payload.is_empty();
                let last = if has_part { payload } else { envelope.last_part.unwrap_or_default() };
                answer(envelope.frames, STATUS_FINAL, last)
            }
            _ => Vec::new(),
        }
    }
}

/// How many frames stand in front of a request's topic: those up to the first empty one. One with nothing behind it is an
/// empty payload, not a delimiter.
fn envelope_frames(frames: &[Bytes]) -> usize {
    let delimiter = frames.iter().position(Bytes::is_empty).filter(|at| at + 1 < frames.len());
    delimiter.map_or(0, |at| at + 1)
}

/// The topic of a request, if its frame has come.
fn topic_of(frames: &[Bytes]) -> Option<&[u8]> {
    frames.get(envelope_frames(frames)).map(|topic| &topic[..])
}

fn answer(mut frames: Vec<Bytes>, status: &'static [u8], payload: Bytes) -> Vec<Bytes> {
    frames.push(Bytes::from_static(status));
    frames.push(payload);
    frames
}

/// Memory of its own for a frame.
fn owned(body: &[u8], owner: Option<&Bytes>) -> Bytes {
    owner.cloned().unwrap_or_else(|| Bytes::copy_from_slice(body))
}

/// Sends a delivery: its topic, and its payload as the frames it was sent in.
pub(super) fn send_delivery(engine: &mut Engine, block: &BlockView<'_>) -> Result<(), ZmtpError> {
    let mut rest = block.payload();
    let has_parts = block.flags & Block::PARTS != 0;
    if has_parts && rest.len() < 4 {
        return engine.send(&[block.topic()], FrameFlags::LAST);
    }
    engine.send(&[block.topic()], FrameFlags::MORE)?;
    if !has_parts {
        return engine.send(&[rest], FrameFlags::LAST);
    }
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let (part, behind) = behind.split_at(behind.len().min(u32::from_le_bytes(*length) as usize));
        let flags = if behind.len() < 4 { FrameFlags::LAST } else { FrameFlags::MORE };
        engine.send(&[part], flags)?;
        rest = behind;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{
        hub::{Matcher, SessionInfo},
        ledger::{Counts, DropReason, RowKey},
    };

    fn opened(kind: SessionKind) -> (Hub, SessionId) {
        let mut hub = Hub::new("broker".parse().unwrap(), 0);
        let permissions = crate::keys::Permissions::from_lists(&["#"], &["#"], &["#"], &["#"]).unwrap();
        let info = SessionInfo {
            peer: "peer".parse().unwrap(),
            key: None,
            kind,
            address: "test".to_owned(),
            server_key: None,
            permissions: permissions.into(),
        };
        let id = hub.open(info);
        (hub, id)
    }

    /// The topics of all refusals, and their texts.
    fn refused(hub: &Hub) -> Vec<(String, String)> {
        hub.denials.all().into_iter().map(|denial| (denial.topic.clone(), denial.text.clone())).collect()
    }

    #[test]
    fn a_prefix_longer_than_any_topic_is_refused_and_not_kept() {
        let (mut hub, id) = opened(SessionKind::StockSubscriber);
        let mut stock = Stock::new(SessionKind::StockSubscriber, false);
        let prefix = Bytes::from(vec![b'a'; limits::TOPIC_BYTES_MAX + 1]);
        stock.command(&mut hub, id, Command::Subscribe(prefix.slice(1..)));
        assert_eq!(refused(&hub), []);
        stock.command(&mut hub, id, Command::Subscribe(prefix.clone()));
        let message = [&[1][..], &prefix].concat();
        stock.frame(&mut hub, id, &message, None, false).unwrap();
        stock.command(&mut hub, id, Command::Cancel(prefix.clone()));
        let [(topic, text)] = &refused(&hub)[..] else { panic!("{:?}", refused(&hub)) };
        assert_eq!((topic.len(), hub.denials.all()[0].count), (limits::TOPIC_BYTES_MAX + 3, 2));
        assert!(text.contains("256 bytes"), "{text}");
        let Some((_, session)) = hub.each_session().next() else { panic!("no session") };
        let Matcher::Prefixes(prefixes) = &session.lanes[0].matcher else { panic!("no prefixes") };
        assert_eq!(prefixes.iter().map(Vec::len).collect::<Vec<_>>(), [limits::TOPIC_BYTES_MAX]);
    }

    #[test]
    fn a_topic_of_many_megabytes_leaves_no_more_than_its_beginning() {
        let topic = vec![0xff; 1 << 20];
        for kind in [SessionKind::StockPublisher, SessionKind::StockRequester] {
            let (mut hub, id) = opened(kind);
            let mut stock = Stock::new(kind, false);
            stock.frame(&mut hub, id, &topic, None, true).unwrap();
            stock.frame(&mut hub, id, b"payload", None, false).unwrap();
            let [(shown, text)] = &refused(&hub)[..] else { panic!("{:?}", refused(&hub)) };
            assert!(shown.len() < 1024 && text.len() < 1024, "{} and {} bytes", shown.len(), text.len());
        }
    }

    #[test]
    fn what_is_echoed_to_a_requester_is_bounded() {
        let (mut hub, id) = opened(SessionKind::StockRequester);
        let envelope = |bytes: usize, hub: &mut Hub| {
            let mut stock = Stock::new(SessionKind::StockRequester, false);
            let frame = vec![1; bytes / 2];
            let frames = [&frame[..], &frame, b"", b"topic"].into_iter();
            frames
                .zip([true, true, true, false])
                .try_for_each(|(frame, more)| stock.frame(hub, id, frame, None, more))
        };
        assert!(envelope(limits::STOCK_ENVELOPE_BYTES_MAX, &mut hub).is_ok());
        let refused = envelope(limits::STOCK_ENVELOPE_BYTES_MAX + 2, &mut hub);
        assert!(matches!(refused, Err(StockError::EnvelopeTooLong { bytes: 4098 })), "{refused:?}");
    }

    #[test]
    fn a_req_has_one_request_at_a_time_and_a_dealer_many() {
        for (single_reply, may) in [(true, false), (false, true)] {
            let (mut hub, id) = opened(SessionKind::StockRequester);
            let mut stock = Stock::new(SessionKind::StockRequester, single_reply);
            let ask = |hub: &mut Hub, stock: &mut Stock| {
                stock.frame(hub, id, b"", None, true)?;
                stock.frame(hub, id, b"nobody/serves/this", None, false)
            };
            ask(&mut hub, &mut stock).unwrap();
            assert_eq!(ask(&mut hub, &mut stock).is_ok(), may);
            let Some(answer) = hub.next_record(id) else { panic!("no answer") };
            assert!(!stock.frames_of(answer).is_empty());
            assert!(ask(&mut hub, &mut stock).is_ok(), "it has its answer");
        }
    }

    #[test]
    fn what_a_session_ends_for_is_counted_and_named_first() {
        let many = vec![Bytes::from_static(b"x"); limits::STOCK_FRAMES_MAX];
        let halves = vec![Bytes::from(vec![0; limits::STOCK_FRAME_BYTES_MAX / 2 + 1]); 2];
        for (frames, code) in [(many, "too_many_frames"), (halves, "too_large")] {
            for (kind, operation) in [
                (SessionKind::StockPublisher, Operation::Publish),
                (SessionKind::StockRequester, Operation::Request),
                (SessionKind::StockSubscriber, Operation::Subscribe),
            ] {
                let (mut hub, id) = opened(kind);
                let mut stock = Stock::new(kind, false);
                stock.frame(&mut hub, id, b"a/b", None, true).unwrap();
                let ended = frames.iter().try_for_each(|frame| stock.frame(&mut hub, id, frame, None, true));
                assert!(ended.is_err(), "{code}");
                let [denial] = &hub.denials.all()[..] else { panic!("{:?}", refused(&hub)) };
                let seen = (denial.operation, denial.topic.as_str(), denial.code);
                assert_eq!(seen, (operation, "a/b", code));
                let of_topic = |(key, _): &(RowKey, Counts)| key.topic == "a/b".parse().ok();
                let counts = hub.ledger_rows().find(of_topic).map(|(_, counts)| counts);
                let in_ledger = counts.map(|row| (row.published, row.dropped[DropReason::TooLarge as usize]));
                assert_eq!(in_ledger, (kind == SessionKind::StockPublisher).then_some((1, 1)));
                assert!(counts.is_none_or(|counts| counts.balances()));
            }
        }
    }

    #[test]
    fn a_message_is_bounded_by_its_frames_and_by_the_bytes_of_all_of_them() {
        let (mut hub, id) = opened(SessionKind::StockPublisher);
        let outcome = |hub: &mut Hub, frame: &Bytes, frames: usize| {
            let mut stock = Stock::new(SessionKind::StockPublisher, false);
            (0..frames).try_for_each(|_| stock.frame(hub, id, frame, None, true))
        };
        let (small, large) =
            (Bytes::from_static(b"x"), Bytes::from(vec![0; limits::STOCK_FRAME_BYTES_MAX / 2]));
        assert!(outcome(&mut hub, &small, limits::STOCK_FRAMES_MAX).is_ok());
        assert!(matches!(
            outcome(&mut hub, &small, limits::STOCK_FRAMES_MAX + 1),
            Err(StockError::TooManyFrames)
        ));
        assert!(outcome(&mut hub, &large, 2).is_ok());
        assert!(matches!(outcome(&mut hub, &large, 3), Err(StockError::TooLong)));
    }
}
