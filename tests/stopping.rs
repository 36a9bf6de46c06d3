//! How a run ends: at whatever moment it is asked, within its phases, with the right exit code, leaving nothing behind.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixDatagram,
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use interlock_bus::{Client, ConnectOptions, Credentials, Payload, RequestError, blocking::wait};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::{
    DEADLINE, eventually,
    kept::{Turn, assert_kept},
    runtime::{CONFIG, TestRuntime, events, final_text},
};

/// A program that is ready and does not want to end.
const STUBBORN: &str = r#"
[[program]]
name = "stubborn"
command = "sh"
args = ["-c", "trap '' TERM; echo here; while :; do sleep 1; done"]
readiness = "line:here"
grace = "1h"
"#;

fn settings(drain: &str, forced: &str) -> String {
    format!("[shutdown]\ndrain = \"{drain}\"\nforced = \"{forced}\"\n{STUBBORN}")
}

fn await_stubborn(runtime: &TestRuntime) {
    eventually("the stubborn program to be ready", || {
        let status = runtime.status();
        let children = status["tree"]["children"].as_array()?;
        children.iter().any(|child| child["name"] == "stubborn" && child["state"] == "running").then_some(())
    });
}

fn operator(runtime: &TestRuntime) -> Client {
    let credentials = Credentials::load(&runtime.data().join("keys/operator.toml")).unwrap();
    Client::connect_blocking(ConnectOptions::new(credentials).timeout(DEADLINE)).unwrap()
}

