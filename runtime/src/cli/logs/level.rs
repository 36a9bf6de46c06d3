//! `interlock logs level`: which records are kept of whom, now and for a while, without a restart.

use std::time::Duration;

use clap::Args;
use interlock_actors::log_transport::Threshold;
use interlock_bus::Payload;

use crate::{
    admin::{self, LevelOrder, LevelStatus},
    cli::{CliError, Global, Output, output::table, remote},
    config::duration,
    exit::Exit,
};

/// How long the instance may take, which changes two filters.
const LEVEL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A component (`gateway`) or a module (`interlock_actors::gateway`); or `reset`. Without it: what is kept now.
    name: Option<String>,
    /// trace, debug, info, warn, error, off; or `reset` to take back what was set.
    #[arg(requires = "name")]
    level: Option<String>,
    /// For so long, for example 10m; without it until it is taken back or the runtime ends.
    #[arg(long = "for", value_name = "DURATION", value_parser = parse, requires = "level")]
    during: Option<Duration>,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

fn parse(text: &str) -> Result<Duration, String> {
    duration::parse(text)
        .filter(|span| !span.is_zero())
        .ok_or_else(|| format!("`{text}` is no duration; write a number and a unit, for example `10m`"))
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let order = order(arguments)?;
    let data_dir = global.data_dir()?;
    let instance = remote::instance(&data_dir)?;
    let payload = Payload::json(&order).map_err(|error| CliError::new(Exit::Failed, error.to_string()))?;
    let answer = remote::request(&data_dir, &instance, &admin::log_levels_topic(), payload, LEVEL_TIMEOUT)?;
    let status: LevelStatus = remote::decode(&answer)?;
    if arguments.json {
        output.line(&remote::json(&status)?)?;
        return Ok(Exit::Done);
    }
    let mut rows = vec![
        ["OF", "KEPT FROM", ""].map(str::to_owned).to_vec(),
        vec!["everything else".to_owned(), status.rules.all.to_string(), String::new()],
    ];
    for (name, level) in status.rules.components.iter().chain(&status.rules.modules) {
        let set = status.overrides.iter().find(|set| set.name == *name);
        let why = set.map_or_else(String::new, |set| match set.until {
            Some(until) => format!("set until {until}"),
            None => "set".to_owned(),
        });
        rows.push(vec![name.clone(), level.to_string(), why]);
    }
    output.lines(&table(&rows))?;
    Ok(Exit::Done)
}

fn order(arguments: &Arguments) -> Result<LevelOrder, CliError> {
    match (arguments.name.as_deref(), arguments.level.as_deref()) {
        (None, _) => Ok(LevelOrder::Show),
        (Some("reset"), None) => Ok(LevelOrder::Reset { name: None }),
        (Some(name), Some("reset")) => Ok(LevelOrder::Reset { name: Some(name.to_owned()) }),
        (Some(name), Some(level)) => {
            let level: Threshold = level.parse().map_err(|_| {
                let text = format!(
                    "`{}` is no level; write trace, debug, info, warn, error, off or reset",
                    level.escape_debug()
                );
                CliError::new(Exit::Misuse, text)
            })?;
            let for_ms = arguments.during.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
            Ok(LevelOrder::Set { name: name.to_owned(), level, for_ms })
        }
        (Some(name), None) => {
            let text = format!("what of `{name}`? write a level behind it, or `reset`");
            Err(CliError::new(Exit::Misuse, text))
        }
    }
}
