//! Topic names, topic filters and whether one matches the other. The only place topic syntax lives.
//!
//! Syntax and matching follow MQTT 5.0, section 4.7, with the stricter alphabet of SEMANTICS ("Names").

use std::{fmt, str::FromStr, sync::Arc};

use crate::limits;

/// The name a message is published under: levels separated by `/`, for example
/// `conversation/turn/started`.
///
/// Invariants, checked once in [`FromStr`]:
/// - 1 to [`limits::TOPIC_BYTES_MAX`] bytes of UTF-8;
/// - no empty level, no wildcard (`+`, `#`), none of `.`, `*`, `>`, no space, no control character
///   (so that a name maps to any other fabric);
/// - `$` only as the first character: `$` topics are the bus's own.
///
/// Cloning is cheap: the text is shared.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicName(Arc<str>);

/// A pattern over topic names: `+` stands for exactly one level, `#` as the last level for that
/// level's parent and everything below it.
///
/// A leading wildcard never matches a topic that begins with `$` (MQTT 5.0, section 4.7.2).
///
/// | filter | matches | does not match |
/// |---|---|---|
/// | `a/b` | `a/b` | `a/b/c`, `a` |
/// | `a/+` | `a/b` | `a`, `a/b/c` |
/// | `a/#` | `a`, `a/b`, `a/b/c` | `ab` |
/// | `#` | everything but `$...` | `$sys/denied` |
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicFilter(Arc<str>);

/// Why a text is not a [`TopicName`] or a [`TopicFilter`]. Every message names the text and the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    /// The text has no character at all.
    #[error("topic is empty; give at least one level, for example `conversation`")]
    Empty,
    /// Two separators in a row, or one at either end.
    #[error("topic `{topic}` has an empty level at byte {at}; remove the extra `/`")]
    EmptyLevel {
        /// The text as given.
        topic: String,
        /// Byte offset of the level.
        at: usize,
    },
    /// Longer than [`limits::TOPIC_BYTES_MAX`].
    #[error("topic is {bytes} bytes long; the limit is {limit} bytes")]
    TooLong {
        /// Length of the text.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A wildcard in a name.
    #[error("topic `{topic}` contains `{wildcard}`; wildcards are for subscription filters")]
    Wildcard {
        /// The text as given.
        topic: String,
        /// The wildcard found.
        wildcard: char,
    },
    /// A wildcard that shares its level with other characters, or a `#` that is not last.
    #[error(
        "filter `{filter}` has `{wildcard}` at byte {at}; `+` must be a whole level and `#` the whole last level"
    )]
    MisplacedWildcard {
        /// The text as given.
        filter: String,
        /// The wildcard.
        wildcard: char,
        /// Its byte offset.
        at: usize,
    },
    /// A character no topic may contain.
    #[error("topic `{}` contains {character:?} at byte {at}; topics forbid `.`, `*`, `>`, spaces and control characters, and `$` anywhere but first", topic.escape_debug())]
    Character {
        /// The text as given.
        topic: String,
        /// The character.
        character: char,
        /// Its byte offset.
        at: usize,
    },
    /// Bytes that are not UTF-8.
    #[error("topic is not UTF-8 after byte {valid_bytes}; topics are UTF-8 text")]
    NotUtf8 {
        /// How many leading bytes are valid.
        valid_bytes: usize,
    },
}

impl TopicName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses bytes from the wire.
    ///
    /// # Errors
    /// [`TopicError`]: it is no UTF-8, or no topic name.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TopicError> {
        if bytes.len() > limits::TOPIC_BYTES_MAX {
            return Err(TopicError::TooLong { bytes: bytes.len(), limit: limits::TOPIC_BYTES_MAX });
        }
        std::str::from_utf8(bytes)
            .map_err(|error| TopicError::NotUtf8 { valid_bytes: error.valid_up_to() })?
            .parse()
    }

    /// Whether this topic belongs to the bus itself (begins with `$`).
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with('$')
    }
}

impl FromStr for TopicName {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        check_levels(text)?;
        if let Some(wildcard) = text.chars().find(|character| matches!(character, '+' | '#')) {
            return Err(TopicError::Wildcard { topic: text.to_owned(), wildcard });
        }
        Ok(Self(text.into()))
    }
}

impl TopicFilter {
    /// The filter as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `topic` is one of the topics this filter stands for.
    pub fn matches(&self, topic: &TopicName) -> bool {
        if topic.is_reserved() && matches!(self.0.as_bytes()[0], b'+' | b'#') {
            return false;
        }
        let mut topic_levels = topic.0.split('/');
        for filter_level in self.0.split('/') {
            if filter_level == "#" {
                return true;
            }
            match topic_levels.next() {
                Some(level) if filter_level == "+" || filter_level == level => {}
                Some(_) => return false,
                None => return false,
            }
        }
        topic_levels.next().is_none()
    }

    /// Whether some topic is matched by both filters.
    pub fn overlaps(&self, other: &TopicFilter) -> bool {
        let reserved = |filter: &str| filter.starts_with('$');
        let wild = |filter: &str| filter.starts_with(['+', '#']);
        if (reserved(&self.0) && wild(&other.0)) || (reserved(&other.0) && wild(&self.0)) {
            return false;
        }
        let (mut ours, mut theirs) = (self.0.split('/'), other.0.split('/'));
        loop {
            match (ours.next(), theirs.next()) {
                (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
                (Some(left), Some(right)) if left == right || left == "+" || right == "+" => {}
                _ => return false,
            }
        }
    }

    /// The filter that matches this one topic only.
    pub fn exactly(topic: &TopicName) -> Self {
        Self(Arc::clone(&topic.0))
    }
}

impl FromStr for TopicFilter {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        check_levels(text)?;
        let mut at = 0;
        for level in text.split('/') {
            let is_last = at + level.len() == text.len();
            if let Some(offset) = level.find(['+', '#']) {
                let wildcard = if level[offset..].starts_with('#') { '#' } else { '+' };
                if level.len() > 1 || (wildcard == '#' && !is_last) {
                    return Err(TopicError::MisplacedWildcard {
                        filter: text.to_owned(),
                        wildcard,
                        at: at + offset,
                    });
                }
            }
            at += level.len() + 1;
        }
        Ok(Self(text.into()))
    }
}

