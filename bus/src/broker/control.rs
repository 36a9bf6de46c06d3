//! What the broker answers itself: requests on `$sys/broker/...`, as JSON.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    explain,
    hub::{Hub, Matcher},
    ledger::{DROP_REASONS, RowKey},
    overview,
    statistics::{RATE_SECONDS, Rates, TopicStatistics},
};
use crate::{
    codec,
    envelope::{Header, Payload},
    keys::Right,
    limits,
    peer::PeerName,
    topic::{TopicError, TopicFilter, TopicName},
};

/// Header and payload of the answer, or a sentence why the question cannot be answered; `None` if the topic is not
/// the broker's.
pub(super) fn answer(
    hub: &Hub,
    topic: &TopicName,
    question: &[u8],
) -> Option<Result<(Bytes, Bytes), String>> {
    let what = topic.as_str().strip_prefix("$sys/broker/")?;
    let value = match what {
        "info" => Ok(info(hub)),
        "topics" => Question::read(question).and_then(|question| topics(hub, &question)),
        "history" => Question::read(question).and_then(|question| history(hub, &question)),
        "topic" => Question::read(question).and_then(|question| explain::topic(hub, &question.topic()?)),
        "why" => Question::read(question).and_then(|question| explain::why(hub, &question)),
        "trace" => Question::read(question).and_then(|question| explain::path(hub, &question)),
        "overview" => Question::read(question).and_then(|question| overview::overview(hub, &question)),
        "peers" => Ok(peers(hub)),
        "subscriptions" => Ok(subscriptions(hub)),
        "ledger" => Ok(ledger(hub)),
        "refusals" => {
            Ok(json!({ "counts": hub.refusals.counts(), "last": hub.refusals.last().collect::<Vec<_>>() }))
        }
        "events" => Ok(hub.events.as_json()),
        "denials" => Ok(json!(hub.denials.all())),
        "schemas" => Ok(schemas(hub)),
        "gates" => Ok(hub.gates()),
        _ => return None,
    };
    Some(value.and_then(|value| {
        let payload = Payload::json(&value).map_err(|error| error.to_string())?;
        let mut header = Vec::new();
        codec::put_header(&Header::for_payload(&payload), &mut header);
        Ok((header.into(), payload.bytes))
    }))
}

/// What a request says beside its topic. Nothing at all is a question, too.
#[derive(Debug)]
pub(super) struct Question(Value);

impl Question {
    pub(super) fn read(payload: &[u8]) -> Result<Self, String> {
        if payload.is_empty() {
            return Ok(Self(Value::Null));
        }
        if payload.len() > limits::QUESTION_BYTES_MAX {
            let (bytes, limit) = (payload.len(), limits::QUESTION_BYTES_MAX);
            return Err(format!("the question has {bytes} bytes; the limit is {limit} bytes"));
        }
        let value = serde_json::from_slice(payload);
        value.map(Self).map_err(|error| format!("the question is not JSON: {error}"))
    }

    /// One from a value.
    #[cfg(test)]
    pub(super) fn of(value: Value) -> Self {
        Self(value)
    }

    fn text(&self, name: &str) -> Result<&str, String> {
        self.optional_text(name).ok_or_else(|| format!("the question names no `{name}`"))
    }

    pub(super) fn optional_text(&self, name: &str) -> Option<&str> {
        self.0[name].as_str()
    }

    /// Whether it says no to `name`.
    pub(super) fn is_false(&self, name: &str) -> bool {
        self.0[name] == false
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.0[name].as_u64()
    }

    pub(super) fn topic(&self) -> Result<TopicName, String> {
        self.text("topic")?.parse().map_err(|error: TopicError| error.to_string())
    }

    pub(super) fn peer(&self) -> Result<PeerName, String> {
        self.text("peer")?.parse().map_err(|error: crate::peer::PeerNameError| error.to_string())
    }

    pub(super) fn right(&self) -> Result<Right, String> {
        let text = self.text("operation")?;
        serde_json::from_value(text.into())
            .map_err(|_| format!("operation `{text}` is none of publish, subscribe, serve, request"))
    }

    /// The filter, if there is one.
    fn filter(&self, name: &str) -> Result<Option<TopicFilter>, String> {
        let text = self.0[name].as_str();
        text.map(|text| text.parse().map_err(|error: TopicError| error.to_string())).transpose()
    }
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
            "send_queue_bytes": hub.bounds.send_queue_bytes,
            "send_queue_messages": hub.bounds.send_queue_messages,
            "sessions_max": hub.bounds.sessions_max,
            "retained_bytes_max": hub.bounds.retained_bytes_max,
        },
    })
}

/// The name of a row of statistics.
pub(super) fn name_of(row: &TopicStatistics) -> &str {
    row.topic.as_ref().map_or("(other)", TopicName::as_str)
}

fn is_wanted(filter: Option<&TopicFilter>, row: &TopicStatistics) -> bool {
    filter.is_none_or(|filter| row.topic.as_ref().is_some_and(|topic| filter.matches(topic)))
}

/// Who gets what: each matcher once, with the names of those who have it.
pub(super) fn receivers(hub: &Hub, serve: bool) -> Vec<(&Matcher, BTreeSet<&PeerName>)> {
    let mut matchers: HashMap<String, (&Matcher, BTreeSet<&PeerName>)> = HashMap::new();
    for (_, session) in hub.each_session() {
        for lane in session.lanes.iter().filter(|lane| lane.serve == serve) {
            let entry = matchers.entry(lane.matcher.describe());
            entry.or_insert_with(|| (&lane.matcher, BTreeSet::new())).1.insert(&session.info.peer);
        }
    }
    matchers.into_values().collect()
}

