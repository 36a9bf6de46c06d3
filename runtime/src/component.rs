//! A built-in component as a process of its own: the model service, by default.
//!
//! The runtime starts this same binary as `interlock actor model`, hands it the credentials of one incarnation
//! through the descriptor in `INTERLOCK_CREDENTIALS_FD` and its settings in `INTERLOCK_COMPONENT`, and waits for a newline
//! on `INTERLOCK_READY_FD`.

use std::{
    fs::{self, OpenOptions},
    io::{Read, Write},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use interlock_actors::{
    actor::Failure,
    host::{ActorHost, Bus, Exit as HostExit, Host, HostReport, Mailroom, Reports, Stop},
    log_transport::LevelRules,
    model::{BackEndKind, ModelConfig, ModelService, NamedModel, ServiceConfig},
};
use interlock_bus::{
    Client, ConnectOptions, Credentials, Payload, PeerName, TopicFilter, TopicName, client::ServeOptions,
};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::{CliError, Output},
    config::{BackEnd, ModelSection, NamedModelSection},
    exit::Exit,
    telemetry,
};

/// The variable with [`ComponentSettings`] as JSON.
pub(crate) const SETTINGS_VARIABLE: &str = "INTERLOCK_COMPONENT";

/// The component that can be a process of its own.
pub(crate) const MODEL: &str = "model";

/// Where a component in a process of its own hears which records are kept.
pub(crate) fn log_levels_topic() -> TopicName {
    "modelservice/log-levels/v1".parse().expect("a constant that is a topic name")
}

/// Bytes of credentials that are read.
const CREDENTIALS_BYTES_MAX: u64 = 64 << 10;

/// How long connecting to the broker, which runs already, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Reports of the host that wait to be seen.
const REPORTS_MAX: usize = 64;

/// What a component in a process of its own needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ComponentSettings {
    /// Which records are kept when it begins. Changes come over the bus.
    pub(crate) log_levels: LevelRules,
    /// The model service's settings.
    pub(crate) model: ModelSection,
}

/// Runs one component until it is asked to stop, or its session on the bus ends.
pub(crate) fn run(component: &str, output: &mut Output) -> Result<Exit, CliError> {
    if component != MODEL {
        let text = format!("no component `{component}` can be a process of its own; there is `{MODEL}`");
        return Err(CliError::new(Exit::Misuse, text));
    }
    let settings: ComponentSettings = std::env::var(SETTINGS_VARIABLE)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .ok_or_else(|| misuse(&format!("`{SETTINGS_VARIABLE}` does not hold settings")))?;
    interlock_bus::keys::keep_memory_private();
    let credentials = inherited_credentials()?;
    let model = model_config(&settings.model)?;
    let logs = telemetry::start(MODEL, settings.log_levels, "off")
        .map_err(|error| CliError::new(Exit::of_io(&error), format!("logging cannot start: {error}")))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| CliError::new(Exit::of_io(&error), format!("no event loop: {error}")))?;
    runtime.block_on(live(credentials, model, logs)).map_err(|failure| {
        output.say(&failure.to_string());
        CliError::new(Exit::Failed, failure.to_string())
    })
}

async fn live(
    credentials: Credentials,
    model: ServiceConfig,
    logs: telemetry::Logs,
) -> Result<Exit, Failure> {
    let name = credentials.name.clone();
    let client = Client::connect(ConnectOptions::new(credentials).timeout(CONNECT_TIMEOUT)).await?;
    let (finish_logs, logs_finished) = logs.drain_over(client.clone());
    let told: TopicFilter = log_levels_topic().as_str().parse()?;
    let mut told = client.serve(&told, ServeOptions::default()).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (reports_in, mut reports) = tokio::sync::mpsc::channel(REPORTS_MAX);
    let mut host = model_host(name, client.clone(), model)?;
    let sink = Reports::new(move |report| {
        // Status texts may be lost to a full queue; readiness and end wait in it, because the reader never blocks.
        let _ = reports_in.try_send(report);
    });
    host.start(1, sink);
    let exit = loop {
        tokio::select! {
            _ = terminate.recv() => host.stop(Stop::Final),
            _ = interrupt.recv() => host.stop(Stop::Final),
            Some(request) = told.next() => {
                if let Ok(rules) = request.message.decode::<LevelRules>() {
                    logs.levels.adopt(rules);
                }
                // Whoever told is gone.
                let _ = request.end(Payload::bytes(Vec::new())).await;
            }
            report = reports.recv() => match report {
                Some(HostReport::Ready { .. }) => declare_ready()?,
                Some(HostReport::Exited(exit)) => break exit,
                Some(HostReport::Status(text)) => notify("STATUS", &text),
                Some(HostReport::Impaired(why)) => notify("INTERLOCK_IMPAIRED", &why.unwrap_or_default()),
                Some(_) => {}
                None => return Err(Failure::new("the component's thread has ended without a word")),
            },
        }
    };
    drop(finish_logs);
    let _ = logs_finished.await;
    client.close().await;
    match exit {
        HostExit::Normal | HostExit::Killed => Ok(Exit::Done),
        HostExit::Failed(failure) | HostExit::Forced(failure) => Err(failure),
    }
}

