//! The payloads' schemas, so that the bus tool can show what is written in bincode's format.

use std::sync::LazyLock;

use interlock_bus::{Client, CodecError, Payload, Schema};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    ChatMessage, CompletionDelta, CompletionFinal, CompletionOptions, CompletionPart, CompletionRequest,
    ModelDescription, ModelList, Role, TurnDelta, TurnError, TurnFinal, TurnPart, TurnStarted, Usage,
    UserInput,
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
    TurnStarted: {"struct": [["conversation", "string"], ["turn", "uuid"]]};
    TurnDelta: {"struct": [["conversation", "string"], ["turn", "uuid"], ["index", "u32"], ["text", "string"]]};
    TurnFinal: {"struct": [
        ["conversation", "string"], ["turn", "uuid"], ["text", "string"], ["deltas", "u32"],
        ["completion", CompletionFinal::fields()],
    ]};
    TurnError: {"struct": [["conversation", "string"], ["turn", "uuid"], ["code", "string"], ["text", "string"]]};
    TurnPart: {"enum": [
        ["started", TurnStarted::fields()], ["delta", TurnDelta::fields()], ["final", TurnFinal::fields()],
    ]};
    Role: {"enum": [["system", "unit"], ["user", "unit"], ["assistant", "unit"]]};
    ChatMessage: {"struct": [["role", Role::fields()], ["text", "string"]]};
    CompletionOptions: {"struct": [
        ["model", {"option": "string"}], ["temperature", {"option": "f32"}], ["tokens_max", {"option": "u32"}],
    ]};
    CompletionRequest: {"struct": [
        ["turn", "uuid"], ["messages", {"list": ChatMessage::fields()}], ["options", CompletionOptions::fields()],
    ]};
    CompletionPart: {"enum": [["delta", CompletionDelta::fields()], ["final", CompletionFinal::fields()]]};
    CompletionDelta: {"struct": [["index", "u32"], ["text", "string"]]};
    CompletionFinal: {"struct": [
        ["finish_reason", "string"], ["back_end", "string"], ["model", "string"],
        ["notice", {"option": "string"}], ["usage", {"option": Usage::fields()}],
    ]};
    Usage: {"struct": [["prompt_tokens", "u32"], ["completion_tokens", "u32"]]};
    ModelList: {"struct": [
        ["back_end", "string"], ["notice", {"option": "string"}], ["models", {"list": ModelDescription::fields()}],
    ]};
    ModelDescription: {"struct": [["id", "string"], ["default", "bool"]]};
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
        shown(&CompletionRequest { turn, messages: vec![message.clone(); 2], options: options.clone() });
        shown(&CompletionPart::Delta(piece.clone()));
        shown(&CompletionPart::Final(completion.clone()));
        let model = ModelDescription { id: "m".to_owned(), default: true };
        shown(&ModelList { back_end: "script".to_owned(), notice: None, models: vec![model.clone()] });
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
