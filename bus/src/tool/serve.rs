//! `bus serve`: a command, a text or the question itself as the answer to each request.

use std::{
    fmt::Display,
    process::Stdio,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdout, Command},
};

use super::{Failure, Output, signals::Signals};
use crate::{
    client::{Client, Request, ServeOptions},
    envelope::{ContentType, Payload},
    error::ReplyError,
    exit::Exit,
    limits,
    topic::TopicFilter,
};

/// The code of a command that did not end with 0.
const COMMAND_FAILED: &str = "command_failed";

/// What `bus serve` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bus serve ask/date --command date\n  bus serve 'echo/#' --echo\n  bus serve ask/lines --command 'seq 10' --lines --parallel 8"
)]
#[command(group = clap::ArgGroup::new("answer").required(true))]
pub(super) struct Arguments {
    /// Topics to answer on: `+` is one level, `#` the rest
    filter: TopicFilter,
    /// Run this with `sh -c` for each request: the question is its input, its output the answer
    #[arg(long, short, value_name = "COMMAND", group = "answer")]
    command: Option<String>,
    /// Answer with the question
    #[arg(long, group = "answer")]
    echo: bool,
    /// Answer with this text
    #[arg(long, value_name = "TEXT", group = "answer")]
    text: Option<String>,
    /// Send each line of the command's output at once, as a part of the answer
    #[arg(long, requires = "command")]
    lines: bool,
    /// Say that the answers are JSON
    #[arg(long)]
    json_payload: bool,
    /// Share the requests with others who serve in this group
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Requests that are answered at the same time; others wait
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    parallel: u16,
    /// End after this many requests
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// How one request was answered.
struct Served {
    topic: String,
    origin: String,
    took: Duration,
    /// Bytes of the answer, or why there is none.
    result: Result<u64, Refused>,
}

/// A word for programs and a sentence for people.
struct Refused(&'static str, String);

pub(super) fn run(
    arguments: &Arguments,
    client: &Client,
    signals: &mut Signals,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure::new(Exit::Io, format!("cannot wait for commands: {error}")))?;
    runtime.block_on(serve(arguments, client, signals, output))
}

async fn serve(
    arguments: &Arguments,
    client: &Client,
    signals: &mut Signals,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let options = ServeOptions { group: arguments.group.clone(), ..ServeOptions::default() };
    let mut service = client.serve(&arguments.filter, options).await?;
    output.note(&format!("serving `{}`; end it with Ctrl-C", arguments.filter));
    let mut running = FuturesUnordered::new();
    let (mut taken, mut failed, mut is_asked) = (0, 0u64, false);
    loop {
        let wants_more = !is_asked && arguments.count.is_none_or(|count| taken < count);
        if !wants_more && running.is_empty() {
            return Ok(if failed > 0 { Exit::Failed } else { Exit::Done });
        }
        tokio::select! {
            biased;
            () = signals.next() => match is_asked {
                false => is_asked = true,
                // Twice means now: with the answers their commands end.
                true => return Ok(Exit::Forced),
            },
            Some(served) = running.next() => {
                let served: Served = served;
                failed += u64::from(served.result.is_err());
                tell(&served, output)?;
            }
            request = service.next(), if wants_more && running.len() < usize::from(arguments.parallel) => {
                let Some(request) = request else {
                    let reason = service.end_reason().or_else(|| client.closed_reason()).unwrap_or_default();
                    return Err(Failure::new(Exit::Denied, format!("the service has ended: {reason}")));
                };
                taken += 1;
                running.push(answer(arguments, request));
            }
        }
    }
}

async fn answer(arguments: &Arguments, request: Request) -> Served {
    let began = Instant::now();
    let (topic, origin) = (request.message.topic.to_string(), request.message.origin.to_string());
    let result = match (&arguments.command, &arguments.text) {
        (Some(command), _) => run_command(arguments, command, request).await,
        (None, Some(text)) => end(request, arguments.payload(text.clone().into_bytes())).await,
        (None, None) => {
            let (bytes, header) = (request.message.payload.clone(), &request.message.header);
            let payload = Payload { content_type: header.content_type.clone(), bytes, schema: header.schema };
            end(request, payload).await
        }
    };
    Served { topic, origin, took: began.elapsed(), result }
}

impl Arguments {
    /// Text if it is UTF-8, else bytes.
    fn payload(&self, bytes: Vec<u8>) -> Payload {
        match String::from_utf8(bytes) {
            Ok(text) if self.json_payload => {
                Payload { content_type: ContentType::Json, ..Payload::bytes(text) }
            }
            Ok(text) => Payload::text(text),
            Err(error) => Payload::bytes(error.into_bytes()),
        }
    }
}

async fn end(request: Request, payload: Payload) -> Result<u64, Refused> {
    let bytes = payload.bytes.len() as u64;
    match request.end(payload).await {
        Ok(()) => Ok(bytes),
        Err(error) => Err(unsent(&error)),
    }
}

fn unsent(error: &ReplyError) -> Refused {
    Refused("not_sent", error.to_string())
}

/// Ends the command's processes, also those that it has started, when it is dropped.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.id() {
            // It may have ended meanwhile.
            let _ = killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }
}

