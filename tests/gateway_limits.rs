use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Instant,
};

use serde_json::Value;

use crate::harness::{DEADLINE, eventually, runtime::TestRuntime};

/// Status, `Retry-After` and code of what is answered to this token.
fn ask(runtime: &TestRuntime, token: Option<&str>, path: &str) -> (u16, Option<u64>, String) {
    let mut request = runtime.http().get(runtime.url(path).unwrap());
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let response = request.send().unwrap();
    let retry = response.headers().get("retry-after").map(|value| value.to_str().unwrap().parse().unwrap());
    let status = response.status().as_u16();
    let body: Value = response.json().unwrap_or_default();
    (status, retry, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

/// How many of so many requests are answered before the first that is refused for its rate.
fn answered_before_the_limit(most: usize, mut ask: impl FnMut() -> (u16, Option<u64>, String)) -> usize {
    for count in 0..most {
        let (status, retry, code) = ask();
        if status == 429 {
            assert_eq!(code, "rate_limited");
            assert!(retry.is_some_and(|seconds| (1..=60).contains(&seconds)), "{retry:?}");
            return count;
        }
    }
    panic!("{most} requests were answered")
}

fn counted(runtime: &TestRuntime, line: &str) -> bool {
    runtime.get("/metrics").text().unwrap().lines().any(|found| {
        let number = found.strip_prefix(line).map(str::trim);
        number.is_some_and(|number| number.parse::<f64>().is_ok_and(|number| number > 0.0))
    })
}

#[test]
pub(crate) fn who_asks_too_often_is_told_when_to_come_back_and_nobody_else_pays_for_it() {
    let runtime = TestRuntime::start_with("token_rate = 20\naddress_rate = 1000\n");
    let path = runtime.directory.path().join("greedy.token");
    let output =
        runtime.interlock(&["tokens", "issue", "greedy", "--scope", "chat", "--out", path.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let greedy = std::fs::read_to_string(path).unwrap().trim().to_owned();
    // As many as there are in a minute at once, and those that have come back meanwhile.
    let count = answered_before_the_limit(200, || ask(&runtime, Some(&greedy), "/v1/conversations"));
    assert!(count >= 20, "{count}");
    // The operator has an allowance of its own, health has, and liveness needs none.
    assert_eq!(ask(&runtime, runtime.token().as_deref(), "/v1/conversations").0, 200);
    assert_eq!(ask(&runtime, Some(&greedy), "/health").0, 200);
    assert_eq!(ask(&runtime, None, "/health/live").0, 200);
    assert!(counted(&runtime, "interlock_gateway_rate_limited_total{limit=\"token\"}"));
    eventually("the refusal in the audit file", || {
        let text = std::fs::read_to_string(runtime.data().join("keys/audit.jsonl")).unwrap();
        text.contains("\"rate_limited\"").then_some(())
    });
}

#[test]
pub(crate) fn an_address_has_one_allowance_for_all_its_tokens_and_liveness_answers_beside_a_flood() {
    let runtime = TestRuntime::start_with("address_rate = 30\n");
    let token = runtime.token().unwrap();
    let count = answered_before_the_limit(300, || ask(&runtime, Some(&token), "/v1/conversations"));
    assert!(count >= 25, "{count}");
    assert_eq!(ask(&runtime, None, "/").0, 429, "the page is no way around it");
    for _ in 0..50 {
        assert_eq!(ask(&runtime, None, "/health/live").0, 200);
        assert_eq!(ask(&runtime, Some(&token), "/health").0, 200);
    }
}

#[test]
pub(crate) fn wrong_tokens_are_limited_harder_and_the_right_one_goes_on() {
    let runtime = TestRuntime::start_with("failure_rate = 5\n");
    let mut answers = Vec::new();
    let count = answered_before_the_limit(50, || {
        let answer = ask(&runtime, Some("interlock_wrong"), "/v1/conversations");
        answers.push(answer.0);
        answer
    });
    assert!((5..=8).contains(&count), "{answers:?}");
    // Who has none at all is asked for one, however often.
    assert_eq!(ask(&runtime, None, "/v1/conversations").0, 401);
    assert_eq!(ask(&runtime, runtime.token().as_deref(), "/v1/conversations").0, 200);
    assert!(counted(&runtime, "interlock_gateway_rate_limited_total{limit=\"failures\"}"));
}

#[test]
fn no_route_reads_a_body_above_the_limit_or_waits_for_one_that_does_not_come() {
    let runtime = TestRuntime::start_with("body_bytes_max = 1000\nbody_timeout = \"1s\"\n");
    let address = runtime.url("").unwrap().trim_start_matches("http://").to_owned();
    let token = runtime.token().unwrap();
    let answer = |method: &str, path: &str, length: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let begun = Instant::now();
        let mut text = Vec::new();
        // The end is the server's hanging up: nothing that is not read is waited for.
        let _ = stream.read_to_end(&mut text);
        assert!(begun.elapsed() < DEADLINE, "{method} {path}");
        String::from_utf8_lossy(&text).into_owned()
    };
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/v1/status"),
        ("GET", "/metrics"),
        ("POST", "/v1/chat"),
        ("POST", "/v1/admin/tokens"),
        ("DELETE", "/v1/admin/tokens/x"),
        ("GET", "/nowhere"),
    ] {
        let text = answer(method, path, "Content-Length: 1001");
        assert!(text.starts_with("HTTP/1.1 413"), "{method} {path}: {text}");
        assert!(text.contains("body_bytes_max"), "{text}");
    }
    for (method, path) in [("POST", "/v1/chat"), ("POST", "/v1/admin/tokens")] {
        let text = answer(method, path, "Content-Length: 10");
        assert!(text.starts_with("HTTP/1.1 408"), "{method} {path}: {text}");
    }
}
