//! The path of one message as it is printed: a tree for people, an object a hop for programs.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    hop::{Hop, Outcome},
    path::Path,
    rule_text,
};
use crate::{
    error::RequestError,
    exit::Exit,
    peer::PeerName,
    tool::{Failure, Output},
    topic::TopicName,
};

/// A part of an answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) at: Duration,
    pub(super) bytes: usize,
    pub(super) text: String,
}

/// Everything that is known of the message.
#[derive(Debug)]
pub(super) struct Tree {
    /// `publish`, `request`, `next` or `dry`.
    mode: &'static str,
    pub(super) topic: TopicName,
    publisher: String,
    pub(super) is_request: bool,
    pub(super) path: Path,
    pub(super) hops: Vec<Hop>,
    pub(super) id: Option<Uuid>,
    pub(super) trace: Option<String>,
    pub(super) bytes: Option<usize>,
    pub(super) sequence: Option<u64>,
    /// The payload of a message that passed by.
    pub(super) text: Option<String>,
    /// When the broker had it in all queues, since the publish.
    pub(super) accepted: Option<Duration>,
    /// Subscribers that have it in their queue, and those that lost it, by the broker's word.
    pub(super) told: Option<(u32, u32)>,
    /// Refused: code and reason.
    pub(super) denied: Option<(String, String)>,
    /// From its publisher to here, of a message that passed by.
    pub(super) travelled: Option<Duration>,
    pub(super) replies: Vec<Reply>,
    /// When an answer ended, and as what, if not well.
    pub(super) ended: Option<(Duration, Option<RequestError>)>,
    pub(super) did_you_mean: Option<String>,
}

/// A time as it is measured: three digits that count.
fn span(time: Duration) -> String {
    match time.as_micros() {
        micros @ ..1000 => format!("{micros} us"),
        micros @ ..1_000_000 => format!("{:.2} ms", micros as f64 / 1e3),
        micros => format!("{:.2} s", micros as f64 / 1e6),
    }
}

impl Tree {
    pub(super) fn new(
        mode: &'static str,
        topic: &TopicName,
        publisher: &PeerName,
        path: &Path,
        is_request: bool,
    ) -> Self {
        Self {
            mode,
            topic: topic.clone(),
            publisher: publisher.to_string(),
            is_request,
            path: path.clone(),
            hops: Vec::new(),
            id: None,
            trace: None,
            bytes: None,
            sequence: None,
            text: None,
            accepted: None,
            told: None,
            denied: None,
            travelled: None,
            replies: Vec::new(),
            ended: None,
            did_you_mean: None,
        }
    }

    /// Whether the publisher may send it at all.
    fn is_permitted(&self) -> bool {
        self.denied.is_none() && if self.is_request { self.path.may_request } else { self.path.permitted }
    }

    pub(super) fn exit(&self) -> Exit {
        let is_lost = self.hops.iter().any(|hop| matches!(hop.outcome, Outcome::Dropped(_)));
        match &self.ended {
            Some((_, Some(error))) => Exit::from(error),
            _ if !self.is_permitted() => Exit::Denied,
            _ if is_lost => Exit::Full,
            _ if self.hops.iter().any(|hop| matches!(hop.outcome, Outcome::Queued(_))) => Exit::NotReady,
            _ if self.nobody() => Exit::Failed,
            _ => Exit::Done,
        }
    }

    /// Whether nobody gets it although it was sent, or might be.
    pub(super) fn nobody(&self) -> bool {
        !self.hops.iter().any(|hop| !matches!(hop.outcome, Outcome::Denied | Outcome::NotChosen))
            && !self.is_answered_by_the_broker()
    }

    fn is_answered_by_the_broker(&self) -> bool {
        self.is_request && self.topic.as_str().starts_with("$sys/broker/")
    }

    fn sender_rule(&self) -> &Value {
        if self.is_request { &self.path.request_rule } else { &self.path.rule }
    }

    pub(super) fn print(&self, output: &mut Output) -> Result<(), Failure> {
        if output.is_json() {
            return self.json_rows().iter().try_for_each(|row| output.json(row));
        }
        self.lines().iter().try_for_each(|line| {
            let line = output.harmless(line.trim_end());
            output.line(&line)
        })
    }

    fn json_rows(&self) -> Vec<Value> {
        let mut rows = vec![json!({
            "hop": "publisher", "mode": self.mode, "peer": self.publisher, "topic": self.topic, "id": self.id,
            "trace": self.trace, "bytes": self.bytes, "permitted": self.is_permitted(), "rule": self.sender_rule(),
            "denied": self.denied.as_ref().map(|(code, text)| json!({ "code": code, "text": text })),
        })];
        if self.is_permitted() {
            rows.push(json!({
                "hop": "broker", "accepted_us": self.accepted.map(|at| at.as_micros() as u64),
                "subscribers": self.told.map(|told| told.0), "dropped": self.told.map(|told| told.1),
                "sequence": self.sequence, "travelled_us": self.travelled.map(|time| time.as_micros() as u64),
                "held": self.path.held, "nobody": self.nobody(), "did_you_mean": self.did_you_mean,
            }));
        }
        rows.extend(self.hops.iter().map(Hop::as_json));
        rows.extend(self.replies.iter().enumerate().map(|(number, reply)| {
            json!({
                "hop": "reply", "part": number + 1, "at_us": reply.at.as_micros() as u64, "bytes": reply.bytes,
                "text": reply.text,
            })
        }));
        if let Some((at, error)) = &self.ended {
            let error = error.as_ref().map(ToString::to_string);
            rows.push(json!({ "hop": "end", "at_us": at.as_micros() as u64, "error": error }));
        }
        rows
    }

