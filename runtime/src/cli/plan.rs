//! `interlock plan`: the exact delays of the restarts to come, until the supervisor gives up.

use std::time::Duration;

use clap::Args;
use interlock_bus::Payload;

use super::{CliError, Global, Output, remote};
use crate::{
    admin::{self, PlanRequest},
    config::duration,
    exit::Exit,
    supervisor::Plan,
};

/// How long the instance may take to answer.
const PLAN_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Which component, as `interlock ps` names it.
    component: String,
    /// How long each start is supposed to take until it fails.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration::argument)]
    fails_after: Duration,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let instance = remote::instance(&data_dir)?;
    let wanted = PlanRequest {
        component: arguments.component.clone(),
        fails_after_ms: u64::try_from(arguments.fails_after.as_millis()).unwrap_or(u64::MAX),
    };
    let payload = Payload::json(&wanted).map_err(|error| CliError::new(Exit::Failed, error.to_string()))?;
    let answer = remote::request(&data_dir, &instance, &admin::plan_topic(), payload, PLAN_TIMEOUT)?;
    let plan: Plan = remote::decode(&answer)?;
    if arguments.json {
        output.line(&remote::json(&plan)?)?;
    } else {
        output.lines(&plan.text())?;
    }
    Ok(Exit::Done)
}
