//! `interlock status`: the running instance, its tree, and where it listens.

use std::fmt::Write;

use clap::Args;

use super::{CliError, Global, Output, output::table, remote};
use crate::{
    admin::{self, Status},
    exit::Exit,
    lifecycle::{DataDir, InstanceLock},
    supervisor::State,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// Done if every component is ready, or else [`Exit::NotReady`].
pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let status = match ask(&data_dir) {
        Ok(status) => status,
        Err(error) => {
            if arguments.json && error.exit() == Exit::NotReady {
                // One that holds the lock and cannot be asked is starting or ending.
                let state = if InstanceLock::is_held(&data_dir) { "unreachable" } else { "stopped" };
                output.line(&format!("{{\"state\":\"{state}\"}}"))?;
            }
            return Err(error);
        }
    };
    if arguments.json {
        let text =
            serde_json::to_string(&status).map_err(|error| CliError::new(Exit::Failed, error.to_string()))?;
        output.line(&text)?;
    } else {
        output.lines(&text(&status))?;
    }
    Ok(if status.tree.state == State::Running { Exit::Done } else { Exit::NotReady })
}

fn ask(data_dir: &DataDir) -> Result<Status, CliError> {
    let instance = remote::instance(data_dir)?;
    remote::status(data_dir, &instance, &admin::status_topic())
}

fn text(status: &Status) -> String {
    let instance = &status.instance;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "interlock {} {}, process {}, since {}",
        instance.version,
        status.tree.state.as_str(),
        instance.pid,
        instance.started_at
    );
    for endpoint in &instance.endpoints {
        let _ = writeln!(out, "bus       {endpoint}");
    }
    if let Some(url) = &instance.gateway {
        let _ = writeln!(out, "gateway   {url}");
    }
    let _ = writeln!(out, "answers   {}", status.model);
    for level in &status.log_levels {
        let until = level.until.map_or_else(String::new, |until| format!(" until {until}"));
        let _ = writeln!(out, "logs      {} of `{}`{until}, by order", level.level, level.name);
    }
    if let Some(stalled) = status.supervisor.stalled_ms {
        let _ = writeln!(
            out,
            "supervisor has not answered for {} s: nothing is restarted, and what follows is as it was then",
            stalled / 1000
        );
    } else if status.supervisor.stalls > 0 {
        let _ = writeln!(
            out,
            "supervisor stood still {} times; `interlock logs` says when",
            status.supervisor.stalls
        );
    }
    if let Some(refused) = &status.config.refused {
        let _ = writeln!(
            out,
            "config    the changed file is refused, the one before stays: {}",
            refused.replace('\n', "; ")
        );
    }
    if !status.config.next_start.is_empty() {
        let _ = writeln!(out, "config    waits for the next start: {}", status.config.next_start.join(", "));
    }
    if let Some(shutdown) = &status.shutdown {
        let _ = writeln!(
            out,
            "stopping  because of {}: phase {}, {} s of it left; ended by force in {} s at the latest",
            shutdown.because,
            shutdown.phase.as_str(),
            shutdown.phase_left_ms / 1000,
            shutdown.left_ms / 1000
        );
    }
    let _ = writeln!(out);
    out.push_str(&components(status));
    out
}

/// The components as a table.
fn components(status: &Status) -> String {
    let mut rows = vec![["COMPONENT", "KIND", "STATE", "RESTARTS", "DETAIL"].map(str::to_owned).to_vec()];
    for child in &status.tree.children {
        let mut detail: Vec<String> = Vec::new();
        if child.state != State::Running
            && let Some(failure) = &child.last_failure
        {
            detail.push(failure.reason.clone());
        }
        detail.extend(child.impaired.clone());
        if !child.waits_for.is_empty() {
            detail.push(format!("waits for {}", child.waits_for.join(", ")));
        }
        if let Some(at) = child.next_try {
            detail.push(format!("next try at {at:.0}"));
        }
        if let Some(text) = child.status.clone().or_else(|| child.readiness.clone()) {
            detail.push(text);
        }
        if child.queued > 0 {
            detail.push(format!("{} queued", child.queued));
        }
        rows.push(vec![
            child.name.clone(),
            child.kind.as_str().to_owned(),
            child.state.as_str().to_owned(),
            child.restarts.to_string(),
            detail.join("; "),
        ]);
    }
    table(&rows)
}
