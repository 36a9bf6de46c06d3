//! The payloads' schemas, so that the bus tool can show what is written in bincode's format.

use std::sync::LazyLock;

use interlock_bus::{Client, CodecError, Payload, Schema};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Bucket, ChatInput, ChatMessage, CompletionDelta, CompletionFinal, CompletionOptions, CompletionPart,
    CompletionRequest, Distribution, Embeddings, EmbeddingsRequest, Fallback, ModelDescription, ModelFigures,
    ModelHealth, ModelList, ModelStatistics, Role, TurnDelta, TurnError, TurnFinal, TurnPart, TurnStarted,
    TurnsDeleted, Usage, UserInput,
};

/// A payload with a schema.
pub trait Described: Serialize {
    /// Its fields, in the form of [`interlock_bus::schema`].
    fn fields() -> Value;

    /// What stands in headers for its schema.
    fn fingerprint() -> u64;
}

/// Schemas of payloads: of each the type, and its fields.
macro_rules! described {
    ($($type:ident: $fields:tt;)+) => {
        $(impl Described for $type {
            fn fields() -> Value {
                json!($fields)
            }

            fn fingerprint() -> u64 {
                static FINGERPRINT: LazyLock<u64> = LazyLock::new(|| schema::<$type>(stringify!($type)).fingerprint());
                *FINGERPRINT
            }
        })+

        /// The schemas of all built-in payloads.
        pub fn schemas() -> Vec<Schema> {
            vec![$(schema::<$type>(stringify!($type))),+]
        }
    };
}

described! {
    UserInput: {"struct": [["conversation", {"option": "string"}], ["turn", {"option": "uuid"}], ["text", "string"]]};
    ChatInput: {"struct": [
        ["conversation", {"option": "string"}], ["turn", {"option": "uuid"}],
        ["messages", {"list": ChatMessage::fields()}], ["options", CompletionOptions::fields()], ["keep", "bool"],
    ]};
    TurnStarted: {"struct": [["conversation", "string"], ["turn", "uuid"]]};
    TurnDelta: {"struct": [["conversation", "string"], ["turn", "uuid"], ["index", "u32"], ["text", "string"]]};
    TurnFinal: {"struct": [
        ["conversation", "string"], ["turn", "uuid"], ["text", "string"], ["deltas", "u32"],
        ["completion", CompletionFinal::fields()],
    ]};
    TurnError: {"struct": [["conversation", "string"], ["turn", "uuid"], ["code", "string"], ["text", "string"]]};
    TurnsDeleted: {"struct": [["conversation", "string"]]};
    TurnPart: {"enum": [
        ["started", TurnStarted::fields()], ["delta", TurnDelta::fields()], ["final", TurnFinal::fields()],
    ]};
    Role: {"enum": [["system", "unit"], ["user", "unit"], ["assistant", "unit"]]};
    ChatMessage: {"struct": [["role", Role::fields()], ["text", "string"]]};
    CompletionOptions: {"struct": [
        ["model", {"option": "string"}], ["temperature", {"option": "f32"}], ["tokens_max", {"option": "u32"}],
        ["top_p", {"option": "f32"}], ["stop", {"list": "string"}], ["seed", {"option": "i64"}],
    ]};
    CompletionRequest: {"struct": [
        ["turn", "uuid"], ["messages", {"list": ChatMessage::fields()}], ["options", CompletionOptions::fields()],
    ]};
    CompletionPart: {"enum": [["delta", CompletionDelta::fields()], ["final", CompletionFinal::fields()]]};
    CompletionDelta: {"struct": [["index", "u32"], ["text", "string"]]};
    CompletionFinal: {"struct": [
        ["finish_reason", "string"], ["back_end", "string"], ["model", "string"],
        ["notice", {"option": "string"}], ["usage", {"option": Usage::fields()}],
        ["name", "string"], ["fallback", {"list": Fallback::fields()}],
    ]};
    Fallback: {"struct": [["model", "string"], ["code", "string"], ["text", "string"]]};
    Usage: {"struct": [["prompt_tokens", "u32"], ["completion_tokens", "u32"]]};
    ModelList: {"struct": [
        ["back_end", "string"], ["notice", {"option": "string"}], ["models", {"list": ModelDescription::fields()}],
        ["fallback", {"list": "string"}],
    ]};
    ModelDescription: {"struct": [
        ["id", "string"], ["default", "bool"], ["back_end", "string"], ["model", {"option": "string"}],
        ["embeddings", "bool"], ["health", ModelHealth::fields()],
    ]};
    ModelHealth: {"struct": [["state", "string"], ["since_ms", "u64"], ["reason", {"option": "string"}]]};
    EmbeddingsRequest: {"struct": [
        ["model", {"option": "string"}], ["inputs", {"list": "string"}], ["dimensions", {"option": "u32"}],
    ]};
    Embeddings: {"struct": [
        ["name", "string"], ["model", "string"], ["back_end", "string"], ["vectors", {"list": {"list": "f32"}}],
        ["prompt_tokens", {"option": "u32"}],
    ]};
    ModelStatistics: {"struct": [["models", {"list": ModelFigures::fields()}]]};
    ModelFigures: {"struct": [
        ["name", "string"], ["back_end", "string"], ["health", ModelHealth::fields()],
        ["running", "u64"], ["running_max", "u64"], ["waiting", "u64"], ["waiting_max", "u64"],
        ["finished", "u64"], ["failed", "u64"], ["cancelled", "u64"], ["refused", "u64"], ["retries", "u64"],
        ["passed_on", "u64"], ["stood_in", "u64"], ["prompt_tokens", "u64"], ["completion_tokens", "u64"],
        ["first_token_s", Distribution::fields()], ["tokens_per_s", Distribution::fields()],
        ["waited_s", Distribution::fields()],
    ]};
    Distribution: {"struct": [
        ["count", "u64"], ["sum", "f64"], ["p50", {"option": "f64"}], ["p99", {"option": "f64"}],
        ["buckets", {"list": Bucket::fields()}],
    ]};
    Bucket: {"struct": [["at_most", "f64"], ["count", "u64"]]};
}

