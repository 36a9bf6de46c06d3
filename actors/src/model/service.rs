//! The actor: takes requests, keeps them in a bounded line, and passes on what the back end says.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use interlock_bus::{client::Request, error::ReplyError};

use super::{
    back_end::{self, BackEnd, BackEndError, Piece},
    config::ModelConfig,
};
use crate::{
    actor::{Actor, Failure, Input},
    context::Context,
    topics::{self, CompletionDelta, CompletionFinal, CompletionPart, CompletionRequest, Format, code},
};

/// Serves [`topics::COMPLETIONS`] and [`topics::MODELS`].
///
/// - Every request ends in one final part or one error.
/// - A cancelled request stops its back end at once: what works for it is dropped.
/// - At most `concurrent_max` completions run, at most `waiting_max` wait; a further one gets `busy`.
#[derive(Debug)]
pub struct ModelService {
    config: ModelConfig,
    running: Option<Rc<Running>>,
}

#[derive(Debug)]
struct Running {
    back_end: BackEnd,
    concurrent_max: usize,
    waiting_max: usize,
    line: RefCell<Line>,
}

/// Completions that run and those that wait.
#[derive(Debug, Default)]
struct Line {
    running: usize,
    waiting: VecDeque<Job>,
}

#[derive(Debug)]
struct Job {
    request: Request,
    asked: CompletionRequest,
    format: Format,
}

impl ModelService {
    /// The service for a configuration. Nothing is read or opened before it is started.
    pub fn new(config: ModelConfig) -> Self {
        Self { config, running: None }
    }
}

impl Actor for ModelService {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        let back_end = BackEnd::new(&self.config)?;
        let described = back_end.describe();
        let ModelConfig { concurrent_max, waiting_max, .. } = self.config;
        let line = RefCell::default();
        self.running = Some(Rc::new(Running { back_end, concurrent_max, waiting_max, line }));
        topics::register(context.client());
        context.serve(&topics::filter(topics::COMPLETIONS)).await?;
        context.serve(&topics::filter(topics::MODELS)).await?;
        tracing::info!(back_end = %described, "model service is ready");
        context.status(described);
        Ok(())
    }

    async fn handle(&mut self, input: Input, context: &Context) -> Result<(), Failure> {
        let (Input::Request(request), Some(running)) = (input, &self.running) else { return Ok(()) };
        let running = Rc::clone(running);
        match request.message.topic.as_str() {
            topics::MODELS => context.spawn(async move {
                list_models(&running.back_end, request).await;
                Ok(())
            }),
            _ => running.take(request, context),
        }
        Ok(())
    }

    async fn stopping(&mut self, _context: &Context) -> Result<(), Failure> {
        let Some(running) = &self.running else { return Ok(()) };
        let waiting = std::mem::take(&mut running.line.borrow_mut().waiting);
        for job in waiting {
            refuse(job.request, code::STOPPING, "the model service is stopping").await;
        }
        Ok(())
    }
}

impl Running {
    /// Starts a completion, or lets it wait, or refuses it.
    fn take(self: Rc<Self>, request: Request, context: &Context) {
        let format = Format::of_reply_to(&request.message);
        let asked = topics::read::<CompletionRequest>(&request.message)
            .map_err(|error| error.to_string())
            .and_then(|asked| back_end::check(&asked).map(|()| asked));
        let job = match asked {
            Ok(asked) => Job { request, asked, format },
            Err(problem) => {
                return context.spawn(async move {
                    refuse(request, code::BAD_REQUEST, &problem).await;
                    Ok(())
                });
            }
        };
        let mut line = self.line.borrow_mut();
        if line.running < self.concurrent_max {
            line.running += 1;
            drop(line);
            return context.spawn(self.work(job));
        }
        if line.waiting.len() >= self.waiting_max {
            line.waiting.retain(|job| !job.request.cancelled().is_cancelled());
        }
        let waiting = line.waiting.len();
        if waiting < self.waiting_max {
            line.waiting.push_back(job);
            return;
        }
        drop(line);
        let problem =
            format!("{} completions run and {waiting} wait already; try again later", self.concurrent_max);
        context.spawn(async move {
            refuse(job.request, code::BUSY, &problem).await;
            Ok(())
        });
    }

