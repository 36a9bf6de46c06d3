use serde_json::json;

use crate::harness::{TestBroker, TestProcess};

fn python(scenario: &str, credentials: &std::path::Path, arguments: &[&str]) -> TestProcess {
    let mut all = vec![scenario, credentials.to_str().unwrap()];
    all.extend(arguments);
    TestProcess::python("stock.py", &all)
}

#[test]
fn a_message_goes_from_a_stock_publisher_to_a_stock_subscriber_frame_by_frame() {
    let broker = TestBroker::start();
    let publisher = broker.enrol("publisher", &["a/#"], &[], &[], &[]);
    let subscriber = broker.enrol("subscriber", &[], &["a/#"], &[], &[]);

    let sub = python("sub", &subscriber, &["a/", "a/b"]);
    assert_eq!(sub.json(), json!({"state": "subscribed"}));
    let request = broker.enrol("observer", &[], &[], &[], &["$sys/broker/#"]);
    crate::harness::eventually("the subscription", || {
        let answer = python("req", &request, &["$sys/broker/subscriptions", ""]).json().to_string();
        answer.contains("a/b").then_some(())
    });
    let publish = python("pub", &publisher, &["a/b", "one", "two|parts", "end"]);

    assert_eq!(publish.json(), json!({"subscription": "01"}));
    assert_eq!(sub.json(), json!({"frames": ["a/b", "one"]}));
    assert_eq!(sub.json(), json!({"frames": ["a/b", "two", "parts"]}));
    assert_eq!(sub.json(), json!({"frames": ["a/b", "end"]}));
}

#[test]
fn a_stock_requester_is_told_at_once_that_nobody_serves_or_that_it_may_not_ask() {
    let broker = TestBroker::start();
    let requester = broker.enrol("requester", &[], &[], &[], &["served/#"]);
    assert_eq!(
        python("req", &requester, &["served/by/nobody", "hello"]).json(),
        json!({"frames": ["no_responders", "nobody serves `served/by/nobody`"]}),
    );
    assert_eq!(
        python("dealer", &requester, &["forbidden", "hello"]).json(),
        json!({"frames": ["denied", "not_permitted: `requester` may not request `forbidden`"]}),
    );
    assert_eq!(
        python("dealer", &requester, &["served/x", "", "id-7|"]).json(),
        json!({"frames": ["id-7", "", "no_responders", "nobody serves `served/x`"]}),
    );
}