fn model_host(name: PeerName, client: Client, model: ServiceConfig) -> Result<ActorHost, Failure> {
    let bus = Bus::attach(move || std::future::ready(Ok(client.clone())));
    let mailroom: Arc<Mailroom> = Mailroom::open()?;
    Ok(ActorHost::new(name, bus, &mailroom, move || Ok(ModelService::new(model.clone()))))
}

/// The text that the guardian left in our descriptor.
fn inherited_credentials() -> Result<Credentials, CliError> {
    let variable = "INTERLOCK_CREDENTIALS_FD";
    let number: u32 = std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| misuse(&format!("`{variable}` does not name a descriptor")))?;
    let path = format!("/proc/self/fd/{number}");
    let mut text = String::new();
    let read =
        fs::File::open(&path).and_then(|file| file.take(CREDENTIALS_BYTES_MAX).read_to_string(&mut text));
    read.map_err(|error| {
        CliError::new(Exit::Io, format!("cannot read the credentials from descriptor {number}: {error}"))
    })?;
    Ok(Credentials::from_toml(&text, Path::new(variable))?)
}

/// Writes the newline that the guardian waits for.
fn declare_ready() -> Result<(), Failure> {
    let Ok(number) = std::env::var("INTERLOCK_READY_FD") else { return Ok(()) };
    let number: u32 = number.parse()?;
    OpenOptions::new().write(true).open(format!("/proc/self/fd/{number}"))?.write_all(b"\n")?;
    Ok(())
}

/// Tells the guardian something about this process, in the way of `sd_notify`. Without a guardian nobody is told.
fn notify(name: &str, value: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let text = format!("{name}={}", value.replace(['\n', '\r'], " "));
    let told = UnixDatagram::unbound().and_then(|datagram| {
        datagram.set_nonblocking(true)?;
        datagram.send_to(text.as_bytes(), socket)
    });
    if let Err(error) = told {
        tracing::debug!(name, %error, "the guardian was not told");
    }
}

fn misuse(problem: &str) -> CliError {
    CliError::new(
        Exit::Misuse,
        format!("{problem}; this command is for the runtime, which starts components itself"),
    )
}

/// The model service's settings out of the configuration.
pub(crate) fn model_config(section: &ModelSection) -> Result<ServiceConfig, CliError> {
    let config = match section.models.as_slice() {
        [] => ServiceConfig::from(single(section)),
        models => {
            let named = |model: &NamedModelSection| NamedModel {
                name: model.name.clone(),
                config: named_model(model, section),
            };
            ServiceConfig {
                models: models.iter().map(named).collect(),
                fallback: section.fallback.clone(),
                is_open: false,
            }
        }
    };
    config.validate().map_err(|error| CliError::new(Exit::Misuse, error.to_string()))?;
    Ok(config)
}

/// The one model of the section's own keys.
fn single(section: &ModelSection) -> ModelConfig {
    ModelConfig {
        back_end: kind(section.back_end),
        concurrent_max: section.concurrent_max,
        waiting_max: section.waiting_max,
        script: path(&section.script),
        script_pause: section.script_pause,
        url: text(&section.url).unwrap_or_else(|| ModelConfig::default().url),
        model: text(&section.model),
        api_key_env: text(&section.api_key_env),
        api_key_file: path(&section.api_key_file),
        connect_timeout: section.connect_timeout,
        read_timeout: section.read_timeout,
        tokens_max: Some(section.tokens_max).filter(|tokens| *tokens > 0),
        retries_max: section.retries_max,
        ..ModelConfig::default()
    }
}

/// A model by name; what it leaves out is as in the section, but for where it is and its key.
fn named_model(model: &NamedModelSection, section: &ModelSection) -> ModelConfig {
    ModelConfig {
        back_end: kind(model.back_end),
        concurrent_max: model.concurrent_max.unwrap_or(section.concurrent_max),
        waiting_max: model.waiting_max.unwrap_or(section.waiting_max),
        script: path(&model.script),
        url: text(&model.url).unwrap_or_else(|| ModelConfig::default().url),
        model: text(&model.model),
        api_key_env: text(&model.api_key_env),
        api_key_file: path(&model.api_key_file),
        connect_timeout: model.connect_timeout.unwrap_or(section.connect_timeout),
        read_timeout: model.read_timeout.unwrap_or(section.read_timeout),
        tokens_max: Some(model.tokens_max.unwrap_or(section.tokens_max)).filter(|tokens| *tokens > 0),
        embeddings: model.embeddings,
        retries_max: model.retries_max.unwrap_or(section.retries_max),
        ..single(section)
    }
}

fn kind(back_end: BackEnd) -> BackEndKind {
    match back_end {
        BackEnd::Script => BackEndKind::Script,
        BackEnd::OpenAi => BackEndKind::OpenAi,
        BackEnd::Ollama => BackEndKind::Ollama,
    }
}

fn path(path: &Path) -> Option<PathBuf> {
    Some(path.to_owned()).filter(|path| !path.as_os_str().is_empty())
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}
