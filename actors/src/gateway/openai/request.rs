//! What a chat completion is asked with, and what of it can be done. What cannot is refused by name.

use std::collections::BTreeMap;

use actix_web::http::StatusCode;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::super::{body::in_words, error::ApiError};
use crate::topics::{ChatInput, ChatMessage, CompletionOptions, ConversationId, Role};

/// The key of `metadata` that names the conversation under which a turn is kept.
const CONVERSATION: &str = "conversation";

/// Body of `POST /v1/chat/completions`.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ChatRequest {
    /// Which model; left out, the first one.
    pub(super) model: Option<String>,
    /// What was said so far, oldest first; one of them is a user's.
    #[schema(example = json!([{"role": "user", "content": "hello"}]))]
    messages: Vec<Message>,
    /// Whether the answer comes in pieces, as server-sent events.
    stream: Option<bool>,
    /// How it comes in pieces.
    stream_options: Option<StreamOptions>,
    /// Randomness.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f32>,
    /// Only the most likely tokens that together have this probability.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// Longest answer in tokens.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<u32>,
    /// The older name of `max_completion_tokens`.
    #[schema(minimum = 1)]
    max_tokens: Option<u32>,
    /// Texts before which the answer ends.
    stop: Option<Texts>,
    /// The same seed gives the same answer, where the back end can do that.
    seed: Option<i64>,
    /// Answers; one.
    #[schema(minimum = 1, maximum = 1)]
    n: Option<u32>,
    /// Keeps the last message and the answer in a conversation.
    store: Option<bool>,
    /// `conversation` names the one in which they are kept.
    metadata: Option<BTreeMap<String, String>>,
    /// Who asks, for the log.
    user: Option<String>,
    /// The newer name of `user`.
    safety_identifier: Option<String>,
    /// Everything else: refused, unless it asks for nothing.
    #[serde(flatten)]
    #[schema(ignore)]
    rest: Map<String, Value>,
}

/// One message.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ChatMessage)]
struct Message {
    /// `system` (or `developer`), `user` or `assistant`.
    role: String,
    /// A text, or a list of text parts.
    content: Option<Content>,
    #[serde(flatten)]
    #[schema(ignore)]
    rest: Map<String, Value>,
}

/// A text, or parts of one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
enum Content {
    /// The text.
    Text(String),
    /// Its parts, in order.
    Parts(Vec<Part>),
}

/// A part of a text.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ChatPart)]
struct Part {
    /// `text`.
    #[serde(rename = "type")]
    kind: String,
    /// The text.
    text: Option<String>,
}

/// One text or several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Texts {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// How an answer comes in pieces.
#[derive(Debug, Deserialize, ToSchema)]
struct StreamOptions {
    /// Whether one more piece says how many tokens there were.
    include_usage: Option<bool>,
    #[serde(flatten)]
    #[schema(ignore)]
    rest: Map<String, Value>,
}

/// How the answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Whole.
    Whole,
    /// In pieces, with a last one about tokens or without.
    Pieces { with_usage: bool },
}

/// Parameters that are known and not supported, and the values with which they ask for nothing.
fn asks_for_nothing(name: &str, value: &Value) -> Option<bool> {
    let is_empty =
        value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
    Some(match name {
        "tools" | "functions" | "logit_bias" => is_empty,
        "tool_choice" | "function_call" => value == "none",
        "parallel_tool_calls" | "prompt_cache_key" => true,
        "logprobs" => value == false,
        "top_logprobs" => value == 0,
        "presence_penalty" | "frequency_penalty" => value.as_f64() == Some(0.0),
        "response_format" => value.get("type").is_some_and(|kind| kind == "text"),
        "modalities" => value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text")),
        "service_tier" => value == "auto" || value == "default",
        "audio"
        | "prediction"
        | "reasoning_effort"
        | "verbosity"
        | "web_search_options"
        | "prompt_cache_retention"
        | "moderation" => false,
        // Of a message that a client gives back as it got it.
        "refusal" | "tool_calls" | "annotations" | "tool_call_id" | "name" => is_empty,
        "include_obfuscation" => value == false,
        _ => return None,
    })
}

