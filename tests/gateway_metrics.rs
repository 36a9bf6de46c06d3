use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::harness::{eventually, runtime::TestRuntime};

/// What Prometheus' own parser reads: name, labels and value of each number.
struct Numbers(Vec<Value>);

impl Numbers {
    fn read(text: &str, format: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/metrics.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(format).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut reader = command.spawn().unwrap();
        let mut input = reader.stdin.take().unwrap();
        let text = text.to_owned();
        let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
        let output = reader.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(serde_json::from_slice(&output.stdout).unwrap())
    }

    fn of(runtime: &TestRuntime) -> Self {
        Self::read(&runtime.get("/metrics").text().unwrap(), "text")
    }

    /// The sum of all numbers of that name whose labels have these values.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &&Value| {
            sample[0] == name && labels.iter().all(|(label, value)| sample[1][*label] == *value)
        };
        self.0.iter().filter(has).map(|sample| sample[2].as_f64().unwrap()).sum()
    }
}

#[test]
fn the_numbers_are_read_by_prometheus_and_agree_with_what_the_tools_say() {
    let runtime = TestRuntime::start();
    for number in 0..7 {
        assert!(runtime.bus(&["pub", "garden/gate", &format!("message {number}")]).status.success());
    }
    assert_eq!(runtime.turn("kitchen", "Hello there").last().unwrap().0, "final");
    assert_eq!(runtime.get("/nowhere").status(), 404);
    let numbers = eventually("the numbers to agree with the tool", || {
        let numbers = Numbers::of(&runtime);
        let rows = runtime.bus(&["topics", "--json"]).stdout;
        let rows: Vec<Value> =
            String::from_utf8_lossy(&rows).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        // Nobody publishes on these meanwhile; logs are another matter.
        let row = |topic: &str| rows.iter().find(|row| row["topic"] == topic).unwrap_or(&Value::Null).clone();
        let same = |topic: &str| {
            let row = row(topic);
            let labels = [("topic", topic)];
            row["messages"].as_f64() == Some(numbers.sum("interlock_bus_topic_messages_total", &labels))
                && row["bytes"].as_f64() == Some(numbers.sum("interlock_bus_topic_bytes_total", &labels))
        };
        (same("garden/gate") && same("conversation/user/input/v1")).then_some(numbers)
    });
    assert_eq!(numbers.sum("interlock_bus_topic_messages_total", &[("topic", "garden/gate")]), 7.0);
    for (name, labels, least) in [
        ("interlock_scrape_up", &[("part", "broker")][..], 1.0),
        ("interlock_scrape_up", &[("part", "runtime")], 1.0),
        ("interlock_bus_sessions", &[], 5.0),
        ("interlock_bus_dropped_total", &[("reason", "no_subscriber")], 7.0),
        ("interlock_component_up", &[("component", "gateway")], 1.0),
        ("interlock_component_state", &[("component", "model"), ("state", "running")], 1.0),
        ("interlock_component_memory_bytes", &[("component", "model")], 1e6),
        ("interlock_component_handled_total", &[("component", "runtime")], 1.0),
        ("interlock_model_finished_total", &[("back_end", "script")], 1.0),
        ("interlock_model_first_token_seconds_count", &[], 1.0),
        ("interlock_log_records_flushed_total", &[], 1.0),
        ("interlock_store_commits_total", &[], 1.0),
        ("interlock_store_schema_version", &[], 1.0),
        (
            "interlock_gateway_requests_total",
            &[("route", "/v1/conversations/{id}/messages"), ("status", "200")],
            1.0,
        ),
        ("interlock_gateway_requests_total", &[("status", "404")], 1.0),
        ("interlock_gateway_request_duration_seconds_count", &[("route", "/health/ready")], 1.0),
    ] {
        let found = numbers.sum(name, labels);
        assert!(found >= least, "{name} {labels:?}: {found}");
    }
    assert_eq!(numbers.sum("interlock_bus_ledger_unbalanced", &[]), 0.0);
    let sum = |name: &str| numbers.sum(name, &[]);
    let ends = sum("interlock_bus_delivered_total")
        + sum("interlock_bus_queued")
        + sum("interlock_bus_denied_total")
        + sum("interlock_bus_dropped_total");
    assert_eq!(
        sum("interlock_bus_published_total"),
        ends,
        "published = delivered + queued + denied + dropped"
    );

    let url = runtime.url("/metrics").unwrap();
    let asked = runtime.http().get(url).bearer_auth(runtime.token().unwrap());
    let answer = asked.header("Accept", "application/openmetrics-text; version=1.0.0").send().unwrap();
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    let open = Numbers::read(&answer.text().unwrap(), "openmetrics");
    assert_eq!(open.sum("interlock_bus_topic_messages_total", &[("topic", "garden/gate")]), 7.0);
}

#[test]
fn a_flood_of_topics_and_paths_makes_no_flood_of_numbers() {
    let runtime = TestRuntime::start();
    let lines: String = (0..400).map(|number| format!("flood/{number}\n")).collect();
    for topic in lines.lines().step_by(2) {
        assert!(runtime.bus(&["pub", topic, "x"]).status.success());
    }
    for number in 0..100 {
        runtime.get(&format!("/nowhere/{number}"));
    }
    let text = runtime.get("/metrics").text().unwrap();
    let named = text.lines().filter(|line| line.starts_with("interlock_bus_topic_messages_total{")).count();
    assert!((50..=101).contains(&named), "{named}");
    let numbers = Numbers::read(&text, "text");
    assert!(numbers.sum("interlock_bus_topic_messages_total", &[("topic", "(other)")]) >= 100.0);
    assert!(!text.contains("/nowhere/"), "{text}");
}

#[test]
fn a_part_that_is_down_is_said_to_be_and_the_others_are_told() {
    let runtime = TestRuntime::start();
    assert!(runtime.interlock(&["stop", "model"]).status.success());
    eventually("the model to be down", || {
        let numbers = Numbers::of(&runtime);
        let is_down = numbers.sum("interlock_component_up", &[("component", "model")]) == 0.0;
        (is_down && numbers.sum("interlock_scrape_up", &[("part", "model")]) == 0.0).then_some(())
    });
    let path = runtime.directory.path().join("scraper.token");
    let output = runtime.interlock(&[
        "tokens",
        "issue",
        "scraper",
        "--scope",
        "metrics",
        "--out",
        path.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{output:?}");
    let token = std::fs::read_to_string(path).unwrap().trim().to_owned();
    let ask = |path: &str| runtime.http().get(runtime.url(path).unwrap()).bearer_auth(&token).send().unwrap();
    assert_eq!(ask("/metrics").status(), 200);
    assert_eq!(ask("/v1/conversations").status(), 403);
}
