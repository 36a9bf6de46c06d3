//! The configuration that is in force, and what another one would come to.

use interlock_bus::keys::Registry;
use serde_json::{Value, json};

use crate::{
    config::{Config, ConfigError, Loaded, Origin, Problem, show},
    peers,
    site::Site,
};

/// Every setting and its origin; arguments of programs, which may hold secrets, only on request.
pub(super) fn show(site: &Site, with_arguments: bool) -> Value {
    let loaded = site.live.loaded();
    let mut shown = show::json(&loaded);
    shown["file"] = json!(loaded.file);
    if !with_arguments && let Some(programs) = shown["programs"].as_array_mut() {
        for argument in programs.iter_mut().filter_map(|program| program["args"].as_array_mut()).flatten() {
            *argument = show::HIDDEN.into();
        }
    }
    shown
}

/// Judges a text as if it stood in the file of this run, under the same variables and flags. No file that it names is read.
pub(super) fn check(site: &Site, text: &str) -> Value {
    let now = site.live.loaded();
    let judged = Config::judge(text, &now.sources).and_then(|new| {
        new.config.bus_endpoints(&site.data_dir.run())?;
        let (_, report) = now.adopt(&new)?;
        Ok((new, report))
    });
    match judged {
        Err(ConfigError { problems }) => json!({
            "valid": false, "problems": problems.iter().map(problem).collect::<Vec<_>>(), "warnings": [],
            "changed": null, "programs": null, "reload": null,
        }),
        Ok((new, report)) => json!({
            "valid": true, "problems": [], "warnings": warnings(&new, site.keys.registry().ok().as_ref()),
            "changed": show::changed(&new), "programs": new.config.programs.len(), "reload": report,
        }),
    }
}

/// What is allowed, and probably not meant.
fn warnings(loaded: &Loaded, registry: Option<&Registry>) -> Vec<String> {
    let unknown = registry.map(|registry| peers::unknown_consumers(&loaded.config, registry));
    loaded.config.gateway.warning().into_iter().chain(unknown.unwrap_or_default()).collect()
}

fn problem(problem: &Problem) -> Value {
    let (line, origin) = match &problem.origin {
        Some(Origin::File { line, .. }) => (Some(*line), None),
        Some(other) => (None, Some(other.to_string())),
        None => (None, None),
    };
    json!({ "line": line, "key": problem.key, "text": problem.text, "origin": origin })
}
