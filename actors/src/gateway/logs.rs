//! The log over HTTP: looking for records, how much there is, and what comes.

use std::{collections::BTreeMap, time::Duration};

use actix_web::{HttpRequest, HttpResponse, web};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::{OpenApi, ToSchema};

use super::{
    access::{Access, Scope},
    error::ApiError,
    history,
    parameters::Parameters,
    server::{Data, resource},
    sse::{self, Sink},
};
use crate::{
    log_record::Level,
    store::{FieldPattern, Grep, LogQuery, NamePattern, StoreError, TextQuery, limits},
};

/// Records of one answer unless it is said.
const RECORDS: usize = 1000;
/// Records that a stream begins with unless it is said.
const RECORDS_FOLLOWING: usize = 10;
/// Records that a stream reads at once.
const PAGE: usize = 500;
/// How often a stream looks for more.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The operations of this module.
#[derive(OpenApi)]
#[openapi(paths(logs, stat, follow))]
pub(super) struct Api;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(resource("/v1/logs", "GET").route(web::get().to(logs)))
        .service(resource("/v1/logs/stat", "GET").route(web::get().to(stat)))
        .service(resource("/v1/logs/follow", "GET").route(web::get().to(follow)));
}

/// A log record, as `interlock logs --json`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Record {
    #[schema(value_type = String, format = "uuid")]
    id: String,
    /// When it was raised, in nanoseconds since the Unix epoch.
    time_ns: u64,
    /// `trace`, `debug`, `info`, `warn` or `error`.
    level: String,
    /// The module that raised it.
    target: String,
    component: String,
    process: u32,
    incarnation: u64,
    message: String,
    /// Pairs of a name and a value.
    fields: Vec<Vec<String>>,
    spans: Vec<String>,
    file: Option<String>,
    line: Option<u32>,
    trace_id: Option<String>,
    conversation: Option<String>,
    /// The peer that published it, as the broker knows.
    origin: Option<String>,
    run: u64,
    number: u64,
}

/// Log records, in the order of time.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Records {
    logs: Vec<Record>,
    /// Whether the search was given up before it had looked at all: narrow it.
    cut: bool,
}

/// What was deleted, by reason.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Deleted {
    by_age: u64,
    by_rows: u64,
    by_bytes: u64,
    by_hand: u64,
}

/// What is kept.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Kept {
    age: String,
    rows: u64,
    bytes: u64,
}

/// How much is in the log, of whom, what is kept, what was deleted, as `interlock logs stat --json`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Stat {
    rows: u64,
    bytes: u64,
    oldest_ns: Option<u64>,
    newest_ns: Option<u64>,
    /// Records that are not indexed yet.
    unindexed: u64,
    levels: BTreeMap<String, u64>,
    components: BTreeMap<String, BTreeMap<String, u64>>,
    /// Records that never came here because a buffer was full.
    dropped: u64,
    deleted: Deleted,
    kept: Kept,
    database_bytes: u64,
    free_bytes: u64,
}

/// Which records a query asks for, all but how many.
fn query(parameters: &mut Parameters) -> Result<LogQuery, ApiError> {
    let names = |names: Vec<String>| names.iter().map(|name| NamePattern::from(name.as_str())).collect();
    let bad = |problem: String| ApiError::BadRequest(format!("`grep`: {problem}"));
    let grep = parameters.one("grep")?.map(|pattern| Grep::new(&pattern).map_err(bad)).transpose()?;
    // Before 1970 nothing was logged, and after 2554 nothing will be.
    let ns = |time: Timestamp| {
        let late = if time < Timestamp::UNIX_EPOCH { 0 } else { u64::MAX };
        u64::try_from(time.as_nanosecond()).unwrap_or(late)
    };
    let fields = parameters.all("field");
    Ok(LogQuery {
        min_level: parameters.parsed::<Level>("level")?,
        since_ns: parameters.time("since")?.map(ns),
        until_ns: parameters.time("until")?.map(ns),
        components: names(parameters.all("component")),
        targets: parameters.all("target"),
        fields: fields.iter().map(|field| FieldPattern::from(field.as_str())).collect(),
        trace_id: parameters.one("trace")?,
        conversation: parameters.one("conversation")?,
        process: parameters.number("process")?,
        incarnation: parameters.number("incarnation")?,
        text: parameters.one("text")?.as_deref().map(TextQuery::new),
        grep,
        ..LogQuery::default()
    })
}

