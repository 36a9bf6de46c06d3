//! What breaks from outside, on the real binary, while people talk. After each blow: the right status, each turn that was
//! answered in the history, once and in order, balanced accounts, and nothing more held than before.
//!
//! `INTERLOCK_CHAOS=1000 cargo test -p interlock-tests chaos -- --nocapture` is the soak: so many blows; without it a few are
//! dealt. `INTERLOCK_SEED` repeats a run, as far as the machine does.

mod holdings;

use std::{
    collections::BTreeSet,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use self::holdings::{Holdings, assert_recovered, until};
use crate::harness::{
    TestProcess,
    clock::Clock,
    dice::{Dice, environment, seed},
    eventually,
    kept::{Turn, assert_kept, children, restarts, say, say_until_answered, states},
    runtime::{CONFIG, TestRuntime, tool},
};

/// A program that owes heartbeats and has a child of its own, so that there is something to leave behind.
const WALKER: &str = r#"
[shutdown]
drain = "10s"
forced = "20s"

[[program]]
name = "walker"
command = "python3"
args = ["-c", '''
import os, socket, subprocess, sys, time
child = subprocess.Popen(["sleep", "100000"])
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.connect(os.environ["NOTIFY_SOCKET"])
manager.send(b"READY=1")
while child.poll() is None:
    manager.send(b"WATCHDOG=1")
    time.sleep(0.1)
sys.exit("my child died")
''']
readiness = "notify"
heartbeat = "1500ms"
grace = "2s"
"#;

/// How long the runtime is suspended: longer than the heartbeat above.
const SUSPENDED: Duration = Duration::from_secs(2);

/// Now and then in a soak: longer than any liveness question with all its tries, or heartbeat of the bus.
const SUSPENDED_LONG: Duration = Duration::from_secs(50);

/// Failures that the budget of a child forgives.
const BUDGET_FAILURES: usize = 5;

/// After so long without a failure nothing is held against a child any more.
const FORGIVEN_AFTER: Duration = Duration::from_secs(120);

/// Turns that are looked for after each blow: the gateway shows the last thousand messages.
const RECENT: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// Any process that the runtime has started: a guardian, what it guards, or a child of that.
    KillChild,
    SuspendWalker,
    /// And up to two of its next starts, at any moment.
    KillRuntime,
    SuspendRuntime,
}

/// What CI deals, in this order; a soak goes on at random.
const BLOWS: [Blow; 6] = [
    Blow::KillChild,
    Blow::KillRuntime,
    Blow::SuspendWalker,
    Blow::SuspendRuntime,
    Blow::KillChild,
    Blow::KillRuntime,
];

