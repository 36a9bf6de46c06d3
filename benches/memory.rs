//! What the broker's memory does under a flood into a subscriber that is stopped, and whether a message of
//! 64 MiB leaves anything behind; beside libzmq's proxy.
//!
//! `cargo bench -p interlock-benches --bench memory`
//! `[-- --messages 2000000 --bytes 1024 --only interlock --record NAME]`
//!
//! Our flood: the subscriber has the default policy and bounds, and is stopped with SIGSTOP while all messages
//! are published; the publisher is never held. Then it goes on, and what it gets and what the broker says it
//! lost must be exactly what was published. libzmq's proxy holds the publisher instead (`ZMQ_XPUB_NODROP`),
//! so its flood lasts a fixed time.

use std::time::{Duration, Instant};

use interlock_benches::{
    arguments::{Arguments, Words},
    bus::{self, Bus},
    flow,
    libzmq::{Libzmq, Proxy},
    process::{Process, resident_kib},
    report::{Report, one_digit},
};
use interlock_bus::limits;
use nix::sys::signal::Signal;

/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long it takes at most until the send queue is full.
const FILL: Duration = Duration::from_secs(1);
/// How long libzmq's side is flooded.
const LIBZMQ_FLOOD: Duration = Duration::from_secs(3);
/// How long a process may take to give memory back.
const SETTLE: Duration = Duration::from_secs(3);
/// More than the queue holds and the socket buffers: decrypted input, sealed output, rows, the allocator's slack.
const SLACK_KIB: u64 = 16 << 10;
/// What may be left of a large message: less than one would be, by far.
const RESIDUE_KIB_MAX: i64 = 4 << 10;

fn main() {
    let arguments = Arguments::read(&["only"]);
    match arguments.text("role") {
        None => run(&arguments),
        Some("broker") => bus::broker(&arguments),
        Some("publisher") => flow::publisher(&arguments),
        Some("taker") => flow::taker(&arguments),
        Some(other) => panic!("`{other}` is no role of this bench"),
    }
}

/// Memory of one process over a while, in KiB.
struct Course {
    process: u32,
    before: u64,
    peak: u64,
    last: u64,
}

impl Course {
    fn of(process: &Process) -> Self {
        let before = resident_kib(process.id());
        Self { process: process.id(), before, peak: before, last: before }
    }

    /// Watches until `is_over`.
    fn watch(&mut self, mut is_over: impl FnMut() -> bool) {
        while !is_over() {
            self.last = resident_kib(self.process);
            self.peak = self.peak.max(self.last);
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn watch_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        self.watch(|| Instant::now() >= until);
    }

    fn shown(&self) -> String {
        let mebibytes = |kib: u64| one_digit(kib as f64 / 1024.0);
        format!("{} | {} | {}", mebibytes(self.before), mebibytes(self.peak), mebibytes(self.last))
    }

    fn residue_kib(&self) -> i64 {
        self.last as i64 - self.before as i64
    }
}

fn run(arguments: &Arguments) {
    let mut report = Report::begin("memory");
    let libzmq = Libzmq::beside(arguments, &mut report);
    let (messages, bytes) = (arguments.value("messages", 2_000_000u64), arguments.value("bytes", 1024));
    report.line(&format!(
        "- send queue of a subscription, by default: {} MiB or {} messages",
        limits::SEND_QUEUE_BYTES >> 20,
        limits::SEND_QUEUE_MESSAGES
    ));
    report.line("\n| memory of the broker, MiB | before | at most | after |\n|---|---|---|---|");
    if arguments.wants("interlock") {
        flood(&mut report, messages, bytes);
        large(&mut report);
    }
    if let Some(libzmq) = &libzmq {
        libzmq_flood(&mut report, libzmq, bytes);
        libzmq_large(&mut report, libzmq);
    }
    report.keep(arguments.text("record"));
}

/// Who publishes and who subscribes on our side: the same two names again and again.
struct Pair<'a> {
    bus: &'a Bus,
    publisher: String,
    subscriber: String,
}

impl<'a> Pair<'a> {
    fn enrol(bus: &'a Bus) -> Self {
        Self { bus, publisher: bus.enrol("publisher"), subscriber: bus.enrol("subscriber") }
    }

    /// Starts the subscriber.
    fn subscribe(&self, messages: u64, bytes: usize) -> (Course, Process) {
        let subscriber = Self::role("taker", &self.subscriber, messages, bytes);
        subscriber.expect("ready");
        (Course::of(&self.bus.broker), subscriber)
    }

