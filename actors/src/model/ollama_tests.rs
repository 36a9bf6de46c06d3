//! The client against a small server that answers with the bytes a test gives it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    model::{
        BackEnd, BackEndKind,
        test_server::{SOON, Server, body, question, run},
    },
    topics::code,
};

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\n";

fn sent(request: &str) -> serde_json::Value {
    serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[tokio::test]
async fn an_answer_streams_wherever_its_lines_are_cut() {
    let server = Server::start().await;
    let mut config = server.config(BackEndKind::Ollama);
    config.tokens_max = Some(9);
    let back_end = BackEnd::new(&config).unwrap();
    assert!(!back_end.describe().contains("/v1"), "{}", back_end.describe());
    let pieces = [
        STREAM,
        "{\"model\":\"small:1b\",\"message\":{\"role\":\"assistant\",\"content\":\"Gr\u{fc}n\"},\"done\":fal",
        "se}\n{\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":false}\n",
        "{\"message\":{\"content\":\" is\"},\"done\":true,\"done_reason\":\"length\",\"prompt_eval_count\":3,\"eval_count\":2}\n",
    ];
    let (request, (deltas, end)) = tokio::join!(server.answer(pieces.to_vec()), run(&back_end));
    assert_eq!(deltas, ["Gr\u{fc}n", " is"]);
    let end = end.unwrap();
    assert_eq!((end.finish_reason.as_str(), end.model.as_str()), ("length", "small:1b"));
    assert_eq!(end.usage, Some(Usage { prompt_tokens: 3, completion_tokens: 2 }));
    assert!(request.starts_with("POST /api/chat "), "{request}");
    let sent = sent(&request);
    assert_eq!(sent["messages"][1], serde_json::json!({"role": "user", "content": "hello"}));
    assert_eq!((&sent["model"], &sent["options"]), (&"small".into(), &serde_json::json!({"num_predict": 9})));
}

#[tokio::test]
async fn wishes_are_passed_on_under_its_names() {
    let server = Server::start().await;
    let back_end = BackEnd::new(&server.config(BackEndKind::Ollama)).unwrap();
    let mut asked = question();
    asked.options.temperature = Some(0.5);
    asked.options.top_p = Some(0.25);
    asked.options.seed = Some(-7);
    asked.options.stop = vec!["END".to_owned()];
    asked.options.tokens_max = Some(3);
    let (request, answer) = tokio::join!(server.answer(vec![STREAM]), back_end.complete(&asked));
    answer.unwrap();
    let expected =
        serde_json::json!({"temperature": 0.5, "top_p": 0.25, "num_predict": 3, "stop": ["END"], "seed": -7});
    assert_eq!(sent(&request)["options"], expected);
}

