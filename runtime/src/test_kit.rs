//! For the tests of people who write actors: their actors, supervised, on a bus of their own in the same process, with a
//! clock that stands still and faults by script. Nothing has to run beside the test, and nothing is left of it.
//!
//! ```
//! use std::time::Duration;
//!
//! use interlock::{
//!     Actor, Context, Failure, Input, Payload, Permissions,
//!     test_kit::{Faults, TestKit},
//! };
//!
//! /// Counts, and forgets everything after an hour.
//! #[derive(Default)]
//! struct Counter {
//!     counted: u64,
//! }
//!
//! impl Actor for Counter {
//!     async fn started(&mut self, context: &Context) -> Result<(), Failure> {
//!         Ok(context.serve(&"counter/#".parse()?).await?)
//!     }
//!
//!     async fn handle(&mut self, input: Input, _: &Context) -> Result<(), Failure> {
//!         if let Input::Request(request) = input {
//!             self.counted += 1;
//!             request.end(Payload::text(self.counted.to_string())).await?;
//!         }
//!         Ok(())
//!     }
//!
//!     fn tick_every(&self) -> Option<Duration> {
//!         Some(Duration::from_secs(3600))
//!     }
//!
//!     async fn tick(&mut self, context: &Context) -> Result<(), Failure> {
//!         self.counted = 0;
//!         context.status("forgot");
//!         Ok(())
//!     }
//! }
//!
//! let rights = Permissions::from_lists(&[], &[], &["counter/#"], &[]).unwrap();
//! let kit = TestKit::builder()
//!     .actor("counter", rights, Counter::default)
//!     // The third request finds it panicking: it is started again, and handed the request again.
//!     .faults("counter", Faults::default().panics(3))
//!     .start();
//! let count = || kit.ask("counter/next", "").unwrap();
//! assert_eq!([count(), count()], ["1", "2"]);
//! assert_eq!(count(), "1", "a fresh value, and no request was lost");
//! assert_eq!(kit.restarts("counter"), 1);
//!
//! // An hour passes.
//! assert_eq!(count(), "2");
//! kit.advance(Duration::from_secs(3600));
//! kit.await_tree(|tree| tree.child("counter").unwrap().status.as_deref() == Some("forgot"));
//! assert_eq!(count(), "1");
//! ```
//!
//! | what is real | what is not |
//! |---|---|
//! | supervisor, mailboxes, dead letters, broker, permissions, ledger | the clock of the actors: ticks, [`Context::now`], `sleep` and `timeout` |
//! | time limits of requests; those of the supervisor | backoff: a restart comes at once |
//!
//! Its functions panic, with the tree, when something does not come within [`DEADLINE`].

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs,
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use interlock_actors::{
    actor::{Actor, Failure, Input},
    clock::{Clock, ManualClock},
    context::Context,
    host::{ActorHost, Bus, Mailroom},
};
use interlock_bus::{
    BrokerConfig, Client, Endpoint, KeyStore, Payload, PeerName, Permissions, PublishOptions, RequestError,
    blocking,
};
use uuid::Uuid;

use crate::{
    peers,
    supervisor::{
        ChildSpecification, Children, ShutdownPhases, State, Strategy, Supervision, Supervisor, TreeSnapshot,
    },
    tree::{BrokerActor, BrokerSeat},
};

/// How long anything may take that should come at once; generous, because CI machines are busy.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// The peer that the test is. It may do everything.
const TESTER: &str = "tester";

type MakeHost = dyn FnOnce(PeerName, Bus, &Arc<Mailroom>, Arc<Script>) -> ActorHost;

/// Lists what runs in a [`TestKit`].
#[derive(Default)]
pub struct TestKitBuilder {
    actors: Vec<(PeerName, Permissions, Box<MakeHost>)>,
    faults: HashMap<String, Faults>,
}

