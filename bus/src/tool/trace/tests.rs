//! Paths through a broker of the test.

use super::*;
use crate::{
    broker::Bounds,
    client::ServeOptions,
    tool::tests::{fixture, fixture_with, topic},
};

fn rows(data: &str) -> Vec<Value> {
    data.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of_hop<'a>(rows: &'a [Value], hop: &str) -> Vec<&'a Value> {
    rows.iter().filter(|row| row["hop"] == hop).collect()
}

#[test]
fn a_message_is_followed_to_each_subscriber_with_the_rule_and_the_time() {
    let fixture = fixture();
    let filter = "sensors/#".parse().unwrap();
    let mut heard = blocking::wait(fixture.client.subscribe(&filter, SubscribeOptions::default())).unwrap();
    let taking = std::thread::spawn(move || blocking::wait(heard.next()));
    let (exit, data, messages) = fixture.bus(&["trace", "sensors/heat", "21", "--json"]);
    assert_eq!((exit, messages.as_str()), (Exit::Done, ""));
    let rows = rows(&data);
    let (publisher, broker, ends) =
        (of_hop(&rows, "publisher"), of_hop(&rows, "broker"), of_hop(&rows, "subscriber"));
    assert_eq!((&publisher[0]["peer"], &publisher[0]["permitted"]), (&json!("operator"), &json!(true)));
    assert!(publisher[0]["rule"]["file"].as_str().unwrap().ends_with("authorized.toml"));
    assert!(publisher[0]["rule"]["line"].as_u64() > Some(0), "{publisher:?}");
    assert_eq!(broker[0]["subscribers"], 1);
    let seen = (&ends[0]["peer"], &ends[0]["filter"], &ends[0]["outcome"]);
    assert_eq!(seen, (&json!("alice"), &json!("sensors/#"), &json!("delivered")));
    let (accepted, at) = (broker[0]["accepted_us"].as_u64().unwrap(), ends[0]["at_us"].as_u64().unwrap());
    assert!(accepted > 0 && at >= accepted, "{accepted} {at}");
    let Some(Event::Message(message)) = taking.join().unwrap() else { panic!("it did not come") };
    assert_eq!(
        (message.text(), publisher[0]["id"].as_str()),
        (Some("21"), Some(&*message.header.id.to_string()))
    );
    let trace = Trace::of(&message.header).unwrap().id();
    assert_eq!(publisher[0]["trace"].as_str(), Some(&*trace));
}

#[test]
fn one_that_does_not_take_it_and_one_that_loses_it_are_told_apart() {
    let fixture = fixture_with(Bounds::default());
    let subscribe = |filter: &str, most| {
        let options = SubscribeOptions::default().overflow(Overflow::DropNewest).queue(most, 0);
        blocking::wait(fixture.client.subscribe(&filter.parse().unwrap(), options)).unwrap()
    };
    let _sleeps = subscribe("sensors/heat", 0);
    let (exit, data, _) = fixture.bus(&["trace", "sensors/heat", "x", "--wait", "50ms"]);
    assert_eq!(exit, Exit::NotReady);
    assert!(data.contains("QUEUED"), "{data}");
}

#[test]
fn nobody_is_said_plainly_with_what_was_probably_meant() {
    let fixture = fixture();
    let filter = "sensors/heat".parse().unwrap();
    let _subscription =
        blocking::wait(fixture.client.subscribe(&filter, SubscribeOptions::default())).unwrap();
    let (exit, data, _) = fixture.bus(&["trace", "sensor/heat", "x"]);
    assert_eq!(exit, Exit::Failed);
    assert!(data.contains("no active subscriber") && data.contains("did you mean sensors/heat?"), "{data}");
    let rooms = "rooms/#".parse().unwrap();
    let _rooms = blocking::wait(fixture.client.subscribe(&rooms, SubscribeOptions::default())).unwrap();
    fixture.bus(&["pub", "rooms/kitchen/heat", "x"]);
    let (_, data, _) = fixture.bus(&["trace", "room/kitchen/heat", "x"]);
    assert!(data.contains("did you mean rooms/kitchen/heat?"), "{data}");
    let (exit, data, _) = fixture.bus(&["trace", "$sys/x", "x"]);
    assert!(
        exit == Exit::Denied && data.contains("DENIED") && data.contains("bus why operator publish $sys/x"),
        "{data}"
    );
}

