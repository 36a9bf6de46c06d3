//! What a word is, and what a text to search for means.
//!
//! A word is a run of letters and digits of any script; case does not matter. Characters of scripts without spaces
//! (Chinese, Japanese) and symbols beyond ASCII (an emoji) are words of their own. All else separates words.

use std::fmt;

/// What a character is to the search.
enum Class {
    /// Part of a word.
    Part,
    /// A word by itself.
    Whole,
    /// Between words.
    Gap,
    /// Not there: accents that stand behind their letter, and what chooses between two forms of a character.
    Ignored,
}

fn class(character: char) -> Class {
    match character {
        _ if character.is_ascii_alphanumeric() => Class::Part,
        _ if character.is_ascii() => Class::Gap,
        '\u{300}'..='\u{36f}' | '\u{fe00}'..='\u{fe0f}' => Class::Ignored,
        // Han, Hiragana and Katakana, with their extensions.
        '\u{3040}'..='\u{30ff}'
        | '\u{3400}'..='\u{4dbf}'
        | '\u{4e00}'..='\u{9fff}'
        | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3fffd}' => Class::Whole,
        _ if character.is_alphanumeric() => Class::Part,
        // Punctuation: Latin-1, general, of Chinese and Japanese.
        '\u{80}'..='\u{bf}' | '\u{2000}'..='\u{206f}' | '\u{3000}'..='\u{303f}' => Class::Gap,
        _ if character.is_whitespace() || character.is_control() => Class::Gap,
        _ => Class::Whole,
    }
}

/// Writes the words of `text` behind `out`, each with a space before it, lower case. A word longer than
/// `word_bytes_max` is cut there.
pub(super) fn write_words(out: &mut String, text: &str, word_bytes_max: usize) {
    // Where the word that is being written began.
    let mut begun: Option<usize> = None;
    for character in text.chars() {
        match class(character) {
            Class::Ignored => {}
            Class::Gap => begun = None,
            Class::Part => {
                let start = *begun.get_or_insert_with(|| {
                    out.push(' ');
                    out.len()
                });
                if out.len() - start >= word_bytes_max {
                    continue;
                }
                if character.is_ascii() {
                    out.push(character.to_ascii_lowercase());
                } else {
                    // The lower case of some letters is a letter and an accent.
                    let lower = character.to_lowercase();
                    out.extend(lower.filter(|character| !matches!(class(*character), Class::Ignored)));
                }
            }
            Class::Whole => {
                begun = None;
                out.push(' ');
                out.push(character);
            }
        }
    }
}

/// What to search for: every item must be in the record, each in its message or in one of its fields (whose text is
/// `name=value`).
///
/// | written | found |
/// |---|---|
/// | `disk full` | both words, anywhere |
/// | `"disk full"` | these words in this order, with nothing but punctuation between them |
/// | `conn*` | words that begin so; also `"lost conn*"` and `"lost conn"*` |
/// | `127.0.0.1:8771`, `a/b` | as in quotation marks: punctuation only separates |
/// | `=>` | without a letter, digit or symbol in it: this very text |
///
/// Case does not matter. There is no text that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextQuery {
    text: String,
    items: Vec<Item>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// These words, as [`write_words`] writes them; the last one may go on if `prefix`.
    Words { words: String, prefix: bool },
    /// This text in lower case; it has no words.
    Literal(String),
}

impl TextQuery {
    /// What `text` asks for.
    pub fn new(text: &str) -> Self {
        let mut items = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (item, after) = match rest.strip_prefix('"') {
                Some(quoted) => {
                    let (inside, after) = quoted.split_once('"').unwrap_or((quoted, ""));
                    match after.strip_prefix('*') {
                        Some(after) => (Item::new(inside, true), after),
                        None => (Item::new(inside, false), after),
                    }
                }
                None => {
                    let end = rest.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(rest.len());
                    (Item::new(&rest[..end], false), &rest[end..])
                }
            };
            items.extend(item);
            rest = after.trim_start();
        }
        Self { text: text.to_owned(), items }
    }

    pub(super) fn items(&self) -> &[Item] {
        &self.items
    }
}

