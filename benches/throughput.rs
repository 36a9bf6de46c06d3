//! How many messages a second go from one publisher through the broker to 1 and to 4 subscribers,
//! every process for itself, encrypted on both hops, nothing lost; beside libzmq doing the same.
//!
//! `cargo bench -p interlock-benches --bench throughput`
//! `[-- --sizes 16,128 --subscribers 1,4 --rounds 3 --window-ms 1000 --only interlock --record NAME]`

use std::time::{Duration, Instant};

use bytes::Bytes;
use interlock_benches::{
    arguments::Arguments,
    bus::{self, Bus},
    libzmq::Libzmq,
    process::Process,
    report::{Repeats, Report, rate, say, two_digits},
};
use interlock_bus::{
    Event, Payload, PublishOptions, SubscribeOptions, TopicName, blocking::wait, native::Overflow,
};

const TOPIC: &str = "bench/throughput";
/// Messages between two looks at the clock, on both sides.
const CLOCK_EVERY: u64 = 16;

fn main() {
    let arguments = Arguments::read(&["sizes", "subscribers", "rounds", "only"]);
    match arguments.text("role") {
        None => run(&arguments),
        Some("broker") => bus::broker(&arguments),
        Some("publisher") => publisher(&arguments),
        Some("subscriber") => subscriber(&arguments),
        Some(other) => panic!("`{other}` is no role of this bench"),
    }
}

/// One window of one side.
struct Window {
    /// Messages a second and subscriber.
    rate: f64,
    /// Processor time of all processes for each message published, in microseconds.
    cpu_us: f64,
    /// The same of the broker alone.
    broker_cpu_us: f64,
}

#[derive(Default)]
struct Side {
    rate: Repeats,
    cpu_us: Repeats,
    broker_cpu_us: Repeats,
}

impl Side {
    fn add(&mut self, window: &Window) {
        self.rate.add(window.rate);
        self.cpu_us.add(window.cpu_us);
        self.broker_cpu_us.add(window.broker_cpu_us);
    }
}

fn run(arguments: &Arguments) {
    let mut report = Report::begin("throughput");
    let only = arguments.text("only");
    let libzmq = if only == Some("interlock") { None } else { Libzmq::compile() };
    if let Some(libzmq) = &libzmq {
        report.line(&format!("- libzmq: {}", libzmq.version));
    }
    report.line("\n| payload | subscribers | Interlock, msg/s | libzmq, msg/s | ratio | CPU us/msg, ours | theirs | broker CPU us/msg, ours | theirs |");
    report.line("|---|---|---|---|---|---|---|---|---|");
    for bytes in arguments.list("sizes", &[16, 128, 1024, 16_384]) {
        for subscribers in arguments.list("subscribers", &[1, 4]) {
            let (mut ours, mut theirs) = (Side::default(), Side::default());
            for _ in 0..arguments.value("rounds", 3) {
                if only != Some("libzmq") {
                    ours.add(&interlock_window(arguments, bytes, subscribers));
                }
                if let Some(libzmq) = &libzmq {
                    theirs.add(&libzmq_window(libzmq, arguments, bytes, subscribers));
                }
            }
            report.line(&format!(
                "| {bytes} | {subscribers} | {} | {} | {} | {} | {} | {} | {} |",
                ours.rate.shown(rate),
                theirs.rate.shown(rate),
                ours.rate.over(&theirs.rate).shown(two_digits),
                two_digits(ours.cpu_us.median()),
                two_digits(theirs.cpu_us.median()),
                two_digits(ours.broker_cpu_us.median()),
                two_digits(theirs.broker_cpu_us.median()),
            ));
        }
    }
    report.keep(arguments.text("record"));
}

