//! The configuration: one typed value, its layers, and messages that say what to change.
//!
//! Settings and their ranges are listed in [`schema`]; their defaults and meaning in `interlock.toml`, which is
//! built in and is the lowest layer. Nothing else knows a default.

pub mod duration;
pub mod json_schema;
pub mod kind;
mod layers;
pub mod live;
mod models;
mod needs;
pub mod problem;
pub mod schema;
pub mod show;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use interlock_actors::store::{
    LogRetention,
    outbox::{KeepFinished, OutboxLimits, WhenFull},
};
use interlock_bus::{Endpoint, PeerName, TopicFilter, endpoint::IPC_PATH_BYTES_MAX};

use serde::{Deserialize, Serialize};
use toml::Value;

pub use layers::Held;
pub use models::NamedModelSection;
pub use needs::{Need, NeedError};
pub use problem::{ConfigError, Origin, Problem};

use crate::process::Probe;
use layers::{Layers, in_file};

/// The built-in file: every setting with its default.
pub const DEFAULTS: &str = include_str!("../interlock.toml");

/// Bytes of the largest configuration file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// `[[program]]` blocks of one configuration; each is a process.
const PROGRAMS_MAX: usize = 256;

/// Everything that can be set. Ranges have been checked: see [`schema`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[runtime]`
    pub runtime: RuntimeSection,
    /// `[bus]`
    pub bus: BusSection,
    /// `[gateway]`
    pub gateway: GatewaySection,
    /// `[model]`
    pub model: ModelSection,
    /// `[conversation]`
    pub conversation: ConversationSection,
    /// `[logs]`
    pub logs: LogsSection,
    /// `[outbox]`
    pub outbox: OutboxSection,
    /// `[shutdown]`
    pub shutdown: ShutdownSection,
    /// `[[program]]`
    #[serde(default, rename = "program")]
    pub programs: Vec<Program>,
}

/// `[runtime]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeSection {
    /// The data directory; empty is the XDG one.
    pub data_dir: PathBuf,
}

/// `[bus]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusSection {
    /// Where the broker listens.
    pub endpoints: Vec<BusEndpoint>,
    /// Messages queued towards one subscription at most.
    pub send_queue_messages: u32,
    /// The same in bytes.
    pub send_queue_bytes: u32,
    /// Sessions of the broker.
    pub sessions_max: usize,
    /// Bytes of retained values, 256 for each included.
    pub retained_bytes_max: usize,
}

/// One endpoint of the broker as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BusEndpoint {
    /// A socket in the run directory.
    Ipc,
    /// TCP.
    Tcp(Endpoint),
}

/// `[gateway]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewaySection {
    /// Where HTTP is answered.
    pub listen: SocketAddr,
    /// Threads.
    pub workers: usize,
    /// Largest request body.
    pub body_bytes_max: usize,
    /// Streamed answers at a time.
    pub streams_max: usize,
    /// Requests a minute with one token.
    pub token_rate: NonZeroU32,
    /// Requests a minute from one address.
    pub address_rate: NonZeroU32,
    /// Wrong tokens a minute from one address.
    pub failure_rate: NonZeroU32,
    /// Names by which it is called, beside those of the loopback and addresses.
    pub host_names: Vec<String>,
    /// Origins of pages, beside its own, that may ask.
    pub allowed_origins: Vec<String>,
    /// File with the certificate; empty is none.
    pub tls_certificate: PathBuf,
    /// File with its key; empty is none.
    pub tls_key: PathBuf,
    /// For a request's head.
    #[serde(with = "duration")]
    pub head_timeout: Duration,
    /// For a request's body.
    #[serde(with = "duration")]
    pub body_timeout: Duration,
    /// For a client that takes nothing of its answer.
    #[serde(with = "duration")]
    pub write_timeout: Duration,
    /// For a whole turn.
    #[serde(with = "duration")]
    pub turn_timeout: Duration,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// What answers.
    pub back_end: BackEnd,
    /// Where the model service runs.
    pub placement: Placement,
    /// Script of the script engine; empty is the built-in one.
    pub script: PathBuf,
    /// Base URL of an OpenAI-compatible server.
    pub url: String,
    /// Model to ask for.
    pub model: String,
    /// File with the API key; empty is none.
    pub api_key_file: PathBuf,
    /// Environment variable with the API key; empty is none.
    pub api_key_env: String,
    /// For connecting to the server.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// For a server that is silent.
    #[serde(with = "duration")]
    pub read_timeout: Duration,
    /// Longest answer in tokens; zero leaves it to the server.
    pub tokens_max: u32,
    /// Completions at the same time.
    pub concurrent_max: usize,
    /// Completions that wait.
    pub waiting_max: usize,
    /// Times that a server is asked again.
    pub retries_max: u32,
    /// Several models by name, in the place of the one above.
    pub models: Vec<NamedModelSection>,
    /// Names of models that stand in.
    pub fallback: Vec<String>,
    /// Between two words of the script engine.
    #[serde(with = "duration")]
    pub script_pause: Duration,
}

