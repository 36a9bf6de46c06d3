//! `bus request`

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use super::{
    Failure, Output, ask_broker,
    decode::Decoder,
    histogram::Histogram,
    publish::{header, payload, rate},
    table,
};
use crate::{
    blocking,
    client::{Client, ReplyStream},
    codec,
    envelope::{Header, Message, Payload},
    error::RequestError,
    exit::Exit,
    topic::TopicName,
};

/// What `bus request` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A request reaches one of those who serve its topic, the least busy one.\n\nExamples:\n  \
    bus request modelservice/models/v1\n  \
    bus request ask/weather Oslo --timing --replies 3\n  \
    bus request ask/weather Oslo --count 1000 --rate 100 --json"
)]
pub(super) struct Arguments {
    /// Topic to ask on
    topic: String,
    /// The question; `-` reads it from standard input; empty if left out
    payload: Option<String>,
    /// Send the question as JSON, after checking that it is JSON
    #[arg(long)]
    json_payload: bool,
    /// A header of your own; may be given several times
    #[arg(long, short = 'H', value_name = "NAME:VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    /// How long the answer may take, for example 500ms, 60s, 5m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = super::duration)]
    deadline: Duration,
    /// Take this many parts of the answer, and tell the server that no more is wanted; 0 is all
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    replies: u64,
    /// Ask this often, one after the other
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Requests a second at most, for example 10 or 0.5
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate: Option<f64>,
    /// Say when each part came, when the answer ended, and who was asked
    #[arg(long, conflicts_with = "raw")]
    timing: bool,
    /// Print the headers that the server sent with each part
    #[arg(long, short = 'i', conflicts_with_all = ["raw", "json"])]
    headers: bool,
    /// Print the payloads as they are, each with a line feed
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

impl Arguments {
    /// Whether the topic is one.
    pub(super) fn check(&self) -> Result<(), Failure> {
        Ok(self.topic.parse::<TopicName>().map(drop)?)
    }