/// Classes of sizes that occurred: the largest size of each, and how many there were.
pub(super) fn sizes(row: &TopicStatistics) -> Value {
    let classes = row.sizes.iter().enumerate().filter(|(_, count)| **count > 0);
    classes.map(|(class, count)| json!([(1u64 << class) - 1, count])).collect()
}

pub(super) fn publishers<'a>(hub: &'a Hub, row: &'a TopicStatistics) -> BTreeSet<&'a PeerName> {
    row.publishers.iter().filter_map(|origin| hub.peer_of_origin(*origin)).collect()
}

/// The rates of one topic, by the seconds they are averaged over: messages, and bytes.
pub(super) fn rates(rates: &Rates) -> [Value; 2] {
    let over = |pick: fn(&(f64, f64)) -> f64| -> serde_json::Map<String, Value> {
        let each = RATE_SECONDS.into_iter().zip(rates);
        each.map(|(seconds, rates)| (format!("{seconds}s"), pick(rates).into())).collect()
    };
    [over(|rates| rates.0).into(), over(|rates| rates.1).into()]
}

fn topics(hub: &Hub, question: &Question) -> Result<Value, String> {
    let filter = question.filter("topic")?;
    let (subscribers, servers) = (receivers(hub, false), receivers(hub, true));
    let all_rates = hub.statistics.rates(hub.now_ms);
    let rows = hub.statistics.topics().filter(|(_, row)| is_wanted(filter.as_ref(), row)).map(|(id, row)| {
        let names = |receivers: &[(&Matcher, BTreeSet<&PeerName>)]| -> BTreeSet<PeerName> {
            let Some(topic) = &row.topic else { return BTreeSet::new() };
            let matching = receivers.iter().filter(|(matcher, _)| matcher.matches(topic));
            matching.flat_map(|(_, names)| names.iter().map(|name| (*name).clone())).collect()
        };
        let [messages_per_second, bytes_per_second] = rates(&all_rates[id.0 as usize]);
        json!({
            "topic": name_of(row),
            "messages": row.messages,
            "bytes": row.bytes,
            "requests": row.requests,
            "denied": row.denied,
            "largest": row.largest,
            "sizes": sizes(row),
            "messages_per_second": messages_per_second,
            "bytes_per_second": bytes_per_second,
            "last_seen_ms": row.last_seen_ms,
            "publishers": publishers(hub, row),
            "more_publishers": row.has_more_publishers,
            "subscribers": names(&subscribers),
            "servers": names(&servers),
        })
    });
    Ok(rows.collect())
}

/// The past of topics, second by second. The question may hold `topic`, a filter, and `seconds`, how far back.
fn history(hub: &Hub, question: &Question) -> Result<Value, String> {
    let filter = question.filter("topic")?;
    let now = hub.now_ms / 1000;
    let seconds = question.number("seconds").unwrap_or(limits::HISTORY_SECONDS).min(limits::HISTORY_SECONDS);
    let wanted: HashMap<u32, &str> = hub
        .statistics
        .topics()
        .filter(|(_, row)| is_wanted(filter.as_ref(), row))
        .map(|(id, row)| (id.0, name_of(row)))
        .collect();
    let mut rows = Vec::new();
    hub.statistics.each_bucket(now.saturating_sub(seconds), now + 1, |second, topic, bucket| {
        rows.extend(wanted.get(&topic).map(|name| (second, *name, bucket)));
    });
    let left_out = rows.len().saturating_sub(limits::HISTORY_ROWS_ANSWERED_MAX);
    let rows = rows[left_out..].iter().map(|(second, topic, bucket)| {
        json!({
            "topic": topic, "second": second, "messages": bucket.messages, "bytes": bucket.bytes,
            "delay_mean_us": bucket.delay.map(|delay| delay.mean_us),
            "delay_max_us": bucket.delay.map(|delay| delay.max_us),
        })
    });
    Ok(json!({
        "now": now, "rows": rows.collect::<Vec<_>>(), "left_out": left_out,
        "complete_from": hub.statistics.complete_from(hub.started_ms, hub.now_ms),
    }))
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
                "queue_messages_max": lane.queue.bounds().0,
                "queue_bytes_max": lane.queue.bounds().1,
                "queued": lane.queue.depth(),
                "queued_bytes": lane.queue.depth_bytes(),
            })
        })
    });
    Value::Array(rows.collect())
}

fn ledger(hub: &Hub) -> Value {
    let rows = hub.ledger.rows().map(|(RowKey { publisher, topic, subscriber }, counts)| {
        json!({
            "publisher": publisher,
            "topic": topic,
            "subscriber": subscriber,
            "published": counts.published,
            "delivered": counts.delivered,
            "written": counts.written,
            "queued": counts.queued,
            "denied": counts.denied,
            "dropped": by_reason(&counts.dropped),
            "balances": counts.balances(),
        })
    });
    Value::Array(rows.collect())
}

/// Reasons with their counts, if there are any.
pub(super) fn by_reason(counts: &[u64; DROP_REASONS.len()]) -> Value {
    let lost = DROP_REASONS.into_iter().filter(|reason| counts[*reason as usize] > 0);
    let named = lost.filter_map(|reason| match serde_json::to_value(reason) {
        Ok(Value::String(name)) => Some((name, counts[reason as usize].into())),
        _ => None,
    });
    Value::Object(named.collect())
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
