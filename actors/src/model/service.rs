//! The actor: takes requests, finds their models, keeps them in bounded lines, and looks after models that are idle.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use interlock_bus::client::Request;

use super::{
    back_end::{self, BackEnd},
    config::{NamedModel, ServiceConfig},
    error::BackEndError,
    limits,
    line::{Line, Place},
    record::Record,
    roster::{Roster, Route},
    work::{Asked, Job, Model, refuse},
};
use crate::{
    actor::{Actor, Failure, Input},
    context::Context,
    topics::{
        self, CompletionRequest, Described, EmbeddingsRequest, Fallback, Format, ModelDescription,
        ModelFigures, ModelList, ModelStatistics, code,
    },
};

/// How often it is looked which models were idle for long enough to be asked whether they are there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Serves [`topics::COMPLETIONS`], [`topics::EMBEDDINGS`], [`topics::MODELS`] and [`topics::MODEL_STATISTICS`].
///
/// - Every request ends in one final part or one error.
/// - A cancelled request stops its back end at once: what works for it is dropped.
/// - Of each model at most `concurrent_max` requests run and at most `waiting_max` wait; a further one gets `busy`.
/// - A completion that a model did not begin goes on to those that stand in; its answer says so.
/// - It is impaired while nobody is there to answer a request that names no model.
#[derive(Debug)]
pub struct ModelService {
    config: ServiceConfig,
    running: Option<Rc<Running>>,
}

#[derive(Debug)]
struct Running {
    models: Vec<Model>,
    roster: Roster,
    fallback: Vec<String>,
    /// What was last said of how the models are.
    told: RefCell<(String, Option<String>)>,
}

impl ModelService {
    /// The service for a configuration. Nothing is read or opened before it is started.
    pub fn new(config: impl Into<ServiceConfig>) -> Self {
        Self { config: config.into(), running: None }
    }
}

impl Actor for ModelService {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        let running = Rc::new(Running::new(&self.config)?);
        topics::register(context.client());
        for topic in [topics::COMPLETIONS, topics::EMBEDDINGS, topics::MODELS, topics::MODEL_STATISTICS] {
            context.serve(&topics::filter(topic)).await?;
        }
        for model in &running.models {
            tracing::info!(model = model.name, back_end = %model.back_end.describe(), "model is ready to be asked");
        }
        running.tell(context);
        running.look_after(context);
        self.running = Some(running);
        Ok(())
    }

    async fn handle(&mut self, input: Input, context: &Context) -> Result<(), Failure> {
        let (Input::Request(request), Some(running)) = (input, &self.running) else { return Ok(()) };
        let running = Rc::clone(running);
        match request.message.topic.as_str() {
            topics::MODELS => context.spawn(async move {
                running.list(request).await;
                Ok(())
            }),
            topics::MODEL_STATISTICS => {
                let statistics = running.statistics();
                context.spawn(async move {
                    answer(request, Ok(statistics)).await;
                    Ok(())
                });
            }
            topics::EMBEDDINGS => {
                let asked =
                    read(&request, back_end::check_inputs).and_then(|mut asked: EmbeddingsRequest| {
                        let route = running.roster.embeddings(asked.model.as_deref())?;
                        asked.model = route.pass_on.clone();
                        Ok((Asked::Embeddings(asked), route))
                    });
                running.take(request, asked, context);
            }
            _ => {
                let asked = read(&request, back_end::check).and_then(|mut asked: CompletionRequest| {
                    let route = running.roster.completion(asked.options.model.as_deref())?;
                    asked.options.model = route.pass_on.clone();
                    Ok((Asked::Completion(asked), route))
                });
                running.take(request, asked, context);
            }
        }
        Ok(())
    }

    fn tick_every(&self) -> Option<Duration> {
        Some(LOOK_EVERY)
    }

    async fn tick(&mut self, context: &Context) -> Result<(), Failure> {
        if let Some(running) = &self.running {
            running.look_after(context);
            running.tell(context);
        }
        Ok(())
    }

    async fn stopping(&mut self, _context: &Context) -> Result<(), Failure> {
        let Some(running) = &self.running else { return Ok(()) };
        for model in &running.models {
            let waiting = model.line.borrow_mut().drain();
            for job in waiting {
                refuse(job.request, code::STOPPING, "the model service is stopping").await;
            }
        }
        Ok(())
    }
}

