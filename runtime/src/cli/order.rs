//! `interlock start`, `stop` and `restart` of one component: gives the order, and waits until it has come true.

use std::{
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use interlock_bus::Payload;

use super::{CliError, Global, Output, remote};
use crate::{
    admin::{self, ComponentOrder, Ordered},
    config::duration,
    exit::Exit,
    lifecycle::{DataDir, Instance},
    supervisor::{ChildSnapshot, State},
};

/// How long the instance may take to accept the order. It does not wait for the component.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait until the order has come true, if nothing else was said.
pub(super) const WAIT: Duration = Duration::from_secs(60);

/// Between two looks at the component.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Which component, as `interlock ps` names it.
    component: String,
    /// How long to wait until it is ready.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration::argument)]
    timeout: Duration,
    /// Give the order, and do not wait.
    #[arg(long, conflicts_with = "timeout")]
    no_wait: bool,
}

pub(super) fn run(
    order: ComponentOrder,
    arguments: &Arguments,
    global: &Global,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let wait = (!arguments.no_wait).then_some(arguments.timeout);
    give(order, &arguments.component, wait, global, output)
}

/// Gives the order and waits for what it is to bring about.
///
/// | it ends with | when |
/// |---|---|
/// | done | the component is ready, or down, as ordered |
/// | failed | it failed and is not tried again |
/// | misuse | no component has this name, or nothing could be ordered any more without it |
/// | not ready | nothing runs, or it is not as ordered in time |
pub(super) fn give(
    order: ComponentOrder,
    component: &str,
    wait: Option<Duration>,
    global: &Global,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let instance = remote::instance(&data_dir)?;
    let payload = Payload::text(component.to_owned());
    let answer = remote::request(&data_dir, &instance, &order.topic(), payload, ORDER_TIMEOUT)?;
    let before: Ordered = remote::decode(&answer)?;
    let Some(wait) = wait else {
        output.say(&format!("ordered; `interlock explain {component}` shows how it goes"));
        return Ok(Exit::Done);
    };
    let deadline = Instant::now() + wait;
    loop {
        // The broker or the runtime's own actor may be what is restarted: then nobody answers for a moment.
        let child = look(&data_dir, &instance, component);
        match child.as_ref().map(|child| came_true(order, &before, child)) {
            Ok(Some(Ok(words))) => {
                output.say(&format!("`{component}` {words}"));
                return Ok(Exit::Done);
            }
            Ok(Some(Err(reason))) => {
                return Err(CliError::new(Exit::Failed, format!("`{component}` failed: {reason}")));
            }
            Ok(None) | Err(_) => {}
        }
        if Instant::now() >= deadline {
            let state = match child {
                Ok(child) => format!("is {}{}", child.state.as_str(), last_failure(&child)),
                Err(error) => error.to_string(),
            };
            let text = format!(
                "not within {}: `{component}` {state}; `interlock explain {component}` says more",
                duration::text(wait)
            );
            return Err(CliError::new(Exit::NotReady, text));
        }
        thread::sleep(POLL);
    }
}

fn look(data_dir: &DataDir, instance: &Instance, component: &str) -> Result<ChildSnapshot, CliError> {
    let status = remote::status(data_dir, instance, &admin::status_topic())?;
    let child = status.tree.child(component).cloned();
    child.ok_or_else(|| remote::unknown(component, &status.tree))
}

/// Whether the order has come true, or cannot any more; `None` as long as both are open.
fn came_true(
    order: ComponentOrder,
    before: &Ordered,
    child: &ChildSnapshot,
) -> Option<Result<String, String>> {
    let is_new = child.incarnation > before.incarnation;
    match (order, child.state) {
        (ComponentOrder::Stop, State::Stopped) => Some(Ok("is stopped".to_owned())),
        // It had failed for good, so there was nothing to stop.
        (ComponentOrder::Stop, State::Error) => Some(Ok("is down: it had failed".to_owned())),
        (ComponentOrder::Stop, _) => None,
        (ComponentOrder::Restart, _) if !is_new => None,
        (_, State::Running) if is_new => Some(Ok(format!("is running; {}", proof(child)))),
        (_, State::Running) => Some(Ok("was running already; its restart budget is whole".to_owned())),
        (_, State::Stopped) if is_new => Some(Ok("has run and ended normally".to_owned())),
        (_, State::Error) if is_new => Some(Err(child
            .last_failure
            .as_ref()
            .map_or("no reason was given".to_owned(), |failure| failure.reason.clone()))),
        _ => None,
    }
}

fn proof(child: &ChildSnapshot) -> &str {
    child.readiness.as_deref().unwrap_or("it does not say how that is known")
}

fn last_failure(child: &ChildSnapshot) -> String {
    child.last_failure.as_ref().map(|failure| format!(": {}", failure.reason)).unwrap_or_default()
}
