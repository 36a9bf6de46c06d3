//! Supervised actors on a real bus: what their senders and requesters see when they fail.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use interlock::{
    process::IssuedCredentials,
    supervisor::{
        ChildSpecification, Children, Clocks, ShutdownPhases, State, Strategy, Supervision, Supervisor,
        TreeSnapshot,
    },
    tree::{BrokerActor, BrokerSeat},
};
use interlock_actors::{
    actor::{Actor, Failure, Input},
    context::Context,
    host::{ActorHost, Bus, MAILBOX_BYTES_MAX, Mailroom},
};
use interlock_bus::{
    BrokerConfig, Client, ConnectOptions, Credentials, Endpoint, Event, KeyStore, Payload, PeerName,
    Permissions, PublishError, PublishOptions, RequestError, SubscribeOptions, TopicName, blocking,
};

use crate::harness::DEADLINE;

/// The broker's queue towards the worker's narrow subscription.
const QUEUE: u32 = 10;

/// A worker that does not answer is noticed soon.
const BRISK: Clocks = Clocks {
    ask_every: Duration::from_millis(200),
    ask_timeout: Duration::from_millis(100),
    asks_missed_max: 10,
    ..Clocks::ACTOR
};

/// Counts what it is given, and does what the text says.
struct Worker {
    notes: Arc<Notes>,
}

/// What outlives a worker.
struct Notes {
    handled: AtomicU64,
    /// Gaps it was told of, and messages lost in them as far as it was told.
    gaps: AtomicU64,
    lost: AtomicU64,
    /// Whether the second incarnation waits in its start.
    holds_start: AtomicBool,
    /// Whether one has blocked its thread.
    hangs: AtomicBool,
    /// Lets a worker go on that blocks its thread, or has not started.
    go: Mutex<mpsc::Receiver<()>>,
    /// What became of what a worker published when it went on.
    late: mpsc::SyncSender<Result<(), PublishError>>,
}

impl Notes {
    /// Blocks the thread until the test says to go on.
    fn wait_to_go(&self) {
        self.go.lock().unwrap().recv_timeout(DEADLINE).unwrap();
    }
}

impl Actor for Worker {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        if context.incarnation() == 2 && self.notes.holds_start.load(Ordering::SeqCst) {
            self.notes.wait_to_go();
        }
        let narrow = SubscribeOptions { queue_messages_max: QUEUE, ..SubscribeOptions::default() };
        context.subscribe(&"work/narrow".parse()?, narrow).await?;
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
                    Some("hang") if context.incarnation() == 1 => {
                        self.notes.hangs.store(true, Ordering::SeqCst);
                        self.notes.wait_to_go();
                        let spoken = context.client().publish(&"work/late".parse()?, Payload::text("late"));
                        self.notes.late.send(spoken)?;
                    }
                    _ => {}
                }
                self.notes.handled.fetch_add(1, Ordering::SeqCst);
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
            Input::Gap { count, .. } => {
                self.notes.lost.fetch_add(count.unwrap_or(0), Ordering::SeqCst);
                self.notes.gaps.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
            _ => Err(Failure::new("no input that there was when this was written")),
        }
    }
}

/// A runtime in small: broker, worker, and a client beside them.
struct Runtime {
    supervision: Supervision,
    client: Client,
    seat: BrokerSeat,
    notes: Arc<Notes>,
    go: mpsc::SyncSender<()>,
    late: mpsc::Receiver<Result<(), PublishError>>,
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
        let (go, gone) = mpsc::sync_channel(1);
        let (late_in, late) = mpsc::sync_channel(1);
        let notes = Arc::new(Notes {
            handled: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            holds_start: AtomicBool::new(false),
            hangs: AtomicBool::new(false),
            go: Mutex::new(gone),
            late: late_in,
        });
        let noted = notes.clone();
        let worker = move || Ok(Worker { notes: noted.clone() });
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
            .depends_on([broker_name])
            .clocks(BRISK),
        ];
        let supervision =
            Supervisor::new("root").start(Strategy::OneForOne, Children::Lasting(children)).unwrap();
        await_tree(&supervision, |tree| tree.state == State::Running);
        let client = seat.broker().unwrap().attach(&"tester".parse().unwrap()).unwrap();
        Self { supervision, client, seat, notes, go, late, _directory: directory }
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
        self.await_that("all are handled", || self.handled() >= count);
    }

    fn await_that(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !is_so() {
            let (notes, handled) = (&self.notes, self.handled());
            assert!(Instant::now() < deadline, "not {what}: handled {handled}, lost {:?}", notes.lost);
            std::thread::yield_now();
        }
    }

    fn handled(&self) -> u64 {
        self.notes.handled.load(Ordering::SeqCst)
    }

    /// Stops it, after which nothing may have been lost.
    fn stop(self) {
        let notes = self.notes.clone();
        self.end();
        assert_eq!(notes.gaps.load(Ordering::SeqCst), 0, "nothing was lost");
    }

    fn end(self) {
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
    await_tree(&runtime.supervision, |tree| tree.child("worker").is_some_and(|worker| worker.restarts == 1));
    assert_eq!(runtime.handled(), 501);
    runtime.stop();
}

