//! `interlock stop`: asks over the bus, or by the shutdown file if the bus does not answer, and waits for the end. An
//! instance that has only just begun, or is ending already, is waited for. Ends with the code of the
//! instance. With a name it stops one component.

use std::{
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use interlock_bus::{Payload, keys::private_file};

use super::{CliError, Global, Output, order, remote};
use crate::{
    admin::{self, ComponentOrder},
    config::duration,
    exit::Exit,
    lifecycle::{self, DataDir, Instance, InstanceLock, LifecycleError, STOP_FILE, WATCHDOG_SLACK},
};

/// How long the instance may take to say that it will.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the lock is looked at while the instance ends.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// One component, as `interlock ps` names it; without it everything is stopped.
    component: Option<String>,
    /// How long to wait for the end; by default as long as a stop may take.
    #[arg(long, value_name = "DURATION", value_parser = duration::argument)]
    timeout: Option<Duration>,
    /// Ask, and do not wait.
    #[arg(long, conflicts_with = "timeout")]
    no_wait: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    if let Some(component) = &arguments.component {
        let wait = (!arguments.no_wait).then_some(arguments.timeout.unwrap_or(order::WAIT));
        return order::give(ComponentOrder::Stop, component, wait, global, output);
    }
    let loaded = global.load()?;
    let data_dir = super::data_dir(&loaded.config)?;
    let limit = arguments.timeout.unwrap_or(loaded.config.shutdown.forced + WATCHDOG_SLACK);
    let deadline = Instant::now() + limit;
    let Some(instance) = find(&data_dir, deadline)? else {
        output.say("the instance has ended");
        return Ok(Exit::Done);
    };
    let payload = Payload::bytes(Vec::new());
    let asked = remote::request(&data_dir, &instance, &admin::stop_topic(), payload, STOP_TIMEOUT);
    if let Err(error) = asked {
        output.say(&format!("{error}; asking by the file `{STOP_FILE}` instead"));
        private_file::replace(&data_dir.run().join(STOP_FILE), instance.instance.to_string().as_bytes())?;
    }
    if arguments.no_wait {
        return Ok(Exit::Done);
    }
    while InstanceLock::is_held(&data_dir) {
        if Instant::now() >= deadline {
            let text = format!("process {} has not ended within {}", instance.pid, duration::text(limit));
            return Err(CliError::new(Exit::NotReady, text));
        }
        thread::sleep(POLL);
    }
    let pid = instance.pid;
    Ok(match InstanceLock::end_of(&data_dir, pid) {
        Some(Exit::Done) => {
            output.say(&format!("process {pid} has ended"));
            Exit::Done
        }
        Some(exit) => {
            let (code, meaning) = (exit.code(), exit.meaning());
            output.say(&format!(
                "process {pid} has ended with code {code}: {meaning}; `interlock logs` says what"
            ));
            exit
        }
        None => {
            output.say(&format!("process {pid} has ended without saying how; it was killed"));
            Exit::Forced
        }
    })
}

/// The running instance; `None` if it ended while it was looked for. Between its lock and its file there is a moment.
fn find(data_dir: &DataDir, deadline: Instant) -> Result<Option<Instance>, CliError> {
    let mut seen = false;
    loop {
        match lifecycle::running(data_dir) {
            Ok(Some(instance)) => return Ok(Some(instance)),
            Ok(None) if seen => return Ok(None),
            Err(LifecycleError::InBetween { .. }) if Instant::now() < deadline => seen = true,
            // Says that there is none, or what is wrong.
            _ => return remote::instance(data_dir).map(Some),
        }
        thread::sleep(POLL);
    }
}