/// What answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackEnd {
    /// The embedded script-driven engine.
    Script,
    /// An OpenAI-compatible server.
    #[serde(rename = "openai")]
    OpenAi,
    /// A server of Ollama, by its own API.
    Ollama,
}

/// Where a component runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// A process of its own.
    Process,
    /// The runtime's process.
    Runtime,
}

/// `[conversation]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConversationSection {
    /// Given to the model before each conversation; empty is none.
    pub instructions: String,
    /// Newest messages of a conversation that the model is shown.
    pub history_messages_max: usize,
}

/// `[logs]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsSection {
    /// The least serious records kept.
    pub level: String,
    /// The least serious records kept of single components and modules, or `off`.
    pub levels: BTreeMap<String, String>,
    /// The least serious records written to standard error, or `off`.
    pub console: String,
    /// How long records are kept.
    #[serde(with = "duration")]
    pub retention: Duration,
    /// How many records are kept.
    pub retention_rows: u64,
    /// How many bytes of records are kept, index included.
    pub retention_bytes: u64,
}

impl LogsSection {
    /// What of the records is kept.
    pub fn retention(&self) -> LogRetention {
        LogRetention {
            rows_max: self.retention_rows,
            bytes_max: self.retention_bytes,
            age_max: self.retention,
        }
    }
}

/// `[outbox]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutboxSection {
    /// Who is to acknowledge what.
    pub topics: Vec<TopicRoute>,
    /// Messages that may be unfinished; zero is any number.
    pub pending_max: u64,
    /// Bytes of unfinished messages and dead letters; zero is any number.
    pub bytes_max: u64,
    /// Bytes of one message with its header.
    pub item_bytes_max: u64,
    /// Bytes of the disk that are left alone.
    pub disk_floor: u64,
    /// What happens above `pending_max`.
    pub policy: OutboxPolicy,
    /// Attempts after which a delivery is a dead letter.
    pub attempts_max: u32,
    /// Longest wait after the first failed attempt.
    #[serde(with = "duration")]
    pub retry_base: Duration,
    /// Longest wait between two attempts.
    #[serde(with = "duration")]
    pub retry_cap: Duration,
    /// Between two looks at everything.
    #[serde(with = "duration")]
    pub sweep: Duration,
    /// For one attempt.
    #[serde(with = "duration")]
    pub attempt_timeout: Duration,
    /// Messages on their way to one consumer.
    pub in_flight: usize,
    /// How long a consumer may be absent; zero is for ever.
    #[serde(with = "duration")]
    pub absent_max: Duration,
    /// How long finished messages are remembered.
    #[serde(with = "duration")]
    pub keep_finished: Duration,
    /// How many of them.
    pub keep_finished_max: u64,
}

/// One `[[outbox.topics]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicRoute {
    /// The topics.
    pub filter: TopicFilter,
    /// Who is to acknowledge each message on them; at least one, none twice.
    pub consumers: Vec<PeerName>,
}

/// What happens when as many messages are unfinished as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutboxPolicy {
    /// A further one is refused.
    Reject,
    /// Its publisher waits.
    Pause,
    /// The oldest becomes a dead letter.
    OldestToDeadLetter,
}