#[test]
pub(crate) fn what_was_answered_survives_every_blow_and_nothing_is_left_behind() {
    let mut dice = Dice(seed("chaos"));
    let mut runtime = TestRuntime::start_with(WALKER);
    let mut acknowledged: Vec<Turn> = Vec::new();
    // Warm: threads and descriptors that come with the first use are there.
    for number in 0..3 {
        acknowledged.push(say_until_answered(&runtime, "chaos", &format!("warm {number}")));
    }
    let before = Holdings::of(&runtime);
    let mut failures: Vec<Instant> = Vec::new();
    let rounds = environment("INTERLOCK_CHAOS").map_or(BLOWS.len(), |rounds| rounds as usize);
    for round in 0..rounds {
        let blow = *BLOWS.get(round).unwrap_or_else(|| dice.of(&BLOWS));
        note(&format!("blow {round}: {blow:?}"));
        let (others, restarts_before) = (others(&runtime), restarts(&runtime));
        let hit = while_people_talk(&runtime, &format!("blow {round}"), &mut acknowledged, || {
            deal(blow, &runtime, &mut dice)
        });
        match blow {
            Blow::KillRuntime => {
                assert_eq!(runtime.process.exit_code(), None);
                for _ in 0..dice.below(3) {
                    let mut start = TestProcess::spawn(TestRuntime::command(runtime.directory.path()));
                    pass(Duration::from_millis(dice.below(400)));
                    start.kill();
                }
                // Whoever it had started goes within its grace, also while the next instance starts.
                runtime.restart();
                eventually("the children of the killed runtime to go", || {
                    runtime.processes().is_disjoint(&others).then_some(())
                });
                failures.clear();
            }
            Blow::KillChild | Blow::SuspendWalker => {
                failures.push(Instant::now());
                until(|| {
                    let Some(pid) = hit.filter(|pid| runtime.processes().contains(pid)) else {
                        return Ok(());
                    };
                    if blow == Blow::SuspendWalker {
                        // Whoever holds a soak back for a while and lets it go on, resumes the walker as well.
                        send(pid, Signal::SIGSTOP);
                    }
                    Err(format!("{pid} is still there: {:#?}", children(&runtime)))
                });
                // The parent of what was hit may notice a little later.
                eventually("the failure to be noticed", || {
                    let is_down = states(&runtime).iter().any(|(_, state)| state == "error");
                    (is_down || restarts(&runtime) > restarts_before).then_some(())
                });
                forgive(&runtime, &mut failures);
            }
            Blow::SuspendRuntime => {
                assert_eq!(restarts(&runtime), restarts_before, "nobody else was to blame");
            }
        }
        assert_recovered(&runtime, &before);
        acknowledged.push(say_until_answered(&runtime, "chaos", &format!("after blow {round}")));
        assert_kept(&runtime, "chaos", &acknowledged[acknowledged.len().saturating_sub(RECENT)..]);
    }
    assert_stops(&mut runtime);
    assert_eq!(runtime.processes(), BTreeSet::new());
}

/// Deals a blow while turns go on; what was answered is added to `acknowledged`.
fn while_people_talk<T>(
    runtime: &TestRuntime,
    topic: &str,
    acknowledged: &mut Vec<Turn>,
    deal: impl FnOnce() -> T,
) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let talk = scope.spawn(|| {
            let mut heard = Vec::new();
            for number in 0.. {
                heard.extend(say(runtime, "chaos", &format!("{topic}, number {number}")));
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
            heard
        });
        let dealt = deal();
        done.store(true, Ordering::Relaxed);
        acknowledged.append(&mut talk.join().unwrap());
        dealt
    })
}

/// Deals a blow at a random moment; the process that must go for it.
fn deal(blow: Blow, runtime: &TestRuntime, dice: &mut Dice) -> Option<u32> {
    pass(Duration::from_millis(dice.below(400)));
    match blow {
        Blow::KillChild => {
            let others: Vec<u32> = others(runtime).into_iter().collect();
            let victim = *dice.of(&others);
            send(victim, Signal::SIGKILL);
            Some(victim)
        }
        Blow::SuspendWalker => {
            let walker = program(runtime, "walker")?;
            send(walker, Signal::SIGSTOP);
            Some(walker)
        }
        Blow::KillRuntime => {
            runtime.signal(Signal::SIGKILL);
            None
        }
        Blow::SuspendRuntime => {
            let is_long = environment("INTERLOCK_CHAOS").is_some() && dice.one_in(10);
            runtime.signal(Signal::SIGSTOP);
            pass(if is_long { SUSPENDED_LONG } else { SUSPENDED });
            runtime.signal(Signal::SIGCONT);
            None
        }
    }
}

/// The moment of a blow, or how long it lasts, is a time: there is no event to wait for.
fn pass(time: Duration) {
    std::thread::sleep(time);
}

/// For whoever reads a failure.
#[allow(clippy::print_stdout, reason = "a soak says where it is")]
fn note(text: &str) {
    println!("{text}");
}

/// The processes that the runtime has started: guardians, what they guard, and children of that.
fn others(runtime: &TestRuntime) -> BTreeSet<u32> {
    let mut others = runtime.processes();
    others.remove(&runtime.process.id());
    others
}

