//! Reading the configuration again while the runtime runs: when its file has changed, or when somebody asks.
//!
//! One reader (the runtime's own loop) does it, so two requests never mix. A configuration with a mistake changes nothing.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    component,
    config::{BackEnd, Config, ModelSection, NamedModelSection, Program, Sources, live::ReloadReport},
    peers::with_implied,
    site::Site,
    supervisor::{State, SupervisorHandle},
    telemetry::Levels,
};

/// How often the file is looked at: one `stat` each time.
const FILE_POLL: Duration = Duration::from_secs(2);

/// Requests that wait for the reader. A further one waits for a place.
const ASKS_MAX: usize = 4;

/// What is to be said of the configuration of a running instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Why the file as it is now is not in force, all mistakes, one on each line; `None` if it is.
    pub refused: Option<String>,
    /// What of it waits for the next start.
    pub next_start: Vec<String>,
}

type Ask = oneshot::Sender<Result<ReloadReport, String>>;

/// Asks for a reload, and knows how the last one went. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ReloadHandle {
    asks: mpsc::Sender<Ask>,
    site: Arc<Site>,
    status: Arc<watch::Sender<ConfigStatus>>,
}

impl ReloadHandle {
    /// Reads the configuration again; what came of it, or why it is refused.
    pub(crate) async fn ask(&self) -> Result<ReloadReport, String> {
        let gone = || "the runtime is stopping; nothing is read any more".to_owned();
        let (answer, answered) = oneshot::channel();
        self.asks.send(answer).await.map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    pub(crate) fn status(&self) -> ConfigStatus {
        self.status.borrow().clone()
    }

    /// [`ReloadHandle::status`], and its changes.
    pub(crate) fn watch_status(&self) -> watch::Receiver<ConfigStatus> {
        self.status.subscribe()
    }

    /// What answers, and whether that is a language model.
    pub(crate) fn model(&self) -> String {
        describe(&self.site.config().model)
    }
}

/// What answers, honestly.
pub(crate) fn describe(model: &ModelSection) -> String {
    let one = |back_end: BackEnd, name: &str, url: &str| {
        let name = if name.is_empty() { "the first model listed" } else { name };
        match back_end {
            BackEnd::Script => "script: the embedded script engine, which is no language model".to_owned(),
            BackEnd::OpenAi => format!("openai: {name} at {url}"),
            BackEnd::Ollama => format!("ollama: {name} at {url}"),
        }
    };
    let named = |model: &NamedModelSection| {
        let url = if model.url.is_empty() { "the default address" } else { &model.url };
        format!("`{}` ({})", model.name, one(model.back_end, &model.model, url))
    };
    match model.models.as_slice() {
        [] => one(model.back_end, &model.model, &model.url),
        models => {
            let mut text = models.iter().map(named).collect::<Vec<_>>().join(", ");
            if !model.fallback.is_empty() {
                text.push_str(&format!("; in the place of one that cannot: {}", model.fallback.join(", ")));
            }
            text
        }
    }
}

/// What tells one content of a file from another.
type Stamp = Option<(SystemTime, u64, u64)>;

fn stamp(file: Option<&Path>) -> Stamp {
    let about = fs::metadata(file?).ok()?;
    Some((about.modified().ok()?, about.len(), about.ino()))
}

/// The reader.
#[derive(Debug)]
pub(crate) struct Reloader {
    handle: ReloadHandle,
    asks: mpsc::Receiver<Ask>,
    tree: SupervisorHandle,
    levels: Levels,
    seen: Stamp,
    poll: Interval,
}

impl Reloader {
    /// A reader for `site`. Belongs to a tokio runtime.
    pub(crate) fn new(site: &Arc<Site>, tree: SupervisorHandle, levels: Levels) -> Self {
        let (asks_in, asks) = mpsc::channel(ASKS_MAX);
        let handle = ReloadHandle { asks: asks_in, site: Arc::clone(site), status: Arc::default() };
        let mut poll = interval(FILE_POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let seen = stamp(site.live.loaded().file.as_deref());
        Self { handle, asks, tree, levels, seen, poll }
    }

    pub(crate) fn handle(&self) -> ReloadHandle {
        self.handle.clone()
    }

    /// Reads again whenever there is a reason to. Never ends.
    pub(crate) async fn run(&mut self) {
        loop {
            tokio::select! {
                Some(ask) = self.asks.recv() => {
                    // An asker that has gone away needs no answer.
                    let _ = ask.send(self.reload().await);
                }
                _ = self.poll.tick() => {
                    if stamp(self.sources().file.as_deref()) != self.seen
                        && let Err(refusal) = self.reload().await
                    {
                        tracing::error!("the changed configuration is refused, the one before stays: {refusal}");
                    }
                }
            }
        }
    }

    /// Where the configuration comes from now. The user's file may have been made since the start.
    fn sources(&self) -> Sources {
        let mut sources = self.handle.site.live.loaded().sources.clone();
        sources.file = sources.file.or_else(Config::user_file);
        sources
    }

    async fn reload(&mut self) -> Result<ReloadReport, String> {
        let outcome = self.read().await;
        self.handle.status.send_modify(|status| match &outcome {
            Ok(report) => {
                *status = ConfigStatus { refused: None, next_start: report.next_start.clone() };
            }
            Err(refusal) => status.refused = Some(refusal.clone()),
        });
        outcome
    }

    async fn read(&mut self) -> Result<ReloadReport, String> {
        let site = Arc::clone(&self.handle.site);
        let old = site.live.loaded();
        let sources = self.sources();
        self.seen = stamp(sources.file.as_deref());
        let new = Config::load(&sources).map_err(|error| error.to_string())?;
        component::model_config(&new.config.model).map_err(|error| error.to_string())?;
        let (adopted, mut report) = old.adopt(&new).map_err(|error| error.to_string())?;
        let config = adopted.config.clone();
        // First, because it can fail, and then nothing has changed.
        let rights =
            |program: &Program| (program.name.clone(), with_implied(&program.name, &program.permissions()));
        let rights: Vec<_> = config.programs.iter().map(rights).collect();
        site.keys.set_all_permissions(&rights).map_err(|error| error.to_string())?;
        site.live.replace(adopted);
        self.levels.configure(&config.logs);
        if let Ok(store) = site.store.store() {
            store.keep_logs(config.logs.retention());
        }
        site.configure_outbox();
        site.warn_of_unknown_consumers();
        for change in &report.changed {
            tracing::info!(key = %change.key, from = %change.from, to = %change.to, "configuration changed");
        }
        let tree = self.tree.snapshot();
        // Whoever was stopped by order stays so, and begins with it when somebody starts it.
        report
            .restarted
            .retain(|name| tree.child(name).is_none_or(|component| component.state != State::Stopped));
        for component in report.restarted.clone() {
            let tree = self.tree.clone();
            // The order is answered by the supervisor's thread; meanwhile signals are heard.
            let ordered = tokio::task::spawn_blocking(move || tree.restart(&component)).await;
            ordered.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        }
        Ok(report)
    }
}
