//! Random operations against the plainest form: a list of deliveries, and the rule said in a sentence.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const BOUNDS: LaneBounds =
    LaneBounds { window: 6, run: 3, messages: 4, bytes: 10, messages_all: 1000, wait_max_ms: 1000 };

fn name(consumer: u8) -> PeerName {
    format!("c{consumer}").parse().unwrap()
}

fn id(consumer: u8, number: u64) -> DeliveryId {
    DeliveryId { number, consumer: name(consumer) }
}

/// One delivery as the storage has it.
#[derive(Clone, Debug)]
struct Plain {
    key: u8,
    bytes: u64,
    attempts: u32,
    due_ms: u64,
    state: PlainState,
    /// Opened again by somebody else: those behind it may be in front by the time it is known.
    is_reopened: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum PlainState {
    Open,
    InHand,
    Over,
}

#[derive(Clone, Debug)]
enum Operation {
    Accept {
        consumer: u8,
        key: u8,
        bytes: u64,
    },
    BeginRead,
    EndRead {
        fails: bool,
    },
    Sweep,
    Take,
    Acknowledge {
        which: usize,
    },
    Settle,
    Retry {
        which: usize,
        wait_ms: u64,
        lost: bool,
    },
    NotLeased {
        which: usize,
    },
    Absent {
        consumer: u8,
    },
    Serves {
        consumer: u8,
    },
    /// Somebody drops a message.
    Drop {
        which: usize,
    },
    /// Somebody makes a finished one pending again.
    Reopen {
        which: usize,
    },
    Time {
        ms: u64,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    prop_oneof![
        6 => (0..3u8, 0..3u8, 1..7u64).prop_map(|(consumer, key, bytes)| Accept { consumer, key, bytes }),
        4 => Just(BeginRead),
        4 => any::<bool>().prop_map(|fails| EndRead { fails }),
        1 => Just(Sweep),
        6 => Just(Take),
        4 => (0..100usize).prop_map(|which| Acknowledge { which }),
        3 => Just(Settle),
        2 => (0..100usize, 0..50u64, any::<bool>()).prop_map(|(which, wait_ms, lost)| Retry { which, wait_ms, lost }),
        1 => (0..100usize).prop_map(|which| NotLeased { which }),
        1 => (0..3u8).prop_map(|consumer| Absent { consumer }),
        1 => (0..3u8).prop_map(|consumer| Serves { consumer }),
        1 => (0..100usize).prop_map(|which| Drop { which }),
        1 => (0..100usize).prop_map(|which| Reopen { which }),
        3 => (0..40u64).prop_map(|ms| Time { ms }),
    ]
}

/// Lanes, and the storage they are told about.
struct World {
    lanes: Lanes,
    kept: BTreeMap<(u8, u64), Plain>,
    next_number: u64,
    now_ms: u64,
    /// A read under way, and what it has seen.
    read: Option<(Read, Vec<OpenDelivery>)>,
    /// Ended and not settled.
    ended: Vec<(u8, u64)>,
    absent: [bool; 3],
}

impl World {
    fn new() -> Self {
        let lanes = Lanes::new(BOUNDS);
        let kept = BTreeMap::new();
        Self {
            lanes,
            kept,
            next_number: 1,
            now_ms: 10_000,
            read: None,
            ended: Vec::new(),
            absent: [false; 3],
        }
    }

    fn consumer_of(name: &PeerName) -> u8 {
        name.as_str()[1..].parse().unwrap()
    }

    /// The `which`-th delivery in a state.
    fn pick(&self, state: PlainState, which: usize) -> Option<(u8, u64)> {
        let candidates: Vec<_> = self
            .kept
            .iter()
            .filter(|(key, plain)| plain.state == state && !self.ended.contains(key))
            .collect();
        (!candidates.is_empty()).then(|| *candidates[which % candidates.len()].0)
    }

