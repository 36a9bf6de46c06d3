//! The engine with a real broker, a real store, and models that behave as each test needs.

use std::collections::HashMap;

use interlock_bus::{Client, Message, Payload, client::Request, error::RequestError};
use tokio::sync::mpsc;

use super::*;
use crate::{
    intake::Intake,
    model::{ModelConfig, ModelService},
    store::MessageState,
    test_stage::{DEADLINE, Stage, Stand, parts, seen, soon, watch},
    topics::{
        ChatInput, ChatMessage, CompletionDelta, CompletionFinal, CompletionOptions, CompletionPart,
        CompletionRequest, ConversationId, Described, TurnDelta, TurnError, TurnFinal, TurnPart, TurnStarted,
    },
};

fn engine(stage: &Stage, config: ConversationConfig) -> Stand {
    let store = stage.store.clone();
    stage.start("conversation", move || {
        Ok(ConversationEngine::new(config.clone(), store.clone(), Intake::default()))
    })
}

fn script_model(stage: &Stage) -> Stand {
    stage.start("model", || Ok(ModelService::new(ModelConfig::default())))
}

/// Requests on the model's topic, for a test that plays the model.
async fn played_model(client: &Client) -> mpsc::Receiver<(Request, CompletionRequest)> {
    let mut service = client.serve(&topics::filter(topics::COMPLETIONS), Default::default()).await.unwrap();
    let (sender, requests) = mpsc::channel(256);
    tokio::spawn(async move {
        while let Some(request) = service.next().await {
            let asked = topics::read(&request.message).unwrap();
            if sender.send((request, asked)).await.is_err() {
                return;
            }
        }
    });
    requests
}

fn delta(index: u32, text: impl Into<String>) -> Payload {
    Payload::encode(&CompletionPart::Delta(CompletionDelta { index, text: text.into() })).unwrap()
}

fn last() -> Payload {
    Payload::encode(&CompletionPart::Final(CompletionFinal {
        finish_reason: "stop".to_owned(),
        back_end: "played".to_owned(),
        model: "m".to_owned(),
        ..CompletionFinal::default()
    }))
    .unwrap()
}

fn input(conversation: &str, text: &str) -> UserInput {
    UserInput { conversation: Some(conversation.parse().unwrap()), turn: None, text: text.to_owned() }
}

async fn say(client: &Client, said: &UserInput) -> (Vec<TurnPart>, Option<RequestError>) {
    let payload = Payload::encode(said).unwrap();
    let stream = client.request_stream(&topics::topic(topics::USER_INPUT), payload, DEADLINE).await.unwrap();
    let (messages, error) = parts(stream).await;
    (messages.iter().map(|message| topics::read(message).unwrap()).collect(), error)
}

/// The answer of a turn that has to finish.
async fn answer(client: &Client, conversation: &str, text: &str) -> String {
    let (mut turn, error) = say(client, &input(conversation, text)).await;
    assert!(error.is_none(), "{error:?}");
    match turn.pop() {
        Some(TurnPart::Final(end)) => end.text,
        other => panic!("{other:?}"),
    }
}

