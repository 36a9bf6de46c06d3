//! The configuration of a running instance, and what a changed one comes to.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{
    Config, ConfigError, Loaded, Program,
    schema::{self, Effect},
};

/// The configuration that is in force. Cheap to read; replaced as a whole.
#[derive(Debug)]
pub struct LiveConfig(Mutex<Arc<Loaded>>);

/// What reading the configuration again came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// What is in force now.
    pub changed: Vec<Change>,
    /// Components that are restarted for it.
    pub restarted: BTreeSet<String>,
    /// What waits for the next start: settings by `section.key`, programs by name.
    pub next_start: Vec<String>,
}

/// One setting that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// `section.key`, or the rights of a program.
    pub key: String,
    /// Its value before, as TOML.
    pub from: String,
    /// Its value now.
    pub to: String,
}

impl LiveConfig {
    /// `loaded` is in force.
    pub fn new(loaded: Loaded) -> Self {
        Self(Mutex::new(Arc::new(loaded)))
    }

    /// What is in force.
    pub fn loaded(&self) -> Arc<Loaded> {
        // No code that can panic runs under this lock.
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another configuration in force.
    pub fn replace(&self, loaded: Loaded) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
    }
}

impl Loaded {
    /// What can be taken over from `new` without a new start: the configuration that is then in force.
    ///
    /// # Errors
    /// The mixture makes no sense; it does if each side does, because settings that depend on each other have one effect.
    pub fn adopt(&self, new: &Self) -> Result<(Self, ReloadReport), ConfigError> {
        let mut report = ReloadReport::default();
        let mut held = self.held.clone();
        for setting in schema::SETTINGS {
            let path = setting.path();
            let (Some(before), Some(after)) = (self.held.get(&path), new.held.get(&path)) else { continue };
            if before.value == after.value {
                continue;
            }
            match setting.effect {
                Effect::NextStart => {
                    report.next_start.push(path);
                    continue;
                }
                Effect::Restarts(components) => {
                    report.restarted.extend(components.iter().map(|name| (*name).to_owned()));
                }
                Effect::AtOnce => {}
            }
            let (from, to) = (before.value.to_string(), after.value.to_string());
            report.changed.push(Change { key: path.clone(), from, to });
            held.insert(path, after.clone());
        }
        let mut config =
            super::typed(&held, Vec::new()).map_err(|problem| ConfigError { problems: vec![problem] })?;
        config.programs = self.config.programs.clone();
        for program in &mut config.programs {
            adopt_program(program, &new.config, &mut report);
        }
        let is_new = |program: &&Program| self.config.programs.iter().all(|old| old.name != program.name);
        report.next_start.extend(
            new.config
                .programs
                .iter()
                .filter(is_new)
                .map(|program| format!("program `{}`, which is new", program.name)),
        );
        let loaded = Self { config, held, file: self.file.clone(), sources: self.sources.clone() };
        Ok((loaded, report))
    }
}

/// Rights are taken over; whatever else of a program changed waits.
fn adopt_program(program: &mut Program, new: &Config, report: &mut ReloadReport) {
    let Some(wanted) = new.programs.iter().find(|wanted| wanted.name == program.name) else {
        return report.next_start.push(format!("program `{}`, which is no more", program.name));
    };
    let before = rights(program);
    let mut adopted = program.clone();
    adopted.publish.clone_from(&wanted.publish);
    adopted.subscribe.clone_from(&wanted.subscribe);
    adopted.serve.clone_from(&wanted.serve);
    adopted.request.clone_from(&wanted.request);
    if adopted != *wanted {
        report.next_start.push(format!("program `{}`", program.name));
    }
    *program = adopted;
    let after = rights(program);
    if before != after {
        report.changed.push(Change {
            key: format!("rights of program `{}`", program.name),
            from: before,
            to: after,
        });
    }
}

fn rights(program: &Program) -> String {
    let list = |filters: &[interlock_bus::TopicFilter]| {
        filters.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    format!(
        "publish [{}], subscribe [{}], serve [{}], request [{}]",
        list(&program.publish),
        list(&program.subscribe),
        list(&program.serve),
        list(&program.request)
    )
}
