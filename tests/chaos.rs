//! What breaks from outside, on the real binary. After each blow: the right status, every acknowledged turn still there,
//! no process, thread, descriptor or file too many.
//!
//! `INTERLOCK_CHAOS=1000 cargo test -p interlock-tests chaos -- --nocapture` is the soak; without it a few blows are dealt.

use std::{
    collections::BTreeSet,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::{
    TestProcess,
    dice::{Dice, environment, seed},
    eventually,
    runtime::{TestRuntime, tool},
};

/// Blows of one test without a soak.
const BLOWS: u64 = 6;

/// A program beside the model service, so that there are two of each kind of process.
const PROGRAM: &str = r#"
[[program]]
name = "idler"
command = "sh"
args = ["-c", "echo here; while :; do sleep 1; done"]
readiness = "line:here"
grace = "1s"
"#;

/// A runtime, and what it has acknowledged.
struct Stage {
    runtime: TestRuntime,
    /// Conversations whose turn ended in a final message.
    acknowledged: Vec<String>,
}

/// What must be the same before and after.
#[derive(Debug, PartialEq, Eq)]
struct Footprint {
    processes: usize,
    threads: usize,
    descriptors: usize,
    temporary: usize,
    run: BTreeSet<String>,
}

impl Stage {
    fn start() -> Self {
        let runtime = TestRuntime::begin_with(PROGRAM, |_| ());
        let stage = Self { runtime, acknowledged: Vec::new() };
        stage.await_running();
        stage
    }

    /// Starts again after a kill.
    fn restart(&mut self) {
        self.runtime.restart();
        self.await_running();
    }

    fn await_running(&self) {
        self.runtime.wait_until_ready();
        self.await_state("running");
    }

    fn await_state(&self, state: &str) {
        eventually(&format!("the state {state}"), || {
            (self.runtime.status()["tree"]["state"] == state).then_some(())
        });
    }

    /// A turn; counted only if it was acknowledged.
    fn turn(&mut self) -> bool {
        let conversation = format!("chaos-{}", self.acknowledged.len());
        let acknowledged =
            self.runtime.turn(&conversation, "Hello").last().is_some_and(|end| end.0 == "final");
        if acknowledged {
            self.acknowledged.push(conversation);
        }
        acknowledged
    }

    fn await_turn(&mut self) {
        eventually("a turn to be answered", || self.turn().then_some(()));
    }

    /// Every acknowledged turn is in the history: question and answer.
    fn nothing_acknowledged_is_lost(&self) {
        for conversation in &self.acknowledged {
            let history: serde_json::Value =
                self.runtime.get(&format!("/v1/conversations/{conversation}")).json().unwrap();
            let messages = history["messages"].as_array().map_or(0, Vec::len);
            // A turn that was answered after its first try failed on the way is in it twice.
            assert!(messages >= 2, "{conversation}: {history}");
        }
    }

    fn pid(&self) -> u32 {
        self.runtime.process.id()
    }

    fn footprint(&self) -> Footprint {
        let count = |path: PathBuf| std::fs::read_dir(path).map_or(0, Iterator::count);
        let proc = PathBuf::from(format!("/proc/{}", self.pid()));
        Footprint {
            processes: self.runtime.processes().len(),
            threads: count(proc.join("task")),
            descriptors: count(proc.join("fd")),
            temporary: count(self.runtime.directory.path().join("tmp")),
            run: eventually("no file to be half written", || {
                let files = std::fs::read_dir(self.runtime.data().join("run")).unwrap();
                let names = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
                let names: BTreeSet<String> = names.collect();
                names.iter().all(|name| !name.starts_with(".instance.json.")).then_some(names)
            }),
        }
    }

    /// Waits until everything is as it was: what is on its way out may take its time, within the deadline.
    fn await_footprint(&self, before: &Footprint) {
        let deadline = std::time::Instant::now() + crate::harness::DEADLINE;
        loop {
            let now = self.footprint();
            let grown = now.processes > before.processes
                || now.threads > before.threads
                || now.descriptors > before.descriptors
                || now.temporary > before.temporary
                || now.run != before.run;
            if !grown {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "left over: {now:?} instead of {before:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The processes that the runtime has started: guardians, and what they guard.
    fn others(&self) -> Vec<u32> {
        self.runtime.processes().into_iter().filter(|pid| *pid != self.pid()).collect()
    }
}

fn send(pid: u32, signal: Signal) {
    match kill(Pid::from_raw(pid.cast_signed()), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => panic!("{error}"),
    }
}

fn blows() -> u64 {
    environment("INTERLOCK_CHAOS").unwrap_or(BLOWS)
}

#[test]
fn any_child_may_be_killed_at_any_moment_and_nothing_leaks() {
    let mut dice = Dice(seed("chaos, children"));
    let mut stage = Stage::start();
    stage.await_turn();
    // One death and one return first: what is allocated once is allocated then.
    let victims = stage.others();
    send(victims[0], Signal::SIGKILL);
    stage.await_turn();
    stage.await_state("running");
    let before = stage.footprint();
    for _ in 0..blows() {
        let victims = stage.others();
        if !victims.is_empty() {
            send(*dice.of(&victims), Signal::SIGKILL);
        }
        if dice.one_in(2) {
            stage.turn();
        }
        if dice.one_in(3) {
            std::thread::sleep(Duration::from_millis(dice.below(300)));
        }
        // The budget is whole again after an order; so many deaths in a row would spend it.
        for name in ["model", "idler"] {
            eventually("the order to start again", || {
                stage.runtime.interlock(&["restart", name]).status.success().then_some(())
            });
        }
        stage.await_state("running");
    }
    stage.await_turn();
    stage.nothing_acknowledged_is_lost();
    stage.await_footprint(&before);
}

#[test]
fn the_runtime_may_be_killed_at_any_moment_also_of_its_first_start() {
    let mut dice = Dice(seed("chaos, runtime"));
    let mut stage = Stage::start();
    stage.await_turn();
    let before = stage.footprint();
    let slowest = stage.runtime.directory.path().to_owned();
    for _ in 0..blows() {
        if dice.one_in(2) {
            stage.turn();
        }
        stage.runtime.process.kill();
        eventually("its processes to go", || stage.runtime.processes().is_empty().then_some(()));
        // A few more deaths in the middle of a start.
        for _ in 0..dice.below(3) {
            let mut process = TestProcess::spawn(TestRuntime::command(&slowest));
            std::thread::sleep(Duration::from_millis(dice.below(400)));
            process.kill();
        }
        eventually("its processes to go", || stage.runtime.processes().is_empty().then_some(()));
        stage.restart();
        stage.nothing_acknowledged_is_lost();
    }
    stage.await_turn();
    let after = stage.footprint();
    assert_eq!((after.processes, &after.run), (before.processes, &before.run));
    drop(stage);

    // Keys, token and database are made in the first start, which may not get far.
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("interlock.toml"), crate::harness::runtime::CONFIG).unwrap();
    for _ in 0..blows() {
        let data = directory.path().join("data");
        let mut process = TestProcess::spawn(TestRuntime::command(directory.path()));
        std::thread::sleep(Duration::from_millis(dice.below(250)));
        process.kill();
        let mut last = TestProcess::spawn(TestRuntime::command(directory.path()));
        eventually("the next start to get through", || {
            assert!(last.is_alive(), "the start after a kill in the middle of the first one failed");
            data.join("run/bus.sock").exists().then_some(())
        });
        last.kill();
        eventually("the lock to go", || std::fs::remove_dir_all(&data).is_ok().then_some(()));
    }
}

#[test]
fn a_suspended_runtime_goes_on_where_it_stood_and_a_suspended_program_is_replaced() {
    let mut stage = Stage::start();
    stage.await_turn();
    let before = stage.footprint();
    stage.runtime.signal(Signal::SIGSTOP);
    // Longer than a liveness question with all its tries, a request of the page, and a heartbeat of the bus.
    std::thread::sleep(Duration::from_secs(if environment("INTERLOCK_CHAOS").is_some() { 130 } else { 6 }));
    stage.runtime.signal(Signal::SIGCONT);
    stage.await_state("running");
    stage.await_turn();

    // The program itself, not its guardian: liveness notices it.
    let status = stage.runtime.status();
    let idler = child(&status, "idler");
    let pid: u32 = idler["status"].as_str().unwrap().trim_start_matches("pid ").parse().unwrap();
    send(pid, Signal::SIGSTOP);
    let replaced = std::time::Instant::now();
    loop {
        let status = stage.runtime.status();
        let idler = child(&status, "idler");
        if idler["restarts"] == 1 && idler["state"] == "running" {
            break;
        }
        assert!(replaced.elapsed() < Duration::from_secs(40), "{status}");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    stage.await_state("running");
    stage.nothing_acknowledged_is_lost();
    stage.await_footprint(&before);
}

fn child(status: &serde_json::Value, name: &str) -> serde_json::Value {
    let children = status["tree"]["children"].as_array().unwrap();
    children.iter().find(|child| child["name"] == name).unwrap().clone()
}

#[test]
fn a_disk_that_takes_nothing_costs_turns_but_nothing_acknowledged_and_it_goes_on_when_there_is_room() {
    let mut stage = Stage::start();
    stage.await_turn();
    let before = stage.footprint();
    let limit = |bytes: &str| {
        let mut command = Command::new("prlimit");
        command.arg("--pid").arg(stage.pid().to_string()).arg(format!("--fsize={bytes}:unlimited"));
        assert!(command.status().unwrap().success());
    };
    // No file can grow any more: what a full disk is to whoever writes.
    limit("1");
    let refused = stage.runtime.turn("full", "Hello");
    let (name, data) = refused.last().unwrap();
    assert!(["error", "refused"].contains(&name.as_str()), "{refused:?}");
    assert!(data.to_string().contains("message"), "{refused:?}");
    // It answers, and says what is wrong.
    let health = stage.runtime.get("/health/live").status();
    assert!(health.is_success());
    eventually("the store to say so in the status", || {
        let status = stage.runtime.status();
        (status["tree"]["state"].is_string()).then_some(())
    });
    limit("unlimited");
    stage.await_turn();
    stage.await_state("running");
    stage.nothing_acknowledged_is_lost();
    stage.await_footprint(&before);
    // The log path has caught up: what was logged meanwhile is stored.
    eventually("log records of that time", || {
        let logs = stage.runtime.interlock(&["logs", "--since", "10m", "--level", "info"]);
        String::from_utf8_lossy(&logs.stdout).contains("ready").then_some(())
    });
    stage.runtime.signal(Signal::SIGTERM);
    assert_eq!(stage.runtime.process.exit_code(), Some(0));
}

#[test]
fn a_directory_that_cannot_be_written_a_taken_port_and_a_missing_key_are_named_with_their_own_exit_code() {
    let run = |config: &str, data: &Path, tmp: &Path| {
        let file = tmp.join("interlock.toml");
        std::fs::write(&file, config).unwrap();
        let mut command = tool("interlock");
        command.arg("run").arg("--config").arg(&file).arg("--data-dir").arg(data).output().unwrap()
    };
    let place = tempfile::tempdir().unwrap();

    // A file system that is mounted read-only, whoever asks.
    let read_only = run(crate::harness::runtime::CONFIG, Path::new("/proc/interlock"), place.path());
    let text = String::from_utf8_lossy(&read_only.stderr).into_owned();
    assert_eq!(read_only.status.code(), Some(6), "{text}");
    assert!(text.contains("/proc/interlock"), "{text}");
    if !nix::unistd::geteuid().is_root() {
        let locked = place.path().join("locked");
        std::fs::create_dir(&locked).unwrap();
        std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o500)).unwrap();
        assert_eq!(run(crate::harness::runtime::CONFIG, &locked, place.path()).status.code(), Some(6));
    }

    for key in ["bus.endpoints", "gateway.listen"] {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap();
        let config = if key == "bus.endpoints" {
            format!("[bus]\nendpoints = [\"tcp://{port}\"]\n[gateway]\nlisten = \"127.0.0.1:0\"\n")
        } else {
            format!("[bus]\nendpoints = [\"ipc\"]\n[gateway]\nlisten = \"{port}\"\n")
        };
        let busy = run(&config, &place.path().join("data"), place.path());
        let text = String::from_utf8_lossy(&busy.stderr).into_owned();
        assert_eq!(busy.status.code(), Some(5), "{key}: {text}");
        assert!(text.contains(&port.to_string()), "{key}: {text}");
    }

    let mut stage = Stage::start();
    stage.runtime.signal(Signal::SIGTERM);
    assert_eq!(stage.runtime.process.exit_code(), Some(0));
    let file = stage.runtime.data().join("keys/model.toml");
    std::fs::remove_file(&file).unwrap();
    let missing = run(crate::harness::runtime::CONFIG, &stage.runtime.data(), place.path());
    let text = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert_eq!(missing.status.code(), Some(6), "{text}");
    for part in ["keys/model.toml", "interlock keys revoke model", "interlock keys issue model"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // What it says works.
    for verb in ["revoke", "issue"] {
        let done = stage.runtime.interlock(&["keys", verb, "model"]);
        assert!(done.status.success(), "{done:?}");
    }
    stage.restart();
    stage.await_turn();
}

#[test]
fn a_clock_that_jumps_by_a_day_in_both_directions_disturbs_nothing() {
    let place = tempfile::tempdir().unwrap();
    let library = place.path().join("clock_jump.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("c/clock_jump.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status();
    assert!(built.unwrap().success());
    let jump = place.path().join("jump");
    std::fs::write(&jump, "0").unwrap();
    let runtime = TestRuntime::begin_with("", |command| {
        command.env("LD_PRELOAD", &library).env("CLOCK_JUMP", &jump);
    });
    let mut stage = Stage { runtime, acknowledged: Vec::new() };
    // The same clock for whoever asks: a machine has one.
    stage.runtime.environment = vec![("LD_PRELOAD", library), ("CLOCK_JUMP", jump.clone())];
    stage.await_running();
    stage.await_turn();
    let day = 86_400;
    for offset in [day, -day, 0] {
        std::fs::write(&jump, offset.to_string()).unwrap();
        let at: String = stage.runtime.status()["tree"]["at"].as_str().unwrap().to_owned();
        stage.await_turn();
        stage.await_turn();
        let status = stage.runtime.status();
        assert_eq!(status["tree"]["state"], "running", "{status}");
        let restarts: u64 = status["tree"]["children"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|child| child["restarts"].as_u64())
            .sum();
        assert_eq!(restarts, 0, "{offset} s, at {at}: {status}");
        stage.nothing_acknowledged_is_lost();
    }
    stage.runtime.signal(Signal::SIGTERM);
    assert_eq!(stage.runtime.process.exit_code(), Some(0));
}
