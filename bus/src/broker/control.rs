//! What the broker answers itself: requests on `$sys/broker/...`, as JSON.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    hub::Hub,
    ledger::{DROP_REASONS, RowKey},
    statistics::RATE_SECONDS,
};
use crate::{
    codec,
    envelope::{Header, Payload},
    limits,
    topic::{TopicFilter, TopicName},
};

/// Header and payload of the answer, or `None` if the topic is not the broker's.
pub(super) fn answer(hub: &Hub, topic: &TopicName, question: &[u8]) -> Option<(Bytes, Bytes)> {
    let value = match topic.as_str().strip_prefix("$sys/broker/")? {
        "info" => info(hub),
        "topics" => topics(hub),
        "history" => history(hub, question),
        "peers" => peers(hub),
        "subscriptions" => subscriptions(hub),
        "ledger" => ledger(hub),
        "refusals" => {
            json!({ "counts": hub.refusals.counts(), "last": hub.refusals.last().collect::<Vec<_>>() })
        }
        "events" => hub.events.as_json(),
        "denials" => json!(hub.denials.all()),
        "schemas" => schemas(hub),
        "gates" => hub.gates(),
        _ => return None,
    };
    let payload = Payload::json(&value).ok()?;
    let mut header = Vec::new();
    codec::put_header(&Header::for_payload(&payload), &mut header);
    Some((header.into(), payload.bytes))
}

fn info(hub: &Hub) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "epoch": hub.epoch,
        "started_ms": hub.started_ms,
        "now_ms": hub.now_ms,
        "sequence": hub.sequence,
        "sessions": hub.each_session().count(),
        "requests_in_flight": hub.requests.in_flight(),
        "retained": hub.retained.len(),
        "retained_full": hub.denials.retained_full_count(),
        "broker_key": hub.security.broker_key,
        "old_broker_keys": hub.old_keys(),
        "registry_problem": hub.security.registry_problem.as_ref().map(|(problem, at_ms)| {
            json!({ "error": problem, "at_ms": at_ms })
        }),
        "limits": {
            "payload_bytes_max": limits::PAYLOAD_BYTES_MAX,
            "send_queue_bytes": limits::SEND_QUEUE_BYTES,
            "send_queue_messages": limits::SEND_QUEUE_MESSAGES,
            "sessions_max": limits::SESSIONS_MAX,
        },
    })
}

fn topics(hub: &Hub) -> Value {
    let rates = hub.statistics.rates(hub.now_ms);
    let rows = hub.statistics.topics().iter().zip(rates).map(|(statistics, rates)| {
        let receivers = |serve: bool| -> Vec<String> {
            let Some(topic) = &statistics.topic else { return Vec::new() };
            let mut names: Vec<String> = hub
                .each_session()
                .filter(|(_, session)| {
                    session.lanes.iter().any(|lane| lane.serve == serve && lane.matches(topic))
                })
                .map(|(_, session)| session.info.peer.to_string())
                .collect();
            names.sort();
            names.dedup();
            names
        };
        let over = |rates: [f64; RATE_SECONDS.len()]| -> serde_json::Map<String, Value> {
            RATE_SECONDS
                .iter()
                .zip(rates)
                .map(|(seconds, rate)| (format!("{seconds}s"), rate.into()))
                .collect()
        };
        json!({
            "topic": statistics.topic.as_ref().map_or("(other)", TopicName::as_str),
            "messages": statistics.messages,
            "bytes": statistics.bytes,
            "requests": statistics.requests,
            "denied": statistics.denied,
            "largest": statistics.largest,
            "messages_per_second": over(rates.messages),
            "bytes_per_second": over(rates.bytes),
            "last_seen_ms": statistics.last_seen_ms,
            "publishers": statistics.publishers,
            "subscribers": receivers(false),
            "servers": receivers(true),
        })
    });
    Value::Array(rows.collect())
}

