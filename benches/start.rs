//! How long it takes from the start of `interlock` until every component is ready (after the first
//! run), and what it uses when nobody asks anything: memory of all its processes, processor time.
//!
//! `cargo bench -p interlock-benches --bench start`
//! `[-- --rounds 5 --idle-ms 10000 --record NAME]`

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use interlock_benches::{
    arguments::Arguments,
    process::{Process, build, cpu, proportional_kib, with_descendants},
    report::{Repeats, Report, one_digit, two_digits},
};

/// What settles after the first report: pings, first log batches, caches.
const SETTLE: Duration = Duration::from_secs(3);

fn main() {
    let arguments = Arguments::read(&["rounds", "idle-ms"]);
    let program = build(&["-p", "interlock"], None).join("interlock");
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let data = directory.path().join("data");
    let mut report = Report::begin("start");

    let (first, process) = start(&program, &data);
    stop(&program, &data, process);
    report.line("\n| what | median (least to most) |\n|---|---|");
    report.line(&format!("| first run: keys and database made, ms | {} |", one_digit(first)));

    let mut times = Repeats::default();
    for _ in 0..arguments.value("rounds", 5) {
        let (time, process) = start(&program, &data);
        times.add(time);
        stop(&program, &data, process);
    }
    report.line(&format!("| start to ready, ms | {} |", times.shown(one_digit)));

    let (_, process) = start(&program, &data);
    std::thread::sleep(SETTLE);
    let processes = with_descendants(process.id());
    let all = || -> Duration { processes.iter().map(|process| cpu(*process)).sum() };
    let (window, began, before) =
        (Duration::from_millis(arguments.value("idle-ms", 10_000)), Instant::now(), all());
    std::thread::sleep(window);
    let (elapsed, used) = (began.elapsed(), all() - before);
    let kib: u64 = processes.iter().map(|process| proportional_kib(*process)).sum();
    report.line(&format!(
        "| idle memory (PSS) of {} processes, MiB | {} |",
        processes.len(),
        one_digit(kib as f64 / 1024.0)
    ));
    let percent = used.as_secs_f64() / elapsed.as_secs_f64() * 100.0;
    report.line(&format!("| idle processor, % of one core over {elapsed:.0?} | {} |", two_digits(percent)));
    stop(&program, &data, process);
    report.keep(arguments.text("record"));
}

/// Starts it and waits for its report; gives the milliseconds that took.
fn start(program: &Path, data: &Path) -> (f64, Process) {
    let mut command = Command::new(program);
    command.arg("--data-dir").arg(data).args(["--set", "gateway.listen=127.0.0.1:0"]);
    command.args(["--set", "bus.endpoints=[\"ipc\", \"tcp://127.0.0.1:0\"]"]);
    command.arg("run").stderr(std::process::Stdio::null());
    let began = Instant::now();
    let process = Process::start("interlock", &mut command);
    let line = process.find(|line| line.starts_with("interlock ") && line.contains(" is "));
    let elapsed = began.elapsed();
    assert!(line.contains(" is running"), "it says `{line}`");
    (elapsed.as_secs_f64() * 1e3, process)
}

fn stop(program: &Path, data: &Path, process: Process) {
    let stopped = Command::new(program).arg("--data-dir").arg(data).arg("stop").output();
    assert!(stopped.is_ok_and(|output| output.status.success()), "`interlock stop` failed");
    drop(process);
}
