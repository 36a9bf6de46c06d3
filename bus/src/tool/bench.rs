//! `bus bench`: what the broker does on this machine, measured through clients as programs use them.
//!
//! | file | noun |
//! |---|---|
//! | `flow` | messages as fast as they go, to 1 subscriber and to many |
//! | `latency` | messages by a timetable, and how long each takes one way |
//! | `request` | requests through the broker to a server and back |
//! | `csv` | the file of a run, a line for each client and phase |
//! | `private` | a broker for this run alone |
//!
//! Counted is what has been received; what was published and did not come is printed as lost.

mod csv;
mod flow;
mod latency;
mod private;
mod request;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use self::{csv::Party, private::PrivateBroker};
use super::{Failure, Output, histogram::Histogram, table};
use crate::{
    blocking,
    client::{Client, ConnectOptions, Event, SubscribeOptions, Subscription},
    envelope::Message,
    error::SubscribeError,
    exit::Exit,
    keys::Credentials,
    limits,
    native::Overflow,
    topic::{TopicFilter, TopicName},
};

/// What `bus bench` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bus bench\n  bus bench throughput fan-out --size 1024 --subscribers 32\n  \
    bus bench latency --rate 50000 --duration 10s --private --csv run.csv"
)]
pub(super) struct Arguments {
    /// What to measure; everything if left out
    #[arg(value_enum)]
    measurements: Vec<Measurement>,
    /// Bytes of a payload
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(8..=limits::PAYLOAD_BYTES_MAX as u64))]
    size: u64,
    /// Subscribers of the fan-out
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    subscribers: u32,
    /// How long each measurement publishes or asks, for example 500ms, 2s
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = super::duration)]
    duration: Duration,
    /// Messages a second of the latency measurement
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Requests in flight, besides the measurement with one
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=limits::REQUESTS_PER_SESSION_MAX as i64))]
    in_flight: u32,
    /// Topic below which to publish
    #[arg(long, default_value = "bench")]
    topic: String,
    /// Start a broker for this run alone, with keys of its own, instead of using the running instance
    #[arg(long, conflicts_with = "creds")]
    private: bool,
    /// Write comma-separated values into this file as well, a line for each client and phase; one that cannot be written
    /// is refused before anything is measured
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

impl Arguments {
    /// What can be judged without a broker.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.below(Measurement::Throughput)?;
        self.csv.as_deref().map_or(Ok(()), csv::check)
    }

    /// A topic that no other run uses.
    fn below(&self, measurement: Measurement) -> Result<TopicName, Failure> {
        Ok(format!("{}/{}/{}", self.topic, measurement.as_str(), std::process::id()).parse()?)
    }
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Measurement {
    /// Messages a second to one subscriber
    Throughput,
    /// Messages a second to many subscribers
    FanOut,
    /// How long a message takes one way, by a timetable
    Latency,
    /// How long a request takes there and back, alone and many at once
    Request,
}

impl Measurement {
    fn as_str(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::FanOut => "fan-out",
            Self::Latency => "latency",
            Self::Request => "request",
        }
    }
}

/// One line of the result.
#[derive(Debug)]
struct Row {
    measurement: Measurement,
    subscribers: u32,
    in_flight: Option<u32>,
    /// Messages published, or requests sent.
    published: u64,
    /// Messages that came, of all subscribers, or answers.
    received: u64,
    /// Messages a second and subscriber, or answers a second.
    messages_per_second: f64,
    /// What each client did.
    parties: Vec<Party>,
}

impl Row {
    fn lost(&self) -> u64 {
        (self.published * u64::from(self.subscribers)).saturating_sub(self.received)
    }

    /// How long each message or request took, if that was measured.
    fn times(&self) -> Option<&Histogram> {
        self.parties.iter().find_map(|party| party.times.as_ref())
    }

    /// Its name in the file.
    fn phase(&self) -> String {
        match self.in_flight {
            Some(in_flight) => format!("{}-{in_flight}", self.measurement.as_str()),
            None => self.measurement.as_str().to_owned(),
        }
    }

