//! A flow: publishers that send as fast as they are let, a broker or proxy, subscribers that count. The
//! roles of our side, and how both sides are measured.
//!
//! A payload begins with a running number (8 bytes) and its stream (4): one of a publisher and a topic. So
//! a subscriber sees what is missing and what is out of order.

use std::time::{Duration, Instant};

use bytes::Bytes;
use interlock_bus::{
    Event, Payload, PublishOptions, SubscribeOptions, TopicFilter, TopicName, blocking::wait,
    native::Overflow,
};

use crate::{
    arguments::{Arguments, Words},
    bus::{self, Bus},
    libzmq::{Libzmq, Proxy},
    process::Process,
    report::{Repeats, rate, say, two_digits},
};

/// What all topics of a flow begin with.
pub const TOPIC: &str = "bench/flow";
/// Running number and stream.
const PAYLOAD_BYTES_MIN: usize = 12;

/// What is measured together: one row of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Bytes of a payload.
    pub bytes: usize,
    /// Subscribers, each of which gets everything.
    pub subscribers: usize,
    /// Topics, over which each publisher goes in turn.
    pub topics: usize,
    /// Publishers.
    pub publishers: usize,
}

/// One window of one side.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Messages a second that each subscriber got.
    pub rate: f64,
    /// Processor time of all processes for each message published, in microseconds.
    pub cpu_us: f64,
    /// Processor time of the broker for a million deliveries, in seconds.
    pub broker_cpu_s: f64,
    /// Messages of the window that came, of those that were sent.
    pub arrived: f64,
    /// Messages that did not come, in the window and before it.
    pub lost: f64,
}

/// The windows of one side.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// [`Window::rate`].
    pub rate: Repeats,
    /// [`Window::cpu_us`].
    pub cpu_us: Repeats,
    /// [`Window::broker_cpu_s`].
    pub broker_cpu_s: Repeats,
    /// [`Window::arrived`].
    pub arrived: Repeats,
}

impl Side {
    /// Adds a window.
    pub fn add(&mut self, window: &Window) {
        self.rate.add(window.rate);
        self.cpu_us.add(window.cpu_us);
        self.broker_cpu_s.add(window.broker_cpu_s);
        self.arrived.add(window.arrived);
    }
}

/// The columns that [`columns`] fills.
pub const COLUMNS: &str = "Interlock, msg/s | libzmq, msg/s | ratio | CPU us/msg, ours | theirs | broker CPU s per million deliveries, ours | theirs |";

/// Both sides in one row, without its first cells.
pub fn columns(ours: &Side, theirs: &Side) -> String {
    let medians = [&ours.cpu_us, &theirs.cpu_us, &ours.broker_cpu_s, &theirs.broker_cpu_s]
        .map(|side| side.shown_median(two_digits));
    format!(
        "{} | {} | {} | {} |",
        ours.rate.shown(rate),
        theirs.rate.shown(rate),
        ours.rate.over(&theirs.rate).shown(two_digits),
        medians.join(" | ")
    )
}

impl Cell {
    /// What publishers and subscribers of either side are told.
    fn words(&self, publisher: usize) -> Words {
        // A look at the clock costs little beside 16 messages, and a window is to end near its time.
        let clock_every = if self.bytes < 16 << 10 { 16 } else { 1 };
        vec![
            ("topic", TOPIC.to_owned()),
            ("topics", self.topics.to_string()),
            ("bytes", self.bytes.max(PAYLOAD_BYTES_MIN).to_string()),
            ("publisher", publisher.to_string()),
            ("publishers", self.publishers.to_string()),
            ("clock-every", clock_every.to_string()),
        ]
    }

