//! OpenAI's own Python package, unchanged, against the real runtime and servers of models in processes of their own.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{TestProcess, eventually, model_server::ModelServer, runtime::TestRuntime};

/// `big`, which is asked for whatever a test needs, `small`, which makes embeddings, and `tiny`, the script.
struct Stage {
    big: ModelServer,
    small: ModelServer,
    runtime: TestRuntime,
}

impl Stage {
    /// Each name of `models` is a model of `big`'s server that is called so.
    fn start(models: &[&str], more: &str) -> Self {
        let (big, small) = (ModelServer::start(), ModelServer::start());
        let mut settings = format!("[model]\n{more}\n");
        for name in models {
            let (model, url) = (if *name == "big" { "echo" } else { name }, big.url());
            settings += &format!(
                "[[model.models]]\nname = \"{name}\"\nback_end = \"openai\"\nurl = \"{url}\"\nmodel = \"{model}\"\n"
            );
        }
        settings += &format!(
            "[[model.models]]\nname = \"small\"\nback_end = \"ollama\"\nurl = \"{}\"\nmodel = \"echo\"\nembeddings = true\n\
             [[model.models]]\nname = \"tiny\"\nback_end = \"script\"\n",
            small.ollama_url()
        );
        Self { runtime: TestRuntime::start_with(&settings), big, small }
    }

    /// OpenAI's package does a step of `openai_client.py`.
    fn client(&self, step: &str, models: &[&str]) -> TestProcess {
        let (url, token) = (self.runtime.url("").unwrap(), self.runtime.token().unwrap());
        let arguments = [&[url.as_str(), token.as_str(), step], models].concat();
        TestProcess::python("openai_client.py", &arguments)
    }
}

#[test]
fn a_chat_comes_whole_and_in_pieces_through_the_conversation_engine() {
    let stage = Stage::start(&["big"], "");
    let mut seen = std::process::Command::new(crate::harness::runtime::tool("bus").get_program());
    seen.args(["sub", "conversation/turn/final/v1", "--count", "3", "--json", "--data-dir"])
        .arg(stage.runtime.data());
    let watcher = TestProcess::spawn(seen);
    eventually("somebody to watch", || {
        let output = stage.runtime.bus(&["info", "conversation/turn/final/v1", "--json"]);
        String::from_utf8_lossy(&output.stdout).contains("operator").then_some(())
    });
    let mut client = stage.client("chat", &["big"]);
    let whole = client.json();
    assert_eq!(whole["text"].as_str().unwrap().trim(), "You said Hello there", "{whole}");
    assert_eq!(
        (&whole["role"], &whole["reason"], &whole["object"]),
        (&json!("assistant"), &json!("stop"), &json!("chat.completion"))
    );
    assert_eq!(
        (&whole["model"], &whole["name"], &whole["tokens"]),
        (&json!("echo-1"), &json!("big"), &json!(7))
    );
    assert_eq!(whole["fallback"], json!([]));
    let pieces = client.json();
    assert_eq!(pieces["text"].as_str().unwrap().trim(), "You said Hello there", "{pieces}");
    assert!(pieces["pieces"].as_u64().unwrap() >= 6 && pieces["ids"] == 1, "{pieces}");
    assert_eq!(
        (&pieces["role"], &pieces["reason"], &pieces["tokens"], &pieces["choices"]),
        (&json!("assistant"), &json!("stop"), &json!(7), &json!(0))
    );
    let kept = client.json();
    assert_eq!(kept["conversation"], "kept");
    assert_eq!(client.exit_code(), Some(0));

    // What the server was asked is what the package was asked.
    let [first, _, third] = [(); 3].map(|()| stage.big.request()["body"].clone());
    assert_eq!((&first["temperature"], &first["max_tokens"]), (&json!(0.5), &json!(50)), "{first}");
    assert_eq!(first["messages"][0], json!({ "role": "system", "content": "Be brief." }));
    assert_eq!(
        (&third["stop"], &third["seed"], &third["top_p"]),
        (&json!(["there"]), &json!(7), &json!(0.5)),
        "{third}"
    );

    // Each was a turn on the bus, and one of them is kept.
    let turns: Vec<Value> = (0..3).map(|_| watcher.json()).collect();
    assert!(
        whole["id"].as_str().unwrap().ends_with(turns[0]["payload"]["turn"].as_str().unwrap()),
        "{turns:?}"
    );
    let list: Value = stage.runtime.get("/v1/conversations").json().unwrap();
    let ids: Vec<&Value> = list["conversations"].as_array().unwrap().iter().map(|one| &one["id"]).collect();
    assert_eq!(ids, [&json!("kept")]);
    let history: Value = stage.runtime.get("/v1/conversations/kept").json().unwrap();
    assert_eq!(history["messages"][0]["text"], "Hello there");
    assert_eq!(history["messages"].as_array().unwrap().len(), 2, "{history}");
}

