//! Which log records are kept: for all, for single components and modules, by the configuration and by order, for a while.

use serde_json::Value;

use crate::harness::{eventually, runtime::TestRuntime};

/// A program that writes a line of each level again and again, numbered.
const CHATTY: &str = "[[program]]\nname = \"chatty\"\ncommand = \"bash\"\nargs = [\"-c\", \
     \"i=0; while true; do echo DEBUG quiet-$i; echo INFO loud-$i; i=$((i+1)); sleep 0.02; done\"]\n";

/// How many records the program has in the log with this text.
fn kept(runtime: &TestRuntime, text: &str) -> usize {
    let output = runtime.interlock(&["logs", "--component", "chatty", "--grep", text, "-n", "100000"]);
    String::from_utf8_lossy(&output.stdout).lines().count()
}

/// Waits until more is kept than now.
fn more(runtime: &TestRuntime, text: &str) {
    let before = kept(runtime, text);
    eventually(&format!("more of `{text}` to be kept"), || (kept(runtime, text) > before).then_some(()));
}

fn level(runtime: &TestRuntime, arguments: &[&str]) -> Value {
    let output = runtime.interlock(&[&["logs", "level"], arguments, &["--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
pub(crate) fn levels_of_components_are_as_configured_and_as_ordered_for_a_while() {
    let runtime = TestRuntime::start_with(&format!("[logs]\nlevels = {{ chatty = \"debug\" }}\n{CHATTY}"));
    more(&runtime, "quiet-");
    more(&runtime, "loud-");

    // By order, above the configuration: none at all.
    let set = level(&runtime, &["chatty", "off"]);
    assert_eq!(set["overrides"][0]["name"], "chatty");
    let status = runtime.interlock(&["status"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("off of `chatty`, by order"), "{status:?}");
    // What was under way arrives; then nothing more.
    eventually("nothing more to be kept", || {
        let before = kept(&runtime, "loud-");
        std::thread::sleep(std::time::Duration::from_millis(300));
        (kept(&runtime, "loud-") == before).then_some(())
    });
    // Taken back: what is configured holds again.
    let reset = level(&runtime, &["chatty", "reset"]);
    assert_eq!(reset["overrides"], Value::Array(Vec::new()));
    more(&runtime, "quiet-");

    // For a while; the end of it comes by itself, and each change is in the log with who ordered it.
    level(&runtime, &["chatty", "error", "--for", "500ms"]);
    eventually("the order to end", || {
        (level(&runtime, &[])["overrides"] == Value::Array(Vec::new())).then_some(())
    });
    more(&runtime, "quiet-");
    let said = runtime.interlock(&["logs", "--grep", "log level"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("log level set") && said.contains("operator"), "{said}");
    assert!(said.contains("the time of a log level is over"), "{said}");

    let typo = runtime.interlock(&["logs", "level", "gatway", "debug"]);
    let said = String::from_utf8_lossy(&typo.stderr).into_owned();
    assert!(typo.status.code() == Some(2) && said.contains("`gatway`; `gateway`?"), "{typo:?}");
    level(&runtime, &["hyper::client", "off"]);
    for arguments in [["logs", "level", "chatty", "loud"], ["logs", "level", "chatty", "--json"]] {
        assert_eq!(runtime.interlock(&arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_changed_level_reaches_the_model_service_in_its_own_process() {
    let runtime = TestRuntime::start();
    let heard = || {
        runtime.turn("levels", "Hello");
        let output = runtime.interlock(&["logs", "--component", "model", "--level", "trace", "-n", "100000"]);
        String::from_utf8_lossy(&output.stdout).contains(" DEBUG ")
            || String::from_utf8_lossy(&output.stdout).to_lowercase().contains(" debug ")
    };
    assert!(!heard(), "nothing at this level was asked for");
    level(&runtime, &["model", "trace"]);
    eventually("a record of the model service at the level that was set", || heard().then_some(()));
}
