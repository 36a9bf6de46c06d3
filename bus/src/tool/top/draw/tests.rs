//! What people see on 80 x 24 characters. The pictures lie in `pictures/`; `INTERLOCK_PICTURES=write` draws them anew, and
//! whoever does so looks at the difference.

use std::{collections::BTreeMap, time::Duration};

use ratatui::{Terminal, backend::TestBackend, style::Color};
use serde_json::json;

use super::*;
use crate::tool::top::{
    detail::Question,
    model::{Event, Key},
    picture::{ActorRow, Actors, Broker, PeerRow, Picture, Refusal, TopicRow},
    tail::TailMessage,
};

const NOW_MS: u64 = 1_000_000_000;

fn theme(has_color: bool) -> Theme {
    Theme { has_color, harmless: Harmless::ascii() }
}

fn topic(topic: &str, rate: f64, subscribers: u64, lost: u64) -> TopicRow {
    TopicRow {
        topic: topic.to_owned(),
        messages_per_second: rate,
        bytes_per_second: rate * 120.0,
        messages: (rate * 1000.0) as u64,
        subscribers,
        lost,
        last_seen_ms: NOW_MS - 2000,
        cells: (0..60).map(|cell| (rate as u64 * (cell % 9)) / 4).collect(),
        ..TopicRow::default()
    }
}

fn peer(peer: &str, state: &'static str, in_rate: f64, queued: u64, dropped: u64) -> PeerRow {
    PeerRow {
        peer: peer.to_owned(),
        state,
        sessions: u64::from(state != "absent"),
        in_rate: Some(in_rate),
        out_rate: Some(in_rate * 2.0),
        queued,
        fill_percent: queued / 10,
        dropped,
        since_ms: if state == "absent" { 0 } else { NOW_MS - 7_200_000 },
        ..PeerRow::default()
    }
}

fn actor(name: &str, state: &str, restarts: u64, reason: &str) -> ActorRow {
    ActorRow {
        name: name.to_owned(),
        state: state.to_owned(),
        restarts,
        reason: reason.to_owned(),
        since_ms: NOW_MS - 60_000,
        ..ActorRow::default()
    }
}

fn picture() -> Picture {
    let broker = Broker {
        version: "0.1.0".to_owned(),
        epoch: "e".to_owned(),
        started_ms: NOW_MS - 11_000_000,
        now_ms: NOW_MS,
        messages: 12_345_678,
        messages_per_second: 1234.0,
        bytes_per_second: 250_000.0,
        sessions: 12,
        requests_in_flight: 2,
        cells: (0..60).map(|cell| 100 + 37 * (cell % 7)).collect(),
        cell_seconds: 2,
        ..Broker::default()
    };
    let topics = vec![
        topic("conversation/turn/delta/v1", 812.5, 3, 0),
        topic("sensors/kitchen/temperature", 40.0, 1, 17),
        topic("sensors/attic/humidity", 0.5, 0, 0),
    ];
    let peers = vec![
        peer("conversation", "ok", 812.0, 0, 0),
        peer("recorder", "slow", 0.0, 950, 17),
        peer("sensor-7", "absent", 0.0, 0, 0),
    ];
    let actors = Actors::Tree(
        "degraded".to_owned(),
        vec![
            actor("broker", "running", 0, "listens on ipc:///run/bus.sock"),
            actor("model", "degraded", 3, "the model service refused the connection; next try in 4 s"),
        ],
    );
    Picture { broker, topics, peers, actors, refusals: Vec::new() }
}

/// A model that has seen two looks: between them something was lost and refused.
fn model() -> Model {
    let mut model = Model::new(Duration::from_secs(1));
    let mut before = picture();
    before.broker.now_ms -= 1000;
    model.on(Event::Picture(Box::new(before)));
    let mut now = picture();
    now.broker.lost = BTreeMap::from([("slow_consumer".to_owned(), 17)]);
    now.broker.denied = 2;
    now.refusals = vec![Refusal {
        at_ms: NOW_MS - 500,
        peer: Some("sensor-7".to_owned()),
        code: "not_permitted".to_owned(),
        text: "`sensor-7` may not publish `admin/stop`".to_owned(),
        operation: Some(("publish".to_owned(), "admin/stop".to_owned())),
        count: 2,
    }];
    model.on(Event::Picture(Box::new(now)));
    model
}

fn typed(model: &mut Model, keys: &str) {
    keys.chars().for_each(|key| drop(model.on(Event::Key(Key::Char(key)))));
}

fn drawn(model: &mut Model, (width, height): (u16, u16), theme: Theme) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let mut seen = Seen::default();
    terminal.draw(|frame| seen = draw(frame, model, theme)).unwrap();
    model.settle(seen.page, seen.scroll);
    terminal.backend().buffer().clone()
}