impl OutboxSection {
    /// What may be accepted.
    pub fn limits(&self) -> OutboxLimits {
        let when_full = match self.policy {
            OutboxPolicy::Reject | OutboxPolicy::Pause => WhenFull::Reject,
            OutboxPolicy::OldestToDeadLetter => WhenFull::OldestToDeadLetter,
        };
        let Self { pending_max, bytes_max, disk_floor, .. } = *self;
        OutboxLimits { pending_max, bytes_max, disk_floor, when_full }
    }

    /// Consumers that are named and not known, each once.
    pub fn unknown_consumers(&self, is_known: impl Fn(&PeerName) -> bool) -> BTreeSet<&PeerName> {
        let named = self.topics.iter().flat_map(|route| &route.consumers);
        named.filter(|consumer| !is_known(consumer)).collect()
    }

    /// Which finished messages are remembered.
    pub fn keep(&self) -> KeepFinished {
        KeepFinished { age_max: self.keep_finished, messages_max: self.keep_finished_max }
    }
}

/// `[shutdown]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShutdownSection {
    /// For work in hand.
    #[serde(with = "duration")]
    pub drain: Duration,
    /// When a stop is forced, from its beginning.
    #[serde(with = "duration")]
    pub forced: Duration,
}

/// One `[[program]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Its name in the tree and on the bus.
    pub name: PeerName,
    /// Path, or name looked up in `PATH`.
    pub command: String,
    /// Arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Working directory; empty is the runtime's.
    #[serde(default)]
    pub directory: PathBuf,
    /// Variables added to its environment. May be secrets: never shown.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// When it is started again.
    #[serde(default)]
    pub restart: ProgramRestart,
    /// How it says that it is ready.
    #[serde(default)]
    pub readiness: ProgramReadiness,
    /// How long it may take to be ready.
    #[serde(with = "duration", default = "thirty_seconds")]
    pub ready_timeout: Duration,
    /// What must be true of other children before it is started.
    #[serde(default)]
    pub needs: Vec<Need>,
    /// The longest between two heartbeats; zero asks for none.
    #[serde(with = "duration", default)]
    pub heartbeat: Duration,
    /// A URL that answers while it is well; empty is none.
    #[serde(default)]
    pub liveness: String,
    /// The signal that asks it to stop.
    #[serde(default = "sigterm")]
    pub stop_signal: String,
    /// How long it may take to stop.
    #[serde(with = "duration", default = "ten_seconds")]
    pub grace: Duration,
    /// What it may publish.
    #[serde(default)]
    pub publish: Vec<TopicFilter>,
    /// What it may subscribe to.
    #[serde(default)]
    pub subscribe: Vec<TopicFilter>,
    /// What it may serve.
    #[serde(default)]
    pub serve: Vec<TopicFilter>,
    /// What it may ask.
    #[serde(default)]
    pub request: Vec<TopicFilter>,
}

/// When a program is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgramRestart {
    /// Always.
    #[default]
    Permanent,
    /// After a failure.
    Transient,
    /// Never.
    Temporary,
}

/// How a program says that it is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ProgramReadiness {
    /// It runs.
    #[default]
    Started,
    /// A newline on the descriptor in `INTERLOCK_READY_FD`.
    Newline,
    /// `READY=1` on the socket in `NOTIFY_SOCKET`.
    Notify,
    /// Its session on the bus.
    Bus,
    /// A line of its output that matches this regular expression, which is valid.
    Line(String),
    /// This URL answers with a success.
    Http(Probe),
}

/// A text that is no readiness.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no way to say that a program is ready")]
pub struct ReadinessError(String);

impl FromStr for ProgramReadiness {
    type Err = ReadinessError;

    fn from_str(text: &str) -> Result<Self, ReadinessError> {
        match text {
            "started" => Ok(Self::Started),
            "newline" => Ok(Self::Newline),
            "notify" => Ok(Self::Notify),
            "bus" => Ok(Self::Bus),
            _ => match text.strip_prefix("line:") {
                Some(pattern) if !pattern.is_empty() && regex_lite::Regex::new(pattern).is_ok() => {
                    Ok(Self::Line(pattern.to_owned()))
                }
                _ => text.parse().map(Self::Http).map_err(|_| ReadinessError(text.to_owned())),
            },
        }
    }
}

