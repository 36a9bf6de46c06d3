//! Turns of a conversation as a client sees them who survives anything, and whether they were kept.

use serde_json::{Value, json};

use super::{
    eventually,
    runtime::{TestRuntime, events},
};

/// What was said and what was answered. A final event acknowledges both.
pub(crate) type Turn = (String, String);

/// Says `text` as a client that survives anything; `None` if it was not answered.
pub(crate) fn say(runtime: &TestRuntime, conversation: &str, text: &str) -> Option<Turn> {
    let url = runtime.url(&format!("/v1/conversations/{conversation}/messages"))?;
    let request = runtime.http().post(url).bearer_auth(runtime.token()?).json(&json!({ "text": text }));
    let (name, data) = events(request.send().ok().filter(|answer| answer.status().is_success())?).pop()?;
    (name == "final").then(|| (text.to_owned(), data["text"].as_str().unwrap().to_owned()))
}

/// Says `text` until it is answered.
pub(crate) fn say_until_answered(runtime: &TestRuntime, conversation: &str, text: &str) -> Turn {
    let mut tries = 0;
    eventually("an answer", || {
        tries += 1;
        say(runtime, conversation, &format!("{text}, try {tries}"))
    })
}

/// Each turn that was acknowledged is in the history: once, in order, its answer right behind it.
pub(crate) fn assert_kept(runtime: &TestRuntime, conversation: &str, acknowledged: &[Turn]) {
    let history: Value = runtime.get(&format!("/v1/conversations/{conversation}")).json().unwrap();
    let messages: Vec<(&str, &str)> = history["messages"]
        .as_array()
        .unwrap_or_else(|| panic!("no messages: {history}"))
        .iter()
        .map(|message| (message["role"].as_str().unwrap(), message["text"].as_str().unwrap()))
        .collect();
    let mut rest = messages.as_slice();
    for (said, answered) in acknowledged {
        let times = messages.iter().filter(|message| **message == ("user", said)).count();
        assert_eq!(times, 1, "`{said}` was acknowledged and stored {times} times: {messages:#?}");
        let place = rest.iter().position(|message| *message == ("user", said)).expect("they are in order");
        assert_eq!(rest.get(place + 1), Some(&("assistant", answered.as_str())), "{messages:#?}");
        rest = &rest[place + 2..];
    }
}

/// The children as status shows them; empty while it cannot be asked.
pub(crate) fn children(runtime: &TestRuntime) -> Vec<Value> {
    let output = runtime.interlock(&["status", "--json"]);
    let Ok(status) = serde_json::from_slice::<Value>(&output.stdout) else { return Vec::new() };
    status["tree"]["children"].as_array().cloned().unwrap_or_default()
}

/// The state of each child, by name.
pub(crate) fn states(runtime: &TestRuntime) -> Vec<(String, String)> {
    let text = |child: &Value, key: &str| child[key].as_str().unwrap_or_default().to_owned();
    children(runtime).iter().map(|child| (text(child, "name"), text(child, "state"))).collect()
}

/// How often children were started again, in all.
pub(crate) fn restarts(runtime: &TestRuntime) -> u64 {
    children(runtime).iter().filter_map(|child| child["restarts"].as_u64()).sum()
}
