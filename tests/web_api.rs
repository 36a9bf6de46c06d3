//! The gateway as programs on the web use it: its own description, the bus, the socket, conversations.

use std::time::Duration;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::harness::{
    TestProcess, eventually,
    runtime::{TestRuntime, events, tool},
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
    assert_eq!(play(&runtime, "socket"), 7);
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
fn wrong_tokens_in_greetings_are_counted_as_those_in_headers_are() {
    let runtime = TestRuntime::start_with("failure_rate = 5\n");
    assert_eq!(play(&runtime, "guessing"), 1);
    eventually("the refusals in the audit file", || {
        let text = std::fs::read_to_string(runtime.data().join("keys/audit.jsonl")).unwrap();
        (text.contains("\"unauthorized\"") && text.contains("\"rate_limited\"")).then_some(())
    });
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

#[test]
fn a_request_in_json_is_cancelled_when_its_client_goes() {
    let runtime = TestRuntime::start();
    let out = runtime.directory.path().join("out");
    let mut serve = tool("bus");
    serve.args(["serve", "ask/#", "--command", "sleep 1000 & echo $! > $OUT; wait", "--data-dir"]);
    serve.arg(runtime.data()).env("OUT", &out);
    let _server = TestProcess::spawn(serve);
    let url = runtime.url("/v1/bus/request").unwrap();
    let impatient = reqwest::blocking::Client::new();
    // Answered at once while nobody serves; then not at all.
    eventually("somebody to serve", || {
        let asked = impatient.post(&url).bearer_auth(runtime.token().unwrap());
        let asked =
            asked.timeout(Duration::from_secs(2)).json(&json!({ "topic": "ask/x", "timeout_ms": 600_000 }));
        match asked.send() {
            Ok(answer) => {
                assert_eq!(answer.status(), 503);
                None
            }
            Err(error) => {
                assert!(error.is_timeout(), "{error}");
                Some(())
            }
        }
    });
    let pid: i32 =
        eventually("the command to run", || std::fs::read_to_string(&out).ok()?.trim().parse().ok());
    eventually("the command to be ended", || kill(Pid::from_raw(pid), None).err());
}

#[test]
fn an_answer_of_a_component_that_cannot_be_read_blames_the_component() {
    let runtime = TestRuntime::start();
    assert!(runtime.interlock(&["stop", "model"]).status.success());
    let mut serve = tool("bus");
    serve.args(["serve", "modelservice/#", "--command", "echo nonsense", "--data-dir"]).arg(runtime.data());
    let _server = TestProcess::spawn(serve);
    let body: Value = eventually("somebody else to serve", || {
        let answer = runtime.get("/v1/models");
        let status = answer.status();
        let body: Value = answer.json().unwrap();
        assert!(status.is_server_error(), "{status} {body}");
        (status == 502).then_some(body)
    });
    let text = body["error"]["message"].as_str().unwrap();
    assert!(
        text.contains("the answer of the model service cannot be read") && !text.contains("::"),
        "{body}"
    );
    assert_eq!(
        (&body["error"]["code"], &body["error"]["type"]),
        (&json!("bad_answer"), &json!("server_error"))
    );
}

#[test]
fn head_is_answered_as_get_is_and_the_documentation_is_found_without_its_slash() {
    let runtime = TestRuntime::start();
    let head = |path: &str| {
        let asked = runtime.http().head(runtime.url(path).unwrap()).bearer_auth(runtime.token().unwrap());
        asked.send().unwrap()
    };
    for path in
        ["/", "/health", "/v1/status", "/v1/logs", "/v1/models", "/openapi.json", "/docs", "/v1/bus/topics"]
    {
        let answer = head(path);
        assert_eq!(answer.status(), 200, "{path}");
        let length: u64 = answer.headers()["content-length"].to_str().unwrap().parse().unwrap();
        assert!(length > 0, "{path}");
        assert_eq!(answer.bytes().unwrap().len(), 0, "{path}");
    }
    // What would not end is not begun.
    for path in ["/v1/logs/follow", "/v1/bus/subscribe?filter=a", "/v1/conversations/a/events"] {
        let answer = head(path);
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["content-type"]),
            (200, &"text/event-stream; charset=utf-8".parse().unwrap()),
            "{path}"
        );
        assert_eq!(answer.bytes().unwrap().len(), 0, "{path}");
    }
    assert_eq!(head("/v1/nowhere").status(), 404);
    let refused = head("/v1/chat");
    assert_eq!((refused.status().as_u16(), &refused.headers()["allow"]), (405, &"POST".parse().unwrap()));
    let refused =
        runtime.http().delete(runtime.url("/v1/status").unwrap()).bearer_auth(runtime.token().unwrap());
    assert_eq!(refused.send().unwrap().headers()["allow"], "GET, HEAD");
}

#[test]
fn who_follows_the_log_is_told_that_the_gateway_stops() {
    let mut runtime = TestRuntime::start();
    let stream = runtime.get("/v1/logs/follow");
    assert_eq!(stream.status(), 200);
    let reader = std::thread::spawn(move || events(stream));
    assert!(runtime.interlock(&["stop"]).status.success());
    let (name, data) = reader.join().unwrap().pop().unwrap();
    assert_eq!((name.as_str(), &data["code"]), ("error", &json!("stopping")));
    assert_eq!(runtime.process.exit_code(), Some(0));
}
