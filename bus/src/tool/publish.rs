//! `bus pub`

mod source;
mod template;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::json;
use uuid::Uuid;

use self::source::Source;
use super::{Failure, Output};
use crate::{
    blocking,
    client::{Ack, Client, PublishOptions},
    durable::DurableOptions,
    envelope::{Header, Payload},
    exit::Exit,
    topic::TopicName,
};

pub(super) use source::payload;

/// What `bus pub` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bus pub greetings/hello 'hi'\n  bus pub sensors/1 '{\"n\":{{count}}}' --json-payload --template --count 100 --rate 10\n  tail -f app.log | bus pub app/log --lines"
)]
pub(super) struct Arguments {
    /// Topic to publish on
    topic: String,
    /// The payload; `-` reads it from standard input; empty if left out
    #[arg(conflicts_with_all = ["file", "lines"])]
    payload: Option<String>,
    /// Send this file
    #[arg(long, value_name = "FILE", conflicts_with = "lines")]
    file: Option<PathBuf>,
    /// Send each line of standard input as a message of its own, as soon as it comes
    #[arg(long, conflicts_with = "count")]
    lines: bool,
    /// Send the payload as JSON, after checking that it is JSON
    #[arg(long)]
    json_payload: bool,
    /// Replace {{count}} (from 1 on), {{time}}, {{unix_ms}}, {{uuid}} and {{random}} in the payload, anew for each message
    #[arg(long)]
    template: bool,
    /// A header of your own; may be given several times
    #[arg(long, short = 'H', value_name = "NAME:VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    /// How often
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Messages a second at most, for example 10 or 0.5
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate: Option<f64>,
    /// Keep it as the topic's last value. That there is no room for it is an error, unless --acknowledged is false
    #[arg(long, conflicts_with = "durable")]
    retain: bool,
    /// How long anybody wants it, for example 500ms, 5m; what still waits then is dropped
    #[arg(long, value_name = "TIME", value_parser = super::duration, conflicts_with = "durable")]
    expires: Option<Duration>,
    /// Wait for the broker's word, and print how many subscribers got it
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    acknowledged: bool,
    /// Wait until this many subscribers are there, as long as --timeout says
    #[arg(long, value_name = "SUBSCRIBERS", conflicts_with = "durable")]
    wait: Option<usize>,
    /// Give it to the outbox: it is on its disk when this ends, and each consumer of the topic gets it
    #[arg(long)]
    durable: bool,
    /// Durable messages with the same key keep their order; by default those of one topic do
    #[arg(long, value_name = "KEY", requires = "durable")]
    key: Option<String>,
}

/// Reads `NAME:VALUE`.
pub(super) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err(format!("`{text}` is no header; write NAME:VALUE")),
    }
}

/// Reads how often a second.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| (1e-4..=1e7).contains(rate));
    rate.ok_or_else(|| format!("`{text}` is no rate; write messages a second, from 0.0001 to 10000000"))
}

/// What is to be published, found to be legal before anybody is connected to.
pub(super) struct Prepared<'a> {
    arguments: &'a Arguments,
    topic: TopicName,
    source: Source,
}

pub(super) fn prepare(arguments: &Arguments) -> Result<Prepared<'_>, Failure> {
    let topic = arguments.topic.parse()?;
    let source = Source::of(arguments)?;
    Ok(Prepared { arguments, topic, source })
}

/// What became of the messages.
#[derive(Default)]
struct Sent {
    messages: u64,
    /// Bytes of the last payload.
    bytes: usize,
    /// The fewest subscribers that one of them had, and all copies that were dropped.
    ack: Option<Ack>,
    /// The last durable one.
    accepted: Option<(Uuid, u64)>,
}