    fn begin_read(&mut self) {
        if self.read.is_some() {
            return;
        }
        let Some(read) = self.lanes.begin_read() else { return };
        let consumer = Self::consumer_of(&read.consumer);
        let open = self.kept.range((consumer, read.after + 1)..(consumer + 1, 0));
        let found = open
            .filter(|(_, plain)| plain.state != PlainState::Over)
            .take(read.limit)
            .map(|((consumer, number), plain)| OpenDelivery {
                id: id(*consumer, *number),
                key: plain.key.to_string(),
                bytes: plain.bytes,
                attempts: plain.attempts,
                due_ms: plain.due_ms,
            })
            .collect();
        self.read = Some((read, found));
    }

    fn end_read(&mut self, fails: bool) {
        match self.read.take() {
            Some((read, _)) if fails => self.lanes.unread(&read.consumer),
            Some((read, found)) => self.lanes.loaded(&read.consumer, found, self.now_ms),
            None => {}
        }
    }

    fn settle(&mut self) {
        for (consumer, number) in std::mem::take(&mut self.ended) {
            self.kept.get_mut(&(consumer, number)).unwrap().state = PlainState::Over;
            self.lanes.gone(&id(consumer, number));
        }
    }

    /// Takes, and judges what was taken by the rule.
    fn take(&mut self) -> usize {
        let runs = self.lanes.take(self.now_ms);
        let mut taken = 0;
        for run in runs {
            let consumer = Self::consumer_of(&run.consumer);
            let of = |number: u64| &self.kept[&(consumer, number)];
            let key = of(run.numbers[0]).key;
            assert!(run.numbers.len() <= BOUNDS.run && run.numbers.is_sorted());
            for number in &run.numbers {
                let plain = of(*number);
                assert_eq!(plain.key, key, "a run is of one lane");
                assert_ne!(plain.state, PlainState::InHand, "{number} is in hand already");
                assert!(
                    plain.due_ms <= self.now_ms || plain.state == PlainState::Over,
                    "{number} is not due"
                );
                // Nothing of its lane that is open and stands in front of it is left behind.
                for ((_, earlier), plain) in self.kept.range((consumer, 0)..(consumer, *number)) {
                    let is_in_front =
                        plain.key == key && plain.state != PlainState::Over && !plain.is_reopened;
                    let is_ended = self.ended.contains(&(consumer, *earlier));
                    assert!(
                        !is_in_front || is_ended || run.numbers.contains(earlier),
                        "{number} overtakes {earlier}"
                    );
                }
            }
            for number in run.numbers {
                let plain = self.kept.get_mut(&(consumer, number)).unwrap();
                match plain.state {
                    // Dropped meanwhile: the lease leaves it out.
                    PlainState::Over => self.lanes.gone(&id(consumer, number)),
                    _ => {
                        plain.state = PlainState::InHand;
                        plain.attempts += 1;
                        taken += 1;
                    }
                }
            }
            let in_hand: Vec<&Plain> = self
                .kept
                .range((consumer, 0)..(consumer + 1, 0))
                .filter(|(key, plain)| plain.state == PlainState::InHand && !self.ended.contains(key))
                .map(|(_, plain)| plain)
                .collect();
            assert!(in_hand.len() <= BOUNDS.messages);
            let bytes: u64 = in_hand.iter().map(|plain| plain.bytes).sum();
            assert!(bytes <= BOUNDS.bytes || in_hand.len() == 1, "{bytes} bytes are in hand");
        }
        taken
    }

    fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Accept { consumer, key, bytes } => {
                let plain =
                    Plain { key, bytes, attempts: 0, due_ms: 0, state: PlainState::Open, is_reopened: false };
                self.kept.insert((consumer, self.next_number), plain);
                self.next_number += 1;
                self.lanes.news(&name(consumer));
            }
            Operation::BeginRead => self.begin_read(),
            Operation::EndRead { fails } => self.end_read(fails),
            Operation::Sweep => {
                self.lanes.sweep();
                // The storage says who is waited for. What it holds is known when it has been read.
                (0..3).for_each(|consumer| self.lanes.meet(&name(consumer)));
            }
            Operation::Take => drop(self.take()),
            Operation::Acknowledge { which } => {
                if let Some((consumer, number)) = self.pick(PlainState::InHand, which) {
                    self.lanes.ended(&id(consumer, number));
                    self.ended.push((consumer, number));
                }
            }
            Operation::Settle => self.settle(),
            Operation::Retry { which, wait_ms, lost } => {
                if let Some((consumer, number)) = self.pick(PlainState::InHand, which) {
                    // What is behind it in its run was not sent.
                    let key = self.kept[&(consumer, number)].key;
                    let behind: Vec<u64> = self
                        .kept
                        .range((consumer, number)..(consumer + 1, 0))
                        .filter(|(at, plain)| {
                            plain.key == key && plain.state == PlainState::InHand && !self.ended.contains(at)
                        })
                        .map(|((_, number), _)| *number)
                        .collect();
                    for number in behind.iter().skip(1) {
                        self.back((consumer, *number));
                    }
                    let plain = self.kept.get_mut(&(consumer, number)).unwrap();
                    (plain.state, plain.due_ms) = (PlainState::Open, self.now_ms + wait_ms);
                    let said = self.lanes.consumers[&name(consumer)].said;
                    let lost = lost.then_some(said);
                    self.lanes.waits(&id(consumer, number), plain.attempts, plain.due_ms, lost);
                }
            }
            Operation::NotLeased { which } => {
                if let Some(at) = self.pick(PlainState::InHand, which) {
                    self.back(at);
                }
            }
            Operation::Absent { consumer } => {
                let said = self.lanes.consumers.get(&name(consumer)).map_or(0, |consumer| consumer.said);
                if self.lanes.absent(&name(consumer), said, self.now_ms) {
                    self.absent[usize::from(consumer)] = true;
                }
                assert!(
                    !self.lanes.absent(&name(consumer), said + 1, self.now_ms),
                    "older words are not believed"
                );
            }
            Operation::Serves { consumer } => {
                self.lanes.serves(&name(consumer));
                self.absent[usize::from(consumer)] = false;
                for (_, plain) in self.kept.range_mut((consumer, 0)..(consumer + 1, 0)) {
                    // The storage keeps what it was told; who was lost is due now all the same.
                    plain.due_ms = plain.due_ms.min(self.now_ms);
                }
            }
            Operation::Drop { which } => {
                if let Some(at) = self.pick(PlainState::Open, which) {
                    self.kept.get_mut(&at).unwrap().state = PlainState::Over;
                }
            }
            Operation::Reopen { which } => {
                if let Some(at) = self.pick(PlainState::Over, which) {
                    let plain = self.kept.get_mut(&at).unwrap();
                    (plain.state, plain.attempts, plain.due_ms, plain.is_reopened) =
                        (PlainState::Open, 0, 0, true);
                }
            }
            Operation::Time { ms } => self.now_ms += ms,
        }
    }

    fn back(&mut self, (consumer, number): (u8, u64)) {
        let plain = self.kept.get_mut(&(consumer, number)).unwrap();
        (plain.state, plain.attempts) = (PlainState::Open, plain.attempts - 1);
        self.lanes.back(&id(consumer, number));
    }

    fn read_all(&mut self) {
        self.end_read(false);
        loop {
            self.begin_read();
            if self.read.is_none() {
                return;
            }
            self.end_read(false);
        }
    }

