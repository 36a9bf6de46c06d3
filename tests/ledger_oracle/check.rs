//! What must hold once everything has come to rest.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use interlock_bus::{Permissions, TopicFilter, TopicName, native::Overflow};

use super::{
    ASKED, Kind, Lane, NAMES, Party, TOPICS, World,
    journal::{Entry, Got, Id, Log},
};
use crate::harness::ledger::{AUDITOR, Row, assert_balances};

/// Everything that is known, in one place.
struct Known<'a> {
    world: &'a World,
    seen: &'a [Entry],
    sequences: HashMap<&'a Id, u64>,
    logs: Vec<Log>,
    rows: Vec<Row>,
    /// Those of requests.
    request_rows: Vec<Row>,
}

pub(super) fn everything(world: &World) {
    let seen = world.seen.lock().unwrap().clone();
    let rows = assert_balances(world.broker.auditor());
    let rows = rows.into_iter().filter(|row| NAMES.contains(&row.publisher.as_str()));
    let (request_rows, rows) = rows.partition(|row| ASKED.contains(&row.topic.as_str()));
    let log = |party: &Party| {
        let log = Log::read(&party.journal().0);
        Log { lost: log.lost || party.cut, ..log }
    };
    let logs = world.parties.iter().map(log).collect();
    let sequences = seen.iter().map(|entry| (&entry.id, entry.sequence)).collect();
    let known = Known { world, seen: &seen, sequences, logs, rows, request_rows };
    known.the_auditor_saw_every_publisher_in_order();
    known.what_was_published_was_seen_or_denied();
    for (party, log) in world.parties.iter().zip(&known.logs) {
        for lane in &party.lanes {
            known.what_came_was_due_and_in_order(party, log, lane);
            known.what_did_not_come_was_reported(party, log, lane);
        }
    }
    known.the_rows_of_each_subscriber_agree_with_what_it_got();
    known.one_member_of_a_group_got_each_message();
    known.each_request_was_taken_once_at_most_and_ended_once();
}

fn matches(lane: &Lane, party: &Party, topic: &str) -> bool {
    match party.kind {
        Kind::StockSubscriber => topic.starts_with(&lane.filter),
        _ => {
            let filter: TopicFilter = lane.filter.parse().unwrap();
            lane.from.after != u64::MAX && filter.matches(&topic.parse().unwrap())
        }
    }
}

/// Whether every message that `lane` was told of by name has come to it: nothing ended or renewed it.
fn is_whole(party: &Party, log: &Log, lane: &Lane) -> bool {
    !party.is_gone()
        && !log.lost
        && !log.over.contains(&lane.id)
        && lane.until.is_none()
        && lane.from.after != u64::MAX
}

