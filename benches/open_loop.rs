//! How long a message takes one way at 10,000 messages a second, from publisher through the broker to a
//! subscriber, processes of their own, encrypted on both hops; beside libzmq doing the same.
//!
//! `cargo bench -p interlock-benches --bench open_loop`
//! `[-- --rate 10000 --bytes 128 --rounds 3 --window-ms 3000 --only interlock --record NAME]`
//!
//! The publisher has a timetable and keeps to it whatever happens (an open loop): a time runs from the moment
//! the message was due, not from when it was sent, so a stall shows in every message that it delayed.

use std::time::Duration;

use bytes::Bytes;
use interlock_benches::{
    arguments::{Arguments, Words},
    bus::{self, Bus},
    clock::{now_ns, percentile, sleep_until, wake_exactly},
    libzmq::{Libzmq, Proxy},
    process::Process,
    report::{Repeats, Report, one_digit, say, two_digits},
};
use interlock_bus::{Event, Payload, SubscribeOptions, TopicName, blocking::wait};

const TOPIC: &str = "bench/open-loop";
/// The first message is due when everybody has long been connected.
const LEAD_NS: u64 = 300_000_000;
/// Running number, time due, time sent.
const PAYLOAD_BYTES_MIN: usize = 24;

fn main() {
    let arguments = Arguments::read(&["rounds", "only"]);
    match arguments.text("role") {
        None => run(&arguments),
        Some("broker") => bus::broker(&arguments),
        Some("publisher") => publisher(&arguments),
        Some("subscriber") => subscriber(&arguments),
        Some(other) => panic!("`{other}` is no role of this bench"),
    }
}

/// What one side came to.
#[derive(Default)]
struct Side {
    p50_us: Repeats,
    p99_us: Repeats,
    p999_us: Repeats,
    longest_us: Repeats,
    since_sent_us: Repeats,
    late_us: Repeats,
    cpu_us: Repeats,
}

impl Side {
    fn measure(&mut self, broker: &Process, publisher: &Process, subscriber: &Process) {
        let processes = [broker, publisher, subscriber];
        subscriber.expect("begin");
        let all = || -> Duration { processes.iter().map(|process| process.cpu()).sum() };
        let cpu = all();
        let [messages, lost, times @ ..] = subscriber.expect_numbers::<8>("end");
        let cpu = all() - cpu;
        assert!(lost == 0.0, "{lost} of {messages} messages were lost");
        let columns = [
            &mut self.p50_us,
            &mut self.p99_us,
            &mut self.p999_us,
            &mut self.longest_us,
            &mut self.since_sent_us,
            &mut self.late_us,
        ];
        columns.into_iter().zip(times).for_each(|(column, time_ns)| column.add(time_ns / 1e3));
        self.cpu_us.add(cpu.as_secs_f64() * 1e6 / messages);
    }
}

fn run(arguments: &Arguments) {
    let mut report = Report::begin("open_loop");
    let libzmq = Libzmq::beside(arguments, &mut report);
    let (rate, bytes) = (arguments.value("rate", 10_000u64), arguments.value("bytes", 128usize));
    report.line(&format!("- {rate} messages a second of {bytes} bytes\n"));
    report.line("| what | Interlock | libzmq | ratio |\n|---|---|---|---|");
    let mut words = arguments.times(500, 3000);
    words.extend([
        ("topic", TOPIC.to_owned()),
        ("bytes", bytes.max(PAYLOAD_BYTES_MIN).to_string()),
        ("rate", rate.to_string()),
    ]);
    let (mut ours, mut theirs) = (Side::default(), Side::default());
    for _ in 0..arguments.value("rounds", 3) {
        if arguments.wants("interlock") {
            interlock_window(&mut ours, &words);
        }
        if let Some(libzmq) = &libzmq {
            let Proxy { process, front, back } = libzmq.proxy("publish");
            let subscriber = libzmq.peer("latency", &back, &words);
            subscriber.expect("ready");
            theirs.measure(&process, &libzmq.peer("pace", &front, &words), &subscriber);
        }
    }
    for (what, one, other) in [
        ("p50, us", &ours.p50_us, &theirs.p50_us),
        ("p99, us", &ours.p99_us, &theirs.p99_us),
        ("p99.9, us", &ours.p999_us, &theirs.p999_us),
        ("longest, us", &ours.longest_us, &theirs.longest_us),
        ("p50 since it was sent, us", &ours.since_sent_us, &theirs.since_sent_us),
        ("how late it was sent, p50, us", &ours.late_us, &theirs.late_us),
        ("CPU of all, us/message", &ours.cpu_us, &theirs.cpu_us),
    ] {
        let ratio = one.over(other).shown(two_digits);
        report.line(&format!("| {what} | {} | {} | {ratio} |", one.shown(one_digit), other.shown(one_digit)));
    }
    report.keep(arguments.text("record"));
}