impl TryFrom<String> for ProgramReadiness {
    type Error = ReadinessError;

    fn try_from(text: String) -> Result<Self, ReadinessError> {
        text.parse()
    }
}

impl From<ProgramReadiness> for String {
    fn from(readiness: ProgramReadiness) -> Self {
        match readiness {
            ProgramReadiness::Started => "started".to_owned(),
            ProgramReadiness::Newline => "newline".to_owned(),
            ProgramReadiness::Notify => "notify".to_owned(),
            ProgramReadiness::Bus => "bus".to_owned(),
            ProgramReadiness::Line(pattern) => format!("line:{pattern}"),
            ProgramReadiness::Http(probe) => probe.to_string(),
        }
    }
}

fn thirty_seconds() -> Duration {
    Duration::from_secs(30)
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

fn sigterm() -> String {
    "SIGTERM".to_owned()
}

impl TryFrom<String> for BusEndpoint {
    type Error = interlock_bus::endpoint::EndpointError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "ipc" { Ok(Self::Ipc) } else { text.parse().map(Self::Tcp) }
    }
}

impl From<BusEndpoint> for String {
    fn from(endpoint: BusEndpoint) -> Self {
        match endpoint {
            BusEndpoint::Ipc => "ipc".to_owned(),
            BusEndpoint::Tcp(endpoint) => endpoint.to_string(),
        }
    }
}

/// Where settings come from, besides the defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file; it must exist.
    pub file: Option<PathBuf>,
    /// Environment variables; those that do not begin with `INTERLOCK_` are passed over.
    pub environment: Vec<(String, String)>,
    /// Values from flags: the flag, `section.key`, the text.
    pub flags: Vec<(&'static str, String, String)>,
    /// Names in the tree that are neither a built-in component's nor a program's: those of the user's own actors and groups.
    pub actors: Vec<String>,
}

/// A configuration and where each of its values came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Every value by `section.key`, with its origin; programs are not in it.
    pub held: BTreeMap<String, Held>,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// Where it all came from, to be read again.
    pub sources: Sources,
}

impl Config {
    /// The defaults.
    pub fn defaults() -> Self {
        toml::from_str(DEFAULTS).expect("the built-in defaults are valid; a test loads them")
    }

