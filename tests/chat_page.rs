use crate::harness::{TestProcess, runtime::TestRuntime};

#[test]
fn a_person_talks_to_it_in_the_browser() {
    let runtime = TestRuntime::start();
    let url = runtime.url("").unwrap();
    let token = runtime.token().unwrap();
    let arguments = [url.as_str(), token.as_str(), "My name is Ada.", "What is my name?"];
    let mut browser = TestProcess::python("page.py", &arguments);
    assert_eq!(browser.json()["state"], "asks for the token");
    let page = browser.json();
    let messages = page["messages"].as_str().unwrap();
    assert!(messages.contains("My name is Ada."), "{page}");
    assert!(messages.matches("Ada").count() >= 2, "the answer remembers the name: {page}");
    assert!(page["notice"].as_str().unwrap().to_lowercase().contains("no language model"), "{page}");
    assert_eq!(page["problem"], "", "{page}");
    assert!(!page["address"].as_str().unwrap().contains(&token));
    assert_eq!(browser.json()["console"], serde_json::json!([]), "errors on the page's console");
    assert_eq!(browser.exit_code(), Some(0));
}
