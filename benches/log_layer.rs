//! What a log call costs its caller, and how many a second are accepted: our layer with the whole log path behind it,
//! beside tracing-appender's non-blocking writer with a plain file behind it, in turns.
//!
//! `cargo bench -p interlock-benches --bench log_layer`
//! `[-- --burst 40000 --rounds 9 --threads 1,4 --window-ms 2000 --record NAME]`

use std::{
    fs::File,
    sync::Barrier,
    time::{Duration, Instant},
};

use interlock_benches::{
    arguments::Arguments,
    clock::percentile,
    log_path::LogPath,
    report::{Repeats, Report, rate, two_digits},
};
use tracing::Dispatch;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{fmt, layer::SubscriberExt};

/// tracing-appender's own default, said here because a burst must fit.
const LINES_WAITING_MAX: usize = 128_000;

/// Starts one of the two ways; the subscriber is the same but for its one layer.
type Start = dyn Fn() -> (Side, Dispatch);

/// One of the two ways, with something behind it.
enum Side {
    Ours(LogPath),
    Theirs { dropped: ErrorCounter, guard: WorkerGuard, _directory: tempfile::TempDir },
}

fn main() {
    let arguments = Arguments::read(&["burst", "rounds", "threads"]);
    let burst: usize = arguments.value("burst", 40_000);
    let rounds: usize = arguments.value("rounds", 9);
    let window = Duration::from_millis(arguments.value("window-ms", 2000));
    let mut report = Report::begin("log_layer");
    report.line(&format!("\nA burst of {burst} events that fits into either queue, {rounds} times each, in turns. Times of one call in ns."));
    report.line("\n| threads | side | accepted/s | p50 | p99 | p99.9 |\n|---|---|---|---|---|---|");
    let mut goals = Vec::new();
    for threads in arguments.list("threads", &[1, 4]) {
        goals.extend(bursts(&mut report, threads, burst, rounds));
    }
    report.line(&format!("\nA flood of {} s, which fits into neither queue:\n", window.as_secs_f64()));
    report.line("| threads | side | calls/s | dropped | most that waited |\n|---|---|---|---|---|");
    for threads in arguments.list("threads", &[1, 4]) {
        flood(&mut report, "Interlock", &ours, threads, window);
        flood(&mut report, "tracing-appender", &theirs, threads, window);
    }
    report.line("");
    goals.iter().for_each(|goal| report.line(goal));
    report.keep(arguments.text("record"));
}

fn ours() -> (Side, Dispatch) {
    let path = LogPath::start();
    let subscriber = tracing_subscriber::registry().with(path.layer());
    (Side::Ours(path), Dispatch::new(subscriber))
}

fn theirs() -> (Side, Dispatch) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = File::create(directory.path().join("app.log")).expect("a file can be made");
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(LINES_WAITING_MAX).lossy(true).finish(file);
    let dropped = writer.error_counter();
    let layer = fmt::layer().with_ansi(false).with_writer(writer);
    (
        Side::Theirs { dropped, guard, _directory: directory },
        Dispatch::new(tracing_subscriber::registry().with(layer)),
    )
}

impl Side {
    /// Waits until everything is where it belongs, or written; what was dropped.
    fn finish(self) -> u64 {
        match self {
            Self::Ours(path) => {
                path.wait_until_empty();
                path.buffer().report().dropped_total()
            }
            Self::Theirs { dropped, guard, .. } => {
                drop(guard);
                dropped.dropped_lines() as u64
            }
        }
    }
}

