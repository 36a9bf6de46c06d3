//! `GET /metrics`: the numbers of broker, components, log path, outbox, store and gateway, for Prometheus. They are asked for when
//! somebody looks; a part that does not answer is missing, and said to be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, HeaderValue},
    web,
};
use interlock_bus::{Client, Payload, TopicName, durable::OutboxReport};
use serde_json::Value;
use utoipa::OpenApi;

use super::{
    Shared,
    access::{Access, Scope},
    error::ApiError,
    exposition::{Exposition, Kind},
    server::{Data, resource},
    tokens::now_ms,
};
use crate::{
    log_transport::{buffer::BufferReport, journal::JournalReport},
    store::outbox::desk::Standing,
    topics::{self, Distribution, ModelFigures, ModelStatistics},
};

/// The interface of this file.
#[derive(OpenApi)]
#[openapi(paths(metrics))]
pub(super) struct Api;

/// Topics and peers that have numbers of their own; the others are one.
const NAMED_MAX: usize = 100;

/// How long a part may take to say its numbers.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// What is counted together.
const OTHER: &str = "(other)";

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Numbers that are in this process and not on the bus.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// The buffer of the log path.
    pub log: BufferReport,
    /// Its journal, if it has one.
    pub journal: Option<JournalReport>,
    /// The outbox, once it has looked.
    pub outbox: Option<(Standing, OutboxReport)>,
}

/// Topics that have been named: they stay, so that a counter never falls because another topic has become louder.
#[derive(Default)]
pub(super) struct NamedTopics(Mutex<BTreeSet<String>>);

impl fmt::Debug for NamedTopics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("NamedTopics")
    }
}

impl NamedTopics {
    /// Those among `rows`; whoever is loudest gets the places that are left.
    fn choose(&self, rows: &[Value]) -> BTreeSet<String> {
        // No code that can panic runs under this lock.
        let mut named = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut loudest: Vec<&Value> = rows.iter().collect();
        loudest.sort_by_key(|row| std::cmp::Reverse(number(&row["messages"])));
        let there: BTreeSet<&str> = rows.iter().filter_map(|row| row["topic"].as_str()).collect();
        named.retain(|topic| there.contains(topic.as_str()));
        for topic in loudest.iter().filter_map(|row| row["topic"].as_str()) {
            if named.len() >= NAMED_MAX {
                break;
            }
            if topic != OTHER {
                named.insert(topic.to_owned());
            }
        }
        named.clone()
    }
}

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config.service(resource("/metrics", "GET").route(web::get().to(metrics)));
}

/// All numbers, as text for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "metrics", responses((status = 200, content_type = "text/plain", body = String)))]
async fn metrics(access: Access, shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Metrics)?;
    let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let open_metrics = accept.is_some_and(|accept| accept.contains("application/openmetrics-text"));
    let mut to = Exposition::new(open_metrics);
    write_all(&shared, &mut to).await;
    let content_type = HeaderValue::from_static(if open_metrics { OPEN_METRICS } else { TEXT });
    Ok(HttpResponse::Ok().insert_header((header::CONTENT_TYPE, content_type)).body(to.finish()))
}

