//! The model service before a server in a process of its own that refuses, dies and hangs: what the user is told, and that the
//! key of the API is told to nobody but that server.

use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};

use serde_json::Value;

use crate::harness::{
    eventually,
    kept::children,
    model_server::ModelServer,
    runtime::{CONFIG, TestRuntime, final_text},
};

const KEY: &str = "sk-0123456789-do-not-tell";

/// A server, and a runtime whose model service asks it with a key.
struct Stage {
    server: ModelServer,
    runtime: TestRuntime,
    /// Where the key stands.
    _file: tempfile::NamedTempFile,
    file: String,
}

impl Stage {
    fn start(model: &str) -> Self {
        let server = ModelServer::start();
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&key, format!("{KEY}\n")).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let file = key.path().to_str().unwrap().to_owned();
        let settings = settings(&server, &file, model);
        Self { runtime: TestRuntime::start_with(&settings), server, _file: key, file }
    }

    /// Another model for the same runtime.
    fn use_model(&self, model: &str) {
        let incarnation = self.incarnation();
        let text = format!("{CONFIG}{}", settings(&self.server, &self.file, model));
        std::fs::write(self.runtime.directory.path().join("interlock.toml"), text).unwrap();
        let output = self.runtime.interlock(&["reload"]);
        assert!(output.status.success(), "{output:?}");
        eventually("the model service to be started with it", || {
            (self.incarnation() > incarnation && self.model()["state"] == "running").then_some(())
        });
    }

    fn model(&self) -> Value {
        children(&self.runtime).into_iter().find(|child| child["name"] == "model").unwrap_or_default()
    }

    fn incarnation(&self) -> u64 {
        self.model()["incarnation"].as_u64().unwrap_or_default()
    }

    /// Code and message of the error in which a turn ends, and what came before.
    fn failed_turn(&self, conversation: &str) -> (String, String, usize) {
        let turn = self.runtime.turn(conversation, "Hello there");
        let (name, data) = turn.last().unwrap();
        let error = match name.as_str() {
            "error" => data,
            "refused" => &data["error"],
            _ => panic!("the turn did not fail: {turn:?}"),
        };
        let text = |key: &str| error[key].as_str().unwrap_or_else(|| panic!("{turn:?}")).to_owned();
        (text("code"), text("message"), turn.iter().filter(|(name, _)| name == "delta").count())
    }
}

fn settings(server: &ModelServer, file: &str, model: &str) -> String {
    server.settings(&format!("model = \"{model}\"\napi_key_file = \"{file}\"\nread_timeout = \"1s\""))
}

/// Every file below a directory that holds `text`.
fn files_with(text: &str, directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.append(&mut files_with(text, &path));
        } else if std::fs::read(&path)
            .is_ok_and(|bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
        {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
pub(crate) fn each_failure_of_a_server_ends_the_turn_with_its_name_and_the_way_out_and_never_with_the_key() {
    let stage = Stage::start("echo");
    // It works at first, in a stream.
    let turn = stage.runtime.turn("well", "Hello there");
    assert_eq!(final_text(&turn).trim(), "You said Hello there");
    assert!(turn.iter().filter(|(name, _)| name == "delta").count() > 2, "{turn:?}");
    assert_eq!(stage.server.request()["authorization"], format!("Bearer {KEY}"));

    let url = stage.server.url();
    let expected: [(&str, &str, &[&str], bool); 8] = [
        ("key", "back_end_key_refused", &["status 401", "is not valid", "`model.api_key_file`"], false),
        ("busy", "back_end_busy", &["quota is used up", "try again in 7 s"], false),
        ("broken", "back_end_failed", &["status 500", "<html>it broke</html>"], false),
        ("odd", "back_end_protocol", &["does not answer as an OpenAI-compatible server"], false),
        ("error", "back_end_failed", &["out of memory"], true),
        ("silent", "timed_out", &["was silent for 1s", "`model.read_timeout`"], false),
        ("hangs", "timed_out", &["was silent for 1s", "`model.read_timeout`"], true),
        ("strange", "back_end_model_unknown", &["`strange`", "no model strange", "`model.model`"], false),
    ];
    for (model, code, parts, has_begun) in expected {
        stage.use_model(model);
        let (said_code, text, deltas) = stage.failed_turn(model);
        assert_eq!(said_code, code, "{model}: {text}");
        assert!(text.contains(&format!("`{url}`")), "{model}: {text}");
        for part in parts {
            assert!(text.contains(part), "{model}: {part}: {text}");
        }
        assert!(!text.contains(KEY), "{model}: {text}");
        assert_eq!(deltas > 0, has_begun, "{model}");
        assert_eq!(stage.model()["state"], "running", "a server that fails is no failure of ours");
    }

    // Nothing that anybody can ask for or read holds the key.
    for arguments in [
        &["status", "--json"][..],
        &["ps", "--json"],
        &["logs", "--json", "--since", "1h"],
        &["config", "show"],
    ] {
        let output = stage.runtime.interlock(arguments);
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!text.contains(KEY), "{arguments:?}: {text}");
    }
    assert_eq!(files_with(KEY, stage.runtime.directory.path()), [""; 0]);
    for pid in stage.runtime.processes() {
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&bytes).contains(KEY), "{file} of {pid}");
        }
    }
}

#[test]
fn a_server_that_dies_in_the_middle_of_an_answer_ends_the_turn_and_keeps_what_came() {
    let mut stage = Stage::start("dies");
    let (code, text, deltas) = stage.failed_turn("cut");
    assert_eq!((code.as_str(), deltas), ("back_end_cut", 2), "{text}");
    assert!(
        text.contains(&format!("`{}` broke off in the middle of the answer", stage.server.url())),
        "{text}"
    );
    assert_eq!(stage.server.process.exit_code(), Some(9));
    let history: Value = stage.runtime.get("/v1/conversations/cut").json().unwrap();
    assert!(history["messages"][1]["text"].as_str().unwrap().contains("One two"), "{history}");

    // Nobody listens there any more.
    let (code, text, _) = stage.failed_turn("gone");
    assert_eq!(code, "back_end_unreachable", "{text}");
    assert!(text.contains(&stage.server.url()) && text.contains("`model.url`"), "{text}");

    // Another server, and it goes on.
    stage.server = ModelServer::start();
    stage.use_model("echo");
    final_text(&stage.runtime.turn("cut", "Are you there?"));
    let request = stage.server.request();
    assert_eq!(request["authorization"], format!("Bearer {KEY}"));
    assert!(stage.server.request_within(Duration::ZERO).is_none(), "one question, one request");
}

#[test]
fn a_server_without_a_model_is_said_to_have_none() {
    let server = ModelServer::start_with(&["none"]);
    let runtime = TestRuntime::start_with(&server.settings(""));
    let turn = runtime.turn("none", "Hello");
    let text = turn.last().unwrap().1.to_string();
    assert!(text.contains("lists no model; load one there, or set `model.model`"), "{turn:?}");
}
