//! Refused operations of connected peers: counted exactly, named, and published without flooding.

use std::{borrow::Cow, collections::HashMap};

use serde::Serialize;

use crate::{limits, native::Operation, peer::PeerName};

/// Different refusals kept. Those beyond are counted together under the topic `(others)`.
const DENIALS_KEPT: usize = 4096;

/// One kind of refusal and how often it happened; the payload of `$sys/denied`.
#[derive(Clone, Debug, Serialize)]
pub struct Denial {
    /// Who was refused.
    pub peer: PeerName,
    /// What.
    pub operation: Operation,
    /// The topic or filter, as the peer wrote it.
    pub topic: String,
    /// Why, for programs.
    pub code: &'static str,
    /// Why, for people.
    pub text: String,
    /// How often, since the broker started.
    pub count: u64,
    /// First time, Unix milliseconds.
    pub first_ms: u64,
    /// Last time, Unix milliseconds.
    pub last_ms: u64,
}

/// How often the log says that refusals go on.
const REPEATED_EVERY_MS: u64 = 60_000;
/// Lines it takes for that.
const REPEATED_LINES: usize = 20;

type Key = (PeerName, Operation, String, &'static str);

/// The beginning of what a stock peer wrote in the place of a topic: what is refused for its size is not kept for its
/// size either.
pub fn start_of(topic: &[u8]) -> String {
    match topic.get(..limits::TOPIC_BYTES_MAX) {
        Some(start) if start.len() < topic.len() => format!("{}...", String::from_utf8_lossy(start)),
        _ => String::from_utf8_lossy(topic).into_owned(),
    }
}

/// `text` with its control characters escaped: it goes to logs, where a line break would forge a line.
pub fn on_one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    Cow::Owned(line)
}

/// All refusals of one broker epoch.
#[derive(Debug, Default)]
pub struct Denials {
    table: HashMap<Key, (Denial, bool)>,
    retained_full: u64,
    /// Repetitions since the log last spoke of them.
    repeated: HashMap<Key, u64>,
    repeated_at_ms: u64,
}

impl Denials {
    /// Counts a refusal. A new one is returned, to be published at once; repetitions are published
    /// together by [`Denials::take_changed`].
    pub fn note(
        &mut self,
        peer: PeerName,
        operation: Operation,
        code: &'static str,
        topic: &str,
        text: &str,
        now_ms: u64,
    ) -> Option<Denial> {
        let key = self.key(peer.clone(), operation, code, topic);
        if let Some((denial, changed)) = self.table.get_mut(&key) {
            denial.count += 1;
            denial.last_ms = now_ms;
            *changed = true;
            if self.repeated.is_empty() {
                self.repeated_at_ms = now_ms;
            }
            *self.repeated.entry(key).or_default() += 1;
            return None;
        }
        let (topic, text) = (key.2.clone(), text.to_owned());
        let denial =
            Denial { peer, operation, topic, code, text, count: 1, first_ms: now_ms, last_ms: now_ms };
        self.table.insert(key, (denial.clone(), false));
        Some(denial)
    }

    /// Whether such a refusal was counted before, on its own or among the others.
    pub fn knows(&self, peer: &PeerName, operation: Operation, code: &'static str, topic: &str) -> bool {
        self.table.contains_key(&self.key(peer.clone(), operation, code, topic))
    }

    /// Where a refusal is counted.
    fn key(&self, peer: PeerName, operation: Operation, code: &'static str, topic: &str) -> Key {
        let exact = (peer, operation, topic.to_owned(), code);
        if self.table.len() < DENIALS_KEPT || self.table.contains_key(&exact) {
            return exact;
        }
        (exact.0, operation, "(others)".to_owned(), code)
    }

    /// Refusals that happened again since they were published.
    pub fn take_changed(&mut self) -> Vec<Denial> {
        let changed = self.table.values_mut().filter(|(_, changed)| *changed);
        changed
            .map(|(denial, changed)| {
                *changed = false;
                denial.clone()
            })
            .collect()
    }

