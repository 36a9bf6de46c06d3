//! Words, patterns over them, and answers with blanks to fill.
//!
//! A pattern stands for a whole clause:
//!
//! | element | matches | is numbered |
//! |---|---|---|
//! | `word` | that word | no |
//! | `@family` | any word of the family | yes |
//! | `_` | exactly one word | yes |
//! | `*` | any number of words, also none | yes |
//! | `+` | one word or more | yes |
//!
//! The leftmost match counts. A gap (`*`, `+`) ends at the first place where what follows it fits;
//! earlier gaps are never tried again, because a later place can never do what the first could
//! not. So matching costs clause length times pattern length, whatever the pattern.

use std::{collections::HashMap, ops::Range};

/// A word as matched and as said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) lower: String,
    pub(super) said: String,
}

/// A piece of text between two stops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Clause {
    pub(super) words: Vec<Word>,
    pub(super) is_question: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Element {
    Word(String),
    Family(Vec<String>),
    AnyOne,
}

impl Element {
    fn matches(&self, word: &Word) -> bool {
        match self {
            Self::Word(expected) => *expected == word.lower,
            Self::Family(members) => members.contains(&word.lower),
            Self::AnyOne => true,
        }
    }

    fn is_numbered(&self) -> bool {
        !matches!(self, Self::Word(_))
    }
}

/// A gap with the least number of words it takes, and the fixed elements behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    gap_words_min: Option<usize>,
    elements: Vec<Element>,
}

impl Segment {
    fn fits(&self, words: &[Word], at: usize) -> bool {
        words
            .get(at..at + self.elements.len())
            .is_some_and(|here| self.elements.iter().zip(here).all(|(element, word)| element.matches(word)))
    }
}

/// Most elements of one pattern.
pub(super) const ELEMENTS_MAX: usize = 24;

/// What a clause has to look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    segments: Vec<Segment>,
}

impl Pattern {
    /// Reads a pattern; the error says what is wrong and what is allowed.
    pub(super) fn parse(text: &str, families: &HashMap<String, Vec<String>>) -> Result<Self, String> {
        let mut segments = Vec::new();
        let mut current = Segment { gap_words_min: None, elements: Vec::new() };
        let mut count = 0;
        for item in text.split_whitespace() {
            count += 1;
            let gap_words_min = match item {
                "*" => Some(0),
                "+" => Some(1),
                _ => None,
            };
            if gap_words_min.is_none() {
                current.elements.push(element(text, item, families)?);
            } else if current.gap_words_min.is_some() && current.elements.is_empty() {
                return Err(format!("pattern `{text}` has two gaps side by side; put a word between them"));
            } else {
                segments
                    .push(std::mem::replace(&mut current, Segment { gap_words_min, elements: Vec::new() }));
            }
        }
        segments.push(current);
        match count {
            0 => Err("pattern is empty; `*` stands for any words".to_owned()),
            1..=ELEMENTS_MAX => Ok(Self { segments }),
            _ => Err(format!("pattern has {count} elements; the limit is {ELEMENTS_MAX}")),
        }
    }

    /// How many numbered blanks an answer may use.
    pub(super) fn captures(&self) -> usize {
        let numbered =
            |segment: &Segment| segment.elements.iter().filter(|element| element.is_numbered()).count();
        let gap = |segment: &Segment| usize::from(segment.gap_words_min.is_some());
        self.segments.iter().map(|segment| gap(segment) + numbered(segment)).sum()
    }

    /// What the numbered elements matched, as ranges of `words`; `None` if the clause is different.
    pub(super) fn matches(&self, words: &[Word]) -> Option<Vec<Range<usize>>> {
        let mut captures = Vec::with_capacity(self.captures());
        let mut at = 0;
        for (index, segment) in self.segments.iter().enumerate() {
            let is_last = index + 1 == self.segments.len();
            let start = match segment.gap_words_min {
                None => at,
                Some(least) if is_last => {
                    words.len().checked_sub(segment.elements.len()).filter(|&start| start >= at + least)?
                }
                Some(least) => (at + least..=words.len()).find(|&start| segment.fits(words, start))?,
            };
            if !segment.fits(words, start) {
                return None;
            }
            if segment.gap_words_min.is_some() {
                captures.push(at..start);
            }
            at = start;
            for element in &segment.elements {
                if element.is_numbered() {
                    captures.push(at..at + 1);
                }
                at += 1;
            }
        }
        (at == words.len()).then_some(captures)
    }
}