/// Looks for log records, the newest ones that match, in the order of time. What several parameters say must all hold.
#[utoipa::path(
    get, path = "/v1/logs", tag = "logs",
    params(
        ("level" = Option<String>, Query, description = "This level and above: `trace`, `debug`, `info`, `warn`, `error`", example = "info"),
        ("component" = Option<Vec<String>>, Query, description = "Of this component; `*` stands for any characters, `!NAME` is all but this one; may be repeated", example = json!(["gateway"])),
        ("target" = Option<Vec<String>>, Query, description = "Raised in this module or below it; may be repeated"),
        ("field" = Option<Vec<String>>, Query, description = "With this field, `NAME=VALUE`, or `NAME` for any value; may be repeated"),
        ("text" = Option<String>, Query, description = "With these words in message or fields; `\"two words\"` in this order, `beg*` for a beginning"),
        ("grep" = Option<String>, Query, description = "And with a match of this regular expression"),
        ("trace" = Option<String>, Query, description = "Of this trace, or of the turn with this id"),
        ("conversation" = Option<String>, Query, description = "Of this conversation"),
        ("process" = Option<u32>, Query, description = "Of the process with this id"),
        ("incarnation" = Option<u64>, Query, description = "Of this start of a component, counted from one"),
        ("since" = Option<String>, Query, description = "Not older: RFC 3339, or how long ago, as `10m`", example = "1h"),
        ("until" = Option<String>, Query, description = "Before this time"),
        ("before" = Option<u64>, Query, description = "Before this time in nanoseconds since the Unix epoch: the `time_ns` of the oldest record shown, for the page before it"),
        ("limit" = Option<usize>, Query, description = "At most so many; 1000 if it is left out", example = 100, minimum = 1),
    ),
    responses((status = 200, body = Records))
)]
async fn logs(access: Access, shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    let mut parameters = Parameters::of(&request)?;
    let mut query = query(&mut parameters)?;
    let before = parameters.number::<u64>("before")?;
    query.until_ns = [query.until_ns, before].into_iter().flatten().min();
    query.limit = parameters.count("limit", limits::QUERY_ROWS_MAX)?.unwrap_or(RECORDS);
    parameters.end()?;
    let found = history::read(&shared, move |reader| reader.search_logs(&query)).await?;
    let records: Vec<_> = found.records.iter().map(|stored| &stored.record).collect();
    Ok(HttpResponse::Ok().json(json!({ "logs": records, "cut": found.cut })))
}

/// Tells how much is in the log, of whom, what is kept, what was deleted.
#[utoipa::path(get, path = "/v1/logs/stat", tag = "logs", responses((status = 200, body = Stat)))]
async fn stat(access: Access, shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    Parameters::of(&request)?.end()?;
    let kept = history::store(&shared)?.log_retention();
    let summary = history::read(&shared, |reader| reader.log_summary()).await?;
    let age = format!("{}s", kept.age_max.as_secs());
    Ok(HttpResponse::Ok().json(summary.as_json(&kept, &age)))
}