async fn write_all(shared: &Shared, to: &mut Exposition) {
    let broker = |what: &str| {
        let topic = format!("$sys/broker/{what}").parse();
        async move { ask(&shared.client, &topic.ok()?).await }
    };
    let tree = async { ask(&shared.client, shared.options.load_topic.as_ref()?).await };
    let models = ask_models(&shared.client);
    let (info, ledger, topics, peers, refusals, tree, models) = futures_util::join!(
        broker("info"),
        broker("ledger"),
        broker("topics"),
        broker("peers"),
        broker("refusals"),
        tree,
        models
    );
    let mut build = to.family("interlock_build_info", Kind::Gauge, "Always 1; the version is in the label.");
    build.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    let is_whole = [&info, &ledger, &topics, &peers, &refusals].iter().all(|part| part.is_some());
    let mut up = to.family("interlock_scrape_up", Kind::Gauge, "Whether a part has said its numbers.");
    up.sample(&[("part", "broker")], u8::from(is_whole));
    up.sample(&[("part", "runtime")], u8::from(tree.is_some()));
    up.sample(&[("part", "model")], u8::from(models.is_some()));
    if let Some(info) = info {
        write_broker(&info, to);
    }
    if let Some(Value::Array(rows)) = ledger {
        write_ledger(&rows, to);
    }
    if let Some(Value::Array(rows)) = topics {
        write_topics(&rows, &shared.named_topics.choose(&rows), to);
    }
    if let Some(Value::Array(rows)) = peers {
        write_peers(&rows, to);
    }
    if let Some(Value::Object(counts)) = refusals.map(|answer| answer["counts"].clone()) {
        let mut family = to.family(
            "interlock_bus_refusals",
            Kind::Counter,
            "Connections that the broker has refused, by reason.",
        );
        for (code, count) in &counts {
            family.sample(&[("code", code)], number(count));
        }
    }
    if let Some(children) = tree.as_ref().and_then(|tree| tree["tree"]["children"].as_array()) {
        write_components(children, to);
    }
    if let Some(models) = models {
        write_models(&models, to);
    }
    let numbers = (shared.options.numbers)();
    write_log(&numbers, to);
    write_outbox(numbers.outbox.as_ref(), to);
    write_store(shared, to);
    let streams = shared.options.streams_max - shared.streams.available_permits();
    to.one("interlock_gateway_streams", Kind::Gauge, "Answers that are being streamed.", streams);
    shared.traffic.write(to);
}

/// What somebody says of itself; `None` if it does not.
async fn ask(client: &Client, topic: &TopicName) -> Option<Value> {
    let answer = client.request(topic, Payload::bytes(Vec::new()), ASK_TIMEOUT).await;
    let read = answer.map_err(|error| error.to_string());
    match read.and_then(|message| message.decode().map_err(|error| error.to_string())) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(%topic, error, "numbers are missing from the metrics");
            None
        }
    }
}