    /// Answers one request, then those that wait, one after another.
    async fn work(self: Rc<Self>, first: Job) -> Result<(), Failure> {
        let mut next = Some(first);
        while let Some(job) = next {
            answer(&self.back_end, job).await;
            let mut line = self.line.borrow_mut();
            next = line.waiting.pop_front();
            if next.is_none() {
                line.running -= 1;
            }
        }
        Ok(())
    }
}

/// Why a completion stopped before its end.
enum Stopped {
    BackEnd(BackEndError),
    Codec(interlock_bus::CodecError),
    Reply(ReplyError),
}

impl From<BackEndError> for Stopped {
    fn from(error: BackEndError) -> Self {
        Self::BackEnd(error)
    }
}

/// Answers a request to its one end.
async fn answer(back_end: &BackEnd, job: Job) {
    let Job { request, asked, format } = job;
    let cancelled = request.cancelled();
    let ended = tokio::select! {
        biased;
        () = cancelled.wait() => Err(Stopped::Reply(ReplyError::Cancelled)),
        ended = stream(back_end, &request, &asked, format) => ended,
    };
    let (turn, model) = (asked.turn, asked.options.model);
    let ended = ended.and_then(|end| format.encode(&CompletionPart::Final(end)).map_err(Stopped::Codec));
    match ended {
        Ok(last) => match request.end(last).await {
            Ok(()) => tracing::debug!(%turn, "completion finished"),
            Err(error) => tracing::debug!(%turn, %error, "completion finished, and nobody took it"),
        },
        Err(Stopped::BackEnd(error)) => {
            tracing::warn!(%turn, model, code = error.code(), %error, "completion failed");
            refuse(request, error.code(), &error.to_string()).await;
        }
        Err(Stopped::Codec(error)) => {
            tracing::error!(%turn, %error, "completion cannot be encoded");
            refuse(request, code::BACK_END_PROTOCOL, &error.to_string()).await;
        }
        Err(Stopped::Reply(reason)) => {
            tracing::debug!(%turn, %reason, "completion cancelled");
            refuse(request, code::CANCELLED, &reason.to_string()).await;
        }
    }
}

/// Passes on the deltas and returns the end. Dropping it stops the back end.
async fn stream(
    back_end: &BackEnd,
    request: &Request,
    asked: &CompletionRequest,
    format: Format,
) -> Result<CompletionFinal, Stopped> {
    let mut answer = back_end.complete(asked).await?;
    for index in 0.. {
        let delta = match answer.next().await? {
            Piece::Final(end) => return Ok(end),
            Piece::Delta(text) => CompletionPart::Delta(CompletionDelta { index, text }),
        };
        request.reply(format.encode(&delta).map_err(Stopped::Codec)?).await.map_err(Stopped::Reply)?;
    }
    unreachable!("an answer of four billion pieces is cut by its requester long before")
}

async fn list_models(back_end: &BackEnd, request: Request) {
    let format = Format::of_reply_to(&request.message);
    let cancelled = request.cancelled();
    let list = tokio::select! {
        biased;
        () = cancelled.wait() => return refuse(request, code::CANCELLED, "the requester wants no more").await,
        list = back_end.models() => list,
    };
    match list
        .map_err(|error| (error.code(), error.to_string()))
        .and_then(|list| format.encode(&list).map_err(|error| (code::BACK_END_PROTOCOL, error.to_string())))
    {
        Ok(payload) => {
            if let Err(error) = request.end(payload).await {
                tracing::debug!(%error, "a list of models was not taken");
            }
        }
        Err((code, text)) => refuse(request, code, &text).await,
    }
}

/// Ends a request with an error; whoever asked may be gone already.
async fn refuse(request: Request, code: &str, text: &str) {
    if let Err(error) = request.fail(code, text).await {
        tracing::debug!(code, %error, "an error was not taken");
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
