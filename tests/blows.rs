//! Random blows while people talk: a child or the runtime killed or suspended at a random moment. Each turn that was answered
//! is in the history, once and in order; the accounts balance; nothing more is held than before.
//!
//! `INTERLOCK_CHAOS=1000 cargo test -p interlock-tests blows -- --nocapture` is the soak. `INTERLOCK_SEED` repeats a run, as far
//! as the machine does.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::{
    dice::{Dice, environment, seed},
    eventually,
    kept::{Turn, assert_kept, restarts, say, say_until_answered, states},
    runtime::TestRuntime,
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
heartbeat = "1s"
grace = "2s"
"#;

/// Blows that CI deals.
const BLOWS: u64 = 8;

/// How long the runtime is suspended: longer than any heartbeat, liveness question or poll of this setting.
const SUSPENDED: Duration = Duration::from_millis(2500);

/// Failures within [`BUDGET_PERIOD`] that are forgiven; see `SEMANTICS`: the budget of a child.
const BUDGET_FAILURES: usize = 5;
const BUDGET_PERIOD: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
enum Blow {
    KillChild,
    KillRuntime,
    SuspendChild,
    SuspendRuntime,
}

const ALL: [Blow; 6] = [
    Blow::KillChild,
    Blow::KillChild,
    Blow::KillRuntime,
    Blow::KillRuntime,
    Blow::SuspendChild,
    Blow::SuspendRuntime,
];

#[test]
fn what_was_acknowledged_survives_every_blow_and_nothing_is_left_behind() {
    let mut dice = Dice(seed("chaos"));
    let mut runtime = TestRuntime::start_with(WALKER);
    let mut acknowledged: Vec<Turn> = Vec::new();
    // Warm: threads and descriptors that come with the first use are there.
    for number in 0..3 {
        acknowledged.push(say_until_answered(&runtime, "chaos", &format!("warm {number}")));
    }
    states(&runtime);
    let before = Holdings::of(&runtime);
    let mut failures: Vec<Instant> = Vec::new();
    for round in 0..environment("INTERLOCK_CHAOS").unwrap_or(BLOWS) {
        // The first blows are one of each kind, in the order of the list.
        let blow = *ALL.get(round as usize).unwrap_or_else(|| dice.of(&ALL));
        let wait = Duration::from_millis(dice.below(400));
        let (old, restarts_before) = (runtime.processes(), restarts(&runtime));
        let done = AtomicBool::new(false);
        let (heard, hit) = std::thread::scope(|scope| {
            let talk = scope.spawn(|| {
                let mut heard = Vec::new();
                for number in 0.. {
                    heard.extend(say(&runtime, "chaos", &format!("blow {round}, number {number}")));
                    if done.load(Ordering::Relaxed) {
                        return heard;
                    }
                }
                unreachable!("numbers do not end")
            });
            std::thread::sleep(wait);
            let hit = deal(blow, &runtime, &mut dice);
            done.store(true, Ordering::Relaxed);
            (talk.join().unwrap(), hit)
        });
        acknowledged.extend(heard);
        match blow {
            Blow::KillRuntime => {
                assert_eq!(runtime.process.exit_code(), None);
                // Whoever it had started goes within its grace, also while the next instance starts.
                runtime.restart();
                eventually("the children of the killed runtime to go", || {
                    runtime.processes().is_disjoint(&old).then_some(())
                });
                failures.clear();
            }
            Blow::KillChild | Blow::SuspendChild => {
                failures.push(Instant::now());
                eventually("the process that was hit to go", || {
                    hit.iter().all(|pid| !runtime.processes().contains(pid)).then_some(())
                });
                // The parent of what was hit may notice a little later.
                eventually("the failure to be noticed", || {
                    let is_down = states(&runtime).iter().any(|(_, state)| state == "error");
                    (is_down || restarts(&runtime) > restarts_before).then_some(())
                });
                forgive(&runtime, &mut failures);
            }
            Blow::SuspendRuntime => assert_eq!(runtime.processes(), old, "nobody else was to blame"),
        }
        assert_recovered(&runtime, &before);
        acknowledged.push(say_until_answered(&runtime, "chaos", &format!("after blow {round}")));
        // The gateway shows the last thousand messages.
        let recent = acknowledged.len().saturating_sub(200);
        assert_kept(&runtime, "chaos", &acknowledged[recent..]);
    }
    runtime.signal(Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(0));
    assert_eq!(runtime.processes(), BTreeSet::new());
}

