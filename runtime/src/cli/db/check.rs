//! `interlock db check`.

use interlock_actors::store::{
    Reader,
    checkup::{Checkup, Finding, FindingKind},
};

use super::{CliError, Form, Global, Output, initialised, json};
use crate::{exit::Exit, lifecycle::DataDir};

pub(super) fn run(
    form: &Form,
    global: &Global,
    data_dir: &DataDir,
    output: &mut Output,
) -> Result<Exit, CliError> {
    initialised(data_dir)?;
    let checkup = Reader::open(&data_dir.database(), &global.data_key(data_dir)?)?.checkup()?;
    let exit = if checkup.is_well() { Exit::Done } else { Exit::Damaged };
    if form.json {
        output.line(&json(&checkup.as_json(&data_dir.database()))?)?;
        return Ok(exit);
    }
    for finding in &checkup.findings {
        output.line(&finding.to_string())?;
    }
    if checkup.is_well() {
        output.line(&format!(
            "`{}` is well: {} pages, {} objects, {} migrations",
            data_dir.database().display(),
            checkup.pages,
            checkup.objects.len(),
            checkup.migrations.len()
        ))?;
    }
    way_out(&checkup, output);
    Ok(exit)
}

fn way_out(checkup: &Checkup, output: &mut Output) {
    if let Some(text) = advice(&checkup.findings) {
        output.say(text);
    }
}

/// What to do about the worst that was found.
pub(super) fn advice(findings: &[Finding]) -> Option<&'static str> {
    let has = |kind| findings.iter().any(|finding| finding.kind == kind);
    let mendable = |finding: &&Finding| finding.what.contains(" index ") || finding.what.contains("fts5");
    if has(FindingKind::Seal) {
        return Some(
            "stop the runtime and restore a copy; without one `interlock db repair --salvage` saves what can be read",
        );
    }
    if has(FindingKind::Structure) {
        let structure = |finding: &&Finding| finding.kind == FindingKind::Structure;
        return Some(if findings.iter().filter(structure).all(|finding| mendable(&finding)) {
            "stop the runtime, then `interlock db repair` makes indexes anew; nothing is lost"
        } else {
            "stop the runtime and restore a copy; without one `interlock db repair --salvage` saves what can be read"
        });
    }
    if has(FindingKind::Missing) {
        return Some(
            "stop the runtime and restore a copy; without one `interlock db repair --recreate-empty` makes what is missing, tables empty",
        );
    }
    (!findings.is_empty()).then_some("nothing here mends that by itself: it was not made by this program")
}
