//! The service on a real broker, with the built-in script.

use std::time::Duration;

use interlock_bus::{Client, Payload, client::ReplyStream, error::RequestError};

use super::*;
use crate::{
    host::HostReport,
    model::{
        BackEndKind, ModelConfig,
        test_server::{Server, body},
    },
    test_stage::{DEADLINE, Stage, Stand, parts, soon},
    topics::{ChatMessage, CompletionFinal, CompletionPart, Embeddings, ModelList, Role},
};

fn start(stage: &Stage, config: impl Into<ServiceConfig>) -> Stand {
    let config = config.into();
    stage.start("model", move || Ok(ModelService::new(config.clone())))
}

async fn ask(client: &Client, text: &str) -> ReplyStream {
    ask_model(client, text, None).await
}

async fn ask_model(client: &Client, text: &str, model: Option<&str>) -> ReplyStream {
    let mut request = CompletionRequest {
        turn: uuid::Uuid::now_v7(),
        messages: vec![ChatMessage::new(Role::User, text)],
        options: Default::default(),
    };
    request.options.model = model.map(str::to_owned);
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
        (r#"{"messages":[],"options":{"top_p":0.0}}"#, "allowed is more than 0, to 1"),
        (r#"{"messages":[],"options":{"stop":[""]}}"#, "1 to 256 bytes"),
        (r#"{"messages":[],"options":{"tokens_max":0}}"#, "tokens_max is 0"),
    ] {
        let payload = match bad.starts_with('{') {
            true => {
                Payload { content_type: interlock_bus::ContentType::Json, bytes: bad.into(), schema: None }
            }
            false => Payload::bytes(bad),
        };
        let error = user.request(&topic, payload, DEADLINE).await.unwrap_err();
        let RequestError::Failed { code, text } = error else { panic!("{error:?}") };
        let expected = match says {
            "CompletionRequest" | "robot" => code::UNREADABLE,
            _ => code::BAD_REQUEST,
        };
        assert!(code == expected && text.contains(says), "{code} {text}");
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

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// A server named `big` that is asked first, and the script as `small`, which stands in.
fn two(server: &Server) -> ServiceConfig {
    let big = ModelConfig { retries_max: 1, ..server.config(BackEndKind::OpenAi) };
    ServiceConfig {
        models: vec![
            NamedModel { name: "big".to_owned(), config: big },
            NamedModel { name: "small".to_owned(), config: ModelConfig::default() },
        ],
        fallback: vec!["small".to_owned()],
        is_open: false,
    }
}

/// How an answer ended, and the text of its pieces.
async fn ended(stream: ReplyStream) -> (String, Result<CompletionFinal, (String, String)>) {
    let (parts, error) = parts(stream).await;
    let mut text = String::new();
    for part in &parts {
        match topics::read(part).unwrap() {
            CompletionPart::Delta(delta) => text.push_str(&delta.text),
            CompletionPart::Final(end) => return (text, Ok(end)),
        }
    }
    let Some(RequestError::Failed { code, text: why }) = error else { panic!("{error:?}") };
    (text, Err((code, why)))
}

async fn figures(client: &Client) -> Vec<ModelFigures> {
    let topic = topics::topic(topics::MODEL_STATISTICS);
    let reply = client.request(&topic, Payload::default(), DEADLINE).await.unwrap();
    topics::read::<ModelStatistics>(&reply).unwrap().models
}

/// Answers probes with an empty list, and everything else, in turn, with these pieces.
async fn serve(server: &Server, answers: Vec<Vec<String>>) -> Vec<String> {
    use tokio::io::AsyncWriteExt;
    let mut requests = Vec::new();
    for pieces in answers {
        let (mut stream, request) = loop {
            let (mut stream, request) = server.request().await;
            if !request.starts_with("GET ") {
                break (stream, request);
            }
            let list = body("200 OK", "{\"data\":[]}");
            stream.write_all(list.as_bytes()).await.unwrap();
        };
        requests.push(request);
        for piece in pieces {
            stream.write_all(piece.as_bytes()).await.unwrap();
        }
    }
    requests
}

#[tokio::test]
async fn another_model_stands_in_for_one_that_does_not_begin_and_the_answer_says_so() {
    let (stage, server) = (Stage::new(), Server::start().await);
    let _model = start(&stage, two(&server));
    let user = stage.client("user");
    let failed = || vec![body("500 Internal Server Error", "{\"error\":\"out of memory\"}")];
    let at_once = || vec![STREAM.to_owned(), "data: {\"error\":\"no room\"}\n\n".to_owned()];
    for (answer, says) in [(failed(), "out of memory"), (at_once(), "no room")] {
        let asked = async { ended(ask(&user, "hello").await).await };
        let (_, (text, end)) = tokio::join!(serve(&server, vec![answer]), asked);
        let end = end.unwrap();
        assert!(!text.is_empty());
        assert_eq!((end.name.as_str(), end.back_end.as_str(), end.fallback.len()), ("small", "script", 1));
        assert!(end.fallback[0].model == "big" && end.fallback[0].text.contains(says), "{end:?}");
        assert_eq!(end.fallback[0].code, code::BACK_END_FAILED);
    }
    let figures = figures(&user).await;
    let [big, small] = figures.as_slice() else { panic!("{figures:?}") };
    assert_eq!((big.passed_on, big.finished, big.failed), (2, 0, 0), "{big:?}");
    assert_eq!((small.stood_in, small.finished), (2, 2), "{small:?}");
    assert!(small.first_token_s.count == 2 && small.first_token_s.p50.is_some(), "{small:?}");
    assert!(small.completion_tokens > 4 && small.running == 0, "{small:?}");
}

#[tokio::test]
async fn nobody_goes_on_where_another_model_has_begun_or_for_a_request_that_is_at_fault() {
    let (stage, server) = (Stage::new(), Server::start().await);
    let _model = start(&stage, two(&server));
    let user = stage.client("user");
    let half = "data: {\"choices\":[{\"delta\":{\"content\":\"Half\"}}]}\n\n".to_owned();
    let cut = vec![STREAM.to_owned(), half];
    let (_, (text, end)) =
        tokio::join!(serve(&server, vec![cut]), async { ended(ask(&user, "hello").await).await });
    assert_eq!((text.as_str(), end.unwrap_err().0.as_str()), ("Half", code::BACK_END_CUT));

    let bad = vec![body("400 Bad Request", "{\"error\":{\"message\":\"too many messages\"}}")];
    let (_, (_, end)) =
        tokio::join!(serve(&server, vec![bad]), async { ended(ask(&user, "hello").await).await });
    let (code, text) = end.unwrap_err();
    assert!(code == code::BAD_REQUEST && text.contains("too many messages"), "{code} {text}");

    let (_, end) = ended(ask_model(&user, "hello", Some("huge")).await).await;
    let (code, text) = end.unwrap_err();
    assert_eq!(code, code::BACK_END_MODEL_UNKNOWN);
    assert_eq!(text, "no model `huge` is configured; there are `big`, `small`");
    assert_eq!(figures(&user).await[1].finished, 0);
}

#[tokio::test]
async fn a_busy_server_is_asked_again_and_a_model_asked_for_by_name_answers_itself() {
    let (stage, server) = (Stage::new(), Server::start().await);
    let _model = start(&stage, two(&server));
    let user = stage.client("user");
    let busy =
        "HTTP/1.1 429 Too Many Requests\r\nretry-after: 0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let well = vec![
        STREAM.to_owned(),
        "data: {\"choices\":[{\"delta\":{\"content\":\"Well\"}}]}\n\ndata: [DONE]\n\n".to_owned(),
    ];
    let answers = serve(&server, vec![vec![busy.to_owned()], well]);
    let (_, (text, end)) =
        tokio::join!(answers, async { ended(ask_model(&user, "hello", Some("big")).await).await });
    let end = end.unwrap();
    assert_eq!((text.as_str(), end.name.as_str(), end.fallback.len()), ("Well", "big", 0));
    let big = &figures(&user).await[0];
    assert_eq!((big.retries, big.passed_on, big.finished), (1, 0, 1), "{big:?}");
    assert_eq!(big.health.state, "ok");

    let (_, end) = ended(ask_model(&user, "hello", Some("small")).await).await;
    assert_eq!(end.unwrap().name, "small");
}

#[tokio::test]
async fn a_model_without_room_or_server_passes_on_and_when_nobody_is_left_each_reason_is_said() {
    let (stage, server) = (Stage::new(), Server::start().await);
    let mut config = two(&server);
    drop(server);
    config.models[0].config.retries_max = 0;
    config.models[1].config = ModelConfig {
        concurrent_max: 1,
        waiting_max: 0,
        script_pause: Duration::from_secs(9),
        ..ModelConfig::default()
    };
    let model = start(&stage, config);
    let user = stage.client("user");
    let mut first = ask(&user, "hello there").await;
    soon("the first word", first.next()).await.unwrap().unwrap();
    let (_, end) = ended(ask(&user, "hello there").await).await;
    let (code, text) = end.unwrap_err();
    assert_eq!(code, code::BACK_END_UNREACHABLE);
    assert!(
        text.starts_with("model `big`: ") && text.contains("; model `small`: 1 completions run"),
        "{text}"
    );
    let list = user.request(&topics::topic(topics::MODELS), Payload::default(), DEADLINE).await.unwrap();
    let list: ModelList = topics::read(&list).unwrap();
    assert_eq!(
        (list.models[0].health.state.as_str(), list.fallback.as_slice()),
        ("failing", &["small".to_owned()][..])
    );
    assert!(list.models[0].health.reason.as_ref().unwrap().contains("cannot be reached"), "{list:?}");
    assert_eq!(figures(&user).await[1].refused, 1);
    drop((first, model));
}

#[tokio::test]
async fn a_service_whose_only_server_is_gone_is_impaired_and_says_so() {
    let (stage, server) = (Stage::new(), Server::start().await);
    let config = server.config(BackEndKind::OpenAi);
    drop(server);
    let model = start(&stage, config);
    let report = model.wait_for("the impairment", |report| matches!(report, HostReport::Impaired(Some(_))));
    let HostReport::Impaired(Some(why)) = report else { panic!("{report:?}") };
    assert!(why.contains("no model is there to answer") && why.contains("cannot be reached"), "{why}");
}

#[tokio::test]
async fn the_script_makes_no_embeddings_and_says_what_would() {
    let stage = Stage::new();
    let _model = start(&stage, ModelConfig::default());
    let user = stage.client("user");
    let topic = topics::topic(topics::EMBEDDINGS);
    for (inputs, code, says) in [
        (vec!["a"], code::NO_EMBEDDINGS, "makes no embeddings; configure one that does"),
        (vec![], code::BAD_REQUEST, "0 texts"),
        (vec!["a", ""], code::BAD_REQUEST, "text 1 is empty"),
    ] {
        let inputs = inputs.into_iter().map(str::to_owned).collect();
        let payload = Payload::encode(&EmbeddingsRequest { inputs, ..Default::default() }).unwrap();
        let error = user.request(&topic, payload, DEADLINE).await.unwrap_err();
        let RequestError::Failed { code: said, text } = error else { panic!("{error:?}") };
        assert!(said == code && text.contains(says), "{said} {text}");
    }
}

#[tokio::test]
async fn embeddings_come_over_the_bus_from_the_first_model_that_makes_some() {
    let (stage, server) = (Stage::new(), Server::start().await);
    let mut config = two(&server);
    config.models.swap(0, 1);
    let _model = start(&stage, config);
    let user = stage.client("user");
    let said =
        body("200 OK", "{\"data\":[{\"index\":0,\"embedding\":[0.5]}],\"usage\":{\"prompt_tokens\":4}}");
    let request = EmbeddingsRequest { inputs: vec!["a".to_owned()], ..Default::default() };
    let topic = topics::topic(topics::EMBEDDINGS);
    let asked = user.request(&topic, Payload::encode(&request).unwrap(), DEADLINE);
    let (_, reply) = tokio::join!(serve(&server, vec![vec![said]]), asked);
    let embeddings: Embeddings = topics::read(&reply.unwrap()).unwrap();
    assert_eq!((embeddings.name.as_str(), embeddings.vectors), ("big", vec![vec![0.5]]));
    assert_eq!(figures(&user).await[1].prompt_tokens, 4);
}
