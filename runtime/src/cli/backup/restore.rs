//! `interlock backup restore`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use interlock_actors::backup::{self, Installation, RestoreOptions, Restored};
use interlock_bus::{
    Credentials, Endpoint, KeyStore,
    keys::{Audit, KeyState},
};

use super::{
    CliError, Global, Output, Seal, Trial, act, describe, noted, place_of_config, sweep, time, verify,
    watch::watch,
};
use crate::{
    cli::environment,
    config::Config,
    exit::Exit,
    lifecycle::{DataDir, InstanceLock},
    peers,
};

#[derive(Debug, Args)]
pub(in super::super) struct Arguments {
    /// The backup.
    file: PathBuf,
    /// Only a drill: everything but the last step, in a private place that is wiped afterwards; also while the runtime runs.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    seal: Seal,
    /// A data key that was sealed under a passphrase stays under that one; else the passphrase of the backup opens it.
    #[arg(long)]
    keep_seal: bool,
    /// Leave the configuration as it is.
    #[arg(long)]
    leave_config: bool,
    /// Wipe what was live before once the new one was opened; else it is kept beside, as `*.pre-restore-TIME`.
    #[arg(long)]
    discard_old: bool,
    /// One JSON object a line: how far it is, and at the end what was done.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let (data_dir, installation) = destination(global)?;
    apart(&installation)?;
    if arguments.dry_run {
        return verify::drill(
            &arguments.file,
            &arguments.seal,
            arguments.json,
            installation.root,
            global,
            output,
        );
    }
    let made = Made::before(&data_dir);
    data_dir.create()?;
    // To the end: nobody starts meanwhile.
    let _lock = InstanceLock::take_for_restore(&data_dir)?;
    let made = made.with_lock(&data_dir);
    sweep(&installation.root, output);
    let passphrase = arguments.seal.of(&arguments.file)?;
    let options = RestoreOptions {
        keep_seal: arguments.keep_seal,
        leave_config: arguments.leave_config,
        discard_old: arguments.discard_old,
    };
    let keys = data_dir.keys();
    let trial = Trial::begin(&keys, global, output);
    let work = || {
        watch(arguments.json, output, |watcher| {
            trial.judged(backup::restore(&installation, &arguments.file, &passphrase, options, watcher))
        })
    };
    let act = act("backup-restore", &arguments.file);
    // Its beginning stands in the key store that was there, its end in the one that is there then.
    let restored = match keys.is_dir() {
        true => Audit::of(&keys).around(act, work),
        false => noted(&keys, None, act, work),
    }?;
    made.keep();
    if !arguments.json {
        tell(&restored, &installation.root, output)?;
    }
    tell_credentials(&data_dir, output);
    tell_start(&installation, global, output);
    Ok(Exit::Done)
}

/// Where everything goes. A configuration file that is named goes there, also if it is not there yet.
fn destination(global: &Global) -> Result<(DataDir, Installation), CliError> {
    let named = global.named_config_file();
    let present = match &named {
        Some(path) => Some(path.clone()).filter(|path| path.exists()),
        None => Config::user_file(),
    };
    let loaded = global.load_with(present)?;
    let data_dir = super::super::data_dir(&loaded.config)?;
    let config = match named {
        Some(path) => Some(std::path::absolute(&path).unwrap_or(path)),
        None => place_of_config(&loaded, data_dir.root()),
    };
    let root = data_dir.root().to_owned();
    Ok((data_dir, Installation { root, config }))
}

/// Refuses a place for the configuration in which it would not be found afterwards, or that hinders the rest.
fn apart(installation: &Installation) -> Result<(), CliError> {
    let (Some(config), Some(taken)) = (&installation.config, installation.config_in_the_way()) else {
        return Ok(());
    };
    let text = format!(
        "the configuration cannot go to `{}`: a restore makes or exchanges `{}` itself; nothing was done: name another place with --config, for example `{}`",
        config.display(),
        taken.display(),
        installation.root.join("interlock.toml").display()
    );
    Err(CliError::new(Exit::Misuse, text))
}

/// The directories that a restore makes for itself. What of them is empty goes again, unless they are to be kept.
struct Made {
    lock: Option<PathBuf>,
    /// The innermost first.
    directories: Vec<PathBuf>,
}

impl Made {
    fn before(data_dir: &DataDir) -> Self {
        let run = data_dir.run();
        let missing = run.ancestors().take_while(|path| !path.exists()).map(Path::to_owned);
        Self { lock: None, directories: missing.collect() }
    }

