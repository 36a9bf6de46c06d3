use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use interlock_bus::{Client, Payload, PeerName, Permissions, Request, Rules, client::ServeOptions};
use serde_json::{Value, json};

use super::{
    Boundary, Gateway, Numbers, Options, Orders, Port, Rates, Token,
    steward::{MadeKey, NewBackup, NewPeer, Refusal, RefusalKind, Steward},
    tokens::TokenStore,
};
use crate::{
    backup::{BackupName, Watcher},
    intake::Intake,
    store::{Passphrase, StoreError},
    test_stage::{DEADLINE, Stage, Stand, soon},
    topics::{self, CompletionFinal, TurnDelta, TurnFinal, TurnPart, TurnStarted, UserInput},
};

/// More than any test asks.
const MANY: std::num::NonZeroU32 = std::num::NonZeroU32::new(1_000_000).unwrap();

/// A gateway on a stage, and how to talk to it.
struct Door {
    address: SocketAddr,
    token: String,
    stand: Stand,
    stage: Stage,
    _directory: tempfile::TempDir,
}

impl Door {
    fn open(change: impl Fn(&mut Options) + Send + Sync + 'static) -> Self {
        let (stage, directory) = (Stage::new(), tempfile::tempdir().unwrap());
        let path = directory.path().join("gateway-token");
        let port = Arc::new(Port::reserve("127.0.0.1:0".parse().unwrap()).unwrap());
        let store = stage.store.clone();
        let mut options = Options {
            port: Arc::clone(&port),
            workers: 1,
            body_bytes_max: 1024,
            streams_max: 4,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            turn_timeout: Duration::from_secs(10),
            token: Token::load_or_create(&path).unwrap(),
            operator: "operator".parse().unwrap(),
            steward: Arc::new(Nobody),
            tokens: TokenStore::new(stage.keys.clone()),
            rights: Arc::new(|_, grants| Permissions {
                publish: Rules::allowing(grants.publish.clone()),
                subscribe: Rules::allowing(grants.subscribe.clone()),
                request: Rules::allowing(grants.request.clone()),
                ..Permissions::default()
            }),
            attach: stage.attach(),
            rates: Rates { token: MANY, address: MANY, failures: MANY },
            boundary: Boundary::default(),
            tls: None,
            load_topic: None,
            numbers: Arc::new(Numbers::default),
            intake: Intake::default(),
            status_topic: "interlock/runtime/status/v1".parse().unwrap(),
            orders: orders(),
            store: Arc::new(move || Some(store.clone())),
            outbox: Arc::new(|| Err(StoreError::Closed)),
        };
        change(&mut options);
        let stand = stage.start("gateway", move || Ok(Gateway::new(options.clone())));
        let token = std::fs::read_to_string(&path).unwrap().trim().to_owned();
        Self { address: port.address(), token, stand, stage, _directory: directory }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// Sends a request with the token.
    fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = self.connect();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n",
            self.token
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        stream
    }

    /// A request, and the status and body of its answer.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        answer(self.send(method, path, body))
    }

    fn say(&self, text: &str) -> TcpStream {
        self.send("POST", "/v1/conversations/kitchen/messages", &json!({ "text": text }).to_string())
    }
}

/// Does nothing for anybody.
struct Nobody;

impl Nobody {
    fn refuse<T>() -> Result<T, Refusal> {
        Err(Refusal { kind: RefusalKind::Busy, code: "nobody".to_owned(), text: "nobody is here".to_owned() })
    }
}

impl Steward for Nobody {
    fn keys(&self) -> Result<Vec<Value>, Refusal> {
        Self::refuse()
    }

    fn key(&self, _: &PeerName) -> Result<Value, Refusal> {
        Self::refuse()
    }

    fn issue_key(&self, _: &PeerName, _: &NewPeer) -> Result<MadeKey, Refusal> {
        Self::refuse()
    }

    fn revoke_key(&self, _: &PeerName, _: &PeerName) -> Result<(), Refusal> {
        Self::refuse()
    }

    fn backups(&self) -> Result<Value, Refusal> {
        Self::refuse()
    }

    fn create_backup(&self, _: &PeerName, _: NewBackup, _: &mut Watcher<'_>) -> Result<Value, Refusal> {
        Self::refuse()
    }