/// One row for each side; what was aimed at and what came of it.
fn bursts(report: &mut Report, threads: usize, burst: usize, rounds: usize) -> Vec<String> {
    let sides: [(&str, &Start); 2] = [("Interlock", &ours), ("tracing-appender", &theirs)];
    let mut rates = [Repeats::default(), Repeats::default()];
    let mut p99s = [Repeats::default(), Repeats::default()];
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..=rounds {
        for (at, (name, start)) in sides.iter().enumerate() {
            let (side, dispatch) = start();
            let took = calls(&dispatch, threads, burst / threads);
            let mut dropped = side.finish();
            let (side, dispatch) = start();
            let mut each = timed_calls(&dispatch, threads, burst / threads);
            dropped += side.finish();
            assert_eq!(dropped, 0, "{name} dropped something of a burst that fits");
            // The first is for warming up.
            if round > 0 {
                rates[at].add(burst as f64 / took.as_secs_f64());
                each.sort_unstable();
                p99s[at].add(percentile(&each, 0.99) as f64);
                times[at].append(&mut each);
            }
        }
    }
    for (at, (name, _)) in sides.iter().enumerate() {
        times[at].sort_unstable();
        let [p50, most_of_all] = [0.5, 0.999].map(|share| percentile(&times[at], share));
        let p99 = p99s[at].shown(|value| format!("{value:.0}"));
        report.line(&format!(
            "| {threads} | {name} | {} | {p50} | {p99} | {most_of_all} |",
            rates[at].shown(rate)
        ));
    }
    let (by_rate, by_p99) = (rates[0].over(&rates[1]), p99s[0].over(&p99s[1]));
    vec![format!(
        "- {threads} threads, ours over theirs: accepted {} (goal: 1 at least), p99 of a call {} (goal: 1 at most)",
        by_rate.shown(two_digits),
        by_p99.shown(two_digits),
    )]
}

/// Logs without a pause for as long as the window is.
fn flood(report: &mut Report, name: &str, start: &Start, threads: usize, window: Duration) {
    let (side, dispatch) = start();
    let until = Instant::now() + window;
    let mut most = 0;
    let counts: Vec<usize> = std::thread::scope(|scope| {
        let loggers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    within(&dispatch, || {
                        let mut count = 0;
                        while Instant::now() < until {
                            (count..count + 100).for_each(log);
                            count += 100;
                        }
                        count
                    })
                })
            })
            .collect();
        if let Side::Ours(path) = &side {
            while Instant::now() < until {
                most = most.max(path.buffer().report().waiting);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        loggers.into_iter().map(|logger| logger.join().expect("it only logs")).collect()
    });
    let waited = if matches!(side, Side::Ours(_)) { most.to_string() } else { "not told".to_owned() };
    let total: usize = counts.iter().sum();
    let dropped = side.finish();
    report.line(&format!(
        "| {threads} | {name} | {} | {dropped} of {total} | {waited} |",
        rate(total as f64 / window.as_secs_f64())
    ));
}

/// How long it took until every thread had made its calls.
fn calls(dispatch: &Dispatch, threads: usize, each: usize) -> Duration {
    let barrier = Barrier::new(threads + 1);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                within(dispatch, || {
                    barrier.wait();
                    (0..each).for_each(log);
                    barrier.wait();
                });
            });
        }
        barrier.wait();
        let began = Instant::now();
        barrier.wait();
        began.elapsed()
    })
}

/// The time of each call, in nanoseconds.
fn timed_calls(dispatch: &Dispatch, threads: usize, each: usize) -> Vec<u64> {
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        let loggers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    within(dispatch, || {
                        let mut times = Vec::with_capacity(each);
                        barrier.wait();
                        for number in 0..each {
                            let began = Instant::now();
                            log(number);
                            times.push(began.elapsed().as_nanos() as u64);
                        }
                        times
                    })
                })
            })
            .collect();
        loggers.into_iter().flat_map(|logger| logger.join().expect("it only logs")).collect()
    })
}

/// Logs where a program does: inside of a span with a field.
fn within<T>(dispatch: &Dispatch, work: impl FnOnce() -> T) -> T {
    tracing::dispatcher::with_default(dispatch, || {
        tracing::info_span!(target: "app::orders", "order", customer = "c-1234").in_scope(work)
    })
}

/// What a program says about what it does: a text and three fields.
fn log(number: usize) {
    tracing::info!(target: "app::orders", number, amount_cents = 1999, currency = "EUR", "the order was accepted");
}
