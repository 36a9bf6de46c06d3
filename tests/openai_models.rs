//! Several models by name, each before a server in a process of its own: who answers, who stands in for one that is killed,
//! and where that is told.

use serde_json::{Value, json};

use crate::harness::{
    eventually,
    kept::children,
    model_server::ModelServer,
    runtime::{TestRuntime, final_text},
};

/// `big` is an OpenAI-compatible server, `small` one of Ollama, `tiny` the script; the last two stand in, in this order.
fn three(big: &ModelServer, model: &str, small: &ModelServer) -> String {
    format!(
        "[model]\nfallback = [\"small\", \"tiny\"]\n\
         [[model.models]]\nname = \"big\"\nback_end = \"openai\"\nurl = \"{}\"\nmodel = \"{model}\"\nretries_max = 0\n\
         [[model.models]]\nname = \"small\"\nback_end = \"ollama\"\nurl = \"{}\"\nmodel = \"echo\"\nembeddings = true\n\
         [[model.models]]\nname = \"tiny\"\nback_end = \"script\"\n",
        big.url(),
        small.ollama_url(),
    )
}

/// How the answer of a turn came about.
fn completion(turn: &[(String, Value)]) -> &Value {
    let (name, data) = turn.last().unwrap();
    assert_eq!(name, "final", "{turn:?}");
    &data["completion"]
}