fn lines(buffer: &Buffer) -> Vec<String> {
    let row = |y| (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..buffer.area.height).map(|y| row(y).trim_end().to_owned()).collect()
}

/// Compares with the picture of that name.
fn shows(model: &mut Model, name: &str) {
    let text = lines(&drawn(model, (80, 24), theme(true))).join("\n") + "\n";
    let path = format!("{}/src/tool/top/draw/pictures/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("INTERLOCK_PICTURES").is_some_and(|value| value == "write") {
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "the picture `{name}` is another one now:\n{text}\nit was:\n{expected}");
}

#[test]
fn topics_with_their_rates_and_what_is_wrong_in_the_head() {
    shows(&mut model(), "topics");
}

#[test]
fn peers_with_queues_and_who_is_absent() {
    let mut model = model();
    typed(&mut model, "2");
    shows(&mut model, "peers");
}

#[test]
fn actors_with_the_reason_of_their_state() {
    let mut model = model();
    typed(&mut model, "3");
    shows(&mut model, "actors");
}

#[test]
fn messages_with_what_of_them_is_missing() {
    let mut model = model();
    typed(&mut model, "4");
    let message = |number: u64, text: &str| {
        TailItem::Message(TailMessage {
            filter: "conversation/turn/delta/v1".to_owned(),
            time: format!("2026-01-02T03:04:05.{number:03}Z"),
            topic: "conversation/turn/delta/v1".to_owned(),
            text: text.to_owned(),
            ..TailMessage::default()
        })
    };
    let gap = TailItem::Gap(Some(250), "slow_consumer".to_owned());
    let items = vec![message(1, "{\"index\":1,\"text\":\"so\"}"), gap, message(2, "\u{1b}[31mred\u{202e}")];
    model.on(Event::Tail(items));
    shows(&mut model, "messages");
}

#[test]
fn the_detail_of_a_topic() {
    let mut model = model();
    model.on(Event::Key(Key::Enter));
    let answer = json!({
        "statistics": {
            "messages": 812_500, "bytes": 97_500_000, "requests": 0, "largest": 4096, "last_seen_ms": 0,
            "messages_per_second": { "1s": 812.5, "10s": 800.0, "60s": 790.0 },
            "bytes_per_second": { "1s": 97_500, "10s": 96_000, "60s": 94_800 },
        },
        "publishers": [{ "peer": "conversation", "permitted": true, "of_topic": { "published": 812_500 } }],
        "subscribers": [{
            "peer": "recorder", "filter": "#", "overflow": "drop_newest", "permitted": true, "queued": 950,
            "of_topic": { "delivered": 811_533, "dropped": 17 },
        }],
    });
    model.on(Event::Answer(Question::Topic("conversation/turn/delta/v1".to_owned()), Ok(answer)));
    shows(&mut model, "detail");
}

#[test]
fn the_help_names_every_key() {
    let mut model = model();
    typed(&mut model, "?");
    shows(&mut model, "help");
}

#[test]
fn a_broker_that_has_gone_is_said_over_what_was_there() {
    let mut model = model();
    model.on(Event::Lost("connection reset by peer".to_owned()));
    shows(&mut model, "gone");
}

#[test]
fn without_colour_nothing_has_one_and_every_character_is_the_same() {
    for keys in ["", "2", "3", "4", "w", "?"] {
        let (mut one, mut other) = (model(), model());
        typed(&mut one, keys);
        typed(&mut other, keys);
        let (plain, colored) =
            (drawn(&mut one, (80, 24), theme(false)), drawn(&mut other, (80, 24), theme(true)));
        assert_eq!(lines(&plain), lines(&colored));
        let is_colored = |buffer: &Buffer| {
            buffer.content.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
        };
        assert!(!is_colored(&plain) && is_colored(&colored), "view {keys}");
    }
}

#[test]
fn a_terminal_that_is_too_small_is_told_what_is_needed() {
    let text = lines(&drawn(&mut model(), (40, 8), theme(true))).join("\n");
    assert!(text.contains("60 x 10") && text.contains("40 x 8") && text.contains("--once"), "{text}");
}

#[test]
fn no_size_is_drawn_beyond_its_edges() {
    for (width, height) in [(1, 1), (60, 10), (61, 11), (99, 10), (100, 30), (110, 12), (300, 100)] {
        for keys in ["", "2", "3", "4", "?", "w", "/x"] {
            let mut model = model();
            typed(&mut model, keys);
            drawn(&mut model, (width, height), theme(true));
            model.on(Event::Key(Key::Enter));
            drawn(&mut model, (width, height), theme(true));
        }
    }
}