    fn lines(&self) -> Vec<String> {
        let mut about = vec![self.topic.to_string()];
        about.extend(self.bytes.map(|bytes| format!("{bytes} bytes")));
        about.extend(self.id.map(|id| format!("id {id}")));
        let mut lines = vec![about.join("  ")];
        lines.extend(self.text.as_ref().map(|text| format!("  {text}")));
        let verb = if self.is_request { "request" } else { "publish" };
        lines.push(format!("{}  may {verb}: {}", self.publisher, rule_text(self.sender_rule())));
        if !self.is_permitted() {
            let why =
                self.denied.as_ref().map(|(code, text)| format!(" ({code}): {text}")).unwrap_or_default();
            lines.push(format!("`--X DENIED{why}"));
            lines.push(format!("`bus why {} {verb} {}` explains it", self.publisher, self.topic));
            return lines;
        }
        lines.push(format!("`--> broker  {}", self.broker_words()));
        let mut ends = self.end_lines();
        let last = ends.len().saturating_sub(1);
        for (at, end) in ends.iter_mut().enumerate() {
            let branch = if at == last { '`' } else { '|' };
            lines.push(format!("     {branch}{end}"));
        }
        if let Some(trace) = self.trace.as_ref().filter(|_| self.mode != "dry") {
            lines.push(format!("what it caused is in the log: interlock logs --trace {trace}"));
        }
        lines
    }

    fn broker_words(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.accepted.map(|at| format!("accepted by {}", span(at))));
        words.extend(self.sequence.map(|sequence| format!("sequence {sequence}")));
        words.extend(
            self.travelled.map(|time| format!("{} from its publisher to here, by the clocks", span(time))),
        );
        if let Some((subscribers, dropped)) = self.told {
            let plural = if subscribers == 1 { "" } else { "s" };
            words.push(format!("queued for {subscribers} subscriber{plural}"));
            words.extend((dropped > 0).then(|| format!("DROPPED for {dropped}")));
        }
        words.extend((self.mode == "dry").then(|| "nothing is sent".to_owned()));
        words.extend(self.path.held.then(|| "HELD: a subscriber with the policy `wait` is full".to_owned()));
        words.join(", ")
    }

    /// The ends of the path, each with its arrow.
    fn end_lines(&self) -> Vec<String> {
        let width = |cell: fn(&Hop) -> usize| self.hops.iter().map(cell).max().unwrap_or_default();
        let (peers, filters) =
            (width(|hop| hop.peer.chars().count()), width(|hop| hop.filter.chars().count()));
        let mut lines: Vec<String> = self
            .hops
            .iter()
            .map(|hop| {
                let arrow = if hop.is_bad() { "--X" } else { "-->" };
                let at = hop.at.map(|at| format!(" by {}", span(at))).unwrap_or_default();
                let policy = if hop.is_server { "serves" } else { &hop.overflow };
                let group = hop.group.as_ref().map(|group| format!(" group {group}")).unwrap_or_default();
                let rule = rule_text(&hop.rule);
                format!(
                    "{arrow} {:<peers$}  {:<filters$}  {policy:<11}{group}  {}{at}  [{rule}]",
                    hop.peer,
                    hop.filter,
                    hop.words().1
                )
            })
            .collect();
        if self.is_answered_by_the_broker() {
            lines.push("--> the broker itself answers".to_owned());
        } else if self.nobody() {
            lines.push(self.nobody_words());
        }
        lines.extend(self.replies.iter().enumerate().map(|(number, reply)| {
            format!(
                "<-- reply {} after {}, {} bytes: {}",
                number + 1,
                span(reply.at),
                reply.bytes,
                reply.text
            )
        }));
        if let Some((at, error)) = &self.ended {
            lines.push(match error {
                None => format!("<-- the answer ended after {}", span(*at)),
                Some(error) => format!("<-X after {}: {error}", span(*at)),
            });
        }
        lines
    }

    fn nobody_words(&self) -> String {
        let mean =
            self.did_you_mean.as_ref().map(|name| format!("; did you mean {name}?")).unwrap_or_default();
        match (self.is_request, self.path.servers.is_empty()) {
            (true, _) => format!("--X no active server{mean}"),
            (false, true) => format!("--X no active subscriber: nobody gets it{mean}"),
            (false, false) => {
                let servers: Vec<&str> =
                    self.path.servers.iter().map(|server| server.peer.as_str()).collect();
                let names = servers.join(", ");
                format!("--X no active subscriber: nobody gets it; {names} serves it, so ask with --request")
            }
        }
    }
}
