//! Log records, asked for through the real `interlock`: found, followed, kept and deleted as told.

use crate::harness::{
    eventually,
    runtime::{CONFIG, TestRuntime},
};

/// A program that says `lines` lines of about 500 bytes, each with its number, and then stays.
fn talker(lines: u32) -> String {
    let filler = "filler ".repeat(60);
    let script = format!("for n in $(seq {lines}); do echo \\\"said $n {filler}\\\"; done; exec sleep 1000");
    format!("[[program]]\nname = \"talker\"\ncommand = \"/bin/sh\"\nargs = [\"-c\", \"{script}\"]\n")
}

/// The numbers that the talker's records have, in the order in which `interlock logs` shows them.
fn said(runtime: &TestRuntime) -> Vec<u32> {
    let output =
        runtime.interlock(&["logs", "--json", "--component", "talker", "--text", "said", "-n", "100000"]);
    let lines = String::from_utf8(output.stdout).unwrap();
    let number = |line: &str| -> u32 {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        record["message"].as_str().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
    };
    lines.lines().map(number).collect()
}

#[test]
pub(crate) fn the_oldest_records_go_when_they_are_too_many_or_too_large() {
    let program = talker(4000);
    let runtime = TestRuntime::start_with(&program);
    eventually("all to be stored", || (said(&runtime).len() == 4000).then_some(()));
    let set = |logs: &str| {
        let file = runtime.directory.path().join("interlock.toml");
        std::fs::write(file, format!("{CONFIG}[logs]\n{logs}\n{program}")).unwrap();
    };
    let kept = |range: std::ops::Range<usize>| {
        eventually("the oldest to go", || {
            let said = said(&runtime);
            let newest_are_left = said.iter().copied().eq(4001 - said.len() as u32..=4000);
            (range.contains(&said.len()) && newest_are_left).then_some(())
        });
    };
    // A record of 500 bytes, its index included, takes between these.
    set("retention_bytes = 1048576");
    kept((1 << 20) / 1500..(1 << 20) / 500);
    set("retention_rows = 1000");
    kept(500..1001);
}