pub(super) fn run(
    prepared: Prepared<'_>,
    client: &Client,
    timeout: Duration,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let Prepared { arguments, topic, mut source } = prepared;
    if let Some(count) = arguments.wait {
        blocking::wait(client.wait_for_subscribers(&topic, count, timeout))?;
    }
    let mut sent = Sent::default();
    let began = Instant::now();
    let outcome = loop {
        match source.next(sent.messages + 1) {
            Ok(Some(payload)) => {
                if let Some(rate) = arguments.rate {
                    // By a timetable: what was late is made up for.
                    let due = began + Duration::from_secs_f64(sent.messages as f64 / rate);
                    blocking::wait_until(std::future::pending::<()>(), due);
                }
                if let Err(failure) = send(arguments, &topic, payload, client, timeout, &mut sent) {
                    break Err(failure);
                }
                sent.messages += 1;
            }
            Ok(None) => break Ok(()),
            Err(failure) => break Err(failure),
        }
    };
    if outcome.is_err() && sent.messages > 0 {
        output.note(&format!("{} messages were published before this:", sent.messages));
    }
    outcome?;
    tell(arguments, &topic, &sent, output)
}

fn send(
    arguments: &Arguments,
    topic: &TopicName,
    payload: Payload,
    client: &Client,
    timeout: Duration,
    sent: &mut Sent,
) -> Result<(), Failure> {
    sent.bytes = payload.bytes.len();
    if arguments.durable {
        let header = Header { user: arguments.header.clone(), ..Header::for_payload(&payload) };
        let options = DurableOptions { id: None, key: arguments.key.clone(), header: Some(header) };
        let accepted = blocking::wait(client.publish_durable(topic, payload, &options, timeout))?;
        sent.accepted = Some((accepted.id, accepted.number));
        return Ok(());
    }
    let header = (!arguments.header.is_empty())
        .then(|| Header { user: arguments.header.clone(), ..Header::for_payload(&payload) });
    let options = PublishOptions { retain: arguments.retain, expires_after: arguments.expires, header };
    if !arguments.acknowledged {
        return Ok(blocking::wait(client.publish_waiting(topic, payload, &options))?);
    }
    let ack = blocking::wait(client.publish_acknowledged(topic, payload, options))?;
    let before = sent.ack;
    let dropped = before.map_or(0, |before| before.dropped).saturating_add(ack.dropped);
    let subscribers = before.map_or(ack.subscribers, |before| before.subscribers.min(ack.subscribers));
    // Each is the last value anew: how the last one ended is how the topic stands.
    sent.ack = Some(Ack { subscribers, dropped, not_retained: ack.not_retained });
    Ok(())
}

fn tell(arguments: &Arguments, topic: &TopicName, sent: &Sent, output: &mut Output) -> Result<Exit, Failure> {
    let messages = sent.messages;
    if let Some((id, number)) = sent.accepted {
        match output.is_json() {
            true => {
                output.json(&json!({ "topic": topic, "messages": messages, "id": id, "number": number }))?
            }
            false => output.line(&format!("accepted {id} as number {number}"))?,
        }
        return Ok(Exit::Done);
    }
    let Some(Ack { subscribers, dropped, not_retained }) = sent.ack else { return Ok(Exit::Done) };
    if output.is_json() {
        let mut row = json!({
            "topic": topic, "messages": messages, "subscribers": subscribers, "dropped": dropped,
        });
        if arguments.retain {
            row["retained"] = (!not_retained).into();
        }
        output.json(&row)?;
    } else {
        let plural = if subscribers == 1 { "" } else { "s" };
        output.line(&format!("{subscribers} subscriber{plural}"))?;
    }
    if dropped > 0 {
        output.note(&format!("{dropped} copies were dropped because a subscriber's queue was full"));
    }
    if not_retained {
        output.note(&format!(
            "`{topic}` was delivered and not retained: the broker has no room for {} bytes beside its other retained \
             values; raise `retained_bytes_max`, or take a value away with `bus pub --retain TOPIC \"\"`",
            sent.bytes
        ));
    }
    Ok(if dropped > 0 || not_retained { Exit::Full } else { Exit::Done })
}