    fn value(&self, size: u64) -> Value {
        let time = |share: f64| self.times().map(|times| times.percentile(share).as_nanos() as f64 / 1e3);
        json!({
            "measurement": self.measurement.as_str(),
            "size": size,
            "subscribers": self.subscribers,
            "in_flight": self.in_flight,
            "published": self.published,
            "received": self.received,
            "lost": self.lost(),
            "messages_per_second": self.messages_per_second.round(),
            "bytes_per_second": (self.messages_per_second * size as f64).round(),
            "p50_us": time(0.5),
            "p90_us": time(0.9),
            "p99_us": time(0.99),
            "p999_us": time(0.999),
            "longest_us": time(1.0),
        })
    }
}

pub(super) fn run(
    arguments: &Arguments,
    credentials: impl FnOnce() -> Result<Credentials, Failure>,
    timeout: Duration,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let private = if arguments.private { Some(PrivateBroker::start()?) } else { None };
    let credentials = match &private {
        Some(private) => private.credentials().clone(),
        None => credentials()?,
    };
    let run = Run { arguments, credentials, timeout };
    let mut rows = Vec::new();
    for measurement in run.measurements() {
        rows.extend(match measurement {
            Measurement::Throughput => vec![flow::run(&run, measurement, 1)?],
            Measurement::FanOut => vec![flow::run(&run, measurement, arguments.subscribers)?],
            Measurement::Latency => vec![latency::run(&run)?],
            Measurement::Request => request::run(&run)?,
        });
    }
    print(&rows, arguments, output)?;
    if let Some(path) = &arguments.csv {
        let phases: Vec<_> = rows.iter().map(|row| (row.phase(), &row.parties[..])).collect();
        csv::write(path, arguments.size, &phases)?;
    }
    let lost: u64 = rows.iter().map(Row::lost).sum();
    if lost > 0 {
        output.note(&format!(
            "{lost} messages were lost; give the peer `wait = true` to hold publishers instead"
        ));
        return Ok(Exit::Full);
    }
    Ok(Exit::Done)
}

fn print(rows: &[Row], arguments: &Arguments, output: &mut Output) -> Result<(), Failure> {
    let rows: Vec<Value> = rows.iter().map(|row| row.value(arguments.size)).collect();
    table::print(
        &rows,
        &[
            ("MEASUREMENT", |row| table::text(&row["measurement"])),
            ("SIZE", |row| table::text(&row["size"])),
            ("SUBSCRIBERS", |row| table::text(&row["subscribers"])),
            ("IN FLIGHT", |row| table::text(&row["in_flight"])),
            ("PUBLISHED", |row| table::text(&row["published"])),
            ("RECEIVED", |row| table::text(&row["received"])),
            ("LOST", |row| table::text(&row["lost"])),
            ("PER SECOND", |row| {
                table::text(&json!(row["messages_per_second"].as_f64().map(|rate| rate as u64)))
            }),
            ("BYTES/S", |row| table::bytes(&row["bytes_per_second"])),
            ("P50 US", |row| table::rate(&row["p50_us"])),
            ("P99 US", |row| table::rate(&row["p99_us"])),
            ("P99.9 US", |row| table::rate(&row["p999_us"])),
            ("LONGEST", |row| table::rate(&row["longest_us"])),
        ],
        output,
    )
}

/// What all measurements of a run share.
struct Run<'a> {
    arguments: &'a Arguments,
    credentials: Credentials,
    timeout: Duration,
}