/// The past of topics, second by second. The question may hold `topic`, a filter, and `seconds`, how far back.
fn history(hub: &Hub, question: &[u8]) -> Value {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Question {
        topic: Option<TopicFilter>,
        seconds: Option<u64>,
    }
    let question: Question = match question {
        [] => Question::default(),
        text => match serde_json::from_slice(text) {
            Ok(question) => question,
            Err(error) => return json!({ "error": format!("the question cannot be read: {error}") }),
        },
    };
    let now = hub.now_ms / 1000;
    let seconds = question.seconds.unwrap_or(limits::HISTORY_SECONDS);
    let topics = hub.statistics.topics();
    let is_meant = |topic: usize| match (&question.topic, &topics[topic].topic) {
        (Some(filter), Some(topic)) => filter.matches(topic),
        (Some(_), None) => false,
        (None, _) => true,
    };
    let mut rows: Vec<_> =
        hub.statistics.since(now.saturating_sub(seconds)).filter(|(topic, _)| is_meant(*topic)).collect();
    rows.sort_by_key(|(topic, bucket)| (bucket.second, *topic));
    let left_out = rows.len().saturating_sub(limits::HISTORY_ROWS_ANSWERED_MAX);
    let rows = rows.iter().skip(left_out).map(|(topic, bucket)| {
        json!({
            "topic": topics[*topic].topic.as_ref().map_or("(other)", TopicName::as_str),
            "second": bucket.second,
            "messages": bucket.messages,
            "bytes": bucket.bytes,
        })
    });
    json!({ "now": now, "rows": rows.collect::<Vec<_>>(), "left_out": left_out })
}

fn peers(hub: &Hub) -> Value {
    let rows = hub.each_session().map(|(_, session)| {
        let queued: u64 = session.lanes.iter().map(|lane| lane.queue.depth()).sum();
        let queued_bytes: u64 = session.lanes.iter().map(|lane| lane.queue.depth_bytes()).sum();
        json!({
            "peer": session.info.peer,
            "kind": session.info.kind,
            "address": session.info.address,
            "program": session.program,
            "key": session.info.key.map(|key| key.to_string()),
            "broker_key": session.info.server_key.map(|_| match hub.uses_old_key(&session.info) {
                true => "old",
                false => "current",
            }),
            "connected_ms": session.opened_ms,
            "subscriptions": session.lanes.len(),
            "published": session.counts.published,
            "delivered": session.counts.delivered,
            "dropped": session.counts.dropped,
            "denied": session.counts.denied,
            "queued": queued,
            "queued_bytes": queued_bytes,
        })
    });
    Value::Array(rows.collect())
}

fn subscriptions(hub: &Hub) -> Value {
    let rows = hub.each_session().flat_map(|(_, session)| {
        session.lanes.iter().map(|lane| {
            json!({
                "peer": session.info.peer,
                "filter": lane.matcher.describe(),
                "serve": lane.serve,
                "group": lane.group,
                "overflow": lane.queue.overflow(),
                "queued": lane.queue.depth(),
                "queued_bytes": lane.queue.depth_bytes(),
            })
        })
    });
    Value::Array(rows.collect())
}

fn ledger(hub: &Hub) -> Value {
    let rows = hub.ledger.rows().map(|(RowKey { publisher, topic, subscriber }, counts)| {
        let reasons = DROP_REASONS.into_iter().filter(|reason| counts.dropped[*reason as usize] > 0);
        let dropped: serde_json::Map<String, Value> = reasons
            .filter_map(|reason| match serde_json::to_value(reason) {
                Ok(Value::String(name)) => Some((name, counts.dropped[reason as usize].into())),
                _ => None,
            })
            .collect();
        json!({
            "publisher": publisher,
            "topic": topic,
            "subscriber": subscriber,
            "published": counts.published,
            "delivered": counts.delivered,
            "queued": counts.queued,
            "denied": counts.denied,
            "dropped": dropped,
            "balances": counts.balances(),
        })
    });
    Value::Array(rows.collect())
}

fn schemas(hub: &Hub) -> Value {
    let rows = hub.schemas.iter().map(|(fingerprint, (name, format, body))| {
        json!({
            "fingerprint": fingerprint,
            "name": name,
            "format": format,
            "body": serde_json::from_slice::<Value>(body).unwrap_or_else(|_| String::from_utf8_lossy(body).into()),
        })
    });
    Value::Array(rows.collect())
}
