//! Supervised actors on a real bus: what their senders and requesters see when they fail.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use interlock::{
    supervisor::{
        ChildSpecification, Children, ShutdownPhases, State, Strategy, Supervision, Supervisor, TreeSnapshot,
    },
    tree::{BrokerActor, BrokerSeat},
};
use interlock_actors::{
    actor::{Actor, Failure, Input},
    context::Context,
    host::{ActorHost, Bus, Mailroom},
};
use interlock_bus::{
    BrokerConfig, Client, ConnectOptions, Credentials, Endpoint, Event, KeyStore, Payload, PeerName,
    Permissions, RequestError, SubscribeOptions, TopicName, blocking,
};

use crate::harness::DEADLINE;

/// Counts what it is given, and does what the text says.
struct Worker {
    handled: Arc<AtomicU64>,
}

impl Actor for Worker {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        context.subscribe(&"work/items".parse()?, SubscribeOptions::default()).await?;
        context.serve(&"work/ask".parse()?).await?;
        Ok(())
    }

    async fn handle(&mut self, input: Input, context: &Context) -> Result<(), Failure> {
        match input {
            Input::Message(message) => {
                match message.text() {
                    Some("panic once") if context.incarnation() == 1 => panic!("once"),
                    Some("panic always") => panic!("always"),
                    Some("slow") => tokio::time::sleep(Duration::from_secs(2)).await,
                    _ => {}
                }
                self.handled.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
            Input::Request(request) => match request.message.text() {
                Some("panic once") if context.incarnation() == 1 => panic!("once"),
                Some("panic always") => panic!("always"),
                Some("panic after a part") => {
                    request.reply(Payload::text("a part")).await?;
                    panic!("after a part")
                }
                _ => Ok(request.end(Payload::text("done")).await?),
            },
            _ => Err(Failure::new("messages were lost")),
        }
    }
}

/// A runtime in small: broker, worker, and a client beside them.
struct Runtime {
    supervision: Supervision,
    client: Client,
    seat: BrokerSeat,
    handled: Arc<AtomicU64>,
    _directory: tempfile::TempDir,
}

impl Runtime {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (keys, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let everything = Permissions::from_lists(&["#", "$dlq/#"], &["#", "$dlq/#"], &["#"], &["#"]).unwrap();
        for name in ["worker", "tester"] {
            keys.issue(&name.parse().unwrap(), &everything, &[], None).unwrap();
        }
        let endpoint = Endpoint::Ipc(directory.path().join("bus.sock"));
        let seat = BrokerSeat::default();
        let mailroom = Mailroom::open().unwrap();

        let place = seat.clone();
        let broker = move || {
            let config = BrokerConfig::from_key_store(&keys, vec![endpoint.clone()])?;
            Ok(BrokerActor::new(config, place.clone()))
        };
        let handled = Arc::new(AtomicU64::new(0));
        let counted = handled.clone();
        let worker = move || Ok(Worker { handled: counted.clone() });
        let (broker_name, worker_name): (PeerName, PeerName) =
            ("broker".parse().unwrap(), "worker".parse().unwrap());
        let children = vec![
            ChildSpecification::actor(
                broker_name.clone(),
                ActorHost::new(broker_name.clone(), Bus::none(), &mailroom, broker),
            )
            .escalates(),
            ChildSpecification::actor(
                worker_name.clone(),
                ActorHost::new(worker_name.clone(), seat.attach(worker_name), &mailroom, worker),
            )
            .depends_on([broker_name]),
        ];
        let supervision =
            Supervisor::new("root").start(Strategy::OneForOne, Children::Lasting(children)).unwrap();
        await_tree(&supervision, |tree| tree.state == State::Running);
        let client = seat.broker().unwrap().attach(&"tester".parse().unwrap()).unwrap();
        Self { supervision, client, seat, handled, _directory: directory }
    }

    fn publish(&self, text: &str) {
        self.client.publish(&topic("work/items"), Payload::text(text)).unwrap();
    }

    fn ask(&self, text: &str) -> Result<String, RequestError> {
        let topic = topic("work/ask");
        let asked = self.client.request(&topic, Payload::text(text), DEADLINE);
        blocking::wait(asked).map(|message| message.text().unwrap().to_owned())
    }

    fn await_handled(&self, count: u64) {
        let deadline = Instant::now() + DEADLINE;
        while self.handled.load(Ordering::SeqCst) < count {
            assert!(Instant::now() < deadline, "handled {} of {count}", self.handled.load(Ordering::SeqCst));
            std::thread::yield_now();
        }
    }

    fn restarts(&self) -> u64 {
        self.supervision.handle().snapshot().child("worker").unwrap().restarts
    }

