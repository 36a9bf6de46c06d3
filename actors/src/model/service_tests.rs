//! The service on a real broker, with the built-in script.

use std::time::Duration;

use interlock_bus::{Client, Payload, client::ReplyStream, error::RequestError};

use super::*;
use crate::{
    test_stage::{DEADLINE, Stage, Stand, parts, soon},
    topics::{ChatMessage, ModelList, Role},
};

fn start(stage: &Stage, config: ModelConfig) -> Stand {
    stage.start("model", move || Ok(ModelService::new(config.clone())))
}

async fn ask(client: &Client, text: &str) -> ReplyStream {
    let request = CompletionRequest {
        turn: uuid::Uuid::now_v7(),
        messages: vec![ChatMessage::new(Role::User, text)],
        options: Default::default(),
    };
    let payload = Payload::encode(&request).unwrap();
    client.request_stream(&topics::topic(topics::COMPLETIONS), payload, DEADLINE).await.unwrap()
}

fn failed_with(error: Option<RequestError>) -> String {
    match error {
        Some(RequestError::Failed { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_answer_is_deltas_in_order_and_one_final_part() {
    let stage = Stage::new();
    let _model = start(&stage, ModelConfig::default());
    let (parts, error) = parts(ask(&stage.client("user"), "hello").await).await;
    assert!(error.is_none(), "{error:?}");
    let parts: Vec<CompletionPart> = parts.iter().map(|part| topics::read(part).unwrap()).collect();
    let [deltas @ .., CompletionPart::Final(end)] = parts.as_slice() else { panic!("{parts:?}") };
    assert!(deltas.len() > 2);
    for (part, index) in deltas.iter().zip(0..) {
        assert!(matches!(part, CompletionPart::Delta(delta) if delta.index == index), "{part:?}");
    }
    assert_eq!(end.notice.as_deref(), Some("script: no language model configured"));
}

#[tokio::test]
async fn models_are_listed_honestly_and_in_json_to_whoever_does_not_ask_in_bincode() {
    let stage = Stage::new();
    let _model = start(&stage, ModelConfig::default());
    let topic = topics::topic(topics::MODELS);
    let reply = stage.client("user").request(&topic, Payload::default(), DEADLINE).await.unwrap();
    assert_eq!(reply.header.content_type, interlock_bus::ContentType::Json);
    let list: ModelList = topics::read(&reply).unwrap();
    assert_eq!((list.back_end.as_str(), list.models.len()), ("script", 1));
    assert_eq!(list.notice.as_deref(), Some("script: no language model configured"));
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_with_the_reason() {
    let stage = Stage::new();
    let _model = start(&stage, ModelConfig::default());
    let user = stage.client("user");
    let topic = topics::topic(topics::COMPLETIONS);
    for (bad, says) in [
        ("nonsense", "CompletionRequest"),
        (r#"{"messages":[]}"#, "no message of the role `user`"),
        (r#"{"messages":[{"role":"robot","text":"x"}]}"#, "robot"),
        (r#"{"messages":[],"options":{"temperature":9.0}}"#, "allowed is 0 to 2"),
    ] {
        let payload = match bad.starts_with('{') {
            true => {
                Payload { content_type: interlock_bus::ContentType::Json, bytes: bad.into(), schema: None }
            }
            false => Payload::bytes(bad),
        };
        let error = user.request(&topic, payload, DEADLINE).await.unwrap_err();
        let RequestError::Failed { code, text } = error else { panic!("{error:?}") };
        assert!(code == code::BAD_REQUEST && text.contains(says), "{code} {text}");
    }
}

#[tokio::test]
async fn the_line_is_bounded_and_a_cancel_makes_room() {
    let stage = Stage::new();
    let slow = ModelConfig {
        concurrent_max: 1,
        waiting_max: 1,
        script_pause: Duration::from_secs(9),
        ..ModelConfig::default()
    };
    let _model = start(&stage, slow);
    let user = stage.client("user");
    let mut first = ask(&user, "hello there").await;
    soon("the first word", first.next()).await.unwrap().unwrap();
    let mut second = ask(&user, "hello there").await;
    let third = parts(ask(&user, "hello there").await).await;
    assert_eq!(failed_with(third.1), code::BUSY);
    // The pause is longer than what is waited for here: the second starts because the first is cancelled.
    drop(first);
    tokio::time::timeout(Duration::from_secs(5), second.next()).await.expect("it starts").unwrap().unwrap();
}

#[tokio::test]
async fn a_service_with_an_impossible_script_does_not_start_and_says_why() {
    let config = ModelConfig { script: Some("/nowhere/script.toml".into()), ..ModelConfig::default() };
    let error = BackEnd::new(&config).unwrap_err().to_string();
    assert!(error.contains("/nowhere/script.toml") && error.contains("cannot be read"), "{error}");
}