impl Known<'_> {
    /// Whether a name had a right when this message was routed; `None` if that cannot be known.
    fn permitted(
        &self,
        name: usize,
        sequence: u64,
        right: impl Fn(&Permissions, &TopicName) -> bool,
        topic: &str,
    ) -> Option<bool> {
        let topic: TopicName = topic.parse().unwrap();
        let edits: Vec<_> = self.world.edits.iter().filter(|edit| edit.name == name).collect();
        let certain = edits.iter().rposition(|edit| edit.span.before < sequence).unwrap_or(0);
        let possible =
            edits[certain..].iter().take_while(|edit| edit.span.after < sequence || edit.span.after == 0);
        let answers: BTreeSet<bool> = possible.map(|edit| right(&edit.permissions, &topic)).collect();
        (answers.len() == 1).then(|| answers.contains(&true))
    }

    fn may_receive(&self, name: usize, sequence: u64, topic: &str) -> Option<bool> {
        self.permitted(name, sequence, |permissions, topic| permissions.subscribe.permit(topic), topic)
    }

    fn the_auditor_saw_every_publisher_in_order(&self) {
        let mut last: HashMap<(usize, &str), u64> = HashMap::new();
        let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for pair in self.seen.windows(2) {
            assert!(pair[0].sequence < pair[1].sequence, "the broker's order: {pair:?}");
        }
        for entry in self.seen {
            let (party, topic, number) = &entry.id;
            let before = last.insert((*party, topic), *number).unwrap_or(0);
            assert!(before < *number, "{entry:?} came after number {before}");
            let name = self.world.parties[*party].name;
            assert_eq!(entry.origin, NAMES[name]);
            let allowed = self.permitted(name, entry.sequence, |all, topic| all.publish.permit(topic), topic);
            assert_ne!(allowed, Some(false), "published without the right: {entry:?}");
            *counts.entry((&entry.origin, topic)).or_default() += 1;
        }
        for row in self.rows.iter().filter(|row| row.subscriber == AUDITOR) {
            let count = counts.remove(&(&row.publisher, &row.topic)).unwrap_or(0);
            assert_eq!((row.published, row.delivered), (count, count), "{row:?}");
        }
        assert!(counts.is_empty(), "seen and not in the ledger: {counts:?}");
    }

    fn what_was_published_was_seen_or_denied(&self) {
        let mut seen: HashMap<(usize, &str), u64> = HashMap::new();
        self.seen.iter().for_each(|entry| *seen.entry((entry.id.0, &entry.id.1)).or_default() += 1);
        for (name, peer) in NAMES.iter().enumerate() {
            let mut unseen: BTreeMap<&str, u64> = BTreeMap::new();
            let mut all_whole = true;
            // Refused with an error, by the broker or by the client's own knowledge of an earlier refusal.
            let mut refused: BTreeMap<&str, u64> = BTreeMap::new();
            for (party, log) in
                self.world.parties.iter().zip(&self.logs).filter(|(party, _)| party.name == name)
            {
                for (topic, number) in &log.acknowledged {
                    let id = (party.number, topic.clone(), *number);
                    assert!(self.sequences.contains_key(&id), "acknowledged and lost: {id:?}");
                }
                if log.lost || !party.finished {
                    all_whole = false;
                    continue;
                }
                log.refused.iter().for_each(|(topic, count)| *refused.entry(topic).or_default() += count);
                for (topic, number) in &log.numbers {
                    let seen = seen.get(&(party.number, topic.as_str())).copied().unwrap_or(0);
                    assert!(seen <= *number, "more came of {peer} on {topic} than it sent");
                    *unseen.entry(topic).or_default() += number - seen;
                }
            }
            for row in self.rows.iter().filter(|row| row.publisher == *peer && row.subscriber.is_empty()) {
                let unseen = unseen.remove(row.topic.as_str()).unwrap_or(0);
                let refused = refused.get(row.topic.as_str()).copied().unwrap_or(0);
                assert!(unseen <= row.denied + refused, "{unseen} of {peer}'s messages never came: {row:?}");
                assert!(
                    !all_whole || unseen >= row.denied,
                    "only {unseen} of {peer}'s did not come: {row:?}"
                );
            }
            for (topic, unseen) in unseen {
                let refused = refused.get(topic).copied().unwrap_or(0);
                assert!(unseen <= refused, "nobody counted {unseen} of {peer}'s messages on {topic}");
            }
        }
    }

    fn what_came_was_due_and_in_order(&self, party: &Party, log: &Log, lane: &Lane) {
        let mut last: HashMap<(usize, &str), u64> = HashMap::new();
        let who = || format!("{} (party {}, {lane:?})", NAMES[party.name], party.number);
        for got in log.got.get(&lane.id).into_iter().flatten() {
            let Got::Message { sequence, origin, id, retained } = got else { continue };
            let Some(real) = self.sequences.get(id).copied() else {
                panic!("{} got what was never sent: {got:?}", who())
            };
            if party.kind == Kind::Native {
                assert_eq!(*sequence, real, "{} {got:?}", who());
                assert_eq!(origin, NAMES[self.world.parties[id.0].name], "{} {got:?}", who());
            }
            assert!(matches(lane, party, &id.1), "{} got what it did not ask for: {got:?}", who());
            if *retained {
                assert!(lane.retained, "{} did not ask for last values: {got:?}", who());
                continue;
            }
            let allowed = self.may_receive(party.name, real, &id.1);
            assert_ne!(allowed, Some(false), "{} got what it may not have: {got:?}", who());
            assert!(real > lane.from.after, "{} got what was before it: {got:?}", who());
            let before = last.insert((id.0, &id.1), id.2).unwrap_or(0);
            assert!(before < id.2, "{} got number {before} before {got:?}", who());
        }
    }

    fn what_did_not_come_was_reported(&self, party: &Party, log: &Log, lane: &Lane) {
        if !is_whole(party, log, lane) || lane.group.is_some() || party.kind != Kind::Native {
            return;
        }
        let got = log.got.get(&lane.id).map_or(&[][..], Vec::as_slice);
        let came: HashSet<&Id> = got
            .iter()
            .filter_map(|got| match got {
                Got::Message { id, retained: false, .. } => Some(id),
                _ => None,
            })
            .collect();
        let gaps: u64 =
            got.iter()
                .map(|got| match got {
                    Got::Gap(count) => count
                        .unwrap_or_else(|| panic!("party {} lost nothing it could not count", party.number)),
                    Got::Message { .. } => 0,
                })
                .sum();
        let due = |entry: &&Entry| entry.sequence > lane.from.after && matches(lane, party, &entry.id.1);
        let missing: Vec<&Entry> =
            self.seen.iter().filter(due).filter(|entry| !came.contains(&entry.id)).collect();
        let may = |entry: &&&Entry| self.may_receive(party.name, entry.sequence, &entry.id.1);
        let surely = missing.iter().filter(|entry| may(entry) == Some(true)).count() as u64;
        let perhaps = missing.iter().filter(|entry| may(entry) != Some(false)).count() as u64;
        let who = format!("{} (party {}, {lane:?})", NAMES[party.name], party.number);
        // A last value that finds the queue full is lost, too, and was published before.
        let last_values = if lane.retained { TOPICS.len() as u64 } else { 0 };
        assert!(gaps <= perhaps + last_values, "{who}: {gaps} in gaps, {perhaps} did not come");
        if lane.overflow != Overflow::LatestOnly {
            assert!(
                gaps >= surely,
                "{who}: {gaps} in gaps, {surely} did not come, the last {:?}",
                missing.last()
            );
        }
    }

    /// Copies a party got, by publisher and topic: one for each message, whatever number of its
    /// subscriptions share it, and one for each last value.
    fn copies(&self, party: &Party, log: &Log) -> BTreeMap<(String, String), u64> {
        let (mut once, mut copies) = (HashSet::new(), BTreeMap::new());
        for got in log.got.values().flatten() {
            let Got::Message { id, retained, .. } = got else { continue };
            if *retained || once.insert(id) {
                let publisher = NAMES[self.world.parties[id.0].name].to_owned();
                *copies.entry((publisher, id.1.clone())).or_default() += 1;
            }
        }
        assert!(party.kind == Kind::Native || log.got.len() <= 1);
        copies
    }

    fn the_rows_of_each_subscriber_agree_with_what_it_got(&self) {
        for (name, peer) in NAMES.iter().enumerate() {
            let lives: Vec<(&Party, &Log)> =
                self.world.parties.iter().zip(&self.logs).filter(|(party, _)| party.name == name).collect();
            let mut copies: BTreeMap<(String, String), u64> = BTreeMap::new();
            for (party, log) in &lives {
                for (key, count) in self.copies(party, log) {
                    *copies.entry(key).or_default() += count;
                }
            }
            let whole = lives.iter().all(|(party, log)| {
                let lanes = party.lanes.iter().filter(|lane| lane.from.after != u64::MAX);
                lanes.clone().all(|lane| is_whole(party, log, lane)) && !party.is_gone()
            });
            let has_stock = lives.iter().any(|(party, _)| party.kind == Kind::StockSubscriber);
            let (mut delivered, mut ended, mut got) = (0, 0, 0);
            for row in self.rows.iter().filter(|row| row.subscriber == *peer) {
                let copies = copies.remove(&(row.publisher.clone(), row.topic.clone())).unwrap_or(0);
                delivered += row.delivered;
                ended += row.dropped("disconnected") + row.dropped("unsubscribed");
                got += copies;
                assert_eq!(row.queued, 0, "{row:?}");
                // What is in the kernel for a stock subscriber is delivered, and not in its journal yet.
                assert!(!whole || has_stock || row.delivered == copies, "{peer} got {copies}: {row:?}");
                self.published_is_within_bounds(&lives, row);
            }
            assert!(copies.is_empty(), "{peer} got what the ledger does not know: {copies:?}");
            assert!(got <= delivered + ended, "{peer} got {got}, {delivered} delivered, {ended} given up");
            // The one in hand when a process is killed may have been credited.
            let in_hand: u64 = lives.iter().map(|(party, _)| party.lanes.len() as u64).sum();
            assert!(has_stock || delivered <= got + in_hand, "{peer} got {got}, {delivered} delivered");
        }
    }

    /// Each message that matched counts once in each session, however many subscriptions shared it.
    fn published_is_within_bounds(&self, lives: &[(&Party, &Log)], row: &Row) {
        let (mut least, mut most) = (0, 0);
        for (party, log) in lives {
            let plain = |lane: &&Lane| matches(lane, party, &row.topic) && lane.group.is_none();
            for entry in
                self.seen.iter().filter(|entry| entry.origin == row.publisher && entry.id.1 == row.topic)
            {
                let surely = |lane: &Lane| {
                    !log.over.contains(&lane.id)
                        && entry.sequence > lane.from.before
                        && lane.until.is_none_or(|until| entry.sequence <= until)
                };
                least += u64::from(!log.lost && party.lanes.iter().filter(plain).any(surely));
                let mut matching = party.lanes.iter().filter(|lane| matches(lane, party, &row.topic));
                most += u64::from(matching.any(|lane| entry.sequence > lane.from.after));
            }
            let asked = party.lanes.iter().filter(|lane| lane.retained && matches(lane, party, &row.topic));
            // A session that is renewed asks again.
            most += if log.lost { 1000 } else { asked.count() as u64 };
        }
        let lives = || lives.iter().map(|(party, log)| (party.number, log.lost, party.cut, &party.lanes));
        assert!(
            (least..=most).contains(&row.published),
            "{least} to {most} were published: {row:?} {:?}",
            lives().collect::<Vec<_>>()
        );
    }

    fn each_request_was_taken_once_at_most_and_ended_once(&self) {
        let mut taken = HashSet::new();
        for request in self.logs.iter().flat_map(|log| &log.took) {
            assert!(taken.insert(*request), "{request:?} was taken twice");
        }
        // The one that a server has in hand when it is killed may have been credited.
        let in_hand: u64 = self.world.parties.iter().map(|party| party.serves as u64).sum();
        for (name, peer) in NAMES.iter().enumerate() {
            let lives = self.world.parties.iter().zip(&self.logs).filter(|(party, _)| party.name == name);
            let (mut asked, mut took) = (0, 0);
            for (party, log) in lives {
                let mut ended = BTreeSet::new();
                for (number, answer) in &log.ends {
                    assert!(ended.insert(*number), "{number} of party {} ended twice", party.number);
                    let own = (party.number, *number);
                    if let Some(answer) = answer {
                        assert_eq!(*answer, own, "party {} got the answer of another", party.number);
                        assert!(taken.contains(&own), "{own:?} was answered and never taken");
                    }
                }
                assert!(party.is_gone() || ended == log.asked, "not all ended of party {}", party.number);
                // It says so before it asks, and may be killed in between.
                asked += log.asked.len() as u64;
                took += taken.iter().filter(|(other, _)| *other == party.number).count() as u64;
            }
            let rows: Vec<&Row> = self.request_rows.iter().filter(|row| row.publisher == *peer).collect();
            let sum = |count: fn(&Row) -> u64| rows.iter().map(|row| count(row)).sum::<u64>();
            let published = sum(|row| row.published);
            assert!((took..=asked).contains(&published), "{took} taken, {asked} asked: {rows:?}");
            assert!(sum(|row| row.delivered) <= took + in_hand, "{took} taken: {rows:?}");
            assert_eq!(sum(|row| row.queued), 0, "{rows:?}");
        }
    }

    fn one_member_of_a_group_got_each_message(&self) {
        let mut got: HashMap<(&str, &Id), usize> = HashMap::new();
        for (party, log) in self.world.parties.iter().zip(&self.logs) {
            for lane in party.lanes.iter().filter(|lane| lane.group.is_some()) {
                for came in log.got.get(&lane.id).into_iter().flatten() {
                    let Got::Message { id, retained: false, .. } = came else { continue };
                    let other = got.insert((&lane.filter, id), party.number);
                    assert!(other.is_none(), "parties {other:?} and {} both got {came:?}", party.number);
                }
            }
        }
    }
}