#[test]
fn models_and_embeddings_are_what_the_package_expects() {
    let stage = Stage::start(&["big"], "");
    let mut client = stage.client("models", &["small"]);
    assert_eq!(client.json(), json!({ "ids": ["big", "small", "tiny"], "object": "list" }));
    assert_eq!(client.json()["one"], "small");
    let unknown = client.json();
    assert_eq!(
        (&unknown["error"], &unknown["code"], &unknown["param"]),
        (&json!("NotFoundError"), &json!("model_not_found"), &json!("model"))
    );
    assert_eq!(client.exit_code(), Some(0));

    let mut client = stage.client("embeddings", &["small", "tiny"]);
    assert_eq!(client.json(), json!({ "vectors": [[1.0, 97.0], [0.25, 101.0]], "tokens": 5 }));
    assert_eq!(client.json()["vectors"], json!([[1.0, 97.0, 1.0], [0.25, 101.0, 0.25]]));
    assert_eq!(client.json()["vectors"], json!([[1.0, 97.0]]));
    let none = client.json();
    assert_eq!(
        (&none["error"], &none["code"], &none["param"]),
        (&json!("BadRequestError"), &json!("no_embeddings"), &json!("model")),
        "{none}"
    );
    let tokens = client.json();
    assert_eq!(
        (&tokens["error"], &tokens["param"]),
        (&json!("BadRequestError"), &json!("input")),
        "{tokens}"
    );
    assert_eq!(client.exit_code(), Some(0));
    assert_eq!(stage.small.request()["path"], "/api/embed");
}

#[test]
fn each_error_is_the_packages_own_exception_and_names_its_parameter() {
    let stage = Stage::start(&["big", "busy", "broken", "error"], "");
    let mut client = stage.client("errors", &[]);
    for (case, error, status, code, param) in [
        ("key", "AuthenticationError", json!(401), json!("invalid_api_key"), json!(null)),
        ("model", "NotFoundError", json!(404), json!("model_not_found"), json!("model")),
        ("many", "BadRequestError", json!(400), json!("unsupported_value"), json!("n")),
        ("tools", "BadRequestError", json!(400), json!("unsupported_parameter"), json!("tools")),
        (
            "image",
            "BadRequestError",
            json!(400),
            json!("unsupported_value"),
            json!("messages[0].content[0].type"),
        ),
        ("logprobs", "BadRequestError", json!(400), json!("unsupported_parameter"), json!("logprobs")),
        ("hot", "BadRequestError", json!(400), json!("invalid_value"), json!("temperature")),
        ("nobody", "BadRequestError", json!(400), json!("invalid_value"), json!("messages")),
        ("busy", "RateLimitError", json!(429), json!("back_end_busy"), json!(null)),
        ("broken", "InternalServerError", json!(502), json!("back_end_failed"), json!(null)),
        ("large", "APIStatusError", json!(413), json!("body_too_large"), json!(null)),
        ("path", "NotFoundError", json!(404), json!("unknown_path"), json!(null)),
        ("early", "InternalServerError", json!(502), json!("back_end_failed"), json!(null)),
        ("late", "APIError", json!(null), json!("back_end_failed"), json!(null)),
    ] {
        let seen = client.json();
        let expected =
            json!({ "case": case, "error": error, "status": status, "code": code, "param": param });
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&seen[key], value, "{seen}");
        }
        let retry = if case == "busy" { json!("7") } else { json!(null) };
        assert_eq!(seen["retry"], retry, "{seen}");
    }
    assert_eq!(client.exit_code(), Some(0));
}

