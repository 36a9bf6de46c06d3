//! How long a request takes through the broker to a server in another process and back, encrypted on
//! all hops: alone (p50, p99), and how many a second with 64 in flight; beside libzmq doing the same.
//!
//! `cargo bench -p interlock-benches --bench round_trip`
//! `[-- --in-flight 1,64 --bytes 128 --rounds 3 --window-ms 1000 --only interlock --record NAME]`

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use interlock_benches::{
    arguments::{Arguments, Words},
    bus::{self, Bus},
    clock::percentile,
    libzmq::Libzmq,
    process::Process,
    report::{Repeats, Report, one_digit, rate, say, two_digits},
};
use interlock_bus::{Payload, ServeOptions, TopicName, blocking::wait};

const TOPIC: &str = "bench/echo";
const DEADLINE: Duration = Duration::from_secs(30);

fn main() {
    let arguments = Arguments::read(&["rounds", "only"]);
    match arguments.text("role") {
        None => run(&arguments),
        Some("broker") => bus::broker(&arguments),
        Some("requester") => requester(&arguments),
        Some("server") => server(&arguments),
        Some(other) => panic!("`{other}` is no role of this bench"),
    }
}

/// What one side came to.
#[derive(Default)]
struct Side {
    rate: Repeats,
    p50_us: Repeats,
    p99_us: Repeats,
    cpu_us: Repeats,
}

impl Side {
    fn measure(&mut self, processes: [&Process; 3]) {
        let [requester, ..] = processes;
        requester.expect("begin");
        let all = || -> Duration { processes.iter().map(|process| process.cpu()).sum() };
        let cpu = all();
        let [requests, nanoseconds, p50_ns, p99_ns] = requester.expect_numbers("end");
        let cpu = all() - cpu;
        self.rate.add(requests / nanoseconds * 1e9);
        self.p50_us.add(p50_ns / 1e3);
        self.p99_us.add(p99_ns / 1e3);
        self.cpu_us.add(cpu.as_secs_f64() * 1e6 / requests);
    }
}

fn run(arguments: &Arguments) {
    let mut report = Report::begin("round_trip");
    let libzmq = Libzmq::beside(arguments, &mut report);
    let bytes = arguments.value("bytes", 128usize);
    report.line(&format!("- payload: {bytes} bytes each way\n"));
    report.line("| in flight | what | Interlock | libzmq | ratio |\n|---|---|---|---|---|");
    for in_flight in arguments.list("in-flight", &[1, 64]) {
        let (mut ours, mut theirs) = (Side::default(), Side::default());
        for _ in 0..arguments.value("rounds", 3) {
            if arguments.wants("interlock") {
                interlock_window(&mut ours, arguments, bytes, in_flight);
            }
            if let Some(libzmq) = &libzmq {
                libzmq_window(&mut theirs, libzmq, arguments, bytes, in_flight);
            }
        }
        type Row<'a> = (&'static str, &'a Repeats, &'a Repeats, fn(f64) -> String);
        let rows: [Row<'_>; 4] = [
            ("requests/s", &ours.rate, &theirs.rate, rate),
            ("p50, us", &ours.p50_us, &theirs.p50_us, one_digit),
            ("p99, us", &ours.p99_us, &theirs.p99_us, one_digit),
            ("CPU of all, us/request", &ours.cpu_us, &theirs.cpu_us, one_digit),
        ];
        for (what, one, other, show) in rows {
            let ratio = one.over(other).shown(two_digits);
            report.line(&format!(
                "| {in_flight} | {what} | {} | {} | {ratio} |",
                one.shown(show),
                other.shown(show)
            ));
        }
    }
    report.keep(arguments.text("record"));
}

/// What the requester of either side is told.
fn words(arguments: &Arguments, bytes: usize, in_flight: usize) -> Words {
    let mut words = arguments.times(300, 1000);
    words.extend([("bytes", bytes.to_string()), ("in-flight", in_flight.to_string())]);
    words
}

fn interlock_window(side: &mut Side, arguments: &Arguments, bytes: usize, in_flight: usize) {
    let bus = Bus::start();
    let server = Process::role("server", &[("credentials", bus.enrol("server"))]);
    server.expect("ready");
    let mut words = words(arguments, bytes, in_flight);
    words.push(("credentials", bus.enrol("requester")));
    let requester = Process::role("requester", &words);
    requester.expect("ready");
    side.measure([&requester, &bus.broker, &server]);
}

fn libzmq_window(side: &mut Side, libzmq: &Libzmq, arguments: &Arguments, bytes: usize, in_flight: usize) {
    let proxy = libzmq.proxy("request");
    let server = libzmq.peer("reply", &proxy.back, &[]);
    server.expect("ready");
    let requester = libzmq.peer("request", &proxy.front, &words(arguments, bytes, in_flight));
    requester.expect("ready");
    side.measure([&requester, &proxy.process, &server]);
}

fn requester(arguments: &Arguments) {
    let client = bus::client(arguments);
    let topic: TopicName = TOPIC.parse().expect("a topic");
    let payload = vec![0u8; arguments.value("bytes", 128)];
    let (warm_up, window) = (arguments.milliseconds("warm-up-ms"), arguments.milliseconds("window-ms"));
    let ask = || async {
        let sent = Instant::now();
        let payload = Payload::bytes(Bytes::copy_from_slice(&payload));
        let reply = client.request(&topic, payload, DEADLINE).await;
        assert!(reply.is_ok(), "a request failed: {reply:?}");
        sent.elapsed()
    };
    say("ready");
    wait(async {
        let mut asked: FuturesUnordered<_> = (0..arguments.value("in-flight", 1)).map(|_| ask()).collect();
        let began = Instant::now();
        let mut measured_since = None;
        let mut times = Vec::new();
        while let Some(time) = asked.next().await {
            let now = Instant::now();
            match measured_since {
                None if now - began >= warm_up => {
                    measured_since = Some(now);
                    say("begin");
                }
                None => {}
                Some(since) => {
                    times.push(time.as_nanos() as u64);
                    if now - since >= window {
                        times.sort_unstable();
                        let (p50, p99) = (percentile(&times, 0.5), percentile(&times, 0.99));
                        say(&format!("end {} {} {p50} {p99}", times.len(), (now - since).as_nanos()));
                        // The bench reads our processor time now and then kills us.
                        std::future::pending::<()>().await;
                    }
                }
            }
            asked.push(ask());
        }
    });
}

fn server(arguments: &Arguments) {
    let client = bus::client(arguments);
    wait(async {
        let filter = TOPIC.parse().expect("a filter");
        let mut service = client.serve(&filter, ServeOptions::default()).await.expect("it is permitted");
        say("ready");
        while let Some(request) = service.next().await {
            let payload = Payload::bytes(request.message.payload.clone());
            // The requester may have been killed meanwhile.
            let _ = request.end(payload).await;
        }
    });
}
