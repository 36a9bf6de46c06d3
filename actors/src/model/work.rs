//! One request on one model: asked again while that is safe, passed on piece by piece, and judged at its end.

use std::{cell::RefCell, collections::VecDeque, time::Instant};

use interlock_bus::{client::Request, error::ReplyError};

use super::{
    back_end::{Answer, BackEnd, Piece},
    config::ModelConfig,
    error::BackEndError,
    line::Line,
    record::{Figures, Record},
    retry,
};
use crate::topics::{
    CompletionDelta, CompletionFinal, CompletionPart, CompletionRequest, Embeddings, EmbeddingsRequest,
    Fallback, Format, code, come_back,
};

/// A configured model.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) back_end: BackEnd,
    pub(super) config: ModelConfig,
    pub(super) line: RefCell<Line<Job>>,
    pub(super) record: RefCell<Record>,
}

/// A request, and what has become of it so far.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) asked: Asked,
    pub(super) format: Format,
    pub(super) came: Instant,
    /// Models that may still be asked, the next one first.
    pub(super) models: VecDeque<usize>,
    /// Those that were, and why they did not begin.
    pub(super) tried: Vec<Fallback>,
    /// The seconds after which the first of the busy ones wants to be asked again, if one said so.
    pub(super) come_back_s: Option<u64>,
}

/// What is asked for.
#[derive(Debug)]
pub(super) enum Asked {
    Completion(CompletionRequest),
    Embeddings(EmbeddingsRequest),
}

impl Asked {
    /// The turn that asks, for logs.
    fn turn(&self) -> Option<String> {
        match self {
            Self::Completion(asked) => Some(asked.turn.to_string()),
            Self::Embeddings(_) => None,
        }
    }

    fn what(&self) -> &'static str {
        match self {
            Self::Completion(_) => "completion",
            Self::Embeddings(_) => "embeddings",
        }
    }
}

impl Job {
    /// Ends it with the error of the model that was asked first; the others are named behind it.
    pub(super) async fn refuse(self) {
        let Self { request, tried, come_back_s, .. } = self;
        let code = tried.first().map_or(code::BACK_END_FAILED, |first| first.code.as_str());
        let mut text = match tried.as_slice() {
            [one] => one.text.clone(),
            many => many
                .iter()
                .map(|one| format!("model `{}`: {}", one.model, one.text))
                .collect::<Vec<_>>()
                .join("; "),
        };
        // Of several it stands behind the last, which may not be the one that said it.
        if let Some(seconds) = come_back_s.filter(|_| code == code::BACK_END_BUSY && tried.len() > 1) {
            text = format!("{text}; {}", come_back::words(seconds));
        }
        refuse(request, code, &text).await;
    }
}

/// Ends a request with an error; whoever asked may be gone already.
pub(super) async fn refuse(request: Request, code: &str, text: &str) {
    if let Err(error) = request.fail(code, text).await {
        tracing::debug!(code, %error, "an error was not taken");
    }
}

/// Why an answer stopped before its end.
enum Stopped {
    /// The model failed, and said something before or did not.
    BackEnd {
        error: BackEndError,
        has_begun: bool,
    },
    Codec(interlock_bus::CodecError),
    Reply(ReplyError),
}

impl Stopped {
    fn before(error: BackEndError) -> Self {
        Self::BackEnd { error, has_begun: false }
    }
}

/// An answer that has come to its end.
enum Ended {
    Completion(CompletionFinal),
    Embeddings(Embeddings),
}

/// What is measured of an answer while it comes.
struct Pace {
    first: Instant,
    pieces: u64,
}

impl Model {
    /// Works on `job` to its end; gives it back if this model did not begin, and another one is to be asked.
    pub(super) async fn work(&self, job: Job) -> Option<Job> {
        let waited = job.came.elapsed().as_secs_f64();
        self.count(|figures| figures.waited.add(waited));
        let cancelled = job.request.cancelled();
        let ended = tokio::select! {
            biased;
            () = cancelled.wait() => Err(Stopped::Reply(ReplyError::Cancelled)),
            ended = self.answer(&job) => ended,
        };
        match ended {
            Ok(ended) => {
                self.finished(&ended, &job);
                end(job, ended).await;
                None
            }
            Err(Stopped::BackEnd { error, has_begun }) => self.failed(job, error, has_begun).await,
            Err(Stopped::Codec(error)) => {
                tracing::error!(model = self.name, %error, "an answer cannot be encoded");
                self.count(|figures| figures.failed += 1);
                refuse(job.request, code::BACK_END_PROTOCOL, &error.to_string()).await;
                None
            }
            Err(Stopped::Reply(reason)) => {
                tracing::debug!(model = self.name, turn = job.asked.turn(), %reason, "request cancelled");
                self.count(|figures| figures.cancelled += 1);
                refuse(job.request, code::CANCELLED, &reason.to_string()).await;
                None
            }
        }
    }

    async fn answer(&self, job: &Job) -> Result<Ended, Stopped> {
        match &job.asked {
            Asked::Completion(asked) => self.complete(job, asked).await.map(Ended::Completion),
            Asked::Embeddings(asked) => self.embed(asked).await.map(Ended::Embeddings),
        }
    }