#[test]
fn whoever_closes_the_connection_stops_the_model_before_it_has_written_another_piece() {
    let stage = Stage::start(&["paced"], "");
    let mut client = stage.client("cancel", &["paced"]);
    // The first piece says who speaks: three words were taken.
    assert_eq!(client.json()["taken"], 3);
    stage.big.request();
    let words = stage.big.request()["words"].as_u64().unwrap();
    assert!((3..=4).contains(&words), "{words} words were written, of which 3 were read");
    assert_eq!(client.exit_code(), Some(0));

    // The same for an answer that was wanted whole.
    let mut client = stage.client("give_up", &["paced"]);
    assert_eq!(client.json()["given_up"], true);
    stage.big.request();
    let words = stage.big.request()["words"].as_u64().unwrap();
    assert!(words <= 6, "{words} words were written in 2 s and after");
    assert_eq!(client.exit_code(), Some(0));
    let output = stage.runtime.bus(&["request", "modelservice/statistics/v1", "", "--json"]);
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(reply["payload"]["models"][0]["cancelled"], 2, "{reply}");
}

#[test]
fn another_model_that_stands_in_is_named_in_the_answer() {
    let mut stage = Stage::start(&["big", "early"], "fallback = [\"small\"]\nretries_max = 0");
    // Its server dies before the first word of it.
    let mut client = stage.client("chat", &["early"]);
    let whole = client.json();
    assert_eq!(whole["text"].as_str().unwrap().trim(), "You said Hello there", "{whole}");
    assert_eq!(
        (&whole["name"], &whole["fallback"][0]["model"]),
        (&json!("small"), &json!("early")),
        "{whole}"
    );
    assert_eq!(stage.big.process.exit_code(), Some(9));
    // And then it is gone, also for what comes in pieces.
    assert_eq!(client.json()["text"].as_str().unwrap().trim(), "You said Hello there");
    client.json();
    assert_eq!(client.exit_code(), Some(0));
    assert!(stage.small.request_within(Duration::from_secs(1)).is_some());
}

#[test]
fn a_stream_whose_token_is_revoked_ends_as_the_packages_own_error() {
    let stage = Stage::start(&["paced"], "");
    let path = stage.runtime.directory.path().join("ada.token");
    let issue = ["tokens", "issue", "ada", "--scope", "chat", "--out", path.to_str().unwrap()];
    assert!(stage.runtime.interlock(&issue).status.success());
    let token = std::fs::read_to_string(path).unwrap().trim().to_owned();
    let url = stage.runtime.url("").unwrap();
    let mut client = TestProcess::python("openai_client.py", &[&url, &token, "until_revoked", "paced"]);
    assert_eq!(client.json()["first"], "assistant");
    assert!(stage.runtime.interlock(&["tokens", "revoke", "ada"]).status.success());
    let seen = client.json();
    assert_eq!(
        (&seen["error"], &seen["code"], &seen["status"]),
        (&json!("APIError"), &json!("token_revoked"), &json!(null)),
        "{seen}"
    );
    assert!(seen["text"].as_str().unwrap().contains("`ada` was revoked"), "{seen}");
    assert_eq!(client.exit_code(), Some(0));
}
