//! Very many chats at once: each gets all of its words, none much later than the others, and memory stays within bounds.

use std::{fs, path::Path, time::Duration};

use serde_json::Value;

use crate::harness::{TestProcess, runtime::TestRuntime};

/// Streams of the share that CI runs. `INTERLOCK_STREAMS=1000` is the whole.
const STREAMS: usize = 60;

/// Words of each.
const WORDS: usize = 20;

/// Memory that one more stream may take, in both processes together. It was 63 KiB (1,000 streams, debug build).
const STREAM_KIB_MAX: u64 = 160;

/// Memory that some streams may take however few they are: threads, tables, buffers at their first use.
const FEW_KIB_MAX: u64 = 48 << 10;

/// How long the server may take to have all of them, or to be done with them.
const PATIENCE: Duration = Duration::from_secs(240);

/// What the server says next.
fn said(server: &TestProcess) -> Value {
    let line = server.line_within(PATIENCE).expect("the server has all streams in time");
    serde_json::from_str(&line).unwrap()
}

/// Resident memory of a process in KiB.
fn memory_kib(pid: u32) -> u64 {
    let status =
        fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or_default()
}

/// The process of the model service, which is not its guardian.
fn model_process(runtime: &TestRuntime) -> u32 {
    let is_model = |pid: &u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0);
        words.nth(1) == Some(b"actor")
    };
    runtime.processes().into_iter().find(is_model).expect("the model service is a process of its own")
}

#[allow(clippy::print_stdout, reason = "a soak says what it measured")]
fn say(text: &str) {
    println!("{text}");
}

#[test]
fn a_thousand_streams_are_served_at_once_within_bounds_and_none_waits_for_another() {
    let streams: usize =
        std::env::var("INTERLOCK_STREAMS").ok().and_then(|text| text.parse().ok()).unwrap_or(STREAMS);
    let count = streams.to_string();
    let server = TestProcess::python("stream_server.py", &[&count, &WORDS.to_string(), "0.2"]);
    let port = server.line();
    let runtime = TestRuntime::start_with(&format!(
        "streams_max = {streams}\n[model]\nback_end = \"openai\"\nurl = \"http://127.0.0.1:{port}/v1\"\nmodel = \"m\"\n\
         concurrent_max = {streams}\nread_timeout = \"2m\"\n"
    ));
    let processes = [runtime.process.id(), model_process(&runtime)];
    let memory = || processes.map(memory_kib);
    let before = memory();
    let (url, token) = (runtime.url("").unwrap(), runtime.token().unwrap());
    let mut client = TestProcess::python("streams.py", &[&url, &token, &count]);
    assert_eq!(said(&server)["there"], streams, "all of them are there at once");
    let waiting = memory();
    assert_eq!(said(&server)["written"], streams);
    let told = said(&client);
    let after = memory();
    say(&format!(
        "{streams} streams: {told}; KiB of runtime and model before {before:?}, at once {waiting:?}, after {after:?}"
    ));
    assert_eq!(told["finished"], streams, "{told}");
    assert_eq!(told["words"], serde_json::json!([WORDS, WORDS]), "{told}");
    assert!(told["least"].as_u64().unwrap() >= WORDS as u64 / 2, "a stream waited for others: {told}");
    let grown: u64 = waiting.iter().zip(before).map(|(now, then)| now.saturating_sub(then)).sum();
    let allowed = FEW_KIB_MAX + STREAM_KIB_MAX * streams as u64;
    assert!(grown <= allowed, "{grown} KiB more for {streams} streams; allowed are {allowed}");
    assert_eq!(client.exit_code(), Some(0));
    // One more than may be is refused, and nothing of the others is left that would refuse it.
    let statistics = runtime.bus(&["request", "modelservice/statistics/v1", "", "--json"]);
    let text = String::from_utf8_lossy(&statistics.stdout);
    assert!(text.contains("\"running\":0"), "{text}");
}