impl TestKitBuilder {
    /// Adds an actor, as [`Builder::actor`](crate::Builder::actor) does. Its permissions hold as in the runtime.
    ///
    /// # Panics
    /// The name is no peer name.
    pub fn actor<A: Actor>(
        mut self,
        name: &str,
        permissions: Permissions,
        factory: impl Fn() -> A + Send + Sync + 'static,
    ) -> Self {
        let name = name.parse().unwrap_or_else(|error| panic!("{error}"));
        let host: Box<MakeHost> = Box::new(move |name, bus, mailroom, script| {
            let make = move || Ok(Faulty { actor: factory(), script: script.clone() });
            ActorHost::new(name, bus, mailroom, make)
        });
        self.actors.push((name, permissions, host));
        self
    }

    /// What is to go wrong with an actor.
    pub fn faults(mut self, name: &str, faults: Faults) -> Self {
        self.faults.insert(name.to_owned(), faults);
        self
    }

    /// Starts everything and waits until it is ready, unless faults of a start are in the script.
    ///
    /// # Panics
    /// It does not get ready, or faults are meant for an actor that there is not.
    pub fn start(mut self) -> TestKit {
        let directory = Directory::new();
        let (keys, _) = KeyStore::open_or_create(&directory.0.join("keys")).unwrap_or_else(panicked);
        let everything = Permissions::from_lists(
            &["#", "$dlq/#"],
            &["#", "$dlq/#", "$sys/#", "$peers/#"],
            &["#"],
            &["#", "$sys/#"],
        )
        .unwrap_or_else(panicked);
        let tester: PeerName = TESTER.parse().unwrap_or_else(panicked);
        keys.issue(&tester, &everything, &[], None).unwrap_or_else(panicked);
        let (seat, clock) = (BrokerSeat::default(), ManualClock::default());
        let mailroom = Mailroom::open().unwrap_or_else(panicked);
        for (name, permissions, _) in &self.actors {
            let permissions = peers::with_implied(name, permissions);
            keys.issue(name, &permissions, &[], None).unwrap_or_else(panicked);
        }

        let broker: PeerName = "broker".parse().unwrap_or_else(panicked);
        let (place, endpoint) = (seat.clone(), Endpoint::Ipc(directory.0.join("bus.sock")));
        let make_broker = move || {
            let config = BrokerConfig::from_key_store(&keys, vec![endpoint.clone()])?;
            Ok(BrokerActor::new(config, place.clone()))
        };
        let host = ActorHost::new(broker.clone(), Bus::none(), &mailroom, make_broker);
        let mut children = vec![ChildSpecification::actor(broker.clone(), host).escalates()];
        let mut may_fail = false;
        for (name, _, make) in self.actors {
            let faults = self.faults.remove(name.as_str()).unwrap_or_default();
            may_fail |= !faults.starts.is_empty();
            let script = Arc::new(Script { faults, inputs: AtomicU64::new(0) });
            let host = make(name.clone(), seat.attach(name.clone()), &mailroom, script);
            let host = host.clock(Clock::Manual(clock.clone()));
            children.push(ChildSpecification::actor(name, host).depends_on([broker.clone()]));
        }
        assert!(self.faults.is_empty(), "faults for actors that there are not: {:?}", self.faults.keys());
        let supervision = Supervisor::new("test-kit")
            .start_eagerly(Strategy::OneForOne, Children::Lasting(children))
            .unwrap_or_else(panicked);
        let kit = TestKit { supervision: Some(supervision), seat, tester, clock, _directory: directory };
        kit.await_tree(|tree| match may_fail {
            true => tree.child("broker").is_some_and(|broker| broker.state == State::Running),
            false => tree.state == State::Running,
        });
        kit
    }
}

impl fmt::Debug for TestKitBuilder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.actors.iter().map(|(name, ..)| name).collect();
        formatter.debug_struct("TestKitBuilder").field("actors", &names).finish_non_exhaustive()
    }
}

