//! A small HTTP server that answers with the bytes a test gives it.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{BackEnd, BackEndError, BackEndKind, ModelConfig, Piece};
use crate::topics::{ChatMessage, CompletionFinal, CompletionRequest, Role};

pub(super) const SOON: Duration = Duration::from_secs(10);

/// A server on a port of its own.
pub(super) struct Server {
    pub(super) listener: TcpListener,
}

impl Server {
    pub(super) async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub(super) fn config(&self, back_end: BackEndKind) -> ModelConfig {
        let mut config = ModelConfig { back_end, ..ModelConfig::default() };
        config.url = format!("http://{}/v1/", self.listener.local_addr().unwrap());
        config.model = Some("small".to_owned());
        config
    }

    /// Takes one connection and reads one request.
    pub(super) async fn request(&self) -> (TcpStream, String) {
        let (mut stream, _) = self.listener.accept().await.unwrap();
        let mut request = Vec::new();
        loop {
            let mut bytes = [0; 4096];
            let count = stream.read(&mut bytes).await.unwrap();
            request.extend_from_slice(&bytes[..count]);
            let text = String::from_utf8_lossy(&request);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
            });
            if body.len() >= length.unwrap_or(0) {
                return (stream, text.into_owned());
            }
        }
    }

    /// Answers one request with these pieces, each flushed, then closes.
    pub(super) async fn answer(&self, pieces: Vec<&str>) -> String {
        let (mut stream, request) = self.request().await;
        for piece in pieces {
            stream.write_all(piece.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            tokio::task::yield_now().await;
        }
        request
    }
}

pub(super) fn question() -> CompletionRequest {
    CompletionRequest {
        turn: uuid::Uuid::nil(),
        messages: vec![ChatMessage::new(Role::System, "be kind"), ChatMessage::new(Role::User, "hello")],
        options: Default::default(),
    }
}

pub(super) async fn run(back_end: &BackEnd) -> (Vec<String>, Result<CompletionFinal, BackEndError>) {
    let mut deltas = Vec::new();
    let run = async {
        let mut answer = back_end.complete(&question()).await?;
        loop {
            match answer.next().await? {
                Piece::Delta(text) => deltas.push(text),
                Piece::Final(end) => return Ok(end),
            }
        }
    };
    let end = timeout(SOON, run).await.expect("an answer ends in time");
    (deltas, end)
}

/// An answer with a body.
pub(super) fn body(status: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nretry-after: 7\r\nconnection: close\r\n\r\n{body}"
    )
}