    /// What the rule allows when nothing is in hand and everything is known: of each lane, by the number of its head, what
    /// is due from the head on, up to an even share.
    fn plain_take(&self, consumer: u8) -> Vec<Vec<u64>> {
        let mut lanes: BTreeMap<u8, Vec<(u64, &Plain)>> = BTreeMap::new();
        for ((_, number), plain) in self.kept.range((consumer, 0)..(consumer + 1, 0)) {
            if plain.state == PlainState::Open {
                lanes.entry(plain.key).or_default().push((*number, plain));
            }
        }
        let mut lanes: Vec<_> = lanes.into_values().filter(|lane| lane[0].1.due_ms <= self.now_ms).collect();
        lanes.sort_by_key(|lane| lane[0].0);
        let longest = BOUNDS.run.min(BOUNDS.messages.div_ceil(lanes.len().max(1)));
        let (mut runs, mut messages, mut bytes) = (Vec::new(), 0, 0);
        for lane in lanes {
            let mut run = Vec::new();
            for (number, plain) in lane {
                let fits = messages < BOUNDS.messages && run.len() < longest && plain.due_ms <= self.now_ms;
                let is_alone = plain.attempts > 0 && !run.is_empty();
                if !fits || is_alone || (bytes + plain.bytes > BOUNDS.bytes && messages > 0) {
                    break;
                }
                run.push(number);
                messages += 1;
                bytes += plain.bytes;
                if plain.attempts > 0 {
                    break;
                }
            }
            if run.is_empty() {
                break;
            }
            runs.push(run);
        }
        runs
    }

    /// From here on nothing fails: everything that is open is taken, in order, within as many rounds as there are deliveries.
    fn drain(&mut self) {
        self.settle();
        while let Some(at) = self.pick(PlainState::InHand, 0) {
            self.back(at);
        }
        for consumer in 0..3 {
            self.apply(Operation::Serves { consumer });
        }
        self.apply(Operation::Sweep);
        self.end_read(true);
        self.read_all();
        self.now_ms += 2000;
        let rounds = self.kept.len() + 1;
        for _ in 0..rounds {
            self.read_all();
            for consumer in 0..3 {
                let open = self.kept.range((consumer, 0)..(consumer + 1, 0));
                let open = open.filter(|(_, plain)| plain.state == PlainState::Open).count();
                if open < BOUNDS.window {
                    let taken = self.lanes.consumers.get(&name(consumer)).map(|_| self.plain_take(consumer));
                    let mut probe: Vec<Vec<u64>> = Vec::new();
                    if let Some(lanes) = self.lanes.consumers.get_mut(&name(consumer)) {
                        lanes.take(self.now_ms, BOUNDS.messages, &BOUNDS, |numbers, _| probe.push(numbers));
                        probe.iter().flatten().for_each(|number| lanes.release(*number));
                        assert_eq!(Some(probe), taken, "consumer {consumer}");
                    }
                }
            }
            if self.take() == 0 {
                break;
            }
            while let Some((consumer, number)) = self.pick(PlainState::InHand, 0) {
                self.lanes.ended(&id(consumer, number));
                self.ended.push((consumer, number));
            }
            self.settle();
        }
        let left: Vec<_> = self.kept.iter().filter(|(_, plain)| plain.state != PlainState::Over).collect();
        assert!(left.is_empty(), "never taken: {left:?}");
    }
}

/// Random runs: a few per cent of the soak, or as many as are asked for.
fn cases() -> u32 {
    std::env::var("INTERLOCK_LANES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(256)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_taken_keeps_the_rule_and_nothing_is_left_behind(
        operations in prop::collection::vec(operation(), 0..200)
    ) {
        let mut world = World::new();
        for operation in operations {
            world.apply(operation);
        }
        world.drain();
    }
}

fn found(consumer: u8, number: u64, key: &str, bytes: u64) -> OpenDelivery {
    OpenDelivery { id: id(consumer, number), key: key.to_owned(), bytes, attempts: 0, due_ms: 0 }
}

fn loaded(consumers: &[(u8, Vec<OpenDelivery>)]) -> Lanes {
    let mut lanes = Lanes::new(LaneBounds::default());
    for (consumer, found) in consumers {
        lanes.news(&name(*consumer));
        assert!(lanes.begin_read().is_some());
        lanes.loaded(&name(*consumer), found.clone(), 1);
    }
    lanes
}

