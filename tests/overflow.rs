//! Subscribers that do not read: what each policy loses, what is said of it, and who else notices.

use std::time::{Duration, Instant};

use interlock_bus::{
    Client, Credentials, Payload, Permissions, PublishError, SubscribeError, TopicName,
    blocking::{wait, wait_until},
    client::{ConnectOptions, Event, ServeOptions, SubscribeOptions, Subscription},
    native::Overflow,
};

use crate::{
    broker_process::BrokerProcess,
    harness::{
        DEADLINE, eventually,
        ledger::{Row, assert_balances},
    },
};

/// So large that a few fill what the broker sends uncredited, and the send queue sees the rest.
const PAYLOAD_BYTES: usize = 100_000;
const MESSAGES: u64 = 120;
/// Bound of the send queue, in messages.
const BOUND: u32 = 4;

fn topic(text: &str) -> TopicName {
    text.parse().unwrap()
}

fn connect(credentials: Credentials) -> Client {
    Client::connect_blocking(ConnectOptions::new(credentials).timeout(DEADLINE)).unwrap()
}

/// A client that may do everything below `t`, and hold publishers if `may_wait`.
fn client(broker: &BrokerProcess, name: &str, may_wait: bool) -> Client {
    let all = &["t/#"][..];
    let mut permissions = Permissions::from_lists(all, all, all, all).unwrap();
    permissions.wait = may_wait;
    connect(broker.store.issue(&name.parse().unwrap(), &permissions, &broker.endpoints, None).unwrap())
}

fn subscribe(client: &Client, options: SubscribeOptions) -> Subscription {
    wait(client.subscribe(&"t/#".parse().unwrap(), options)).unwrap()
}

fn payload(number: u64) -> Payload {
    let mut text = number.to_string().into_bytes();
    text.resize(PAYLOAD_BYTES, b' ');
    Payload::bytes(text)
}

/// Publishes one message and gives how many subscribers lost it at once.
fn publish(client: &Client, on: &str, number: u64) -> u32 {
    wait(client.publish_acknowledged(&topic(on), payload(number), Default::default())).unwrap().dropped
}

/// Reads to the message `last`: the numbers that came, and how many the gaps count.
fn read_to(subscription: &mut Subscription, last: u64) -> (Vec<u64>, u64) {
    let (mut came, mut lost) = (Vec::new(), 0);
    while came.last() != Some(&last) {
        match subscription.next_blocking(Instant::now() + DEADLINE).unwrap() {
            Event::Message(message) => came.push(message.text().unwrap().trim().parse().unwrap()),
            Event::Gap { count, reason } => {
                assert_eq!(reason, "slow_consumer");
                lost += count.unwrap();
            }
        }
    }
    // Waiting for more is what tells the broker that all were consumed.
    assert!(subscription.next_blocking(Instant::now()).is_err());
    (came, lost)
}

/// The sum over all topics of what was published to `subscriber`, once nothing is queued for it.
fn settled(broker: &BrokerProcess, subscriber: &str) -> Vec<Row> {
    eventually("its queue to be empty", || {
        let rows = assert_balances(broker.auditor());
        let rows: Vec<Row> = rows
            .into_iter()
            .filter(|row| row.subscriber == subscriber && row.topic.starts_with("t/"))
            .collect();
        rows.iter().all(|row| row.queued == 0).then_some(rows)
    })
}

fn sum(rows: &[Row], count: impl Fn(&Row) -> u64) -> u64 {
    rows.iter().map(count).sum()
}

