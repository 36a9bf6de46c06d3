//! Work that takes as long as there is much to do. Its answer comes at its end, however late; with
//! `Accept: text/event-stream` each word of how far it is comes as an event `progress`, and then `end` or `error`.
//! A client that goes away, a token that ends and a gateway that stops end the work, too.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use serde_json::Value;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::JoinHandle,
    time::timeout,
};

use super::{
    error::ApiError,
    hangup::Hangup,
    server::Data,
    sse::{self, Sink},
    steward::{Refusal, Steward},
};
use crate::backup::{Phase, Progress, Watcher};

/// Words that wait for the reader. Further ones are left out: what comes later says more.
const WORDS_MAX: usize = 16;

/// How long a stream waits for the first word before it begins: a refusal comes at once, and is an answer of its own.
const FIRST_WORD_WITHIN: Duration = Duration::from_secs(1);

/// Stops the work when nobody waits for it any more.
struct Cancel(Arc<AtomicBool>);

impl Cancel {
    fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        self.now();
    }
}

/// Work under way.
struct Work {
    end: JoinHandle<Result<Value, Refusal>>,
    words: mpsc::Receiver<Progress>,
    cancel: Cancel,
    hangup: Hangup,
    _permit: OwnedSemaphorePermit,
}

/// What comes next of it.
enum Step {
    Word(Progress),
    End(Result<Value, ApiError>),
}

impl Work {
    /// The next word, or the end. Whoever is told to stop ends soon, and is waited for: it wipes what is unfinished.
    async fn next(&mut self, shared: &Data) -> Step {
        loop {
            tokio::select! {
                biased;
                Some(word) = self.words.recv() => return Step::Word(word),
                outcome = &mut self.end => return Step::End(match outcome {
                    Ok(outcome) => outcome.map_err(ApiError::from),
                    Err(error) => Err(ApiError::refused(500, "failed", format!("the work has ended without an end: {error}"))),
                }),
                () = shared.stopped(), if !self.cancel.is_set() => self.cancel.now(),
                () = self.hangup.wait(), if !self.cancel.is_set() => self.cancel.now(),
            }
        }
    }

    async fn end(&mut self, shared: &Data) -> Result<Value, ApiError> {
        loop {
            if let Step::End(end) = self.next(shared).await {
                return end;
            }
        }
    }
}

/// Has it done on a thread of its own, and answers with what it comes to.
pub(super) async fn answer(
    shared: &Data,
    request: &HttpRequest,
    work: impl FnOnce(&dyn Steward, &mut Watcher<'_>) -> Result<Value, Refusal> + Send + 'static,
) -> Result<HttpResponse, ApiError> {
    let permit = shared.stream_permit()?;
    let (told, words) = mpsc::channel(WORDS_MAX);
    let cancel = Arc::new(AtomicBool::new(false));
    let (steward, cancelled) = (Arc::clone(&shared.options.steward), Arc::clone(&cancel));
    let end = tokio::task::spawn_blocking(move || {
        let mut tell = |word: Progress| {
            if !matches!(word.phase, Phase::Done | Phase::Error) {
                // Full: the reader is slow, and hears of what comes later.
                let _ = told.try_send(word);
            }
        };
        work(&*steward, &mut Watcher { tell: &mut tell, cancel: &cancelled })
    });
    let mut work = Work { end, words, cancel: Cancel(cancel), hangup: Hangup::of(request), _permit: permit };
    let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    if !accept.is_some_and(|accept| accept.contains("text/event-stream")) {
        return Ok(HttpResponse::Ok().json(work.end(shared).await?));
    }
    let first = match timeout(FIRST_WORD_WITHIN, work.next(shared)).await {
        Ok(Step::End(Err(error))) => return Err(error),
        first => first.ok(),
    };
    let (sink, response) = sse::stream(shared);
    actix_web::rt::spawn(pass_on(web::Data::clone(shared), work, first, sink));
    Ok(response)
}

/// Passes words on until the end, or until the reader is gone.
async fn pass_on(shared: Data, mut work: Work, mut first: Option<Step>, sink: Sink) {
    loop {
        let step = match first.take() {
            Some(step) => step,
            None => match sink.alive(work.next(&shared)).await {
                Ok(step) => step,
                Err(_gone) => break,
            },
        };
        let mut events = String::new();
        let is_end = matches!(step, Step::End(_));
        match step {
            Step::Word(word) => sse::write(&mut events, "progress", &word),
            Step::End(Ok(result)) => sse::write(&mut events, "end", &result),
            Step::End(Err(error)) => sse::write(&mut events, "error", &error.content()),
        }
        if is_end {
            // Whether or not somebody reads it: it is over.
            let _ = sink.send(events).await;
            return;
        }
        if sink.send(events).await.is_err() {
            break;
        }
    }
    work.cancel.now();
    let _ = work.end(&shared).await;
}
