//! `interlock backup restore`.

use std::path::PathBuf;

use clap::Args;
use interlock_actors::backup::{self, RestoreOptions, Restored};

use super::{CliError, Global, Output, Seal, describe, installation, sweep, time, verify, watch::watch};
use crate::{config::Config, exit::Exit, lifecycle::InstanceLock};

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
    if arguments.dry_run {
        return verify::drill(&arguments.file, &arguments.seal, arguments.json, global, output);
    }
    let mut installation = installation(global)?;
    if installation.config.is_none() {
        installation.config = Config::user_file_place();
    }
    let data_dir = global.data_dir()?;
    data_dir.create()?;
    // To the end: nobody starts meanwhile.
    let _lock = InstanceLock::take(&data_dir)?;
    sweep(&installation.root, output);
    let passphrase = arguments.seal.of(&arguments.file)?;
    let options = RestoreOptions {
        keep_seal: arguments.keep_seal,
        leave_config: arguments.leave_config,
        discard_old: arguments.discard_old,
    };
    let restored = watch(arguments.json, output, |watcher| {
        backup::restore(&installation, &arguments.file, &passphrase, options, watcher)
    })?;
    if !arguments.json {
        tell(&restored, &installation.root, output)?;
    }
    Ok(Exit::Done)
}

fn tell(restored: &Restored, root: &std::path::Path, output: &mut Output) -> Result<(), CliError> {
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
