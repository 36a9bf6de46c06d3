//! What a stock session's frames mean, and which frames a record becomes for it.
//!
//! | socket | in | out |
//! |---|---|---|
//! | PUB, XPUB | `[topic][payload...]` | SUBSCRIBE for everything |
//! | SUB, XSUB | SUBSCRIBE, CANCEL, or `0x01`/`0x00` and a prefix | `[topic][payload...]` |
//! | REQ, DEALER | `[envelope...][empty][topic][payload...]`, a DEALER's envelope may be absent | `[envelope...][empty][status][payload]` |

use std::collections::HashMap;

use bytes::{Buf, Bytes};

use super::hub::{Hub, SessionId, SessionKind};
use crate::{
    limits,
    native::{Block, Record, Status},
    zmtp::Command,
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
}

/// The state of one stock session between frames.
#[derive(Debug)]
pub(super) struct Stock {
    kind: SessionKind,
    /// Whether it is a REQ, which gets one reply.
    single_reply: bool,
    frames: Vec<Bytes>,
    /// Bytes of these frames.
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
            frames: Vec::new(),
            frames_bytes: 0,
            envelopes: HashMap::new(),
            next_request: 0,
        }
    }

    /// Takes one frame of a message.
    pub(super) fn frame(
        &mut self,
        hub: &mut Hub,
        id: SessionId,
        body: Bytes,
        more: bool,
    ) -> Result<(), StockError> {
        if self.frames.len() >= limits::STOCK_FRAMES_MAX {
            return Err(StockError::TooManyFrames);
        }
        self.frames_bytes += body.len();
        if self.frames_bytes > limits::STOCK_FRAME_BYTES_MAX {
            return Err(StockError::TooLong);
        }
        self.frames.push(body);
        if !more {
            let frames = std::mem::take(&mut self.frames);
            self.frames_bytes = 0;
            self.message(hub, id, frames);
        }
        Ok(())
    }

    fn message(&mut self, hub: &mut Hub, id: SessionId, mut frames: Vec<Bytes>) {
        match self.kind {
            SessionKind::StockPublisher => hub.stock_publish(id, &frames[0], &frames[1..]),
            SessionKind::StockSubscriber => {
                // ZMTP 3.0: a subscription is a message of one frame.
                let mut frame = frames.swap_remove(0);
                if let Some(add @ (0 | 1)) = frame.first().copied() {
                    frame.advance(1);
                    hub.stock_subscribe(id, frame.to_vec(), add == 1);
                }
            }
            SessionKind::StockRequester => self.request(hub, id, frames),
            SessionKind::Native | SessionKind::Local => unreachable!("native sessions have no stock state"),
        }
    }

    fn request(&mut self, hub: &mut Hub, id: SessionId, mut frames: Vec<Bytes>) {
        // An empty frame with nothing behind it is an empty payload, not a delimiter.
        let delimiter = frames.iter().position(Bytes::is_empty).filter(|at| at + 1 < frames.len());
        let body = frames.split_off(delimiter.map_or(0, |at| at + 1));
        self.next_request += 1;
        self.envelopes.insert(self.next_request, Envelope { frames, last_part: None });
        hub.stock_request(id, self.next_request, &body[0], &body[1..]);
    }

    /// Takes a command.
    pub(super) fn command(&mut self, hub: &mut Hub, id: SessionId, command: Command) {
        if self.kind != SessionKind::StockSubscriber {
            return;
        }
        match command {
            Command::Subscribe(prefix) => hub.stock_subscribe(id, prefix.to_vec(), true),
            Command::Cancel(prefix) => hub.stock_subscribe(id, prefix.to_vec(), false),
            _ => {}
        }
    }

    /// The frames a record becomes; none if it means nothing to this session.
    pub(super) fn frames_of(&mut self, record: Record) -> Vec<Bytes> {
        match record {
            Record::Deliver { block, .. } => {
                let mut frames = vec![Bytes::copy_from_slice(block.topic())];
                frames.extend(parts(&block));
                frames
            }
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

fn answer(mut frames: Vec<Bytes>, status: &'static [u8], payload: Bytes) -> Vec<Bytes> {
    frames.push(Bytes::from_static(status));
    frames.push(payload);
    frames
}

/// The payload as the frames it was sent in.
fn parts(block: &Block) -> Vec<Bytes> {
    let mut rest = block.payload();
    if block.flags & Block::PARTS == 0 {
        return vec![rest];
    }
    let mut parts = Vec::new();
    while let Some(length) = rest.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes) as usize) {
        rest.advance(4);
        parts.push(rest.split_to(length.min(rest.len())));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::hub::SessionInfo;

    #[test]
    fn a_message_is_bounded_by_its_frames_and_by_the_bytes_of_all_of_them() {
        let mut hub = Hub::new("broker".parse().unwrap(), 0);
        let info = SessionInfo {
            peer: "publisher".parse().unwrap(),
            key: None,
            kind: SessionKind::StockPublisher,
            address: "test".to_owned(),
            server_key: None,
            permissions: Default::default(),
        };
        let id = hub.open(info);
        let outcome = |hub: &mut Hub, frame: &Bytes, frames: usize| {
            let mut stock = Stock::new(SessionKind::StockPublisher, false);
            (0..frames).try_for_each(|_| stock.frame(hub, id, frame.clone(), true))
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