    /// Lines for the log about refusals that were repeated: the most frequent ones, a minute after the
    /// first of them. The first occurrence of each was logged when it happened.
    pub fn take_repeated(&mut self, now_ms: u64) -> Vec<String> {
        if self.repeated.is_empty() || now_ms < self.repeated_at_ms.saturating_add(REPEATED_EVERY_MS) {
            return Vec::new();
        }
        let mut repeated: Vec<_> = std::mem::take(&mut self.repeated).into_iter().collect();
        repeated
            .sort_by(|(one, fewer), (other, more)| (more, one.2.as_str()).cmp(&(fewer, other.2.as_str())));
        let rest: u64 = repeated.iter().skip(REPEATED_LINES).map(|(_, count)| count).sum();
        let mut lines: Vec<String> = repeated
            .iter()
            .take(REPEATED_LINES)
            .map(|((peer, operation, topic, code), count)| {
                let operation = operation.as_str();
                format!("`{peer}` was denied {operation} on `{topic}` {count} times more ({code})")
            })
            .collect();
        if rest > 0 {
            lines.push(format!("{rest} more denials of other kinds; `bus auth` counts them"));
        }
        lines
    }

    /// All refusals, most recent first.
    pub fn all(&self) -> Vec<&Denial> {
        let mut all: Vec<_> = self.table.values().map(|(denial, _)| denial).collect();
        all.sort_by_key(|denial| std::cmp::Reverse(denial.last_ms));
        all
    }

    /// Counts a value that was not retained for want of room.
    pub fn retained_full(&mut self) {
        self.retained_full += 1;
    }

    /// How many values were not retained for want of room.
    pub fn retained_full_count(&self) -> u64 {
        self.retained_full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_refusal_is_published_at_once_and_repetitions_together() {
        let mut denials = Denials::default();
        let mut note = |now_ms| {
            denials
                .note("a".parse().unwrap(), Operation::Publish, "not_permitted", "t", "no", now_ms)
                .is_some()
        };
        assert_eq!([note(1), note(2), note(3)], [true, false, false]);
        let changed = denials.take_changed();
        assert_eq!((changed.len(), changed[0].count, changed[0].first_ms, changed[0].last_ms), (1, 3, 1, 3));
        assert!(denials.take_changed().is_empty());
    }

    #[test]
    fn what_a_peer_wrote_forges_no_line_and_keeps_no_memory() {
        assert_eq!(on_one_line("a\nWARN b\x1b[2J"), "a\\nWARN b\\u{1b}[2J");
        assert_eq!(on_one_line("a/\u{e4}"), "a/\u{e4}");
        assert_eq!(start_of(b"a"), "a");
        assert_eq!(start_of(&vec![0xff; 64 << 20]).len(), 3 * limits::TOPIC_BYTES_MAX + 3);
    }

    #[test]
    fn the_log_hears_of_repetitions_once_a_minute_with_their_number() {
        let mut denials = Denials::default();
        let note = |denials: &mut Denials, topic: &str, now_ms| {
            denials.note("a".parse().unwrap(), Operation::Publish, "c", topic, "no", now_ms);
        };
        note(&mut denials, "t", 0);
        assert!(denials.take_repeated(100_000).is_empty(), "the first one was logged when it happened");
        (0..5).for_each(|_| note(&mut denials, "t", 100_000));
        (0..2).for_each(|_| note(&mut denials, "u", 110_000));
        assert!(denials.take_repeated(159_999).is_empty());
        let lines = denials.take_repeated(160_000);
        assert_eq!(
            lines,
            [
                "`a` was denied publish on `t` 5 times more (c)",
                "`a` was denied publish on `u` 1 times more (c)"
            ]
        );
        assert!(denials.take_repeated(300_000).is_empty());
    }

    #[test]
    fn a_peer_that_invents_topics_fills_no_memory() {
        let mut denials = Denials::default();
        for number in 0..DENIALS_KEPT + 100 {
            denials.note("a".parse().unwrap(), Operation::Publish, "c", &number.to_string(), "no", 0);
        }
        assert_eq!(denials.all().len(), DENIALS_KEPT + 1);
        assert_eq!(denials.all().iter().map(|denial| denial.count).sum::<u64>(), DENIALS_KEPT as u64 + 100);
    }
}