/// A parameter that is wrong, or cannot be done.
pub(super) fn refuse(param: impl Into<String>, code: &str, text: String) -> ApiError {
    let status = StatusCode::BAD_REQUEST;
    ApiError::Parameter { status, param: param.into(), code: code.to_owned(), text }
}

/// Refuses whatever of `rest` asks for something; `place` stands in front of its names.
pub(super) fn nothing_more(rest: &Map<String, Value>, place: &str) -> Result<(), ApiError> {
    for (name, value) in rest.iter().filter(|(_, value)| !value.is_null()) {
        let param = format!("{place}{name}");
        match asks_for_nothing(name, value) {
            Some(true) => {}
            Some(false) => {
                let text = format!("`{param}` is not supported here; leave it out");
                return Err(refuse(param, "unsupported_parameter", text));
            }
            None => {
                let text = format!("unknown parameter `{param}`; leave it out");
                return Err(refuse(param, "unknown_parameter", text));
            }
        }
    }
    Ok(())
}

/// Reads JSON; the error names the parameter.
pub(super) fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // A list would be taken for the fields in the order of our code.
    if matches!(body.trim_ascii_start().first(), Some(b'[')) {
        return Err(ApiError::BadRequest("body is a list, and has to be an object".to_owned()));
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value: T = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let param = error.path().to_string();
        let text = in_words(&error.into_inner());
        match param.as_str() {
            "." | "?" => ApiError::BadRequest(format!("body is not as expected: {text}")),
            _ => refuse(param.clone(), "invalid_value", format!("`{param}` is not as expected: {text}")),
        }
    })?;
    let end = reader.end();
    end.map_err(|error| ApiError::BadRequest(format!("body does not end where its JSON does: {error}")))?;
    Ok(value)
}

impl ChatRequest {
    /// What the conversation engine is asked, and how the answer is wanted. `header` names a conversation, too.
    pub(super) fn into_input(self, header: Option<&str>) -> Result<(ChatInput, Wanted), ApiError> {
        nothing_more(&self.rest, "")?;
        if self.n.is_some_and(|n| n != 1) {
            let text = format!("`n` is {}; one answer is given to a request", self.n.unwrap_or_default());
            return Err(refuse("n", "unsupported_value", text));
        }
        let wanted = self.wanted()?;
        let (conversation, keep) = self.conversation(header)?;
        let options = self.options()?;
        let messages = self.messages.into_iter().enumerate();
        let messages: Vec<ChatMessage> =
            messages.map(|(place, message)| message.read(place)).collect::<Result<_, _>>()?;
        if !messages.iter().any(|message| message.role == Role::User && !message.text.is_empty()) {
            let text = "`messages` holds nothing that a user said; there is nothing to answer".to_owned();
            return Err(refuse("messages", "invalid_value", text));
        }
        Ok((ChatInput { conversation, turn: None, messages, options, keep }, wanted))
    }

    /// Who asks, as far as they say.
    pub(super) fn asker(&self) -> Option<&str> {
        self.safety_identifier.as_deref().or(self.user.as_deref())
    }

    fn wanted(&self) -> Result<Wanted, ApiError> {
        let in_pieces = self.stream.unwrap_or(false);
        let Some(options) = &self.stream_options else {
            return Ok(if in_pieces { Wanted::Pieces { with_usage: false } } else { Wanted::Whole });
        };
        if !in_pieces {
            let text = "`stream_options` is for `stream: true` only".to_owned();
            return Err(refuse("stream_options", "invalid_value", text));
        }
        nothing_more(&options.rest, "stream_options.")?;
        Ok(Wanted::Pieces { with_usage: options.include_usage.unwrap_or(false) })
    }

    fn conversation(&self, header: Option<&str>) -> Result<(Option<ConversationId>, bool), ApiError> {
        let of_metadata = self.metadata.iter().flatten().find(|(key, _)| *key == CONVERSATION);
        let named = match (of_metadata, header) {
            (Some((_, id)), _) => Some(("metadata.conversation", id.as_str())),
            (None, Some(id)) => Some(("X-Interlock-Conversation", id)),
            (None, None) => None,
        };
        let Some((param, id)) = named else { return Ok((None, self.store.unwrap_or(false))) };
        let id = id.parse().map_err(|error: crate::topics::ConversationIdError| {
            refuse(param, "invalid_value", format!("`{param}`: {error}"))
        })?;
        Ok((Some(id), self.store.unwrap_or(true)))
    }

