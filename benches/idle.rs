//! How long it takes until 1,000 subscribers are connected and subscribed, and what each costs the broker in
//! memory while nothing happens; beside libzmq's proxy with 1,000 SUB sockets.
//!
//! `cargo bench -p interlock-benches --bench idle`
//! `[-- --count 1000 --rounds 3 --only interlock --record NAME]`
//!
//! One process holds all subscribers, each a client (a socket) of its own with a topic of its own. On our side
//! a subscription is there when the broker has acknowledged it; on libzmq's, when it has come through the
//! proxy to a publisher.

use std::time::Duration;

use futures_util::future::join_all;
use interlock_benches::{
    arguments::Arguments,
    bus::{self, Bus},
    clock::now_ns,
    flow,
    libzmq::{Libzmq, Proxy},
    process::{Process, resident_kib},
    report::{Repeats, Report, one_digit, say, two_digits},
};
use interlock_bus::{Client, SubscribeOptions, TopicFilter, blocking::wait, broker::raise_open_files_limit};

/// What settles after the last handshake.
const SETTLE: Duration = Duration::from_millis(500);

fn main() {
    let arguments = Arguments::read(&["rounds", "only"]);
    match arguments.text("role") {
        None => run(&arguments),
        Some("broker") => bus::broker(&arguments),
        Some("subscribers") => subscribers(&arguments),
        Some(other) => panic!("`{other}` is no role of this bench"),
    }
}

/// What one side came to.
#[derive(Default)]
struct Side {
    milliseconds: Repeats,
    broker_kib: Repeats,
    own_kib: Repeats,
    broker_cpu_ms: Repeats,
}

/// What was there before the subscribers came.
struct Before {
    kib: u64,
    cpu: Duration,
}

impl Before {
    fn of(broker: &Process) -> Self {
        Self { kib: resident_kib(broker.id()), cpu: broker.cpu() }
    }
}

impl Side {
    fn add(&mut self, broker: &Process, subscribers: &Process, before: &Before, time_ns: f64, count: f64) {
        self.milliseconds.add(time_ns / 1e6);
        self.broker_cpu_ms.add((broker.cpu() - before.cpu).as_secs_f64() * 1e3 / count);
        std::thread::sleep(SETTLE);
        self.broker_kib.add((resident_kib(broker.id()) as f64 - before.kib as f64) / count);
        self.own_kib.add(resident_kib(subscribers.id()) as f64 / count);
    }
}

fn run(arguments: &Arguments) {
    raise_open_files_limit();
    let mut report = Report::begin("idle");
    let libzmq = Libzmq::beside(arguments, &mut report);
    let count = arguments.value("count", 1000u32);
    let words =
        vec![("count", count.to_string()), ("topics", count.to_string()), ("topic", flow::TOPIC.to_owned())];
    let (mut ours, mut theirs) = (Side::default(), Side::default());
    for _ in 0..arguments.value("rounds", 3) {
        if arguments.wants("interlock") {
            let bus = Bus::start();
            let credentials = ("credentials", bus.enrol("subscriber"));
            let before = Before::of(&bus.broker);
            let subscribers = Process::role("subscribers", &[words.clone(), vec![credentials]].concat());
            let [time_ns] = subscribers.expect_numbers("all");
            ours.add(&bus.broker, &subscribers, &before, time_ns, count.into());
        }
        if let Some(libzmq) = &libzmq {
            let Proxy { process, front, back } = libzmq.proxy("publish");
            let watcher = libzmq.peer("watch", &front, &words);
            watcher.expect("ready");
            let before = Before::of(&process);
            let subscribers = libzmq.peer("idle", &back, &words);
            let [began] = subscribers.expect_numbers("began");
            let [all] = watcher.expect_numbers("all");
            theirs.add(&process, &subscribers, &before, all - began, count.into());
        }
    }
    report
        .line(&format!("- {count} subscribers\n\n| what | Interlock | libzmq | ratio |\n|---|---|---|---|"));
    type Row<'a> = (&'static str, &'a Repeats, &'a Repeats);
    let rows: [Row<'_>; 4] = [
        ("until all are subscribed, ms", &ours.milliseconds, &theirs.milliseconds),
        ("CPU of the broker for each, ms", &ours.broker_cpu_ms, &theirs.broker_cpu_ms),
        ("memory of the broker for each, KiB", &ours.broker_kib, &theirs.broker_kib),
        ("memory of the subscribers' process for each, KiB", &ours.own_kib, &theirs.own_kib),
    ];
    for (what, one, other) in rows {
        let show = if what.starts_with("CPU") { two_digits } else { one_digit };
        let ratio = one.over(other).shown(two_digits);
        report.line(&format!("| {what} | {} | {} | {ratio} |", one.shown(show), other.shown(show)));
    }
    report.keep(arguments.text("record"));
}

/// Connects and subscribes all at once, says how long that took and stays.
fn subscribers(arguments: &Arguments) {
    raise_open_files_limit();
    let options = bus::connect_options(arguments);
    let began = now_ns();
    let one = async |topic: interlock_bus::TopicName| {
        let client = Client::connect(options.clone()).await.expect("the broker takes a thousand");
        let filter: TopicFilter = topic.as_str().parse().expect("a topic is a filter");
        let subscription = client.subscribe(&filter, SubscribeOptions::default()).await;
        (client, subscription.expect("it is permitted"))
    };
    let all = wait(join_all(flow::topics(arguments).into_iter().map(one)));
    say(&format!("all {}", now_ns() - began));
    loop {
        std::thread::park();
        assert!(!all.is_empty(), "they stay until we are killed");
    }
}
