//! One trace for all that a request causes: in every component, over the bus and into other processes.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::{
    eventually,
    runtime::{TestRuntime, events},
};

#[test]
fn what_is_logged_after_the_store_was_restarted_is_stored_too() {
    let runtime = TestRuntime::start_with("[logs]\nlevel = \"debug\"\n");
    for round in 0..3 {
        let output = runtime.interlock(&["restart", "store"]);
        assert!(output.status.success(), "{output:?}");
        let id = format!("after-{round}");
        eventually("a turn after the restart", || {
            runtime.turn(&id, "hello").last().is_some_and(|(kind, _)| kind == "final").then_some(())
        });
        eventually("the turn is in the log", || {
            let output = runtime.interlock(&["logs", "--conversation", &id, "--json"]);
            (output.status.success() && !output.stdout.is_empty()).then_some(())
        });
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Asks for a turn; the trace that the answer names.
fn turn(runtime: &TestRuntime, traceparent: Option<&str>) -> String {
    let url = runtime.url("/v1/conversations/traced/messages").unwrap();
    let mut request = runtime.http().post(url).bearer_auth(runtime.token().unwrap());
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent);
    }
    let answer = request.json(&serde_json::json!({"text": "hello"})).send().unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    let named = answer.headers()["traceparent"].to_str().unwrap().split('-').nth(1).unwrap().to_owned();
    assert_eq!(events(answer).last().map(|(kind, _)| kind.as_str()), Some("final"));
    named
}

/// The components that logged something of a trace, each record asked for once.
fn components_of(runtime: &TestRuntime, trace: &str) -> BTreeSet<String> {
    let output = runtime.interlock(&["logs", "--trace", trace, "--json"]);
    let lines = String::from_utf8(output.stdout).unwrap();
    let records = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records
        .map(|record| {
            assert_eq!(record["trace_id"], trace);
            record["component"].as_str().unwrap().to_owned()
        })
        .collect()
}

#[test]
fn what_a_turn_causes_in_every_component_has_the_trace_of_who_asked_for_it() {
    let runtime = TestRuntime::start_with("[logs]\nlevel = \"debug\"\n");
    let theirs = turn(&runtime, Some(&format!("00-{TRACE}-00f067aa0ba902b7-01")));
    assert_eq!(theirs, TRACE);
    let own = turn(&runtime, None);
    let bad = turn(&runtime, Some("00-not-a-trace"));
    assert!(own != bad && own.len() == 32 && own != TRACE, "{own} {bad}");
    for trace in [TRACE, &own, &bad] {
        let all = ["conversation", "gateway", "model"].map(str::to_owned);
        eventually("every component has logged its part", || {
            (components_of(&runtime, trace) == BTreeSet::from(all.clone())).then_some(())
        });
    }
}