    /// The lock, too, now that it is ours; as it is dropped before that, nobody else can have it meanwhile.
    fn with_lock(mut self, data_dir: &DataDir) -> Self {
        let is_new = !self.directories.is_empty();
        let directories = std::mem::take(&mut self.directories);
        Self { lock: is_new.then(|| InstanceLock::path(data_dir)), directories }
    }

    fn keep(mut self) {
        self.lock = None;
        self.directories.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(lock) = &self.lock {
            let _ = fs::remove_file(lock);
        }
        for directory in &self.directories {
            // Something else is in it, and it stays.
            let _ = fs::remove_dir(directory);
        }
    }
}

fn tell(restored: &Restored, root: &Path, output: &mut Output) -> Result<(), CliError> {
    let Restored { path, contents, seal, sealed_anew, config, kept } = restored;
    output.line(&format!(
        "restored `{}`, made {}, into `{}`:",
        path.display(),
        time(contents.created_ns),
        root.display()
    ))?;
    describe(contents, output)?;
    if *sealed_anew {
        output.say(
            "the data key was sealed under a passphrase, and is now under that of the backup; `interlock keys passphrase` changes it",
        );
    } else if *seal == "passphrase" {
        output.say("the data key is sealed under the passphrase that it had when the backup was made");
    }
    if let Some(config) = config {
        output.say(&format!("the configuration is in `{}`", config.display()));
    }
    for path in kept {
        output.say(&format!("what was there before is kept as `{}`", path.display()));
    }
    if !kept.is_empty() {
        output.say("remove that when you are sure that you do not want it back");
    }
    Ok(())
}

/// Credentials follow at the next start; those that lie elsewhere have to be brought.
fn tell_credentials(data_dir: &DataDir, output: &mut Output) {
    let Ok(store) = KeyStore::open(&data_dir.keys()) else { return };
    let before = store.endpoints_of(&peers::name_of(peers::RUNTIME));
    let ours = Endpoint::Ipc(data_dir.run().join("bus.sock"));
    if before.is_empty() || before.contains(&ours) {
        return;
    }
    output.say("the credentials in the key store name another place; the next start brings them up to date");
    let Ok(registry) = store.registry() else { return };
    let elsewhere = registry.peers().filter(|(name, peer)| {
        peer.state != KeyState::Revoked && !Credentials::path_in(&data_dir.keys(), name).exists()
    });
    let names: Vec<String> = elsewhere.map(|(name, _)| format!("`{name}`")).collect();
    if !names.is_empty() {
        output.say(&format!(
            "those of {} lie elsewhere: after that start, `interlock keys renew FILE` brings them up to date",
            names.join(", ")
        ));
    }
}

/// How what was restored is started: with as few flags as lead there.
fn tell_start(installation: &Installation, global: &Global, output: &mut Output) {
    let is_there = |path: &PathBuf| path.exists();
    let config =
        installation.config.clone().filter(is_there).or_else(|| global.config_file()).filter(is_there);
    // Another shell knows nothing of our variables here.
    let (_ours, environment): (Vec<_>, Vec<_>) =
        environment().into_iter().partition(|(name, _)| name.starts_with("INTERLOCK_"));
    let root = Some(installation.root.clone());
    let mut problem = None;
    for (with_config, with_data_dir) in [(false, false), (true, false), (false, true), (true, true)] {
        let start = Global {
            config: config.clone().filter(|_| with_config),
            data_dir: root.clone().filter(|_| with_data_dir),
            settings: Vec::new(),
            ..global.clone()
        };
        let file = start.config.clone().or_else(Config::user_file);
        if file != config {
            continue;
        }
        match start.load_from(file, environment.clone()) {
            Ok(loaded) if loaded.config.data_dir() == root => {
                let mut command = "interlock".to_owned();
                for (flag, path) in [("--config", start.config), ("--data-dir", start.data_dir)] {
                    if let Some(path) = path {
                        command += &format!(" {flag} {}", shell_quoted(&path));
                    }
                }
                output.say(&format!("start it with: {command}"));
                return;
            }
            Ok(_) => {}
            Err(error) => problem = Some(error),
        }
    }
    if let Some(problem) = problem {
        output.say(&format!("before it can be started, its configuration has to be mended: {problem}"));
    }
}

/// As a shell takes it for one word.
fn shell_quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._-+:@%,=".contains(character);
    if !text.is_empty() && text.chars().all(is_plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}