fn element(pattern: &str, item: &str, families: &HashMap<String, Vec<String>>) -> Result<Element, String> {
    if item == "_" {
        return Ok(Element::AnyOne);
    }
    if let Some(name) = item.strip_prefix('@') {
        return families.get(name).cloned().map(Element::Family).ok_or_else(|| {
            let mut known: Vec<_> = families.keys().map(|name| format!("`@{name}`")).collect();
            known.sort();
            let known = known.join(", ");
            format!("pattern `{pattern}` names `@{name}`, which [families] does not have; it has {known}")
        });
    }
    let is_plain = |character: char| character.is_alphanumeric() || "'-".contains(character);
    if !item.chars().all(is_plain) || item.chars().any(char::is_uppercase) {
        return Err(format!(
            "pattern `{pattern}` has `{item}`; allowed are lower-case words, `*`, `+`, `_` and `@family`"
        ));
    }
    Ok(Element::Word(item.to_owned()))
}

/// One part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// As it stands.
    Text(String),
    /// `{2}`: what the second numbered element matched, seen from the other side.
    Capture(usize),
    /// `{=2}`: the same as the user said it, in lower case (for keys).
    AsSaid(usize),
    /// `{name}`: the fact of that key.
    Fact(String),
    /// `{?2}`: the fact whose key is what the second numbered element matched; `{?2's age}` adds
    /// a text to the key.
    FactOf(usize, String),
    /// `{facts}`: everything the user told, as a list.
    Facts,
}

/// An answer with blanks. It is used only if all of them can be filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    pub(super) parts: Vec<Part>,
}

impl Template {
    /// Reads a template for a pattern with `captures` numbered elements.
    pub(super) fn parse(text: &str, captures: usize) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            let end = rest[open..].find('}').filter(|_| rest[open..].starts_with('{'));
            let Some(end) = end else {
                return Err(format!(
                    "text `{text}` has an unmatched brace; blanks look like `{{2}}` or `{{name}}`"
                ));
            };
            if open > 0 {
                parts.push(Part::Text(rest[..open].to_owned()));
            }
            parts.push(blank(text, &rest[open + 1..open + end], captures)?);
            rest = &rest[open + end + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        if parts.is_empty() {
            return Err("text is empty; write what is to be said".to_owned());
        }
        Ok(Self { parts })
    }
}

