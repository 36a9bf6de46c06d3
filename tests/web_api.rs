//! The gateway as programs on the web use it: its own description, the bus, the socket, conversations.

use nix::sys::signal::Signal;

use crate::harness::{
    TestProcess, eventually,
    runtime::{TestRuntime, tool},
};

#[test]
fn every_operation_answers_as_the_document_says_and_refuses_who_has_no_token() {
    // Each operation is called without a token, too.
    let runtime = TestRuntime::start_with("failure_rate = 6000\n");
    let (url, token) = (runtime.url("").unwrap(), runtime.token().unwrap());
    let mut walk = TestProcess::python("document.py", &[&url, &token]);
    let mut operations = 0;
    loop {
        let line = walk.line();
        if let Some(count) = line.strip_prefix("done ") {
            assert_eq!(count.parse(), Ok(operations), "operations called of those that are described");
            break;
        }
        operations += 1;
    }
    assert!(operations > 20, "{operations}");
    assert_eq!(walk.exit_code(), Some(0));
}

/// Runs a scenario of `web.py` to its end, and says how many of its claims held.
fn play(runtime: &TestRuntime, scenario: &str) -> usize {
    let (url, token) = (runtime.url("").unwrap(), runtime.token().unwrap());
    let mut script = TestProcess::python("web.py", &[scenario, &url, &token]);
    let claims = std::iter::from_fn(|| Some(script.json()).filter(|line| line["held"] != "all")).count();
    assert_eq!(script.exit_code(), Some(0));
    claims
}

#[test]
fn a_subscription_over_http_gets_what_is_published_from_then_on_once_in_order_and_decoded() {
    assert_eq!(play(&TestRuntime::start(), "each_once"), 1);
}

#[test]
fn a_slow_reader_loses_what_there_is_no_room_for_and_is_told_how_much() {
    assert_eq!(play(&TestRuntime::start(), "slow_reader"), 2);
}

#[test]
fn a_socket_subscribes_publishes_and_asks_within_its_limits() {
    let mut runtime = TestRuntime::start();
    assert_eq!(play(&runtime, "socket"), 5);
    assert!(runtime.process.is_alive());
}

#[test]
fn hostile_bodies_queries_and_frames_are_refused_and_nothing_panics() {
    let mut runtime = TestRuntime::start();
    assert_eq!(play(&runtime, "hostile"), 6);
    assert!(runtime.process.is_alive() && runtime.is_ready().is_some());
    let panics = runtime.interlock(&["logs", "--text", "panicked", "--json"]);
    assert!(panics.stdout.is_empty(), "{}", String::from_utf8_lossy(&panics.stdout));
}

#[test]
fn conversations_are_begun_named_heard_and_deleted() {
    assert_eq!(play(&TestRuntime::start(), "conversations"), 3);
}

#[test]
fn a_limited_token_may_what_its_scopes_and_the_broker_say_until_it_is_revoked() {
    let runtime = TestRuntime::start();
    assert_eq!(play(&runtime, "limited"), 2);
    let auth = String::from_utf8(runtime.bus(&["auth"]).stdout).unwrap();
    let line = auth.lines().find(|line| line.contains("web-limited") && line.contains("secret/a"));
    assert!(line.is_some_and(|line| line.contains("publish")), "{auth}");
}

#[test]
fn a_streamed_request_whose_server_is_killed_ends_with_an_error() {
    let runtime = TestRuntime::start();
    let mut serve = tool("bus");
    serve
        .args(["serve", "ask/#", "--lines", "--command", "echo one; sleep 100", "--data-dir"])
        .arg(runtime.data());
    let mut server = TestProcess::spawn(serve);
    let (url, token) = (runtime.url("").unwrap(), runtime.token().unwrap());
    let mut script = eventually("somebody to serve", || {
        let script = TestProcess::python("web.py", &["request", &url, &token, "ask/x"]);
        let first = script.json();
        match first["event"].as_str() {
            Some("part") => {
                assert_eq!(first["data"]["payload"], "one");
                Some(script)
            }
            _ => None,
        }
    });
    server.signal(Signal::SIGKILL);
    let last = script.json();
    assert_eq!((&last["event"], &last["data"]["code"]), (&"error".into(), &"server_gone".into()), "{last}");
    assert_eq!(script.json()["held"], "all");
    assert_eq!((script.exit_code(), server.exit_code()), (Some(0), None));
}