    fn verify_backup(
        &self,
        _: &PeerName,
        _: &BackupName,
        _: Option<Passphrase>,
        _: &mut Watcher<'_>,
    ) -> Result<Value, Refusal> {
        Self::refuse()
    }

    fn database(&self) -> Result<Value, Refusal> {
        Self::refuse()
    }

    fn check_database(&self) -> Result<Value, Refusal> {
        Self::refuse()
    }

    fn configuration(&self, _: bool) -> Value {
        Value::Null
    }

    fn check_configuration(&self, _: &str) -> Value {
        Value::Null
    }

    fn rotate_key(
        &self,
        _: &PeerName,
        _: &PeerName,
        _: Duration,
        _: Option<Duration>,
    ) -> Result<MadeKey, Refusal> {
        Self::refuse()
    }
}

fn orders() -> Orders {
    let topic = |name: &str| format!("interlock/runtime/{name}/v1").parse().unwrap();
    Orders {
        ps: topic("ps"),
        plan: topic("plan"),
        explain: topic("explain"),
        start: topic("start-component"),
        stop_component: topic("stop-component"),
        restart: topic("restart-component"),
        reload: topic("reload"),
        log_levels: topic("log-levels"),
        stop: topic("stop"),
    }
}

/// All that comes until the connection ends.
fn answer(mut stream: TcpStream) -> (u16, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).unwrap_or_default().parse().unwrap_or(0);
    (status, text.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned()))
}

fn code(body: &str) -> String {
    let error: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
    assert!(error["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    error["error"]["code"].as_str().unwrap().to_owned()
}

fn started(input: &UserInput) -> TurnStarted {
    TurnStarted { conversation: input.conversation.clone().unwrap(), turn: uuid::Uuid::nil() }
}

async fn part(request: &Request, part: TurnPart) {
    request.reply(Payload::encode(&part).unwrap()).await.unwrap();
}

/// Plays the conversation engine: each request is handled by `play`.
fn engine<F>(client: Client, play: impl Fn(Request, UserInput) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let filter = topics::filter(topics::USER_INPUT);
            let mut service = client.serve(&filter, ServeOptions::default()).await.unwrap();
            ready.send(()).unwrap();
            while let Some(request) = service.next().await {
                let input = topics::read(&request.message).unwrap();
                tokio::spawn(play(request, input));
            }
        });
    });
    is_ready.recv_timeout(DEADLINE).unwrap();
}

/// Says the user's words back, one delta for each.
async fn echo(request: Request, input: UserInput) {
    let TurnStarted { conversation, turn } = started(&input);
    part(&request, TurnPart::Started(started(&input))).await;
    let words: Vec<&str> = input.text.split_inclusive(' ').collect();
    for (index, word) in (0..).zip(&words) {
        let (conversation, text) = (conversation.clone(), (*word).to_owned());
        part(&request, TurnPart::Delta(TurnDelta { conversation, turn, index, text })).await;
    }
    let completion = CompletionFinal {
        finish_reason: "stop".to_owned(),
        back_end: "test".to_owned(),
        model: "echo".to_owned(),
        ..CompletionFinal::default()
    };
    let deltas = words.len() as u32;
    let last = TurnPart::Final(TurnFinal { conversation, turn, text: input.text, deltas, completion });
    request.end(Payload::encode(&last).unwrap()).await.unwrap();
}

#[test]
fn a_turn_is_streamed_as_events_and_ends_in_exactly_one_final() {
    let door = Door::open(|_| {});
    engine(door.stage.client("conversation"), echo);
    let (status, body) = answer(door.say("one two"));
    assert_eq!(status, 200);
    let names: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names, ["started", "delta", "delta", "final"], "{body}");
    assert_eq!(door.ask("POST", "/v1/chat", "plain words").0, 200);
    assert!(door.ask("POST", "/v1/chat", "plain words").1.contains("plain "));
}

