//! The command line of `interlock`: one file per verb, `output` the only printer.

mod backup;
mod check;
mod config_show;
mod critical_path;
mod db;
mod explain;
mod keys;
mod logs;
mod order;
mod outbox;
mod output;
mod plan;
mod ps;
mod reload;
pub(crate) mod remote;
mod status;
mod stop;
mod terminal;
mod tokens;
mod wait;
mod wipe;

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand};
use interlock_actors::store::{DataKey, PassphraseSources, Vault};
use interlock_bus::manual::{Completions, Manual, Pages};

pub(crate) use backup::{noted as backup_noted, sweep, target as backup_target};
pub use output::{CliError, Output, ascii};

use crate::{
    admin::ComponentOrder,
    builder::Extras,
    component,
    config::{Config, ConfigError, Loaded, Sources},
    exit::{Exit, leave},
    lifecycle::{DataDir, LifecycleError},
    process::guardian,
    run,
};

/// The `interlock` program, with `extras` in its tree. Returns how it ended; everything has been printed.
pub fn main(extras: Extras) -> std::process::ExitCode {
    // A guardian is this binary in another role; nothing of the command line is meant for us then.
    if let Some(code) = guardian::run_if_asked() {
        return code;
    }
    // Most verbs have a key in their memory, if only the operator's.
    interlock_bus::keys::keep_memory_private();
    let arguments = match Arguments::try_parse_from(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => return output::usage(&error).into(),
    };
    let mut output = Output::new();
    let is_runtime = matches!(arguments.verb, None | Some(Verb::Run));
    let exit = match dispatch(arguments, extras, &mut output) {
        Ok(exit) => exit,
        Err(error) => output.fail(&error),
    };
    // Whatever did not end in order may have left a thread in the database.
    if is_runtime && exit != Exit::Done {
        leave(exit);
    }
    exit.into()
}

/// Supervised actors on an encrypted message bus.
///
/// Without a command it runs. No configuration file is needed; `interlock config show` prints all settings.
#[derive(Debug, Parser)]
#[command(name = "interlock", version, args_conflicts_with_subcommands = false, after_help = Exit::help())]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// Flags of every verb.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Configuration file; by default INTERLOCK_CONFIG, or the user's if there is one.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory: keys, database, run files.
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// One setting, for example gateway.listen=127.0.0.1:9000; may be repeated.
    #[arg(long = "set", global = true, value_name = "SECTION.KEY=VALUE")]
    settings: Vec<String>,
    /// File with the passphrase of the data key, if that is sealed under one; mode 0600. Else INTERLOCK_PASSPHRASE_FILE, the
    /// systemd credential interlock.passphrase, or the terminal.
    #[arg(long, global = true, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// No colours, even on a terminal (also NO_COLOR).
    #[arg(long, global = true)]
    no_color: bool,
    /// What this binary has in its tree besides.
    #[arg(skip)]
    actors: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run until asked to stop (the default).
    Run,
    /// Show the running instance and the state of each component.
    Status(status::Arguments),
    /// Show what each component does and what weighs on it.
    Ps(ps::Arguments),
    /// Say of one component what it waits for, why it is down, when it is tried next.
    Explain(explain::Arguments),
    /// Show the exact delays of the restarts of one component until it is given up.
    Plan(plan::Arguments),
    /// Show what made the start slow.
    CriticalPath(critical_path::Arguments),
    /// Stop the running instance, or one component of it, and wait for the end.
    Stop(stop::Arguments),
    /// Start one component that is down, or try it now; with a whole restart budget.
    Start(order::Arguments),
    /// Wait until components are ready.
    Wait(wait::Arguments),
    /// Let the running instance read its configuration again; see which changes wait for its next start.
    Reload(reload::Arguments),
    /// Restart one component; with a whole restart budget.
    Restart(order::Arguments),
    /// Show what was logged, whether the runtime runs or not.
    Logs(Box<logs::Arguments>),
    /// Enrol peers and revoke their keys.
    #[command(subcommand)]
    Keys(keys::Verb),
    /// Issue and revoke the tokens with which programs and people come in through the gateway.
    #[command(subcommand)]
    Tokens(tokens::Verb),
    /// Seal databases, keys and configuration into one file; verify, list and restore such files.
    #[command(subcommand)]
    Backup(backup::Verb),
    /// Overwrite files and remove them; see what that is worth.
    Wipe(wipe::Arguments),
    /// Look after what is published durably, whether the runtime runs or not.
    #[command(subcommand)]
    Outbox(outbox::Verb),
    /// Look after dead letters: durable messages that no consumer would take.
    #[command(subcommand)]
    Dlq(outbox::DeadVerb),
    /// Make, look at, check and mend the database.
    #[command(subcommand)]
    Db(db::Verb),
    /// Check the configuration without starting anything.
    Check(check::Arguments),
    /// Show the configuration.
    #[command(subcommand)]
    Config(config_show::Verb),
    /// Print what teaches a shell to complete verbs and flags.
    Completions(Completions),
    /// Print the manual page of a verb, or write those of all verbs.
    Man {
        /// Which.
        #[command(flatten)]
        manual: Manual,
        /// One JSON object for each file that is written.
        #[arg(long)]
        json: bool,
    },
    /// Run one component as a process of its own; the runtime does this.
    #[command(hide = true)]
    Actor {
        /// Which component.
        component: String,
    },
}