async fn run_command(arguments: &Arguments, command: &str, request: Request) -> Result<u64, Refused> {
    let cancelled = request.cancelled();
    tokio::select! {
        result = run_to_its_end(arguments, command, &request) => {
            let refused = match result {
                Ok((bytes, None)) => return request.end_empty().await.map(|()| bytes).map_err(|error| unsent(&error)),
                Ok((_, Some(payload))) => return end(request, payload).await,
                Err(refused) => refused,
            };
            // Who is not there any more needs no reason.
            let _ = request.fail(refused.0, &refused.1).await;
            Err(refused)
        }
        () = cancelled.wait() => Err(Refused("cancelled", "the requester wants no answer any more".to_owned())),
    }
}

/// Gives the bytes that were sent in parts, and what is to be sent as the last one.
async fn run_to_its_end(
    arguments: &Arguments,
    command: &str,
    request: &Request,
) -> Result<(u64, Option<Payload>), Refused> {
    // Without the command: it is nobody's business but ours, and may hold a secret.
    let refused = |error: &dyn Display| Refused(COMMAND_FAILED, format!("the command failed: {error}"));
    let message = &request.message;
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .env("INTERLOCK_REQUEST_TOPIC", message.topic.as_str())
        .env("INTERLOCK_REQUEST_ORIGIN", message.origin.as_str())
        .env("INTERLOCK_REQUEST_ID", message.header.id.to_string())
        .env("INTERLOCK_REQUEST_CONTENT_TYPE", message.header.content_type.as_str())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut group = Group(shell.spawn().map_err(|error| refused(&error))?);
    let (Some(mut input), Some(answer)) = (group.0.stdin.take(), group.0.stdout.take()) else {
        return Err(refused(&"it has no input or output"));
    };
    let question = message.payload.clone();
    let ask = async move {
        // A command need not read its question.
        let _ = input.write_all(&question).await;
    };
    let (_, answered) = tokio::join!(ask, read(arguments, request, answer));
    let answered = answered.map_err(|error| match error {
        Unread::Output(error) => refused(&error),
        Unread::Reply(error) => unsent(&error),
        Unread::TooLarge => {
            refused(&format!("its output is longer than {} bytes", limits::PAYLOAD_BYTES_MAX))
        }
    })?;
    let status = group.0.wait().await.map_err(|error| refused(&error))?;
    if !status.success() {
        return Err(refused(&format!("it ended with {}", ended_with(status))));
    }
    Ok(answered)
}

/// Why the output of a command is no answer.
enum Unread {
    Output(std::io::Error),
    Reply(ReplyError),
    TooLarge,
}

async fn read(
    arguments: &Arguments,
    request: &Request,
    output: ChildStdout,
) -> Result<(u64, Option<Payload>), Unread> {
    let limit = limits::PAYLOAD_BYTES_MAX as u64 + 1;
    if !arguments.lines {
        let mut bytes = Vec::new();
        output.take(limit).read_to_end(&mut bytes).await.map_err(Unread::Output)?;
        return match bytes.len() > limits::PAYLOAD_BYTES_MAX {
            true => Err(Unread::TooLarge),
            false => Ok((0, Some(arguments.payload(bytes)))),
        };
    }
    let mut lines = BufReader::new(output);
    let mut sent = 0;
    loop {
        let mut line = Vec::new();
        (&mut lines).take(limit).read_until(b'\n', &mut line).await.map_err(Unread::Output)?;
        if line.is_empty() {
            return Ok((sent, None));
        }
        if line.len() > limits::PAYLOAD_BYTES_MAX {
            return Err(Unread::TooLarge);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        sent += line.len() as u64;
        request.reply(arguments.payload(line)).await.map_err(Unread::Reply)?;
    }
}

fn ended_with(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;

    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

fn tell(served: &Served, output: &mut Output) -> Result<(), Failure> {
    let Served { topic, origin, took, result } = served;
    let took_ms = took.as_secs_f64() * 1e3;
    if output.is_json() {
        let (code, text) = match result {
            Ok(_) => (None, None),
            Err(Refused(code, text)) => (Some(code), Some(text)),
        };
        return output.json(&json!({
            "topic": topic, "origin": origin, "took_ms": took_ms, "bytes": result.as_ref().ok(), "code": code, "text": text,
        }));
    }
    let end = match result {
        Ok(bytes) => format!("{bytes} bytes"),
        Err(Refused(code, text)) => format!("{code}: {text}"),
    };
    let line = output.harmless(&format!("{topic}  {origin}  {took_ms:.1} ms  {end}"));
    output.line(&line)
}
