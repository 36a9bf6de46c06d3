//! What was accepted is acted upon, once and in order, whoever is killed when: the runtime (which is broker and sender), the
//! consumer, the publishers' sessions with them. The real binary, a consumer in Python with a database of its own.
//!
//! Soak: `INTERLOCK_OUTBOX_KILLS=1000 cargo test -p interlock-tests --test spec -- outbox_kills --nocapture`

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use interlock_bus::{
    Client, ConnectOptions, Credentials, Payload, TopicName,
    blocking::wait,
    durable::{DurableError, DurableOptions},
    envelope::Header,
};
use serde_json::Value;

use crate::{
    harness::{
        DEADLINE, TestProcess,
        dice::{Dice, environment, round_deadline, seed},
        eventually,
        runtime::TestRuntime,
    },
    wire_proxy::{Passed, WireProxy},
};

/// How many kills there are.
const SOAK: &str = "INTERLOCK_OUTBOX_KILLS";
/// Everything goes fast, nothing becomes a dead letter for its attempts, and publishers meet the limit again and again.
const SETTINGS: &str = "[outbox]\nretry_base = \"20ms\"\nretry_cap = \"200ms\"\nsweep = \"200ms\"\nattempts_max = 1000\n\
                        pending_max = 300\n\
                        attempt_timeout = \"20s\"\ndisk_floor = 0\n\
                        topics = [{ filter = \"orders/#\", consumers = [\"billing\"] }]\n";
/// Publishers; each has two keys.
const PUBLISHERS: usize = 3;

/// The runtime, its consumer, and what both leave behind.
struct Shop {
    runtime: TestRuntime,
    billing: Option<TestProcess>,
    effect_seconds: f64,
}

/// One that was accepted: its id, key and number among those of its key.
type Order = (String, String, u64);

impl Shop {
    fn open(settings: &str) -> Self {
        let shop = Self { runtime: TestRuntime::start_with(settings), billing: None, effect_seconds: 0.0 };
        shop.enrol("shop", &["--request", "outbox/put/orders/#"]);
        shop.enrol("billing", &["--serve", "inbox/billing/#", "--request", "outbox/consume/v1"]);
        shop
    }

    fn enrol(&self, name: &str, rights: &[&str]) {
        let file = self.credentials(name);
        let arguments = [&["keys", "issue", name, "--out", file.to_str().unwrap()], rights].concat();
        let issued = self.runtime.interlock(&arguments);
        assert!(issued.status.success(), "{issued:?}");
    }

    fn credentials(&self, name: &str) -> PathBuf {
        self.runtime.directory.path().join(format!("{name}.toml"))
    }

    fn effects_database(&self) -> PathBuf {
        self.runtime.directory.path().join("effects.db")
    }

    /// Starts the consumer; it waits for a broker that is not there.
    fn start_billing(&mut self) {
        let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/python/interlock.py");
        let [credentials, database] = [self.credentials("billing"), self.effects_database()];
        let [module, credentials, database] =
            [&module, &credentials, &database].map(|path| path.to_str().unwrap().to_owned());
        let seconds = self.effect_seconds.to_string();
        let arguments = [module.as_str(), &credentials, &database, "orders/#", &seconds];
        self.billing = Some(TestProcess::python("effects.py", &arguments));
    }

    /// The same, and nothing while there is no table.
    fn effects_or_none(&self) -> Vec<Order> {
        if self.effects_database().exists() { self.effects() } else { Vec::new() }
    }

    /// What the consumer has done, in its order.
    fn effects(&self) -> Vec<Order> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/effects.py");
        let output =
            Command::new("python3").arg(script).arg("--dump").arg(self.effects_database()).output().unwrap();
        let rows: Vec<[String; 4]> =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        rows.into_iter().map(|[id, _, key, number]| (id, key, number.parse().unwrap())).collect()
    }

    /// Until every message is acknowledged. A consumer that has ended with its session is started again, as its supervisor
    /// would.
    fn wait_until_empty(&mut self) {
        let deadline = Instant::now() + round_deadline(SOAK);
        while self.standing() != (0, 0) {
            assert!(Instant::now() < deadline, "not everything was acknowledged: {:?}", self.standing());
            self.revive_billing();
        }
    }

    fn revive_billing(&mut self) {
        if self.billing.as_mut().is_none_or(|billing| !billing.is_alive()) {
            self.start_billing();
        }
    }

    /// How many messages are unfinished, and how many deliveries are dead; from the file, whoever runs.
    fn standing(&self) -> (u64, u64) {
        let output = self.runtime.interlock(&["outbox", "stats", "--json"]);
        let stats: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        (stats["open"].as_u64().unwrap(), stats["deliveries"]["dead"].as_u64().unwrap_or(0))
    }
}

