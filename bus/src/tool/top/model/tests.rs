//! Keys and events as a person and a broker would bring them.

use super::*;
use crate::tool::top::{
    picture::{PeerRow, TopicRow},
    tail::TailMessage,
};

fn picture(topics: &[(&str, u64)]) -> Picture {
    let row = |(topic, messages): &(&str, u64)| TopicRow {
        topic: (*topic).to_owned(),
        messages: *messages,
        messages_per_second: *messages as f64,
        ..TopicRow::default()
    };
    let peers = vec![PeerRow { peer: "ada".to_owned(), ..PeerRow::default() }];
    Picture { topics: topics.iter().map(row).collect(), peers, ..Picture::default() }
}

fn model(topics: &[(&str, u64)]) -> Model {
    let mut model = Model::new(Duration::from_secs(1));
    model.on(Event::Picture(Box::new(picture(topics))));
    model
}

fn typed(model: &mut Model, keys: &str) -> Vec<Order> {
    keys.chars().flat_map(|key| model.on(Event::Key(Key::Char(key)))).collect()
}

fn names(model: &Model) -> Vec<String> {
    model.grid().rows.into_iter().map(|line| line.name).collect()
}

fn selected(model: &Model) -> String {
    let grid = model.grid();
    grid.rows[model.selected_in(&grid)].name.clone()
}

#[test]
fn the_busiest_topic_comes_first_until_somebody_sorts_otherwise() {
    let mut model = model(&[("b", 5), ("a", 9), ("c", 1)]);
    assert_eq!(names(&model), ["a", "b", "c"]);
    typed(&mut model, "r");
    assert_eq!(names(&model), ["c", "b", "a"]);
    typed(&mut model, "S");
    assert_eq!(
        (names(&model), model.place().sort.map(|sort| sort.column)),
        (vec!["a".into(), "b".into(), "c".into()], Some(0))
    );
    typed(&mut model, "S");
    assert_eq!(model.place().sort.map(|sort| sort.column), Some(columns::TOPICS.len() - 1), "around the end");
}

#[test]
fn a_selected_row_stays_selected_wherever_it_goes_and_leaves_the_selection_at_the_first_when_it_is_gone() {
    let mut model = model(&[("a", 9), ("b", 5), ("c", 1)]);
    typed(&mut model, "j");
    assert_eq!(selected(&model), "b");
    model.on(Event::Picture(Box::new(picture(&[("a", 1), ("b", 2), ("c", 9)]))));
    assert_eq!((selected(&model), names(&model)), ("b".to_owned(), vec!["c".into(), "b".into(), "a".into()]));
    typed(&mut model, "jjjjj");
    assert_eq!(selected(&model), "a");
    model.on(Event::Picture(Box::new(picture(&[("x", 1), ("y", 2)]))));
    assert_eq!(selected(&model), "y");
    model.on(Event::Key(Key::End));
    assert_eq!(selected(&model), "x");
    model.on(Event::Key(Key::Home));
    assert_eq!(selected(&model), "y");
}

#[test]
fn each_letter_of_a_filter_counts_at_once_and_the_broker_is_asked_for_topics_beyond_the_busiest() {
    let mut model = model(&[("kitchen/heat", 9), ("attic/heat", 5)]);
    let orders = typed(&mut model, "/attic");
    assert_eq!((orders.len(), orders[0].clone(), model.topic_filter()), (5, Order::Look, "attic"));
    assert_eq!(names(&model), ["attic/heat"]);
    model.on(Event::Key(Key::Backspace));
    assert_eq!(model.topic_filter(), "atti");
    model.on(Event::Key(Key::Enter));
    assert!(typed(&mut model, "q").contains(&Order::Quit), "letters are keys again");
    assert!(model.on(Event::Key(Key::Esc)).contains(&Order::Look) && model.topic_filter().is_empty());
    assert_eq!(model.on(Event::Key(Key::Esc)), [Order::Quit], "there was nothing left to take back");
}

#[test]
fn esc_closes_what_lies_on_top_first_and_ctrl_c_ends_from_everywhere() {
    let mut model = model(&[("a", 1)]);
    let asked = model.on(Event::Key(Key::Enter));
    assert_eq!(asked, [Order::Ask(Question::Topic("a".to_owned()))]);
    typed(&mut model, "?");
    assert!(model.shows_help && model.detail.is_some());
    assert!(model.on(Event::Key(Key::Esc)).is_empty() && !model.shows_help && model.detail.is_some());
    assert!(model.on(Event::Key(Key::Esc)).is_empty() && model.detail.is_none());
    for keys in ["", "?", "/x"] {
        typed(&mut model, keys);
        assert_eq!(model.on(Event::Key(Key::Interrupt)), [Order::Quit]);
        model.on(Event::Key(Key::Esc));
    }
}

