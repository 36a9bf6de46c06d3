//! The client against a small server that answers with the bytes a test gives it.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::*;
use crate::{
    model::{
        BackEnd, BackEndKind, ModelConfig,
        test_server::{SOON, Server, body, question, run},
    },
    topics::code,
};

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// Gives the configuration a file with a key; it lives as long as what is returned.
fn with_key(config: &mut ModelConfig, key: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), key).unwrap();
    config.api_key_file = Some(file.path().to_owned());
    file
}

#[tokio::test]
async fn an_answer_streams_wherever_the_bytes_are_cut() {
    let server = Server::start().await;
    let mut config = server.config(BackEndKind::OpenAi);
    let _key = with_key(&mut config, "sk-1");
    config.tokens_max = Some(9);
    let back_end = BackEnd::new(&config).unwrap();
    let pieces = [
        STREAM,
        "data: {\"model\":\"small:1b\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n",
        "\ndata: {\"choices\":[{\"del",
        "ta\":{\"content\":\"Gr\u{fc}n\"}}]}\r\n\r",
        "\n: ping\n\ndata: {\"choices\":[{\"delta\":{\"content\":\" is\"}}]}\n\ndata: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5}}\n\n",
        "data: [DONE]\n\n",
    ];
    let (request, (deltas, end)) = tokio::join!(server.answer(pieces.to_vec()), run(&back_end));
    assert_eq!(deltas, ["Gr\u{fc}n", " is"]);
    let end = end.unwrap();
    assert_eq!((end.finish_reason.as_str(), end.model.as_str()), ("length", "small:1b"));
    assert_eq!(end.usage, Some(Usage { prompt_tokens: 3, completion_tokens: 2 }));
    assert!(request.starts_with("POST /v1/chat/completions "), "{request}");
    assert!(request.to_lowercase().contains("authorization: bearer sk-1"), "{request}");
    let sent: serde_json::Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(sent["messages"][1], serde_json::json!({"role": "user", "content": "hello"}));
    assert_eq!(
        (&sent["model"], &sent["max_tokens"], &sent["stream"]),
        (&"small".into(), &9.into(), &true.into())
    );
}