#[test]
fn a_message_in_hand_at_two_failures_becomes_a_dead_letter_and_the_actor_goes_on() {
    let runtime = Runtime::start();
    let filter = "$dlq/+/tester".parse().unwrap();
    let letters = runtime.client.subscribe(&filter, SubscribeOptions::default());
    let mut letters = blocking::wait(letters).unwrap();
    runtime.publish("panic always");
    runtime.publish("work");
    runtime.await_handled(1);
    let letter = letters.next_blocking(Instant::now() + DEADLINE).unwrap();
    let Event::Message(letter) = letter else { panic!("expected a letter, got {letter:?}") };
    let letter = letter.text().unwrap().to_owned();
    assert!(letter.contains("panic always") && letter.contains("work/items"), "{letter}");
    await_tree(&runtime.supervision, |tree| tree.child("worker").is_some_and(|worker| worker.restarts == 2));
    runtime.stop();
}

#[test]
fn messages_for_a_restarting_actor_wait_up_to_its_bound_and_then_follow_the_policy_of_the_subscription() {
    const SENT: u64 = 300;
    let runtime = Runtime::start();
    runtime.notes.holds_start.store(true, Ordering::SeqCst);
    runtime.publish("panic once");
    await_tree(&runtime.supervision, |tree| {
        tree.child("worker").is_some_and(|worker| worker.restarts == 1 && worker.state == State::Starting)
    });
    let narrow = topic("work/narrow");
    for _ in 0..SENT {
        // 64 KiB: the bound in bytes is met before that in messages.
        let payload = Payload::bytes(vec![b'x'; 64 << 10]);
        blocking::wait(runtime.client.publish_acknowledged(&narrow, payload, PublishOptions::default()))
            .unwrap();
    }
    let waiting = runtime.supervision.handle().look().unwrap();
    let load = &waiting.child("worker").unwrap().load;
    assert!(load.queued_bytes <= MAILBOX_BYTES_MAX && load.queued_bytes > MAILBOX_BYTES_MAX / 2, "{load:?}");

    runtime.go.send(()).unwrap();
    // The first message is handled at the second try.
    let lost = || runtime.notes.lost.load(Ordering::SeqCst);
    runtime.await_that("all are handled or lost", || runtime.handled() + lost() > SENT);
    assert_eq!(runtime.handled() + lost(), SENT + 1, "each is handled, or told of as lost");
    assert!(lost() > 0, "what is beyond all bounds is not kept");
    runtime.end();
}

#[test]
fn a_thread_that_wakes_after_it_was_given_up_speaks_to_nobody_and_what_ended_with_its_session_is_told() {
    let runtime = Runtime::start();
    let filter = "work/late".parse().unwrap();
    let late = runtime.client.subscribe(&filter, SubscribeOptions::default());
    let mut late = blocking::wait(late).unwrap();
    runtime.publish("hang");
    runtime.await_that("it hangs", || runtime.notes.hangs.load(Ordering::SeqCst));
    let error = runtime.ask("work").unwrap_err();
    assert!(
        matches!(&error, RequestError::Failed { code, text, .. } if code == "server_failed" && text.contains("given up")),
        "{error:?}"
    );
    // The message in hand is handed out again, and the actor told what it cannot know.
    runtime.await_handled(1);
    await_tree(&runtime.supervision, |tree| {
        tree.state == State::Running && tree.child("worker").is_some_and(|worker| worker.restarts == 1)
    });
    runtime.await_that("both gaps are told", || runtime.notes.gaps.load(Ordering::SeqCst) == 2);

    runtime.go.send(()).unwrap();
    let spoken = runtime.late.recv_timeout(DEADLINE).unwrap();
    assert!(matches!(&spoken, Err(error) if !error.to_string().is_empty()), "{spoken:?}");
    runtime.client.publish(&topic("work/late"), Payload::text("marker")).unwrap();
    let heard = late.next_blocking(Instant::now() + DEADLINE).unwrap();
    assert!(matches!(&heard, Event::Message(message) if message.text() == Some("marker")), "{heard:?}");
    assert_eq!(runtime.ask("work").unwrap(), "done", "the next incarnation serves on a session of its own");
    runtime.end();
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
    // Two for the request that always panics, one for the other. An actor may answer before its start is in the tree.
    await_tree(&runtime.supervision, |tree| tree.child("worker").is_some_and(|worker| worker.restarts == 3));

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
        |issued: &IssuedCredentials| Credentials::from_toml(issued.text(), Path::new("incarnation")).unwrap();
    let issued = issue(1).unwrap();
    let first = credentials(&issued);
    runtime.supervision.handle().restart("broker").unwrap();
    await_tree(&runtime.supervision, |tree| {
        tree.state == State::Running && tree.child("broker").is_some_and(|broker| broker.restarts == 1)
    });
    Client::connect_blocking(ConnectOptions::new(first.clone())).unwrap();
    // And that key still ends with its incarnation.
    let second = issue(2).unwrap();
    drop(issued);
    Client::connect_blocking(ConnectOptions::new(credentials(&second))).unwrap();
    Client::connect_blocking(ConnectOptions::new(first)).unwrap_err();
    // Also if that ends while there is no broker.
    let third = issue(3).unwrap();
    let (last, key) = (credentials(&second), credentials(&third));
    runtime.supervision.handle().stop("broker").unwrap();
    await_tree(&runtime.supervision, |tree| {
        tree.child("broker").is_some_and(|broker| broker.state == State::Stopped)
    });
    drop(second);
    runtime.supervision.handle().start("broker").unwrap();
    await_tree(&runtime.supervision, |tree| tree.state == State::Running);
    Client::connect_blocking(ConnectOptions::new(key)).unwrap();
    Client::connect_blocking(ConnectOptions::new(last)).unwrap_err();
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
