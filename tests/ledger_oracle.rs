//! The ledger as the oracle of random traffic: a real broker, client processes that are stalled,
//! stopped, killed, revoked and given other rights, stock sockets beside them. Afterwards every row
//! must balance and agree with what each party counted for itself.
//!
//! `INTERLOCK_ORACLE_RUNS=1000 cargo test -p interlock-tests ledger_oracle -- --nocapture` is the soak; CI runs
//! [`RUNS`]. `INTERLOCK_SEED` repeats a run: run `n` of seed `s` is run 0 of seed `s + n`.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use interlock_bus::{
    Permissions, Rules,
    blocking::wait,
    client::{Event, SubscribeOptions},
    native::Overflow,
};
use nix::sys::signal::Signal;

use crate::{
    broker_process::BrokerProcess,
    harness::{
        dice::{Dice, environment, seed},
        eventually,
        ledger::{AUDITOR, ask, assert_balances},
    },
};

mod check;
mod journal;
mod party;
mod process;

use journal::Entry;
use process::{Kind, Lane, Party, Span};

/// Runs in CI: two per cent of the soak.
const RUNS: u64 = 20;
const ACTIONS: usize = 45;
const TOPICS: [&str; 5] = ["t/a", "t/b", "t/b/c", "t/secret", "u"];
const FILTERS: [&str; 7] = ["t/#", "t/+", "t/a", "t/b/#", "#", "t/secret", "t/b/c"];
/// Topics of requests, and what is served of them.
const ASKED: [&str; 3] = ["q/a", "q/b", "q/nobody"];
const SERVED: [&str; 3] = ["q/a", "q/b", "q/+"];
const PREFIXES: [&str; 4] = ["", "t/", "t/b", "u"];
const NAMES: [&str; 5] = ["ann", "bob", "cy", "dee", "eve"];
/// Bytes that may be under way before the schedule waits for the auditor to have seen them.
const UNDER_WAY_MAX: usize = 6 << 20;

/// What a name may do: the edits choose among these.
fn rights(choice: u64) -> Permissions {
    let (publish, subscribe, deny, may_wait): (&[&str], &[&str], &[&str], bool) = match choice {
        0 => (&["t/#"], &["#"], &[], true),
        1 => (&["t/#"], &["t/#"], &[], false),
        2 => (&["t/a", "t/b"], &["t/+"], &[], true),
        3 => (&["#"], &["t/#"], &["t/secret"], true),
        _ => (&["t/b/c", "u"], &["t/b/#"], &["t/b/c"], false),
    };
    let serve: &[&str] = if choice == 1 { &["q/a"] } else { &["q/a", "q/b"] };
    let request: &[&str] = if choice == 4 { &["$sys/broker/#", "q/a"] } else { &["$sys/broker/#", "q/#"] };
    let mut permissions = Permissions::from_lists(publish, subscribe, serve, request).unwrap();
    let deny = deny.iter().map(|filter| filter.parse().unwrap()).collect();
    permissions.subscribe = Rules { deny, ..permissions.subscribe };
    permissions.wait = may_wait;
    permissions
}

/// An edit of a name's rights: not yet in force for messages up to `span.after`, certainly for
/// those beyond `span.before`.
struct Edit {
    name: usize,
    span: Span,
    permissions: Permissions,
}

