//! One thing from all sides: a topic, a peer, an actor, a message, the last refusal.

use serde_json::{Value, json};

use super::{
    columns::{Mark, ago, bytes_text, count},
    picture::{Picture, Refusal},
    tail::TailMessage,
};
use crate::tool::table;

/// What the broker is asked for a detail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Topic(String),
    Why { peer: String, operation: String, topic: String },
}

impl Question {
    /// The topic it is asked on, and its payload.
    pub(super) fn asked(&self) -> (&'static str, Value) {
        match self {
            Self::Topic(topic) => ("$sys/broker/topic", json!({ "topic": topic })),
            Self::Why { peer, operation, topic } => {
                ("$sys/broker/why", json!({ "peer": peer, "operation": operation, "topic": topic }))
            }
        }
    }
}

/// A line of a detail.
pub(super) type Row = (String, Mark);

fn row(text: impl Into<String>) -> Row {
    (text.into(), Mark::Plain)
}

/// What is shown over the table.
#[derive(Clone, Debug)]
pub(super) struct Detail {
    pub(super) title: String,
    known: Vec<Row>,
    /// What is asked for, and what was answered.
    asked: Vec<(Question, Vec<Row>)>,
    scroll: usize,
}

impl Detail {
    fn new(title: String, known: Vec<Row>, questions: Vec<Question>) -> Self {
        let asked = questions.into_iter().map(|question| (question, vec![row("the broker is asked")]));
        Self { title, known, asked: asked.collect(), scroll: 0 }
    }

    pub(super) fn of_topic(topic: &str) -> Self {
        Self::new(format!("Topic {topic}"), Vec::new(), vec![Question::Topic(topic.to_owned())])
    }

    pub(super) fn of_peer(picture: &Picture, name: &str) -> Self {
        let title = format!("Peer {name}");
        let Some(peer) = picture.peers.iter().find(|peer| peer.peer == name) else {
            return Self::new(title, vec![row("it has gone")], Vec::new());
        };
        let mut known = vec![
            row(format!(
                "{}, {} sessions, {} subscriptions, since {}",
                peer.state,
                peer.sessions,
                peer.subscriptions,
                ago(picture.broker.now_ms, peer.since_ms)
            )),
            row(format!(
                "published {}, delivered {}, queued {} ({}, fullest {}%)",
                count(peer.published),
                count(peer.delivered),
                count(peer.queued),
                bytes_text(peer.queued_bytes as f64),
                peer.fill_percent
            )),
            match peer.dropped + peer.denied {
                0 => row("nothing lost, nothing denied"),
                _ => (format!("lost {}, denied {}", count(peer.dropped), count(peer.denied)), Mark::Bad),
            },
            row(""),
        ];
        known.extend(peer.places.iter().map(|place| row(format!("session  {place}"))));
        let mut its =
            picture.refusals.iter().filter(|refusal| refusal.peer.as_deref() == Some(name)).peekable();
        let why = its.peek().and_then(|refusal| refusal.question());
        known.extend(its.map(|refusal| refusal.row(picture.broker.now_ms)));
        known.push(row(""));
        Self::new(title, known, why.into_iter().collect())
    }

    pub(super) fn of_actor(picture: &Picture, name: &str) -> Self {
        let title = format!("Actor {name}");
        let Some(actor) = picture.actors.rows().iter().find(|actor| actor.name == name) else {
            return Self::new(title, vec![row("it has gone")], Vec::new());
        };
        let supervisor = match actor.supervisor.as_str() {
            "" => "the root",
            supervisor => supervisor,
        };
        let mut known = vec![
            row(format!("{}, {}, below {supervisor}", actor.kind, actor.state)),
            row(format!(
                "since {}, {} restarts, {} inputs wait",
                ago(picture.broker.now_ms, actor.since_ms),
                actor.restarts,
                actor.mailbox
            )),
            row(if actor.reason.is_empty() {
                "it says nothing of itself".to_owned()
            } else {
                actor.reason.clone()
            }),
        ];
        if let Some(failure) = &actor.last_failure {
            known.push((format!("last failure: {failure}"), Mark::Bad));
        }
        known.push(row(""));
        known.push(row(format!("`interlock explain {name}` says what will be done about a failure")));
        Self::new(title, known, Vec::new())
    }

