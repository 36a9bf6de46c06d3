//! The last messages of a topic, in bounded memory, and what of them is missing.

use std::collections::VecDeque;

/// Messages kept. The oldest give way, and that is counted.
const ROWS_MAX: usize = 500;

/// What a subscription gave.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum TailItem {
    Message(TailMessage),
    /// Messages that did not come; `None` if nobody knows how many.
    Gap(Option<u64>, String),
    /// There will be no more.
    Ended(String),
}

/// One message, already made harmless for a terminal and cut to [`TEXT_CHARACTERS_MAX`].
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TailMessage {
    /// What it was subscribed with.
    pub(super) filter: String,
    pub(super) time: String,
    pub(super) topic: String,
    pub(super) origin: String,
    pub(super) sequence: u64,
    pub(super) bytes: usize,
    pub(super) text: String,
    /// Its header, a line each.
    pub(super) header: Vec<String>,
}

/// Characters of a payload that are kept.
pub(super) const TEXT_CHARACTERS_MAX: usize = 4096;

/// The messages that are shown.
#[derive(Debug, Default)]
pub(super) struct Tail {
    filter: Option<String>,
    pub(super) is_followed: bool,
    rows: VecDeque<TailItem>,
    /// Messages that came.
    pub(super) seen: u64,
    /// Messages that the broker did not send because this program, or its terminal, was too slow.
    pub(super) lost: u64,
    /// A gap of unknown length was among them.
    pub(super) lost_unknown: bool,
    /// Only messages in which this stands are shown, in either case.
    needle: String,
    /// How far up from the newest of them somebody has gone; zero follows the newest.
    above: usize,
}

impl TailItem {
    fn has(&self, needle: &str) -> bool {
        let within = |text: &str| text.to_lowercase().contains(needle);
        match self {
            // What is missing may have matched.
            _ if needle.is_empty() => true,
            Self::Message(message) => {
                [&message.topic, &message.origin, &message.text].into_iter().any(|text| within(text))
            }
            _ => true,
        }
    }
}

impl Tail {
    /// What it shows messages of.
    pub(super) fn filter(&self) -> Option<&str> {
        self.filter.as_deref()
    }

    pub(super) fn follow(&mut self, filter: &str) {
        if self.filter.as_deref() != Some(filter) {
            let needle = std::mem::take(&mut self.needle);
            *self = Self { filter: Some(filter.to_owned()), needle, ..Self::default() };
        }
        self.is_followed = true;
    }

    pub(super) fn leave(&mut self) {
        self.is_followed = false;
    }

    pub(super) fn take(&mut self, items: Vec<TailItem>) {
        for item in items {
            match &item {
                // Of another topic, which was on its way when somebody went on to this one.
                TailItem::Message(message) if Some(message.filter.as_str()) != self.filter.as_deref() => {
                    continue;
                }
                TailItem::Message(_) => self.seen += 1,
                TailItem::Gap(Some(count), _) => self.lost += count,
                TailItem::Gap(None, _) => self.lost_unknown = true,
                TailItem::Ended(_) => self.is_followed = false,
            }
            if self.rows.len() == ROWS_MAX {
                self.rows.pop_front();
            }
            let is_shown = item.has(&self.needle);
            self.rows.push_back(item);
            // Whoever looks at an older one goes on looking at it, as long as it is there.
            if self.above > 0 && is_shown {
                self.above += 1;
            }
        }
        self.move_by(0);
    }

    pub(super) fn search(&mut self, needle: &str) {
        self.needle = needle.to_lowercase();
        self.above = 0;
    }

    /// The rows that match, oldest first.
    pub(super) fn rows(&self) -> impl DoubleEndedIterator<Item = &TailItem> {
        self.rows.iter().filter(|item| item.has(&self.needle))
    }

    /// How far from the newest the selected one is.
    pub(super) fn above(&self) -> usize {
        self.above
    }

    pub(super) fn move_by(&mut self, down: isize) {
        let most = self.rows().count().saturating_sub(1) as isize;
        let above = (self.above as isize).saturating_sub(down);
        self.above = above.clamp(0, most) as usize;
    }

    pub(super) fn selected(&self) -> Option<&TailMessage> {
        match self.rows().nth_back(self.above)? {
            TailItem::Message(message) => Some(message),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(sequence: u64) -> TailItem {
        TailItem::Message(TailMessage { filter: "a".to_owned(), sequence, ..TailMessage::default() })
    }

    #[test]
    fn only_the_newest_are_kept_and_what_did_not_come_is_counted() {
        let mut tail = Tail::default();
        tail.follow("a");
        tail.take((0..ROWS_MAX as u64 + 10).map(message).collect());
        tail.take(vec![TailItem::Gap(Some(7), "slow_consumer".to_owned())]);
        assert_eq!((tail.rows().count(), tail.seen, tail.lost), (ROWS_MAX, ROWS_MAX as u64 + 10, 7));
        tail.follow("b");
        tail.take(vec![message(1)]);
        assert_eq!(
            (tail.rows().count(), tail.lost),
            (0, 0),
            "messages of the topic before are not shown for this one"
        );
    }

    #[test]
    fn who_looks_at_an_older_message_keeps_it_in_sight() {
        let mut tail = Tail::default();
        tail.follow("a");
        tail.take((0..5).map(message).collect());
        tail.move_by(-2);
        tail.take(vec![message(5), message(6)]);
        assert_eq!(tail.selected().map(|message| message.sequence), Some(2));
        tail.move_by(isize::MAX);
        assert_eq!(tail.selected().map(|message| message.sequence), Some(6));
        tail.move_by(isize::MIN);
        assert_eq!(tail.selected().map(|message| message.sequence), Some(0));
    }
}
