//! Who is suspended (`SIGSTOP`) neither ends nor answers: programs and guardians are replaced within their limits, and who
//! asks a runtime that is suspended is told so.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    pin::Pin,
    time::{Duration, Instant},
};

use interlock_bus::{
    Client, ConnectOptions, Credentials, LinkState, Payload, PublishOptions, RequestError, SubscribeOptions,
    blocking::wait, limits,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{
    DEADLINE,
    dice::environment,
    eventually,
    kept::{children, restarts},
    runtime::TestRuntime,
};

/// Who is suspended, at which moment, and at which of its starts; each is a program of its own.
const STAGES: [(&str, &str, &str, u32); 6] = [
    ("ready", "program", "at-ready", 1),
    ("beating", "program", "beating", 1),
    ("again", "program", "at-ready", 2),
    ("guardian-again", "guardian", "beating", 2),
    ("early", "program", "before-ready", 1),
    ("guardian-early", "guardian", "before-ready", 1),
];

/// The same while it is asked to stop.
const STOPS: [(&str, &str); 2] = [("stop", "program"), ("guardian-stop", "guardian")];

/// A `[[program]]` that is suspended once; what its starts leave is in `files`.
fn program(files: &Path, name: &str, who: &str, moment: &str, start: u32) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/suspends.py");
    let list = files.join(name);
    format!(
        "[[program]]\nname = \"{name}\"\ncommand = \"python3\"\nargs = [\"-IS\", {script:?}, {list:?}, \"{who}\", \"{moment}\", \"{start}\"]\n\
         readiness = \"notify\"\nready_timeout = \"6s\"\nheartbeat = \"500ms\"\ngrace = \"500ms\"\n"
    )
}

/// The processes of each start so far.
fn starts(files: &Path, name: &str) -> Vec<Vec<u32>> {
    let list = fs::read_to_string(files.join(name)).unwrap_or_default();
    let numbers = |line: &str| line.split(' ').map(|pid| pid.parse().unwrap()).collect();
    list.lines().map(numbers).collect()
}

/// Waits until `name` runs in a later start than `start`, and no process of the earlier ones is left.
fn await_replaced(runtime: &TestRuntime, files: &Path, name: &str, start: usize) -> Value {
    let child = eventually(&format!("`{name}` to be replaced"), || {
        let child = children(runtime).into_iter().find(|child| child["name"] == name)?;
        let is_another = starts(files, name).len() > start;
        (is_another && child["state"] == "running").then_some(child)
    });
    eventually(&format!("everybody of `{name}` who was suspended to go"), || {
        let there = runtime.processes();
        let earlier: BTreeSet<u32> = starts(files, name)[..start].concat().into_iter().collect();
        earlier.is_disjoint(&there).then_some(())
    });
    child
}

#[test]
fn a_program_or_guardian_that_is_suspended_at_any_moment_is_replaced_with_all_its_processes() {
    let files = tempfile::tempdir().unwrap();
    let stages = STAGES.map(|(name, who, moment, start)| program(files.path(), name, who, moment, start));
    let stops = STOPS.map(|(name, who)| program(files.path(), name, who, "stopping", 1));
    let runtime = TestRuntime::start_degraded_with(&[stages.concat(), stops.concat()].concat());
    for (name, who, moment, start) in STAGES {
        let child = await_replaced(&runtime, files.path(), name, start as usize);
        let reason = child["last_failure"]["reason"].as_str().unwrap_or_default();
        let is_late = reason.starts_with("not ready within 6 s");
        let is_silent = reason.starts_with("not alive: 3 questions in a row");
        // A guardian may be suspended before it has passed on that the program is ready.
        let expected = match (who, moment) {
            (_, "before-ready") => is_late,
            ("program", _) => is_silent,
            _ => is_late || is_silent,
        };
        assert!(expected, "{name}: {child}");
    }
    for (name, _) in STOPS {
        let restarted = runtime.interlock(&["restart", name]);
        assert!(restarted.status.success(), "{restarted:?}");
        await_replaced(&runtime, files.path(), name, 1);
    }
}

/// How long somebody without a session may wait to be told: the longest handshake, and a busy machine.
const STRANGER_WAITS_MAX: Duration = Duration::from_secs(20);

/// The same of one who has a session and no deadline of its own: silence and a ping without an answer.
const SILENCE_MAX: Duration = limits::PING_INTERVAL.saturating_add(limits::PING_TIMEOUT);