struct World {
    broker: BrokerProcess,
    dice: Dice,
    parties: Vec<Party>,
    edits: Vec<Edit>,
    seen: Arc<Mutex<Vec<Entry>>>,
    under_way: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let broker = BrokerProcess::start();
        let edits = (0..NAMES.len()).map(|name| Edit {
            name,
            span: Span { after: 0, before: 0 },
            permissions: rights(name as u64),
        });
        let edits: Vec<Edit> = edits.collect();
        for edit in &edits {
            let name = NAMES[edit.name].parse().unwrap();
            broker.store.issue(&name, &edit.permissions, &broker.endpoints, None).unwrap();
        }
        let seen = Arc::new(Mutex::new(Vec::new()));
        listen(&broker, Arc::clone(&seen));
        Self { broker, dice: Dice(seed), parties: Vec::new(), edits, seen, under_way: 0 }
    }

    /// The number of the last message the broker has taken.
    fn sequence(&self) -> u64 {
        ask(self.broker.auditor(), "info")["sequence"].as_u64().unwrap()
    }

    fn current(&self, name: usize) -> Option<usize> {
        self.parties.iter().position(|party| party.name == name && !party.is_gone())
    }

    /// A random party that listens to us.
    fn any(&mut self, kind: impl Fn(Kind) -> bool) -> Option<usize> {
        let able: Vec<usize> = (0..self.parties.len())
            .filter(|at| !self.parties[*at].is_gone() && !self.parties[*at].stopped)
            .filter(|at| kind(self.parties[*at].kind))
            .collect();
        (!able.is_empty()).then(|| *self.dice.of(&able))
    }

    fn act(&mut self) {
        match self.dice.below(100) {
            0..14 => self.connect(),
            14..27 => self.subscribe(),
            27..30 => self.serve(),
            30..56 => self.publish(),
            56..62 => self.ask(),
            62..70 => self.stall(),
            70..75 => self.resume(),
            75..79 => self.unsubscribe(),
            79..83 => self.stop(),
            83..86 => self.go_on(),
            86..91 => self.kill(),
            91..93 => self.close(),
            93..97 => self.edit(),
            _ => self.revoke(),
        }
    }

    fn connect(&mut self) {
        let name = self.dice.below(NAMES.len() as u64) as usize;
        if self.current(name).is_some() {
            return;
        }
        let kind = match self.dice.below(7) {
            0 => Kind::StockSubscriber,
            1 => Kind::StockPublisher,
            2 => Kind::StockRequester,
            _ => Kind::Native,
        };
        let number = self.parties.len();
        let credentials = self.broker.path_of(NAMES[name]);
        let after = self.sequence();
        let mut party = Party::start(kind, name, number, &credentials, self.dice.below(2) as usize);
        if kind == Kind::StockSubscriber {
            let prefix = *self.dice.of(&PREFIXES);
            party.tell(format_args!("sub 1 {prefix}"));
            let wanted = format!("\"{prefix}\"*");
            eventually("the stock subscription", || {
                let table = ask(self.broker.auditor(), "subscriptions");
                let mut rows = table.as_array().unwrap().iter();
                rows.any(|row| row["peer"] == NAMES[name] && row["filter"] == wanted.as_str()).then_some(())
            });
            let from = Span { after, before: self.sequence() };
            party.lanes.push(Lane::stock(prefix.to_owned(), from));
        }
        self.parties.push(party);
    }

    fn subscribe(&mut self) {
        let Some(at) = self.any(|kind| kind == Kind::Native) else { return };
        let filter = (*self.dice.of(&FILTERS)).to_owned();
        let policy = self.dice.below(party::POLICIES.len() as u64) as usize;
        let (messages, bytes) = *self.dice.of(&[(0, 0), (1, 0), (4, 0), (50, 0), (0, 100_000)]);
        // A member of a group has that one lane: rows count by name.
        let lanes = self.parties[at].lanes.len();
        let is_member = self.parties[at].lanes.iter().any(|lane| lane.group.is_some());
        let group = (lanes == 0 && self.dice.one_in(4)).then(|| "g".to_owned());
        if is_member || lanes >= 4 {
            return;
        }
        let retained = self.dice.one_in(5);
        let id = lanes + 1;
        let party = &mut self.parties[at];
        party.tell(format_args!(
            "sub {id} {filter} {policy} {messages} {bytes} {} {}",
            group.as_deref().unwrap_or("-"),
            u8::from(retained)
        ));
        let overflow = party::POLICIES[policy];
        if let Some(from) = party.awaits_subscription(id) {
            let from = Span { after: from - 1, before: from - 1 };
            party.lanes.push(Lane {
                id,
                filter,
                overflow,
                group,
                retained,
                from,
                until: None,
                stalled: false,
            });
        } else {
            // Its number is used up, and the lane is none.
            let from = Span { after: u64::MAX, before: u64::MAX };
            party.lanes.push(Lane::none(id, from));
        }
    }

    fn publish(&mut self) {
        let Some(at) = self.any(|kind| matches!(kind, Kind::Native | Kind::StockPublisher)) else { return };
        let topic = *self.dice.of(&TOPICS);
        let (count, bytes) =
            *self.dice.of(&[(1, 10), (20, 10), (200, 10), (30, 2000), (40, 20_000), (60, 110_000)]);
        let mode = *self.dice.of(&["plain", "plain", "plain", "wait", "ack", "retain"]);
        let count = if mode == "ack" { count.min(20) } else { count };
        self.parties[at].order(topic, count, bytes, mode);
        self.under_way += count * (bytes + 100);
        if self.under_way > UNDER_WAY_MAX {
            self.let_the_auditor_catch_up();
        }
    }

    fn ask(&mut self) {
        let able = |kind| matches!(kind, Kind::Native | Kind::StockRequester);
        let Some(at) = self.any(able) else { return };
        let (topic, count) = (*self.dice.of(&ASKED), *self.dice.of(&[1, 3, 20]));
        self.parties[at].ask(topic, count);
    }

    fn serve(&mut self) {
        let Some(at) = self.any(|kind| kind == Kind::Native) else { return };
        let filter = *self.dice.of(&SERVED);
        if self.parties[at].serves < 2 {
            self.parties[at].serve(filter);
        }
    }

    /// Only a brake: publishers that are held or were killed never send what they were told to.
    fn let_the_auditor_catch_up(&mut self) {
        let count = || self.seen.lock().unwrap().len();
        let (mut before, mut since) = (count(), Instant::now());
        while since.elapsed() < Duration::from_millis(150) {
            std::thread::sleep(Duration::from_millis(5));
            if count() != before {
                (before, since) = (count(), Instant::now());
            }
        }
        self.under_way = 0;
    }

    fn stall(&mut self) {
        let Some(at) = self.any(|kind| kind == Kind::Native) else { return };
        let Some(lane) = self.parties[at].some_lane(&mut self.dice) else { return };
        self.parties[at].stall(lane);
    }

    fn resume(&mut self) {
        let Some(at) = self.any(|kind| kind == Kind::Native) else { return };
        let Some(lane) = self.parties[at].some_lane(&mut self.dice) else { return };
        self.parties[at].resume(lane);
    }

    fn unsubscribe(&mut self) {
        let Some(at) = self.any(|kind| kind == Kind::Native) else { return };
        let Some(lane) = self.parties[at].some_lane(&mut self.dice) else { return };
        let after = self.sequence();
        self.parties[at].unsubscribe(lane, after);
    }

    fn stop(&mut self) {
        if let Some(at) = self.any(|_| true) {
            self.parties[at].signal(Signal::SIGSTOP);
            self.parties[at].stopped = true;
        }
    }

    fn go_on(&mut self) {
        for party in self.parties.iter_mut().filter(|party| party.stopped && !party.is_gone()) {
            party.signal(Signal::SIGCONT);
            party.stopped = false;
        }
    }

    fn kill(&mut self) {
        let alive: Vec<usize> = (0..self.parties.len()).filter(|at| !self.parties[*at].is_gone()).collect();
        if alive.is_empty() {
            return;
        }
        let (at, after) = (*self.dice.of(&alive), self.sequence());
        self.note_cut(at);
        self.parties[at].kill(after);
        if self.parties[at].kind == Kind::StockPublisher {
            // The end of one whose socket was full stands behind what it had sent, and nobody can see it before that
            // is read: no subscriber may hold it.
            self.go_on();
            self.parties.iter_mut().filter(|party| !party.is_gone()).for_each(Party::resume_all);
        }
        self.until_gone(at);
    }

    fn close(&mut self) {
        if let Some(at) = self.any(|kind| kind == Kind::Native) {
            self.close_party(at);
        }
    }

    fn close_party(&mut self, at: usize) {
        let after = self.sequence();
        self.note_cut(at);
        self.parties[at].close(after);
        self.until_gone(at);
    }

    fn has_session(&self, at: usize) -> bool {
        let peers = ask(self.broker.auditor(), "peers");
        peers.as_array().unwrap().iter().any(|row| row["peer"] == NAMES[self.parties[at].name])
    }

    /// To be asked after the sequence up to which its lanes shall have got everything.
    fn note_cut(&mut self, at: usize) {
        self.parties[at].cut = !self.has_session(at);
    }

    /// Waits until the broker has no session of the party's name.
    fn until_gone(&mut self, at: usize) {
        eventually("the session to be gone", || (!self.has_session(at)).then_some(()));
    }

    fn edit(&mut self) {
        let name = self.dice.below(NAMES.len() as u64) as usize;
        let permissions = rights(self.dice.below(5));
        let after = self.sequence();
        self.broker.store.set_permissions(&NAMES[name].parse().unwrap(), &permissions).unwrap();
        self.edits.push(Edit { name, span: Span { after, before: self.until_read() }, permissions });
    }

    /// Lets the broker read the registry, which it does before each handshake, and gives its sequence.
    fn until_read(&self) -> u64 {
        drop(crate::harness::ledger::auditor(&self.broker.store, &self.broker.endpoints));
        self.sequence()
    }

    fn revoke(&mut self) {
        let name = self.dice.below(NAMES.len() as u64) as usize;
        let peer = NAMES[name].parse().unwrap();
        let permissions = self.edits.iter().rfind(|edit| edit.name == name).unwrap().permissions.clone();
        let (after, current) = (self.sequence(), self.current(name));
        current.into_iter().for_each(|at| self.note_cut(at));
        self.broker.store.revoke(&peer).unwrap();
        self.until_read();
        if let Some(at) = current {
            self.until_gone(at);
            // A stopped process learns it later, and what it has received counts.
            if self.parties[at].stopped {
                self.parties[at].signal(Signal::SIGCONT);
                self.parties[at].stopped = false;
            }
            self.parties[at].was_revoked(after);
        }
        self.broker.store.issue(&peer, &permissions, &self.broker.endpoints, None).unwrap();
        self.until_read();
    }

    /// Lets everybody finish: nothing is stopped, stalled or under way afterwards.
    fn come_to_rest(&mut self) {
        self.go_on();
        let live: Vec<usize> = (0..self.parties.len()).filter(|at| !self.parties[*at].is_gone()).collect();
        for at in &live {
            self.parties[*at].resume_all();
        }
        for at in &live {
            match self.parties[*at].kind {
                Kind::Native => {
                    self.parties[*at].finish_orders();
                    self.parties[*at].await_answers();
                }
                Kind::StockRequester => {
                    self.parties[*at].await_answers();
                    self.parties[*at].finished = true;
                }
                Kind::StockPublisher => {
                    self.parties[*at].await_orders();
                    self.close_party(*at);
                    self.parties[*at].finished = true;
                }
                Kind::StockSubscriber => {}
            }
        }
        let auditor = self.broker.auditor();
        eventually("every send queue to be empty", || {
            let rows = assert_balances(auditor);
            rows.iter().all(|row| row.queued == 0).then_some(())
        });
        for at in live {
            self.parties[at].drain();
        }
        let expected: u64 = assert_balances(auditor)
            .iter()
            .filter(|row| row.subscriber == AUDITOR)
            .map(|row| row.delivered)
            .sum();
        eventually("the auditor to have written down all it got", || {
            (self.seen.lock().unwrap().len() as u64 >= expected).then_some(())
        });
    }
}