#[test]
fn each_policy_loses_what_its_name_says_and_the_gaps_and_the_ledger_count_it_exactly() {
    for bounds in [(BOUND, 0), (0, BOUND * PAYLOAD_BYTES as u32 + 1000)] {
        let broker = BrokerProcess::start();
        let publisher = client(&broker, "publisher", false);
        let policies = [Overflow::DropNewest, Overflow::DropOldest, Overflow::LatestOnly];
        let mut slow: Vec<Subscription> = policies
            .iter()
            .enumerate()
            .map(|(number, policy)| {
                let options = SubscribeOptions::default().overflow(*policy).queue(bounds.0, bounds.1);
                subscribe(&client(&broker, &format!("slow-{number}"), false), options)
            })
            .collect();
        let mut dropped_at_once = 0;
        for number in 1..=MESSAGES {
            dropped_at_once += u64::from(publish(&publisher, ["t/a", "t/b"][(number % 2) as usize], number));
        }

        // Everything reads now, and one more message goes to empty queues.
        let mut newest: Vec<u64> = Vec::new();
        let mut lost_newest = 0;
        while newest.len() as u64 + lost_newest < MESSAGES {
            match slow[0].next_blocking(Instant::now() + DEADLINE).unwrap() {
                Event::Message(message) => newest.push(message.text().unwrap().trim().parse().unwrap()),
                Event::Gap { count, .. } => lost_newest += count.unwrap(),
            }
        }
        assert!(newest.iter().copied().eq(1..=newest.len() as u64), "the first ones are kept: {newest:?}");
        assert_eq!(lost_newest, dropped_at_once);
        assert!(slow[0].next_blocking(Instant::now()).is_err());
        let rows = settled(&broker, "slow-0");
        assert_eq!(sum(&rows, |row| row.dropped("slow_consumer")), lost_newest);
        assert_eq!(sum(&rows, |row| row.delivered), newest.len() as u64);

        let (oldest, lost_oldest) = read_to(&mut slow[1], MESSAGES);
        assert!(oldest.ends_with(&[MESSAGES - 3, MESSAGES - 2, MESSAGES - 1, MESSAGES]), "{oldest:?}");
        assert_eq!(oldest.len() as u64 + lost_oldest, MESSAGES);
        let rows = settled(&broker, "slow-1");
        assert_eq!(sum(&rows, |row| row.dropped("slow_consumer")), lost_oldest);

        let (latest, lost_latest) = read_to(&mut slow[2], MESSAGES);
        assert!(latest.ends_with(&[MESSAGES - 1, MESSAGES]), "the last of each topic is kept: {latest:?}");
        let rows = settled(&broker, "slow-2");
        assert_eq!((lost_latest, sum(&rows, |row| row.dropped("slow_consumer"))), (0, 0));
        assert_eq!(latest.len() as u64 + sum(&rows, |row| row.dropped("replaced")), MESSAGES);
    }
}

#[test]
fn an_empty_queue_takes_one_message_of_any_size_and_the_next_one_is_counted() {
    let broker = BrokerProcess::start();
    let publisher = client(&broker, "publisher", false);
    let subscriber = client(&broker, "subscriber", false);
    let mut tight = subscribe(&subscriber, SubscribeOptions::default().queue(1, 1));
    for round in 1..=3 {
        let large = Payload::bytes(vec![b'x'; 8 << 20]);
        let ack = wait(publisher.publish_acknowledged(&topic("t/a"), large, Default::default())).unwrap();
        assert_eq!((ack.subscribers, ack.dropped), (1, 0), "round {round}");
        match tight.next_blocking(Instant::now() + DEADLINE).unwrap() {
            Event::Message(message) => assert_eq!(message.payload.len(), 8 << 20),
            gap @ Event::Gap { .. } => panic!("{gap:?}"),
        }
    }
}

#[test]
fn a_subscriber_that_stands_still_delays_neither_the_others_nor_the_publishers_own_answers() {
    let broker = BrokerProcess::start();
    let publisher = client(&broker, "publisher", false);
    let mut slow: Vec<Subscription> = [Overflow::DropNewest, Overflow::DropOldest, Overflow::LatestOnly]
        .iter()
        .enumerate()
        .map(|(number, policy)| {
            let slow = client(&broker, &format!("slow-{number}"), false);
            subscribe(&slow, SubscribeOptions::default().overflow(*policy).queue(BOUND, 0))
        })
        .collect();
    let mut fast = subscribe(&client(&broker, "fast", false), SubscribeOptions::default());
    let mut service =
        wait(client(&broker, "server", false).serve(&"t/asked".parse().unwrap(), ServeOptions::default()))
            .unwrap();
    std::thread::spawn(move || {
        while let Some(request) = wait(service.next()) {
            let _ = wait(request.end(Payload::text("answer")));
        }
    });
    // Each message has come, and each answer, before the next is sent, while the others stand still.
    for number in 1..=MESSAGES {
        publish(&publisher, "t/a", number);
        let Event::Message(message) = fast.next_blocking(Instant::now() + DEADLINE).unwrap() else {
            panic!("a message was lost")
        };
        assert_eq!(message.text().unwrap().trim(), number.to_string());
        let answer = wait(publisher.request(&topic("t/asked"), Payload::default(), DEADLINE)).unwrap();
        assert_eq!(answer.text(), Some("answer"));
    }
    for (number, slow) in slow.iter_mut().enumerate() {
        let rows = assert_balances(broker.auditor());
        let row =
            rows.iter().find(|row| row.subscriber == format!("slow-{number}") && row.topic == "t/a").unwrap();
        assert!(row.delivered == 0 && row.queued < MESSAGES, "it stood still all the while: {row:?}");
        assert!(matches!(slow.try_next(), Some(Event::Message(_))));
    }
}

