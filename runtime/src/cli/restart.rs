//! `interlock restart`: one component of the running instance, with a whole budget again.

use std::time::Duration;

use clap::Args;
use interlock_bus::Payload;

use super::{CliError, Global, Output, remote};
use crate::{admin, exit::Exit};

/// How long the instance may take to accept the order. It does not wait for the component.
const RESTART_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Which component, as `interlock status` names it.
    component: String,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let instance = remote::instance(&data_dir)?;
    let payload = Payload::text(arguments.component.clone());
    remote::request(&data_dir, &instance, &admin::restart_topic(), payload, RESTART_TIMEOUT)?;
    output.say(&format!("`{}` is being restarted; `interlock status` shows it", arguments.component));
    Ok(Exit::Done)
}