impl From<&str> for TextQuery {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for TextQuery {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl Item {
    /// `None` if nothing is asked for.
    fn new(text: &str, prefix: bool) -> Option<Self> {
        let mut words = String::new();
        write_words(&mut words, text, usize::MAX);
        match words.is_empty() {
            false => Some(Self::Words { words, prefix: prefix || text.ends_with('*') }),
            true if text.trim().is_empty() => None,
            true => Some(Self::Literal(text.to_lowercase())),
        }
    }
}

/// The texts of one record, made ready to be searched, once for all items.
pub(super) struct Searched<'a> {
    message: &'a str,
    fields: &'a [(String, String)],
    /// The words of each text, a line each; every word stands between spaces.
    words: String,
}

impl<'a> Searched<'a> {
    pub(super) fn new(message: &'a str, fields: &'a [(String, String)]) -> Self {
        let mut words = String::with_capacity(message.len() + 64 * fields.len() + 2);
        write_words(&mut words, message, usize::MAX);
        for (name, value) in fields {
            words.push_str(" \n");
            write_words(&mut words, name, usize::MAX);
            write_words(&mut words, value, usize::MAX);
        }
        words.push(' ');
        Self { message, fields, words }
    }

    pub(super) fn has(&self, item: &Item) -> bool {
        match item {
            Item::Words { words, prefix: true } => self.words.contains(words),
            Item::Words { words, prefix: false } => {
                self.words.match_indices(words.as_str()).any(|(at, found)| {
                    self.words.as_bytes().get(at + found.len()).is_none_or(|next| *next == b' ')
                })
            }
            Item::Literal(text) => {
                self.message.to_lowercase().contains(text)
                    || self
                        .fields
                        .iter()
                        .any(|(name, value)| format!("{name}={value}").to_lowercase().contains(text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> String {
        let mut words = String::new();
        write_words(&mut words, text, usize::MAX);
        words
    }

    #[test]
    fn words_are_letters_and_digits_of_any_script_in_lower_case() {
        assert_eq!(words("Log-Gate_opened: 127.0.0.1"), " log gate opened 127 0 0 1");
        assert_eq!(words("GR\u{dc}N \u{130}stanbul cafe\u{301}"), " gr\u{fc}n istanbul cafe");
        assert_eq!(
            words("\u{65e5}\u{672c}\u{8a9e}a\u{1f600}\u{201c}b\u{201d}"),
            " \u{65e5} \u{672c} \u{8a9e} a \u{1f600} b"
        );
        assert_eq!(words(" %_*\"\0\n"), "");
        let mut cut = String::new();
        write_words(&mut cut, "abcdef x", 4);
        assert_eq!(cut, " abcd x");
    }

    #[test]
    fn a_text_asks_for_words_phrases_and_beginnings_and_is_never_wrong() {
        let fields = [("peer".to_owned(), "Model-Service".to_owned()), ("n".to_owned(), "7".to_owned())];
        let record = Searched::new("Connection lost: disk is full => stop", &fields);
        let finds = |text: &str| TextQuery::new(text).items().iter().all(|item| record.has(item));
        for text in [
            "",
            "  ",
            "\"\"",
            "full disk",
            "DISK",
            "\"disk is full\"",
            "\"lost disk\"",
            "conn*",
            "\"lost di*\"",
            "\"lost di\"*",
            "peer",
            "model",
            "peer=model",
            "n=7",
            "=>",
            "\"connection lost",
            "lost\"disk is\"",
            "peer=*",
        ] {
            assert!(finds(text), "`{text}` is not found");
        }
        for text in [
            "dis",
            "conn",
            "\"full disk\"",
            "\"stop peer\"",
            "\"service n\"",
            "disk missing",
            "<=",
            "*",
            "nn*",
            "'",
            "\u{1f600}",
        ] {
            assert!(!finds(text), "`{text}` is found");
        }
    }
}
