//! The embedded back end: a script-driven engine in ELIZA's tradition. It needs neither weights
//! nor network, it is no language model, and it says so.
//!
//! An answer is a pure function of the script and the messages of the conversation: nothing is
//! kept between requests, so a restart or another process changes nothing. The script is
//! [`script.toml`](DEFAULT_SCRIPT) or a file of the user's that replaces it. Source of the method:
//! J. Weizenbaum, "ELIZA", Communications of the ACM 9 (1966), pages 36 to 45.

mod engine;
mod pattern;
mod read;

use std::{path::Path, time::Duration};

pub use read::ScriptError;

use crate::{
    model::{BackEndError, Piece, limits},
    topics::{ChatMessage, CompletionFinal, ModelDescription, ModelList, Role},
};

/// The script that is used unless the configuration names another; commented, to be copied and edited.
pub const DEFAULT_SCRIPT: &str = include_str!("script.toml");

/// What this back end is called in messages and tables.
pub(crate) const NAME: &str = "script";

/// What everybody is told who is answered by it.
pub(crate) const NOTICE: &str = "script: no language model configured";

/// A parsed script and how fast it talks.
#[derive(Debug)]
pub struct ScriptBackEnd {
    script: read::Script,
    pause: Duration,
}

impl ScriptBackEnd {
    /// The built-in script, or the file that replaces it. `pause` stands between two words.
    pub fn new(file: Option<&Path>, pause: Duration) -> Result<Self, ScriptError> {
        let script = match file {
            None => read::parse(DEFAULT_SCRIPT, Path::new("script.toml (built in)"))?,
            Some(path) => read::load(path)?,
        };
        Ok(Self { script, pause })
    }

    pub(super) fn models(&self) -> ModelList {
        ModelList {
            back_end: NAME.to_owned(),
            notice: Some(NOTICE.to_owned()),
            models: vec![ModelDescription { id: self.script.name.clone(), default: true }],
        }
    }

    /// Answers the last user message of `messages`.
    pub(super) fn complete(&self, messages: &[ChatMessage]) -> Result<ScriptAnswer, BackEndError> {
        if !messages.iter().any(|message| message.role == Role::User) {
            return Err(BackEndError::NothingToAnswer);
        }
        let answer = engine::answer(&self.script, messages);
        let mut words: Vec<String> = deltas(&answer).map(str::to_owned).collect();
        words.reverse();
        Ok(ScriptAnswer {
            words_left: words,
            pause: self.pause,
            begun: false,
            model: self.script.name.clone(),
        })
    }
}

/// An answer on its way out, word by word.
#[derive(Debug)]
pub struct ScriptAnswer {
    /// In reverse order.
    words_left: Vec<String>,
    pause: Duration,
    begun: bool,
    model: String,
}

impl ScriptAnswer {
    pub(super) async fn next(&mut self) -> Piece {
        let Some(word) = self.words_left.pop() else {
            return Piece::Final(CompletionFinal {
                finish_reason: "stop".to_owned(),
                back_end: NAME.to_owned(),
                model: self.model.clone(),
                notice: Some(NOTICE.to_owned()),
                usage: None,
            });
        };
        if self.begun && !self.pause.is_zero() {
            tokio::time::sleep(self.pause.min(limits::SCRIPT_PAUSE_MAX)).await;
        }
        self.begun = true;
        Piece::Delta(word)
    }
}

/// An answer in words, each with the blank before it: together they are the answer.
fn deltas(answer: &str) -> impl Iterator<Item = &str> {
    let mut rest = answer;
    std::iter::from_fn(move || {
        let blanks = rest.len() - rest.trim_start().len();
        let word = rest[blanks..].find(char::is_whitespace).map_or(rest.len(), |at| blanks + at);
        let (delta, after) = rest.split_at(word);
        rest = after;
        (!delta.is_empty()).then_some(delta)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(back_end: &ScriptBackEnd, messages: &[ChatMessage]) -> (Vec<String>, CompletionFinal) {
        let mut answer = back_end.complete(messages).unwrap();
        let mut words = Vec::new();
        loop {
            match answer.next().await {
                Piece::Delta(word) => words.push(word),
                Piece::Final(end) => return (words, end),
            }
        }
    }

    #[tokio::test]
    async fn an_answer_streams_word_by_word_and_says_that_it_is_no_language_model() {
        let back_end = ScriptBackEnd::new(None, Duration::ZERO).unwrap();
        let (words, end) = run(&back_end, &[ChatMessage::new(Role::User, "My name is Ada.")]).await;
        assert!(words.len() > 1 && words[1].starts_with(' '), "{words:?}");
        assert!(words.concat().contains("Ada"), "{words:?}");
        assert_eq!(end.notice.as_deref(), Some("script: no language model configured"));
        assert_eq!(back_end.models().notice.as_deref(), Some("script: no language model configured"));
        assert_eq!(back_end.models().models[0].id, end.model);
    }

    #[test]
    fn without_a_user_message_there_is_nothing_to_answer() {
        let back_end = ScriptBackEnd::new(None, Duration::ZERO).unwrap();
        assert!(matches!(back_end.complete(&[]), Err(BackEndError::NothingToAnswer)));
    }

    #[test]
    fn deltas_together_are_the_answer() {
        for text in ["", "one", "one two", "  a  b\n c ", "gr\u{fc}n \u{1f600} x"] {
            assert_eq!(deltas(text).collect::<String>(), text);
        }
        assert_eq!(deltas("one two three").collect::<Vec<_>>(), ["one", " two", " three"]);
    }
}
