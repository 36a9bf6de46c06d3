//! `interlock wait`: until components are ready, also of an instance that is only just being started.

use std::{
    thread,
    time::{Duration, Instant},
};

use clap::Args;

use super::{CliError, Global, Output, remote};
use crate::{
    admin,
    config::duration,
    exit::Exit,
    lifecycle::DataDir,
    supervisor::{ChildSnapshot, State, TreeSnapshot},
};

/// Between two looks.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Which components, as `interlock ps` names them; without any, all.
    components: Vec<String>,
    /// How long to wait.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration::argument)]
    timeout: Duration,
}

/// Done once they are ready, all in one look; [`Exit::NotReady`] if that is not so in time, with what is missing.
pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let deadline = Instant::now() + arguments.timeout;
    loop {
        let missing = match look(&data_dir) {
            Ok(tree) => missing(&tree, &arguments.components)?,
            // It may be on its way. What waiting cannot mend is said at once.
            Err(error) if error.exit() == Exit::NotReady => vec![error.to_string()],
            Err(error) => return Err(error),
        };
        if missing.is_empty() {
            return Ok(Exit::Done);
        }
        if Instant::now() >= deadline {
            output.say(&format!(
                "not ready within {}: {}",
                duration::text(arguments.timeout),
                missing.join("; ")
            ));
            return Ok(Exit::NotReady);
        }
        thread::sleep(POLL);
    }
}

fn look(data_dir: &DataDir) -> Result<TreeSnapshot, CliError> {
    let instance = remote::instance(data_dir)?;
    Ok(remote::status(data_dir, &instance, &admin::status_topic())?.tree)
}

/// Which of `wanted`, or of all if that is empty, are not ready, and why.
fn missing(tree: &TreeSnapshot, wanted: &[String]) -> Result<Vec<String>, CliError> {
    let children: Vec<&ChildSnapshot> = match wanted {
        [] => tree.children.iter().collect(),
        names => names
            .iter()
            .map(|name| tree.child(name).ok_or_else(|| remote::unknown(name, tree)))
            .collect::<Result<_, _>>()?,
    };
    let not_ready = |child: &&ChildSnapshot| child.state != State::Running;
    Ok(children.into_iter().filter(not_ready).map(words).collect())
}

fn words(child: &ChildSnapshot) -> String {
    let why = match (&child.waits_for[..], &child.last_failure) {
        ([], Some(failure)) => format!(", {}", failure.reason),
        ([], None) => String::new(),
        (others, _) => format!(", waits for {}", others.join(", ")),
    };
    format!("`{}` is {}{why}", child.name, child.state.as_str())
}