#[test]
fn an_open_detail_is_asked_for_again_with_each_look() {
    let mut model = model(&[("a", 1)]);
    let question = Question::Topic("a".to_owned());
    model.on(Event::Key(Key::Enter));
    let again = model.on(Event::Picture(Box::new(picture(&[("a", 2)]))));
    assert_eq!(again, [Order::Ask(question.clone())]);
    let answer = serde_json::json!({ "statistics": { "messages": 42 } });
    model.on(Event::Answer(question.clone(), Ok(answer)));
    let shows = |model: &Model, text: &str| {
        model.detail.as_ref().is_some_and(|detail| detail.rows().any(|(row, _)| row.contains(text)))
    };
    assert!(shows(&model, "42 messages"));
    model.on(Event::Answer(question, Err("the link is lost".to_owned())));
    assert!(shows(&model, "the link is lost"));
}

#[test]
fn who_pauses_sees_what_was_and_the_broker_is_told_what_is_wanted() {
    let mut model = model(&[("a", 1)]);
    assert_eq!(typed(&mut model, " "), [Order::Look]);
    model.on(Event::Picture(Box::new(picture(&[("b", 1)]))));
    assert_eq!(names(&model), ["a"]);
    typed(&mut model, " ");
    model.on(Event::Picture(Box::new(picture(&[("b", 1)]))));
    assert_eq!(names(&model), ["b"]);
    typed(&mut model, "a");
    assert!(model.shows_own);
    for (key, expected) in [("+", 2000), ("-", 1000), ("-", 500), ("-", 200), ("-", 200), ("i", 500)] {
        typed(&mut model, key);
        assert_eq!(model.interval, Duration::from_millis(expected), "{key}");
    }
}

#[test]
fn messages_are_those_of_the_selected_topic_and_followed_only_while_they_are_looked_at() {
    let mut model = model(&[("a", 9), ("b", 5)]);
    typed(&mut model, "j");
    assert_eq!(typed(&mut model, "4"), [Order::Follow(Some("b".to_owned()))]);
    let message = TailMessage { filter: "b".to_owned(), text: "hello".to_owned(), ..TailMessage::default() };
    model.on(Event::Tail(vec![TailItem::Message(message)]));
    model.on(Event::Key(Key::Enter));
    assert!(model.detail.as_ref().is_some_and(|detail| detail.rows().any(|(row, _)| row == "hello")));
    model.on(Event::Key(Key::Esc));
    assert_eq!(typed(&mut model, "2"), [Order::Follow(None)]);
    assert_eq!(typed(&mut model, "m"), [Order::Follow(Some("b".to_owned()))], "what was followed before");
    assert_eq!(model.tail.seen, 1, "and what had come is still there");
    typed(&mut model, "1k");
    assert_eq!(typed(&mut model, "m"), [Order::Follow(Some("a".to_owned()))]);
    assert_eq!(model.tail.seen, 0);
}

#[test]
fn a_lost_broker_is_said_until_it_answers_again_and_the_picture_stays() {
    let mut model = model(&[("a", 1)]);
    assert!(model.on(Event::Lost("connection reset".to_owned())).is_empty());
    assert_eq!(
        (model.link.clone(), names(&model)),
        (Link::Lost("connection reset".to_owned()), vec!["a".into()])
    );
    model.on(Event::Picture(Box::new(picture(&[("b", 1)]))));
    assert_eq!(model.link, Link::Up);
    assert_eq!(
        model.on(Event::Closed("revoked".to_owned())),
        [Order::Fail(Exit::Denied, "revoked".to_owned())]
    );
    assert_eq!(model.on(Event::End), [Order::Quit]);
    assert!(
        matches!(&model.on(Event::Broken("bus-top-tail"))[..], [Order::Fail(Exit::Failed, text)] if text.contains("bus-top-tail"))
    );
}

#[test]
fn a_broker_without_a_runtime_is_told_from_a_runtime_that_is_silent() {
    let mut model = model(&[]);
    let told = |model: &mut Model, actors: Actors| {
        model.on(Event::Picture(Box::new(Picture { actors, ..Picture::default() })));
        model.no_actors()
    };
    assert!(told(&mut model, Actors::NoRuntime).is_some_and(|text| text.contains("stands alone")));
    assert!(
        told(&mut model, Actors::Silent("denied".to_owned())).is_some_and(|text| text.contains("denied"))
    );
    assert_eq!(told(&mut model, Actors::Tree("running".to_owned(), Vec::new())), None);
}