/// Deals a blow; the process that must go for it.
fn deal(blow: Blow, runtime: &TestRuntime, dice: &mut Dice) -> Option<u32> {
    match blow {
        Blow::KillChild => {
            let mut children = runtime.processes();
            children.remove(&runtime.process.id());
            let children: Vec<u32> = children.into_iter().collect();
            let victim = *dice.of(&children);
            // It may have ended by itself a moment ago.
            let _ = kill(Pid::from_raw(victim as i32), Signal::SIGKILL);
            Some(victim)
        }
        Blow::SuspendChild => {
            let walker = named(runtime).remove("python3");
            if let Some(walker) = walker {
                let _ = kill(Pid::from_raw(walker as i32), Signal::SIGSTOP);
            }
            walker
        }
        Blow::KillRuntime => {
            runtime.signal(Signal::SIGKILL);
            None
        }
        Blow::SuspendRuntime => {
            runtime.signal(Signal::SIGSTOP);
            // The blow is that time passes.
            std::thread::sleep(SUSPENDED);
            runtime.signal(Signal::SIGCONT);
            None
        }
    }
}

/// The processes by the name of their program; of several with one name, one.
fn named(runtime: &TestRuntime) -> BTreeMap<String, u32> {
    let name = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    runtime.processes().iter().filter_map(|pid| Some((name(pid)?.trim().to_owned(), *pid))).collect()
}

/// A child that we have hit more often than its budget forgives is down for good, which status says, until it is restarted.
fn forgive(runtime: &TestRuntime, failures: &mut Vec<Instant>) {
    let settled = eventually("every child to be ready or down", || {
        let states = states(runtime);
        let settled = |state: &str| ["running", "error"].contains(&state);
        (!states.is_empty() && states.iter().all(|(_, state)| settled(state))).then_some(states)
    });
    failures.retain(|at| at.elapsed() < BUDGET_PERIOD * 4);
    for (name, _) in settled.iter().filter(|(_, state)| state == "error") {
        assert!(failures.len() > BUDGET_FAILURES, "`{name}` is down after {} failures", failures.len());
        let restarted = runtime.interlock(&["restart", name]);
        assert!(restarted.status.success(), "{restarted:?}");
    }
}

/// What a running instance holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holdings {
    processes: usize,
    /// Open descriptors of the runtime's process.
    descriptors: usize,
    threads: usize,
    files: BTreeSet<PathBuf>,
}

impl Holdings {
    fn of(runtime: &TestRuntime) -> Self {
        let process = PathBuf::from(format!("/proc/{}", runtime.process.id()));
        // Hidden from all but root, because the process holds keys; then there is nothing to compare.
        let count = |what: &str| std::fs::read_dir(process.join(what)).map_or(0, Iterator::count);
        let mut files = BTreeSet::new();
        collect(runtime.directory.path(), &mut files);
        Self {
            processes: runtime.processes().len(),
            descriptors: count("fd"),
            threads: count("task"),
            files: files
                .into_iter()
                // Each guardian's directory has a name of its own.
                .map(|file| match file.components().any(|part| part.as_os_str() == "tmp") {
                    true => {
                        file.parent().unwrap().with_file_name("of a guardian").join(file.file_name().unwrap())
                    }
                    false => file,
                })
                .collect(),
        }
    }

    /// What is held here and was not there.
    fn beyond(&self, before: &Self) -> Vec<String> {
        let mut more = Vec::new();
        for (what, now, then) in [
            ("processes", self.processes, before.processes),
            ("descriptors", self.descriptors, before.descriptors),
            ("threads", self.threads, before.threads),
        ] {
            if now > then {
                more.push(format!("{now} {what} instead of {then}"));
            }
        }
        more.extend(self.files.difference(&before.files).map(|file| format!("file {}", file.display())));
        more
    }
}

fn collect(directory: &Path, files: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&entry.path(), files),
            _ => drop(files.insert(entry.path())),
        }
    }
}

/// Waits until every child is ready, the accounts balance, and no more is held than `before`.
fn assert_recovered(runtime: &TestRuntime, before: &Holdings) {
    eventually("every child to be ready", || {
        let states = states(runtime);
        (!states.is_empty() && states.iter().all(|(_, state)| state == "running")).then_some(())
    });
    let audit = runtime.bus(&["audit"]);
    assert!(audit.status.success(), "the ledger does not balance: {audit:?}");
    let mut more = Vec::new();
    eventually_or(
        || {
            more = Holdings::of(runtime).beyond(before);
            more.is_empty()
        },
        || format!("{:#?}", Holdings::of(runtime).beyond(before)),
    );
}

/// Waits until `reached`, and otherwise fails with `why`.
fn eventually_or(mut reached: impl FnMut() -> bool, why: impl Fn() -> String) {
    let deadline = std::time::Instant::now() + crate::harness::DEADLINE;
    while !reached() {
        assert!(std::time::Instant::now() < deadline, "more is held than before: {}", why());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
