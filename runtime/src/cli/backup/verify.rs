//! `interlock backup verify`.

use std::path::{Path, PathBuf};

use clap::Args;
use interlock_actors::backup::{self, Contents, Installation};

use super::{
    CliError, Global, Output, Seal, Trial, act, describe, installation, noted, sweep, time, watch::watch,
};
use crate::exit::Exit;

#[derive(Debug, Args)]
pub(in super::super) struct Arguments {
    /// The backup.
    file: PathBuf,
    /// A restore drill: everything a restore does before it touches anything, in a private place that is wiped afterwards.
    #[arg(long)]
    drill: bool,
    #[command(flatten)]
    seal: Seal,
    /// One JSON object a line: how far it is, and at the end what is in it.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let root = installation(global)?.root;
    if arguments.drill {
        return drill(&arguments.file, &arguments.seal, arguments.json, root, global, output);
    }
    sweep(&root, output);
    let passphrase = arguments.seal.of(&arguments.file)?;
    let keys = root.join("keys");
    let trial = Trial::begin(&keys, global, output);
    let verified = noted(&keys, None, act("backup-verify", &arguments.file), || {
        watch(arguments.json, output, |watcher| {
            trial.judged(backup::verify(&arguments.file, &passphrase, watcher))
        })
    })?;
    if !arguments.json {
        told(&arguments.file, "is whole: each chunk opens", &verified.contents, output)?;
    }
    Ok(Exit::Done)
}

/// Restores into a place that is wiped afterwards.
pub(super) fn drill(
    file: &Path,
    seal: &Seal,
    json: bool,
    root: PathBuf,
    global: &Global,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let keys = root.join("keys");
    // Where nothing is installed yet, what is temporary goes where other such things are.
    let root = if root.is_dir() { root } else { std::env::temp_dir() };
    let installation = Installation { root, config: None };
    sweep(&installation.root, output);
    let passphrase = seal.of(file)?;
    let trial = Trial::begin(&keys, global, output);
    let contents = noted(&keys, None, act("backup-drill", file), || {
        watch(json, output, |watcher| trial.judged(backup::drill(&installation, file, &passphrase, watcher)))
    })?;
    if !json {
        told(
            file,
            "can be restored: all of it was, and was checked, in a place that is wiped",
            &contents,
            output,
        )?;
    }
    Ok(Exit::Done)
}

fn told(file: &Path, what: &str, contents: &Contents, output: &mut Output) -> Result<(), CliError> {
    output.line(&format!(
        "`{}` {what}; made {} by version {}:",
        file.display(),
        time(contents.created_ns),
        contents.program
    ))?;
    describe(contents, output)
}