/// What the model service says of each model.
async fn ask_models(client: &Client) -> Option<ModelStatistics> {
    let topic = topics::topic(topics::MODEL_STATISTICS);
    let answer = client.request(&topic, Payload::bytes(Vec::new()), ASK_TIMEOUT).await.ok()?;
    topics::read(&answer).ok()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn write_broker(info: &Value, to: &mut Exposition) {
    for (name, field, help) in [
        ("interlock_bus_sessions", "sessions", "Open sessions."),
        ("interlock_bus_requests_in_flight", "requests_in_flight", "Requests that are not answered yet."),
        ("interlock_bus_retained_messages", "retained", "Last values that are kept for late subscribers."),
    ] {
        to.one(name, Kind::Gauge, help, number(&info[field]));
    }
    let started = number(&info["started_ms"]) as f64 / 1000.0;
    to.one(
        "interlock_bus_start_time_seconds",
        Kind::Gauge,
        "When the broker was started, Unix time.",
        started,
    );
}

fn write_ledger(rows: &[Value], to: &mut Exposition) {
    let sum = |field: &str| rows.iter().map(|row| number(&row[field])).sum::<u64>();
    for (name, field, help) in [
        (
            "interlock_bus_published",
            "published",
            "Copies of messages, one for each subscriber, or one if there was none.",
        ),
        ("interlock_bus_delivered", "delivered", "Copies that were handed to their subscriber's connection."),
        ("interlock_bus_written", "written", "Copies that were written to their subscriber's connection."),
        ("interlock_bus_denied", "denied", "Copies that were not permitted."),
    ] {
        to.one(name, Kind::Counter, help, sum(field));
    }
    to.one("interlock_bus_queued", Kind::Gauge, "Copies that wait for their subscriber.", sum("queued"));
    let mut dropped: BTreeMap<&str, u64> = BTreeMap::new();
    for (reason, count) in rows.iter().filter_map(|row| row["dropped"].as_object()).flatten() {
        *dropped.entry(reason).or_default() += number(count);
    }
    let mut family =
        to.family("interlock_bus_dropped", Kind::Counter, "Copies that were dropped, by reason.");
    for (reason, count) in dropped {
        family.sample(&[("reason", reason)], count);
    }
    let unbalanced = rows.iter().filter(|row| row["balances"] != true).count();
    let help =
        "Rows of the ledger whose sums do not add up: published = delivered + queued + dropped + denied.";
    to.one("interlock_bus_ledger_unbalanced", Kind::Gauge, help, unbalanced);
}

fn write_topics(rows: &[Value], named: &BTreeSet<String>, to: &mut Exposition) {
    for (name, field, help) in [
        ("interlock_bus_topic_messages", "messages", "Messages and requests, by topic."),
        ("interlock_bus_topic_bytes", "bytes", "Bytes of payloads, by topic."),
        ("interlock_bus_topic_denied", "denied", "Messages refused to their publishers, by topic."),
    ] {
        let mut family = to.family(name, Kind::Counter, help);
        let mut others = 0;
        for row in rows {
            match row["topic"].as_str().filter(|topic| named.contains(*topic)) {
                Some(topic) => family.sample(&[("topic", topic)], number(&row[field])),
                None => others += number(&row[field]),
            }
        }
        family.sample(&[("topic", OTHER)], others);
    }
    to.one("interlock_bus_topics", Kind::Gauge, "Topics that the broker knows.", rows.len());
}

fn write_peers(rows: &[Value], to: &mut Exposition) {
    let mut each: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    for row in rows {
        let sums = each.entry(row["peer"].as_str().unwrap_or(OTHER)).or_default();
        sums[0] += number(&row["queued"]);
        sums[1] += number(&row["queued_bytes"]);
    }
    let mut longest: Vec<(&str, [u64; 2])> = each.into_iter().collect();
    longest.sort_by_key(|(_, sums)| std::cmp::Reverse(*sums));
    for (place, name, help) in [
        (0, "interlock_bus_peer_queued_messages", "What waits for a peer, all sessions."),
        (1, "interlock_bus_peer_queued_bytes", "Bytes of what waits for a peer, all sessions."),
    ] {
        let mut family = to.family(name, Kind::Gauge, help);
        let mut others = 0;
        for (rank, (peer, sums)) in longest.iter().enumerate() {
            match rank < NAMED_MAX {
                true => family.sample(&[("peer", peer)], sums[place]),
                false => others += sums[place],
            }
        }
        family.sample(&[("peer", OTHER)], others);
    }
}

fn write_components(children: &[Value], to: &mut Exposition) {
    let mut each = |name: &str, kind: Kind, help: &str, value: &dyn Fn(&Value) -> Option<f64>| {
        let mut family = to.family(name, kind, help);
        for child in children {
            if let (Some(component), Some(value)) = (child["name"].as_str(), value(child)) {
                family.sample(&[("component", component)], value);
            }
        }
    };
    let of = |field: &'static str| move |child: &Value| child[field].as_f64();
    let load = |field: &'static str| move |child: &Value| child["load"][field].as_f64();
    let seconds = |field: &'static str| move |child: &Value| child["load"][field].as_f64().map(|us| us / 1e6);
    each("interlock_component_up", Kind::Gauge, "Whether a component does all it should.", &|child| {
        Some(f64::from(u8::from(child["state"] == "running")))
    });
    each("interlock_component_restarts", Kind::Counter, "Starts after the first.", &of("restarts"));
    each("interlock_component_queued", Kind::Gauge, "Inputs in the mailbox.", &of("queued"));
    each("interlock_component_queued_bytes", Kind::Gauge, "Bytes in the mailbox.", &load("queued_bytes"));
    each("interlock_component_handled", Kind::Counter, "Inputs handled.", &load("handled"));
    let p50 = "Half of the inputs of the last minutes took at most this.";
    each("interlock_component_handler_p50_seconds", Kind::Gauge, p50, &seconds("handler_p50_us"));
    let p99 = "99 of 100 inputs of the last minutes took at most this.";
    each("interlock_component_handler_p99_seconds", Kind::Gauge, p99, &seconds("handler_p99_us"));
    each(
        "interlock_component_memory_bytes",
        Kind::Gauge,
        "Resident memory of its processes.",
        &load("memory_bytes"),
    );
    let mut family =
        to.family("interlock_component_state", Kind::Gauge, "Always 1; the state is in the label.");
    for child in children {
        if let (Some(component), Some(state)) = (child["name"].as_str(), child["state"].as_str()) {
            family.sample(&[("component", component), ("state", state)], 1);
        }
    }
}

fn write_models(statistics: &ModelStatistics, to: &mut Exposition) {
    let models = &statistics.models;
    let mut each = |name: &str, kind: Kind, help: &str, value: &dyn Fn(&ModelFigures) -> u64| {
        let mut family = to.family(name, kind, help);
        for model in models {
            family.sample(&[("model", &model.name), ("back_end", &model.back_end)], value(model));
        }
    };
    each("interlock_model_up", Kind::Gauge, "Whether a model answered at last contact.", &|model| {
        u64::from(model.health.state == "ok")
    });
    each("interlock_model_running", Kind::Gauge, "Requests that run.", &|model| model.running);
    each("interlock_model_waiting", Kind::Gauge, "Requests that wait for their turn.", &|model| {
        model.waiting
    });
    each("interlock_model_finished", Kind::Counter, "Requests that came to their end.", &|model| {
        model.finished
    });
    each("interlock_model_failed", Kind::Counter, "Requests that ended in an error.", &|model| model.failed);
    each("interlock_model_cancelled", Kind::Counter, "Requests that were cancelled.", &|model| {
        model.cancelled
    });
    each("interlock_model_refused", Kind::Counter, "Requests that found no place to wait.", &|model| {
        model.refused
    });
    each("interlock_model_retries", Kind::Counter, "Times that a server was asked again.", &|model| {
        model.retries
    });
    each("interlock_model_passed_on", Kind::Counter, "Requests that went on to another model.", &|model| {
        model.passed_on
    });
    each("interlock_model_prompt_tokens", Kind::Counter, "Tokens read.", &|model| model.prompt_tokens);
    each("interlock_model_completion_tokens", Kind::Counter, "Tokens written.", &|model| {
        model.completion_tokens
    });
    let mut spread = |name: &str, help: &str, of: &dyn Fn(&ModelFigures) -> &Distribution| {
        let mut family = to.family(name, Kind::Histogram, help);
        for model in models {
            family.distribution(&[("model", &model.name), ("back_end", &model.back_end)], of(model));
        }
    };
    let help = "Time from a request to the first piece of its answer.";
    spread("interlock_model_first_token_seconds", help, &|model| &model.first_token_s);
    let help = "Tokens a second from the first piece to the last.";
    spread("interlock_model_tokens_per_second", help, &|model| &model.tokens_per_s);
    spread("interlock_model_waited_seconds", "How long requests waited for their turn.", &|model| {
        &model.waited_s
    });
}

fn write_log(numbers: &Numbers, to: &mut Exposition) {
    let log = &numbers.log;
    for (name, help, count) in [
        (
            "interlock_log_records_accepted",
            "Log records raised in the runtime, dropped ones included.",
            log.accepted,
        ),
        ("interlock_log_records_flushed", "Log records whose storing was confirmed.", log.flushed),
        ("interlock_log_records_spilled", "Log records that went to the journal.", log.spilled),
    ] {
        to.one(name, Kind::Counter, help, count);
    }
    let mut dropped =
        to.family("interlock_log_records_dropped", Kind::Counter, "Log records dropped because of overload.");
    for (level, count) in ["trace", "debug", "info", "warn", "error"].into_iter().zip(log.dropped) {
        dropped.sample(&[("level", level)], count);
    }
    to.one(
        "interlock_log_records_buffered",
        Kind::Gauge,
        "Log records on their way to the store.",
        log.waiting,
    );
    to.one("interlock_log_buffered_bytes", Kind::Gauge, "Bytes of log records on their way.", log.bytes);
    if let Some(journal) = &numbers.journal {
        to.one("interlock_log_journal_records", Kind::Gauge, "Log records in the journal.", journal.records);
        to.one("interlock_log_journal_bytes", Kind::Gauge, "Bytes of the journal.", journal.bytes);
    }
}

fn write_outbox(outbox: Option<&(Standing, OutboxReport)>, to: &mut Exposition) {
    let Some((standing, report)) = outbox else { return };
    let counts = &report.counts;
    to.one("interlock_outbox_pending", Kind::Gauge, "Durable messages that are not finished.", standing.open);
    to.one("interlock_outbox_pending_bytes", Kind::Gauge, "Bytes of what is not finished.", standing.bytes);
    to.one("interlock_outbox_dead_letters", Kind::Gauge, "Dead letters.", standing.dead);
    let waits = standing.oldest.as_ref().map_or(0, |(_, since_ms)| now_ms().saturating_sub(*since_ms));
    let help = "How long the oldest delivery has waited.";
    to.one("interlock_outbox_oldest_seconds", Kind::Gauge, help, waits as f64 / 1000.0);
    for (name, help, count) in [
        (
            "interlock_outbox_accepted",
            "Durable messages accepted since the outbox was started.",
            counts.accepted,
        ),
        (
            "interlock_outbox_acknowledged",
            "Deliveries that a consumer has acknowledged.",
            counts.acknowledged,
        ),
        ("interlock_outbox_attempts", "Attempts that were sent.", counts.attempts),
        ("interlock_outbox_retried", "Attempts that failed and are followed by another.", counts.retried),
        ("interlock_outbox_dead", "Deliveries that became dead letters.", counts.dead),
        ("interlock_outbox_storage_failures", "Steps of the storage that failed.", counts.storage_failures),
    ] {
        to.one(name, Kind::Counter, help, count);
    }
    let mut refused =
        to.family("interlock_outbox_refused", Kind::Counter, "Durable messages refused, by reason.");
    for (code, count) in &counts.refused {
        refused.sample(&[("code", code)], count);
    }
}

fn write_store(shared: &Shared, to: &mut Exposition) {
    let store = (shared.options.store)();
    to.one("interlock_store_up", Kind::Gauge, "Whether the store is open.", u8::from(store.is_some()));
    let Some(store) = store else { return };
    let version = store.schema_version();
    to.one("interlock_store_schema_version", Kind::Gauge, "Version of the database's tables.", version);
    let statistics = store.statistics();
    for (name, help, count) in [
        ("interlock_store_writes", "Writes done.", statistics.jobs),
        ("interlock_store_commits", "Transactions committed.", statistics.commits),
        ("interlock_store_failures", "Transactions that failed.", statistics.failures),
    ] {
        to.one(name, Kind::Counter, help, count);
    }
    to.one("interlock_store_waiting", Kind::Gauge, "Writes that wait for their turn.", statistics.waiting);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_topic_that_was_named_stays_so_when_others_become_louder() {
        let named = NamedTopics::default();
        let row =
            |topic: usize, messages: usize| json!({ "topic": format!("t/{topic}"), "messages": messages });
        let before: Vec<Value> = (0..NAMED_MAX + 50).map(|topic| row(topic, topic)).collect();
        let first = named.choose(&before);
        assert_eq!(first.len(), NAMED_MAX);
        assert!(first.contains(&format!("t/{}", NAMED_MAX + 49)) && !first.contains("t/0"));
        let after: Vec<Value> = (0..NAMED_MAX + 50).map(|topic| row(topic, 1000 - topic)).collect();
        assert_eq!(named.choose(&after), first);
        let mut to = Exposition::new(false);
        write_topics(&before, &first, &mut to);
        let text = to.finish();
        let others: usize = (0..50).sum();
        assert!(
            text.contains(&format!("interlock_bus_topic_messages_total{{topic=\"(other)\"}} {others}\n")),
            "{text}"
        );
    }
}