/// A session of the peer `operator`, who may do everything.
fn operator(runtime: &TestRuntime) -> Client {
    let credentials = Credentials::load(&runtime.data().join("keys/operator.toml")).unwrap();
    Client::connect_blocking(ConnectOptions::new(credentials)).unwrap()
}

fn status_of(client: &Client, deadline: Duration) -> Result<(), RequestError> {
    let topic = "interlock/runtime/status/v1".parse().unwrap();
    wait(client.request(&topic, Payload::default(), deadline)).map(drop)
}

type Asking = (&'static str, fn(Client) -> Pin<Box<dyn Future<Output = String>>>);

/// What a client waits for without a deadline of its own, and how it is told that nothing comes.
const WITHOUT_DEADLINE: [Asking; 5] = [
    ("subscribe", |client| {
        Box::pin(async move {
            let subscribed = client.subscribe(&"a/#".parse().unwrap(), SubscribeOptions::default()).await;
            subscribed.expect_err("nobody is there").to_string()
        })
    }),
    ("acknowledgement", |client| {
        Box::pin(async move {
            let (topic, options) = ("a/b".parse().unwrap(), PublishOptions::default());
            let published = client.publish_acknowledged(&topic, Payload::text("x"), options).await;
            published.expect_err("nobody is there").to_string()
        })
    }),
    ("room", |client| {
        Box::pin(async move {
            let (topic, options) = ("a/b".parse().unwrap(), PublishOptions::default());
            loop {
                let payload = Payload::bytes(vec![0; 256 << 10]);
                if let Err(error) = client.publish_waiting(&topic, payload, &options).await {
                    return error.to_string();
                }
            }
        })
    }),
    ("ping", |client| Box::pin(async move { client.ping().await.expect_err("nobody is there").to_string() })),
    ("link", |client| {
        Box::pin(async move {
            let mut link = client.watch();
            let lost = link.wait_for(|state| matches!(state, LinkState::Lost { .. })).await.unwrap();
            format!("{lost:?}")
        })
    }),
];

/// What `ask` says, and that it did so within the limit.
fn told<T>(limit: Duration, what: &str, ask: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let said = ask();
    assert!(begun.elapsed() < limit, "{what}: {:?}", begun.elapsed());
    said
}

#[test]
fn who_asks_a_runtime_that_is_suspended_is_told_so_and_goes_on_when_it_does() {
    let runtime = TestRuntime::start();
    let client = operator(&runtime);
    status_of(&client, DEADLINE).unwrap();
    // Three quarters of a minute: for soaks.
    let patient = match environment("INTERLOCK_CHAOS") {
        Some(_) => WITHOUT_DEADLINE.map(|asking| (operator(&runtime), asking)).to_vec(),
        None => Vec::new(),
    };
    let restarts_before = restarts(&runtime);
    runtime.signal(Signal::SIGSTOP);
    std::thread::scope(|scope| {
        let (runtime, client) = (&runtime, &client);
        for arguments in [&["status"][..], &["ps"], &["explain", "model"], &["restart", "model"]] {
            scope.spawn(move || {
                let output = told(STRANGER_WAITS_MAX, arguments[0], || runtime.interlock(arguments));
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(output.status.code(), Some(3), "{arguments:?}: {said}");
                assert!(said.contains("did not answer within"), "{arguments:?}: {said}");
            });
        }
        for arguments in [&["topics"][..], &["sub", "#"], &["pub", "a/b", "x"], &["request", "a/b", "x"]] {
            scope.spawn(move || {
                let output = told(STRANGER_WAITS_MAX, arguments[0], || runtime.bus(arguments));
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(output.status.code(), Some(3), "{arguments:?}: {said}");
                assert!(said.contains("did not answer within"), "{arguments:?}: {said}");
            });
        }
        scope.spawn(move || {
            let deadline = Duration::from_secs(1);
            let answer = told(STRANGER_WAITS_MAX, "request", || status_of(client, deadline));
            assert!(matches!(answer, Err(RequestError::TimedOut { .. })), "{answer:?}");
        });
        for (client, (what, ask)) in &patient {
            scope.spawn(move || {
                let said = told(SILENCE_MAX + STRANGER_WAITS_MAX, what, || wait(ask(client.clone())));
                assert!(!said.is_empty(), "{what}");
            });
        }
    });
    runtime.signal(Signal::SIGCONT);
    eventually("the session of before to be served again", || status_of(&client, DEADLINE).ok());
    assert_eq!(restarts(&runtime), restarts_before, "nobody was to blame");
}