/// Publishes one order after the other of two keys, each until it is accepted, until told to end.
fn publish(credentials: &Path, publisher: usize, is_over: &AtomicBool) -> Vec<Order> {
    let topic: TopicName = "orders/placed".parse().unwrap();
    let mut client = None;
    let mut accepted = Vec::new();
    for number in 0.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("{publisher}-{}", number % 2);
        let id = Header::new().id;
        let options = DurableOptions { id: Some(id), key: Some(key.clone()), ..DurableOptions::default() };
        let deadline = Instant::now() + round_deadline(SOAK);
        loop {
            assert!(Instant::now() < deadline, "`{id}` was not accepted");
            let Some(connected) = client.clone().or_else(|| connect(credentials)) else { continue };
            client = Some(connected.clone());
            match wait(connected.publish_durable(
                &topic,
                Payload::text(number.to_string()),
                &options,
                Duration::from_secs(5),
            )) {
                Ok(_) => break,
                Err(DurableError::Unconfirmed { .. }) => {}
                // The outbox starts, stops, or is not there.
                Err(
                    DurableError::NoOutbox { .. }
                    | DurableError::ShuttingDown
                    | DurableError::Busy { .. }
                    | DurableError::Full { .. },
                ) => std::thread::sleep(Duration::from_millis(2)),
                Err(error) => panic!("{error}"),
            }
        }
        accepted.push((id.to_string(), key, number));
    }
    accepted
}

fn connect(credentials: &Path) -> Option<Client> {
    let credentials = Credentials::load(credentials).unwrap();
    let options = ConnectOptions::new(credentials).timeout(DEADLINE).waits_for_broker(true);
    Client::connect_blocking(options).ok()
}

/// Each accepted order has one effect, and those of a key are in order. What was not seen accepted may have had one too.
fn assert_once_and_in_order(accepted: &[Order], effects: &[Order]) {
    let ids: BTreeSet<&str> = effects.iter().map(|(id, ..)| id.as_str()).collect();
    assert_eq!(ids.len(), effects.len(), "an effect happened twice");
    for (id, key, number) in accepted {
        assert!(ids.contains(id.as_str()), "`{id}` (number {number} of key {key}) was accepted and is lost");
    }
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for (id, key, number) in effects {
        if let Some(before) = last.insert(key, *number) {
            assert!(before < *number, "`{id}`: {number} of key {key} came after {before}");
        }
    }
}

#[test]
#[allow(clippy::print_stdout, reason = "what a soak has done")]
fn whoever_is_killed_when_each_accepted_message_has_one_effect_and_those_of_a_key_are_in_order() {
    let kills = environment(SOAK).unwrap_or(12);
    let mut dice = Dice(seed("outbox kills"));
    let mut shop = Shop::open(SETTINGS);
    shop.start_billing();
    let is_over = AtomicBool::new(false);
    let credentials = shop.credentials("shop");
    let accepted: Vec<Order> = std::thread::scope(|scope| {
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let (credentials, is_over) = (&credentials, &is_over);
                scope.spawn(move || publish(credentials, publisher, is_over))
            })
            .collect();
        for _ in 0..kills {
            std::thread::sleep(Duration::from_micros(dice.below(400_000)));
            match dice.below(4) {
                0 => {
                    shop.runtime.process.kill();
                    shop.runtime.restart();
                }
                1 => {
                    let restarted = shop.runtime.interlock(&["restart", *dice.of(&["outbox", "broker"])]);
                    assert!(restarted.status.success(), "{restarted:?}");
                }
                _ => drop(shop.billing.take()),
            }
            shop.revive_billing();
        }
        is_over.store(true, Ordering::Relaxed);
        publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()).collect()
    });
    shop.wait_until_empty();
    let effects = shop.effects();
    println!("{kills} kills, {} accepted, {} effects", accepted.len(), effects.len());
    assert!(accepted.len() >= kills as usize);
    assert_once_and_in_order(&accepted, &effects);
}