    /// Reads and checks all layers.
    ///
    /// # Errors
    /// Every mistake in all of them.
    pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
        let text = sources.file.as_deref().map(read_file);
        Self::of_layers(text, sources)
    }

    /// The same with this text in the place of the file's, wherever that is; it is not looked at.
    ///
    /// # Errors
    /// Every mistake in all layers.
    pub fn judge(text: &str, sources: &Sources) -> Result<Loaded, ConfigError> {
        let file = sources.file.clone().or_else(|| Some("interlock.toml".into()));
        Self::of_layers(Some(Ok(text.to_owned())), &Sources { file, ..sources.clone() })
    }

    fn of_layers(file: Option<Result<String, Problem>>, sources: &Sources) -> Result<Loaded, ConfigError> {
        let mut layers = Layers::default();
        layers.add_file(DEFAULTS, |_line| Origin::Default);
        match (file, &sources.file) {
            (Some(Ok(text)), Some(path)) => layers.add_file(&text, in_file(path)),
            (Some(Err(problem)), _) => layers.problems.push(problem),
            _ => {}
        }
        layers.add_environment(&sources.environment);
        for (flag, path, text) in &sources.flags {
            layers.add_flag(flag, path, text);
        }
        check_programs(&mut layers, &sources.actors);
        check_combinations(&mut layers);
        if layers.problems.is_empty() {
            let programs = layers.programs.iter().map(|program| {
                let keys = program.keys.iter().map(|(key, held)| ((*key).to_owned(), held.value.clone()));
                Value::Table(keys.collect())
            });
            let config = typed(&layers.settings, programs.collect())
                .map_err(|problem| ConfigError { problems: vec![problem] })?;
            let (file, sources) = (sources.file.clone(), sources.clone());
            return Ok(Loaded { config, held: layers.settings, file, sources });
        }
        layers.problems.sort_by_key(|problem| problem.origin.as_ref().map(Origin::place));
        Err(ConfigError { problems: layers.problems })
    }

    /// The file that is read when none is named: the user's, if it exists.
    pub fn user_file() -> Option<PathBuf> {
        Self::user_file_place().filter(|path| path.exists())
    }

    /// Where the user's configuration file is, or would be. `None` if no home is known.
    pub fn user_file_place() -> Option<PathBuf> {
        let directory = absolute_variable("XDG_CONFIG_HOME")
            .or_else(|| absolute_variable("HOME").map(|home| home.join(".config")))?;
        Some(directory.join("interlock/interlock.toml"))
    }

    /// The data directory: as configured, or the XDG one. `None` if neither is known.
    pub fn data_dir(&self) -> Option<PathBuf> {
        if !self.runtime.data_dir.as_os_str().is_empty() {
            return std::path::absolute(&self.runtime.data_dir).ok();
        }
        let base = absolute_variable("XDG_DATA_HOME")
            .or_else(|| absolute_variable("HOME").map(|home| home.join(".local/share")))?;
        Some(base.join("interlock"))
    }

    /// The broker's endpoints, with the socket in `run_dir`.
    ///
    /// # Errors
    /// A socket path that is longer than the system takes.
    pub fn bus_endpoints(&self, run_dir: &Path) -> Result<Vec<Endpoint>, ConfigError> {
        let socket = run_dir.join("bus.sock");
        let resolve = |endpoint: &BusEndpoint| match endpoint {
            BusEndpoint::Tcp(endpoint) => Ok(endpoint.clone()),
            BusEndpoint::Ipc if socket.as_os_str().len() <= IPC_PATH_BYTES_MAX => {
                Ok(Endpoint::Ipc(socket.clone()))
            }
            BusEndpoint::Ipc => Err(ConfigError {
                problems: vec![Problem {
                    origin: None,
                    key: "bus.endpoints".to_owned(),
                    text: format!(
                        "the socket path `{}` is longer than {IPC_PATH_BYTES_MAX} bytes; choose a shorter `runtime.data_dir`, \
                         or take \"ipc\" out of `bus.endpoints`",
                        socket.display()
                    ),
                }],
            }),
        };
        self.bus.endpoints.iter().map(resolve).collect()
    }
}

