//! How long an actor with an empty state is away when it fails: from its failure until it is ready again, beyond the
//! backoff that was drawn for it (`interlock plan` tells it in advance), and until it has handled the next message.
//!
//! `cargo bench -p interlock-benches --bench restart`
//! `[-- --rounds 200 --record NAME]`

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use interlock::{
    supervisor::{ChildSpecification, Children, State, Strategy, Supervision, Supervisor},
    tree::{BrokerActor, BrokerSeat},
};
use interlock_actors::{
    actor::{Actor, Failure, Input},
    context::Context,
    host::{ActorHost, Bus, Mailroom},
};
use interlock_benches::{
    arguments::Arguments,
    clock::percentile,
    report::{Report, one_digit},
};
use interlock_bus::{
    BrokerConfig, Client, Endpoint, KeyStore, Payload, PeerName, Permissions, SubscribeOptions, TopicName,
};

/// How long anything here may take; something is broken then.
const DEADLINE: Duration = Duration::from_secs(30);

/// What one row may need at the 99th of a hundred, beyond the backoff.
const GOAL: Duration = Duration::from_millis(10);

/// Fails when it is told to, and notes when it did what.
struct Faulty {
    noted: Arc<Mutex<Noted>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Noted {
    failed: Option<Instant>,
    handled: Option<Instant>,
}

impl Actor for Faulty {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        context.subscribe(&"orders".parse()?, SubscribeOptions::default()).await?;
        Ok(())
    }