#[test]
fn a_stop_while_six_writers_fill_the_outbox_takes_nothing_more_and_loses_nothing_that_it_took() {
    let mut shop = Shop::open(SETTINGS);
    shop.start_billing();
    let is_over = AtomicBool::new(false);
    let credentials = shop.credentials("shop");
    let accepted: Vec<Order> = std::thread::scope(|scope| {
        let publishers: Vec<_> = (0..6)
            .map(|publisher| {
                let (credentials, is_over) = (&credentials, &is_over);
                scope.spawn(move || publish(credentials, publisher, is_over))
            })
            .collect();
        for _ in 0..3 {
            let before = shop.effects_or_none().len();
            eventually("orders to flow", || (shop.effects_or_none().len() > before + 10).then_some(()));
            let stopped = shop.runtime.interlock(&["stop"]);
            // A delivery in hand ends with its session: it is not cut off, and is sent again.
            assert!(matches!(stopped.status.code(), Some(0 | 10)), "{stopped:?}");
            shop.runtime.process.exit_code();
            // With no runtime the file alone says what waits; nothing is half way.
            let listed = shop.runtime.interlock(&["outbox", "list", "--json"]);
            assert!(!String::from_utf8_lossy(&listed.stdout).contains("leased"), "{listed:?}");
            shop.runtime.restart();
            shop.revive_billing();
        }
        is_over.store(true, Ordering::Relaxed);
        publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()).collect()
    });
    shop.wait_until_empty();
    assert_once_and_in_order(&accepted, &shop.effects());
}

#[test]
fn a_path_that_is_cut_while_the_outbox_drains_keeps_what_was_on_it_for_the_next_start() {
    let settings = format!("{SETTINGS}[shutdown]\ndrain = \"1s\"\nforced = \"60s\"\n");
    let mut shop = Shop::open(&settings);
    let file = shop.credentials("billing");
    let credentials = Credentials::load(&file).unwrap();
    let proxy = WireProxy::start(&credentials.endpoints[0]);
    let is_cut = Arc::new(AtomicBool::new(false));
    let held = Arc::clone(&is_cut);
    proxy.tamper_with(move || {
        let held = Arc::clone(&held);
        // A cut swallows what comes, both ways, and tells nobody.
        Box::new(move |_, _, piece| {
            Passed::Pieces(if held.load(Ordering::Relaxed) { Vec::new() } else { vec![piece] })
        })
    });
    let text = std::fs::read_to_string(&file).unwrap();
    let endpoints = format!("endpoints = [\"{}\"]", proxy.endpoint);
    let lines = text.lines().map(|line| if line.starts_with("endpoints") { &endpoints } else { line });
    let through = lines.collect::<Vec<_>>().join("\n");
    std::fs::write(&file, through).unwrap();
    shop.effect_seconds = 0.3;
    shop.start_billing();
    shop.billing.as_ref().unwrap().line();

    let is_over = AtomicBool::new(false);
    let from_shop = shop.credentials("shop");
    let accepted = std::thread::scope(|scope| {
        let publisher = scope.spawn(|| publish(&from_shop, 0, &is_over));
        eventually("the first effect", || (!shop.effects_or_none().is_empty()).then_some(()));
        is_over.store(true, Ordering::Relaxed);
        publisher.join().unwrap()
    });
    is_cut.store(true, Ordering::Relaxed);
    shop.runtime.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(shop.runtime.process.exit_code(), Some(10), "a delivery was on its way");
    assert!(shop.standing().0 > 0);
    is_cut.store(false, Ordering::Relaxed);
    drop(shop.billing.take());
    shop.effect_seconds = 0.0;
    shop.runtime.restart();
    shop.wait_until_empty();
    assert_once_and_in_order(&accepted, &shop.effects());
}
