//! Where events go: into the log path, which ends in the encrypted store, and, the serious ones, to standard error.

mod console;
pub(crate) mod rest;

use std::{io, sync::Arc};

use interlock_actors::log_transport::{self, Drain, Identity, LogBuffer, LogLayer, Sink, buffer};
use interlock_bus::Client;
use tokio::{sync::oneshot, task::JoinHandle};
use tracing::Level;
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets, filter_fn},
    fmt,
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

use self::console::Console;

/// Crates that tell at `info` and `debug` what is of use to their own authors only.
const TALKATIVE: &[&str] = &[
    "actix_http",
    "actix_rt",
    "actix_server",
    "actix_web",
    "hyper",
    "hyper_util",
    "mio",
    "reqwest",
    "rustls",
];

/// Target of what is told on standard error in another way, and is in the log only: one thing is printed once.
pub(crate) const TOLD_OTHERWISE: &str = "interlock::told_otherwise";

/// The log path of this process.
#[derive(Clone, Debug)]
pub(crate) struct Logs {
    /// What waits for the log transport.
    pub(crate) buffer: LogBuffer,
    /// Where the log path's own events go.
    pub(crate) sink: Sink,
    /// Changes what is kept and what is printed.
    pub(crate) levels: Levels,
    /// Where the serious ones are printed.
    pub(crate) console: Console,
}

/// Changes the levels of this process while it runs.
#[derive(Clone)]
pub(crate) struct Levels(Arc<SetLevels>);

/// Takes `logs.level` and `logs.console`.
type SetLevels = dyn Fn(&str, &str) + Send + Sync;

impl std::fmt::Debug for Levels {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Levels")
    }
}

impl Levels {
    /// From now on; both are checked settings.
    pub(crate) fn set(&self, level: &str, console: &str) {
        (self.0)(level, console);
    }
}

/// Begins to log as `component`. `level` and `console` are checked settings; `console` may be `off`.
pub(crate) fn start(component: &str, level: &str, console: &str) -> io::Result<Logs> {
    let buffer = LogBuffer::new(buffer::RECORDS_MAX, buffer::BYTES_MAX);
    let identity = Identity { component: component.to_owned(), incarnation: 0 };
    let sink = Sink::standard_error()?;
    let layer = LogLayer::new(identity, buffer.clone(), sink.clone());
    let printer = Console::open(io::stderr())?;
    let shown_on = printer.clone();
    let printed = fmt::layer().with_writer(move || shown_on.event()).with_ansi(false).with_target(false);
    // The log path's own warnings and errors go to the sink, which prints them.
    let not_told = filter_fn(|event| {
        let is_own = log_transport::is_marked() || log_transport::is_own_target(event.target());
        !(is_own && *event.level() <= Level::WARN) && event.target() != TOLD_OTHERWISE
    });
    let (kept, kept_handle) = reload::Layer::new(targets(level));
    let (shown, shown_handle) = reload::Layer::new(targets(console));
    // Fails if the program of somebody who uses this library logs already: then that goes on.
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(kept))
        .with(printed.with_filter(shown).with_filter(not_told))
        .try_init();
    let levels = Levels(Arc::new(move |level, console| {
        // Fails only if nothing of it was installed, and then there is nothing to change.
        let _ = kept_handle.reload(targets(level));
        let _ = shown_handle.reload(targets(console));
    }));
    Ok(Logs { buffer, sink, levels, console: printer })
}

impl Logs {
    /// Empties the buffer over `client` until the sender is dropped, and then what is left. For a process without a
    /// log transport of its own; belongs to the present tokio runtime.
    pub(crate) fn drain_over(&self, client: Client) -> (oneshot::Sender<()>, JoinHandle<()>) {
        let (finish, finished) = oneshot::channel::<()>();
        let drain = Drain::new(client, self.buffer.clone());
        let task = tokio::spawn(async move {
            let stop = async {
                let _ = finished.await;
            };
            if let Err(error) = drain.run(|_report| {}, stop).await {
                tracing::error!(%error, "log records of this process are not stored");
            }
        });
        (finish, task)
    }
}

fn targets(level: &str) -> Targets {
    let level = level.parse::<LevelFilter>().unwrap_or(LevelFilter::INFO);
    let quiet = level.min(LevelFilter::WARN);
    Targets::new().with_default(level).with_targets(TALKATIVE.iter().map(|name| (*name, quiet)))
}