/// Actors at work, for a test. Dropping it stops everything.
#[derive(Debug)]
pub struct TestKit {
    supervision: Option<Supervision>,
    seat: BrokerSeat,
    tester: PeerName,
    clock: ManualClock,
    _directory: Directory,
}

impl TestKit {
    /// An empty one.
    pub fn builder() -> TestKitBuilder {
        TestKitBuilder::default()
    }

    /// A client of its own on the bus, that may do everything.
    ///
    /// # Panics
    /// The broker does not run.
    pub fn client(&self) -> Client {
        let broker = self.seat.broker().unwrap_or_else(|failure| panic!("{failure}"));
        broker.attach(&self.tester).unwrap_or_else(panicked)
    }

    /// Asks, and waits for the answer, as text.
    ///
    /// # Errors
    /// What the requester gets.
    ///
    /// # Panics
    /// The topic is not one, or the answer no text.
    pub fn ask(&self, topic: &str, text: &str) -> Result<String, RequestError> {
        let topic = topic.parse().unwrap_or_else(panicked);
        let client = self.client();
        let answer = blocking::wait(client.request(&topic, Payload::text(text), DEADLINE))?;
        Ok(answer.text().expect("the answer is text").to_owned())
    }

    /// Publishes; returns when the message is in the queue of each that subscribed.
    ///
    /// # Panics
    /// It is refused.
    pub fn publish(&self, topic: &str, text: &str) {
        let topic = topic.parse().unwrap_or_else(panicked);
        let client = self.client();
        let published = client.publish_acknowledged(&topic, Payload::text(text), PublishOptions::default());
        blocking::wait(published).unwrap_or_else(panicked);
    }

    /// Moves the clock of all actors on.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// The clock of all actors.
    pub fn clock(&self) -> &ManualClock {
        &self.clock
    }

    /// States, restarts, failures and what the actors say of themselves.
    pub fn tree(&self) -> Arc<TreeSnapshot> {
        self.supervision().handle().snapshot()
    }

    /// Waits until `wanted` is true of the tree.
    ///
    /// # Panics
    /// It does not become true.
    pub fn await_tree(&self, wanted: impl Fn(&TreeSnapshot) -> bool) -> Arc<TreeSnapshot> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let waited = runtime
            .unwrap_or_else(panicked)
            .block_on(self.supervision().handle().wait_until(wanted, DEADLINE));
        waited.unwrap_or_else(|tree| panic!("not within {DEADLINE:?}: {tree:#?}"))
    }

    /// How often an actor was started again.
    ///
    /// # Panics
    /// There is no such actor.
    pub fn restarts(&self, name: &str) -> u64 {
        self.tree().child(name).unwrap_or_else(|| panic!("no actor is named `{name}`")).restarts
    }

    /// Stops an actor and starts it again, as `interlock restart` does; `broker` is one, too. Waits until all are ready.
    ///
    /// # Panics
    /// There is no such actor, or it does not come up.
    pub fn restart(&self, name: &str) {
        let before = self.restarts(name);
        self.supervision().handle().restart(name).unwrap_or_else(panicked);
        self.await_tree(|tree| {
            tree.state == State::Running && tree.child(name).is_some_and(|child| child.restarts > before)
        });
    }

    fn supervision(&self) -> &Supervision {
        self.supervision.as_ref().expect("it is taken when the kit is dropped, and only then")
    }
}

impl Drop for TestKit {
    fn drop(&mut self) {
        if let Some(supervision) = self.supervision.take() {
            let phases = ShutdownPhases { drain: Duration::from_secs(5), forced: Duration::from_secs(7) };
            // Fails only if the tree has ended by itself.
            let _ = supervision.handle().shutdown(phases);
            supervision.join();
        }
    }
}

/// What goes wrong with one actor, and when. Inputs (messages, requests, gaps) count from 1 and go on counting across
/// restarts; an input that is handed out again counts again.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    inputs: BTreeMap<u64, Fault>,
    starts: BTreeMap<u64, String>,
}