/// An environment variable that holds an absolute path; the XDG specification says to ignore others.
fn absolute_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn read_file(path: &Path) -> Result<String, Problem> {
    let refuse = |text: String| Problem { origin: None, key: String::new(), text };
    let failed = |error: std::io::Error| {
        refuse(format!("cannot read configuration file `{}`: {error}", path.display()))
    };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(refuse(format!(
            "configuration file `{}` is not a plain file of at most 1 MiB",
            path.display()
        )));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// Required keys, names that are taken or used twice.
fn check_programs(layers: &mut Layers, actors: &[String]) {
    let mut problems = Vec::new();
    let mut refuse = |origin: &Origin, key: &str, text: String| {
        problems.push(Problem { origin: Some(origin.clone()), key: format!("program.{key}"), text });
    };
    let mut names: BTreeMap<&str, &Origin> = BTreeMap::new();
    for (index, program) in layers.programs.iter().enumerate() {
        if index == PROGRAMS_MAX {
            refuse(&program.origin, "name", format!("more than {PROGRAMS_MAX} programs"));
        }
        for required in schema::PROGRAM_REQUIRED {
            let has_problem =
                layers.problems.iter().any(|problem| problem.key == format!("program.{required}"));
            if !program.keys.contains_key(required) && !has_problem {
                refuse(
                    &program.origin,
                    required,
                    format!("this `[[program]]` has no `{required}`; add `{required} = \"...\"`"),
                );
            }
        }
        let Some(held) = program.keys.get("name") else { continue };
        let name = held.value.as_str().unwrap_or_default();
        if schema::NAMES_TAKEN.contains(&name) {
            refuse(
                &held.origin,
                "name",
                format!("`program.name` is `{name}`, the name of a built-in component; choose another"),
            );
        }
        if let Some(first) = names.insert(name, &held.origin) {
            refuse(
                &held.origin,
                "name",
                format!("`program.name` is `{name}`, as in {first}; each program needs a name of its own"),
            );
        }
    }
    problems.append(&mut needs::check(&layers.programs, actors));
    layers.problems.append(&mut problems);
}

/// What single values cannot show.
fn check_combinations(layers: &mut Layers) {
    let mut problems = Vec::new();
    let mut refuse = |held: &Held, key: &str, text: String| {
        problems.push(Problem { origin: Some(held.origin.clone()), key: key.to_owned(), text });
    };
    let get = |path: &str| layers.settings.get(path);
    let text = |path: &str| get(path).and_then(|held| held.value.as_str()).unwrap_or_default();
    let span = |path: &str| duration::parse(text(path)).unwrap_or_default();

    if let (Some(drain), Some(forced)) = (get("shutdown.drain"), get("shutdown.forced"))
        && span("shutdown.drain") >= span("shutdown.forced")
    {
        let later = if forced.origin == Origin::Default { drain } else { forced };
        refuse(
            later,
            "shutdown.forced",
            format!(
                "`shutdown.forced` ({}) must be longer than `shutdown.drain` ({}); it counts from the same moment",
                forced.value, drain.value
            ),
        );
    }
    if let (Some(base), Some(cap)) = (get("outbox.retry_base"), get("outbox.retry_cap"))
        && span("outbox.retry_base") > span("outbox.retry_cap")
    {
        let later = if cap.origin == Origin::Default { base } else { cap };
        let text = format!(
            "`outbox.retry_cap` ({}) must not be shorter than `outbox.retry_base` ({})",
            cap.value, base.value
        );
        refuse(later, "outbox.retry_cap", text);
    }
    for (one, other) in
        [("gateway.tls_certificate", "gateway.tls_key"), ("gateway.tls_key", "gateway.tls_certificate")]
    {
        if let Some(held) = get(one)
            && !text(one).is_empty()
            && text(other).is_empty()
        {
            refuse(held, one, format!("`{one}` is set and `{other}` is not; TLS needs both"));
        }
    }
    let number = |path: &str| get(path).and_then(|held| held.value.as_integer()).unwrap_or_default();
    if let (Some(item), Some(all)) = (get("outbox.item_bytes_max"), get("outbox.bytes_max"))
        && number("outbox.bytes_max") > 0
        && number("outbox.item_bytes_max") > number("outbox.bytes_max")
    {
        let later = if all.origin == Origin::Default { item } else { all };
        let text = format!(
            "`outbox.bytes_max` ({}) must not be smaller than `outbox.item_bytes_max` ({}): the largest message would never fit",
            all.value, item.value
        );
        refuse(later, "outbox.bytes_max", text);
    }
    let server = text("model.back_end");
    if let Some(back_end) = get("model.back_end")
        && ["openai", "ollama"].contains(&server)
        && get("model.url").is_some()
        && text("model.url").is_empty()
    {
        refuse(back_end, "model.url", format!("`model.back_end` is `{server}`, which needs `model.url`"));
    }
    models::check(&layers.settings, &mut refuse);
    if let Some(variable) = get("model.api_key_env")
        && !text("model.api_key_env").is_empty()
        && !text("model.api_key_file").is_empty()
    {
        refuse(
            variable,
            "model.api_key_env",
            "`model.api_key_file` and `model.api_key_env` are both set; set one".to_owned(),
        );
    }
    layers.problems.append(&mut problems);
}

/// The typed value of checked settings and programs.
fn typed(settings: &BTreeMap<String, Held>, programs: Vec<Value>) -> Result<Config, Problem> {
    let mut table = toml::Table::new();
    for setting in schema::SETTINGS {
        let section = table.entry(setting.section).or_insert_with(|| Value::Table(toml::Table::new()));
        if let (Value::Table(section), Some(held)) = (section, settings.get(&setting.path())) {
            section.insert(setting.key.to_owned(), held.value.clone());
        }
    }
    table.insert("program".to_owned(), Value::Array(programs));
    serde_path_to_error::deserialize(Value::Table(table)).map_err(|error| {
        let key = error.path().to_string();
        let origin = settings.get(&key).map(|held| held.origin.clone());
        Problem { origin, text: format!("`{key}`: {}", error.into_inner().message()), key }
    })
}

#[cfg(test)]
mod tests;