fn dispatch(mut arguments: Arguments, extras: Extras, output: &mut Output) -> Result<Exit, CliError> {
    arguments.global.actors = extras.names_in_the_tree();
    let global = &arguments.global;
    output.use_color(!global.no_color);
    match arguments.verb.unwrap_or(Verb::Run) {
        Verb::Run => run::run(global.load()?, global.passphrase_sources(), extras, output),
        Verb::Status(arguments) => status::run(&arguments, global, output),
        Verb::Stop(arguments) => stop::run(&arguments, global, output),
        Verb::Ps(arguments) => ps::run(&arguments, global, output),
        Verb::Explain(arguments) => explain::run(&arguments, global, output),
        Verb::Plan(arguments) => plan::run(&arguments, global, output),
        Verb::CriticalPath(arguments) => critical_path::run(&arguments, global, output),
        Verb::Start(arguments) => order::run(ComponentOrder::Start, &arguments, global, output),
        Verb::Wait(arguments) => wait::run(&arguments, global, output),
        Verb::Reload(arguments) => reload::run(&arguments, global, output),
        Verb::Restart(arguments) => order::run(ComponentOrder::Restart, &arguments, global, output),
        Verb::Logs(arguments) => logs::run(&arguments, global, output),
        Verb::Keys(verb) => keys::run(verb, global, output),
        Verb::Tokens(verb) => tokens::run(verb, global, output),
        Verb::Backup(verb) => backup::run(&verb, global, output),
        Verb::Wipe(arguments) => wipe::run(&arguments, global, output),
        Verb::Outbox(verb) => outbox::run(&verb, global, output),
        Verb::Dlq(verb) => outbox::run_dead(&verb, global, output),
        Verb::Db(verb) => db::run(&verb, global, output),
        Verb::Check(arguments) => check::run(&arguments, global, output),
        Verb::Config(verb) => config_show::run(&verb, global, output),
        Verb::Completions(verb) => output.bytes(&verb.script(Arguments::command())).map(|()| Exit::Done),
        Verb::Man { manual, json } => write_manual(&manual, json, output),
        Verb::Actor { component } => component::run(&component, output),
    }
}

fn write_manual(verb: &Manual, json: bool, output: &mut Output) -> Result<Exit, CliError> {
    let pages = verb.pages(Arguments::command());
    match pages.map_err(|error| CliError::new(Exit::from(&error), error.to_string()))? {
        Pages::Text(text) => output.bytes(&text)?,
        Pages::Written(paths) => {
            paths.iter().try_for_each(|path| match json {
                true => output.line(&output::json(&serde_json::json!({ "page": path }))?),
                false => output.line(&path.display().to_string()),
            })?;
        }
    }
    Ok(Exit::Done)
}

