//! What a chat is answered with: whole, or in pieces.

use serde::Serialize;
use utoipa::ToSchema;

use crate::topics::{CompletionFinal, Fallback, TurnFinal};

/// A whole answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Completion {
    /// `chatcmpl-` and the id of the turn, by which it is found on the bus.
    id: String,
    /// `chat.completion`.
    object: &'static str,
    /// When it was asked for, in seconds since the Unix epoch.
    created: u64,
    /// Which model answered.
    model: String,
    /// One.
    choices: Vec<Choice>,
    /// Left out where the back end does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    /// What OpenAI's API has no place for.
    interlock: Told,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
struct Choice {
    /// 0.
    index: u32,
    /// The answer.
    message: Message,
    /// Always null.
    logprobs: Option<bool>,
    /// `stop`, `length`, or what the back end says.
    finish_reason: String,
}

/// A message of the model.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ChatAnswer)]
struct Message {
    /// `assistant`.
    role: &'static str,
    /// Its text.
    content: String,
    /// Always null.
    refusal: Option<bool>,
}

/// Tokens.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(as = ChatUsage)]
struct Usage {
    /// Read.
    prompt_tokens: u32,
    /// Written.
    completion_tokens: u32,
    /// Both.
    total_tokens: u32,
}

/// What OpenAI's API has no place for.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ChatTold)]
pub(super) struct Told {
    /// The conversation under which the turn was seen on the bus, and kept, if it was.
    conversation: String,
    /// The configured name of the model that answered.
    name: String,
    /// Its back end.
    back_end: String,
    /// What people should know of it.
    notice: Option<String>,
    /// Models that were asked before and did not begin to answer.
    fallback: Vec<Tried>,
}

/// A model that did not begin to answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct Tried {
    /// Its configured name.
    model: String,
    /// Why, for programs.
    code: String,
    /// Why, for people.
    text: String,
}

/// A piece of an answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Chunk {
    /// The same in all pieces.
    id: String,
    /// `chat.completion.chunk`.
    object: &'static str,
    /// The same in all pieces.
    created: u64,
    /// The model that was asked for; in the last pieces the one that answered.
    model: String,
    /// One, or none in the piece about tokens.
    choices: Vec<Piece>,
    /// Null but in the piece about tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    /// In the piece with the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    interlock: Option<Told>,
}

/// More of one answer.
#[derive(Debug, Serialize, ToSchema)]
struct Piece {
    /// 0.
    index: u32,
    /// What is new.
    delta: Delta,
    /// Always null.
    logprobs: Option<bool>,
    /// Null until the end.
    finish_reason: Option<String>,
}

/// What is new.
#[derive(Debug, Default, Serialize, ToSchema)]
struct Delta {
    /// `assistant`, in the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// What all pieces of one answer have in common.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) id: String,
    pub(super) created: u64,
    /// The model that was asked for.
    pub(super) model: String,
    pub(super) with_usage: bool,
}

impl Frame {
    fn chunk(&self, delta: Delta, finish_reason: Option<String>) -> Chunk {
        Chunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.clone(),
            choices: vec![Piece { index: 0, delta, logprobs: None, finish_reason }],
            usage: self.with_usage.then_some(None),
            interlock: None,
        }
    }

    /// The first piece: who speaks.
    pub(super) fn first(&self) -> Chunk {
        self.chunk(Delta { role: Some("assistant"), content: Some(String::new()) }, None)
    }

    /// More text.
    pub(super) fn more(&self, text: String) -> Chunk {
        self.chunk(Delta { role: None, content: Some(text) }, None)
    }

    /// The end, and the piece about tokens if it is wanted.
    pub(super) fn last(&self, end: &TurnFinal) -> Vec<Chunk> {
        let completion = &end.completion;
        let model = completion.model.clone();
        let reason = Some(completion.finish_reason.clone());
        let interlock = Some(told(end));
        let end = Chunk { model: model.clone(), interlock, ..self.chunk(Delta::default(), reason) };
        let usage = self.with_usage.then(|| Chunk {
            model,
            choices: Vec::new(),
            usage: Some(usage(completion)),
            ..self.chunk(Delta::default(), None)
        });
        std::iter::once(end).chain(usage).collect()
    }

    /// The whole answer.
    pub(super) fn whole(&self, end: &TurnFinal) -> Completion {
        let message = Message { role: "assistant", content: end.text.clone(), refusal: None };
        let finish_reason = end.completion.finish_reason.clone();
        Completion {
            id: self.id.clone(),
            object: "chat.completion",
            created: self.created,
            model: end.completion.model.clone(),
            choices: vec![Choice { index: 0, message, logprobs: None, finish_reason }],
            usage: usage(&end.completion),
            interlock: told(end),
        }
    }
}

fn usage(completion: &CompletionFinal) -> Option<Usage> {
    completion.usage.map(|usage| Usage {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
    })
}

fn told(end: &TurnFinal) -> Told {
    let CompletionFinal { name, back_end, notice, fallback, .. } = &end.completion;
    let tried = |Fallback { model, code, text }: &Fallback| Tried {
        model: model.clone(),
        code: code.clone(),
        text: text.clone(),
    };
    Told {
        conversation: end.conversation.to_string(),
        name: name.clone(),
        back_end: back_end.clone(),
        notice: notice.clone(),
        fallback: fallback.iter().map(tried).collect(),
    }
}
