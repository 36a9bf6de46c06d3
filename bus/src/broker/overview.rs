//! What somebody who watches the bus asks for again and again, in one bounded answer: the busiest topics with their
//! recent past, the sessions, and what was lost or refused.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use serde_json::{Value, json};

use super::{
    control::{Question, by_reason, name_of, receivers},
    hub::{Hub, Session},
    ledger::{Counts, DROP_REASONS},
    statistics::{Rates, TopicId, TopicStatistics},
};
use crate::{peer::PeerName, topic::TopicName};

/// Topics of an answer unless the question names a number, and at most: more rows than anybody reads, and not more than a
/// few hundred kilobytes a second for somebody who asks each second.
const TOPICS: (usize, usize) = (200, 1000);
/// Sessions of an answer at most: those that have lost the most, then those with the most in their queues.
const SESSIONS: usize = 500;
/// Registered peers without a session that are named.
const ABSENT: usize = 200;
/// Refusals and denials that are shown, newest first.
const REFUSED: usize = 50;
/// The recent past of a topic: so many sums of messages, each over so many seconds.
const CELLS: (u64, u64) = (60, 2);
/// What counts as recent among refusals, in milliseconds.
const RECENT_MS: u64 = 60_000;

/// Messages by topic and reason that were lost.
type Dropped = HashMap<Option<TopicName>, [u64; DROP_REASONS.len()]>;

/// Which topics are asked for.
struct Wanted<'a> {
    containing: Option<&'a str>,
    /// Also the bus's own, which begin with `$`.
    own: bool,
}

impl Wanted<'_> {
    fn takes(&self, name: &str) -> bool {
        (self.own || !name.starts_with('$')) && self.containing.is_none_or(|part| name.contains(part))
    }
}

/// The answer. The question may hold `topics`, how many at most, `containing`, a part of their names, and `own`, which is
/// `false` if the bus's own topics are to be left out.
pub(super) fn overview(hub: &Hub, question: &Question) -> Result<Value, String> {
    let most = question.number("topics").map_or(TOPICS.0, |most| most as usize).min(TOPICS.1);
    let wanted = Wanted { containing: question.optional_text("containing"), own: !question.is_false("own") };
    let rates = hub.statistics.rates(hub.now_ms);
    let (dropped, all_dropped) = dropped(hub);
    let (chosen, left_out) = busiest(hub, &rates, &wanted, most);
    let (first_cell, cells, all_cells) = cells(hub, &chosen);
    let sides = [receivers(hub, false), receivers(hub, true)];
    let topics = chosen.iter().zip(cells).map(|((id, row), cells)| {
        let count = |side: &[(&super::hub::Matcher, BTreeSet<&PeerName>)]| {
            let Some(topic) = &row.topic else { return 0 };
            let matching = side.iter().filter(|(matcher, _)| matcher.matches(topic));
            matching.flat_map(|(_, names)| names).collect::<BTreeSet<_>>().len()
        };
        let [subscribers, servers] = [count(&sides[0]), count(&sides[1])];
        let [messages_per_second, bytes_per_second] = super::control::rates(&rates[id.0 as usize]);
        json!({
            "topic": name_of(row), "messages": row.messages, "bytes": row.bytes, "requests": row.requests,
            "denied": row.denied, "messages_per_second": messages_per_second, "bytes_per_second": bytes_per_second,
            "last_seen_ms": row.last_seen_ms, "publishers": row.publishers.len(), "subscribers": subscribers,
            "servers": servers, "dropped": dropped.get(&row.topic).map(by_reason), "cells": cells,
        })
    });
    let topics: Value = topics.collect();
    let known = hub.statistics.topics().count();
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"), "epoch": hub.epoch, "started_ms": hub.started_ms,
        "now_ms": hub.now_ms, "totals": totals(hub, &rates, &all_dropped), "topics_known": known, "topics_left_out": left_out,
        "topics": topics,
        "cell_seconds": CELLS.1, "first_cell": first_cell, "cells": all_cells, "sessions": sessions(hub),
        "absent": absent(hub), "refused": refused(hub), "denied": denied(hub),
        "registry_problem": hub.security.registry_problem.as_ref().map(|(problem, _)| problem),
    }))
}