/// Streams log records as they come: events `log`, each a record; `missed` with a `count` in the place of records that were
/// deleted before they could be shown; `error` before an end, with the code `stopping` if the gateway stops. Begins with the
/// newest ones.
#[utoipa::path(
    get, path = "/v1/logs/follow", tag = "logs",
    params(
        ("level" = Option<String>, Query, description = "This level and above", example = "info"),
        ("component" = Option<Vec<String>>, Query, description = "Of this component; may be repeated", example = json!(["gateway"])),
        ("target" = Option<Vec<String>>, Query, description = "Raised in this module or below it; may be repeated"),
        ("field" = Option<Vec<String>>, Query, description = "With this field; may be repeated"),
        ("text" = Option<String>, Query, description = "With these words in message or fields"),
        ("grep" = Option<String>, Query, description = "And with a match of this regular expression"),
        ("trace" = Option<String>, Query, description = "Of this trace, or of the turn with this id"),
        ("conversation" = Option<String>, Query, description = "Of this conversation"),
        ("process" = Option<u32>, Query, description = "Of the process with this id"),
        ("incarnation" = Option<u64>, Query, description = "Of this start of a component"),
        ("since" = Option<String>, Query, description = "Not older"),
        ("until" = Option<String>, Query, description = "Before this time"),
        ("limit" = Option<usize>, Query, description = "How many of the newest come first; 10 if it is left out", example = 5, minimum = 1),
    ),
    responses((status = 200, content((String = "text/event-stream"))))
)]
async fn follow(access: Access, shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    let mut parameters = Parameters::of(&request)?;
    let mut query = query(&mut parameters)?;
    query.limit = parameters.count("limit", limits::QUERY_ROWS_MAX)?.unwrap_or(RECORDS_FOLLOWING);
    parameters.end()?;
    let permit = shared.stream_permit()?;
    let (sink, response) = sse::stream(&shared);
    actix_web::rt::spawn(pass_on(shared, query, sink, permit));
    Ok(response)
}

/// Passes records on until the reader is gone.
async fn pass_on(shared: Data, mut query: LogQuery, sink: Sink, _permit: OwnedSemaphorePermit) {
    loop {
        let wanted = query.clone();
        let found = match history::read(&shared, move |reader| reader.search_logs(&wanted)).await {
            Ok(found) => found,
            Err(error) if is_passing(&error) => {
                if !pause(&shared, &sink).await {
                    return;
                }
                continue;
            }
            Err(error) => return end(&sink, &error).await,
        };
        let mut events = String::new();
        if found.missed > 0 {
            sse::write(&mut events, "missed", &json!({ "count": found.missed }));
        }
        found.records.iter().for_each(|stored| sse::write(&mut events, "log", &stored.record));
        let is_all = query.after_seq.is_none() || (found.records.len() < query.limit && !found.cut);
        (query.after_seq, query.limit) = (Some(found.seen_to), PAGE);
        if sink.send(events).await.is_err() {
            return;
        }
        if is_all && !pause(&shared, &sink).await {
            return;
        }
    }
}

/// What a busy or restarted store says heals by itself.
fn is_passing(error: &ApiError) -> bool {
    let busy = StoreError::QueueFull { limit: limits::QUEUE_READS };
    let is_closed =
        *error == ApiError::of_store(&StoreError::Closed) || *error == ApiError::store_is_closed();
    is_closed || *error == ApiError::of_store(&busy)
}

/// Says why nothing more comes.
async fn end(sink: &Sink, error: &ApiError) {
    let mut events = String::new();
    sse::write(&mut events, "error", &error.content());
    // Whoever is gone need not be told.
    let _ = sink.send(events).await;
}

/// Waits for the next look; `false` if there will be none, which the reader is told.
async fn pause(shared: &Data, sink: &Sink) -> bool {
    let waited = sink.alive(async {
        tokio::select! {
            biased;
            () = shared.stopped() => false,
            () = tokio::time::sleep(LOOK_EVERY) => true,
        }
    });
    match waited.await {
        Ok(true) => true,
        Ok(false) => {
            end(sink, &ApiError::Stopping).await;
            false
        }
        Err(sse::Gone) => false,
    }
}
