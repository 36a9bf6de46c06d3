//! How many instructions the broker spends on a message, and how many of them on permissions, the ledger and
//! the statistics. Instructions do not depend on what else the machine does, so this repeats where times do not.
//!
//! `cargo bench -p interlock-benches --bench cost`
//! `[-- --bytes 128 --subscribers 1 --messages 200000 --rounds 2 --record NAME]`
//!
//! A broker in a process of its own runs under callgrind, with a publisher and subscribers outside as in
//! `throughput`. A run with `messages` and one with twice as many differ by what the messages cost: start,
//! handshakes and end fall out. The bench builds itself once more with line numbers for that.

use interlock_benches::{
    arguments::Arguments,
    bus::{self, Bus},
    callgrind::{Files, Profile, valgrind},
    flow,
    process::{Process, build},
    report::{Repeats, Report, one_digit, say, two_digits},
};

/// What is looked at, and where it stands.
const PARTS: [(&str, &[&str]); 6] = [
    ("permissions", &["bus/src/keys/permissions.rs", "bus/src/keys/registry.rs"]),
    ("ledger", &["bus/src/broker/ledger.rs"]),
    ("statistics", &["bus/src/broker/statistics.rs"]),
    ("encryption", &["bus/src/crypto.rs"]),
    (
        "records to bytes and back",
        &["bus/src/native/record.rs", "bus/src/native/batch.rs", "bus/src/native/block.rs"],
    ),
    ("send queue", &["bus/src/broker/send_queue.rs", "bus/src/broker/send_queue/chunk.rs"]),
];
/// How many of them are the ones that could be left out.
const ACCOUNTING: usize = 3;
/// The child that was built with line numbers.
const LINES: &str = "lines";

fn main() {
    let arguments = Arguments::read(&["subscribers", "rounds", "build"]);
    match arguments.text("role") {
        None if arguments.text("build") == Some(LINES) => run(&arguments),
        None => run_with_lines(),
        Some("broker") => bus::broker(&arguments),
        Some("publisher") => flow::publisher(&arguments),
        Some("taker") => flow::taker(&arguments),
        Some(other) => panic!("`{other}` is no role of this bench"),
    }
}

/// Builds this bench with line numbers, and runs that.
fn run_with_lines() {
    let configuration = ["profile.release.debug=\"line-tables-only\"", "profile.release.strip=\"none\""];
    let package = ["-p", "interlock-benches", "--bench", "cost"];
    let directory = build(
        &[&package[..], &["--config", configuration[0], "--config", configuration[1]]].concat(),
        Some(LINES),
    );
    let entries = std::fs::read_dir(directory.join("deps")).expect("cargo has just built into it").flatten();
    let is_program = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("cost-") && !name.contains('.')
    };
    let changed = |path: &std::path::PathBuf| path.metadata().and_then(|data| data.modified()).ok();
    let program = entries.map(|entry| entry.path()).filter(is_program).max_by_key(changed);
    let mut command = std::process::Command::new(program.expect("cargo has just built it"));
    let status = command.args(std::env::args().skip(1)).args(["--build", LINES]).status();
    assert!(status.is_ok_and(|status| status.success()), "the bench with line numbers failed");
}

fn run(arguments: &Arguments) {
    let mut report = Report::begin("cost");
    let (bytes, subscribers) = (arguments.value("bytes", 128), arguments.value("subscribers", 1));
    let messages = arguments.value("messages", 200_000u64);
    report.line(&format!("- {bytes} bytes, {subscribers} subscribers, {messages} messages\n"));
    let program = std::env::current_exe().expect("the system knows the running program");
    let mut whole = Repeats::default();
    let mut parts: [Repeats; PARTS.len()] = Default::default();
    for _ in 0..arguments.value("rounds", 2) {
        let profiles = [messages, 2 * messages].map(|messages| profile(bytes, subscribers, messages));
        let files = Files::of(&program, &profiles);
        let [once, twice] = &profiles;
        let each =
            |cost: &dyn Fn(&Profile) -> u64| (cost(twice) as f64 - cost(once) as f64) / messages as f64;
        whole.add(each(&|profile| profile.total));
        for (part, (_, suffixes)) in parts.iter_mut().zip(PARTS) {
            part.add(each(&|profile| profile.cost_of(&files, suffixes)));
        }
    }
    report.line("| instructions of the broker for each message | | share |\n|---|---|---|");
    report.line(&format!("| all | {} | |", whole.shown(one_digit)));
    for ((name, _), part) in PARTS.iter().zip(&parts) {
        let share = part.over(&whole).median() * 100.0;
        report.line(&format!("| {name} | {} | {} % |", part.shown(one_digit), two_digits(share)));
    }
    let accounting: f64 = parts[..ACCOUNTING].iter().map(Repeats::median).sum();
    let share = accounting / whole.median() * 100.0;
    report.line(&format!(
        "| permissions, ledger and statistics together | {} | {} % |",
        one_digit(accounting),
        two_digits(share)
    ));
    report.keep(arguments.text("record"));
}

/// Runs a broker under callgrind until so many messages have been delivered.
fn profile(bytes: usize, subscribers: usize, messages: u64) -> Profile {
    let program = std::env::current_exe().expect("the system knows the running program");
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join("profile");
    let bus = Bus::start_with(|directory| {
        Process::role_of(valgrind(&path).arg(&program), "broker", &[("directory", directory)])
    });
    let role = |role: &str, number: usize| {
        let credentials = ("credentials", bus.enrol(&format!("{role}-{number}")));
        Process::role(role, &[credentials, ("messages", messages.to_string()), ("bytes", bytes.to_string())])
    };
    let takers = flow::all_ready((0..subscribers).map(|number| role("taker", number)));
    let publisher = role("publisher", 0);
    for taker in &takers {
        let [came, lost] = taker.expect_numbers("end");
        assert!(came == messages as f64, "{lost} messages were lost");
    }
    publisher.expect("published");
    bus.broker.end();
    let profile = Profile::read(&path, &program);
    say(&format!("{messages} messages: {} instructions", profile.total));
    profile
}
