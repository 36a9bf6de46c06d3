//! Where events go: into the log path, which ends in the encrypted store, and, the serious ones, to standard error.

mod console;
pub(crate) mod levels;
mod log_crate;
mod panics;
pub(crate) mod rest;

use std::{collections::BTreeMap, io};

use interlock_actors::log_transport::{
    self, Drain, Identity, LevelRules, LevelSwitch, LogBuffer, LogLayer, Sink, buffer,
};
use interlock_bus::Client;
use tokio::{sync::oneshot, task::JoinHandle};
use tracing::Level;
use tracing_subscriber::{
    Layer, filter::filter_fn, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use self::console::Console;
pub(crate) use self::levels::Levels;

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

/// Begins to log as `component`. `console` is a checked setting; it may be `off`.
pub(crate) fn start(component: &str, rules: LevelRules, console: &str) -> io::Result<Logs> {
    let buffer = LogBuffer::new(buffer::RECORDS_MAX, buffer::BYTES_MAX);
    let identity = Identity { component: component.to_owned(), incarnation: 0 };
    let sink = Sink::standard_error()?;
    let (kept, kept_handle) = reload::Layer::new(levels::targets(&rules));
    let switch = LevelSwitch::new(rules);
    let layer = LogLayer::new(identity, buffer.clone(), sink.clone()).with_levels(switch.clone());
    let printer = Console::open(io::stderr())?;
    let shown_on = printer.clone();
    let printed = fmt::layer().with_writer(move || shown_on.event()).with_ansi(false).with_target(false);
    // The log path's own warnings and errors go to the sink, which prints them.
    let not_told = filter_fn(|event| {
        let is_own = log_transport::is_marked() || log_transport::is_own_target(event.target());
        let is_told = [TOLD_OTHERWISE, panics::TARGET].contains(&event.target());
        let is_printed_by_sink = is_own && *event.level() <= Level::WARN;
        !is_told && !is_printed_by_sink
    });
    let shown = levels::targets(&levels::configured(console, &BTreeMap::new()));
    let (shown, shown_handle) = reload::Layer::new(shown);
    // Fails if the program of somebody who uses this library logs already: then that goes on.
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(kept))
        .with(printed.with_filter(shown).with_filter(not_told))
        .try_init();
    log_crate::into_the_log(component, &buffer, &sink, &switch);
    panics::into_the_log();
    let apply = Box::new(move |kept, shown| {
        // Fails only if nothing of it was installed, and then there is nothing to change.
        let _ = kept_handle.reload(kept);
        let _ = shown_handle.reload(shown);
    });
    Ok(Logs { buffer, sink, levels: Levels::new(switch, console, apply), console: printer })
}

impl Logs {
    /// Empties the buffer over `client` until the sender is dropped, and then what is left. For a process without a
    /// log transport of its own; belongs to the present tokio runtime.
    pub(crate) fn drain_over(&self, client: Client) -> (oneshot::Sender<()>, JoinHandle<()>) {
        let (finish, finished) = oneshot::channel::<()>();
        let (drain, rest) = (Drain::new(client, self.buffer.clone()), self.buffer.clone());
        let task = tokio::spawn(async move {
            let stop = async {
                let _ = finished.await;
            };
            match drain.run(|_report| {}, stop).await {
                Ok(()) if rest.is_empty() => {}
                Ok(()) => {
                    let waiting = rest.report().waiting;
                    tracing::error!(
                        waiting,
                        "log records of this process are not stored: nobody was there to take them"
                    );
                }
                Err(error) => tracing::error!(%error, "log records of this process are not stored"),
            }
        });
        (finish, task)
    }
}