#[test]
fn a_failed_turn_ends_in_one_error_event_and_one_that_cannot_begin_in_an_http_error() {
    let door = Door::open(|_| {});
    let (status, body) = answer(door.say("nobody serves this yet"));
    assert_eq!((status, code(&body).as_str()), (503, "no_responders"));
    engine(door.stage.client("conversation"), |request, input| async move {
        match input.text.as_str() {
            "late" => {
                part(&request, TurnPart::Started(started(&input))).await;
                request.fail("model_gone", "the model went away").await.unwrap();
            }
            "dropped" => part(&request, TurnPart::Started(started(&input))).await,
            _ => request.fail("busy", "too much to do").await.unwrap(),
        }
    });
    let (status, body) = answer(door.say("late"));
    assert_eq!(status, 200);
    assert_eq!(body.matches("event: error").count() + body.matches("event: final").count(), 1, "{body}");
    assert!(body.contains("\"code\":\"model_gone\""), "{body}");
    let (_, body) = answer(door.say("dropped"));
    assert_eq!(body.matches("event: error").count(), 1, "{body}");
    let (status, body) = answer(door.say("early"));
    assert_eq!((status, code(&body).as_str()), (503, "busy"));
}

/// Starts turns that never end, and tells of each whether it has begun or was cancelled.
fn endless(client: Client) -> std::sync::mpsc::Receiver<&'static str> {
    let (tell, told) = std::sync::mpsc::channel();
    engine(client, move |request, input| {
        let tell = tell.clone();
        async move {
            part(&request, TurnPart::Started(started(&input))).await;
            tell.send("begun").unwrap();
            request.cancelled().wait().await;
            tell.send("cancelled").unwrap();
        }
    });
    told
}

#[test]
fn a_client_that_goes_away_cancels_its_turn() {
    let door = Door::open(|_| {});
    let told = endless(door.stage.client("conversation"));
    let stream = door.say("forever");
    assert_eq!(told.recv_timeout(DEADLINE).unwrap(), "begun");
    drop(stream);
    assert_eq!(told.recv_timeout(DEADLINE).unwrap(), "cancelled");
}

#[test]
fn a_client_that_takes_nothing_cancels_its_turn() {
    let door = Door::open(|options| options.write_timeout = Duration::from_millis(200));
    let (tell, told) = std::sync::mpsc::channel();
    engine(door.stage.client("conversation"), move |request, input| {
        let tell = tell.clone();
        async move {
            let TurnStarted { conversation, turn } = started(&input);
            part(&request, TurnPart::Started(started(&input))).await;
            for index in 0.. {
                let delta =
                    TurnDelta { conversation: conversation.clone(), turn, index, text: "x".repeat(64 << 10) };
                let Ok(()) = request.reply(Payload::encode(&TurnPart::Delta(delta)).unwrap()).await else {
                    break;
                };
            }
            tell.send(()).unwrap();
        }
    });
    let _stream = door.say("flood me");
    told.recv_timeout(DEADLINE).expect("the turn is cancelled");
}

#[test]
fn one_stream_too_many_is_busy_and_health_answers_within_50_ms_beside_slow_turns() {
    let door = Door::open(|_| {});
    let told = endless(door.stage.client("conversation"));
    let streams: Vec<TcpStream> = (0..4).map(|_| door.say("forever")).collect();
    for _ in &streams {
        assert_eq!(told.recv_timeout(DEADLINE).unwrap(), "begun");
    }
    let (status, body) = answer(door.say("one more"));
    assert_eq!((status, code(&body).as_str()), (503, "busy"));
    let quickest = (0..10)
        .map(|_| {
            let begun = Instant::now();
            assert_eq!(door.ask("GET", "/health/live", "").0, 200);
            begun.elapsed()
        })
        .min()
        .unwrap();
    assert!(quickest < Duration::from_millis(50), "{quickest:?}");
}

#[test]
fn bad_requests_are_answered_in_one_form() {
    let door = Door::open(|_| {});
    let messages = "/v1/conversations/kitchen/messages";
    for (method, path, body, status, expected) in [
        ("GET", "/nowhere", "", 404, "unknown_path"),
        ("DELETE", "/v1/status", "", 405, "method_not_allowed"),
        ("GET", "/v1/chat", "", 405, "method_not_allowed"),
        ("POST", messages, "{", 400, "bad_request"),
        ("POST", messages, "{\"text\":1}", 400, "bad_request"),
        ("POST", messages, "{\"txt\":\"a\"}", 400, "bad_request"),
        ("POST", messages, "{\"text\":\" \"}", 400, "bad_request"),
        ("POST", "/v1/conversations/a.b/messages", "{\"text\":\"a\"}", 400, "bad_request"),
        ("GET", "/v1/conversations/nobody", "", 404, "unknown_conversation"),
        ("POST", messages, &"x".repeat(2000), 413, "body_too_large"),
        ("GET", "/v1/status", "", 503, "no_responders"),
    ] {
        let (found, text) = door.ask(method, path, body);
        assert_eq!((found, code(&text).as_str()), (status, expected), "{method} {path}");
    }
    let (status, body) = door.ask("GET", "/health", "");
    assert_eq!(status, 503);
    assert!(body.contains("\"status\":\"error\""), "{body}");
}

