//! `bus trace`: the path of one message, from its publisher by way of the broker to each subscription, as measured.
//!
//! The broker keeps no record of single messages, and the path of data is not touched for this: what became of one is the
//! difference of what the ledger says of its publisher, topic and subscriber before and after. Where that cannot be told
//! from other messages of the same publisher it is said so.

mod hop;
mod path;
mod tree;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::{hop::Hop, path::Path, tree::Tree};
use super::{
    Failure, Output, ask_broker, ask_broker_about,
    decode::Decoder,
    publish::{header, payload},
};
use crate::{
    blocking,
    client::{Ack, Client, Event, PublishOptions, SubscribeOptions},
    envelope::{Header, Message, Payload, now_ns},
    error::PublishError,
    exit::Exit,
    inspect,
    native::Overflow,
    peer::PeerName,
    topic::{TopicFilter, TopicName},
    trace::Trace,
};

/// What `bus trace` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Topic of the message; with --next a filter
    topic: String,
    /// The payload of the message that is published; `-` reads it from standard input; empty if left out
    #[arg(conflicts_with_all = ["next", "dry"])]
    payload: Option<String>,
    /// Send the payload as JSON, after checking that it is JSON
    #[arg(long, conflicts_with_all = ["next", "dry"])]
    json_payload: bool,
    /// A header of your own; may be given several times
    #[arg(long, short = 'H', value_name = "NAME:VALUE", value_parser = header, conflicts_with_all = ["next", "dry"])]
    header: Vec<(String, String)>,
    /// Publish nothing: wait for the next message that passes by
    #[arg(long)]
    next: bool,
    /// Publish nothing: say where a message would go
    #[arg(long, conflicts_with = "next")]
    dry: bool,
    /// Ask instead of publishing, and show the replies; with --dry who would be asked
    #[arg(long, conflicts_with = "next")]
    request: bool,
    /// How long deliveries, or the answer to a request, are watched for
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = super::duration)]
    wait: Duration,
}

impl Arguments {
    /// Whether the topic is one.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match self.next {
            true => Ok(self.topic.parse::<TopicFilter>().map(drop)?),
            false => Ok(self.topic.parse::<TopicName>().map(drop)?),
        }
    }
}

/// How long it rests between two looks at the ledger, at first and at most.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

pub(super) fn run(arguments: &Arguments, client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let tree = match arguments {
        Arguments { next: true, .. } => next(arguments, client, output)?,
        Arguments { dry: true, .. } => dry(arguments, client)?,
        Arguments { request: true, .. } => request(arguments, client, output)?,
        _ => publish(arguments, client)?,
    };
    tree.print(output)?;
    Ok(tree.exit())
}

/// What the broker knows of the way from a peer to everybody on a topic.
fn ask_path(client: &Client, topic: &TopicName, publisher: &PeerName) -> Result<Path, Failure> {
    let answer = ask_broker_about(client, "trace", &json!({ "topic": topic, "peer": publisher }))?;
    Ok(Path::read(&answer))
}

/// The name that was probably meant, if nobody gets the message.
fn did_you_mean(client: &Client, tree: &Tree) -> Result<Option<String>, Failure> {
    if !tree.nobody() {
        return Ok(None);
    }
    let subscriptions = ask_broker(client, "subscriptions")?;
    let rows = subscriptions.as_array().map_or(&[][..], Vec::as_slice);
    let filters = rows.iter().filter(|row| (row["serve"] == true) == tree.is_request);
    let filters = filters.filter_map(|row| row["filter"].as_str());
    // A filter with wildcards is like no topic; those that it has matched are.
    let known = ask_broker(client, "topics")?;
    let side = if tree.is_request { "servers" } else { "subscribers" };
    let has_somebody = |row: &&Value| row[side].as_array().is_some_and(|names| !names.is_empty());
    let rows = known.as_array().into_iter().flatten().filter(has_somebody);
    let names = rows.filter_map(|row| row["topic"].as_str());
    Ok(inspect::most_like(tree.topic.as_str(), filters.chain(names)).map(str::to_owned))
}

fn dry(arguments: &Arguments, client: &Client) -> Result<Tree, Failure> {
    let topic: TopicName = arguments.topic.parse()?;
    let path = ask_path(client, &topic, client.name())?;
    let mut tree = Tree::new("dry", &topic, client.name(), &path, arguments.request);
    tree.hops = path.receivers(arguments.request).map(Hop::would_go).collect();
    tree.did_you_mean = did_you_mean(client, &tree)?;
    Ok(tree)
}

fn publish(arguments: &Arguments, client: &Client) -> Result<Tree, Failure> {
    let topic: TopicName = arguments.topic.parse()?;
    let payload = payload(arguments.payload.as_deref(), arguments.json_payload)?;
    let before = ask_path(client, &topic, client.name())?;
    let mut tree = Tree::new("publish", &topic, client.name(), &before, false);
    let header = traced(arguments, &payload, &mut tree);
    let began = Instant::now();
    let options = PublishOptions { header: Some(header), ..PublishOptions::default() };
    let ack = match blocking::wait(client.publish_acknowledged(&topic, payload, options)) {
        Ok(ack) => ack,
        Err(PublishError::Denied { denial, .. }) => {
            tree.denied = Some((denial.code, denial.text));
            return Ok(tree);
        }
        Err(error) => return Err(error.into()),
    };
    tree.accepted = Some(began.elapsed());
    let Ack { subscribers, dropped, .. } = ack;
    tree.told = Some((subscribers, dropped));
    (tree.hops, tree.path) =
        watch(&before, false, began, arguments.wait, || ask_path(client, &topic, client.name()))?;
    tree.did_you_mean = did_you_mean(client, &tree)?;
    Ok(tree)
}