fn numbers(runs: &[Run]) -> Vec<(&str, &[u64])> {
    runs.iter().map(|run| (run.consumer.as_str(), &run.numbers[..])).collect()
}

#[test]
fn a_consumer_with_everything_in_hand_and_an_absent_one_delay_nobody_else() {
    let many = |consumer| (1..=100).map(|number| found(consumer, number, "k", 1)).collect();
    let mut lanes = loaded(&[(0, many(0)), (1, many(1)), (2, many(2))]);
    let first = lanes.take(1);
    assert_eq!(first.len(), 3);
    assert!(lanes.absent(&name(1), 0, 1));
    for number in &first[2].numbers {
        lanes.ended(&id(2, *number));
    }
    let next: Vec<u64> = (33..=64).collect();
    assert_eq!(numbers(&lanes.take(1)), [("c2", &next[..])]);
}

#[test]
fn a_consumer_that_always_has_news_does_not_keep_others_from_being_read() {
    let mut lanes = Lanes::new(BOUNDS);
    let mut read = Vec::new();
    for _ in 0..4 {
        (0..2).for_each(|consumer| lanes.news(&name(consumer)));
        let next = lanes.begin_read().unwrap();
        lanes.loaded(&next.consumer, Vec::new(), 1);
        read.push(next.consumer);
    }
    assert_eq!(read, [0, 1, 0, 1].map(name));
}

#[test]
fn many_lanes_share_what_may_be_in_hand_and_a_single_one_has_all_of_it() {
    let of_key = |number: u64| found(0, number, &format!("k{}", number % 100), 1);
    let mut lanes = loaded(&[(0, (1..=300).map(of_key).collect())]);
    let first: Vec<u64> = lanes.take(1).into_iter().flat_map(|run| run.numbers).collect();
    assert_eq!(first, (1..=32).collect::<Vec<_>>(), "the oldest, of as many lanes");
    lanes.ended(&id(0, 1));
    assert_eq!(numbers(&lanes.take(1)), [("c0", &[33][..])]);

    let two = |number: u64| found(0, number, if number.is_multiple_of(2) { "a" } else { "b" }, 1);
    let mut lanes = loaded(&[(0, (1..=100).map(two).collect())]);
    assert_eq!(lanes.take(1).into_iter().map(|run| run.numbers.len()).collect::<Vec<_>>(), [16, 16]);
    let mut lanes = loaded(&[(0, (1..=100).map(|number| found(0, number, "a", 1)).collect())]);
    assert_eq!(lanes.take(1)[0].numbers.len(), 32);
}

#[test]
fn no_more_is_read_while_many_lanes_may_be_sent_and_what_waits_for_its_time_holds_up_nothing() {
    let of_own_key = |number: u64| found(0, number, &number.to_string(), 1);
    let mut lanes = loaded(&[(0, (1..=200).map(of_own_key).collect())]);
    lanes.news(&name(0));
    assert_eq!(lanes.begin_read(), None, "enough is known");
    for (number, run) in (1..).zip(lanes.take(1)) {
        assert_eq!(run.numbers, [number]);
        lanes.ended(&id(0, number));
    }
    while let Some(run) = lanes.take(1).first() {
        run.numbers.iter().for_each(|number| lanes.waits(&id(0, *number), 1, 900, None));
    }
    let read = lanes.begin_read().expect("all of them wait for their time");
    assert_eq!((read.after, read.limit), (200, limits::READ));
}

#[test]
fn a_large_message_goes_alone_and_is_not_overtaken_for_its_size() {
    let large = LaneBounds::default().bytes;
    let all = vec![found(0, 1, "a", 1), found(0, 2, "b", 2 * large), found(0, 3, "c", 1)];
    let mut lanes = loaded(&[(0, all)]);
    assert_eq!(numbers(&lanes.take(1)), [("c0", &[1][..])]);
    assert_eq!(numbers(&lanes.take(1)), []);
    lanes.ended(&id(0, 1));
    assert_eq!(numbers(&lanes.take(1)), [("c0", &[2][..])]);
    lanes.ended(&id(0, 2));
    assert_eq!(numbers(&lanes.take(1)), [("c0", &[3][..])]);
}

