//! The verb without a terminal, and its threads against a broker of the test.

use super::*;
use crate::{
    envelope::Payload,
    tool::{
        tests::{fixture, topic},
        top::{model::Key, tail::TailItem},
    },
};

#[test]
fn once_prints_an_object_a_line_of_each_kind() {
    let fixture = fixture();
    blocking::wait(fixture.client.publish_acknowledged(
        &topic("sensors/heat"),
        Payload::text("21"),
        crate::client::PublishOptions::default(),
    ))
    .unwrap();
    let (exit, data, messages) = fixture.bus(&["top", "--once", "--json"]);
    assert_eq!(exit, Exit::Done, "{messages}");
    let rows: Vec<serde_json::Value> = data.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_kind = |kind: &str| rows.iter().filter(|row| row["kind"] == kind).cloned().collect::<Vec<_>>();
    assert_eq!((of_kind("broker").len(), of_kind("actor").len()), (1, 0));
    let topics = of_kind("topic");
    assert_eq!(
        (topics.len(), &topics[0]["topic"], &topics[0]["messages"]),
        (1, &"sensors/heat".into(), &1.into())
    );
    assert_eq!(topics[0]["no_subscriber"], 1);
    let names: Vec<_> = of_kind("peer").iter().map(|row| row["peer"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["alice", "operator"]);
    assert!(messages.contains("no runtime answers"), "{messages}");
    let (_, all, _) = fixture.bus(&["top", "--once", "--all"]);
    assert!(all.contains("$sys/broker/overview") && all.contains("SUBSCRIBERS"), "{all}");
}

#[test]
fn misuse_is_told_before_anything_is_connected() {
    let fixture = fixture();
    for (arguments, part) in [
        (&["top", "--json"][..], "--once"),
        (&["top", "--interval", "5ms"], "200ms"),
        (&["top", "--interval", "2h"], "60s"),
    ] {
        let (exit, _, messages) = fixture.bus(arguments);
        assert!(exit == Exit::Misuse && messages.contains(part), "{messages}");
    }
}

/// Threads as `bus top` has them, without keyboard and screen.
fn workers() -> (Workers, Receiver<Event>) {
    let (events, seen) = bounded(EVENTS_MAX);
    (Workers { events, is_ending: Arc::default() }, seen)
}

#[test]
fn what_a_follower_is_too_slow_for_is_lost_by_it_alone_and_counted_to_the_last_message() {
    const MESSAGES: u64 = 20_000;
    let fixture = fixture();
    let (workers, seen) = workers();
    let wanted = Arc::new(Mutex::new(Some("flood/#".to_owned())));
    let thread = follow::start(&workers, &fixture.client, &wanted).unwrap();
    let publisher = fixture.broker.attach(&"operator".parse().unwrap()).unwrap();
    let to = topic("flood/a");
    blocking::wait(publisher.wait_for_subscribers(&to, 1, Duration::from_secs(20))).unwrap();
    for number in 0..MESSAGES {
        let options = crate::client::PublishOptions::default();
        blocking::wait(publisher.publish_waiting(&to, Payload::text(number.to_string()), &options)).unwrap();
    }
    let (mut came, mut lost) = (0, 0);
    let end = Instant::now() + Duration::from_secs(60);
    while came + lost < MESSAGES {
        match seen.recv_deadline(end).unwrap() {
            Event::Tail(items) => {
                for item in items {
                    match item {
                        TailItem::Message(_) => came += 1,
                        TailItem::Gap(count, _) => lost += count.unwrap(),
                        TailItem::Ended(reason) => panic!("{reason}"),
                    }
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(came + lost, MESSAGES);
    workers.is_ending.store(true, Ordering::Release);
    thread.join().unwrap();
}

#[test]
fn a_model_is_fed_by_a_real_broker_until_the_broker_ends() {
    let fixture = fixture();
    let (workers, seen) = workers();
    let wanted = Wanted {
        interval: Duration::from_millis(200),
        is_paused: false,
        containing: String::new(),
        own: true,
    };
    let first = source::look(&fixture.client, &wanted, &|| false).unwrap();
    let mut model = Model::new(wanted.interval);
    let top = {
        let (wakes, woken) = bounded(WAKES_MAX);
        let wanted = Arc::new(Mutex::new(wanted));
        let threads = vec![source::start(&workers, &fixture.client, first.clone(), &wanted, woken).unwrap()];
        Top { wanted, wakes, followed: Arc::default(), threads }
    };
    model.on(Event::Picture(Box::new(first)));
    let until = |model: &mut Model, what: &str, holds: &dyn Fn(&Model) -> bool| {
        let end = Instant::now() + Duration::from_secs(30);
        while !holds(model) {
            let event = seen.recv_deadline(end).unwrap_or_else(|_| panic!("{what} did not come"));
            let orders = model.on(event);
            orders.into_iter().for_each(|order| top.carry_out(order, model));
        }
    };
    let has =
        |name: &'static str| move |model: &Model| model.grid().rows.iter().any(|line| line.name == name);
    until(&mut model, "the topic that is asked on", &has("$sys/broker/overview"));
    for key in [Key::Char('2'), Key::Enter] {
        model.on(Event::Key(key));
    }
    assert!(model.detail.is_some());
    model.on(Event::Key(Key::Esc));
    model.on(Event::Key(Key::Char('1')));
    for order in model.on(Event::Key(Key::Enter)) {
        top.carry_out(order, &model);
    }
    let answered = |model: &Model| {
        let rows = model.detail.as_ref().map(|detail| detail.rows().cloned().collect::<Vec<_>>());
        rows.is_some_and(|rows| rows.iter().any(|(row, _)| row.contains("PUBLISHERS")))
    };
    until(&mut model, "the detail", &answered);
    workers.is_ending.store(true, Ordering::Release);
    top.join();
}