    /// Passes on the pieces and returns the end. Dropping it stops the back end.
    async fn complete(&self, job: &Job, asked: &CompletionRequest) -> Result<CompletionFinal, Stopped> {
        let begun = self.again_while_safe(|| async {
            let mut answer = self.back_end.complete(asked).await?;
            let first = answer.next().await?;
            Ok((answer, first))
        });
        let (mut answer, mut piece) = begun.await.map_err(Stopped::before)?;
        let mut pace = Pace { first: Instant::now(), pieces: 0 };
        for index in 0.. {
            let text = match piece {
                Piece::Final(end) => return Ok(self.measured(end, job, &pace)),
                Piece::Delta(text) => text,
            };
            if index == 0 {
                pace.first = Instant::now();
                self.heard(Ok(()));
            }
            pace.pieces += 1;
            let delta = CompletionPart::Delta(CompletionDelta { index, text });
            let payload = job.format.encode(&delta).map_err(Stopped::Codec)?;
            job.request.reply(payload).await.map_err(Stopped::Reply)?;
            piece = next(&mut answer).await?;
        }
        unreachable!("an answer of four billion pieces is cut by its requester long before")
    }

    async fn embed(&self, asked: &EmbeddingsRequest) -> Result<Embeddings, Stopped> {
        let embedded = self.again_while_safe(|| self.back_end.embed(asked)).await.map_err(Stopped::before)?;
        Ok(Embeddings {
            name: self.name.clone(),
            model: embedded.model,
            back_end: self.back_end.name().to_owned(),
            vectors: embedded.vectors,
            prompt_tokens: embedded.prompt_tokens,
        })
    }

    /// Asks, and asks again while the server has not begun to work on it and may be asked again.
    async fn again_while_safe<T, F: Future<Output = Result<T, BackEndError>>>(
        &self,
        ask: impl Fn() -> F,
    ) -> Result<T, BackEndError> {
        let mut retries = 0;
        loop {
            let error = match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(pause) = retry::pause(&error, retries, self.config.retries_max) else {
                return Err(error);
            };
            tracing::info!(model = self.name, %error, ?pause, "the model is asked again");
            retries += 1;
            self.count(|figures| figures.retries += 1);
            tokio::time::sleep(pause).await;
        }
    }

    fn measured(&self, end: CompletionFinal, job: &Job, pace: &Pace) -> CompletionFinal {
        let mut record = self.record.borrow_mut();
        let figures = &mut record.figures;
        let tokens = end.usage.map_or(pace.pieces, |usage| u64::from(usage.completion_tokens));
        figures.prompt_tokens += end.usage.map_or(0, |usage| u64::from(usage.prompt_tokens));
        figures.completion_tokens += tokens;
        if pace.pieces > 0 {
            figures.first_token.add(pace.first.duration_since(job.came).as_secs_f64());
        }
        let took = pace.first.elapsed().as_secs_f64();
        if pace.pieces > 1 && took > 0.0 {
            figures.tokens_per_s.add(tokens as f64 / took);
        }
        CompletionFinal { name: self.name.clone(), fallback: job.tried.clone(), ..end }
    }

    fn finished(&self, ended: &Ended, job: &Job) {
        self.heard(Ok(()));
        let mut record = self.record.borrow_mut();
        record.figures.finished += 1;
        record.figures.stood_in += u64::from(!job.tried.is_empty());
        if let Ended::Embeddings(Embeddings { prompt_tokens: Some(tokens), .. }) = ended {
            record.figures.prompt_tokens += u64::from(*tokens);
        }
    }

    /// Ends a job that failed here, or gives it back for the next model.
    async fn failed(&self, mut job: Job, error: BackEndError, has_begun: bool) -> Option<Job> {
        if !error.is_of_the_request() {
            self.heard(Err(error.to_string()));
        }
        let (code, text) = (error.code(), error.to_string());
        job.come_back_s = [job.come_back_s, error.retry_after_s()].into_iter().flatten().min();
        let model = self.name.as_str();
        let goes_on = !has_begun && !error.is_of_the_request() && !job.models.is_empty();
        self.count(|figures| if goes_on { figures.passed_on += 1 } else { figures.failed += 1 });
        job.tried.push(Fallback { model: model.to_owned(), code: code.to_owned(), text });
        if goes_on {
            tracing::warn!(model, code, %error, "the model does not answer; another one stands in");
            return Some(job);
        }
        tracing::warn!(model, turn = job.asked.turn(), code, %error, "request failed");
        if has_begun {
            // What came before is of this model alone.
            job.tried.drain(..job.tried.len() - 1);
        }
        job.refuse().await;
        None
    }

    fn count(&self, change: impl FnOnce(&mut Figures)) {
        change(&mut self.record.borrow_mut().figures);
    }

    fn heard(&self, said: Result<(), String>) {
        self.record.borrow_mut().heard(said, Instant::now());
    }
}

async fn next(answer: &mut Answer) -> Result<Piece, Stopped> {
    answer.next().await.map_err(|error| Stopped::BackEnd { error, has_begun: true })
}

async fn end(job: Job, ended: Ended) {
    let (turn, what) = (job.asked.turn(), job.asked.what());
    let payload = match &ended {
        Ended::Completion(end) => job.format.encode(&CompletionPart::Final(end.clone())),
        Ended::Embeddings(embeddings) => job.format.encode(embeddings),
    };
    let taken = match payload {
        Ok(payload) => job.request.end(payload).await,
        Err(error) => job.request.fail(code::BACK_END_PROTOCOL, &error.to_string()).await,
    };
    match taken {
        Ok(()) => tracing::debug!(turn, what, "request finished"),
        Err(error) => tracing::debug!(turn, what, %error, "request finished, and nobody took its end"),
    }
}