#[test]
fn the_policy_disconnect_ends_the_session_of_the_slow_one_alone() {
    let broker = BrokerProcess::start();
    let publisher = client(&broker, "publisher", false);
    let slow = client(&broker, "slow", false);
    let options = SubscribeOptions::default().overflow(Overflow::Disconnect).queue(BOUND, 0);
    let mut cut = subscribe(&slow, options);
    let mut fast = subscribe(&client(&broker, "fast", false), SubscribeOptions::default());
    for number in 1..=MESSAGES {
        publish(&publisher, "t/a", number);
        assert!(matches!(fast.next_blocking(Instant::now() + DEADLINE).unwrap(), Event::Message(_)));
    }
    // What it had received comes, then the gap that nobody can count, then it is back.
    let gap = eventually("the gap", || match cut.next_blocking(Instant::now() + DEADLINE).unwrap() {
        Event::Message(_) => None,
        Event::Gap { count, reason } => Some((count, reason)),
    });
    assert_eq!(gap, (None, "disconnected".to_owned()));
    // Waiting for more is what tells the broker that the last one was consumed.
    assert!(fast.next_blocking(Instant::now()).is_err());
    let rows = settled(&broker, "fast");
    assert_eq!(sum(&rows, |row| row.delivered), MESSAGES);
}

#[test]
fn wait_holds_its_topic_and_no_other_until_there_is_room_or_the_right_is_taken_away() {
    let broker = BrokerProcess::start();
    let publisher = client(&broker, "publisher", false);
    let options = || SubscribeOptions::default().overflow(Overflow::Wait).queue(BOUND, 0);
    let held = "t/held".parse().unwrap();
    let refused = wait(client(&broker, "nobody", false).subscribe(&held, options()));
    assert!(matches!(refused, Err(SubscribeError::Denied { .. })), "{refused:?}");
    let waiter = client(&broker, "waiter", true);
    let mut subscription = wait(waiter.subscribe(&held, options())).unwrap();
    let mut fast = subscribe(&client(&broker, "fast", false), SubscribeOptions::default());

    let mut number = 0;
    let mut until_held = || {
        eventually("the topic to be held", || {
            match publisher.publish(&topic("t/held"), payload(number + 1)) {
                Ok(()) => number += 1,
                Err(PublishError::Held { .. }) => return Some(number),
                Err(PublishError::Full { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            None
        })
    };
    let sent = until_held();
    // Whoever waits for room may say for how long; another topic is open.
    let limited = Instant::now() + Duration::from_millis(20);
    assert!(
        wait_until(publisher.publish_waiting(&topic("t/held"), payload(0), &Default::default()), limited)
            .is_none()
    );
    assert_eq!(publish(&publisher, "t/open", 1), 0);
    let (came, lost) = read_to(&mut subscription, sent);
    assert!(lost == 0 && came.into_iter().eq(1..=sent), "nothing is lost under `wait`");
    wait(publisher.publish_waiting(&topic("t/held"), payload(sent + 1), &Default::default())).unwrap();
    read_to(&mut subscription, sent + 1);
    while fast.try_next().is_some() {}

    // Held again; then the right to hold goes, and with it the subscription.
    number = sent + 1;
    eventually("the topic to be held again", || {
        match publisher.publish(&topic("t/held"), payload(number + 1)) {
            Ok(()) => number += 1,
            Err(PublishError::Held { .. }) => return Some(()),
            Err(_) => {}
        }
        None
    });
    let all = &["t/#"][..];
    let without = Permissions::from_lists(all, all, all, all).unwrap();
    broker.store.set_permissions(&"waiter".parse().unwrap(), &without).unwrap();
    eventually("the publisher to be released", || {
        wait_until(
            publisher.publish_waiting(&topic("t/held"), payload(0), &Default::default()),
            Instant::now() + Duration::from_millis(50),
        )
    })
    .unwrap();
    eventually("the subscription to end", || {
        while subscription.try_next().is_some() {}
        subscription.end_reason().filter(|reason| reason.contains("may not hold publishers"))
    });
}

#[test]
fn what_a_dead_member_of_a_group_had_and_did_not_consume_is_in_the_ledger_and_goes_to_nobody() {
    let broker = BrokerProcess::start();
    let publisher = client(&broker, "publisher", false);
    let members = ["one", "two"].map(|name| client(&broker, name, false));
    let [dying, mut living] =
        [0, 1].map(|at| subscribe(&members[at], SubscribeOptions::default().group("g")));
    for number in 1..=MESSAGES {
        publish(&publisher, "t/a", number);
    }
    let [first, second] = members;
    // It goes without having consumed anything; its subscription is still there.
    first.close_blocking();
    let rows = eventually("the dead member's row", || {
        let rows = assert_balances(broker.auditor());
        let row = rows.into_iter().find(|row| row.subscriber == "one" && row.topic == "t/a")?;
        (row.queued == 0).then_some(row)
    });
    assert_eq!((rows.delivered, rows.published), (0, rows.dropped("disconnected")));
    let alive = MESSAGES - rows.published;
    assert!(rows.published > 0 && alive > 0, "both members had their share");
    publish(&publisher, "t/a", MESSAGES + 1);
    let (came, lost) = read_to(&mut living, MESSAGES + 1);
    assert_eq!((came.len() as u64, lost), (alive + 1, 0), "it gets what was its own, and all from then on");
    assert!(came.windows(2).all(|pair| pair[0] < pair[1]), "{came:?}");
    drop((dying, second));
}