#[test]
fn who_asks_for_an_unknown_path_is_told_where_all_are_described() {
    let door = Door::open(|_| {});
    let (status, body) = door.ask("GET", "/v2", "");
    assert_eq!((status, code(&body).as_str()), (404, "unknown_path"));
    for path in ["/openapi.json", "/docs/"] {
        assert!(body.contains(&format!("`{path}`")), "{path}: {body}");
        assert_eq!(door.ask("GET", path, "").0, 200, "{path}");
    }
}

#[test]
fn everything_but_liveness_and_the_page_needs_the_token() {
    let door = Door::open(|_| {});
    let without = |path: &str| {
        let mut stream = door.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        answer(stream)
    };
    for path in ["/", "/console/main.js", "/console/console.css", "/health/live"] {
        assert_eq!(without(path).0, 200, "{path}");
    }
    for path in
        ["/health", "/health/ready", "/v1/status", "/v1/conversations", "/v1/models", "/nowhere", "//"]
    {
        let (status, body) = without(path);
        let expected = if path == "/v1/models" { "invalid_api_key" } else { "unauthorized" };
        assert_eq!((status, code(&body).as_str()), (401, expected), "{path}");
    }
}

#[test]
fn the_description_of_the_interface_needs_no_token_and_the_socket_asks_for_it_itself() {
    let door = Door::open(|_| {});
    let status = |path: &str, header: &str| {
        let mut stream = door.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}Connection: close\r\n\r\n")
            .unwrap();
        answer(stream).0
    };
    for path in ["/openapi.json", "/docs/index.html", "/v1/socket"] {
        assert_ne!(status(path, ""), 401, "{path}");
    }
    assert_eq!(status("/v1/socket", "Authorization: Bearer wrong\r\n"), 401);
    assert_eq!(status("/docs", ""), 308);
}

#[test]
fn the_page_that_shows_the_interface_takes_nothing_from_elsewhere() {
    let door = Door::open(|_| {});
    let (_, page) = door.ask("GET", "/docs/", "");
    let files: Vec<&str> =
        page.split('"').filter(|text| text.ends_with(".js") || text.ends_with(".css")).collect();
    assert!(files.len() >= 3 && files.iter().all(|file| !file.contains("//")), "{files:?}");
    for file in files {
        let path = format!("/docs/{}", file.trim_start_matches("./"));
        assert_eq!(door.ask("GET", &path, "").0, 200, "{path}");
    }
    assert_eq!(door.ask("GET", "/docs/nothing.js", "").0, 404);
}

#[test]
fn orders_to_the_bus_are_given_as_the_peer_of_the_token() {
    let door = Door::open(|_| {});
    let asked_by = serve_status(door.stage.client("runtime"));
    assert_eq!(door.ask("GET", "/v1/status", "").0, 200);
    assert_eq!(asked_by.recv_timeout(DEADLINE).unwrap(), "operator");
    assert_eq!(door.ask("GET", "/health", "").0, 503, "it has no tree");
    assert_eq!(asked_by.recv_timeout(DEADLINE).unwrap(), "gateway");
}

/// Answers for the runtime, and tells who asked.
fn serve_status(client: Client) -> std::sync::mpsc::Receiver<String> {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let filter = "interlock/runtime/status/v1".parse().unwrap();
            let mut service = client.serve(&filter, ServeOptions::default()).await.unwrap();
            ready.send(()).unwrap();
            while let Some(request) = service.next().await {
                tell.send(request.message.origin.to_string()).unwrap();
                request.end(Payload::json(&json!({})).unwrap()).await.unwrap();
            }
        });
    });
    is_ready.recv_timeout(DEADLINE).unwrap();
    told
}