    fn options(&self) -> Result<CompletionOptions, ApiError> {
        let within =
            |param: &str, value: Option<f32>, range: std::ops::RangeInclusive<f32>, words: &str| match value
                .filter(|value| !range.contains(value))
            {
                Some(value) => {
                    Err(refuse(param, "invalid_value", format!("`{param}` is {value}; allowed is {words}")))
                }
                None => Ok(value),
            };
        let temperature = within("temperature", self.temperature, 0.0..=2.0, "0 to 2")?;
        let top_p = within("top_p", self.top_p, f32::MIN_POSITIVE..=1.0, "more than 0, to 1")?;
        if let (Some(new), Some(old)) = (self.max_completion_tokens, self.max_tokens)
            && new != old
        {
            let text =
                format!("`max_tokens` is {old} and `max_completion_tokens` is {new}; give one of them");
            return Err(refuse("max_tokens", "invalid_value", text));
        }
        let tokens_max = self.max_completion_tokens.or(self.max_tokens);
        if tokens_max == Some(0) {
            let param =
                if self.max_completion_tokens.is_some() { "max_completion_tokens" } else { "max_tokens" };
            return Err(refuse(param, "invalid_value", format!("`{param}` is 0; allowed is 1 and more")));
        }
        let stop = match &self.stop {
            None => Vec::new(),
            Some(Texts::One(text)) => vec![text.clone()],
            Some(Texts::Several(texts)) => texts.clone(),
        };
        if stop.iter().any(String::is_empty) {
            let text = "`stop` has an empty text, before which every answer would end".to_owned();
            return Err(refuse("stop", "invalid_value", text));
        }
        let model = self.model.clone();
        Ok(CompletionOptions { model, temperature, tokens_max, top_p, stop, seed: self.seed })
    }
}

impl Message {
    fn read(self, place: usize) -> Result<ChatMessage, ApiError> {
        let place = format!("messages[{place}].");
        let role = match self.role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" | "function" => {
                let text = format!("`{place}role` is `{}`; tools are not supported here", self.role);
                return Err(refuse(format!("{place}role"), "unsupported_value", text));
            }
            other => {
                let text =
                    format!("`{place}role` is `{other}`; allowed are system, developer, user, assistant");
                return Err(refuse(format!("{place}role"), "invalid_value", text));
            }
        };
        nothing_more(&self.rest, &place)?;
        let text = match self.content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => parts
                .into_iter()
                .enumerate()
                .map(|(number, part)| part.read(&place, number))
                .collect::<Result<_, _>>()?,
            None if role == Role::Assistant => String::new(),
            None => {
                let text = format!("`{place}content` is missing");
                return Err(refuse(format!("{place}content"), "invalid_value", text));
            }
        };
        Ok(ChatMessage { role, text })
    }
}