impl Global {
    /// The configuration, from all layers.
    fn load(&self) -> Result<Loaded, CliError> {
        self.load_with(self.config_file())
    }

    /// The same with this file.
    fn load_with(&self, file: Option<PathBuf>) -> Result<Loaded, CliError> {
        self.load_from(file, environment())
    }

    /// The same with these environment variables.
    fn load_from(
        &self,
        file: Option<PathBuf>,
        environment: Vec<(String, String)>,
    ) -> Result<Loaded, CliError> {
        let mut flags = Vec::new();
        for setting in &self.settings {
            let Some((path, text)) = setting.split_once('=') else {
                let text = format!("--set `{setting}` has no `=`; write --set SECTION.KEY=VALUE");
                return Err(CliError::new(Exit::Misuse, text));
            };
            flags.push(("--set", path.to_owned(), text.to_owned()));
        }
        if let Some(directory) = &self.data_dir {
            let text = directory.to_str().ok_or_else(|| {
                CliError::new(Exit::Misuse, format!("--data-dir `{}` is not UTF-8", directory.display()))
            })?;
            flags.push(("--data-dir", "runtime.data_dir".to_owned(), text.to_owned()));
        }
        let actors = self.actors.clone();
        Ok(Config::load(&Sources { file, environment, flags, actors })?)
    }

    /// The configuration file, if there is one.
    fn config_file(&self) -> Option<PathBuf> {
        self.named_config_file().or_else(Config::user_file)
    }

    /// The configuration file, if somebody has named one, whether it is there or not.
    fn named_config_file(&self) -> Option<PathBuf> {
        let variable = || std::env::var_os("INTERLOCK_CONFIG").filter(|path| !path.is_empty());
        self.config.clone().or_else(|| variable().map(PathBuf::from))
    }

    /// The data key, for a verb that reads the database. Every verb gets it here, whatever it is sealed under.
    fn data_key(&self, data_dir: &DataDir) -> Result<DataKey, CliError> {
        Ok(self.vault(data_dir).open()?)
    }

    /// The way to the data key. One for each process, so that nobody is asked twice.
    fn vault(&self, data_dir: &DataDir) -> Vault {
        Vault::new(data_dir.keys(), data_dir.database(), self.passphrase_sources())
    }

    fn passphrase_sources(&self) -> PassphraseSources {
        let environment = PassphraseSources::from_environment(self.passphrase_file.clone());
        PassphraseSources { prompt: terminal::prompt(), ..environment }
    }

    /// The data directory of the configuration.
    fn data_dir(&self) -> Result<DataDir, CliError> {
        data_dir(&self.load()?.config)
    }
}

/// The data directory that `config` names.
pub(crate) fn data_dir(config: &Config) -> Result<DataDir, CliError> {
    let data_dir = DataDir::at(config.data_dir().ok_or(LifecycleError::NoDataDir)?);
    // Whoever comes first after a restore that was killed carries it to its end, before anything is opened.
    if let Some(finished) = interlock_actors::backup::finish_pending(data_dir.root())? {
        Output::quick("a restore that had been interrupted was carried to its end");
        for path in &finished.kept {
            Output::quick(&format!("what was there before is kept as `{}`", path.display()));
        }
    }
    Ok(data_dir)
}

/// Our environment variables. One that is not UTF-8 is no setting.
fn environment() -> Vec<(String, String)> {
    let text = |text: OsString| text.into_string().ok();
    std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect()
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Misuse, error.to_string())
    }
}

impl From<interlock_actors::gateway::TlsError> for CliError {
    fn from(error: interlock_actors::gateway::TlsError) -> Self {
        Self::new(Exit::Misuse, error.to_string())
    }
}

impl From<LifecycleError> for CliError {
    fn from(error: LifecycleError) -> Self {
        Self::new(error.exit(), error.to_string())
    }
}

impl From<interlock_bus::keys::KeyError> for CliError {
    fn from(error: interlock_bus::keys::KeyError) -> Self {
        Self::new(Exit::of_key(&error), error.to_string())
    }
}