/// What names and filters have in common: length, levels, alphabet.
fn check_levels(text: &str) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    if text.len() > limits::TOPIC_BYTES_MAX {
        return Err(TopicError::TooLong { bytes: text.len(), limit: limits::TOPIC_BYTES_MAX });
    }
    let forbidden = |at: usize, character: char| {
        matches!(character, '.' | '*' | '>')
            || character.is_whitespace()
            || character.is_control()
            || (character == '$' && at > 0)
    };
    if let Some((at, character)) = text.char_indices().find(|&(at, character)| forbidden(at, character)) {
        return Err(TopicError::Character { topic: text.to_owned(), character, at });
    }
    let mut at = 0;
    for level in text.split('/') {
        if level.is_empty() {
            return Err(TopicError::EmptyLevel { topic: text.to_owned(), at });
        }
        at += level.len() + 1;
    }
    Ok(())
}

macro_rules! text_form {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{:?}", &*self.0)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use text_form;

text_form!(TopicName);
text_form!(TopicFilter);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> TopicName {
        text.parse().unwrap()
    }

    fn filter(text: &str) -> TopicFilter {
        text.parse().unwrap()
    }

    #[test]
    fn filters_match_by_level_and_never_by_prefix() {
        let table = [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/b", "a", false),
            ("a/+", "a/b", true),
            ("a/+", "a", false),
            ("a/+", "a/b/c", false),
            ("+/b", "a/b", true),
            ("+", "a", true),
            ("+", "a/b", false),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("#", "a/b/c", true),
            ("#", "$sys/denied", false),
            ("+/denied", "$sys/denied", false),
            ("$sys/#", "$sys/denied", true),
            ("v1", "v10", false),
            ("a/+/c/#", "a/b/c", true),
            ("a/+/c/#", "a/b/d", false),
        ];
        for (pattern, topic, expected) in table {
            assert_eq!(filter(pattern).matches(&name(topic)), expected, "{pattern} against {topic}");
        }
    }

    #[test]
    fn a_malformed_name_is_refused_with_the_place_and_the_way_out() {
        let error = |text: &str| text.parse::<TopicName>().unwrap_err().to_string();
        assert_eq!(
            error("conversation//turn"),
            "topic `conversation//turn` has an empty level at byte 13; remove the extra `/`"
        );
        assert!(error("/a").contains("byte 0"));
        assert!(error("a/").contains("byte 2"));
        assert!(error("a/+").contains("wildcards are for subscription filters"));
        assert!(error("a b").contains("' '"));
        assert!(error("a.b").contains("'.'"));
        assert!(error("a/$b").contains("'$'"));
        assert!(error("a\nb").contains("a\\nb"));
        assert_eq!("".parse::<TopicName>(), Err(TopicError::Empty));
        assert!(matches!(
            "x".repeat(limits::TOPIC_BYTES_MAX + 1).parse::<TopicName>(),
            Err(TopicError::TooLong { .. })
        ));
        assert_eq!(TopicName::from_bytes(b"ab\xff"), Err(TopicError::NotUtf8 { valid_bytes: 2 }));
    }

    #[test]
    fn a_wildcard_must_be_a_whole_level_and_the_hash_the_last() {
        for text in ["a+", "a/b#", "#/a", "a/#/b", "+a/b"] {
            assert!(
                matches!(text.parse::<TopicFilter>(), Err(TopicError::MisplacedWildcard { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn two_filters_overlap_if_one_topic_matches_both() {
        let table = [
            ("a/+", "+/b", true),
            ("a/#", "a", true),
            ("a/b", "a/c", false),
            ("#", "x/y", true),
            ("#", "$sys/x", false),
            ("$sys/#", "$sys/x", true),
            ("a/+/c", "a/b", false),
        ];
        for (left, right, expected) in table {
            assert_eq!(filter(left).overlaps(&filter(right)), expected, "{left} and {right}");
            assert_eq!(filter(right).overlaps(&filter(left)), expected, "{right} and {left}");
        }
    }

    /// An independent matcher: recursion over level lists instead of the iterator walk above.
    fn naive(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            (["#"], _) => true,
            ([], []) => true,
            (["+", rest @ ..], [_, below @ ..]) => naive(rest, below),
            ([level, rest @ ..], [same, below @ ..]) if level == same => naive(rest, below),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_a_naive_matcher(
            filter_levels in prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", "+"]), 1..5),
            hash in any::<bool>(),
            topic_levels in prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", "$a"]), 1..5),
        ) {
            let mut filter_levels = filter_levels;
            if hash { filter_levels.push("#"); }
            let Ok(topic) = topic_levels.join("/").parse::<TopicName>() else { return Ok(()) };
            let reserved = topic_levels[0].starts_with('$') && ["+", "#"].contains(&filter_levels[0]);
            let expected = !reserved && naive(&filter_levels, &topic_levels);
            prop_assert_eq!(filter(&filter_levels.join("/")).matches(&topic), expected);
        }
    }
}