#[test]
fn of_an_absent_consumer_one_delivery_tries_and_the_others_wait() {
    let all = (1..=3).map(|number| found(0, number, &number.to_string(), 1)).collect();
    let mut lanes = loaded(&[(0, all)]);
    assert_eq!(lanes.take(1).len(), 3);
    (1..=3).for_each(|number| lanes.back(&id(0, number)));
    assert!(lanes.absent(&name(0), 0, 7));
    assert_eq!(lanes.take(1), []);
    lanes.try_absent();
    assert_eq!(numbers(&lanes.take(1)), [("c0", &[1][..])]);
    assert_eq!(lanes.take(1), []);
    assert!(!lanes.absent(&name(0), 0, 9), "it was absent before");
    lanes.back(&id(0, 1));
    let (_, standing) = lanes.standings().next().unwrap();
    assert_eq!((standing.absent_since_ms, standing.known), (Some(7), 3));
    // It says that it serves while an attempt that was sent before is told that nobody does.
    assert!(lanes.serves(&name(0)));
    assert!(!lanes.absent(&name(0), 0, 9), "the word is older than its own");
    assert_eq!(lanes.take(1).len(), 3);
}

#[test]
fn what_was_lost_with_its_consumer_is_due_when_that_is_back_also_if_it_is_before_the_failure_is_saved() {
    let mut lanes = loaded(&[(0, (1..=2).map(|number| found(0, number, &number.to_string(), 1)).collect())]);
    let runs = lanes.take(1);
    assert_eq!(numbers(&runs), [("c0", &[1][..]), ("c0", &[2][..])]);
    lanes.waits(&id(0, 1), 1, 900, Some(runs[0].said));
    assert_eq!(lanes.take(2), []);
    lanes.serves(&name(0));
    lanes.waits(&id(0, 2), 1, 900, Some(runs[1].said));
    assert_eq!(numbers(&lanes.take(2)), [("c0", &[1][..]), ("c0", &[2][..])]);
    // What failed in its hands waits for its time, whatever it says.
    lanes.waits(&id(0, 1), 2, 900, None);
    lanes.serves(&name(0));
    assert_eq!(lanes.take(3), []);
}

#[test]
fn a_time_far_away_is_no_longer_than_the_longest_wait() {
    let mut far = found(0, 1, "k", 1);
    far.due_ms = u64::MAX;
    let mut lanes = Lanes::new(BOUNDS);
    lanes.news(&name(0));
    assert!(lanes.begin_read().is_some());
    lanes.loaded(&name(0), vec![far.clone()], 100);
    assert_eq!((lanes.take(100), lanes.next_due_ms()), (vec![], Some(1100)));
    // A later look does not move it on.
    lanes.sweep();
    assert!(lanes.begin_read().is_some());
    lanes.loaded(&name(0), vec![far], 1000);
    assert_eq!(lanes.next_due_ms(), Some(1100));
    assert_eq!(numbers(&lanes.take(1100)), [("c0", &[1][..])]);
}

#[test]
fn what_waits_too_long_for_an_absent_consumer_is_taken_oldest_first() {
    let all: Vec<_> = (1..=40).map(|number| found(0, number, "k", 1)).collect();
    let mut lanes = loaded(&[(0, all)]);
    assert_eq!(lanes.take_overdue(u64::MAX), None);
    assert!(lanes.absent(&name(0), 0, 50));
    assert_eq!(lanes.take_overdue(49), None);
    let run = lanes.take_overdue(50).unwrap();
    assert_eq!(run.numbers, (1..=32).collect::<Vec<_>>());
    assert_eq!(lanes.take_overdue(50), None, "one run at a time");
}