fn interlock_window(side: &mut Side, words: &Words) {
    let bus = Bus::start();
    let role = |role| Process::role(role, &[words.clone(), vec![("credentials", bus.enrol(role))]].concat());
    let subscriber = role("subscriber");
    subscriber.expect("ready");
    side.measure(&bus.broker, &role("publisher"), &subscriber);
}

fn publisher(arguments: &Arguments) {
    let client = bus::client(arguments);
    let topic: TopicName = TOPIC.parse().expect("a topic");
    let mut payload = vec![0; arguments.value("bytes", PAYLOAD_BYTES_MIN)];
    let interval_ns = 1_000_000_000 / arguments.value("rate", 10_000u64);
    wake_exactly();
    let start = now_ns() + LEAD_NS;
    for running in 0u64.. {
        let due = start + running * interval_ns;
        sleep_until(due);
        for (at, number) in [running, due, now_ns()].into_iter().enumerate() {
            payload[at * 8..][..8].copy_from_slice(&number.to_le_bytes());
        }
        let sent = client.publish(&topic, Payload::bytes(Bytes::copy_from_slice(&payload)));
        sent.expect("the outgoing queue takes seconds of this rate");
    }
}

fn subscriber(arguments: &Arguments) {
    let client = bus::client(arguments);
    let (warm_up, window) = (arguments.milliseconds("warm-up-ms"), arguments.milliseconds("window-ms"));
    let filter = TOPIC.parse().expect("a filter");
    let ([mut times, mut since_sent, mut late], mut lost) = (<[Vec<u64>; 3]>::default(), 0u64);
    let mut begin = None;
    wait(async {
        let mut subscription =
            client.subscribe(&filter, SubscribeOptions::default()).await.expect("it is permitted");
        say("ready");
        for expected in 0u64.. {
            let payload = match subscription.next().await {
                Some(Event::Message(message)) => message.payload,
                other => panic!("a message was awaited, and {other:?} came"),
            };
            let now = now_ns();
            let number =
                |at: usize| payload[at * 8..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            let (running, due, sent) = (number(0), number(1), number(2));
            lost += u64::from(running != expected);
            let begin = *begin.get_or_insert(due + warm_up.as_nanos() as u64);
            if due < begin {
                continue;
            }
            if times.is_empty() {
                say("begin");
            }
            if due >= begin + window.as_nanos() as u64 {
                break;
            }
            times.push(now - due);
            since_sent.push(now - sent);
            late.push(sent - due);
        }
        [&mut times, &mut since_sent, &mut late].into_iter().for_each(|values| values.sort_unstable());
        let [p50, p99, p999, longest] = [0.5, 0.99, 0.999, 1.0].map(|share| percentile(&times, share));
        let [since_sent, late] = [&since_sent, &late].map(|values| percentile(values, 0.5));
        say(&format!("end {} {lost} {p50} {p99} {p999} {longest} {since_sent} {late}", times.len()));
        // The bench reads our processor time now and then kills us.
        std::future::pending::<()>().await;
    });
}