    fn is_measured(&self) -> bool {
        self.timing || self.count > 1
    }
}

/// What all requests came to.
#[derive(Default)]
struct Totals {
    answered: u64,
    parts: u64,
    /// Until the first part of each, and until its end.
    first: Histogram,
    whole: Histogram,
    /// Why others were not answered, and how often.
    failed: BTreeMap<String, u64>,
    exit: Option<Exit>,
}

pub(super) fn run(arguments: &Arguments, client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let topic: TopicName = arguments.topic.parse()?;
    let question = payload(arguments.payload.as_deref(), arguments.json_payload)?;
    let mut decoder = Decoder::default();
    let mut totals = Totals::default();
    let before = arguments.is_measured().then(|| asked(client, &topic));
    let began = Instant::now();
    for number in 0..arguments.count {
        if let Some(rate) = arguments.rate {
            // By a timetable: what was late is made up for.
            let due = began + Duration::from_secs_f64(number as f64 / rate);
            blocking::wait_until(std::future::pending::<()>(), due);
        }
        let answer = ask(arguments, client, &topic, &question);
        match take(arguments, number, answer, client, &mut decoder, &mut totals, output)? {
            Ok(()) => totals.answered += 1,
            // Of one request its error is the end of all.
            Err(error) if arguments.count == 1 => return Err(error.into()),
            Err(error) => {
                totals.exit.get_or_insert(Exit::from(&error));
                *totals.failed.entry(error.to_string()).or_default() += 1;
            }
        }
    }
    if let Some(before) = before {
        let servers = difference(before, asked(client, &topic));
        summary(arguments, &totals, began.elapsed(), servers, output)?;
    }
    Ok(totals.exit.unwrap_or(Exit::Done))
}

fn ask(
    arguments: &Arguments,
    client: &Client,
    topic: &TopicName,
    question: &Payload,
) -> Result<(Instant, ReplyStream), RequestError> {
    let asked = Instant::now();
    let deadline = arguments.deadline;
    let stream = if arguments.header.is_empty() {
        blocking::wait(client.request_stream(topic, question.clone(), deadline))?
    } else {
        let header = Header { user: arguments.header.clone(), ..Header::for_payload(question) };
        let mut bytes = Vec::new();
        codec::put_header(&header.traced(), &mut bytes);
        blocking::wait(client.request_as_it_is(topic, &bytes, question.bytes.clone(), deadline))?
    };
    Ok((asked, stream))
}

/// Takes one answer to its end, and prints it as it comes.
fn take(
    arguments: &Arguments,
    number: u64,
    answer: Result<(Instant, ReplyStream), RequestError>,
    client: &Client,
    decoder: &mut Decoder,
    totals: &mut Totals,
    output: &mut Output,
) -> Result<Result<(), RequestError>, Failure> {
    let (asked, mut stream) = match answer {
        Ok(answer) => answer,
        Err(error) => return Ok(Err(error)),
    };
    let mut parts = 0;
    while let Some(part) = blocking::wait(stream.next()) {
        let part = match part {
            Ok(part) => part,
            Err(error) => return Ok(Err(error)),
        };
        let after = asked.elapsed();
        parts += 1;
        totals.parts += 1;
        if parts == 1 {
            totals.first.add(after);
        }
        print(arguments, number, &part, after, client, decoder, output)?;
        if parts == arguments.replies {
            // Dropped, it tells the server.
            break;
        }
    }
    totals.whole.add(asked.elapsed());
    Ok(Ok(()))
}

fn print(
    arguments: &Arguments,
    number: u64,
    part: &Message,
    after: Duration,
    client: &Client,
    decoder: &mut Decoder,
    output: &mut Output,
) -> Result<(), Failure> {
    if arguments.raw {
        return output.bytes(&[&part.payload[..], b"\n"].concat());
    }
    let shown = decoder.show(client, part);
    if output.is_json() {
        let (name, value) = shown.value();
        let mut row = Map::from_iter([("part".to_owned(), json!(part.sequence)), (name.to_owned(), value)]);
        if arguments.count > 1 {
            row.insert("request".to_owned(), json!(number + 1));
        }
        if arguments.timing {
            row.insert("after_ms".to_owned(), json!(milliseconds(after)));
        }
        if !part.header.user.is_empty() {
            row.insert("headers".to_owned(), json!(part.header.user));
        }
        return output.json(&Value::Object(row));
    }
    if arguments.headers {
        let user = part.header.user.iter().map(|(name, value)| format!("{name}: {value}"));
        let facts: Vec<String> =
            [format!("{} bytes", part.payload.len()), part.header.content_type.as_str().to_owned()]
                .into_iter()
                .chain(user)
                .filter(|fact| !fact.is_empty())
                .collect();
        let line = output.harmless(&facts.join("  "));
        output.line(&format!("[{line}]"))?;
    }
    let when = if arguments.timing { format!("+{:.3} ms  ", milliseconds(after)) } else { String::new() };
    let line = format!("{when}{}", shown.line(output));
    output.line(&line)
}

fn summary(
    arguments: &Arguments,
    totals: &Totals,
    took: Duration,
    servers: Option<BTreeMap<String, u64>>,
    output: &mut Output,
) -> Result<(), Failure> {
    let failed: u64 = totals.failed.values().sum();
    if output.is_json() {
        return output.json(&json!({
            "requests": arguments.count, "answered": totals.answered, "failed": failed, "parts": totals.parts,
            "seconds": took.as_secs_f64(), "first": times(&totals.first), "whole": times(&totals.whole),
            "reasons": totals.failed, "servers": servers,
        }));
    }
    let many = arguments.count > 1;
    if many {
        let per_second = totals.answered as f64 / took.as_secs_f64();
        output.note(&format!(
            "{} of {} requests answered, {per_second:.1} a second, {} parts",
            totals.answered, arguments.count, totals.parts
        ));
    }
    for (what, histogram) in [("first part", &totals.first), ("whole answer", &totals.whole)] {
        if histogram.count() > 0 {
            output.note(&format!("{what}: {}", line_of(histogram, many)));
        }
    }
    for (reason, count) in &totals.failed {
        output.note(&format!("{count} not answered: {reason}"));
    }
    match servers {
        Some(servers) if !servers.is_empty() => {
            let each: Vec<String> =
                servers.iter().map(|(server, count)| format!("{server} {count}")).collect();
            output.note(&format!("given to: {}", each.join(", ")));
        }
        Some(_) => {}
        None => output.note("who was asked is not known: this peer may not read the ledger"),
    }
    Ok(())
}

fn line_of(histogram: &Histogram, many: bool) -> String {
    let text = |time: Duration| format!("{:.3} ms", milliseconds(time));
    if !many {
        return text(histogram.percentile(1.0));
    }
    let percentiles = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];
    let percentiles: Vec<String> = percentiles
        .iter()
        .map(|(name, share)| format!("{name} {}", text(histogram.percentile(*share))))
        .collect();
    let (min, mean, max) =
        (text(histogram.shortest()), text(histogram.mean()), text(histogram.percentile(1.0)));
    format!("min {min}, mean {mean}, {}, max {max}", percentiles.join(", "))
}

fn times(histogram: &Histogram) -> Value {
    if histogram.count() == 0 {
        return Value::Null;
    }
    let percentile = |share| milliseconds(histogram.percentile(share));
    json!({
        "min_ms": milliseconds(histogram.shortest()), "mean_ms": milliseconds(histogram.mean()),
        "p50_ms": percentile(0.5), "p90_ms": percentile(0.9), "p99_ms": percentile(0.99), "p999_ms": percentile(0.999),
        "max_ms": percentile(1.0),
    })
}

/// How many requests of this peer on this topic each server was given, as the ledger has it; `None` if it may not be read.
/// Answers do not name who gave them.
fn asked(client: &Client, topic: &TopicName) -> Option<BTreeMap<String, u64>> {
    let us = client.name();
    let answer = ask_broker(client, "ledger").ok()?;
    let ours = answer
        .as_array()?
        .iter()
        .filter(|row| row["publisher"] == us.as_str() && row["topic"] == topic.as_str());
    let counted = ours.filter_map(|row| Some((table::text(&row["subscriber"]), row["published"].as_u64()?)));
    Some(counted.filter(|(server, _)| server != "-").collect())
}

fn difference(
    before: Option<BTreeMap<String, u64>>,
    after: Option<BTreeMap<String, u64>>,
) -> Option<BTreeMap<String, u64>> {
    let (before, after) = before.zip(after)?;
    let since = |(server, count): (String, u64)| {
        let new = count.saturating_sub(before.get(&server).copied().unwrap_or_default());
        (new > 0).then_some((server, new))
    };
    Some(after.into_iter().filter_map(since).collect())
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
