//! What the broker's memory does when a subscriber stops taking, and after a very large message. The broker is
//! a process of its own, and so is the subscriber that is stopped. `benches/memory.rs` measures the same at size.

use interlock_bus::{
    Ack, Client, ConnectOptions, Event, Payload, PublishOptions, SubscribeOptions, TopicName, blocking::wait,
    limits,
};
use nix::sys::signal::Signal;

use crate::{
    broker_process::BrokerProcess,
    harness::{DEADLINE, TestProcess, eventually, runtime::tool},
};

/// Beside the queue itself: socket buffers' worth of input and output, the allocator's slack.
const SLACK_BYTES: usize = 24 << 20;
/// Less than half of a queue, and far less than a large message.
const FLAT_BYTES: usize = 6 << 20;

fn broker() -> BrokerProcess {
    BrokerProcess::start()
}

fn publish(client: &Client, topic: &TopicName, payload: Payload) -> Ack {
    wait(client.publish_acknowledged(topic, payload, PublishOptions::default())).unwrap()
}

#[test]
fn a_flood_into_a_stopped_subscriber_costs_its_queue_and_no_more() {
    // Given a subscriber with the default bounds that is stopped
    let broker = broker();
    let topic: TopicName = "flood".parse().unwrap();
    let publisher = broker.enrol("publisher", &["flood"], &[], &[], &[]);
    broker.enrol("subscriber", &[], &["flood"], &[], &[]);
    let publisher = Client::connect_blocking(ConnectOptions::new(publisher)).unwrap();
    let mut command = tool("bus");
    command.arg("--creds").arg(broker.path_of("subscriber")).args(["sub", "flood", "--raw"]);
    let mut subscriber = TestProcess::spawn(command);
    eventually("it to subscribe", || {
        (publish(&publisher, &topic, Payload::text("are you there")).subscribers == 1).then_some(())
    });
    subscriber.signal(Signal::SIGSTOP);
    let before = broker.resident_bytes();

    // When more than the queue holds is published, and then as much again
    let payload = vec![7; 1024];
    let messages = (limits::SEND_QUEUE_BYTES + limits::SEND_QUEUE_BYTES / 4) / payload.len();
    let flood = || {
        wait(async {
            for _ in 0..messages {
                let payload = Payload::bytes(payload.clone());
                publisher.publish_waiting(&topic, payload, &PublishOptions::default()).await.unwrap();
            }
        });
        // Everything before it has been taken when this is answered.
        assert_eq!(publish(&publisher, &topic, Payload::bytes(payload.clone())).dropped, 1);
        broker.resident_bytes()
    };
    let [full, later] = [flood(), flood()];

    // Then the broker has grown by the queue, and by nothing after that
    let bound = before + limits::SEND_QUEUE_BYTES + SLACK_BYTES;
    assert!(full <= bound, "{before} bytes became {full}; the bound is {bound}");
    assert!(later <= full + FLAT_BYTES, "{full} bytes became {later}");
    subscriber.kill();
}

#[test]
fn the_largest_message_passes_and_leaves_no_residue() {
    let broker = broker();
    let topic: TopicName = "large".parse().unwrap();
    let credentials = broker.enrol("both", &["large"], &["large"], &[], &[]);
    let [publisher, subscriber] =
        [(); 2].map(|()| Client::connect_blocking(ConnectOptions::new(credentials.clone())).unwrap());
    let filter = "large".parse().unwrap();
    let mut subscription = wait(subscriber.subscribe(&filter, SubscribeOptions::default())).unwrap();
    let before = broker.resident_bytes();
    for seed in [3, 4] {
        let sent: Vec<u8> = (0..limits::PAYLOAD_BYTES_MAX).map(|at| ((at * seed) >> 3) as u8).collect();
        let ack = publish(&publisher, &topic, Payload::bytes(sent.clone()));
        assert_eq!(ack, Ack { subscribers: 1, dropped: 0, not_retained: false });
        match subscription.next_blocking(std::time::Instant::now() + DEADLINE) {
            Ok(Event::Message(message)) => assert!(message.payload == sent, "it came changed"),
            other => panic!("{other:?}"),
        }
        eventually("the broker to give the memory back", || {
            (broker.resident_bytes() <= before + FLAT_BYTES).then_some(())
        });
    }
}
