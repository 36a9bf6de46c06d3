//! `model` and `conversation`: what is asked of a server, where and how much at once.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::harness::{
    TestProcess, eventually,
    kept::children,
    model_server::ModelServer,
    runtime::{TestRuntime, final_text},
};

#[test]
pub(crate) fn what_a_server_is_asked_is_what_the_settings_say() {
    let server = ModelServer::start();
    let settings = server.settings(
        "model = \"other\"\ntokens_max = 3\napi_key_env = \"KEY_OF_THE_TEST\"\n[conversation]\ninstructions = \"Be brief.\"\n\
         history_messages_max = 3",
    );
    let runtime = TestRuntime::begin_with(&settings, |command| {
        command.env("KEY_OF_THE_TEST", "sk-from-the-environment");
    });
    runtime.wait_until_ready();
    for text in ["one", "two", "three"] {
        final_text(&runtime.turn("asked", text));
    }
    let [_, _, request] = [(); 3].map(|()| server.request());
    assert_eq!(request["path"], "/v1/chat/completions");
    assert_eq!(request["authorization"], "Bearer sk-from-the-environment");
    let body = &request["body"];
    assert_eq!((&body["model"], &body["max_tokens"]), (&json!("other"), &json!(3)), "{body}");
    let said: Vec<(&str, &str)> = body["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| (message["role"].as_str().unwrap(), message["content"].as_str().unwrap().trim()))
        .collect();
    // The oldest two are left out.
    let expected =
        [("system", "Be brief."), ("user", "two"), ("assistant", "You said two"), ("user", "three")];
    assert_eq!(said, expected);
}

#[test]
pub(crate) fn the_model_service_is_where_it_is_placed_and_says_its_script() {
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&script, "name = \"t\"\notherwise = [\"a b c d e\"]\nsilence = [\"-\"]\nkeywords = []\n")
        .unwrap();
    let runtime = TestRuntime::start_with(&format!(
        "[model]\nplacement = \"runtime\"\nscript = \"{}\"\nscript_pause = \"100ms\"\n",
        script.path().display()
    ));
    assert_eq!(runtime.processes().into_iter().collect::<Vec<_>>(), [runtime.process.id()]);
    let begun = Instant::now();
    assert_eq!(final_text(&runtime.turn("script", "Hello")), "A b c d e");
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
    // By default it is a process of its own.
    assert!(TestRuntime::start().processes().len() > 1);
}

#[test]
pub(crate) fn so_many_completions_run_and_wait_as_may() {
    let server = ModelServer::start();
    let settings = "model = \"silent\"\nconcurrent_max = 1\nwaiting_max = 1\nread_timeout = \"3s\"";
    let runtime = TestRuntime::start_with(&server.settings(settings));
    std::thread::scope(|scope| {
        let runtime = &runtime;
        let turn = |name: &'static str| {
            scope.spawn(move || runtime.turn(name, "Hello").pop().unwrap().1.to_string())
        };
        let first = turn("first");
        server.request();
        // One of two waits, the other is refused, whichever comes first.
        let mut others = [turn("second"), turn("third")].map(|turn| turn.join().unwrap());
        others.sort_by_key(|end| end.contains("timed_out"));
        assert!(
            others[0].contains("\"busy\"") && others[0].contains("1 completions run and 1 wait"),
            "{others:?}"
        );
        assert!(others[1].contains("timed_out"), "{others:?}");
        assert!(first.join().unwrap().contains("timed_out"));
    });
    // Whoever waited was asked for only when the first had ended.
    server.request();
    assert!(server.request_within(Duration::ZERO).is_none());
}

#[test]
pub(crate) fn connecting_is_given_up_in_time() {
    // A listener whose queue is full: the kernel answers no further connection.
    let mut command = Command::new("python3");
    command.args([
        "-c",
        "import socket, time\ns = socket.socket(); s.bind((\"127.0.0.1\", 0)); s.listen(0)\nqueue = []\n\
         for _ in range(4):\n c = socket.socket(); c.setblocking(False); c.connect_ex(s.getsockname()); queue.append(c)\n\
         print(s.getsockname()[1], flush=True); time.sleep(3600)",
    ]);
    let listener = TestProcess::spawn(command);
    let url = format!("http://127.0.0.1:{}/v1", listener.line());
    let runtime = TestRuntime::start_degraded_with(&format!(
        "[model]\nback_end = \"openai\"\nurl = \"{url}\"\nmodel = \"m\"\nconnect_timeout = \"500ms\"\n"
    ));
    let begun = Instant::now();
    let end = runtime.turn("connect", "Hello").pop().unwrap().1.to_string();
    assert!(end.contains("back_end_unreachable") && end.contains(&url), "{end}");
    let took = begun.elapsed();
    assert!((Duration::from_millis(500)..Duration::from_secs(10)).contains(&took), "{took:?}");
    eventually("the model service to go on, and to say that nobody is there", || {
        children(&runtime)
            .iter()
            .any(|child| {
                child["name"] == "model"
                    && child["state"] == "degraded"
                    && child["impaired"]
                        .as_str()
                        .is_some_and(|why| why.contains("no model is there to answer"))
            })
            .then_some(())
    });
}
