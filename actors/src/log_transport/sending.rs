//! What the drain says on the bus: where it listens, what it asks, how a record goes.

use std::{sync::Arc, time::Duration};

use interlock_bus::{
    Client, Header, Payload, PublishError, RequestError, SubscribeError, TopicName,
    client::{PublishOptions, SubscribeOptions, Subscription},
};
use uuid::Uuid;

use crate::{
    log_record::{Confirm, Confirmed, LogRecord, Probe, ProbeAnswer},
    topics,
};

/// How long the consumer may take to answer. Then it counts as lost and everything is proven again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Announcements of the consumer.
pub(super) async fn listen(client: Client) -> Result<Subscription, SubscribeError> {
    let filter = topics::filter(topics::LOG_CONSUMER_STATE);
    client.subscribe(&filter, SubscribeOptions::default()).await
}

/// Whether the consumer is there, and which.
pub(super) async fn probe(client: Client, probe: Uuid) -> Result<ProbeAnswer, RequestError> {
    ask(&client, topics::LOG_CONSUMER_PROBE, &Probe { probe }).await
}

/// Publishes a window in order, so that all of it is in the queue of this incarnation of the consumer. Another one does not
/// take it: it would be stored before what was sent to the first one and is lost.
pub(super) async fn publish(
    client: Client,
    consumer: Uuid,
    window: &[Arc<LogRecord>],
) -> Result<(), PublishError> {
    let Some((last, others)) = window.split_last() else { return Ok(()) };
    for record in others {
        let (topic, payload, options) = message(record, consumer);
        client.publish_waiting(&topic, payload, &options).await?;
    }
    let (topic, payload, options) = message(last, consumer);
    match client.publish_acknowledged(&topic, payload, options.clone()).await {
        Ok(_) => Ok(()),
        // No room for the question; the answer to the confirmation will do.
        Err(PublishError::Full { payload } | PublishError::Held { payload, .. }) => {
            client.publish_waiting(&topic, payload, &options).await
        }
        Err(error) => Err(error),
    }
}

/// Which of a published window are not in the store, and who says so.
pub(super) async fn confirm(
    client: Client,
    consumer: Uuid,
    ids: Vec<Uuid>,
) -> Result<Confirmed, RequestError> {
    ask(&client, topics::LOG_CONSUMER_CONFIRM, &Confirm { consumer, ids }).await
}

/// A record as it goes over the bus: JSON, so that every watcher of `logs/#` can read it.
fn message(record: &LogRecord, consumer: Uuid) -> (TopicName, Payload, PublishOptions) {
    let topic = record.topic().parse().unwrap_or_else(|_| topics::topic("logs/unknown/info"));
    // A record is made of strings and numbers, so it has a form in JSON; a text about it is better than none.
    let payload = Payload::json(record).unwrap_or_else(|_| Payload::text(record.message.clone()));
    let header = Header { correlation: Some(consumer), ..Header::with_id(record.id, &payload) };
    (topic, payload, PublishOptions { header: Some(header), ..PublishOptions::default() })
}

async fn ask<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
    client: &Client,
    topic: &'static str,
    question: &Q,
) -> Result<A, RequestError> {
    let topic = topics::topic(topic);
    let failed = |code: &str, text: String| RequestError::Failed { code: code.to_owned(), text };
    let payload = Payload::json(question).map_err(|error| failed("codec", error.to_string()))?;
    let answer = client.request(&topic, payload, ANSWER_TIMEOUT).await?;
    answer.decode().map_err(|error| failed("bad_answer", error.to_string()))
}