/// Writes down everything that is published.
fn listen(broker: &BrokerProcess, seen: Arc<Mutex<Vec<Entry>>>) {
    let options = SubscribeOptions::default().overflow(Overflow::DropNewest);
    let client = broker.auditor().clone();
    let mut subscription = wait(client.subscribe(&"#".parse().unwrap(), options)).unwrap();
    drop(client);
    std::thread::spawn(move || {
        while let Some(event) = wait(subscription.next()) {
            seen.lock().unwrap().push(match event {
                Event::Message(message) => Entry::of(&message),
                Event::Gap { reason, .. } if reason == "disconnected" => return,
                gap @ Event::Gap { .. } => panic!("the auditor lost something: {gap:?}"),
            });
        }
    });
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..3 {
        world.connect();
    }
    for _ in 0..ACTIONS {
        world.act();
        assert_balances(world.broker.auditor());
    }
    world.come_to_rest();
    check::everything(&world);
}

#[allow(clippy::print_stdout, reason = "a soak takes hours, and is read meanwhile")]
fn say(seed: u64, is_failed: bool) {
    println!("INTERLOCK_SEED={seed} {}", if is_failed { "failed" } else { "came through" });
}

#[test]
fn whatever_is_stalled_stopped_killed_or_revoked_the_ledger_agrees_with_what_every_party_counted() {
    let (first, runs) = (seed("ledger oracle"), environment("INTERLOCK_ORACLE_RUNS").unwrap_or(RUNS));
    let failed: Vec<u64> = (first..first + runs)
        .filter(|seed| {
            let is_failed = std::panic::catch_unwind(|| run(*seed)).is_err();
            if is_failed || (seed - first + 1).is_multiple_of(100) {
                say(*seed, is_failed);
            }
            is_failed
        })
        .collect();
    assert!(failed.is_empty(), "{} of {runs} runs failed; seeds {failed:?}", failed.len());
}