fn times(arguments: &Arguments) -> [(&'static str, String); 2] {
    let text = |name, default| arguments.text(name).map_or_else(|| String::from(default), str::to_owned);
    [("warm-up-ms", text("warm-up-ms", "400")), ("window-ms", text("window-ms", "1000"))]
}

fn interlock_window(arguments: &Arguments, bytes: usize, subscribers: usize) -> Window {
    let bus = Bus::start();
    let mut words = times(arguments).to_vec();
    let subscribers: Vec<Process> = (0..subscribers)
        .map(|number| {
            let credentials = ("credentials", bus.enrol(&format!("subscriber-{number}")));
            Process::role("subscriber", &[words.clone(), vec![credentials]].concat())
        })
        .collect();
    subscribers.iter().for_each(|subscriber| drop(subscriber.expect("ready")));
    words = vec![("bytes", bytes.to_string()), ("credentials", bus.enrol("publisher"))];
    let publisher = Process::role("publisher", &words);
    measure(&bus.broker, &publisher, &subscribers)
}

fn libzmq_window(libzmq: &Libzmq, arguments: &Arguments, bytes: usize, subscribers: usize) -> Window {
    let proxy = libzmq.proxy("publish");
    let [(_, warm_up), (_, window)] = times(arguments);
    let subscribers: Vec<Process> = (0..subscribers)
        .map(|_| {
            let words = [TOPIC.to_owned(), warm_up.clone(), window.clone()];
            libzmq.peer("subscribe", &proxy, &proxy.back, &words)
        })
        .collect();
    subscribers.iter().for_each(|subscriber| drop(subscriber.expect("ready")));
    let words = [TOPIC.to_owned(), bytes.to_string()];
    let publisher = libzmq.peer("publish", &proxy, &proxy.front, &words);
    measure(&proxy.process, &publisher, &subscribers)
}

/// Waits for the windows of all subscribers, which begin and end by their own clocks.
fn measure(broker: &Process, publisher: &Process, subscribers: &[Process]) -> Window {
    subscribers.iter().for_each(|subscriber| drop(subscriber.expect("begin")));
    let all = || -> Duration {
        broker.cpu() + publisher.cpu() + subscribers.iter().map(Process::cpu).sum::<Duration>()
    };
    let (began, cpu, broker_cpu) = (Instant::now(), all(), broker.cpu());
    let ends: Vec<[u64; 3]> = subscribers
        .iter()
        .map(|subscriber| {
            let words = subscriber.expect("end");
            [0, 1, 2].map(|at| words[at].parse().expect("a subscriber prints three numbers"))
        })
        .collect();
    let (elapsed, cpu, broker_cpu) = (began.elapsed(), all() - cpu, broker.cpu() - broker_cpu);
    assert!(ends.iter().all(|[_, _, lost]| *lost == 0), "messages were lost: {ends:?}");
    let rates = ends.iter().map(|[messages, nanoseconds, _]| *messages as f64 / *nanoseconds as f64 * 1e9);
    let rate = rates.sum::<f64>() / ends.len() as f64;
    let published = rate * elapsed.as_secs_f64();
    let per_message = |cpu: Duration| cpu.as_secs_f64() * 1e6 / published;
    Window { rate, cpu_us: per_message(cpu), broker_cpu_us: per_message(broker_cpu) }
}

/// Publishes for ever; the payload begins with a running number.
fn publisher(arguments: &Arguments) {
    let client = bus::client(arguments);
    let topic: TopicName = TOPIC.parse().expect("a topic");
    let mut payload = vec![0; arguments.value("bytes", 16).max(8)];
    let options = PublishOptions::default();
    wait(async {
        for number in 0u64.. {
            payload[..8].copy_from_slice(&number.to_le_bytes());
            let message = Payload::bytes(Bytes::copy_from_slice(&payload));
            if let Err(error) = client.publish_waiting(&topic, message, &options).await {
                panic!("the publisher cannot go on: {error}");
            }
        }
    });
}

/// Subscribes with the policy `wait`, so that the publisher is held and nothing is dropped.
fn subscriber(arguments: &Arguments) {
    let client = bus::client(arguments);
    let (warm_up, window) =
        (arguments.milliseconds("warm-up-ms", 400), arguments.milliseconds("window-ms", 1000));
    let filter = TOPIC.parse().expect("a filter");
    wait(async {
        let options = SubscribeOptions::default().overflow(Overflow::Wait);
        let mut subscription = client.subscribe(&filter, options).await.expect("it is permitted");
        say("ready");
        let (mut expected, mut lost, mut count) = (None, 0u64, 0u64);
        let mut begin: Option<Instant> = None;
        let mut measured_since: Option<Instant> = None;
        for received in 0u64.. {
            let number = match subscription.next().await {
                Some(Event::Message(message)) => number(&message.payload),
                other => panic!("a message was awaited, and {other:?} came"),
            };
            lost += u64::from(expected.is_some_and(|expected| expected != number));
            expected = Some(number + 1);
            count += 1;
            if received % CLOCK_EVERY != 0 {
                continue;
            }
            let now = Instant::now();
            match measured_since {
                None if now >= *begin.get_or_insert(now + warm_up) => {
                    (measured_since, count) = (Some(now), 0);
                    say("begin");
                }
                Some(since) if now - since >= window => {
                    say(&format!("end {count} {} {lost}", (now - since).as_nanos()));
                    (measured_since, begin) = (None, Some(now + Duration::from_secs(3600)));
                }
                _ => {}
            }
        }
    });
}

fn number(payload: &[u8]) -> u64 {
    payload.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))
}