    /// Starts the publisher.
    fn publish(&self, messages: u64, bytes: usize) -> Process {
        Self::role("publisher", &self.publisher, messages, bytes)
    }

    fn role(role: &str, credentials: &str, messages: u64, bytes: usize) -> Process {
        let credentials = ("credentials", credentials.to_owned());
        Process::role(role, &[credentials, ("messages", messages.to_string()), ("bytes", bytes.to_string())])
    }
}

fn flood(report: &mut Report, messages: u64, bytes: usize) {
    let bus = Bus::start();
    let pair = Pair::enrol(&bus);
    let (mut course, subscriber) = pair.subscribe(messages, bytes);
    subscriber.signal(Signal::SIGSTOP);
    let publisher = pair.publish(messages, bytes);
    course.watch_for(FILL);
    let mut full = Course::of(&bus.broker);
    full.watch(|| publisher.has_said("published"));
    report.line(&format!("| the first {FILL:?} of a flood into a stopped subscriber | {} |", course.shown()));
    report.line(&format!("| the rest: {messages} messages of {bytes} bytes in all | {} |", full.shown()));
    let bound = course.before + (limits::SEND_QUEUE_BYTES as u64 >> 10) + SLACK_KIB;
    let peak = course.peak.max(full.peak);
    assert!(peak <= bound, "the broker grew to {peak} KiB; the bound is {bound} KiB");
    assert!(full.residue_kib() <= RESIDUE_KIB_MAX, "the flood goes on to cost memory: {}", full.shown());
    subscriber.signal(Signal::SIGCONT);
    let [came, lost] = subscriber.expect_numbers("end");
    full.watch_for(SETTLE);
    report.line(&format!("| it goes on: {came} came, {lost} were reported as lost | {} |", full.shown()));
}

fn large(report: &mut Report) {
    let bus = Bus::start();
    let pair = Pair::enrol(&bus);
    for time in 1..=3 {
        let (mut course, subscriber) = pair.subscribe(1, limits::PAYLOAD_BYTES_MAX);
        let publisher = pair.publish(1, limits::PAYLOAD_BYTES_MAX);
        course.watch(|| publisher.has_said("published"));
        let [came, _] = subscriber.expect_numbers("end");
        assert!(came == 1.0, "the message was lost");
        drop((publisher, subscriber));
        course.watch_for(SETTLE);
        report.line(&format!("| a message of 64 MiB, time {time} | {} |", course.shown()));
        assert!(course.residue_kib() <= RESIDUE_KIB_MAX, "it left {} KiB behind", course.residue_kib());
    }
}

fn libzmq_flood(report: &mut Report, libzmq: &Libzmq, bytes: usize) {
    let Proxy { process, front, back } = libzmq.proxy("publish");
    let mut words = arguments_of_flow(u64::MAX, bytes);
    let subscriber = libzmq.peer("take", &back, &words);
    subscriber.expect("ready");
    subscriber.signal(Signal::SIGSTOP);
    let mut course = Course::of(&process);
    words.push(("topic", flow::TOPIC.to_owned()));
    let _publisher = libzmq.peer("publish", &front, &words);
    course.watch_for(LIBZMQ_FLOOD);
    report.line(&format!(
        "| libzmq: {LIBZMQ_FLOOD:?} of a flood, the publisher is held | {} |",
        course.shown()
    ));
}

fn libzmq_large(report: &mut Report, libzmq: &Libzmq) {
    let Proxy { process, front, back } = libzmq.proxy("publish");
    for time in 1..=3 {
        let mut words = arguments_of_flow(1, limits::PAYLOAD_BYTES_MAX);
        let subscriber = libzmq.peer("take", &back, &words);
        subscriber.expect("ready");
        // A publisher drops what it sends before the subscription has come to it.
        std::thread::sleep(SETTLE / 10);
        let mut course = Course::of(&process);
        words.push(("topic", flow::TOPIC.to_owned()));
        let publisher = libzmq.peer("publish", &front, &words);
        course.watch(|| subscriber.has_said("took"));
        drop((publisher, subscriber));
        course.watch_for(SETTLE);
        report.line(&format!("| libzmq: a message of 64 MiB, time {time} | {} |", course.shown()));
    }
}

fn arguments_of_flow(messages: u64, bytes: usize) -> Words {
    vec![("messages", messages.to_string()), ("bytes", bytes.to_string())]
}