/// The header of a message that begins a trace, so that what it causes can be found in the log.
fn traced(arguments: &Arguments, payload: &Payload, tree: &mut Tree) -> Header {
    let trace = Trace::new();
    let mut header = Header::for_payload(payload);
    header.traceparent = Some(trace.to_string().into());
    header.user.clone_from(&arguments.header);
    (tree.id, tree.trace, tree.bytes) = (Some(header.id), Some(trace.id()), Some(payload.bytes.len()));
    header
}

/// Looks at the ledger until each hop is settled or the time is over, and notes when each was.
fn watch(
    before: &Path,
    is_request: bool,
    began: Instant,
    wait: Duration,
    mut look: impl FnMut() -> Result<Path, Failure>,
) -> Result<(Vec<Hop>, Path), Failure> {
    let mut rest = LOOK_AGAIN.0;
    let mut hops: Vec<Hop> = Vec::new();
    loop {
        let path = look()?;
        let at = began.elapsed();
        let fresh = Hop::judge_all(before, &path, is_request);
        hops = Hop::keep_times(fresh, &hops, at);
        if hops.iter().all(Hop::is_settled) || at >= wait {
            return Ok((hops, path));
        }
        std::thread::park_timeout(rest);
        rest = (2 * rest).min(LOOK_AGAIN.1);
    }
}

/// Asks, and shows the replies.
fn request(arguments: &Arguments, client: &Client, output: &Output) -> Result<Tree, Failure> {
    let topic: TopicName = arguments.topic.parse()?;
    let question = payload(arguments.payload.as_deref(), arguments.json_payload)?;
    let before = ask_path(client, &topic, client.name())?;
    let mut tree = Tree::new("request", &topic, client.name(), &before, true);
    let trace = Trace::new();
    (tree.trace, tree.bytes) = (Some(trace.id()), Some(question.bytes.len()));
    let mut decoder = Decoder::default();
    let began = Instant::now();
    let asked = Trace::scope(Some(trace), client.request_stream(&topic, question, arguments.wait));
    let ended = match blocking::wait(asked) {
        Err(error) => Some(error),
        Ok(mut replies) => loop {
            match blocking::wait(replies.next()) {
                None => break None,
                Some(Err(error)) => break Some(error),
                Some(Ok(part)) => {
                    let at = began.elapsed();
                    let text = decoder.show(client, &part).line(output);
                    tree.replies.push(tree::Reply { at, bytes: part.payload.len(), text });
                }
            }
        },
    };
    tree.ended = Some((began.elapsed(), ended));
    // What was answered was taken, but the broker may hear of that a moment later than we have the answer.
    let is_answered = matches!(tree.ended, Some((_, None)));
    let wait = if is_answered { arguments.wait } else { Duration::ZERO };
    (tree.hops, tree.path) =
        watch(&before, true, Instant::now(), wait, || ask_path(client, &topic, client.name()))?;
    // Times of the looks, not of the request.
    tree.hops.iter_mut().for_each(|hop| hop.at = None);
    tree.did_you_mean = did_you_mean(client, &tree)?;
    Ok(tree)
}

/// Waits for a message that somebody else publishes.
fn next(arguments: &Arguments, client: &Client, output: &mut Output) -> Result<Tree, Failure> {
    let filter: TopicFilter = arguments.topic.parse()?;
    // One that is enough: what comes behind it may be lost, and delays nobody.
    let options = SubscribeOptions::default().overflow(Overflow::DropNewest).queue(1, 0);
    let mut subscription = blocking::wait(client.subscribe(&filter, options))?;
    output.note(&format!("waiting for the next message on `{filter}`; end it with Ctrl-C"));
    let message = loop {
        match blocking::wait(subscription.next()) {
            Some(Event::Message(message)) => break message,
            Some(Event::Gap { .. }) => {}
            None => {
                let reason = subscription.end_reason().unwrap_or_default();
                return Err(Failure::new(Exit::Denied, format!("the subscription has ended: {reason}")));
            }
        }
    };
    drop(subscription);
    passed(arguments, client, &message, output)
}

fn passed(
    arguments: &Arguments,
    client: &Client,
    message: &Message,
    output: &Output,
) -> Result<Tree, Failure> {
    let came_ns = now_ns();
    let (topic, origin) = (&message.topic, &message.origin);
    let began = Instant::now();
    let nothing = Path::default();
    let (mut hops, path) = watch(&nothing, false, began, arguments.wait, || ask_path(client, topic, origin))?;
    // Ours has ended, and what it did not take is no news.
    hops.retain(|hop| hop.peer != client.name().as_str() || hop.is_settled());
    let mut tree = Tree::new("next", topic, origin, &path, false);
    // Times of a message that has passed are those of the look, not of the message.
    hops.iter_mut().for_each(|hop| hop.at = None);
    tree.hops = hops;
    tree.bytes = Some(message.payload.len());
    tree.sequence = Some(message.sequence);
    let header = &message.header;
    tree.id = Some(header.id).filter(|id| !id.is_nil());
    tree.trace = Trace::of(header).map(|trace| trace.id());
    // By two clocks, which are one if the publisher is on this machine.
    let published_ns = Some(header.published_at_ns).filter(|at| *at > 0);
    tree.travelled = published_ns.map(|at| Duration::from_nanos(came_ns.saturating_sub(at)));
    tree.text = Some(Decoder::default().show(client, message).line(output));
    Ok(tree)
}

/// A rule of the broker's answer, in few words.
fn rule_text(rule: &Value) -> String {
    super::info::rule(rule)
}

#[cfg(test)]
mod tests;
