//! `interlock reload`: the running instance reads its configuration again and says what came of it.

use std::time::Duration;

use clap::Args;
use interlock_bus::Payload;

use super::{CliError, Global, Output, remote};
use crate::{admin, config::live::ReloadReport, exit::Exit};

/// How long the instance may take: it reads a file, and orders restarts without waiting for them.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    // With a mistake in it the file is refused here already, with the same words.
    let data_dir = global.data_dir()?;
    let instance = remote::instance(&data_dir)?;
    let payload = Payload::bytes(Vec::new());
    let message = remote::request(&data_dir, &instance, &admin::reload_topic(), payload, RELOAD_TIMEOUT)?;
    let answer: Result<ReloadReport, String> = message.decode().map_err(|error| {
        CliError::new(Exit::Version, format!("the answer of the instance cannot be read: {error}"))
    })?;
    let report =
        answer.map_err(|refusal| CliError::new(Exit::Misuse, format!("{refusal}\nnothing has changed")))?;
    if arguments.json {
        let text =
            serde_json::to_string(&report).map_err(|error| CliError::new(Exit::Failed, error.to_string()))?;
        output.line(&text)?;
        return Ok(Exit::Done);
    }
    for change in &report.changed {
        output.line(&format!("{} = {}, before {}", change.key, change.to, change.from))?;
    }
    for component in &report.restarted {
        output.line(&format!("`{component}` is being restarted for it"))?;
    }
    for waiting in &report.next_start {
        output.line(&format!("waits for the next start: {waiting}"))?;
    }
    if report == ReloadReport::default() {
        output.say("nothing has changed");
    }
    Ok(Exit::Done)
}
