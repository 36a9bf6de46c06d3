//! What is said on a socket: orders of the client, words of the server, as JSON.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::gateway::{
    body::in_words,
    bus::{
        message::Published,
        publish::{Accepted, NewPublish},
        request::{NewRequest, Part},
    },
    error::ApiError,
};

/// An order of the client. All but `hello` and `ping` have an id of the client's choice.
#[derive(Debug)]
pub(super) enum Order {
    /// Who the client is; the first message if no header said it.
    Hello { token: String },
    /// Messages of a filter, from now on.
    Subscribe(Filter),
    /// No more of them.
    Unsubscribe,
    /// A message.
    Publish(Box<NewPublish>),
    /// A question.
    Request(NewRequest),
    /// No more of its answer.
    Cancel,
    /// Whether the server is there.
    Ping,
}

/// What is subscribed to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    pub(super) filter: String,
    /// Whether the topics' last values come first.
    #[serde(default)]
    pub(super) retained: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hello {
    token: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// What the server says.
#[derive(Debug, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(super) enum Word {
    /// The client is known: as which peer.
    Welcome { peer: String },
    /// Messages come from now on.
    Subscribed { id: u64 },
    /// No more come.
    Unsubscribed { id: u64 },
    /// A message.
    Message {
        id: u64,
        #[serde(flatten)]
        message: Box<Published>,
    },
    /// Messages did not come, at this place.
    Lost { id: u64, count: Option<u64>, reason: String },
    /// What became of a published message.
    Published {
        id: u64,
        #[serde(flatten)]
        accepted: Accepted,
    },
    /// A part of an answer.
    Reply {
        id: u64,
        #[serde(flatten)]
        part: Part,
    },
    /// The answer is whole.
    End { id: u64 },
    /// The request was cancelled, as ordered.
    Cancelled { id: u64 },
    /// An order was not carried out, or ended otherwise than it should.
    Error { id: Option<u64>, code: String, message: String },
    /// The server is there.
    Pong {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
    },
}

impl Word {
    pub(super) fn error(id: Option<u64>, error: &ApiError) -> Self {
        Self::Error { id, code: error.code().to_owned(), message: error.to_string() }
    }
}

/// Reads an order; the error has the id if there was one.
pub(super) fn read(text: &str) -> Result<(Option<u64>, Order), (Option<u64>, ApiError)> {
    let bad = |id, problem: String| (id, ApiError::BadRequest(problem));
    let mut fields: Map<String, Value> = serde_json::from_str(text)
        .map_err(|error| bad(None, format!("the message is no JSON object: {}", in_words(&error))))?;
    let id = match fields.remove("id") {
        None => None,
        Some(id) => {
            let number = id
                .as_u64()
                .ok_or_else(|| bad(None, format!("`id` is `{id}`; it has to be a number from 0 on")))?;
            Some(number)
        }
    };
    let op = fields.remove("op");
    let Some(op) = op.as_ref().and_then(Value::as_str) else {
        return Err(bad(id, "`op` is missing, or no text".to_owned()));
    };
    let order = match op {
        "hello" => rest::<Hello>(fields).map(|hello| Order::Hello { token: hello.token }),
        "subscribe" => rest(fields).map(Order::Subscribe),
        "unsubscribe" => rest::<Nothing>(fields).map(|Nothing {}| Order::Unsubscribe),
        "publish" => rest(fields).map(Order::Publish),
        "request" => rest(fields).map(Order::Request),
        "cancel" => rest::<Nothing>(fields).map(|Nothing {}| Order::Cancel),
        "ping" => rest::<Nothing>(fields).map(|Nothing {}| Order::Ping),
        other => Err(format!(
            "`{}` is no `op`; hello, subscribe, unsubscribe, publish, request, cancel and ping are",
            other.chars().take(32).collect::<String>().escape_debug()
        )),
    };
    Ok((id, order.map_err(|problem| bad(id, problem))?))
}

fn rest<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<T, String> {
    serde_json::from_value(Value::Object(fields)).map_err(|error| in_words(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_an_op_an_id_and_nothing_that_it_does_not_know() {
        let (id, order) = read(r#"{"op":"subscribe","id":7,"filter":"a/#"}"#).unwrap();
        assert!(matches!((id, order), (Some(7), Order::Subscribe(Filter { retained: false, .. }))));
        let publish = r#"{"op":"publish","id":1,"topic":"a","payload":{"x":1},"retain":true}"#;
        assert!(matches!(read(publish), Ok((Some(1), Order::Publish(publish))) if publish.retain));
        for (bad, id, says) in [
            ("[]", None, "no JSON object"),
            ("{", None, "no JSON object"),
            (r#"{"id":1}"#, Some(1), "`op`"),
            (r#"{"op":3,"id":1}"#, Some(1), "`op`"),
            (r#"{"op":"fly","id":1}"#, Some(1), "`fly`"),
            (r#"{"op":"ping","id":-1}"#, None, "`id`"),
            (r#"{"op":"ping","id":"1"}"#, None, "`id`"),
            (r#"{"op":"subscribe","id":1}"#, Some(1), "filter"),
            (r#"{"op":"subscribe","id":1,"filter":"a","filtr":"b"}"#, Some(1), "filtr"),
            (r#"{"op":"cancel","id":1,"why":"x"}"#, Some(1), "why"),
        ] {
            let (found, error) = read(bad).map(drop).unwrap_err();
            assert_eq!(found, id, "{bad}");
            assert!(error.to_string().contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn deep_json_is_refused_and_does_no_harm() {
        let deep = format!(
            r#"{{"op":"publish","id":1,"topic":"a","payload":{}{}}}"#,
            "[".repeat(5000),
            "]".repeat(5000)
        );
        assert!(read(&deep).is_err());
    }
}
