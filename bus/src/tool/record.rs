//! `bus record`

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::sync::watch;

use super::{
    Failure, Output,
    decode::Decoder,
    signals::Signals,
    subscribe::{Policy, next_event},
    table,
};
use crate::{
    blocking,
    client::{Client, Event, LinkState, Subscription},
    envelope::now_ns,
    exit::Exit,
    recording::{Recorder, RecordingError, Summary},
    topic::TopicFilter,
};

/// How often the file is brought up to date: what a crash may take.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// What `bus record` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bus record '#' --output day.mcap\n  bus record 'sensors/#' --duration 5m"
)]
pub(super) struct Arguments {
    /// Topic filters: `+` is one level, `#` the rest
    #[arg(required = true)]
    filters: Vec<TopicFilter>,
    /// The new file; by default one named by the time, here
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// End after this many messages
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this long, for example 30s, 5m
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    duration: Option<Duration>,
    /// Record the topics' last values first
    #[arg(long)]
    retained: bool,
    #[command(flatten)]
    policy: Policy,
}

/// How long what had come before somebody asked for the end is still recorded.
const LAST_MESSAGES: Duration = Duration::from_secs(1);

/// What happens next, but for what a subscription gives.
enum Other {
    Asked,
    Link(LinkState),
}

pub(super) fn run(
    arguments: &Arguments,
    client: &Client,
    signals: &mut Signals,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let mut options = arguments.policy.options();
    options.retained = arguments.retained;
    let mut subscriptions = Vec::new();
    for filter in &arguments.filters {
        subscriptions.push(blocking::wait(client.subscribe(filter, options.clone()))?);
    }
    let path = arguments.output.clone().unwrap_or_else(named_by_the_time);
    let filters: Vec<String> = arguments.filters.iter().map(ToString::to_string).collect();
    let about = [("filters", filters.join(" ")), ("recorded_by", client.name().to_string())];
    let mut recorder = Recorder::create(&path, &about)?;
    output.note(&format!("recording to `{}`; end it with Ctrl-C", path.display()));
    let ended = record(arguments, client, &mut subscriptions, &mut recorder, signals, output);
    // Whatever it was that ended it, what came is in the file.
    let summary = recorder.finish()?;
    tell(&path, &summary, output)?;
    ended?;
    Ok(if summary.gaps > 0 { Exit::Full } else { Exit::Done })
}

fn record(
    arguments: &Arguments,
    client: &Client,
    subscriptions: &mut [Subscription],
    recorder: &mut Recorder,
    signals: &mut Signals,
    output: &mut Output,
) -> Result<(), Failure> {
    let end_at = arguments.duration.map(|duration| Instant::now() + duration);
    let mut decoder = Decoder::default();
    let mut sync_at = None;
    let mut last_at = None;
    let mut is_lost = false;
    let mut link = client.watch();
    link.mark_unchanged();
    loop {
        let has_all = arguments.count.is_some_and(|count| recorder.summary().messages >= count);
        if has_all || last_at.is_some_and(|last_at| last_at <= Instant::now()) {
            return Ok(());
        }
        let next = next(subscriptions, signals, &mut link);
        let wake_at = [sync_at, end_at].into_iter().flatten().min();
        let next = match (last_at, wake_at) {
            // Only what is here already.
            (Some(_), _) => match blocking::wait_until(next, Instant::now()) {
                None => return Ok(()),
                next => next,
            },
            (None, Some(wake_at)) => blocking::wait_until(next, wake_at),
            (None, None) => Some(blocking::wait(next)),
        };
        match next {
            // Several filters match it: the first one has it.
            Some(Ok(Some((at, Event::Message(message)))))
                if arguments.filters[..at].iter().any(|filter| filter.matches(&message.topic)) => {}
            Some(Ok(Some((_, Event::Message(message))))) => {
                let unknown = message.header.schema.filter(|schema| !recorder.knows_schema(*schema));
                let schema = unknown.and_then(|fingerprint| decoder.schema(client, fingerprint));
                recorder.message(now_ns(), &message, schema)?;
                sync_at.get_or_insert_with(|| Instant::now() + SYNC_EVERY);
            }
            Some(Ok(Some((at, Event::Gap { count, reason })))) => {
                recorder.gap(arguments.filters[at].as_str(), count, &reason)?;
            }
            Some(Ok(None)) => {
                let reason = client.closed_reason();
                let reason = reason.or_else(|| subscriptions.iter().find_map(Subscription::end_reason));
                let reason = reason.unwrap_or_default();
                return Err(Failure::new(Exit::Denied, format!("the recording has ended: {reason}")));
            }
            Some(Err(Other::Asked)) => {
                last_at.get_or_insert_with(|| Instant::now() + LAST_MESSAGES);
            }
            // Each failed attempt changes the reason; the loss is said once.
            Some(Err(Other::Link(LinkState::Lost { reason }))) if !is_lost => {
                is_lost = true;
                output.note(&format!(
                    "the link to the broker is lost ({reason}); what is published now is missing"
                ));
            }
            Some(Err(Other::Link(LinkState::Ready))) => {
                is_lost = false;
                output.note("the broker is back; the recording goes on")
            }
            Some(Err(Other::Link(_))) | None => {}
        }
        let now = Instant::now();
        if sync_at.is_some_and(|sync_at| sync_at <= now) {
            recorder.sync()?;
            sync_at = None;
        }
        if end_at.is_some_and(|end_at| end_at <= now) {
            return Ok(());
        }
    }
}

/// The next event of any subscription, with its place; `None` once one of them has ended.
async fn next(
    subscriptions: &mut [Subscription],
    signals: &mut Signals,
    link: &mut watch::Receiver<LinkState>,
) -> Result<Option<(usize, Event)>, Other> {
    tokio::select! {
        biased;
        () = signals.next() => Err(Other::Asked),
        Ok(()) = link.changed() => Err(Other::Link(link.borrow_and_update().clone())),
        event = next_event(subscriptions) => Ok(event),
    }
}

fn named_by_the_time() -> PathBuf {
    jiff::Zoned::now().strftime("bus-%Y%m%d-%H%M%S.mcap").to_string().into()
}

fn tell(path: &Path, summary: &Summary, output: &mut Output) -> Result<(), Failure> {
    let Summary { messages, payload_bytes, gaps, missing, .. } = summary;
    if output.is_json() {
        return output.json(&json!({
            "file": path, "messages": messages, "payload_bytes": payload_bytes, "gaps": gaps, "missing": missing,
        }));
    }
    let size = table::bytes(&json!(payload_bytes));
    let path = output.harmless(&path.display().to_string());
    output.line(&format!("{messages} messages ({size}) in {path}"))?;
    if *gaps > 0 {
        output.note(&format!(
            "messages are missing at {gaps} places, {missing} as far as is known; the file says where and why"
        ));
    }
    if *missing > 0 {
        output.note("record fewer topics, or with `--overflow wait` where that is permitted");
    }
    Ok(())
}

impl From<RecordingError> for Failure {
    fn from(error: RecordingError) -> Self {
        let exit = match &error {
            RecordingError::Io { source, .. } => Exit::of_io(source),
            RecordingError::Exists(_) => Exit::Misuse,
            RecordingError::TooManyTopics(_) => Exit::Full,
            RecordingError::Damaged { .. } => Exit::Damaged,
        };
        Self::new(exit, error)
    }
}