#[test]
fn dry_says_where_it_would_go_and_sends_nothing() {
    let fixture = fixture();
    let filter = "sensors/#".parse().unwrap();
    let mut heard = blocking::wait(fixture.client.subscribe(&filter, SubscribeOptions::default())).unwrap();
    let (exit, data, messages) = fixture.bus(&["trace", "sensors/heat", "--dry"]);
    assert_eq!((exit, messages.as_str()), (Exit::Done, ""));
    assert!(
        data.contains("alice") && data.contains("would get it") && data.contains("nothing is sent"),
        "{data}"
    );
    fixture.bus(&["pub", "sensors/heat", "first"]);
    let Some(Event::Message(message)) = blocking::wait(heard.next()) else { panic!("it did not come") };
    assert_eq!(message.text(), Some("first"));
    assert_eq!(fixture.bus(&["trace", "sensors/heat", "x", "--dry"]).0, Exit::Misuse);
}

#[test]
fn a_request_is_followed_to_its_server_and_back() {
    let fixture = fixture();
    let served = "math/double".parse().unwrap();
    let mut service = blocking::wait(fixture.client.serve(&served, ServeOptions::default())).unwrap();
    let serving = std::thread::spawn(move || {
        let request = blocking::wait(service.next()).unwrap();
        let has_trace = Trace::of(&request.message.header).is_some();
        blocking::wait(request.reply(Payload::text("first"))).unwrap();
        blocking::wait(request.end(Payload::text("42"))).unwrap();
        has_trace
    });
    let (exit, data, _) = fixture.bus(&["trace", "math/double", "21", "--request", "--json"]);
    assert!(serving.join().unwrap(), "what it causes can be found by its trace");
    let rows = rows(&data);
    let replies: Vec<_> =
        of_hop(&rows, "reply").iter().map(|row| row["text"].as_str().unwrap().to_owned()).collect();
    assert_eq!((exit, replies), (Exit::Done, vec!["first".to_owned(), "42".to_owned()]));
    let servers = of_hop(&rows, "server");
    assert_eq!((&servers[0]["peer"], &servers[0]["outcome"]), (&json!("alice"), &json!("delivered")));
    assert!(of_hop(&rows, "end")[0]["error"].is_null());
    let (exit, data, _) = fixture.bus(&["trace", "math/treble", "21", "--request"]);
    assert!(exit == Exit::NotReady && data.contains("no active server"), "{data}");
    let (exit, data, _) = fixture.bus(&["trace", "$sys/broker/info", "--request"]);
    assert!(exit == Exit::Done && data.contains("the broker itself answers"), "{data}");
}

#[test]
fn the_next_message_that_passes_by_is_shown_with_its_way() {
    let fixture = fixture();
    let to = topic("turns/1");
    let publisher = fixture.client.clone();
    let publishing = std::thread::spawn(move || {
        blocking::wait(publisher.wait_for_subscribers(&to, 1, Duration::from_secs(20))).unwrap();
        let options = PublishOptions::default();
        blocking::wait(publisher.publish_acknowledged(&to, Payload::text("hello"), options)).unwrap();
    });
    let (exit, data, messages) = fixture.bus(&["trace", "turns/+", "--next", "--json"]);
    publishing.join().unwrap();
    assert!(messages.contains("waiting for the next message"), "{messages}");
    let rows = rows(&data);
    let publisher = of_hop(&rows, "publisher");
    assert_eq!((&publisher[0]["peer"], &publisher[0]["topic"]), (&json!("alice"), &json!("turns/1")));
    let broker = of_hop(&rows, "broker");
    assert!(broker[0]["sequence"].as_u64() > Some(0) && broker[0]["travelled_us"].is_u64(), "{broker:?}");
    assert!(matches!(exit, Exit::Done | Exit::Failed), "{exit:?}");
}