    async fn handle(&mut self, input: Input, context: &Context) -> Result<(), Failure> {
        let Input::Message(message) = input else { return Err(Failure::new("messages were lost")) };
        let now = Instant::now();
        let mut noted = lock(&self.noted);
        // What failed is handed out once more; it is fine then.
        match message.text() {
            Some(text @ ("fail" | "panic")) if noted.failed.is_none() => {
                noted.failed = Some(now);
                drop(noted);
                assert!(text != "panic", "told to, as incarnation {}", context.incarnation());
                Err(Failure::new("told to"))
            }
            Some("next") => {
                noted.handled = Some(now);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Broker, actor, and a client beside them.
struct Stand {
    supervision: Supervision,
    client: Client,
    noted: Arc<Mutex<Noted>>,
    runtime: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

fn main() {
    let arguments = Arguments::read(&["rounds"]);
    let rounds = arguments.value("rounds", 200);
    let stand = Stand::new();
    let mut report = Report::begin("restart");
    report.line("\n| an actor with an empty state | p50 | p99 | most, ms |\n|---|---|---|---|");
    let mut worst = Duration::ZERO;
    for (how, text) in [("returns an error", "fail"), ("panics", "panic")] {
        let (mut ready, mut handled) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let (until_ready, until_handled) = stand.fail(text);
            ready.push(nanos(until_ready));
            handled.push(nanos(until_handled));
        }
        worst = worst.max(row(&mut report, &format!("{how}: until it is ready"), ready));
        row(&mut report, &format!("{how}: until the next message is handled"), handled);
    }
    let ordered = (0..rounds).map(|_| nanos(stand.order())).collect();
    worst = worst.max(row(&mut report, "is restarted by order: until it is ready", ordered));
    report.line("\nTimes are those beyond the backoff.");
    report.keep(arguments.text("record"));
    assert!(worst < GOAL, "p99 is {worst:?}, the goal is {GOAL:?}");
}

/// Prints a row; its p99.
fn row(report: &mut Report, what: &str, mut nanos: Vec<u64>) -> Duration {
    nanos.sort_unstable();
    let [p50, p99, most] = [0.5, 0.99, 1.0].map(|share| percentile(&nanos, share));
    let shown = [p50, p99, most].map(|nanos| one_digit(nanos as f64 / 1e6));
    report.line(&format!("| {what} | {} | {} | {} |", shown[0], shown[1], shown[2]));
    Duration::from_nanos(p99)
}

impl Stand {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let (keys, _) = KeyStore::open_or_create(&directory.path().join("keys")).expect("a new key store");
        let everything =
            Permissions::from_lists(&["#", "$dlq/#"], &["#"], &["#"], &["#"]).expect("valid filters");
        for peer in ["faulty", "tester"] {
            keys.issue(&name(peer), &everything, &[], None).expect("a key is issued");
        }
        let endpoint = Endpoint::Ipc(directory.path().join("bus.sock"));
        let (seat, noted) = (BrokerSeat::default(), Arc::<Mutex<Noted>>::default());
        let mailroom = Mailroom::open().expect("a thread");
        let (place, shared) = (seat.clone(), noted.clone());
        let broker = move || {
            let config = BrokerConfig::from_key_store(&keys, vec![endpoint.clone()])?;
            Ok(BrokerActor::new(config, place.clone()))
        };
        let faulty = move || Ok(Faulty { noted: shared.clone() });
        let children = vec![
            ChildSpecification::actor(
                name("broker"),
                ActorHost::new(name("broker"), Bus::none(), &mailroom, broker),
            ),
            ChildSpecification::actor(
                name("faulty"),
                ActorHost::new(name("faulty"), seat.attach(name("faulty")), &mailroom, faulty),
            )
            .depends_on([name("broker")]),
        ];
        let supervision = Supervisor::new("root")
            .start(Strategy::OneForOne, Children::Lasting(children))
            .expect("the tree is one");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("an event loop");
        let waited =
            runtime.block_on(supervision.handle().wait_until(|tree| tree.state == State::Running, DEADLINE));
        assert!(waited.is_ok(), "{waited:?}");
        let client = seat.broker().map(|broker| broker.attach(&name("tester")));
        let client = client.expect("the broker runs").expect("the tester is enrolled");
        Self { supervision, client, noted, runtime, _directory: directory }
    }

    /// Makes it fail, with a message behind the one that it fails at. How long it took beyond the backoff until it was
    /// ready, and until that message was handled.
    fn fail(&self, text: &str) -> (Duration, Duration) {
        *lock(&self.noted) = Noted::default();
        let handle = self.supervision.handle();
        // A whole budget again, and with it the first backoff.
        handle.start("faulty").expect("it runs");
        let plan = handle.plan("faulty", Duration::ZERO).expect("there is one");
        let backoff = Duration::from_micros(plan.tries[0].wait_us);
        let before = self.incarnation();
        let orders: TopicName = "orders".parse().expect("a valid topic");
        for text in [text, "next"] {
            self.client.publish(&orders, Payload::text(text)).expect("the broker takes it");
        }
        let ready = self.ready_after(before);
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Noted { failed: Some(failed), handled: Some(handled) } = *lock(&self.noted) {
                return (
                    (ready - failed).saturating_sub(backoff),
                    (handled - failed).saturating_sub(backoff),
                );
            }
            assert!(Instant::now() < deadline, "the next message was not handled");
            std::thread::yield_now();
        }
    }

    /// Restarts it by order.
    fn order(&self) -> Duration {
        let before = self.incarnation();
        let ordered = Instant::now();
        self.supervision.handle().restart("faulty").expect("it runs");
        self.ready_after(before) - ordered
    }

    fn incarnation(&self) -> u64 {
        let tree = self.supervision.handle().snapshot();
        tree.child("faulty").expect("it is a child").incarnation
    }

    /// When an incarnation after `before` was seen to be ready.
    fn ready_after(&self, before: u64) -> Instant {
        let is_ready = |tree: &interlock::supervisor::TreeSnapshot| {
            tree.child("faulty")
                .is_some_and(|child| child.incarnation > before && child.state == State::Running)
        };
        let waited = self.runtime.block_on(self.supervision.handle().wait_until(is_ready, DEADLINE));
        assert!(waited.is_ok(), "{waited:?}");
        Instant::now()
    }
}

fn name(text: &str) -> PeerName {
    text.parse().expect("the names of this file are valid")
}

fn lock(noted: &Mutex<Noted>) -> std::sync::MutexGuard<'_, Noted> {
    noted.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