    fn stop(self) {
        self.supervision.handle().shutdown(ShutdownPhases::default()).unwrap();
        let outcome = self.supervision.join();
        assert_eq!(outcome.to_string(), "stopped as asked");
    }
}

fn topic(text: &str) -> TopicName {
    text.parse().unwrap()
}

fn await_tree(supervision: &Supervision, wanted: impl Fn(&TreeSnapshot) -> bool) -> Arc<TreeSnapshot> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let waited = runtime.block_on(supervision.handle().wait_until(wanted, DEADLINE));
    waited.unwrap_or_else(|tree| panic!("not within the deadline: {tree:#?}"))
}

#[test]
fn no_message_is_lost_when_an_actor_panics_and_the_one_in_hand_is_handled_again() {
    let runtime = Runtime::start();
    runtime.publish("panic once");
    for _ in 0..500 {
        runtime.publish("work");
    }
    runtime.await_handled(501);
    assert_eq!((runtime.restarts(), runtime.handled.load(Ordering::SeqCst)), (1, 501));
    runtime.stop();
}

#[test]
fn a_message_in_hand_at_two_failures_becomes_a_dead_letter_and_the_actor_goes_on() {
    let runtime = Runtime::start();
    let filter = "$dlq/worker".parse().unwrap();
    let letters = runtime.client.subscribe(&filter, SubscribeOptions::default());
    let mut letters = blocking::wait(letters).unwrap();
    runtime.publish("panic always");
    runtime.publish("work");
    runtime.await_handled(1);
    let letter = letters.next_blocking(Instant::now() + DEADLINE).unwrap();
    let Event::Message(letter) = letter else { panic!("expected a letter, got {letter:?}") };
    let letter = letter.text().unwrap().to_owned();
    assert!(letter.contains("panic always") && letter.contains("work/items"), "{letter}");
    assert_eq!(runtime.restarts(), 2);
    runtime.stop();
}

#[test]
fn a_request_is_tried_again_once_and_then_its_requester_is_told() {
    let runtime = Runtime::start();
    assert_eq!(runtime.ask("panic once").unwrap(), "done");
    let error = runtime.ask("panic always").unwrap_err();
    assert!(
        matches!(&error, RequestError::Failed { code, text, .. } if code == "server_failed" && text.contains("`worker` failed")),
        "{error:?}"
    );
    assert_eq!(runtime.ask("work").unwrap(), "done");
    assert_eq!(runtime.restarts(), 3, "two for the request that always panics, one for the other");

    // An answer that has begun is not begun again.
    let ask = topic("work/ask");
    let stream = runtime.client.request_stream(&ask, Payload::text("panic after a part"), DEADLINE);
    let mut stream = blocking::wait(stream).unwrap();
    let part = blocking::wait(stream.next()).unwrap().unwrap();
    assert_eq!(part.text(), Some("a part"));
    let end = blocking::wait(stream.next()).unwrap();
    assert!(matches!(&end, Err(RequestError::Failed { code, .. }) if code == "server_failed"), "{end:?}");
    // The requester hears of the failure before the supervisor has started the next incarnation.
    await_tree(&runtime.supervision, |tree| tree.child("worker").is_some_and(|worker| worker.restarts == 4));
    runtime.stop();
}

#[test]
fn a_process_comes_back_with_the_key_it_has_when_the_broker_is_started_again() {
    let runtime = Runtime::start();
    let issue = runtime.seat.incarnation_credentials("tester".parse().unwrap());
    let credentials =
        |incarnation| Credentials::from_toml(&issue(incarnation).unwrap(), Path::new("incarnation")).unwrap();
    let first = credentials(1);
    runtime.supervision.handle().restart("broker").unwrap();
    await_tree(&runtime.supervision, |tree| {
        tree.state == State::Running && tree.child("broker").is_some_and(|broker| broker.restarts == 1)
    });
    Client::connect_blocking(ConnectOptions::new(first.clone())).unwrap();
    // And that key still ends with its incarnation.
    Client::connect_blocking(ConnectOptions::new(credentials(2))).unwrap();
    Client::connect_blocking(ConnectOptions::new(first)).unwrap_err();
    runtime.stop();
}

#[test]
fn a_status_question_is_answered_within_50_ms_beside_a_slow_handler() {
    let runtime = Runtime::start();
    runtime.publish("slow");
    let handle = runtime.supervision.handle();
    let slowest = (0..20)
        .map(|_| {
            let asked = Instant::now();
            assert_eq!(handle.snapshot().state, State::Running);
            // An order takes the supervisor's own loop.
            handle.start("nobody").unwrap_err();
            asked.elapsed()
        })
        .max()
        .unwrap();
    assert!(slowest < Duration::from_millis(50), "{slowest:?}");
    runtime.stop();
}