#[derive(Clone, Debug)]
enum Fault {
    Panics,
    Fails(String),
    FailsAfter(String),
}

impl Faults {
    /// The handler panics instead of handling that input.
    #[must_use]
    pub fn panics(self, input: u64) -> Self {
        self.with(input, Fault::Panics)
    }

    /// The handler returns this error instead of handling that input.
    #[must_use]
    pub fn fails(self, input: u64, reason: &str) -> Self {
        self.with(input, Fault::Fails(reason.to_owned()))
    }

    /// The handler handles that input, and then fails before it is done with: a message is handed out again, so this
    /// shows whether handling it twice does harm.
    #[must_use]
    pub fn fails_after(self, input: u64, reason: &str) -> Self {
        self.with(input, Fault::FailsAfter(reason.to_owned()))
    }

    /// That incarnation, counted from 1, does not start, for this reason.
    #[must_use]
    pub fn fails_start(mut self, incarnation: u64, reason: &str) -> Self {
        self.starts.insert(incarnation, reason.to_owned());
        self
    }

    fn with(mut self, input: u64, fault: Fault) -> Self {
        self.inputs.insert(input, fault);
        self
    }
}

/// The faults of an actor, and how far it has come. Outlives incarnations.
struct Script {
    faults: Faults,
    inputs: AtomicU64,
}

/// An actor with its faults.
struct Faulty<A> {
    actor: A,
    script: Arc<Script>,
}

impl<A: Actor> Actor for Faulty<A> {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        match self.script.faults.starts.get(&context.incarnation()) {
            Some(reason) => Err(Failure::new(reason.clone())),
            None => self.actor.started(context).await,
        }
    }

    async fn handle(&mut self, input: Input, context: &Context) -> Result<(), Failure> {
        let number = self.script.inputs.fetch_add(1, Ordering::Relaxed) + 1;
        match self.script.faults.inputs.get(&number) {
            None => self.actor.handle(input, context).await,
            Some(Fault::Panics) => panic!("by script, at input {number}"),
            Some(Fault::Fails(reason)) => Err(Failure::new(reason.clone())),
            Some(Fault::FailsAfter(reason)) => {
                self.actor.handle(input, context).await?;
                Err(Failure::new(reason.clone()))
            }
        }
    }

    fn tick_every(&self) -> Option<Duration> {
        self.actor.tick_every()
    }

    async fn tick(&mut self, context: &Context) -> Result<(), Failure> {
        self.actor.tick(context).await
    }

    async fn stopping(&mut self, context: &Context) -> Result<(), Failure> {
        self.actor.stopping(context).await
    }
}