/// The process of a program, by its name in the tree.
fn program(runtime: &TestRuntime, name: &str) -> Option<u32> {
    let child = children(runtime).into_iter().find(|child| child["name"] == name)?;
    child["status"].as_str()?.strip_prefix("pid ")?.parse().ok()
}

/// Sends a signal to a process that may have ended by itself a moment ago.
fn send(pid: u32, signal: Signal) {
    match kill(Pid::from_raw(pid.cast_signed()), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => panic!("{error}"),
    }
}

/// A child that we have hit more often than its budget forgives is down for good, which status says, until it is restarted.
fn forgive(runtime: &TestRuntime, failures: &mut Vec<Instant>) {
    let settled = eventually("every child to be ready or down", || {
        let states = states(runtime);
        let settled = |state: &str| ["running", "error"].contains(&state);
        (!states.is_empty() && states.iter().all(|(_, state)| settled(state))).then_some(states)
    });
    failures.retain(|at| at.elapsed() < FORGIVEN_AFTER);
    for (name, _) in settled.iter().filter(|(_, state)| state == "error") {
        assert!(failures.len() > BUDGET_FAILURES, "`{name}` is down after {} failures", failures.len());
        let restarted = runtime.interlock(&["restart", name]);
        assert!(restarted.status.success(), "{restarted:?}");
    }
}

fn assert_stops(runtime: &mut TestRuntime) {
    runtime.signal(Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(0));
}

#[test]
fn a_first_start_may_be_killed_at_any_moment_and_the_next_one_gets_through() {
    let mut dice = Dice(seed("chaos, first start"));
    // Keys, token and database are made in it.
    for _ in 0..environment("INTERLOCK_CHAOS").unwrap_or(4) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("interlock.toml"), CONFIG).unwrap();
        std::fs::create_dir(directory.path().join("tmp")).unwrap();
        let mut first = TestProcess::spawn(TestRuntime::command(directory.path()));
        pass(Duration::from_millis(dice.below(300)));
        first.kill();
        let mut next = TestRuntime::on(directory);
        eventually("the next start to get through", || {
            assert!(next.process.is_alive(), "the start after a kill in the middle of the first one failed");
            next.is_ready()
        });
        say_until_answered(&next, "first", "Hello");
        next.process.kill();
        eventually("its processes to go", || next.processes().is_empty().then_some(()));
    }
}

#[test]
fn files_that_cannot_grow_cost_turns_but_none_that_was_answered_and_all_goes_on_when_they_can() {
    let mut runtime = TestRuntime::start();
    let mut acknowledged = vec![say_until_answered(&runtime, "room", "before")];
    let before = Holdings::of(&runtime);
    let limit = |bytes: &str| {
        let mut command = Command::new("prlimit");
        command.arg("--pid").arg(runtime.process.id().to_string()).arg(format!("--fsize={bytes}:unlimited"));
        assert!(command.status().unwrap().success());
    };
    // What a full disk is to whoever writes; a full disk itself needs root: `small_disk.rs`.
    limit("1");
    let refused = runtime.turn("no-room", "Hello");
    let (name, data) = refused.last().unwrap();
    assert_eq!((name.as_str(), data["error"]["code"].as_str()), ("refused", Some("store")), "{refused:?}");
    // It answers, and says what is wrong.
    assert!(runtime.get("/health/live").status().is_success());
    eventually("the store to say so in the status", || {
        let store = children(&runtime).into_iter().find(|child| child["name"] == "store")?;
        store["impaired"].as_str()?.starts_with("cannot write: the last ").then_some(())
    });
    limit("unlimited");
    acknowledged.push(say_until_answered(&runtime, "room", "after"));
    assert_recovered(&runtime, &before);
    assert_kept(&runtime, "room", &acknowledged);
    // The log path has caught up: what was logged while nothing could be written is stored.
    eventually("log records of that time", || {
        let logs = runtime.interlock(&["logs", "--since", "10m", "--json"]);
        let text = String::from_utf8_lossy(&logs.stdout).into_owned();
        text.lines().any(|line| line.contains("turn failed") && line.contains("no-room")).then_some(())
    });
    assert_stops(&mut runtime);
}