impl Run<'_> {
    fn measurements(&self) -> Vec<Measurement> {
        match &self.arguments.measurements[..] {
            [] => <Measurement as clap::ValueEnum>::value_variants().to_vec(),
            chosen => chosen.to_vec(),
        }
    }

    /// A client of its own for each part, as programs have.
    fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect_blocking(ConnectOptions::new(self.credentials.clone()).timeout(self.timeout))?)
    }

    /// Subscribes so that publishers are held, if that is permitted; else with the default policy.
    fn subscribe(&self, client: &Client, topic: &TopicName) -> Result<Subscription, Failure> {
        let filter: TopicFilter = topic.as_str().parse()?;
        let options = SubscribeOptions::default();
        let holding = options.clone().overflow(Overflow::Wait);
        match blocking::wait(client.subscribe(&filter, holding)) {
            Err(SubscribeError::Denied { code, .. }) if code == "wait_not_permitted" => {
                Ok(blocking::wait(client.subscribe(&filter, options))?)
            }
            outcome => Ok(outcome?),
        }
    }

    /// Waits for a future that ends soon after the measurement's time.
    fn wait<T>(&self, what: &str, future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let deadline = Instant::now() + self.arguments.duration + self.timeout;
        blocking::wait_until(future, deadline).unwrap_or_else(|| {
            let text = format!("{what} did not end {:?} after its time", self.timeout);
            Err(Failure::new(Exit::NotReady, text))
        })
    }
}

/// How many messages one subscriber is to get; unknown while the publisher goes on.
struct Published(AtomicU64);

impl Published {
    fn unknown() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }

    fn set(&self, messages: u64) {
        self.0.store(messages, Ordering::Release);
    }

    fn is_known(&self) -> bool {
        self.0.load(Ordering::Acquire) != u64::MAX
    }

    fn have_come(&self, received: u64) -> bool {
        received >= self.0.load(Ordering::Acquire)
    }
}

/// What one subscriber got.
#[derive(Debug, Default)]
struct Received {
    messages: u64,
    /// The first message and the last one at which the clock was looked at: when, and how many by then.
    first: Option<Instant>,
    last: Option<(Instant, u64)>,
}

impl Received {
    /// From the first message to the last.
    fn took(&self) -> Duration {
        self.first.zip(self.last).map_or(Duration::ZERO, |(first, (last, _))| last - first)
    }

    /// Between the first message and the last.
    fn per_second(&self) -> f64 {
        let (Some(first), Some((last, messages))) = (self.first, self.last) else { return 0.0 };
        let seconds = last.duration_since(first).as_secs_f64();
        if seconds > 0.0 { (messages - 1) as f64 / seconds } else { 0.0 }
    }
}

/// Takes what comes until everything published has come, or nothing has for [`SILENCE`] since it is known.
fn receive(
    subscription: &mut Subscription,
    published: &Published,
    clock_every: u64,
    mut on_message: impl FnMut(&Message),
) -> Result<Received, Failure> {
    let mut received = Received::default();
    let mut quiet_since = Instant::now();
    loop {
        let before = received.messages;
        let taking = async {
            loop {
                match subscription.next().await {
                    Some(Event::Message(message)) => on_message(&message),
                    Some(Event::Gap { .. }) => continue,
                    None => return Err(subscription.end_reason()),
                }
                received.messages += 1;
                if received.messages % clock_every == 1 % clock_every {
                    let now = Instant::now();
                    received.first.get_or_insert(now);
                    received.last = Some((now, received.messages));
                }
                if published.have_come(received.messages) {
                    return Ok(());
                }
            }
        };
        let now = match blocking::wait_until(taking, Instant::now() + LOOK_EVERY) {
            Some(Ok(())) => return Ok(received),
            Some(Err(reason)) => {
                let reason = reason.unwrap_or_default();
                return Err(Failure::new(Exit::Denied, format!("the subscription has ended: {reason}")));
            }
            None => Instant::now(),
        };
        if received.messages != before || !published.is_known() {
            quiet_since = now;
        }
        if published.have_come(received.messages) || now - quiet_since >= SILENCE {
            return Ok(received);
        }
    }
}

/// What a thread of a measurement came to.
fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T, Failure>>) -> Result<T, Failure> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// How often a subscriber to whom nothing comes looks whether everything has come.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long nothing may come before the rest counts as lost.
const SILENCE: Duration = Duration::from_secs(1);
