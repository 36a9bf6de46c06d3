//! `bus sub`

use std::{
    future::poll_fn,
    task::Poll,
    time::{Duration, Instant},
};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::{Map, Value, json};

use super::{
    Failure, Output,
    condition::Condition,
    decode::{Decoder, Shown},
    table,
};
use crate::{
    blocking,
    client::{Client, Event, SubscribeOptions, Subscription},
    envelope::{Message, now_ns},
    exit::Exit,
    native::Overflow,
    topic::TopicFilter,
};

/// What `bus sub` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bus sub 'conversation/#'\n  bus sub 'sensors/+' --field celsius --where 'celsius>30'\n  bus sub '#' --count 1 --wait 5s --json"
)]
pub(super) struct Arguments {
    /// Topic filters: `+` is one level, `#` the rest
    #[arg(required = true)]
    filters: Vec<String>,
    /// End after this many messages
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print the payloads as they are, each with a line feed
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// End when nothing has come for this long, for example 500ms, 5s
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    wait: Option<Duration>,
    /// Print only this field of payloads that have fields, for example turn.text or parts.0; may be given several times
    #[arg(long, value_name = "PATH", conflicts_with = "raw")]
    field: Vec<String>,
    /// Only messages in whose payload this is so, for example 'turn>3', 'text~hello', 'code!=0'; all of several
    #[arg(long = "where", value_name = "PATH OPERATOR VALUE", value_parser = Condition::parse)]
    conditions: Vec<Condition>,
    /// Print when each came, from whom, and its headers
    #[arg(long, short = 'i', conflicts_with_all = ["raw", "json"])]
    headers: bool,
    /// Print the topics' last values first
    #[arg(long)]
    retained: bool,
    #[command(flatten)]
    policy: Policy,
}

/// What becomes of messages that this program is too slow for.
#[derive(Debug, clap::Args)]
pub(super) struct Policy {
    /// What is lost when the broker's queue is full because this program is slow; `wait` holds publishers, and needs the right to
    #[arg(long, value_name = "POLICY", default_value = Overflow::default().as_str(), value_parser = overflow())]
    overflow: Overflow,
    /// Messages that may wait there; the broker's own bound is the default, and the most
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    max_count: Option<u32>,
    /// The same in bytes
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
    max_bytes: Option<u32>,
}

impl Policy {
    pub(super) fn options(&self) -> SubscribeOptions {
        SubscribeOptions::default()
            .overflow(self.overflow)
            .queue(self.max_count.unwrap_or(0), self.max_bytes.unwrap_or(0))
    }
}

/// Reads the name of a policy.
fn overflow() -> impl TypedValueParser<Value = Overflow> {
    PossibleValuesParser::new(Overflow::ALL.map(Overflow::as_str)).map(|name| {
        let named = Overflow::ALL.into_iter().find(|policy| policy.as_str() == name);
        named.unwrap_or_else(|| unreachable!("the parser lets nothing else through"))
    })
}

impl Arguments {
    /// Whether the filters are filters.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.filters.iter().try_for_each(|text| Ok(text.parse::<TopicFilter>().map(drop)?))
    }

    /// Whether payloads are looked into.
    fn needs_decoding(&self) -> bool {
        !self.raw || !self.conditions.is_empty()
    }

    fn wants(&self, shown: Option<&Shown>) -> bool {
        let holds = |condition: &Condition| shown.is_some_and(|shown| condition.holds(shown));
        self.conditions.iter().all(holds)
    }

    fn options(&self) -> SubscribeOptions {
        SubscribeOptions { retained: self.retained, ..self.policy.options() }
    }
}

pub(super) fn run(arguments: &Arguments, client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let filters =
        arguments.filters.iter().map(|text| text.parse()).collect::<Result<Vec<TopicFilter>, _>>()?;
    let options = arguments.options();
    let mut subscriptions = Vec::new();
    for filter in &filters {
        subscriptions.push(blocking::wait(client.subscribe(filter, options.clone()))?);
    }
    output.hint(&format!("subscribed to {}; the broker has acknowledged it", quoted(&arguments.filters)));
    let mut decoder = Decoder::default();
    let mut seen = 0u64;
    while arguments.count.is_none_or(|count| seen < count) {
        let next = next_event(&mut subscriptions);
        let event = match arguments.wait {
            None => blocking::wait(next),
            Some(wait) => match blocking::wait_until(next, Instant::now() + wait) {
                Some(event) => event,
                None => return Ok(on_silence(arguments, seen, wait, output)),
            },
        };
        match event {
            // Several filters match it: the first one prints it.
            Some((at, Event::Message(message)))
                if filters[..at].iter().any(|filter| filter.matches(&message.topic)) => {}
            Some((_, Event::Message(message))) => {
                let shown = arguments.needs_decoding().then(|| decoder.show(client, &message));
                if !arguments.wants(shown.as_ref()) {
                    continue;
                }
                seen += 1;
                print(arguments, shown, &message, output)?;
            }
            Some((at, Event::Gap { count, reason })) => print_gap(&filters[at], count, &reason, output)?,
            None => {
                let reason = client.closed_reason();
                let reason = reason.or_else(|| subscriptions.iter().find_map(Subscription::end_reason));
                return Err(Failure::new(
                    Exit::Denied,
                    format!("the subscription has ended: {}", reason.unwrap_or_default()),
                ));
            }
        }
    }
    Ok(Exit::Done)
}

