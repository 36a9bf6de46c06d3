//! The consumer's side of gated publishers: each message once and in order.

use std::collections::HashMap;

use uuid::Uuid;

use crate::{
    envelope::{Message, StreamMark},
    limits,
    peer::PeerName,
    topic::TopicName,
};

/// What a message is to a consumer that has seen those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The next one.
    Fresh {
        /// Messages in front of it that will not come: dropped by a full gate, or died with a publisher that was killed.
        missing: u64,
    },
    /// It was seen before. Ignore it.
    Seen,
    /// One before it was lost on the way. A gate that needs this consumer sends all of them again, in order: ignore it.
    /// Anybody else takes it with [`Continuity::take`].
    Early {
        /// How many are to come before it.
        missing: u64,
    },
    /// It does not come from a gated publisher.
    Unmarked,
}

/// What a consumer has seen of each gated stream.
#[derive(Debug, Default)]
pub struct Continuity {
    seen: HashMap<(PeerName, TopicName), Seen>,
    clock: u64,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    stream: Uuid,
    sequence: u64,
    at: u64,
}

impl Continuity {
    /// Judges a message, and remembers it if it is fresh.
    pub fn judge(&mut self, message: &Message) -> Verdict {
        let Some(mark) = message.header.stream.as_deref() else { return Verdict::Unmarked };
        let key = (message.origin.clone(), message.topic.clone());
        let verdict = match self.seen.get(&key) {
            Some(seen) if seen.stream == mark.stream => same_stream(seen.sequence, mark),
            // A stream begins with what nobody has taken yet.
            _ if mark.previous > mark.taken => Verdict::Early { missing: mark.previous - mark.taken },
            // What came before this consumer did is nobody's loss.
            None => Verdict::Fresh { missing: 0 },
            // Another publisher goes on: a sequence that does, too, tells what the first one took with it.
            Some(seen) => Verdict::Fresh { missing: mark.previous.saturating_sub(seen.sequence) },
        };
        if matches!(verdict, Verdict::Fresh { .. }) {
            self.remember(key, mark);
        }
        verdict
    }

    /// Takes an [`Verdict::Early`] message all the same: those before it count as lost.
    pub fn take(&mut self, message: &Message) {
        if let Some(mark) = &message.header.stream {
            self.remember((message.origin.clone(), message.topic.clone()), mark);
        }
    }

    fn remember(&mut self, key: (PeerName, TopicName), mark: &StreamMark) {
        self.clock += 1;
        if self.seen.len() >= limits::STREAMS_REMEMBERED && !self.seen.contains_key(&key) {
            let oldest = self.seen.iter().min_by_key(|(_, seen)| seen.at).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.seen.remove(&key));
        }
        self.seen.insert(key, Seen { stream: mark.stream, sequence: mark.sequence, at: self.clock });
    }
}

fn same_stream(seen: u64, mark: &StreamMark) -> Verdict {
    if mark.sequence <= seen {
        Verdict::Seen
    } else if mark.previous > seen {
        Verdict::Early { missing: mark.previous - seen }
    } else {
        Verdict::Fresh { missing: mark.sequence - seen - 1 }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::envelope::Header;

    fn message(stream: u8, previous: u64, sequence: u64) -> Message {
        marked(stream, previous, sequence, previous)
    }

    fn marked(stream: u8, previous: u64, sequence: u64, taken: u64) -> Message {
        let stream = Uuid::from_bytes([stream; 16]);
        let stream = Some(Box::new(StreamMark { stream, sequence, previous, taken, again: false }));
        Message {
            topic: "a".parse().unwrap(),
            origin: "p".parse().unwrap(),
            sequence: 1,
            header: Header { stream, ..Header::new() },
            payload: Bytes::new(),
            retained: false,
        }
    }

    #[test]
    fn messages_are_taken_once_in_order_and_what_will_not_come_is_counted() {
        let mut continuity = Continuity::default();
        let mut judge = |stream, previous, sequence| continuity.judge(&message(stream, previous, sequence));
        assert_eq!(judge(1, 4, 5), Verdict::Fresh { missing: 0 }, "a consumer begins where it comes in");
        assert_eq!(judge(1, 4, 5), Verdict::Seen);
        assert_eq!(judge(1, 6, 7), Verdict::Early { missing: 1 }, "6 was lost and comes again");
        assert_eq!(judge(1, 5, 6), Verdict::Fresh { missing: 0 });
        assert_eq!(judge(1, 6, 7), Verdict::Fresh { missing: 0 });
        assert_eq!(judge(1, 7, 10), Verdict::Fresh { missing: 2 }, "8 and 9 were dropped by the gate");
        assert_eq!(
            judge(2, 12, 13),
            Verdict::Fresh { missing: 2 },
            "11 and 12 died with the first publisher"
        );
        assert_eq!(judge(3, 0, 1), Verdict::Fresh { missing: 0 }, "this one counts anew");
    }

    #[test]
    fn a_stream_does_not_begin_in_the_middle_of_what_is_sent_again() {
        let mut continuity = Continuity::default();
        assert_eq!(continuity.judge(&marked(1, 4, 5, 2)), Verdict::Early { missing: 2 });
        assert_eq!(
            continuity.judge(&marked(1, 2, 4, 2)),
            Verdict::Fresh { missing: 0 },
            "3 was dropped by the gate"
        );
        assert_eq!(continuity.judge(&marked(1, 4, 5, 2)), Verdict::Fresh { missing: 0 });
        assert_eq!(continuity.judge(&marked(2, 7, 8, 5)), Verdict::Early { missing: 2 });
    }

    #[test]
    fn who_is_not_needed_takes_what_is_early_and_counts_the_rest_as_lost() {
        let mut continuity = Continuity::default();
        continuity.judge(&message(1, 0, 1));
        let early = message(1, 4, 5);
        assert_eq!(continuity.judge(&early), Verdict::Early { missing: 3 });
        continuity.take(&early);
        assert_eq!(continuity.judge(&message(1, 5, 6)), Verdict::Fresh { missing: 0 });
        assert_eq!(continuity.judge(&Message { header: Header::new(), ..early }), Verdict::Unmarked);
    }
}
