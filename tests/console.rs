//! The console, used in Chromium as a person uses it.

use serde_json::json;

use crate::harness::{TestProcess, runtime::TestRuntime};

/// One more message than may be unfinished makes a dead letter of the first.
const OUTBOX: &str = "[outbox]\npending_max = 1\npolicy = \"oldest_to_dead_letter\"\n\
     [[outbox.topics]]\nfilter = \"orders/#\"\nconsumers = [\"billing\"]\n";

#[test]
fn a_person_talks_watches_kills_and_searches_in_the_browser() {
    let runtime = TestRuntime::start_with(OUTBOX);
    for _ in 0..2 {
        let put = runtime.interlock(&["outbox", "put", "orders/new", "{\"cups\": 2}"]);
        assert!(put.status.success(), "{put:?}");
    }
    let (url, token) = (runtime.url("").unwrap(), runtime.token().unwrap());
    let mut browser = TestProcess::python("console.py", &[&url, &token]);
    let saw = |what: &str| {
        let line = browser.line_within(crate::harness::DEADLINE * 3).unwrap_or_default();
        let seen: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        assert_eq!(seen["saw"], what, "{line}");
        seen
    };
    let contains = |value: &serde_json::Value, parts: &[&str]| {
        let text = value.to_string();
        parts.iter().for_each(|part| assert!(text.contains(part), "{part}: {text}"));
    };

    let refused = saw("a bad token is refused");
    contains(&refused["text"], &["token"]);
    assert_eq!(refused["asks"], true);
    let page = saw("a conversation");
    let messages = page["messages"].as_str().unwrap();
    assert!(messages.matches("Ada").count() >= 3, "the answer remembers the name: {page}");
    contains(&page["notice"], &["no language model"]);
    assert_eq!(page["problem"], "", "{page}");
    assert!(!page["address"].as_str().unwrap().contains(&token));

    let topics = saw("topics");
    assert_eq!(topics["row"][5], "conversation", "who publishes: {topics}");
    contains(&topics["detail"], &["Publishers", "Subscribers"]);
    let messages = saw("messages");
    contains(&messages["summary"], &["watching conversation/#"]);
    assert_eq!(messages["published"], "published; nobody receives it");

    let killed = saw("a killed actor comes back");
    assert_eq!((&killed["before"][4], &killed["after"][4]), (&json!("0"), &json!("1")));
    contains(&killed["after"], &["SIGKILL"]);
    assert_eq!(saw("an actor restarted by its button")["problem"], "");
    contains(&saw("a search in the logs")["first"], &["model"]);
    let peers = saw("peers");
    assert_eq!((&peers["row"][0], &peers["row"][1]), (&json!("model"), &json!("native")));
    contains(&peers["why"], &["publish.allow", "nobody receives"]);
    contains(&peers["refused"], &["No connection was refused"]);
    let letter = saw("a dead letter");
    contains(&letter["row"], &["orders/new", "billing", "`outbox.policy` asks for that"]);
    let start = saw("readiness");
    contains(&start["headline"], &["are ready"]);
    contains(&start["facts"], &["probe back", "no language model"]);
    let last = saw("names, a phone in the dark, keys");
    assert_eq!((&last["nameless"], &last["wide"]), (&json!({}), &json!([])), "{last}");
    assert_eq!(last["ground"], "rgb(17, 21, 20)", "it is dark: {last}");
    contains(&last["keys"], &["Topics", "pause"]);
    assert_eq!(browser.json()["console"], json!([]), "errors on the page's console");
    assert_eq!(browser.exit_code(), Some(0));
    let left = runtime.interlock(&["dlq", "list", "--json"]);
    assert_eq!(String::from_utf8_lossy(&left.stdout), "", "the letter was dropped");
}