fn nothing_is_left_of(runtime: &TestRuntime) {
    assert_eq!(runtime.processes(), BTreeSet::new());
    let left: Vec<_> = std::fs::read_dir(runtime.data().join("run"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["instance.lock", "gateway-token"].contains(&name.as_str()))
        .collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn a_stop_is_heard_at_every_moment_of_the_start() {
    for (file, by_command) in [
        ("run/instance.lock", true),
        ("run/instance.json", false),
        ("run/gateway-token", true),
        ("run/bus.sock", false),
        ("interlock.db", true),
    ] {
        let mut runtime = TestRuntime::begin_with("", |_| ());
        eventually(file, || runtime.data().join(file).exists().then_some(()));
        if by_command {
            let stopped = runtime.interlock(&["stop"]);
            assert_eq!(stopped.status.code(), Some(0), "{file}: {stopped:?}");
        } else {
            // Signals are heard from the moment at which the instance can be found.
            runtime.signal(Signal::SIGTERM);
        }
        assert_eq!(runtime.process.exit_code(), Some(0), "{file}");
        nothing_is_left_of(&runtime);
    }
}

#[test]
fn a_turn_in_hand_is_finished_before_the_end() {
    let mut runtime = TestRuntime::start_with("[model]\nscript_pause = \"50ms\"\n");
    std::thread::scope(|scope| {
        let turn = scope.spawn(|| runtime.turn("last", "Hello"));
        eventually("the turn to begin", || {
            let topics = runtime.bus(&["topics"]);
            String::from_utf8_lossy(&topics.stdout).contains("conversation/turn/delta").then_some(())
        });
        runtime.signal(Signal::SIGTERM);
        final_text(&turn.join().unwrap());
    });
    assert_eq!(runtime.process.exit_code(), Some(0));
    nothing_is_left_of(&runtime);
}

/// One attempt to get work taken: when it was begun, and its end: `final`, the code of a refusal, or another error.
type Attempt = (Instant, String);

/// Says `text`; what was answered, if it was.
fn attempt(runtime: &TestRuntime, conversation: &str, text: &str) -> (Attempt, Option<Turn>) {
    let begun = Instant::now();
    let url = runtime.url(&format!("/v1/conversations/{conversation}/messages")).unwrap_or_default();
    let request = runtime.http().post(url).bearer_auth(runtime.token().unwrap());
    let end = match request.json(&serde_json::json!({ "text": text })).send() {
        Ok(answer) if answer.status().is_success() => events(answer).pop().unwrap_or_default(),
        Ok(answer) => (
            answer.json::<serde_json::Value>().unwrap()["error"]["code"].as_str().unwrap().to_owned(),
            "".into(),
        ),
        Err(error) => (error.to_string(), "".into()),
    };
    let turn = (end.0 == "final").then(|| (text.to_owned(), end.1["text"].as_str().unwrap().to_owned()));
    ((begun, end.0), turn)
}

#[test]
fn nothing_new_is_taken_100_ms_after_the_signal_and_each_turn_that_was_taken_is_finished() {
    let mut runtime =
        TestRuntime::start_with(&format!("[model]\nscript_pause = \"40ms\"\n{}", settings("2s", "20s")));
    await_stubborn(&runtime);
    let operator = operator(&runtime);
    // Until when they try: well after the refusals have begun.
    let last = OnceLock::new();
    let goes_on = || last.get().is_none_or(|last| Instant::now() < *last);
    let (heard, asked, at) = std::thread::scope(|scope| {
        let (runtime, goes_on) = (&runtime, &goes_on);
        let talk = |writer: usize| {
            let texts = (0..).map(|number| format!("writer {writer}, number {number}"));
            let tries = texts.take_while(|_| goes_on());
            tries.map(|text| attempt(runtime, &format!("writer-{writer}"), &text)).collect::<Vec<_>>()
        };
        let writers: Vec<_> = (0..6).map(|writer| scope.spawn(move || talk(writer))).collect();
        // The same over the bus, past the gateway.
        let asking = scope.spawn(|| {
            std::iter::from_fn(|| goes_on().then(|| (Instant::now(), ask(&operator))))
                .collect::<Vec<Attempt>>()
        });
        eventually("turns to be answered", || {
            let topics = runtime.bus(&["topics"]);
            String::from_utf8_lossy(&topics.stdout).contains("conversation/turn/final").then_some(())
        });
        let at = Instant::now();
        last.set(at + Duration::from_secs(1)).unwrap();
        runtime.signal(Signal::SIGTERM);
        for verb in ["restart", "start"] {
            let refused = runtime.interlock(&[verb, "model"]);
            let text = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert_eq!(refused.status.code(), Some(5), "{verb}: {text}");
            assert!(text.contains("shutting down"), "{verb}: {text}");
        }
        let heard: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        (heard, asking.join().unwrap(), at)
    });
    let attempts: Vec<&Attempt> = heard.iter().flatten().map(|(attempt, _)| attempt).chain(&asked).collect();
    assert!(attempts.iter().any(|(_, end)| end == "stopping"), "{attempts:?}");
    for (begun, end) in attempts {
        let after = begun.saturating_duration_since(at);
        assert!(after < Duration::from_millis(100) || end != "final", "taken {after:?} after the signal");
    }
    // The stubborn program, and nothing else.
    assert_eq!(runtime.process.exit_code(), Some(10));
    runtime.restart();
    for (writer, heard) in heard.into_iter().enumerate() {
        let answered: Vec<Turn> = heard.into_iter().filter_map(|(_, turn)| turn).collect();
        let conversation = format!("writer-{writer}");
        assert_kept(&runtime, &conversation, &answered);
        let history: serde_json::Value =
            runtime.get(&format!("/v1/conversations/{conversation}")).json().unwrap();
        let said = history["messages"].as_array().unwrap().len();
        assert_eq!(
            said,
            answered.len() * 2,
            "what was begun was finished, what was refused was not begun: {history}"
        );
    }
}

/// Asks the conversation engine over the bus; how it ended.
fn ask(client: &Client) -> String {
    let topic = "conversation/user/input/v1".parse().unwrap();
    let input = Payload::json(&serde_json::json!({ "conversation": "bus", "text": "Hello" })).unwrap();
    wait(async {
        let mut parts = match client.request_stream(&topic, input, DEADLINE).await {
            Ok(parts) => parts,
            Err(error) => return error.to_string(),
        };
        while let Some(part) = parts.next().await {
            match part {
                Ok(_) => {}
                Err(RequestError::Failed { code, .. }) => return code,
                Err(error) => return error.to_string(),
            }
        }
        "final".to_owned()
    })
}

#[test]
pub(crate) fn what_does_not_end_while_it_drains_is_killed_and_the_exit_code_is_10() {
    let mut runtime = TestRuntime::start_with(&settings("1500ms", "20s"));
    await_stubborn(&runtime);
    let operator = operator(&runtime);
    let topic = "interlock/runtime/status/v1".parse().unwrap();
    let begun = Instant::now();
    runtime.signal(Signal::SIGTERM);
    // Over a session that is there already: a new process may come too late on a busy machine.
    let shutdown = eventually("status to show the shutdown", || {
        let status = wait(operator.request(&topic, Payload::default(), DEADLINE)).unwrap();
        let status: serde_json::Value = serde_json::from_slice(&status.payload).unwrap();
        status["shutdown"].is_object().then(|| status["shutdown"].clone())
    });
    assert_eq!((&shutdown["because"], &shutdown["phase"]), (&"SIGTERM".into(), &"drain".into()));
    assert_eq!(runtime.process.exit_code(), Some(10));
    assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    nothing_is_left_of(&runtime);
    // The next start is none the wiser.
    runtime.restart();
    final_text(&runtime.turn("after", "Hello"));
}

#[test]
fn a_second_signal_means_now_and_the_exit_code_is_11() {
    let mut runtime = TestRuntime::start_with(&settings("10m", "20m"));
    await_stubborn(&runtime);
    runtime.signal(Signal::SIGINT);
    eventually("the stop to begin", || runtime.status()["shutdown"].is_object().then_some(()));
    // Neither a command nor a file is a second signal.
    assert_eq!(runtime.interlock(&["stop", "--no-wait"]).status.code(), Some(0));
    assert!(runtime.process.is_alive());
    runtime.signal(Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(11));
    nothing_is_left_of(&runtime);
}

#[test]
fn a_second_signal_means_now_although_the_disk_hangs() {
    let settings = "[shutdown]\ndrain = \"10m\"\nforced = \"20m\"\n";
    let mut runtime = TestRuntime::begin_with(settings, |command| {
        command.stderr(Stdio::piped());
    });
    runtime.wait_until_ready();
    let (heard, hears) = std::sync::mpsc::channel();
    let said = BufReader::new(runtime.process.stderr().unwrap()).lines().map_while(Result::ok);
    std::thread::spawn(move || said.for_each(|line| drop(heard.send(line))));
    let await_word = |word: &str| loop {
        let line =
            hears.recv_timeout(DEADLINE).unwrap_or_else(|error| panic!("`{word}` was not said: {error}"));
        if line.contains(word) {
            return;
        }
    };
    // Each sync takes longer than anybody here waits for anything.
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", "/dev/null", "-e", "inject=fdatasync,fsync:delay_enter=60000000", "-p"]);
    strace.arg(runtime.process.id().to_string()).stderr(Stdio::piped());
    let mut strace = strace.spawn().expect("strace, which this test needs");
    // Read to its end: strace would end with it.
    let mut notes = BufReader::new(strace.stderr.take().unwrap()).lines().map_while(Result::ok);
    let is_attached = notes.next().is_some_and(|note| note.contains("attached"));
    std::thread::spawn(move || notes.for_each(drop));
    if is_attached {
        runtime.signal(Signal::SIGINT);
        await_word("stopping, because of SIGINT");
        runtime.signal(Signal::SIGTERM);
        await_word("ended by the watchdog");
    }
    // It lets go of the process by itself; killed, it could not.
    kill(Pid::from_raw(strace.id() as i32), Signal::SIGTERM).unwrap();
    strace.wait().unwrap();
    if is_attached {
        assert_eq!(runtime.process.exit_code(), Some(11));
    }
}

#[test]
pub(crate) fn a_stop_that_hangs_is_ended_by_the_watchdog_with_exit_code_11() {
    // Nobody empties standard error, so the first word of the stop never ends.
    let (held, full) = std::io::pipe().unwrap();
    let mut filling = full.try_clone().unwrap();
    nix::fcntl::fcntl(&filling, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    while filling.write(&[b'x'; 4096]).is_ok() {}
    while filling.write(b"x").is_ok() {}
    nix::fcntl::fcntl(&filling, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
    let mut runtime =
        TestRuntime::begin_with("[shutdown]\ndrain = \"50ms\"\nforced = \"100ms\"\n", |command| {
            command.stderr(Stdio::from(full));
        });
    runtime.wait_until_ready();
    runtime.signal(Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(11));
    drop(held);
    eventually("its processes to go", || runtime.processes().is_empty().then_some(()));
}

#[test]
fn a_service_manager_hears_of_the_start_signs_of_life_and_the_stop() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let hear = |wanted: &str| {
        let mut heard = Vec::new();
        while !heard.iter().any(|text: &String| text.contains(wanted)) {
            let mut buffer = [0; 512];
            let bytes =
                manager.recv(&mut buffer).unwrap_or_else(|error| panic!("{wanted}: {error}: {heard:?}"));
            heard.push(String::from_utf8_lossy(&buffer[..bytes]).into_owned());
        }
    };
    let mut runtime = TestRuntime::begin_with(STUBBORN, |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    });
    hear("READY=1\nSTATUS=");
    hear("WATCHDOG=1");
    await_stubborn(&runtime);
    runtime.signal(Signal::SIGTERM);
    hear("STOPPING=1\nSTATUS=stopping, because of SIGTERM");
    // It is watched while it stops, too.
    hear("WATCHDOG=1");
    runtime.signal(Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(11));

    // One that stands still is silent.
    let runtime = TestRuntime::begin_with("", |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    });
    hear("READY=1\nSTATUS=running");
    runtime.signal(Signal::SIGSTOP);
    manager.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
    let mut buffer = [0; 512];
    let silent = (0..200).find(|_| manager.recv(&mut buffer).is_err());
    assert!(silent.is_some(), "a process that stands still gave signs of life");
}

#[test]
fn the_last_report_names_what_had_to_be_killed() {
    let mut runtime = TestRuntime::begin_with(&settings("100ms", "20s"), |command| {
        command.stderr(Stdio::piped());
    });
    let mut said = BufReader::new(runtime.process.stderr().unwrap());
    await_stubborn(&runtime);
    runtime.signal(Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(10));
    let mut last = Vec::new();
    let mut line = String::new();
    while said.read_line(&mut line).unwrap() > 0 {
        last.push(std::mem::take(&mut line));
    }
    let text = last.concat();
    assert!(text.contains("stopping, because of SIGTERM; once more means now"), "{text}");
    assert!(text.contains("had to be killed:") && text.contains("stubborn"), "{text}");
}

#[test]
fn what_does_not_end_within_its_own_grace_is_named_too_and_whoever_asked_for_the_stop_is_told() {
    let mut runtime = TestRuntime::begin_with(&STUBBORN.replace("1h", "200ms"), |command| {
        command.stderr(Stdio::piped());
    });
    let mut said = runtime.process.stderr().unwrap();
    await_stubborn(&runtime);
    let stopped = runtime.interlock(&["stop"]);
    let told = String::from_utf8_lossy(&stopped.stderr).into_owned();
    assert_eq!(stopped.status.code(), Some(10), "{told}");
    assert!(told.contains("has ended with code 10: stopped with work pending"), "{told}");
    assert_eq!(runtime.process.exit_code(), Some(10));
    let mut text = String::new();
    said.read_to_string(&mut text).unwrap();
    assert!(text.contains("reason=did not stop within its grace of 200 ms, killed"), "{text}");
    assert!(text.contains("had to be killed: stubborn"), "{text}");

    // One that is killed cannot say how it ended; the next one can again.
    let file = runtime.directory.path().join("interlock.toml");
    std::fs::write(file, CONFIG).unwrap();
    runtime.restart();
    let code = |runtime: &TestRuntime| runtime.interlock(&["stop"]).status.code();
    runtime.signal(Signal::SIGSTOP);
    let killed = std::thread::scope(|scope| {
        let asking = scope.spawn(|| code(&runtime));
        eventually("the stop to be asked for", || {
            runtime.data().join("run/interlock.shutdown").exists().then_some(())
        });
        runtime.signal(Signal::SIGKILL);
        asking.join().unwrap()
    });
    assert_eq!(killed, Some(11));
    runtime.process.kill();
    runtime.restart();
    assert_eq!(code(&runtime), Some(0));
}
