//! Who is suspended (`SIGSTOP`) neither ends nor answers: programs and guardians are replaced within their limits, and who
//! asks a runtime that is suspended is told so.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

use crate::harness::{eventually, kept::children, runtime::TestRuntime};

/// Who is suspended, at which moment, and at which of its starts; each is a program of its own.
const STAGES: [(&str, &str, &str, u32); 8] = [
    ("early", "program", "before-ready", 1),
    ("ready", "program", "at-ready", 1),
    ("again", "program", "at-ready", 2),
    ("beating", "program", "beating", 1),
    ("guardian-early", "guardian", "before-ready", 1),
    ("guardian-ready", "guardian", "at-ready", 1),
    ("guardian-again", "guardian", "at-ready", 2),
    ("guardian-beating", "guardian", "beating", 1),
];

/// The same while it is asked to stop.
const STOPS: [(&str, &str); 2] = [("stop", "program"), ("guardian-stop", "guardian")];

/// A `[[program]]` that is suspended once; what its starts leave is in `files`.
fn program(files: &Path, name: &str, who: &str, moment: &str, start: u32) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/suspends.py");
    let list = files.join(name);
    format!(
        "[[program]]\nname = \"{name}\"\ncommand = \"python3\"\nargs = [{script:?}, {list:?}, \"{who}\", \"{moment}\", \"{start}\"]\n\
         readiness = \"notify\"\nready_timeout = \"3s\"\nheartbeat = \"500ms\"\ngrace = \"500ms\"\n"
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
        let is_late = reason.starts_with("not ready within 3 s");
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
