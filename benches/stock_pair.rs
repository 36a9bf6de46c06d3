//! How fast a plain libzmq pair, PUB to SUB, is through our broker, and through libzmq's own proxy: the same
//! two programs, topic and payload in a frame each, encrypted on both hops.
//!
//! `cargo bench -p interlock-benches --bench stock_pair`
//! `[-- --sizes 16,128 --rounds 3 --window-ms 1000 --record NAME]`
//!
//! The rate is what the subscriber gets. A stock subscriber has no credit and cannot ask for the policy
//! `wait`: what it does not take in time is dropped at our broker, so the share that arrived stands beside
//! the rate. libzmq's proxy with `ZMQ_XPUB_NODROP` holds the publisher instead and must lose nothing.

use interlock_benches::{
    arguments::{Arguments, Words},
    bus::{self, Bus},
    flow::{self, Side, Window, all_ready},
    libzmq::{Libzmq, Proxy, Server},
    process::Process,
    report::Report,
};

fn main() {
    let arguments = Arguments::read(&["sizes", "rounds", "only"]);
    match arguments.text("role") {
        None => run(&arguments),
        Some("broker") => bus::broker(&arguments),
        Some(other) => panic!("`{other}` is no role of this bench"),
    }
}

fn run(arguments: &Arguments) {
    let mut report = Report::begin("stock_pair");
    let libzmq = Libzmq::compile().expect("this bench is about libzmq");
    report.line(&format!("- libzmq: {}", libzmq.version));
    report.line(&format!("\n| payload | arrived | {}\n|{}", flow::COLUMNS, "---|".repeat(9)));
    for bytes in arguments.list("sizes", &[16, 128, 1024, 16_384]) {
        let (mut ours, mut theirs) = (Side::default(), Side::default());
        let mut words = arguments.times(400, 1000);
        words.extend([
            ("topic", flow::TOPIC.to_owned()),
            ("bytes", bytes.to_string()),
            ("frames", "2".to_owned()),
        ]);
        for _ in 0..arguments.value("rounds", 3) {
            if arguments.wants("interlock") {
                let bus = Bus::start();
                let [publisher, subscriber] = ["publisher", "subscriber"]
                    .map(|name| Server::of_credentials(&bus.credentials(name), &bus.endpoint));
                ours.add(&window(&libzmq, &bus.broker, [&publisher, &subscriber], &words));
            }
            if arguments.wants("libzmq") {
                let Proxy { process, front, back } = libzmq.proxy("publish");
                let window = window(&libzmq, &process, [&front, &back], &words);
                assert!(window.lost == 0.0, "libzmq's proxy lost messages: {window:?}");
                theirs.add(&window);
            }
        }
        let arrived = ours.arrived.shown(|share| format!("{:.1} %", share * 100.0));
        report.line(&format!("| {bytes} | {arrived} | {}", flow::columns(&ours, &theirs)));
    }
    report.keep(arguments.text("record"));
}

fn window(libzmq: &Libzmq, broker: &Process, [front, back]: [&Server; 2], words: &Words) -> Window {
    let subscribers = all_ready([libzmq.peer("subscribe", back, words)].into_iter());
    let publisher = libzmq.peer("publish", front, words);
    flow::measure(broker, &[publisher], &subscribers)
}