fn blank(text: &str, inside: &str, captures: usize) -> Result<Part, String> {
    let number = |digits: &str| match digits.parse::<usize>() {
        Ok(number) if (1..=captures).contains(&number) => Ok(number - 1),
        _ => Err(format!(
            "text `{text}` has the blank `{{{inside}}}`; its pattern has {captures} numbered elements, counted from 1"
        )),
    };
    match inside.as_bytes() {
        [b'0'..=b'9', ..] => number(inside).map(Part::Capture),
        [b'=', ..] => number(&inside[1..]).map(Part::AsSaid),
        [b'?', ..] => {
            let digits = inside[1..].bytes().take_while(u8::is_ascii_digit).count();
            let (digits, added) = inside[1..].split_at(digits);
            number(digits).map(|capture| Part::FactOf(capture, added.to_owned()))
        }
        b"facts" => Ok(Part::Facts),
        [_, ..] if inside.chars().all(|character| character.is_lowercase() || character == ' ') => {
            Ok(Part::Fact(inside.to_owned()))
        }
        _ => Err(format!(
            "text `{text}` has the blank `{{{inside}}}`; allowed are `{{2}}`, `{{=2}}`, `{{?2}}`, `{{facts}}` and the key of a fact in lower case"
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Vec<Word> {
        text.split_whitespace().map(|word| Word { lower: word.to_owned(), said: word.to_owned() }).collect()
    }

    fn families() -> HashMap<String, Vec<String>> {
        HashMap::from([("pet".to_owned(), vec!["cat".to_owned(), "dog".to_owned()])])
    }

    fn matched(pattern: &str, text: &str) -> Option<Vec<String>> {
        let words = words(text);
        let pattern = Pattern::parse(pattern, &families()).unwrap();
        let captures = pattern.matches(&words)?;
        assert_eq!(captures.len(), pattern.captures());
        let said = |range: &Range<usize>| {
            words[range.clone()].iter().map(|word| word.said.as_str()).collect::<Vec<_>>().join(" ")
        };
        Some(captures.iter().map(said).collect())
    }

    #[test]
    fn patterns_match_whole_clauses() {
        let table: &[(&str, &str, Option<&[&str]>)] = &[
            ("*", "", Some(&[""])),
            ("*", "a b", Some(&["a b"])),
            ("+", "", None),
            ("a", "a", Some(&[])),
            ("a", "a b", None),
            ("* my + is +", "well my old hat is very red", Some(&["well", "old hat", "very red"])),
            ("* my + is +", "my hat is", None),
            ("* my + is +", "my is is is", Some(&["", "is", "is"])),
            ("i have a @pet *", "i have a cat called tom", Some(&["cat", "called tom"])),
            ("i have a @pet *", "i have a car", None),
            ("* name is _ *", "name is ada now", Some(&["", "ada", "now"])),
            ("* name is _", "name is ada now", None),
            ("* a * b", "a b a b", Some(&["", "b a"])),
            ("* a b", "a b a b", Some(&["a b"])),
        ];
        for (pattern, text, expected) in table {
            let expected = expected.map(|list| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
            assert_eq!(matched(pattern, text), expected, "{pattern} against {text}");
        }
    }

    #[test]
    fn a_bad_pattern_or_answer_is_refused_with_what_is_allowed() {
        let pattern = |text: &str| Pattern::parse(text, &families()).unwrap_err();
        assert!(pattern("").contains("empty"));
        assert!(pattern("* *").contains("two gaps"));
        assert!(pattern("I am").contains("lower-case"));
        assert!(pattern("a @pets").contains("it has `@pet`"));
        assert!(pattern(&"a ".repeat(25)).contains("limit is 24"));
        let answer = |text: &str| Template::parse(text, 2).unwrap_err();
        assert!(answer("{3}").contains("has 2 numbered elements"));
        assert!(answer("{0}").contains("counted from 1"));
        assert!(answer("a } b").contains("unmatched"));
        assert!(answer("a { b").contains("unmatched"));
        assert!(answer("{}").contains("allowed are"));
        assert!(answer("{Name}").contains("allowed are"));
        assert!(answer("").contains("empty"));
        assert_eq!(
            Template::parse("So {2}, {name}?", 2).unwrap().parts,
            [
                Part::Text("So ".to_owned()),
                Part::Capture(1),
                Part::Text(", ".to_owned()),
                Part::Fact("name".to_owned()),
                Part::Text("?".to_owned()),
            ]
        );
    }

    /// Tries every way of filling the gaps.
    fn naive(pattern: &[&str], text: &[Word]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            (["*", rest @ ..], _) => (0..=text.len()).any(|taken| naive(rest, &text[taken..])),
            (["+", rest @ ..], _) => (1..=text.len()).any(|taken| naive(rest, &text[taken..])),
            (["_", rest @ ..], [_, below @ ..]) => naive(rest, below),
            ([word, rest @ ..], [same, below @ ..]) if *word == same.lower => naive(rest, below),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_trying_everything(
            pattern in prop::collection::vec(prop::sample::select(vec!["a", "b", "_", "*", "+"]), 1..7),
            text in prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 0..9),
        ) {
            let Ok(parsed) = Pattern::parse(&pattern.join(" "), &families()) else { return Ok(()) };
            let text = words(&text.join(" "));
            prop_assert_eq!(parsed.matches(&text).is_some(), naive(&pattern, &text));
        }
    }
}