/// Why a request is not taken: a code and a text.
struct Refusal(&'static str, String);

impl From<BackEndError> for Refusal {
    fn from(error: BackEndError) -> Self {
        Self(error.code(), error.to_string())
    }
}

fn read<T: serde::de::DeserializeOwned>(
    request: &Request,
    check: impl Fn(&T) -> Result<(), String>,
) -> Result<T, Refusal> {
    let asked = topics::read::<T>(&request.message);
    let asked = asked.map_err(|error| Refusal(code::UNREADABLE, error.to_string()))?;
    check(&asked).map_err(|problem| Refusal(code::BAD_REQUEST, problem))?;
    Ok(asked)
}

impl Running {
    fn new(config: &ServiceConfig) -> Result<Self, BackEndError> {
        config.validate()?;
        let model = |NamedModel { name, config }: &NamedModel| {
            let back_end = BackEnd::new(config)?;
            Ok(Model {
                name: name.clone(),
                back_end,
                config: config.clone(),
                line: RefCell::new(Line::new(config.concurrent_max, config.waiting_max)),
                record: RefCell::new(Record::new()),
            })
        };
        let models: Vec<Model> = config.models.iter().map(model).collect::<Result<_, BackEndError>>()?;
        let alias = |model: &Model| match &model.back_end {
            BackEnd::Script(script) => (Some(script.model().to_owned()), false),
            BackEnd::OpenAi(_) | BackEnd::Ollama(_) => (model.config.model.clone(), true),
        };
        let aliases = models.iter().map(alias).collect();
        // A script alone knows its own name and no other; a server alone may know any.
        let is_open = config.is_open && models.iter().all(|model| model.back_end.notice().is_none());
        let roster = Roster::new(&ServiceConfig { is_open, ..config.clone() }, aliases);
        Ok(Self { models, roster, fallback: config.fallback.clone(), told: RefCell::default() })
    }

    /// Begins to work on a request, or lets it wait, or refuses it.
    fn take(self: Rc<Self>, request: Request, asked: Result<(Asked, Route), Refusal>, context: &Context) {
        match asked {
            Ok((asked, Route { models, .. })) => {
                let format = Format::of_reply_to(&request.message);
                let came = Instant::now();
                self.offer(
                    Job { request, asked, format, came, models, tried: Vec::new(), come_back_s: None },
                    context,
                );
            }
            Err(Refusal(code, text)) => context.spawn(async move {
                refuse(request, code, &text).await;
                Ok(())
            }),
        }
    }

    /// Gives a job to the next model that has room for it.
    fn offer(self: &Rc<Self>, mut job: Job, context: &Context) {
        while let Some(place) = job.models.pop_front() {
            let Some(model) = self.models.get(place) else { continue };
            let mut line = model.line.borrow_mut();
            let found = line.come(job, |waiting| waiting.request.cancelled().is_cancelled());
            let (runs, waits) = (line.running_max(), line.waiting());
            drop(line);
            match found {
                Place::Runs(job) => {
                    let (running, spawner) = (Rc::clone(self), context.clone());
                    return context.spawn(async move {
                        running.work(place, job, &spawner).await;
                        Ok(())
                    });
                }
                Place::Waits => return,
                Place::Full(full) => {
                    job = full;
                    model.record.borrow_mut().figures.refused += 1;
                    let text = format!("{runs} completions run and {waits} wait already; try again later");
                    let (name, code) = (model.name.clone(), code::BUSY.to_owned());
                    if !job.models.is_empty() {
                        tracing::warn!(model = name, text, "the model has no room; another one stands in");
                    }
                    job.tried.push(Fallback { model: name, code, text });
                }
            }
        }
        context.spawn(async move {
            job.refuse().await;
            Ok(())
        });
    }

    /// Works on one job, then on those that wait for the same model, one after another.
    async fn work(self: &Rc<Self>, place: usize, first: Job, context: &Context) {
        let Some(model) = self.models.get(place) else { return };
        let mut next = Some(first);
        while let Some(job) = next {
            if let Some(job) = model.work(job).await {
                self.offer(job, context);
            }
            self.tell(context);
            next = model.line.borrow_mut().finished();
        }
    }

    /// Asks models that have been idle whether they are there.
    fn look_after(self: &Rc<Self>, context: &Context) {
        for (place, model) in self.models.iter().enumerate() {
            let now = Instant::now();
            let is_due = model.back_end.notice().is_none()
                && model.line.borrow().running() == 0
                && model.record.borrow_mut().begin_probe(
                    limits::PROBE_AFTER,
                    limits::PROBE_AFTER_FAILURE,
                    now,
                );
            if !is_due {
                continue;
            }
            let (running, teller) = (Rc::clone(self), context.clone());
            context.spawn_background(async move {
                let Some(model) = running.models.get(place) else { return Ok(()) };
                let asked = tokio::time::timeout(limits::PROBE_TIMEOUT, model.back_end.model_names()).await;
                let said = match asked {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err(format!("it did not list its models within {:?}", limits::PROBE_TIMEOUT)),
                };
                let was = model.record.borrow().is_absent();
                match &said {
                    Err(reason) if !was => {
                        tracing::warn!(model = model.name, reason, "the model is not there")
                    }
                    Ok(()) if was => tracing::info!(model = model.name, "the model is there again"),
                    _ => {}
                }
                model.record.borrow_mut().probed(said, Instant::now());
                running.tell(&teller);
                Ok(())
            });
        }
    }

    /// Tells the supervisor how the models are, if that has changed.
    fn tell(&self, context: &Context) {
        let state = |model: &Model| {
            let record = model.record.borrow();
            match record.reason() {
                Some(reason) => format!("failing: {reason}"),
                None => record.health().state,
            }
        };
        let status = match self.models.as_slice() {
            [only] => match only.record.borrow().reason() {
                Some(reason) => format!("{}; failing: {reason}", only.back_end.describe()),
                None => only.back_end.describe(),
            },
            many => many
                .iter()
                .map(|model| format!("`{}` {}", model.name, state(model)))
                .collect::<Vec<_>>()
                .join("; "),
        };
        let of_nobody: Vec<&Model> =
            self.roster.of_nobody().into_iter().filter_map(|place| self.models.get(place)).collect();
        let is_gone = of_nobody.iter().all(|model| model.record.borrow().is_absent());
        let impaired = is_gone.then(|| {
            let reason = |model: &&Model| {
                format!("`{}`: {}", model.name, model.record.borrow().reason().unwrap_or_default())
            };
            let reasons: Vec<String> = of_nobody.iter().map(reason).collect();
            format!("no model is there to answer: {}", reasons.join("; "))
        });
        let mut told = self.told.borrow_mut();
        if told.0 != status {
            context.status(status.clone());
        }
        if told.1 != impaired {
            context.impaired(impaired.clone());
        }
        *told = (status, impaired);
    }

    /// All models by name; a server that is alone is asked for all that it has.
    async fn list(&self, request: Request) {
        let cancelled = request.cancelled();
        let list = async {
            let [only] = self.models.as_slice() else { return Ok(self.configured()) };
            let names = only.back_end.model_names().await?;
            let default = only.config.model.clone().or_else(|| names.first().cloned());
            let model = |name: String| ModelDescription {
                default: default.as_ref() == Some(&name),
                id: name.clone(),
                model: Some(name),
                ..self.describe(0, only)
            };
            Ok(ModelList { models: names.into_iter().map(model).collect(), ..self.configured() })
        };
        let list = tokio::select! {
            biased;
            () = cancelled.wait() => Err(Refusal(code::CANCELLED, "the requester wants no more".to_owned())),
            list = list => list.map_err(|error: BackEndError| Refusal::from(error)),
        };
        answer(request, list).await;
    }

    fn configured(&self) -> ModelList {
        let first = self.models.first();
        ModelList {
            back_end: first.map_or_else(String::new, |first| first.back_end.name().to_owned()),
            notice: first.and_then(|first| first.back_end.notice()).map(str::to_owned),
            models: self
                .models
                .iter()
                .enumerate()
                .map(|(place, model)| self.describe(place, model))
                .collect(),
            fallback: self.fallback.clone(),
        }
    }

    fn describe(&self, place: usize, model: &Model) -> ModelDescription {
        ModelDescription {
            id: model.name.clone(),
            default: place == 0,
            back_end: model.back_end.name().to_owned(),
            model: model.config.model.clone(),
            embeddings: self.roster.makes_embeddings(place),
            health: model.record.borrow().health(),
        }
    }

    fn statistics(&self) -> ModelStatistics {
        let figures = |model: &Model| {
            let line = model.line.borrow();
            let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
            ModelFigures {
                name: model.name.clone(),
                back_end: model.back_end.name().to_owned(),
                running: number(line.running()),
                running_max: number(line.running_max()),
                waiting: number(line.waiting()),
                waiting_max: number(line.waiting_max()),
                ..model.record.borrow().figures()
            }
        };
        ModelStatistics { models: self.models.iter().map(figures).collect() }
    }
}

/// Ends a request with a value or a refusal.
async fn answer<T: Described>(request: Request, value: Result<T, Refusal>) {
    let format = Format::of_reply_to(&request.message);
    let encoded = value.and_then(|value| {
        format.encode(&value).map_err(|error| Refusal(code::BACK_END_PROTOCOL, error.to_string()))
    });
    match encoded {
        Ok(payload) => {
            if let Err(error) = request.end(payload).await {
                tracing::debug!(%error, "an answer was not taken");
            }
        }
        Err(Refusal(code, text)) => refuse(request, code, &text).await,
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
