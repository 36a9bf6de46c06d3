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
    topics::{CompletionFinal, CompletionRequest, Role, Usage},
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

    /// What its model is called: the name of the script.
    pub(super) fn model(&self) -> &str {
        &self.script.name
    }

    /// Answers the last user message. A token is a word here. `temperature`, `top_p` and `seed` have no effect:
    /// nothing is left to chance.
    pub(super) fn complete(&self, request: &CompletionRequest) -> Result<ScriptAnswer, BackEndError> {
        let CompletionRequest { messages, options, .. } = request;
        if !messages.iter().any(|message| message.role == Role::User) {
            return Err(BackEndError::NothingToAnswer);
        }
        let mut answer = engine::answer(&self.script, messages);
        if let Some(at) = options.stop.iter().filter_map(|stop| answer.find(stop.as_str())).min() {
            answer.truncate(at);
        }
        let mut words: Vec<String> = deltas(&answer).map(str::to_owned).collect();
        let most = options.tokens_max.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
        let finish_reason = if words.len() > most { "length" } else { "stop" };
        words.truncate(most);
        let count = |words: usize| u32::try_from(words).unwrap_or(u32::MAX);
        let usage = Usage {
            prompt_tokens: count(
                messages.iter().map(|message| message.text.split_whitespace().count()).sum(),
            ),
            completion_tokens: count(words.len()),
        };
        words.reverse();
        let end = CompletionFinal {
            finish_reason: finish_reason.to_owned(),
            back_end: NAME.to_owned(),
            model: self.script.name.clone(),
            notice: Some(NOTICE.to_owned()),
            usage: Some(usage),
            ..CompletionFinal::default()
        };
        Ok(ScriptAnswer { words_left: words, pause: self.pause, begun: false, end })
    }
}

/// An answer on its way out, word by word.
#[derive(Debug)]
pub struct ScriptAnswer {
    /// In reverse order.
    words_left: Vec<String>,
    pause: Duration,
    begun: bool,
    end: CompletionFinal,
}

impl ScriptAnswer {
    pub(super) async fn next(&mut self) -> Piece {
        let Some(word) = self.words_left.pop() else {
            return Piece::Final(self.end.clone());
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
    use crate::topics::{ChatMessage, CompletionOptions};

    fn request(messages: Vec<ChatMessage>, options: CompletionOptions) -> CompletionRequest {
        CompletionRequest { turn: uuid::Uuid::nil(), messages, options }
    }

    async fn run(back_end: &ScriptBackEnd, request: &CompletionRequest) -> (Vec<String>, CompletionFinal) {
        let mut answer = back_end.complete(request).unwrap();
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
        let asked =
            request(vec![ChatMessage::new(Role::User, "My name is Ada.")], CompletionOptions::default());
        let (words, end) = run(&back_end, &asked).await;
        assert!(words.len() > 1 && words[1].starts_with(' '), "{words:?}");
        assert!(words.concat().contains("Ada"), "{words:?}");
        assert_eq!(end.notice.as_deref(), Some("script: no language model configured"));
        assert_eq!((back_end.model(), end.finish_reason.as_str()), (end.model.as_str(), "stop"));
        let usage = end.usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens as usize), (4, words.len()));
    }

    #[tokio::test]
    async fn an_answer_ends_before_a_stop_and_at_the_most_words() {
        let back_end = ScriptBackEnd::new(None, Duration::ZERO).unwrap();
        let said = || vec![ChatMessage::new(Role::User, "My name is Ada.")];
        let (words, _) = run(&back_end, &request(said(), CompletionOptions::default())).await;
        let options = CompletionOptions { tokens_max: Some(2), ..CompletionOptions::default() };
        let (short, end) = run(&back_end, &request(said(), options)).await;
        assert_eq!((short.as_slice(), end.finish_reason.as_str()), (&words[..2], "length"));
        let stop = vec!["nowhere".to_owned(), words[2].clone()];
        let options = CompletionOptions { stop, ..CompletionOptions::default() };
        let (short, end) = run(&back_end, &request(said(), options)).await;
        assert_eq!((short.as_slice(), end.finish_reason.as_str()), (&words[..2], "stop"));
    }

    #[test]
    fn without_a_user_message_there_is_nothing_to_answer() {
        let back_end = ScriptBackEnd::new(None, Duration::ZERO).unwrap();
        let asked = request(Vec::new(), CompletionOptions::default());
        assert!(matches!(back_end.complete(&asked), Err(BackEndError::NothingToAnswer)));
    }

    #[test]
    fn deltas_together_are_the_answer() {
        for text in ["", "one", "one two", "  a  b\n c ", "gr\u{fc}n \u{1f600} x"] {
            assert_eq!(deltas(text).collect::<String>(), text);
        }
        assert_eq!(deltas("one two three").collect::<Vec<_>>(), ["one", " two", " three"]);
    }
}