    pub(super) fn of_message(message: &TailMessage) -> Self {
        let mut known = vec![
            row(format!("{}  from {}  {} bytes", message.time, message.origin, message.bytes)),
            row(format!("sequence {}", message.sequence)),
        ];
        known.extend(message.header.iter().map(row));
        known.push(row(""));
        known.push(row(message.text.clone()));
        Self::new(format!("Message on {}", message.topic), known, Vec::new())
    }

    pub(super) fn of_last_refusal(picture: Option<&Picture>) -> Self {
        let title = "Refused, newest first".to_owned();
        let Some(picture) = picture.filter(|picture| !picture.refusals.is_empty()) else {
            let text = "no connection and no operation was refused since the broker started";
            return Self::new(title, vec![row(text)], Vec::new());
        };
        let mut known: Vec<Row> =
            picture.refusals.iter().take(10).map(|refusal| refusal.row(picture.broker.now_ms)).collect();
        known.push(row(""));
        let why = picture.refusals.iter().find_map(Refusal::question);
        Self::new(title, known, why.into_iter().collect())
    }

    pub(super) fn questions(&self) -> impl Iterator<Item = Question> {
        self.asked.iter().map(|(question, _)| question.clone())
    }

    pub(super) fn asks(&self, question: &Question) -> bool {
        self.asked.iter().any(|(asked, _)| asked == question)
    }

    pub(super) fn answer(&mut self, question: &Question, answer: Result<Value, String>) {
        let rows = match (answer, question) {
            (Err(reason), _) => vec![(reason, Mark::Bad)],
            (Ok(answer), Question::Topic(_)) => topic_rows(&answer),
            (Ok(answer), Question::Why { peer, operation, topic }) => {
                let head = format!("why {peer} {operation} {topic}:");
                std::iter::once(row(head)).chain(steps(&answer)).collect()
            }
        };
        self.asked
            .iter_mut()
            .filter(|(asked, _)| asked == question)
            .for_each(|(_, old)| old.clone_from(&rows));
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.known.iter().chain(self.asked.iter().flat_map(|(_, rows)| rows))
    }

    pub(super) fn scroll_by(&mut self, lines: isize) {
        self.scroll = self.scroll.saturating_add_signed(lines);
    }

    pub(super) fn scroll_to(&mut self, line: usize) {
        self.scroll = line;
    }

    /// The first line that is shown, of so many lines in so much room; never further than the end.
    pub(super) fn scrolled(&self, lines: usize, room: usize) -> usize {
        self.scroll.min(lines.saturating_sub(room))
    }
}

impl Refusal {
    /// What to ask about it: what a peer was refused can be explained, a stranger's connection cannot.
    fn question(&self) -> Option<Question> {
        let (peer, (operation, topic)) = (self.peer.clone()?, self.operation.clone()?);
        Some(Question::Why { peer, operation, topic })
    }

    fn row(&self, now_ms: u64) -> Row {
        let who = self.peer.as_deref().unwrap_or("a stranger");
        let what = match &self.operation {
            Some((operation, topic)) => format!("{operation} {topic} {} times", self.count),
            None => "connect".to_owned(),
        };
        (format!("{} ago  {who}  {what}  {}: {}", ago(now_ms, self.at_ms), self.code, self.text), Mark::Bad)
    }
}

/// The steps of `why`.
fn steps(answer: &Value) -> impl Iterator<Item = Row> {
    answer["steps"].as_array().into_iter().flatten().map(|step| {
        let (mark, word) = if step["ok"] == true { (Mark::Plain, "ok") } else { (Mark::Bad, "NO") };
        let text = |field: &str| step[field].as_str().unwrap_or_default();
        (format!("{word}  {:<11}  {}", text("step"), text("text")), mark)
    })
}