fn schema<T: Described>(name: &str) -> Schema {
    Schema::from_value(name, &T::fields()).expect("schemas in this file are valid; a test reads each")
}

/// Tells the broker what the built-in payloads look like.
pub fn register(client: &Client) {
    for schema in schemas() {
        client.register_schema(&schema);
    }
}

/// A payload in bincode's format that names its schema.
pub fn encode<T: Described>(value: &T) -> Result<Payload, CodecError> {
    Payload::encode(value).map(|payload| Payload { schema: Some(T::fingerprint()), ..payload })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn shown<T: Described>(value: &T) {
        let payload = encode(value).unwrap();
        let schema =
            schemas().into_iter().find(|schema| Some(schema.fingerprint()) == payload.schema).unwrap();
        assert!(std::any::type_name::<T>().ends_with(schema.name()));
        assert_eq!(schema.decode(&payload.bytes).unwrap(), serde_json::to_value(value).unwrap());
    }

    #[test]
    fn every_payload_is_shown_as_serde_would_show_it() {
        let (conversation, turn) =
            ("kitchen".parse::<super::super::ConversationId>().unwrap(), Uuid::now_v7());
        let text = "gr\u{fc}n".to_owned();
        shown(&UserInput { conversation: Some(conversation.clone()), turn: None, text: text.clone() });
        let started = TurnStarted { conversation: conversation.clone(), turn };
        let delta = TurnDelta { conversation: conversation.clone(), turn, index: 7, text: text.clone() };
        let usage = Usage { prompt_tokens: 1, completion_tokens: 2 };
        let completion = CompletionFinal {
            finish_reason: "stop".to_owned(),
            back_end: "script".to_owned(),
            model: "m".to_owned(),
            notice: Some("n".to_owned()),
            usage: Some(usage),
            name: "big".to_owned(),
            fallback: vec![Fallback { model: "m".to_owned(), code: "c".to_owned(), text: "t".to_owned() }],
        };
        let last = TurnFinal {
            conversation: conversation.clone(),
            turn,
            text: text.clone(),
            deltas: 3,
            completion: completion.clone(),
        };
        shown(&TurnError { conversation, turn, code: "busy".to_owned(), text: text.clone() });
        for part in [
            TurnPart::Started(started.clone()),
            TurnPart::Delta(delta.clone()),
            TurnPart::Final(last.clone()),
        ] {
            shown(&part);
        }
        let (message, piece) = (ChatMessage::new(Role::System, "x"), CompletionDelta { index: 0, text });
        let options = CompletionOptions { temperature: Some(0.5), ..Default::default() };
        shown(&ChatInput {
            conversation: None,
            turn: Some(turn),
            messages: vec![message.clone()],
            options: options.clone(),
            keep: true,
        });
        shown(&CompletionRequest { turn, messages: vec![message.clone(); 2], options: options.clone() });
        shown(&CompletionPart::Delta(piece.clone()));
        shown(&CompletionPart::Final(completion.clone()));
        let health = ModelHealth { state: "ok".to_owned(), since_ms: 7, reason: Some("r".to_owned()) };
        let model = ModelDescription { id: "m".to_owned(), default: true, ..ModelDescription::default() };
        let fallback = vec!["m".to_owned()];
        shown(&ModelList {
            back_end: "script".to_owned(),
            notice: None,
            models: vec![model.clone()],
            fallback,
        });
        shown(&EmbeddingsRequest { inputs: vec!["a".to_owned()], ..EmbeddingsRequest::default() });
        shown(&Embeddings { vectors: vec![vec![0.5, 1.0]], ..Embeddings::default() });
        let bucket = Bucket { at_most: 0.5, count: 2 };
        let spread =
            Distribution { p50: Some(0.5), buckets: vec![bucket.clone()], ..Distribution::default() };
        let figures = ModelFigures { first_token_s: spread.clone(), ..ModelFigures::default() };
        shown(&ModelStatistics { models: vec![figures.clone()] });
        shown(&(health));
        shown(&(bucket));
        shown(&(spread));
        shown(&(figures));
        shown(&completion.fallback[0]);
        shown(&(started));
        shown(&(delta));
        shown(&(last));
        shown(&(completion));
        shown(&(usage));
        shown(&(message));
        shown(&(piece));
        shown(&(options));
        shown(&(model));
        shown(&Role::Assistant);
    }
}
