//! Directories and files: that they are there, ours, and nobody else's to read.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{Finding, Patient, quoted};
use crate::exit::Exit;

/// The directories of an instance, below its data directory.
const BELOW: [&str; 2] = ["keys", "run"];

pub(super) fn examine(patient: &Patient) -> Vec<Finding> {
    let Some(data) = &patient.data else { return Vec::new() };
    let mut findings = vec![directory("files.data", data)];
    if findings[0].exit == Exit::NotReady {
        return findings;
    }
    for (check, name) in ["files.keys", "files.run"].into_iter().zip(BELOW) {
        // `run` is there once something ran.
        let path = data.join(name);
        if name == "keys" || path.exists() {
            findings.push(directory(check, &path));
        }
    }
    findings.extend(private_files(data));
    findings
}

fn directory(check: &'static str, path: &Path) -> Finding {
    let shown = path.display();
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Finding::fail(
                check,
                Exit::NotReady,
                format!("`{shown}` does not exist; nothing ever ran there"),
            )
            .remedy("interlock run");
        }
        Err(error) => {
            return Finding::fail(check, Exit::of_io(&error), format!("cannot look at `{shown}`: {error}"));
        }
    };
    if !metadata.is_dir() {
        return Finding::fail(check, Exit::Misuse, format!("`{shown}` is not a directory"));
    }
    judged(check, path, &metadata, 0o700).unwrap_or_else(|| {
        Finding::ok(check, format!("`{shown}` is its owner's alone (mode {:03o})", mode_of(&metadata)))
    })
}

/// What is wrong with who may use a file, if anything is.
fn judged(check: &'static str, path: &Path, metadata: &Metadata, wanted: u32) -> Option<Finding> {
    let (shown, mode) = (path.display(), mode_of(metadata));
    let (owner, us) = (metadata.uid(), nix::unistd::geteuid().as_raw());
    if owner != us {
        let found = format!("`{shown}` belongs to user {owner}, and this is user {us}");
        return Some(
            Finding::fail(check, Exit::Misuse, found).remedy(format!("sudo -u '#{owner}' bus doctor")),
        );
    }
    (mode & 0o077 != 0).then(|| {
        let found = format!("`{shown}` can be used by others (mode {mode:03o}); consider its secrets known");
        Finding::fail(check, Exit::Misuse, found).remedy(format!("chmod {wanted:03o} {}", quoted(path)))
    })
}

fn mode_of(metadata: &Metadata) -> u32 {
    metadata.permissions().mode() & 0o777
}

/// All plain files of an instance: one finding for each that others may use, or one for all.
fn private_files(data: &Path) -> Vec<Finding> {
    const CHECK: &str = "files.private";
    let mut looked_at = 0;
    let mut findings = Vec::new();
    for directory in [data.to_owned(), data.join(BELOW[0]), data.join(BELOW[1])] {
        for (path, metadata) in plain_files(&directory) {
            looked_at += 1;
            findings.extend(judged(CHECK, &path, &metadata, 0o600));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("{looked_at} files, each its owner's alone")));
    }
    findings
}

/// In the order of their names. A directory that cannot be read has been told of.
fn plain_files(directory: &Path) -> Vec<(PathBuf, Metadata)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok().filter(Metadata::is_file)?)))
        .collect();
    files.sort_by(|one, other| one.0.cmp(&other.0));
    files
}
