//! `gateway`: what it bounds, and how long each step of a client may take.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};

use crate::harness::{
    DEADLINE, eventually,
    runtime::{CONFIG, TestRuntime},
};

#[test]
pub(crate) fn so_many_threads_answer_as_there_are_workers() {
    let runtime = TestRuntime::start();
    let threads =
        || std::fs::read_dir(format!("/proc/{}/task", runtime.process.id())).map_or(0, Iterator::count);
    runtime.get("/health/live");
    let before = threads();
    // The fixed part of the file ends with the section of the gateway.
    std::fs::write(runtime.directory.path().join("interlock.toml"), format!("{CONFIG}workers = 4\n"))
        .unwrap();
    assert!(runtime.interlock(&["reload"]).status.success());
    eventually("three more threads", || (threads() >= before + 3).then_some(()));
    eventually("an answer", || runtime.is_ready());
}

const HEAD: Duration = Duration::from_millis(800);
const BODY: Duration = Duration::from_millis(1600);
const TURN: Duration = Duration::from_millis(2400);
const WRITE: Duration = Duration::from_millis(1200);

/// Timers of the server may be rounded.
const EARLY: Duration = Duration::from_millis(20);

/// How much later than its limit a client may be let go: the clocks of kernel and server are coarse, and machines busy.
const LATE: Duration = Duration::from_millis(1900);

/// A client that has sent so much of a request and then does nothing.
fn stalled(runtime: &TestRuntime, text: &str) -> TcpStream {
    let url = runtime.url("").unwrap();
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    // So small that a streamed answer soon finds no room.
    setsockopt(&stream, sockopt::RcvBuf, &2048).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let token = runtime.token().unwrap();
    stream.write_all(text.replace("TOKEN", &token).as_bytes()).unwrap();
    stream
}

/// What comes until the server closes, and when the last of it came. Who has not sent its body has 5 s to hang up.
fn rest(mut stream: TcpStream, since: Instant) -> (String, Duration) {
    let (mut answer, mut last, mut buffer) = (Vec::new(), Duration::ZERO, [0; 4096]);
    // A reset is an end, too.
    while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..bytes]);
        last = since.elapsed();
    }
    (String::from_utf8_lossy(&answer).into_owned(), last)
}

#[test]
pub(crate) fn a_client_that_stalls_is_let_go_at_the_limit_of_its_step_and_others_are_served() {
    let script = tempfile::NamedTempFile::new().unwrap();
    // A long answer whose words are long, too: what a client does not take has to wait somewhere.
    let words = "abcdefghijklmnopqrstuvwxyz".repeat(40);
    let answer = vec![words.as_str(); 400].join(" ");
    std::fs::write(
        &script,
        format!("name = \"slow\"\notherwise = [\"{answer}\"]\nsilence = [\"-\"]\nkeywords = []\n"),
    )
    .unwrap();
    let runtime = TestRuntime::start_with(&format!(
        "body_bytes_max = 1000\nstreams_max = 2\nhead_timeout = \"{}ms\"\nbody_timeout = \"{}ms\"\nwrite_timeout = \"{}ms\"\n\
         turn_timeout = \"{}ms\"\n[model]\nscript = \"{}\"\nscript_pause = \"20ms\"\n",
        HEAD.as_millis(),
        BODY.as_millis(),
        WRITE.as_millis(),
        TURN.as_millis(),
        script.path().display()
    ));
    let post = |path: &str, length: usize| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer TOKEN\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let too_large = rest(stalled(&runtime, &post("/v1/chat", 1001)), Instant::now()).0;
    assert!(too_large.contains("413") && too_large.contains("`gateway.body_bytes_max`"), "{too_large}");

    let begun = Instant::now();
    let head = stalled(&runtime, "POST /v1/chat HTTP/1.1\r\nHost:");
    let body = stalled(&runtime, &format!("{}hell", post("/v1/chat", 5)));
    // Takes what comes, for longer than a turn may take.
    let turn =
        stalled(&runtime, &format!("{}{{\"text\":\"hello\"}}", post("/v1/conversations/turn/messages", 16)));
    // Takes nothing of it.
    let write = stalled(&runtime, &format!("{}hello", post("/v1/chat", 5)));
    // Both are streamed to; looking takes nothing.
    for stream in [&turn, &write] {
        assert_eq!(stream.peek(&mut [0]).unwrap(), 1);
    }
    std::thread::scope(|scope| {
        let head = scope.spawn(|| rest(head, begun));
        let body = scope.spawn(|| rest(body, begun));
        let turn = scope.spawn(|| rest(turn, begun));
        // Others are served meanwhile, but for a third stream.
        let (name, busy) = runtime.turn("third", "Hello").pop().unwrap();
        assert_eq!(name, "refused");
        assert_eq!(busy["error"]["code"], "busy", "{busy}");
        assert!(busy["error"]["message"].as_str().unwrap().contains("`gateway.streams_max`"), "{busy}");
        let mut slowest = Duration::ZERO;
        while begun.elapsed() < TURN {
            let asked = Instant::now();
            assert!(runtime.get("/v1/conversations").status().is_success());
            slowest = slowest.max(asked.elapsed());
        }
        assert!(slowest < Duration::from_secs(1), "somebody else waited {slowest:?}");

        for (step, limit, said, (answer, after)) in [
            ("head", HEAD, "408", head.join().unwrap()),
            ("body", BODY, "`gateway.body_timeout`", body.join().unwrap()),
            ("turn", TURN, "`gateway.turn_timeout`", turn.join().unwrap()),
        ] {
            assert!(answer.contains(said), "{step}: {answer}");
            assert!(after >= limit - EARLY && after < limit + LATE, "{step}: after {after:?}");
        }
    });
    // Whoever took nothing was cut before the turn was over: what waits in its socket is not the end.
    let (answer, _) = rest(write, begun);
    assert!(answer.contains("200 OK") && !answer.contains("turn_timeout"), "{answer}");
}