#[tokio::test]
async fn each_status_is_an_error_of_its_own_and_none_shows_the_key() {
    let table = [
        ("401 Unauthorized", code::BACK_END_KEY_REFUSED, "`model.api_key_file`"),
        ("404 Not Found", code::BACK_END_MODEL_UNKNOWN, "does not know the model `small`"),
        ("429 Too Many Requests", code::BACK_END_BUSY, "try again in 7 s"),
        ("500 Internal Server Error", code::BACK_END_FAILED, "status 500: no good (key) today"),
        ("302 Found", code::BACK_END_FAILED, "status 302"),
    ];
    for (status, code, says) in table {
        let server = Server::start().await;
        let mut config = server.config(BackEndKind::OpenAi);
        let _key = with_key(&mut config, "sk-hidden");
        let back_end = BackEnd::new(&config).unwrap();
        let reply = body(status, "{\"error\":{\"message\":\"no good\\n sk-hidden today\"}}");
        let (_, (deltas, end)) = tokio::join!(server.answer(vec![&reply]), run(&back_end));
        let error = end.unwrap_err();
        assert_eq!((deltas.len(), error.code()), (0, code), "{error}");
        let shown = format!("{error} {error:?} {back_end:?}");
        assert!(shown.contains(says) && !shown.contains("hidden"), "{shown}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_is_an_error_after_what_came_before() {
    let first = "data: {\"choices\":[{\"delta\":{\"content\":\"Half\"}}]}\n\n";
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\ndata: {\"choi";
    let endless = format!("data: {}", "x".repeat(limits::EVENT_BYTES_MAX + 1));
    let table: [(&[&str], usize, &str); 6] = [
        (&[STREAM, first], 1, code::BACK_END_CUT),
        (&[chunked], 0, code::BACK_END_CUT),
        (&[STREAM, first, "data: {\"choices\":7}\n\n"], 1, code::BACK_END_PROTOCOL),
        (&[STREAM, first, "data: {\"error\":{\"message\":\"out of memory\"}}\n\n"], 1, code::BACK_END_FAILED),
        (&[STREAM, &endless], 0, code::BACK_END_PROTOCOL),
        (&["garbage\r\n\r\n"], 0, code::BACK_END_PROTOCOL),
    ];
    for (pieces, count, expected) in table {
        let server = Server::start().await;
        let back_end = BackEnd::new(&server.config(BackEndKind::OpenAi)).unwrap();
        let answer = async {
            let (mut stream, _) = server.request().await;
            for piece in pieces {
                // The client may hang up on garbage before it is all written.
                let _ = stream.write_all(piece.as_bytes()).await;
            }
        };
        let ((), (deltas, end)) = tokio::join!(answer, run(&back_end));
        let error = end.unwrap_err();
        assert_eq!((deltas.len(), error.code()), (count, expected), "{error}");
    }
}

#[tokio::test]
async fn a_clean_end_after_the_reason_needs_no_done() {
    let server = Server::start().await;
    let back_end = BackEnd::new(&server.config(BackEndKind::OpenAi)).unwrap();
    let last = "data: {\"choices\":[{\"delta\":{\"content\":\"All\"},\"finish_reason\":\"stop\"}]}\n\n";
    let (_, (deltas, end)) = tokio::join!(server.answer(vec![STREAM, last]), run(&back_end));
    assert_eq!((deltas.concat().as_str(), end.unwrap().finish_reason.as_str()), ("All", "stop"));
}

#[tokio::test]
async fn nobody_listening_is_said_with_the_address() {
    let server = Server::start().await;
    let config = server.config(BackEndKind::OpenAi);
    drop(server);
    let (_, end) = run(&BackEnd::new(&config).unwrap()).await;
    let error = end.unwrap_err();
    assert_eq!(error.code(), code::BACK_END_UNREACHABLE);
    assert!(error.to_string().contains("127.0.0.1") && error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_silent_server_is_given_up_after_the_read_timeout() {
    let server = Server::start().await;
    let mut config = server.config(BackEndKind::OpenAi);
    config.read_timeout = Duration::from_millis(300);
    let back_end = BackEnd::new(&config).unwrap();
    let silent = async {
        let (mut stream, _) = server.request().await;
        stream.write_all(STREAM.as_bytes()).await.unwrap();
        stream.read(&mut [0; 1]).await
    };
    let (closed, (_, end)) = tokio::join!(silent, run(&back_end));
    assert_eq!(end.unwrap_err().code(), code::TIMED_OUT);
    assert!(matches!(closed, Ok(0) | Err(_)), "the connection is closed");
}

#[tokio::test]
async fn dropping_an_answer_closes_the_connection() {
    let server = Server::start().await;
    let back_end = BackEnd::new(&server.config(BackEndKind::OpenAi)).unwrap();
    let serve = async {
        let (mut stream, _) = server.request().await;
        let first = "data: {\"choices\":[{\"delta\":{\"content\":\"One\"}}]}\n\n";
        stream.write_all([STREAM, first].concat().as_bytes()).await.unwrap();
        timeout(SOON, stream.read(&mut [0; 1])).await.expect("the client hangs up")
    };
    let ask = async {
        let mut answer = back_end.complete(&question()).await.unwrap();
        assert_eq!(answer.next().await.unwrap(), Piece::Delta("One".to_owned()));
    };
    let (closed, ()) = tokio::join!(serve, ask);
    assert!(matches!(closed, Ok(0) | Err(_)));
}

#[tokio::test]
async fn without_a_configured_model_the_first_listed_one_answers() {
    let server = Server::start().await;
    let mut config = server.config(BackEndKind::OpenAi);
    config.model = None;
    let back_end = BackEnd::new(&config).unwrap();
    let list = body("200 OK", "{\"data\":[{\"id\":\"tiny\"},{\"id\":\"huge\"}]}");
    let serve = async {
        let listing = server.answer(vec![&list]).await;
        (listing, server.answer(vec![STREAM, "data: [DONE]\n\n"]).await)
    };
    let ((listing, asking), (_, end)) = tokio::join!(serve, run(&back_end));
    assert!(listing.starts_with("GET /v1/models "), "{listing}");
    assert!(asking.contains("\"model\":\"tiny\""), "{asking}");
    assert_eq!(end.unwrap().model, "tiny");

    let (_, models) = tokio::join!(server.answer(vec![&list]), back_end.model_names());
    assert_eq!(models.unwrap(), ["tiny", "huge"]);
    let empty = body("200 OK", "{\"data\":[]}");
    let fresh = BackEnd::new(&config).unwrap();
    let (_, (_, end)) = tokio::join!(server.answer(vec![&empty]), run(&fresh));
    assert!(matches!(end, Err(BackEndError::NoModel { .. })));
}