impl Part {
    fn read(self, place: &str, number: usize) -> Result<String, ApiError> {
        let param = format!("{place}content[{number}]");
        match (self.kind.as_str(), self.text) {
            ("text", Some(text)) => Ok(text),
            ("text", None) => Err(refuse(
                param.clone(),
                "invalid_value",
                format!("`{param}` is of the type `text` and has none"),
            )),
            (kind, _) => {
                let text = format!("`{param}` is of the type `{kind}`; only `text` is supported here");
                Err(refuse(format!("{param}.type"), "unsupported_value", text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn input(body: &Value) -> Result<(ChatInput, Wanted), ApiError> {
        json::<ChatRequest>(body.to_string().as_bytes())?.into_input(None)
    }

    fn with(more: Value) -> Value {
        let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    }

    #[test]
    fn every_supported_parameter_reaches_the_engine() {
        let (input, wanted) = input(&json!({
            "model": "m", "temperature": 0.5, "top_p": 0.25, "max_completion_tokens": 7, "stop": "END", "seed": -3,
            "n": 1, "user": "ada", "stream": true, "stream_options": { "include_usage": true },
            "metadata": { "conversation": "kitchen", "other": "x" },
            "messages": [
                { "role": "developer", "content": "be brief" },
                { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] },
                { "role": "assistant", "content": "c", "refusal": null, "tool_calls": null, "annotations": [] },
                { "role": "user", "content": "d" },
            ],
            "tools": [], "logprobs": false, "response_format": { "type": "text" }, "presence_penalty": 0,
        }))
        .unwrap();
        let said: Vec<_> = input.messages.iter().map(|said| (said.role, said.text.as_str())).collect();
        let expected =
            [(Role::System, "be brief"), (Role::User, "ab"), (Role::Assistant, "c"), (Role::User, "d")];
        assert_eq!(said, expected);
        let options = CompletionOptions {
            model: Some("m".to_owned()),
            temperature: Some(0.5),
            top_p: Some(0.25),
            tokens_max: Some(7),
            stop: vec!["END".to_owned()],
            seed: Some(-3),
        };
        assert_eq!((input.options, wanted), (options, Wanted::Pieces { with_usage: true }));
        assert_eq!((input.conversation.unwrap().as_str(), input.keep), ("kitchen", true));
    }

    #[test]
    fn a_turn_is_kept_only_where_that_is_asked_for() {
        let kept = |more| input(&with(more)).unwrap().0;
        assert!(!kept(json!({})).keep && kept(json!({ "store": true })).keep);
        assert!(!kept(json!({ "store": false, "metadata": { "conversation": "a" } })).keep);
        let request: ChatRequest = json(with(json!({})).to_string().as_bytes()).unwrap();
        let (input, _) = request.into_input(Some("kitchen")).unwrap();
        assert_eq!((input.conversation.unwrap().as_str(), input.keep), ("kitchen", true));
    }

    #[test]
    fn what_cannot_be_done_is_refused_and_named() {
        let image =
            json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "x" } }] }]);
        let said = |role: &str| json!([{ "role": "user", "content": "a" }, { "role": role, "content": "b" }]);
        for (more, param) in [
            (json!({ "n": 2 }), "n"),
            (json!({ "tools": [{ "type": "function" }] }), "tools"),
            (json!({ "logprobs": true }), "logprobs"),
            (json!({ "presence_penalty": 0.5 }), "presence_penalty"),
            (json!({ "response_format": { "type": "json_object" } }), "response_format"),
            (json!({ "modalities": ["text", "audio"] }), "modalities"),
            (json!({ "temprature": 1 }), "temprature"),
            (json!({ "temperature": 3 }), "temperature"),
            (json!({ "temperature": "hot" }), "temperature"),
            (json!({ "top_p": 0 }), "top_p"),
            (json!({ "max_tokens": 0 }), "max_tokens"),
            (json!({ "max_tokens": -1 }), "max_tokens"),
            (json!({ "max_tokens": 1, "max_completion_tokens": 2 }), "max_tokens"),
            (json!({ "stop": ["a", ""] }), "stop"),
            (json!({ "stream_options": {} }), "stream_options"),
            (json!({ "stream": true, "stream_options": { "x": 1 } }), "stream_options.x"),
            (json!({ "metadata": { "conversation": "a b" } }), "metadata.conversation"),
            (json!({ "messages": [] }), "messages"),
            (json!({ "messages": "hi" }), "messages"),
            (json!({ "messages": image }), "messages[0].content[0].type"),
            (json!({ "messages": said("tool") }), "messages[1].role"),
            (json!({ "messages": said("robot") }), "messages[1].role"),
            (json!({ "messages": [{ "role": "user", "content": 1 }] }), "messages[0].content"),
            (json!({ "messages": [{ "role": "user", "content": "a", "name": "x" }] }), "messages[0].name"),
        ] {
            let error = input(&with(more.clone())).unwrap_err();
            let ApiError::Parameter { status, param: said, .. } = &error else { panic!("{more}: {error:?}") };
            assert_eq!((said.as_str(), status.as_u16()), (param, 400), "{error}");
            assert!(
                error.to_string().contains(&format!("`{}", param.split(['.', '[']).next().unwrap())),
                "{error}"
            );
        }
        for bad in ["", "[]", "{", "{\"messages\":[]} x", "{}"] {
            assert!(json::<ChatRequest>(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