/// What the model service says on a topic.
fn asked(runtime: &TestRuntime, topic: &str) -> Value {
    let output = runtime.bus(&["request", topic, "", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let reply: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    reply["payload"].clone()
}

#[test]
pub(crate) fn another_model_stands_in_for_one_that_was_killed_and_everybody_is_told() {
    let (mut big, mut small) = (ModelServer::start(), ModelServer::start());
    let runtime = TestRuntime::start_with(&three(&big, "echo", &small));
    let turn = runtime.turn("all", "Hello there");
    assert_eq!(final_text(&turn).trim(), "You said Hello there");
    assert_eq!((&completion(&turn)["name"], &completion(&turn)["fallback"]), (&json!("big"), &json!([])));

    // Killed while it has nothing to do.
    big.process.kill();
    let turn = runtime.turn("all", "Are you there?");
    assert_eq!(final_text(&turn).trim(), "You said Are you there?");
    let told = completion(&turn);
    assert_eq!((&told["name"], &told["back_end"]), (&json!("small"), &json!("ollama")), "{told}");
    assert_eq!(told["usage"], json!({ "prompt_tokens": 3, "completion_tokens": 4 }));
    assert_eq!(
        (&told["fallback"][0]["model"], &told["fallback"][0]["code"]),
        (&json!("big"), &json!("back_end_unreachable"))
    );
    assert_eq!(small.request()["path"], "/api/chat");

    // The log, the statistics, the list of models and the status say so.
    eventually("the log to say it", || {
        let output = runtime.interlock(&["logs", "--component", "model", "--level", "warn", "--json"]);
        String::from_utf8_lossy(&output.stdout).contains("another one stands in").then_some(())
    });
    let statistics = asked(&runtime, "modelservice/statistics/v1");
    let [of_big, of_small] = [0, 1].map(|place| &statistics["models"][place]);
    assert_eq!((&of_big["passed_on"], &of_big["finished"]), (&json!(1), &json!(1)), "{statistics}");
    assert_eq!(
        (&of_small["stood_in"], &of_small["first_token_s"]["count"]),
        (&json!(1), &json!(1)),
        "{statistics}"
    );
    assert_eq!(of_big["health"]["state"], "failing");
    let list = asked(&runtime, "modelservice/models/v1");
    assert_eq!(list["models"][0]["health"]["state"], "failing", "{list}");
    eventually("the status to say it", || {
        let text = String::from_utf8_lossy(&runtime.interlock(&["status"]).stdout).into_owned();
        (text.contains("`big` failing: ") && text.contains("`small` ok")).then_some(())
    });
    assert_eq!(runtime.interlock(&["status"]).status.code(), Some(0), "somebody answers");

    // The next in the list, which is nobody's server.
    small.process.kill();
    let turn = runtime.turn("all", "And now?");
    let told = completion(&turn);
    assert_eq!(told["name"], "tiny");
    let tried: Vec<&Value> = told["fallback"].as_array().unwrap().iter().map(|one| &one["model"]).collect();
    assert_eq!(tried, [&json!("big"), &json!("small")]);
    assert!(told["notice"].as_str().unwrap().contains("no language model"), "{told}");
}

#[test]
fn a_server_that_dies_before_the_first_word_is_stood_in_for_and_one_that_dies_after_it_is_not() {
    let (mut big, small) = (ModelServer::start(), ModelServer::start());
    let runtime = TestRuntime::start_with(&three(&big, "early", &small));
    let turn = runtime.turn("early", "Hello");
    assert_eq!(big.process.exit_code(), Some(9));
    assert_eq!(completion(&turn)["name"], "small");
    assert!(completion(&turn)["fallback"][0]["text"].as_str().unwrap().contains(&big.url()), "{turn:?}");
    assert_eq!(final_text(&turn).trim(), "You said Hello");

    let mut big = ModelServer::start();
    let runtime = TestRuntime::start_with(&three(&big, "dies", &small));
    let turn = runtime.turn("late", "Hello");
    assert_eq!(big.process.exit_code(), Some(9));
    let (name, data) = turn.last().unwrap();
    assert_eq!((name.as_str(), &data["code"]), ("error", &json!("back_end_cut")), "{turn:?}");
    assert_eq!(turn.iter().filter(|(name, _)| name == "delta").count(), 2);
}

#[test]
fn while_nobody_is_there_to_answer_the_model_is_degraded_and_health_says_why() {
    let mut server = ModelServer::start();
    let runtime = TestRuntime::start_with(&server.settings("model = \"echo\""));
    server.process.kill();
    let turn = runtime.turn("gone", "Hello");
    assert_eq!(turn.last().unwrap().1["code"], "back_end_unreachable", "{turn:?}");
    eventually("the model service to be degraded", || {
        let children = children(&runtime);
        let model = children.iter().find(|child| child["name"] == "model")?;
        let why = model["impaired"].as_str()?;
        (model["state"] == "degraded" && why.contains(&server.url())).then_some(())
    });
    let health: Value = runtime.get("/health").json().unwrap();
    assert_eq!(health["status"], "degraded", "{health}");
    let parts = health["parts"].as_array().unwrap();
    let model = parts.iter().find(|part| part["name"] == "model").unwrap();
    assert!(model["reason"].as_str().unwrap().contains("cannot be reached"), "{health}");
}

#[test]
pub(crate) fn a_busy_server_is_asked_again_as_often_as_the_settings_say() {
    for (retries, is_answered) in [(0, false), (1, true)] {
        let server = ModelServer::start();
        let runtime =
            TestRuntime::start_with(&server.settings(&format!("model = \"once\"\nretries_max = {retries}")));
        let (name, data) = runtime.turn("busy", "Hello").pop().unwrap();
        assert_eq!(name == "final", is_answered, "{data}");
        let statistics = asked(&runtime, "modelservice/statistics/v1");
        assert_eq!(statistics["models"][0]["retries"], retries, "{statistics}");
    }
}

#[test]
fn embeddings_are_asked_for_over_the_bus_and_the_script_says_that_it_makes_none() {
    let server = ModelServer::start();
    let runtime = TestRuntime::start_with(&three(&server, "echo", &server));
    let request = |payload: &str| runtime.bus(&["request", "modelservice/embeddings/v1", payload, "--json"]);
    let output = request("{\"inputs\":[\"abcd\",\"e\"]}");
    let text = String::from_utf8_lossy(&output.stdout);
    let reply: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let payload = &reply["payload"];
    assert_eq!((&payload["name"], &payload["back_end"]), (&json!("small"), &json!("ollama")), "{reply}");
    assert_eq!(payload["vectors"], json!([[1.0, 97.0], [0.25, 101.0]]));
    assert_eq!(server.request()["path"], "/api/embed");
    let output = request("{\"inputs\":[\"a\"],\"model\":\"tiny\"}");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("model `tiny` makes no embeddings; `small` can"), "{output:?}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn whoever_asks_is_told_when_busy_servers_want_to_be_asked_again() {
    let (big, small) = (ModelServer::start(), ModelServer::start());
    // The second one is busy, too; the first word of it is another.
    let settings = format!(
        "[model]\nfallback = [\"small\"]\n\
         [[model.models]]\nname = \"big\"\nback_end = \"openai\"\nurl = \"{}\"\nmodel = \"busy\"\nretries_max = 0\n\
         [[model.models]]\nname = \"small\"\nback_end = \"openai\"\nurl = \"{}\"\nmodel = \"busy_later\"\nretries_max = 0\n",
        big.url(),
        small.url(),
    );
    let runtime = TestRuntime::start_with(&settings);
    let completion = json!({ "messages": [{ "role": "user", "content": "Hello" }] });
    for (path, body) in [("/v1/chat", json!({ "text": "Hello" })), ("/v1/chat/completions", completion)] {
        let asked = runtime.http().post(runtime.url(path).unwrap()).bearer_auth(runtime.token().unwrap());
        let answer = asked.json(&body).send().unwrap();
        assert_eq!(answer.status(), 429, "{path}");
        assert_eq!(answer.headers()["retry-after"], "7", "{path}");
        let body: Value = answer.json().unwrap();
        assert_eq!(body["error"]["code"], "back_end_busy", "{body}");
    }
    // Here the turn has begun before the model is asked.
    let (name, data) = runtime.turn("a", "Hello").pop().unwrap();
    assert_eq!(
        (name.as_str(), &data["code"], &data["retry_after_s"]),
        ("error", &json!("back_end_busy"), &json!(7))
    );
}
