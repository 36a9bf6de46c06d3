//! What a party said, read back.

use std::collections::{BTreeMap, BTreeSet};

use interlock_bus::Message;

use super::party;

/// A message by what its publisher says of it: party, topic, number on the topic.
pub(super) type Id = (usize, String, u64);

/// A message as the auditor got it, which gets all of them.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) sequence: u64,
    pub(super) origin: String,
    pub(super) id: Id,
}

impl Entry {
    pub(super) fn of(message: &Message) -> Self {
        let (party, number) = party::parse(&message.payload);
        let id = (party, message.topic.to_string(), number);
        Self { sequence: message.sequence, origin: message.origin.to_string(), id }
    }
}

/// What came on one subscription.
#[derive(Clone, Debug)]
pub(super) enum Got {
    Message {
        /// Zero from a stock subscriber, which does not learn it.
        sequence: u64,
        /// `-` from a stock subscriber, likewise.
        origin: String,
        id: Id,
        retained: bool,
    },
    /// `None` if nobody knows how many.
    Gap(Option<u64>),
}

/// What one party said.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// By subscription.
    pub(super) got: BTreeMap<usize, Vec<Got>>,
    /// Messages given to the broker, by topic.
    pub(super) numbers: BTreeMap<String, u64>,
    pub(super) acknowledged: Vec<(String, u64)>,
    /// Publishes that asked for an acknowledgement and were refused, by topic.
    pub(super) refused: BTreeMap<String, u64>,
    /// Requests by their number, and how each ended: the party and the number that the answer says, or `None` for an
    /// error.
    pub(super) asked: BTreeSet<u64>,
    pub(super) ends: Vec<(u64, Option<(usize, u64)>)>,
    /// Requests it had in hand, by who asked and number.
    pub(super) took: Vec<(usize, u64)>,
    /// Subscriptions that the broker ended: they had lost a right.
    pub(super) over: BTreeSet<usize>,
    /// Whether its session was ever lost, or ended by the broker.
    pub(super) lost: bool,
}

impl Log {
    pub(super) fn read(lines: &[String]) -> Self {
        let mut log = Self::default();
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words[at].parse::<u64>().unwrap();
            match words[0] {
                "m" => {
                    let id = (number(5) as usize, words[4].to_owned(), number(6));
                    let (origin, retained) = (words[3].to_owned(), words[7] == "1");
                    let message = Got::Message { sequence: number(2), origin, id, retained };
                    log.got.entry(number(1) as usize).or_default().push(message);
                }
                "gap" => {
                    let gap = Got::Gap((words[2] != "?").then(|| number(2)));
                    log.got.entry(number(1) as usize).or_default().push(gap);
                }
                "pub" => drop(log.numbers.insert(words[1].to_owned(), number(2))),
                "ack" => log.acknowledged.push((words[1].to_owned(), number(2))),
                "refused" => *log.refused.entry(words[1].to_owned()).or_default() += 1,
                "asked" => drop(log.asked.insert(number(1))),
                "done" => log.ends.push((number(1), Some((number(2) as usize, number(3))))),
                "failed" => log.ends.push((number(1), None)),
                "took" => log.took.push((number(1) as usize, number(2))),
                "over" => drop(log.over.insert(number(1) as usize)),
                "lost" | "ended" => log.lost = true,
                _ => {}
            }
        }
        log
    }
}