/// A directory of its own for keys and socket, gone with this value.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("interlock-test-kit-{}", Uuid::new_v4().simple()));
        fs::DirBuilder::new().mode(0o700).create(&path).unwrap_or_else(panicked);
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A test that cannot go on ends with the reason.
fn panicked<T, E: fmt::Display>(error: E) -> T {
    panic!("{error}")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use interlock_bus::SubscribeOptions;

    use super::*;

    /// Writes down each message; answers a request after an hour.
    struct Slow(Arc<Mutex<Vec<String>>>);

    impl Actor for Slow {
        async fn started(&mut self, context: &Context) -> Result<(), Failure> {
            context.subscribe(&"slow/items".parse()?, SubscribeOptions::default()).await?;
            Ok(context.serve(&"slow/ask".parse()?).await?)
        }

        async fn handle(&mut self, input: Input, context: &Context) -> Result<(), Failure> {
            match input {
                Input::Message(message) => self.0.lock().unwrap().push(message.text().unwrap().to_owned()),
                Input::Request(request) => {
                    let asked = context.now();
                    let in_time = context.timeout(HOUR / 2, context.sleep(HOUR)).await;
                    context.status("half an hour has passed");
                    context.sleep(HOUR / 2).await;
                    let waited = (context.now() - asked).as_secs();
                    request.end(Payload::text(format!("{} after {waited} s", in_time.is_some()))).await?;
                }
                _ => {}
            }
            Ok(())
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    fn kit(faults: Faults) -> (TestKit, Arc<Mutex<Vec<String>>>) {
        let noted = Arc::<Mutex<Vec<String>>>::default();
        let notes = noted.clone();
        let rights = Permissions::from_lists(&[], &["slow/#"], &["slow/#"], &[]).unwrap();
        let kit = TestKit::builder()
            .actor("slow", rights, move || Slow(notes.clone()))
            .faults("slow", faults)
            .start();
        (kit, noted)
    }

    fn await_restarts(kit: &TestKit, restarts: u64) {
        kit.await_tree(|tree| {
            let slow = tree.child("slow").unwrap();
            slow.restarts == restarts && slow.state == State::Running
        });
    }

    #[test]
    fn what_an_actor_waits_for_comes_when_the_clock_is_moved_and_not_before() {
        let (kit, _) = kit(Faults::default());
        let client = kit.client();
        let topic = "slow/ask".parse().unwrap();
        let answer = std::thread::spawn(move || {
            blocking::wait(client.request(&topic, Payload::text(""), DEADLINE))
                .unwrap()
                .text()
                .unwrap()
                .to_owned()
        });
        let await_sleepers = |sleepers| {
            let deadline = std::time::Instant::now() + DEADLINE;
            while kit.clock().sleepers() != sleepers {
                assert!(std::time::Instant::now() < deadline && !answer.is_finished());
                std::thread::yield_now();
            }
        };
        await_sleepers(2);
        kit.advance(HOUR / 2 - Duration::from_nanos(1));
        await_sleepers(2);
        kit.advance(Duration::from_nanos(1));
        kit.await_tree(|tree| tree.child("slow").unwrap().status.is_some());
        await_sleepers(1);
        kit.advance(HOUR / 2);
        assert_eq!(answer.join().unwrap(), "false after 3600 s");
    }

    #[test]
    fn each_fault_comes_when_the_script_says_and_the_message_is_handed_out_again() {
        let (kit, noted) = kit(Faults::default()
            .fails_start(1, "the port is taken")
            .fails_after(1, "power cut")
            .fails(4, "disk full"));
        await_restarts(&kit, 1);
        let failure = kit.tree().child("slow").unwrap().last_failure.clone().unwrap();
        assert_eq!(failure.reason, "the port is taken");
        for text in ["one", "two", "three"] {
            kit.publish("slow/items", text);
        }
        await_restarts(&kit, 3);
        let failure = kit.tree().child("slow").unwrap().last_failure.clone().unwrap();
        assert_eq!(failure.reason, "disk full");
        let deadline = std::time::Instant::now() + DEADLINE;
        while noted.lock().unwrap().len() < 4 {
            assert!(std::time::Instant::now() < deadline, "{noted:?}");
            std::thread::yield_now();
        }
        assert_eq!(*noted.lock().unwrap(), ["one", "one", "two", "three"]);
    }

    #[test]
    fn a_restart_of_the_broker_is_survived_and_a_missing_right_is_a_failure_as_in_the_runtime() {
        let (kit, noted) = kit(Faults::default());
        kit.restart("broker");
        kit.publish("slow/items", "after");
        let deadline = std::time::Instant::now() + DEADLINE;
        while noted.lock().unwrap().is_empty() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        drop(kit);

        let rights = Permissions::from_lists(&[], &["slow/#"], &[], &[]).unwrap();
        let faults = Faults::default().fails_start(u64::MAX, "never");
        let kit =
            TestKit::builder().actor("slow", rights, || Slow(Arc::default())).faults("slow", faults).start();
        let tree = kit.await_tree(|tree| tree.child("slow").unwrap().last_failure.is_some());
        let reason = &tree.child("slow").unwrap().last_failure.as_ref().unwrap().reason;
        assert!(reason.contains("slow/ask"), "{reason}");
    }
}