#[test]
fn a_body_or_a_head_that_does_not_come_is_not_waited_for() {
    let door = Door::open(|options| options.head_timeout = Duration::from_millis(200));
    let mut stream = door.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost:").unwrap();
    assert_eq!(answer(stream).0, 408);

    let door = Door::open(|options| options.body_timeout = Duration::from_millis(200));
    let mut stream = door.connect();
    write!(
        stream,
        "POST /v1/chat HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: 10\r\n\r\nhel",
        door.token
    )
    .unwrap();
    let (status, body) = answer(stream);
    assert_eq!(status, 408);
    assert_eq!(code(&body), "body_timeout");
}

#[test]
fn a_body_may_take_longer_than_a_head() {
    let door = Door::open(|options| options.head_timeout = Duration::from_millis(100));
    engine(door.stage.client("conversation"), echo);
    let mut stream = door.connect();
    // In one piece, so that a busy machine cannot make it late.
    let head = format!(
        "POST /v1/chat HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
        door.token
    );
    stream.write_all(head.as_bytes()).unwrap();
    for byte in b"hello" {
        // In all longer than a head may take: this time has to pass.
        std::thread::sleep(Duration::from_millis(80));
        stream.write_all(&[*byte]).unwrap();
    }
    let (status, body) = answer(stream);
    assert_eq!(status, 200, "{body}");
}

#[test]
fn a_chat_of_openais_form_is_refused_in_openais_form() {
    let door = Door::open(|_| {});
    let chat = "/v1/chat/completions";
    let hello = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    let with = |key: &str, value: Value| {
        let mut body = hello.clone();
        body[key] = value;
        body.to_string()
    };
    for (method, path, body, status, code, param) in [
        ("GET", chat, String::new(), 405, "method_not_allowed", json!(null)),
        ("POST", chat, "{".to_owned(), 400, "bad_request", json!(null)),
        ("POST", chat, with("n", json!(2)), 400, "unsupported_value", json!("n")),
        ("POST", chat, with("tools", json!([{}])), 400, "unsupported_parameter", json!("tools")),
        ("POST", chat, with("user", json!("x".repeat(2000))), 413, "body_too_large", json!(null)),
        ("POST", chat, hello.to_string(), 503, "no_responders", json!(null)),
        ("POST", "/v1/embeddings", json!({ "input": [1] }).to_string(), 400, "invalid_value", json!("input")),
        ("POST", "/v1/embeddings", json!({ "input": "a" }).to_string(), 503, "no_responders", json!(null)),
        ("GET", "/v1/models/a/b", String::new(), 503, "no_responders", json!(null)),
    ] {
        let (found, text) = door.ask(method, path, &body);
        let said: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let error = &said["error"];
        assert_eq!((found, &error["code"], &error["param"]), (status, &json!(code), &param), "{path} {body}");
        assert!(error["type"].is_string() && error["message"].is_string(), "{text}");
    }
}

#[test]
fn garbage_is_survived() {
    let door = Door::open(|_| {});
    for garbage in [&b"\x00\x01\x02\r\n\r\n"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &[0xff; 20_000]]
    {
        let mut stream = door.connect();
        // The other side may have hung up in the middle.
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(door.ask("GET", "/health/live", "").0, 200);
}

#[test]
fn a_stop_lets_running_turns_end_and_begins_no_new_ones() {
    let mut door = Door::open(|_| {});
    let (go_on, may_go_on) = tokio::sync::watch::channel(false);
    let (tell, told) = std::sync::mpsc::channel();
    engine(door.stage.client("conversation"), move |request, input| {
        let (mut may_go_on, tell) = (may_go_on.clone(), tell.clone());
        async move {
            tell.send(()).unwrap();
            soon("the word to go on", may_go_on.wait_for(|may| *may)).await.unwrap();
            echo(request, input).await;
        }
    });
    let stream = door.say("to the end");
    told.recv_timeout(DEADLINE).unwrap();
    let reader = std::thread::spawn(move || answer(stream));
    let address = door.address;
    let stopping = std::thread::spawn(move || door.stand.stop());
    let refused = |text: &str| text.contains("\"stopping\"") || text.is_empty();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        let (status, text) = answer(stream);
        if status == 200 || refused(&text) {
            break;
        }
        assert!(Instant::now() < deadline);
    }
    go_on.send(true).unwrap();
    let (status, body) = reader.join().unwrap();
    assert_eq!(status, 200);
    assert!(body.contains("event: final"), "{body}");
    stopping.join().unwrap();
    assert!(TcpStream::connect(address).is_err());
}
