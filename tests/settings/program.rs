//! `[[program]]`: how a program of the user is run, watched and stopped.

use std::{
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::harness::{eventually, kept::children, runtime::TestRuntime};

/// A program that a shell runs.
fn shell(name: &str, script: &str, more: &str) -> String {
    format!("[[program]]\nname = \"{name}\"\ncommand = \"sh\"\nargs = [\"-c\", '''{script}''']\n{more}\n")
}

fn child(runtime: &TestRuntime, name: &str) -> Value {
    children(runtime).into_iter().find(|child| child["name"] == name).unwrap_or_default()
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
pub(crate) fn a_program_is_run_as_it_is_described() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path().canonicalize().unwrap();
    let settings = format!(
        "[[program]]\nname = \"described\"\ncommand = \"sh\"\n\
         args = [\"-c\", \"pwd > out; echo $GREETING $0 $1 >> out; echo done >> out; exec sleep 1000\", \"first\", \"second\"]\n\
         directory = \"{}\"\nenvironment = {{ GREETING = \"good day\" }}\n\
         publish = [\"p/#\"]\nsubscribe = [\"s/#\"]\nserve = [\"v/#\"]\nrequest = [\"r/#\"]\n",
        place.display()
    );
    let runtime = TestRuntime::start_with(&settings);
    let said = eventually("its words", || Some(lines(&place.join("out"))).filter(|lines| lines.len() == 3));
    assert_eq!(said[..2], [place.to_str().unwrap(), "good day first second"]);
    assert_eq!(child(&runtime, "described")["state"], "running");
    for (operation, own) in [("publish", "p/a"), ("subscribe", "s/a"), ("serve", "v/a"), ("request", "r/a")] {
        for topic in ["p/a", "s/a", "v/a", "r/a"] {
            let why = runtime.bus(&["why", "described", operation, topic]);
            let may = String::from_utf8_lossy(&why.stdout).contains("ok  rule ");
            assert_eq!(may, topic == own, "{operation} {topic}: {why:?}");
        }
    }
}

#[test]
pub(crate) fn a_program_is_started_again_as_told() {
    let place = tempfile::tempdir().unwrap();
    let counts = |name: &str| place.path().join(name);
    let ends = |name: &str, code: u8, restart: &str| {
        let script = format!("echo . >> {}; exit {code}", counts(name).display());
        shell(name, &script, &format!("restart = \"{restart}\""))
    };
    let settings = [
        ends("always", 0, "permanent"),
        ends("failed", 1, "transient"),
        ends("finished", 0, "transient"),
        ends("never", 1, "temporary"),
    ];
    let runtime = TestRuntime::start_degraded_with(&settings.concat());
    for name in ["always", "failed"] {
        eventually(name, || (lines(&counts(name)).len() > 1).then_some(()));
    }
    for name in ["finished", "never"] {
        eventually(name, || {
            ["stopped", "error"].iter().any(|state| child(&runtime, name)["state"] == *state).then_some(())
        });
        assert_eq!(
            (lines(&counts(name)).len(), &child(&runtime, name)["restarts"]),
            (1, &Value::from(0)),
            "{name}"
        );
    }
}

#[test]
pub(crate) fn a_program_that_is_late_or_silent_is_started_again() {
    let well = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = well.local_addr().unwrap();
    let settings = [
        shell("late", "exec sleep 1000", "readiness = \"line:here\"\nready_timeout = \"300ms\""),
        shell("timely", "echo here; exec sleep 1000", "readiness = \"line:here\"\nready_timeout = \"20s\""),
        shell("asked", "exec sleep 1000", &format!("liveness = \"http://{address}/well\"")),
    ];
    let runtime = TestRuntime::start_degraded_with(&settings.concat());
    // Asked every 5 s, for the first time so long after it was ready.
    let (mut question, _) = well.accept().unwrap();
    let mut text = [0; 512];
    let bytes = question.read(&mut text).unwrap();
    assert!(String::from_utf8_lossy(&text[..bytes]).starts_with("GET /well"), "{text:?}");
    question.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    let reason = eventually("the late one to be given up once", || {
        child(&runtime, "late")["last_failure"]["reason"].as_str().map(str::to_owned)
    });
    assert!(reason.contains("not ready within"), "{reason}");
    for name in ["timely", "asked"] {
        let child = child(&runtime, name);
        assert_eq!(
            (child["state"].as_str(), child["restarts"].as_u64()),
            (Some("running"), Some(0)),
            "{child}"
        );
    }
}

#[test]
pub(crate) fn a_program_is_stopped_as_told() {
    let place = tempfile::tempdir().unwrap();
    let heard = place.path().join("heard");
    let polite = format!(
        "trap 'echo USR1 > {}; exit 0' USR1; echo here; while :; do sleep 0.05; done",
        heard.display()
    );
    let settings = [
        shell("polite", &polite, "readiness = \"line:here\"\nstop_signal = \"SIGUSR1\"\ngrace = \"1h\""),
        shell(
            "deaf",
            "trap '' TERM; echo here; while :; do sleep 1; done",
            "readiness = \"line:here\"\ngrace = \"300ms\"",
        ),
    ];
    let runtime = TestRuntime::start_with(&settings.concat());
    assert!(runtime.interlock(&["stop", "polite"]).status.success());
    assert_eq!(lines(&heard), ["USR1"]);
    let begun = Instant::now();
    runtime.interlock(&["stop", "deaf"]);
    eventually("the deaf one to be gone", || (child(&runtime, "deaf")["state"] != "running").then_some(()));
    assert!(begun.elapsed() < Duration::from_secs(8), "its grace is not the default: {:?}", begun.elapsed());
}