#[tokio::test]
async fn what_goes_wrong_has_a_name_each() {
    let first = "{\"message\":{\"content\":\"Half\"},\"done\":false}\n";
    let unknown = body("404 Not Found", "{\"error\":\"model 'small' not found\"}");
    let full = body("503 Service Unavailable", "{\"error\":\"server busy\"}");
    let bad = body("400 Bad Request", "{\"error\":\"invalid options: x\"}");
    let table: [(&[&str], usize, &str, &str); 7] = [
        (&[STREAM, first], 1, code::BACK_END_CUT, "before `done`"),
        (&[STREAM, first, "{\"error\":\"out of memory\"}\n"], 1, code::BACK_END_FAILED, "out of memory"),
        (&[STREAM, "[1]\n"], 0, code::BACK_END_PROTOCOL, "does not answer as an Ollama server"),
        (&[STREAM, "\u{0}\n"], 0, code::BACK_END_PROTOCOL, "a line cannot be read"),
        (&[&unknown], 0, code::BACK_END_MODEL_UNKNOWN, "model 'small' not found"),
        (&[&full], 0, code::BACK_END_BUSY, "server busy; try again in 7 s"),
        (&[&bad], 0, code::BAD_REQUEST, "invalid options: x"),
    ];
    for (pieces, count, expected, says) in table {
        let server = Server::start().await;
        let back_end = BackEnd::new(&server.config(BackEndKind::Ollama)).unwrap();
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
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn dropping_an_answer_closes_the_connection() {
    let server = Server::start().await;
    let back_end = BackEnd::new(&server.config(BackEndKind::Ollama)).unwrap();
    let serve = async {
        let (mut stream, _) = server.request().await;
        let first = "{\"message\":{\"content\":\"One\"},\"done\":false}\n";
        stream.write_all([STREAM, first].concat().as_bytes()).await.unwrap();
        tokio::time::timeout(SOON, stream.read(&mut [0; 1])).await.expect("the client hangs up")
    };
    let ask = async {
        let mut answer = back_end.complete(&question()).await.unwrap();
        assert_eq!(answer.next().await.unwrap(), Piece::Delta("One".to_owned()));
    };
    let (closed, ()) = tokio::join!(serve, ask);
    assert!(matches!(closed, Ok(0) | Err(_)));
}

#[tokio::test]
async fn without_a_configured_model_the_first_of_its_list_answers() {
    let server = Server::start().await;
    let mut config = server.config(BackEndKind::Ollama);
    config.model = None;
    let back_end = BackEnd::new(&config).unwrap();
    let list = body("200 OK", "{\"models\":[{\"name\":\"tiny:latest\"},{\"name\":\"huge\"}]}");
    let done = "{\"message\":{\"content\":\"\"},\"done\":true}\n";
    let serve = async {
        let listing = server.answer(vec![&list]).await;
        (listing, server.answer(vec![STREAM, done]).await)
    };
    let ((listing, asking), (_, end)) = tokio::join!(serve, run(&back_end));
    assert!(listing.starts_with("GET /api/tags "), "{listing}");
    assert_eq!(sent(&asking)["model"], "tiny:latest");
    assert_eq!(end.unwrap().usage, None);
}

#[tokio::test]
async fn embeddings_are_one_vector_for_each_text_or_an_error() {
    let asked = EmbeddingsRequest { inputs: vec!["a".to_owned(), "b".to_owned()], ..Default::default() };
    let ollama = "{\"model\":\"small\",\"embeddings\":[[0.5,1],[2,3]],\"prompt_eval_count\":4}";
    let openai = "{\"data\":[{\"index\":1,\"embedding\":[2,3]},{\"index\":0,\"embedding\":[0.5,1]}],\"usage\":{\"prompt_tokens\":4}}";
    for (kind, path, said) in [
        (BackEndKind::Ollama, "POST /api/embed ", ollama),
        (BackEndKind::OpenAi, "POST /v1/embeddings ", openai),
    ] {
        let server = Server::start().await;
        let back_end = BackEnd::new(&server.config(kind)).unwrap();
        let reply = body("200 OK", said);
        let (request, embedded) = tokio::join!(server.answer(vec![&reply]), back_end.embed(&asked));
        let embedded = embedded.unwrap();
        assert!(request.starts_with(path), "{request}");
        assert_eq!(sent(&request)["input"], serde_json::json!(["a", "b"]));
        assert_eq!(embedded.vectors, [[0.5, 1.0], [2.0, 3.0]]);
        assert_eq!((embedded.prompt_tokens, embedded.model.as_str()), (Some(4), "small"));
    }
    for bad in ["[[1,2]]", "[[1,2],[1]]", "[[],[]]", "[[1,2],[1,1e999]]", "[[1,2],[3,4],[5,6]]"] {
        let server = Server::start().await;
        let back_end = BackEnd::new(&server.config(BackEndKind::Ollama)).unwrap();
        let reply = body("200 OK", &format!("{{\"embeddings\":{bad}}}"));
        let (_, embedded) = tokio::join!(server.answer(vec![&reply]), back_end.embed(&asked));
        assert_eq!(embedded.unwrap_err().code(), code::BACK_END_PROTOCOL, "{bad}");
    }
    let script = BackEnd::new(&crate::model::ModelConfig::default()).unwrap();
    let error = script.embed(&asked).await.unwrap_err();
    assert_eq!(error.code(), code::NO_EMBEDDINGS);
}