fn quoted(filters: &[String]) -> String {
    filters.iter().map(|filter| format!("`{filter}`")).collect::<Vec<_>>().join(", ")
}

/// The next event of any subscription, with its place; `None` once one of them has ended.
pub(super) async fn next_event(subscriptions: &mut [Subscription]) -> Option<(usize, Event)> {
    poll_fn(|context| {
        for (at, subscription) in subscriptions.iter_mut().enumerate() {
            if let Poll::Ready(event) = subscription.poll_next(context) {
                return Poll::Ready(event.map(|event| (at, event)));
            }
        }
        Poll::Pending
    })
    .await
}

fn on_silence(arguments: &Arguments, seen: u64, wait: Duration, output: &mut Output) -> Exit {
    match arguments.count {
        Some(count) => {
            output.note(&format!("{seen} of {count} messages came; then nothing for {wait:?}"));
            Exit::NotReady
        }
        None if seen == 0 => {
            output.note(&format!("nothing came for {wait:?}"));
            Exit::Failed
        }
        None => Exit::Done,
    }
}

fn print(
    arguments: &Arguments,
    shown: Option<Shown>,
    message: &Message,
    output: &mut Output,
) -> Result<(), Failure> {
    let Some(shown) = shown.filter(|_| !arguments.raw) else {
        return output.bytes(&[&message.payload[..], b"\n"].concat());
    };
    let shown = match &arguments.field[..] {
        [] => shown,
        fields => shown.fields(fields),
    };
    if !output.is_json() {
        if arguments.headers {
            print_headers(message, output)?;
        }
        let line = format!("{}  {}", output.harmless(message.topic.as_str()), shown.line(output));
        return output.line(&line);
    }
    let header = &message.header;
    let mut row = Map::from_iter([
        ("topic".to_owned(), json!(message.topic)),
        ("origin".to_owned(), json!(message.origin)),
        ("sequence".to_owned(), json!(message.sequence)),
        ("retained".to_owned(), json!(message.retained)),
        ("content_type".to_owned(), json!(header.content_type.as_str())),
    ]);
    if !header.id.is_nil() {
        row.insert("id".to_owned(), json!(header.id));
        row.insert("published_at_ns".to_owned(), json!(header.published_at_ns));
    }
    if let Some(traceparent) = &header.traceparent {
        row.insert("traceparent".to_owned(), json!(traceparent));
    }
    if !header.user.is_empty() {
        row.insert("headers".to_owned(), json!(header.user));
    }
    let (name, value) = shown.value();
    row.insert(name.to_owned(), value);
    output.json(&Value::Object(row))
}

/// A line in front of the message.
fn print_headers(message: &Message, output: &mut Output) -> Result<(), Failure> {
    let header = &message.header;
    let mut parts = vec![table::time(&json!(now_ns() / 1_000_000)), format!("from {}", message.origin)];
    if !header.id.is_nil() {
        parts.push(format!("id {}", header.id));
    }
    match header.content_type.as_str() {
        "" => {}
        content_type => parts.push(content_type.to_owned()),
    }
    parts.push(format!("{} bytes", message.payload.len()));
    parts.extend(message.retained.then(|| "retained".to_owned()));
    parts.extend(header.traceparent.as_ref().map(|trace| format!("trace {trace}")));
    parts.extend(header.user.iter().map(|(name, value)| format!("{name}: {value}")));
    let line = output.harmless(&parts.join("  "));
    output.line(&format!("[{line}]"))
}

fn print_gap(
    filter: &TopicFilter,
    count: Option<u64>,
    reason: &str,
    output: &mut Output,
) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(&json!({ "gap": { "filter": filter, "count": count, "reason": reason } }));
    }
    let count = count.map_or_else(|| "an unknown number of".to_owned(), |count| count.to_string());
    output.note(&format!("gap on `{filter}`: {count} messages are missing ({reason})"));
    Ok(())
}