    /// Runs our side once.
    pub fn interlock_window(&self, times: &[(&'static str, String)]) -> Window {
        let bus = Bus::start();
        let role = |role: &str, publisher: usize, number: usize| {
            let credentials = vec![("credentials", bus.enrol(&format!("{role}-{number}")))];
            Process::role(role, &[self.words(publisher), times.to_vec(), credentials].concat())
        };
        let subscribers = (0..self.subscribers).map(|number| role("subscriber", 0, number));
        let subscribers = all_ready(subscribers);
        let publishers: Vec<_> =
            (0..self.publishers).map(|number| role("publisher", number, number)).collect();
        measure(&bus.broker, &publishers, &subscribers).without_loss()
    }

    /// Runs libzmq's side once.
    pub fn libzmq_window(&self, libzmq: &Libzmq, times: &[(&'static str, String)]) -> Window {
        let Proxy { process, front, back } = libzmq.proxy("publish");
        let words = [self.words(0), times.to_vec()].concat();
        let subscribers = all_ready((0..self.subscribers).map(|_| libzmq.peer("subscribe", &back, &words)));
        let publishers: Vec<_> =
            (0..self.publishers).map(|number| libzmq.peer("publish", &front, &self.words(number))).collect();
        measure(&process, &publishers, &subscribers).without_loss()
    }
}

/// Starts all, then waits for all.
pub fn all_ready(processes: impl Iterator<Item = Process>) -> Vec<Process> {
    let processes: Vec<Process> = processes.collect();
    processes.iter().for_each(|process| drop(process.expect("ready")));
    processes
}

/// Waits for the windows of all subscribers, which begin and end by their own clocks.
pub fn measure(broker: &Process, publishers: &[Process], subscribers: &[Process]) -> Window {
    subscribers.iter().for_each(|subscriber| drop(subscriber.expect("begin")));
    let all = || -> Duration {
        broker.cpu() + publishers.iter().chain(subscribers).map(Process::cpu).sum::<Duration>()
    };
    let (began, cpu, broker_cpu) = (Instant::now(), all(), broker.cpu());
    let ends: Vec<[f64; 4]> = subscribers.iter().map(|subscriber| subscriber.expect_numbers("end")).collect();
    let (elapsed, cpu, broker_cpu) = (began.elapsed(), all() - cpu, broker.cpu() - broker_cpu);
    let sum = |at: usize| ends.iter().map(|end| end[at]).sum::<f64>();
    let rate = ends.iter().map(|[messages, nanoseconds, ..]| messages / nanoseconds * 1e9).sum::<f64>()
        / ends.len() as f64;
    let (came, lost, lost_before) = (sum(0), sum(2), sum(3));
    let published = rate * elapsed.as_secs_f64() * (came + lost) / came;
    Window {
        rate,
        cpu_us: cpu.as_secs_f64() * 1e6 / published,
        broker_cpu_s: broker_cpu.as_secs_f64() * 1e6 / (rate * elapsed.as_secs_f64() * ends.len() as f64),
        arrived: came / (came + lost),
        lost: lost + lost_before,
    }
}

impl Window {
    /// Itself.
    ///
    /// # Panics
    /// If anything was lost: rates of different losses cannot be compared.
    fn without_loss(self) -> Self {
        assert!(self.lost == 0.0, "messages were lost: {self:?}");
        self
    }
}

/// The topics of a flow: the base, or as many below it.
pub fn topics(arguments: &Arguments) -> Vec<TopicName> {
    let base = arguments.text("topic").unwrap_or(TOPIC);
    let name = |at, topics| if topics == 1 { base.to_owned() } else { format!("{base}/{at:04}") };
    let topics = arguments.value("topics", 1);
    (0..topics).map(|at| name(at, topics).parse().expect("a topic")).collect()
}

/// The role `publisher`: publishes on its topics in turn, for ever or as many `messages` on each.
///
/// # Panics
/// If the broker refuses a message or the link is lost.
pub fn publisher(arguments: &Arguments) {
    let client = bus::client(arguments);
    let topics = topics(arguments);
    let stream = arguments.value("publisher", 0) * topics.len() as u32;
    let mut payload = vec![0; arguments.value("bytes", PAYLOAD_BYTES_MIN)];
    let options = PublishOptions::default();
    wait(async {
        for running in 0..arguments.value("messages", u64::MAX) {
            payload[..8].copy_from_slice(&running.to_le_bytes());
            for (topic, stream) in topics.iter().zip(stream..) {
                payload[8..12].copy_from_slice(&stream.to_le_bytes());
                let message = Payload::bytes(Bytes::copy_from_slice(&payload));
                if let Err(error) = client.publish_waiting(topic, message, &options).await {
                    panic!("the publisher cannot go on: {error}");
                }
            }
        }
        client.close().await;
        say("published");
    });
}

/// The role `subscriber`, with the policy `wait`: the publishers are held and nothing is dropped. Says when
/// its window begins, and at its end how many messages came, in which time, and how many did not.
///
/// # Panics
/// If a message is out of order, comes twice or is reported as lost.
pub fn subscriber(arguments: &Arguments) {
    let client = bus::client(arguments);
    let (warm_up, window) = (arguments.milliseconds("warm-up-ms"), arguments.milliseconds("window-ms"));
    let clock_every = arguments.value("clock-every", 16u64);
    let topics = topics(arguments).len();
    let mut expected = vec![0u64; topics * arguments.value("publishers", 1)];
    let filter: TopicFilter = format!("{TOPIC}/#").parse().expect("a filter, of its parent too");
    wait(async {
        let options = SubscribeOptions::default().overflow(Overflow::Wait);
        let mut subscription = client.subscribe(&filter, options).await.expect("it is permitted");
        say("ready");
        let (mut lost, mut lost_before, mut count) = (0, 0, 0u64);
        let mut begin: Option<Instant> = None;
        let mut measured_since: Option<Instant> = None;
        for received in 0u64.. {
            let (running, stream) = match subscription.next().await {
                Some(Event::Message(message)) => numbers(&message.payload),
                other => panic!("a message was awaited, and {other:?} came"),
            };
            let next = expected.get_mut(stream).unwrap_or_else(|| panic!("there is no stream {stream}"));
            assert!(running >= *next, "message {running} of stream {stream} came after {next}");
            lost += running - *next;
            *next = running + 1;
            count += 1;
            if received % clock_every != 0 {
                continue;
            }
            let now = Instant::now();
            match measured_since {
                None if now >= *begin.get_or_insert(now + warm_up) => {
                    (measured_since, lost_before) = (Some(now), lost);
                    (count, lost) = (0, 0);
                    say("begin");
                }
                Some(since) if now - since >= window => {
                    let nanoseconds = (now - since).as_nanos();
                    say(&format!("end {count} {nanoseconds} {lost} {lost_before}"));
                    (measured_since, begin) = (None, Some(now + Duration::from_secs(3600)));
                }
                _ => {}
            }
        }
    });
}

/// The role `taker`, with the default policy: takes until all `messages` are accounted for, as come or as
/// reported lost.
///
/// # Panics
/// If more come than were to, or the broker cannot say how many it lost.
pub fn taker(arguments: &Arguments) {
    let client = bus::client(arguments);
    let (messages, bytes) = (arguments.value("messages", 1), arguments.value("bytes", 0));
    let filter: TopicFilter = TOPIC.parse().expect("a topic is a filter");
    let (mut came, mut lost) = (0, 0);
    wait(async {
        let options = SubscribeOptions::default();
        let mut subscription = client.subscribe(&filter, options).await.expect("it is permitted");
        say("ready");
        while came + lost < messages {
            match subscription.next().await {
                Some(Event::Message(message)) => {
                    assert_eq!(message.payload.len(), bytes, "a message came whole");
                    came += 1;
                }
                Some(Event::Gap { count: Some(count), .. }) => lost += count,
                other => panic!("a message or a counted gap was awaited, and {other:?} came"),
            }
        }
        assert_eq!(came + lost, messages, "{came} came and {lost} were reported as lost");
        say(&format!("end {came} {lost}"));
        std::future::pending::<()>().await;
    });
}

fn numbers(payload: &[u8]) -> (u64, usize) {
    let running = payload.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
    let stream =
        payload.get(8..12).and_then(|bytes| bytes.first_chunk()).map(|bytes| u32::from_le_bytes(*bytes));
    (running, stream.map_or(usize::MAX, |stream| stream as usize))
}
