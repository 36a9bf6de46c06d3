//! The journal of the log on the real binary: the store is held shut, the runtime is killed, and nothing that was spilled is
//! lost; `interlock status` says what is the matter at each step.

use std::path::Path;

use interlock_actors::store::{DataKey, LogQuery, Reader};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{eventually, runtime::TestRuntime};

/// Lines that the talkative program writes, and bytes of each: more than the 4 MiB that memory keeps when there is a journal.
const LINES: usize = 1000;
const LINE_BYTES: usize = 6000;

/// A program that writes its lines when a file appears, and then waits.
fn talkative(directory: &Path) -> String {
    let go = directory.join("go");
    let script = format!(
        "while [ ! -e {go} ]; do sleep 0.05; done; i=0; printf -v long '%{LINE_BYTES}s' x; \
         while [ $i -lt {LINES} ]; do echo \"line-$i-MARKER-$long\"; i=$((i+1)); done; exec sleep 1000",
        go = go.display()
    );
    format!("[[program]]\nname = \"talkative\"\ncommand = \"bash\"\nargs = [\"-c\", {script:?}]\n")
}

fn status_of(runtime: &TestRuntime, component: &str) -> String {
    let status: Value = runtime.status();
    let children = status["tree"]["children"].as_array().cloned().unwrap_or_default();
    let child = children.into_iter().find(|child| child["name"] == component).unwrap_or_default();
    child.to_string()
}

/// Texts of the talkative program that are stored, in the order of arrival.
fn stored(data: &Path) -> Vec<String> {
    let database = data.join("interlock.db");
    let key = DataKey::load(&data.join("keys"), &database).unwrap();
    let reader = Reader::open(&database, &key).unwrap();
    let query = LogQuery {
        components: vec!["talkative".into()],
        after_seq: Some(0),
        limit: 100_000,
        ..LogQuery::default()
    };
    let until_marker = |text: String| text.split_once("-MARKER").map(|(text, _)| text.to_owned());
    reader.logs(&query).unwrap().into_iter().filter_map(|log| until_marker(log.record.message)).collect()
}

fn journal_bytes(data: &Path) -> Vec<u8> {
    let entries = std::fs::read_dir(data.join("journal")).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.path().is_file());
    files.flat_map(|entry| std::fs::read(entry.path()).unwrap()).collect()
}

#[test]
fn what_is_spilled_while_nobody_takes_it_survives_a_kill_and_is_stored_first() {
    let place = tempfile::tempdir().unwrap();
    let mut runtime = TestRuntime::start_with(&talkative(place.path()));
    let stopped = runtime.interlock(&["stop", "log-consumer"]);
    assert!(stopped.status.success(), "{stopped:?}");
    eventually("status to say that no log consumer is there", || {
        status_of(&runtime, "log-transport").contains("no log consumer answers").then_some(())
    });
    std::fs::write(place.path().join("go"), "").unwrap();
    eventually("memory to be spilled", || {
        let status = status_of(&runtime, "log-transport");
        let (_, journal) = status.split_once(", journal ")?;
        journal.starts_with(|first: char| ('1'..='9').contains(&first)).then_some(())
    });
    runtime.process.kill();
    eventually("its processes to go", || runtime.processes().is_empty().then_some(()));
    let bytes = journal_bytes(&runtime.data());
    assert!(bytes.len() > 1 << 20, "{} bytes are little for what was spilled", bytes.len());
    assert!(!bytes.windows(6).any(|window| window == b"MARKER"), "a line can be read");
    std::fs::remove_file(place.path().join("go")).unwrap();

    runtime.restart();
    eventually("the journal to be stored", || {
        let status = status_of(&runtime, "log-transport");
        (status.contains("open: ") && status.contains("journal 0")).then_some(())
    });
    let lines = stored(&runtime.data());
    assert!(lines.len() >= 600, "{} lines are stored of what was spilled", lines.len());
    let expected: Vec<String> = (0..lines.len()).map(|number| format!("line-{number}")).collect();
    assert!(lines == expected, "not each once and in order");
    assert!(journal_bytes(&runtime.data()).is_empty());
    runtime.signal(Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(0));
}