fn failed_with(error: Option<RequestError>) -> String {
    match error {
        Some(RequestError::Failed { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

fn decode<T: serde::de::DeserializeOwned>(message: &Message) -> T {
    topics::read(message).unwrap()
}

#[tokio::test]
async fn a_turn_streams_to_its_requester_and_is_seen_on_the_turn_topics() {
    let stage = Stage::new();
    let (_model, _engine) = (script_model(&stage), engine(&stage, ConversationConfig::default()));
    let mut turns = watch(&stage.client("watcher"), "conversation/turn/#").await;
    let (parts, error) = say(&stage.client("user"), &input("kitchen", "My name is Ada.")).await;
    assert!(error.is_none(), "{error:?}");

    let [TurnPart::Started(started), middle @ .., TurnPart::Final(end)] = parts.as_slice() else {
        panic!("{parts:?}")
    };
    assert_eq!(decode::<TurnStarted>(&seen(&mut turns).await), *started);
    let mut text = String::new();
    for (part, index) in middle.iter().zip(0..) {
        let TurnPart::Delta(delta) = part else { panic!("{part:?}") };
        assert_eq!((delta.index, delta.turn), (index, started.turn));
        assert_eq!(decode::<TurnDelta>(&seen(&mut turns).await), *delta);
        text.push_str(&delta.text);
    }
    assert!(text.contains("Ada") && text == end.text, "{text}");
    assert_eq!(end.deltas as usize, middle.len());
    assert_eq!(end.completion.notice.as_deref(), Some("script: no language model configured"));
    let published = seen(&mut turns).await;
    assert_eq!(published.topic.as_str(), topics::TURN_FINAL);
    assert_eq!(decode::<TurnFinal>(&published), *end);

    let (user, topic) = (stage.client("user"), "$sys/broker/schemas".parse().unwrap());
    let known = user.request(&topic, Payload::default(), DEADLINE).await.unwrap();
    assert_eq!(published.header.schema, Some(TurnFinal::fingerprint()));
    assert!(known.text().unwrap().contains("TurnFinal"), "{known:?}");
}

/// A turn whose history is its own list of messages.
async fn chat(client: &Client, input: &ChatInput) -> (Vec<TurnPart>, Option<RequestError>) {
    let payload = Payload::encode(input).unwrap();
    let stream = client.request_stream(&topics::topic(topics::USER_CHAT), payload, DEADLINE).await.unwrap();
    let (messages, error) = parts(stream).await;
    (messages.iter().map(|message| topics::read(message).unwrap()).collect(), error)
}

fn list(conversation: Option<&str>, keep: bool) -> ChatInput {
    ChatInput {
        conversation: conversation.map(|id| id.parse().unwrap()),
        turn: None,
        messages: vec![
            ChatMessage::new(Role::User, "My name is Ada."),
            ChatMessage::new(Role::Assistant, "Hello Ada."),
            ChatMessage::new(Role::User, "What is my name?"),
        ],
        options: CompletionOptions { seed: Some(7), ..CompletionOptions::default() },
        keep,
    }
}

#[tokio::test]
async fn a_list_of_messages_is_its_own_history_and_is_kept_only_if_that_is_asked_for() {
    let stage = Stage::new();
    let config = ConversationConfig { instructions: "Be kind.".to_owned(), ..ConversationConfig::default() };
    let _engine = engine(&stage, config);
    let mut asked = played_model(&stage.client("model")).await;
    let user = stage.client("user");
    let mut turns = watch(&stage.client("watcher"), "conversation/turn/#").await;
    for (conversation, keep, kept) in [("garden", false, 0), ("kitchen", true, 2), ("kitchen", true, 4)] {
        let play = async {
            let (request, question) = soon("the question", asked.recv()).await.unwrap();
            request.reply(delta(0, "Ada")).await.unwrap();
            request.end(last()).await.unwrap();
            question
        };
        let input = list(Some(conversation), keep);
        let (question, (parts, error)) = tokio::join!(play, chat(&user, &input));
        assert!(error.is_none(), "{error:?}");
        let said: Vec<&str> = question.messages.iter().map(|message| message.text.as_str()).collect();
        assert_eq!(said, ["Be kind.", "My name is Ada.", "Hello Ada.", "What is my name?"]);
        assert_eq!(question.options.seed, Some(7));
        let Some(TurnPart::Final(end)) = parts.last() else { panic!("{parts:?}") };
        assert_eq!((end.text.as_str(), end.conversation.as_str()), ("Ada", conversation));
        let topics_seen = [seen(&mut turns).await, seen(&mut turns).await, seen(&mut turns).await];
        let names: Vec<&str> = topics_seen.iter().map(|message| message.topic.as_str()).collect();
        assert_eq!(names, [topics::TURN_STARTED, topics::TURN_DELTA, topics::TURN_FINAL]);
        let stored = stage.store.history(conversation, 10).await.unwrap();
        assert_eq!(stored.len(), kept);
        if let [.., question, answer] = stored.as_slice() {
            let texts = (question.message.text.as_str(), answer.message.text.as_str());
            assert_eq!(texts, ("What is my name?", "Ada"));
        }
    }
}

#[tokio::test]
async fn a_list_that_breaks_off_is_not_kept_and_one_without_a_user_is_refused() {
    let stage = Stage::new();
    let _engine = engine(&stage, ConversationConfig::default());
    let mut asked = played_model(&stage.client("model")).await;
    let user = stage.client("user");
    let play = async {
        let (request, _) = soon("the question", asked.recv()).await.unwrap();
        request.reply(delta(0, "Half")).await.unwrap();
        request.fail("broken", "it broke").await.unwrap();
    };
    let input = list(Some("garden"), false);
    let ((), (_, error)) = tokio::join!(play, chat(&user, &input));
    assert_eq!(failed_with(error), "broken");
    assert!(stage.store.history("garden", 10).await.unwrap().is_empty());
    let nobody = ChatInput { messages: vec![ChatMessage::new(Role::System, "x")], ..list(None, true) };
    assert_eq!(failed_with(chat(&user, &nobody).await.1), code::BAD_REQUEST);
}

#[tokio::test]
async fn a_published_text_is_answered_on_the_turn_topics() {
    let stage = Stage::new();
    let (_model, _engine) = (script_model(&stage), engine(&stage, ConversationConfig::default()));
    let user = stage.client("user");
    let mut ends = watch(&user, topics::TURN_FINAL).await;
    user.publish(&topics::topic(topics::USER_INPUT), Payload::bytes(r#"{"text":"hello"}"#)).unwrap();
    assert!(!decode::<TurnFinal>(&seen(&mut ends).await).text.is_empty());
}

#[tokio::test]
async fn a_conversation_remembers_and_another_one_does_not_know() {
    let stage = Stage::new();
    let (_model, mut first) = (script_model(&stage), engine(&stage, ConversationConfig::default()));
    let user = stage.client("user");
    answer(&user, "kitchen", "I am called Ada.").await;
    first.stop();
    let _second = engine(&stage, ConversationConfig::default());
    assert!(answer(&user, "kitchen", "What is my name?").await.contains("Ada"));
    assert!(!answer(&user, "garden", "What is my name?").await.contains("Ada"));
}

#[tokio::test]
async fn the_text_of_a_user_is_kept_when_there_is_no_model() {
    let stage = Stage::new();
    let _engine = engine(&stage, ConversationConfig::default());
    let user = stage.client("user");
    let said = UserInput { turn: Some(Uuid::now_v7()), ..input("kitchen", "My name is Ada.") };
    let (parts, error) = say(&user, &said).await;
    assert!(matches!(parts.as_slice(), [TurnPart::Started(_)]), "{parts:?}");
    assert_eq!(failed_with(error), code::MODEL_ABSENT);
    let _model = script_model(&stage);
    assert!(say(&user, &said).await.1.is_none(), "the same turn may be tried again");
    assert_eq!(stage.store.history("kitchen", 10).await.unwrap().len(), 2, "one text, one answer");
    assert!(answer(&user, "kitchen", "What is my name?").await.contains("Ada"));
}

#[tokio::test]
async fn what_cannot_be_a_turn_is_refused_with_the_reason() {
    let stage = Stage::new();
    let (_model, _engine) = (script_model(&stage), engine(&stage, ConversationConfig::default()));
    let user = stage.client("user");
    let long = format!(r#"{{"text":"{}"}}"#, "x".repeat(INPUT_BYTES_MAX + 1));
    for (bad, expected, says) in [
        (r#"{"txt":"hello"}"#.to_owned(), code::UNREADABLE, "`txt`"),
        (r#"{"text":""}"#.to_owned(), code::BAD_REQUEST, "empty"),
        (long, code::BAD_REQUEST, "the limit is 65536 bytes"),
    ] {
        let topic = topics::topic(topics::USER_INPUT);
        let error = user.request(&topic, Payload::bytes(bad), DEADLINE).await.unwrap_err();
        let RequestError::Failed { code, text } = error else { panic!("{error:?}") };
        assert!(code == expected && text.contains(says), "{code} {text}");
    }
    let said = UserInput { turn: Some(Uuid::now_v7()), ..input("kitchen", "hello") };
    assert!(say(&user, &said).await.1.is_none());
    assert_eq!(failed_with(say(&user, &said).await.1), code::DUPLICATE);
}

#[tokio::test]
async fn a_store_that_cannot_save_fails_the_turn_before_the_model_is_asked() {
    let stage = Stage::new();
    let _engine = engine(&stage, ConversationConfig::default());
    let mut asked = played_model(&stage.client("model")).await;
    let store = stage.store.clone();
    tokio::task::spawn_blocking(move || store.close()).await.unwrap();
    let (parts, error) = say(&stage.client("user"), &input("kitchen", "hello")).await;
    assert_eq!((parts.len(), failed_with(error).as_str()), (0, code::STORE));
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn a_cancel_reaches_the_model_and_what_there_was_is_kept() {
    let stage = Stage::new();
    let _engine = engine(&stage, ConversationConfig::default());
    let mut asked = played_model(&stage.client("model")).await;
    let user = stage.client("user");
    let mut errors = watch(&user, topics::TURN_ERROR).await;
    let payload = Payload::encode(&input("kitchen", "hello")).unwrap();
    let topic = topics::topic(topics::USER_INPUT);
    let mut stream = user.request_stream(&topic, payload, DEADLINE).await.unwrap();
    let (model, _) = soon("the question", asked.recv()).await.unwrap();
    model.reply(delta(0, "Half")).await.unwrap();
    loop {
        let part = soon("a part", stream.next()).await.unwrap().unwrap();
        if matches!(decode(&part), TurnPart::Delta(_)) {
            break;
        }
    }
    drop(stream);
    soon("the cancel", model.cancelled().wait()).await;
    assert_eq!(decode::<TurnError>(&seen(&mut errors).await).code, code::CANCELLED);
    let said = stage.store.history("kitchen", 10).await.unwrap();
    let last = &said.last().unwrap().message;
    assert_eq!((last.text.as_str(), last.state), ("Half", MessageState::Cancelled));
}

#[tokio::test]
async fn a_model_that_breaks_its_protocol_fails_the_turn() {
    let stage = Stage::new();
    let _engine = engine(&stage, ConversationConfig::default());
    let mut asked = played_model(&stage.client("model")).await;
    let user = stage.client("user");
    for (replies, expected) in [
        (vec![delta(1, "x")], code::MODEL_PROTOCOL),
        (vec![Payload::bytes("no part at all")], code::MODEL_PROTOCOL),
        (vec![], code::MODEL_PROTOCOL),
        (vec![delta(0, "x".repeat(ANSWER_BYTES_MAX + 1))], code::TOO_LONG),
    ] {
        let play = async {
            let (request, _) = soon("the question", asked.recv()).await.unwrap();
            for reply in replies {
                request.reply(reply).await.unwrap();
            }
            // The engine may have given up already.
            let _ = request.end_empty().await;
        };
        let said = input("kitchen", "hello");
        let ((), (_, error)) = tokio::join!(play, say(&user, &said));
        assert_eq!(failed_with(error), expected);
    }
}

#[tokio::test]
async fn turns_of_one_conversation_wait_and_too_many_are_busy() {
    let stage = Stage::new();
    let mut config = ConversationConfig::default();
    config.schedule.waiting_per_conversation_max = 1;
    let _engine = engine(&stage, config);
    let mut asked = played_model(&stage.client("model")).await;
    let (user, other) = (stage.client("user"), stage.client("user"));
    let first = tokio::spawn({
        let user = user.clone();
        async move { say(&user, &input("kitchen", "one")).await }
    });
    let (one, _) = soon("the first question", asked.recv()).await.unwrap();
    let mut busy = watch(&user, topics::TURN_ERROR).await;
    let mut waiting = Vec::new();
    for text in ["two", "three"] {
        let payload = Payload::encode(&input("kitchen", text)).unwrap();
        let topic = topics::topic(topics::USER_INPUT);
        waiting.push(user.request_stream(&topic, payload, DEADLINE).await.unwrap());
    }
    assert_eq!(decode::<TurnError>(&seen(&mut busy).await).code, code::BUSY);
    let garden = tokio::spawn(async move { say(&other, &input("garden", "hi")).await });
    let (elsewhere, asked_elsewhere) = soon("the other conversation", asked.recv()).await.unwrap();
    assert_eq!(asked_elsewhere.messages[0].text, "hi");
    elsewhere.end(last()).await.unwrap();
    assert!(garden.await.unwrap().1.is_none());
    one.end(last()).await.unwrap();
    assert!(first.await.unwrap().1.is_none());
    let (two, asked_two) = soon("the second question", asked.recv()).await.unwrap();
    assert_eq!(asked_two.messages.last().unwrap().text, "two");
    two.end(last()).await.unwrap();
    let busy = parts(waiting.pop().unwrap()).await;
    assert_eq!(failed_with(busy.1), code::BUSY);
    assert!(parts(waiting.pop().unwrap()).await.1.is_none());
}

#[tokio::test]
async fn a_hundred_turns_have_a_hundred_endings_when_the_model_dies_in_the_middle() {
    const TURNS: usize = 100;
    let stage = Stage::new();
    let _engine = engine(&stage, ConversationConfig::default());
    let model = stage.client("model");
    let mut asked = played_model(&model).await;
    let mut turns = watch(&stage.client("watcher"), "conversation/turn/#").await;
    let user = stage.client("user");
    let asking: Vec<_> = (0..TURNS)
        .map(|number| {
            let user = user.clone();
            tokio::spawn(async move {
                let conversation = format!("c{number}");
                let turn = Uuid::now_v7();
                let said = UserInput { turn: Some(turn), ..input(&conversation, &format!("text {number}")) };
                (turn, say(&user, &said).await)
            })
        })
        .collect();

    // Each turn gets a word with its own text in it; every third one is finished; then the model is gone.
    let mut held = Vec::new();
    for number in 0..TURNS {
        let (request, question) = soon("a question", asked.recv()).await.unwrap();
        let text = &question.messages.last().unwrap().text;
        request.reply(delta(0, format!("<{text}>"))).await.unwrap();
        match number % 3 {
            0 => request.end(last()).await.unwrap(),
            _ => held.push(request),
        }
    }
    model.close().await;
    drop(held);

    let mut outcomes = HashMap::new();
    for (number, task) in asking.into_iter().enumerate() {
        let (turn, (parts, error)) = soon("an ending", task).await.unwrap();
        let own = format!("<text {number}>");
        let finals = parts.iter().filter(|part| matches!(part, TurnPart::Final(_))).count();
        assert_eq!(finals, usize::from(error.is_none()), "{parts:?} {error:?}");
        for part in &parts {
            match part {
                TurnPart::Started(started) => assert_eq!(started.turn, turn),
                TurnPart::Delta(delta) => assert_eq!((delta.turn, &delta.text), (turn, &own)),
                TurnPart::Final(end) => assert_eq!((end.turn, &end.text), (turn, &own)),
            }
        }
        let outcome = error.map_or("finished".to_owned(), |error| failed_with(Some(error)));
        assert!(["finished", code::MODEL_GONE].contains(&outcome.as_str()), "{outcome}");
        outcomes.insert(turn, outcome);
    }
    assert_eq!(outcomes.values().filter(|outcome| *outcome == "finished").count(), TURNS.div_ceil(3));

    let mut ended = HashMap::new();
    while ended.len() < TURNS {
        let message = seen(&mut turns).await;
        let (turn, outcome) = match message.topic.as_str() {
            topics::TURN_FINAL => (decode::<TurnFinal>(&message).turn, "finished".to_owned()),
            topics::TURN_ERROR => {
                let error = decode::<TurnError>(&message);
                (error.turn, error.code)
            }
            _ => continue,
        };
        assert!(ended.insert(turn, outcome).is_none(), "two endings of one turn");
    }
    assert_eq!(ended, outcomes);
    let said = stage.store.history("c1", 10).await.unwrap();
    assert_eq!(said[0].message.text, "text 1");
}

#[tokio::test]
async fn a_killed_model_service_ends_its_turns_once_and_serves_the_next() {
    let stage = Stage::new();
    let _engine = engine(&stage, ConversationConfig::default());
    let slow = ModelConfig { script_pause: std::time::Duration::from_secs(5), ..ModelConfig::default() };
    let mut model = stage.start("model", move || Ok(ModelService::new(slow.clone())));
    let user = stage.client("user");
    let mut deltas = watch(&user, topics::TURN_DELTA).await;
    let turn = tokio::spawn({
        let user = user.clone();
        async move { say(&user, &input("kitchen", "hello there")).await }
    });
    seen(&mut deltas).await;
    model.kill();
    let (parts, error) = soon("the ending", turn).await.unwrap();
    assert!(error.is_some() && !parts.iter().any(|part| matches!(part, TurnPart::Final(_))), "{parts:?}");
    drop(model);
    let _model = script_model(&stage);
    assert!(!answer(&user, "kitchen", "and now?").await.is_empty());
}

#[tokio::test]
async fn a_stopping_engine_ends_the_turns_that_wait() {
    let stage = Stage::new();
    let mut engine = engine(&stage, ConversationConfig::default());
    let mut asked = played_model(&stage.client("model")).await;
    let user = stage.client("user");
    let turn = |text: &'static str| {
        let user = user.clone();
        tokio::spawn(async move { say(&user, &input("kitchen", text)).await })
    };
    let running = turn("one");
    let (one, _) = soon("the first question", asked.recv()).await.unwrap();
    let mut errors = watch(&user, topics::TURN_ERROR).await;
    let waiting = turn("two");
    // The second has been taken in when a third, of a conversation of its own, is asked for.
    let third = tokio::spawn({
        let user = user.clone();
        async move { say(&user, &input("garden", "three")).await }
    });
    let (three, _) = soon("the third question", asked.recv()).await.unwrap();
    three.end(last()).await.unwrap();
    assert!(third.await.unwrap().1.is_none());
    let stopping = tokio::task::spawn_blocking(move || engine.stop());
    assert_eq!(decode::<TurnError>(&seen(&mut errors).await).code, code::STOPPING);
    assert_eq!(failed_with(soon("its end", waiting).await.unwrap().1), code::STOPPING);
    one.end(last()).await.unwrap();
    assert!(soon("the first turn", running).await.unwrap().1.is_none());
    soon("the stop", stopping).await.unwrap();
}

#[test]
fn a_conversation_without_an_id_gets_one_of_its_own() {
    assert_ne!(ConversationId::new(), ConversationId::new());
}

async fn order(client: &Client, topic: &'static str, conversation: &str) -> Result<(), RequestError> {
    let payload = Payload::json(&serde_json::json!({ "conversation": conversation })).unwrap();
    client.request(&topics::topic(topic), payload, DEADLINE).await.map(drop)
}

#[tokio::test]
async fn an_order_ends_the_running_turn_at_the_model_and_the_next_one_begins() {
    let stage = Stage::new();
    let _engine = engine(&stage, ConversationConfig::default());
    let mut model = played_model(&stage.client("model")).await;
    let user = stage.client("user");
    let mut deltas = watch(&user, topics::TURN_DELTA).await;
    assert_eq!(failed_with(order(&user, topics::CANCEL, "kitchen").await.err()), code::NOT_RUNNING);
    let turn = |text: &'static str| {
        let user = stage.client("user");
        tokio::spawn(async move { say(&user, &input("kitchen", text)).await })
    };
    let first = turn("one");
    let (request, _) = soon("the question", model.recv()).await.unwrap();
    request.reply(delta(0, "half")).await.unwrap();
    seen(&mut deltas).await;
    let second = turn("two");
    order(&user, topics::CANCEL, "kitchen").await.unwrap();
    soon("the cancel", request.cancelled().wait()).await;
    let (_, error) = soon("the first turn", first).await.unwrap();
    assert_eq!(failed_with(error), code::CANCELLED);
    let (request, asked) = soon("the question", model.recv()).await.unwrap();
    assert_eq!(asked.messages.last().unwrap().text, "two");
    request.end(last()).await.unwrap();
    assert!(soon("the second turn", second).await.unwrap().1.is_none());
    let said = stage.store.history("kitchen", 10).await.unwrap();
    let states: Vec<_> = said.iter().map(|said| (said.message.text.as_str(), said.message.state)).collect();
    assert!(states.contains(&("half", MessageState::Cancelled)), "{states:?}");
}

#[tokio::test]
async fn a_deleted_conversation_is_gone_with_what_went_on_in_it() {
    let stage = Stage::new();
    let _engine = engine(&stage, ConversationConfig::default());
    let mut model = played_model(&stage.client("model")).await;
    let user = stage.client("user");
    let turn = tokio::spawn(async move { say(&user, &input("kitchen", "one")).await });
    let (request, _) = soon("the question", model.recv()).await.unwrap();
    request.reply(delta(0, "half")).await.unwrap();
    let user = stage.client("user");
    order(&user, topics::DELETE, "kitchen").await.unwrap();
    assert_eq!(failed_with(soon("the turn", turn).await.unwrap().1), code::CANCELLED);
    assert_eq!(failed_with(order(&user, topics::DELETE, "kitchen").await.err()), code::UNKNOWN_CONVERSATION);
    assert!(stage.store.history("kitchen", 10).await.unwrap().is_empty());
}