/// What `bus info` says, in few lines.
fn topic_rows(answer: &Value) -> Vec<Row> {
    let statistics = &answer["statistics"];
    let mut rows = Vec::new();
    if !statistics.is_null() {
        rows.push(row(format!(
            "{} messages, {}, {} requests, largest {}, last {} ago",
            table::text(&statistics["messages"]),
            table::bytes(&statistics["bytes"]),
            table::text(&statistics["requests"]),
            table::bytes(&statistics["largest"]),
            table::age(&statistics["last_seen_ms"]),
        )));
        let rates = |field: &str, cell: fn(&Value) -> String| {
            ["1s", "10s", "60s"].map(|seconds| cell(&statistics[field][seconds])).join(" / ")
        };
        rows.push(row(format!(
            "{} msg/s, {} a second (over 1 / 10 / 60 s)",
            rates("messages_per_second", table::rate),
            rates("bytes_per_second", table::bytes)
        )));
    }
    if answer["held"] == true {
        rows.push(("publishers are held: a subscriber with the policy `wait` is full".to_owned(), Mark::Bad));
    }
    if !answer["retained"].is_null() {
        rows.push(row(format!("last value: {}", table::bytes(&answer["retained"]["payload_bytes"]))));
    }
    for (title, field) in
        [("publishers", "publishers"), ("subscribers", "subscribers"), ("servers", "servers")]
    {
        let peers = answer[field].as_array().map_or(&[][..], Vec::as_slice);
        rows.push(row(""));
        if peers.is_empty() {
            let mark = if field == "subscribers" { Mark::Warn } else { Mark::Faint };
            rows.push((format!("no {title}"), mark));
            continue;
        }
        rows.push((title.to_uppercase(), Mark::Faint));
        rows.extend(peers.iter().map(peer_row));
    }
    rows
}

fn peer_row(peer: &Value) -> Row {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let of_topic = &peer["of_topic"];
    let is_receiver = peer["filter"].is_string();
    // Of a publisher that may also mean that nobody was there.
    let dropped = if is_receiver { number(&of_topic["dropped"]) } else { 0 };
    let denied = number(&of_topic["denied"]);
    let mut parts = vec![table::text(&peer["peer"])];
    if let Some(filter) = peer["filter"].as_str() {
        parts.push(format!("{filter} ({})", table::text(&peer["overflow"])));
        parts.push(format!(
            "delivered {}, queued {}",
            number(&of_topic["delivered"]),
            number(&peer["queued"])
        ));
    } else {
        parts.push(format!("published {}", number(&of_topic["published"])));
    }
    let may = peer["permitted"] != false;
    parts.extend((!may).then(|| "MAY NOT".to_owned()));
    parts.extend((dropped > 0).then(|| format!("LOST {dropped}")));
    parts.extend((denied > 0).then(|| format!("DENIED {denied}")));
    let mark = if may && dropped + denied == 0 { Mark::Plain } else { Mark::Bad };
    (parts.join("  "), mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_refusal_is_explained_if_it_can_be() {
        let refusal = |peer: Option<&str>, operation: Option<&str>| Refusal {
            peer: peer.map(str::to_owned),
            operation: operation.map(|operation| (operation.to_owned(), "a/b".to_owned())),
            ..Refusal::default()
        };
        let refusals = vec![refusal(None, None), refusal(Some("ada"), Some("publish"))];
        let picture = Picture { refusals, ..Picture::default() };
        let mut detail = Detail::of_last_refusal(Some(&picture));
        let question = detail.questions().next().unwrap();
        let (peer, operation, topic) = ("ada".to_owned(), "publish".to_owned(), "a/b".to_owned());
        assert_eq!(question, Question::Why { peer, operation, topic });
        detail.answer(
            &question,
            Ok(json!({ "steps": [{ "step": "rule", "ok": false, "text": "denied by line 3" }] })),
        );
        let last = detail.rows().last().unwrap();
        assert_eq!(last, &("NO  rule         denied by line 3".to_owned(), Mark::Bad));
    }

    #[test]
    fn a_subscriber_that_loses_and_one_that_may_not_stand_out() {
        let answer = json!({
            "subscribers": [
                { "peer": "ui", "filter": "#", "permitted": false, "of_topic": {} },
                { "peer": "log", "filter": "a", "permitted": true, "of_topic": { "dropped": 4 } },
                { "peer": "fine", "filter": "a", "permitted": true, "of_topic": { "delivered": 9 } },
            ],
        });
        let marks: Vec<Mark> = topic_rows(&answer).iter().skip(4).map(|(_, mark)| *mark).take(3).collect();
        assert_eq!(marks, [Mark::Bad, Mark::Bad, Mark::Plain]);
    }

    #[test]
    fn nobody_scrolls_beyond_the_end() {
        let mut detail = Detail::of_topic("a");
        detail.scroll_by(100);
        assert_eq!((detail.scrolled(30, 10), detail.scrolled(5, 10)), (20, 0));
        detail.scroll_by(isize::MIN);
        assert_eq!(detail.scrolled(30, 10), 0);
    }
}