/// Whatever a run says and ends with that cannot start.
fn run(config: &str, data: &Path, place: &Path) -> (Option<i32>, String) {
    let file = place.join("interlock.toml");
    std::fs::write(&file, config).unwrap();
    let mut command = tool("interlock");
    command.arg("run").arg("--config").arg(&file).arg("--data-dir").arg(data);
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn a_directory_that_cannot_be_written_is_named_with_exit_code_6() {
    let place = tempfile::tempdir().unwrap();
    // A file system that nobody can make directories in, whoever asks.
    let (code, said) = run(CONFIG, Path::new("/proc/interlock"), place.path());
    assert_eq!(code, Some(6), "{said}");
    assert!(said.contains("`/proc/interlock`") && said.contains("--data-dir"), "{said}");
    if !nix::unistd::geteuid().is_root() {
        let locked = place.path().join("locked");
        std::fs::create_dir(&locked).unwrap();
        std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o500)).unwrap();
        let (code, said) = run(CONFIG, &locked.join("data"), place.path());
        assert_eq!(code, Some(6), "{said}");
        assert!(said.contains("locked/data"), "{said}");
    }
}

#[test]
fn a_port_that_is_taken_is_named_with_exit_code_5() {
    let place = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap();
    for config in [
        format!("[bus]\nendpoints = [\"tcp://{port}\"]\n[gateway]\nlisten = \"127.0.0.1:0\"\n"),
        format!("[bus]\nendpoints = [\"ipc\"]\n[gateway]\nlisten = \"{port}\"\n"),
    ] {
        let (code, said) = run(&config, &place.path().join("data"), place.path());
        assert_eq!(code, Some(5), "{config}: {said}");
        assert!(said.contains(&port.to_string()), "{config}: {said}");
    }
}

#[test]
fn a_key_that_is_missing_is_named_with_exit_code_6_and_what_is_said_mends_it() {
    let mut runtime = TestRuntime::start();
    assert_stops(&mut runtime);
    std::fs::remove_file(runtime.data().join("keys/model.toml")).unwrap();
    let (code, said) = run(CONFIG, &runtime.data(), runtime.directory.path());
    assert_eq!(code, Some(6), "{said}");
    for part in ["keys/model.toml", "interlock keys revoke model", "interlock keys issue model"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for verb in ["revoke", "issue"] {
        let done = runtime.interlock(&["keys", verb, "model"]);
        assert!(done.status.success(), "{done:?}");
    }
    runtime.restart();
    say_until_answered(&runtime, "key", "Hello");
}

#[test]
fn a_clock_that_jumps_by_a_day_in_both_directions_disturbs_nothing() {
    let clock = Clock::new();
    let mut runtime = TestRuntime::begin_with("", |command| {
        command.envs(clock.environment());
    });
    // The same clock for whoever asks: a machine has one.
    runtime.environment = clock.environment().into();
    runtime.wait_until_ready();
    let mut acknowledged = vec![say_until_answered(&runtime, "clock", "before")];
    let before = Holdings::of(&runtime);
    let day = 86_400;
    for offset in [day, -day, 0] {
        clock.jump(offset);
        for number in 0..2 {
            let said = say(&runtime, "clock", &format!("{offset} s, number {number}"));
            acknowledged.push(said.unwrap_or_else(|| panic!("no answer at {offset} s")));
        }
        assert_eq!(restarts(&runtime), 0, "{offset} s: {:?}", states(&runtime));
        assert_recovered(&runtime, &before);
        assert_kept(&runtime, "clock", &acknowledged);
    }
    assert_stops(&mut runtime);
}