/// What was lost of each topic, and in all.
fn dropped(hub: &Hub) -> (Dropped, [u64; DROP_REASONS.len()]) {
    let (mut topics, mut all) = (Dropped::new(), Counts::default());
    for (key, counts) in hub.ledger.rows().filter(|(_, counts)| counts.dropped.iter().any(|count| *count > 0))
    {
        all.add(&counts);
        let sums = topics.entry(key.topic).or_default();
        sums.iter_mut().zip(counts.dropped).for_each(|(sum, count)| *sum += count);
    }
    (topics, all.dropped)
}

/// The topics with the most messages over the last seconds; among those that rest, the ones that were seen last. And how
/// many there are beyond.
fn busiest<'a>(
    hub: &'a Hub,
    rates: &[Rates],
    wanted: &Wanted<'_>,
    most: usize,
) -> (Vec<(TopicId, &'a TopicStatistics)>, usize) {
    let mut rows: Vec<_> = hub.statistics.topics().filter(|(_, row)| wanted.takes(name_of(row))).collect();
    let rank = |(id, row): &(TopicId, &TopicStatistics)| {
        // Over ten seconds; whole messages are fine enough to rank.
        let [_, (messages, _), _] = rates[id.0 as usize];
        Reverse(((10.0 * messages) as u64, row.last_seen_ms))
    };
    if rows.len() > most && most > 0 {
        rows.select_nth_unstable_by_key(most - 1, rank);
    }
    let left_out = rows.len().saturating_sub(most);
    rows.truncate(most);
    rows.sort_by_key(rank);
    (rows, left_out)
}

/// The past of each topic and of all together, with the number of the first cell. The present cell, which is not over,
/// is left out.
fn cells(hub: &Hub, chosen: &[(TopicId, &TopicStatistics)]) -> (u64, Vec<Vec<u64>>, Vec<u64>) {
    let (count, seconds) = CELLS;
    let end = hub.now_ms / 1000 / seconds;
    let first = end.saturating_sub(count);
    let places: HashMap<u32, usize> = chosen.iter().enumerate().map(|(at, (id, _))| (id.0, at)).collect();
    let mut cells = vec![vec![0; (end - first) as usize]; chosen.len()];
    let mut all = vec![0; (end - first) as usize];
    hub.statistics.each_bucket(first * seconds, end * seconds, |second, topic, bucket| {
        let cell = (second / seconds - first) as usize;
        all[cell] += bucket.messages;
        if let Some(place) = places.get(&topic) {
            cells[*place][cell] += bucket.messages;
        }
    });
    (first, cells, all)
}

fn totals(hub: &Hub, rates: &[Rates], dropped: &[u64; DROP_REASONS.len()]) -> Value {
    let (mut messages, mut bytes) = (0, 0);
    let mut sums = Rates::default();
    for (id, row) in hub.statistics.topics() {
        messages += row.messages;
        bytes += row.bytes;
        for (sum, rate) in sums.iter_mut().zip(rates[id.0 as usize]) {
            *sum = (sum.0 + rate.0, sum.1 + rate.1);
        }
    }
    let [messages_per_second, bytes_per_second] = super::control::rates(&sums);
    let denied: u64 = hub.denials.all().iter().map(|denial| denial.count).sum();
    let earliest = hub.now_ms.saturating_sub(RECENT_MS);
    let refused_recently = hub.refusals.last().filter(|refusal| refusal.at_ms >= earliest).count();
    json!({
        "messages": messages, "bytes": bytes, "messages_per_second": messages_per_second,
        "bytes_per_second": bytes_per_second, "dropped": by_reason(dropped), "denied": denied,
        "refused": hub.refusals.counts().values().sum::<u64>(), "refused_recently": refused_recently,
        "requests_in_flight": hub.requests.in_flight(), "sessions": hub.each_session().count(),
    })
}

fn sessions(hub: &Hub) -> Value {
    let queued = |session: &Session| session.lanes.iter().map(|lane| lane.queue.depth()).sum::<u64>();
    let mut sessions: Vec<_> = hub.each_session().collect();
    sessions.sort_by_key(|(_, session)| Reverse((session.counts.dropped, queued(session))));
    let rows = sessions.into_iter().take(SESSIONS).map(|(id, session)| {
        // Of the queue that is fullest, in hundredths of its bound.
        let fill = session.lanes.iter().map(|lane| {
            let (bounds, waiting) = (lane.queue.bounds(), lane.queue.waiting());
            let part = |has: usize, most: usize| 100 * has / most.max(1);
            part(waiting.0, bounds.0).max(part(waiting.1, bounds.1))
        });
        json!({
            "session": id.to_string(), "peer": session.info.peer, "kind": session.info.kind,
            "address": session.info.address, "program": session.program, "connected_ms": session.opened_ms,
            "subscriptions": session.lanes.len(), "published": session.counts.published,
            "delivered": session.counts.delivered, "dropped": session.counts.dropped,
            "denied": session.counts.denied, "queued": queued(session), "fill_percent": fill.max(),
            "queued_bytes": session.lanes.iter().map(|lane| lane.queue.depth_bytes()).sum::<u64>(),
            "slow": session.lanes.iter().any(|lane| lane.slow.is_some()), "held_topics": session.held.len(),
        })
    });
    rows.collect()
}

/// Who is registered and has no session.
fn absent(hub: &Hub) -> Value {
    let present: BTreeSet<&PeerName> = hub.each_session().map(|(_, session)| &session.info.peer).collect();
    let registered: BTreeMap<_, _> = hub.security.roster.peers.iter().collect();
    let rows = registered.into_iter().filter(|(peer, _)| !present.contains(*peer)).take(ABSENT);
    rows.map(|(peer, registered)| {
        json!({ "peer": peer, "key": registered.state, "expired": registered.has_expired(hub.now_ms) })
    })
    .collect()
}

/// Connections, newest first.
fn refused(hub: &Hub) -> Value {
    let refused: Vec<_> = hub.refusals.last().collect();
    refused.into_iter().rev().take(REFUSED).map(|refusal| json!(refusal)).collect()
}

/// Operations, newest first.
fn denied(hub: &Hub) -> Value {
    hub.denials.all().into_iter().take(REFUSED).map(|denial| json!(denial)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        broker::hub::fixture,
        native::{Block, Record},
    };

    fn hub() -> (Hub, crate::broker::hub::SessionId) {
        let mut hub = Hub::new("broker".parse().unwrap(), 1_000_000);
        let publisher = hub.greeted("publisher");
        (hub, publisher)
    }

    fn ask(hub: &Hub, question: &str) -> Value {
        overview(hub, &Question::read(question.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn the_busiest_topics_come_first_with_their_past_and_no_more_than_were_asked_for() {
        let (mut hub, publisher) = hub();
        for (topic, messages) in [("rare", 1), ("busy", 50), ("other/rare", 2)] {
            for _ in 0..messages {
                hub.publish(publisher, Block::new(&topic.parse().unwrap(), b"", b"xy")).unwrap();
            }
        }
        hub.tick(1_004_000);
        let answer = ask(&hub, r#"{"topics":2,"own":false}"#);
        let names: Vec<_> = answer["topics"].as_array().unwrap().iter().map(|row| &row["topic"]).collect();
        assert_eq!(names, [&json!("busy"), &json!("other/rare")]);
        assert_eq!((&answer["topics_known"], &answer["topics_left_out"]), (&json!(4), &json!(1)));
        let last = answer["topics"][0]["cells"].as_array().unwrap().iter().filter_map(Value::as_u64);
        let rest = answer["cells"].as_array().unwrap().iter().filter_map(Value::as_u64);
        assert_eq!((last.sum::<u64>(), rest.sum::<u64>()), (50, 54));
        assert_eq!(
            answer["totals"]["dropped"],
            json!({ "no_subscriber": 54 }),
            "with an event of the broker"
        );
        let found = ask(&hub, r#"{"containing":"rare"}"#);
        assert_eq!(found["topics"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_session_that_loses_messages_comes_first_and_says_how_full_it_is() {
        let (mut hub, publisher) = hub();
        let (slow, _fast) = (hub.greeted("slow"), hub.greeted("fast"));
        let spec = fixture::subscription(1, false, "a");
        hub.record(slow, Record::Subscribe(crate::native::SubscribeSpec { queue_messages_max: 2, ..spec }));
        for _ in 0..5 {
            hub.publish(publisher, Block::new(&"a".parse().unwrap(), b"", b"1")).unwrap();
        }
        let answer = ask(&hub, "");
        let first = &answer["sessions"][0];
        assert_eq!(
            (&first["peer"], &first["dropped"], &first["queued"]),
            (&json!("slow"), &json!(3), &json!(2))
        );
        assert_eq!((&first["fill_percent"], &first["slow"]), (&json!(100), &json!(true)));
        let topic = answer["topics"].as_array().unwrap().iter().find(|row| row["topic"] == "a").unwrap();
        assert_eq!(topic["dropped"], json!({ "slow_consumer": 3 }));
    }
}
