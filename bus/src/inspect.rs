//! What the broker says of itself, put into the objects that the tool prints with `--json` and that the gateway answers
//! with. Whoever asks needs the right to request `$sys/broker/...`.

mod decode;
mod rates;
mod topics;

use std::time::Duration;

use serde_json::{Value, json};

pub use self::{
    decode::{Decoded, Schemas},
    rates::Flow,
    topics::{Only, OnlyError},
};
use crate::{
    client::Client,
    codec::CodecError,
    envelope::Payload,
    error::RequestError,
    keys::Right,
    peer::PeerName,
    topic::{TopicError, TopicFilter, TopicName},
};

/// How long the broker may take to answer. It answers from memory.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// The question has no topic.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// It was not answered.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The answer is of another version.
    #[error("the broker's answer: {0}")]
    Answer(CodecError),
}

/// Asks `$sys/broker/WHAT`; [`Value::Null`] is no question in particular.
///
/// # Errors
/// [`InspectError`].
pub async fn ask(client: &Client, what: &str, question: &Value) -> Result<Value, InspectError> {
    let payload = match question {
        Value::Null => Payload::default(),
        question => Payload::json(question).map_err(InspectError::Answer)?,
    };
    let topic: TopicName = format!("$sys/broker/{what}").parse()?;
    let message = client.request(&topic, payload, DEADLINE).await?;
    message.decode().map_err(InspectError::Answer)
}

/// Topics with their statistics and both ends, and behind them the filters for which nothing ever came: `bus topics`.
///
/// # Errors
/// [`InspectError`].
pub async fn topics(
    client: &Client,
    filter: Option<&TopicFilter>,
    only: Option<Only>,
) -> Result<Vec<Value>, InspectError> {
    let known = ask(client, "topics", &Value::Null).await?;
    let subscriptions = rows(ask(client, "subscriptions", &Value::Null).await?);
    let mut rows = judged(known, &subscriptions);
    rows.retain(|row| topics::is_wanted(row, filter, only));
    Ok(rows)
}

/// The name that is most like this one, if any is.
pub(crate) fn most_like<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    topics::most_like(name, names)
}

/// The broker's topics, each with what it lacks, and behind them the filters for which nothing ever came.
pub(crate) fn judged(known: Value, subscriptions: &[Value]) -> Vec<Value> {
    topics::judged(sorted_by(known, "topic"), subscriptions)
}

/// One topic, and everybody who has to do with it: `bus info`. The first object has the role `topic`, the others those
/// of `publisher`, `subscriber` and `server`. Of a topic that nobody has to do with there is nothing.
///
/// # Errors
/// [`InspectError`].
pub async fn topic(client: &Client, topic: &TopicName) -> Result<Vec<Value>, InspectError> {
    let mut answer = ask(client, "topic", &json!({ "topic": topic })).await?;
    let mut parts = Vec::new();
    for (role, field) in [("publisher", "publishers"), ("subscriber", "subscribers"), ("server", "servers")] {
        parts.extend(rows(answer[field].take()).into_iter().map(|mut peer| {
            peer["role"] = role.into();
            peer
        }));
    }
    if answer["statistics"].is_null() && parts.is_empty() && answer["retained"].is_null() {
        return Ok(parts);
    }
    let facts = json!({
        "role": "topic", "topic": topic, "statistics": answer["statistics"],
        "retained": answer["retained"], "held": answer["held"],
    });
    parts.insert(0, facts);
    Ok(parts)
}

/// Who is connected: `bus peers`.
///
/// # Errors
/// [`InspectError`].
pub async fn peers(client: &Client) -> Result<Vec<Value>, InspectError> {
    Ok(sorted_by(ask(client, "peers", &Value::Null).await?, "peer"))
}

/// Publishers that wait for their consumers: `bus gates`.
///
/// # Errors
/// [`InspectError`].
pub async fn gates(client: &Client) -> Result<Vec<Value>, InspectError> {
    Ok(sorted_by(ask(client, "gates", &Value::Null).await?, "topic"))
}

/// The rows of the ledger: `bus audit --all`.
///
/// # Errors
/// [`InspectError`].
pub async fn ledger(client: &Client) -> Result<Vec<Value>, InspectError> {
    Ok(sorted_by(ask(client, "ledger", &Value::Null).await?, "topic"))
}

/// Why a peer may or may not: `bus why`.
///
/// # Errors
/// [`InspectError`].
pub async fn why(
    client: &Client,
    peer: &PeerName,
    operation: Right,
    topic: &TopicName,
) -> Result<Value, InspectError> {
    let question = json!({ "peer": peer, "operation": operation, "topic": topic });
    ask(client, "why", &question).await
}

/// How much flowed within the last `seconds` on topics of any of the filters: `bus hz`.
///
/// # Errors
/// [`InspectError`].
pub async fn rates(client: &Client, filters: &[TopicFilter], seconds: u64) -> Result<Flow, InspectError> {
    let mut flow = Flow::nothing(seconds);
    for filter in filters {
        flow.add(&ask(client, "history", &json!({ "topic": filter, "seconds": seconds })).await?);
    }
    flow.sort();
    Ok(flow)
}

/// What was refused: `bus auth`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Refused {
    /// The last connections that were refused.
    pub connections: Vec<Value>,
    /// How many of each code, since the broker started.
    pub counts: Value,
    /// Operations of connected peers.
    pub operations: Vec<Value>,
}

/// What was refused: `bus auth`.
///
/// # Errors
/// [`InspectError`].
pub async fn refused(client: &Client) -> Result<Refused, InspectError> {
    let mut answer = ask(client, "refusals", &Value::Null).await?;
    let operations = rows(ask(client, "denials", &Value::Null).await?);
    Ok(Refused { connections: rows(answer["last"].take()), counts: answer["counts"].take(), operations })
}

/// What the broker noticed: `bus events`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Noticed {
    /// The last events, oldest first.
    pub events: Vec<Value>,
    /// Older ones that are forgotten.
    pub forgotten: u64,
    /// Copies that slow subscribers of the events have lost.
    pub lost: u64,
}

/// What the broker noticed: `bus events`.
///
/// # Errors
/// [`InspectError`].
pub async fn events(client: &Client) -> Result<Noticed, InspectError> {
    let mut answer = ask(client, "events", &Value::Null).await?;
    let events = rows(answer["last"].take());
    let number = |field: &str| answer[field].as_u64().unwrap_or_default();
    let forgotten = number("count").saturating_sub(events.len() as u64);
    Ok(Noticed { forgotten, lost: number("lost"), events })
}

fn rows(answer: Value) -> Vec<Value> {
    match answer {
        Value::Array(rows) => rows,
        _ => Vec::new(),
    }
}

/// The rows of an answer, sorted by a field.
fn sorted_by(answer: Value, field: &str) -> Vec<Value> {
    let mut rows = rows(answer);
    let text = |row: &Value| match &row[field] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    rows.sort_by_key(text);
    rows
}
