//! Which records this process keeps and prints, changed while it runs: what is configured, and what somebody has set for a
//! while.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use interlock_actors::{
    log_record::Level,
    log_transport::{LevelRules, LevelSwitch, Threshold},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::config::LogsSection;

/// Crates that tell at `info` and `debug` what is of use to their own authors only.
pub(super) const TALKATIVE: &[&str] = &[
    "actix_http",
    "actix_rt",
    "actix_server",
    "actix_web",
    "hyper",
    "hyper_util",
    "mio",
    "reqwest",
    "rustls",
];

/// Whether a name in a rule is that of a module or crate, not of a component.
pub(crate) fn is_module(name: &str) -> bool {
    name.contains("::") || TALKATIVE.contains(&name)
}

/// The rules that a configuration says.
pub(crate) fn configured(level: &str, levels: &BTreeMap<String, String>) -> LevelRules {
    let threshold = |text: &str| text.parse().unwrap_or(Threshold::From(Level::Info));
    let all = threshold(level);
    let mut rules = LevelRules::new(all);
    let quiet = all.max(Threshold::From(Level::Warn));
    TALKATIVE.iter().for_each(|name| rules.set(name, quiet, TALKATIVE));
    levels.iter().for_each(|(name, level)| rules.set(name, threshold(level), TALKATIVE));
    rules
}

/// A level that somebody has set beside the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// A component, or a module.
    pub name: String,
    /// What is kept of it.
    pub level: Threshold,
    /// Until when; `None` until it is taken back or the runtime ends.
    pub until: Option<Timestamp>,
}

/// What is kept, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelStatus {
    /// All rules, those of the configuration and those that were set.
    pub rules: LevelRules,
    /// What was set.
    pub overrides: Vec<Override>,
}

/// Changes the levels of this process while it runs. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub(crate) struct Levels {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    switch: LevelSwitch,
    /// Told of each change; whoever else keeps records hears of it.
    changed: watch::Sender<LevelRules>,
    apply: Box<SetFilters>,
}

struct State {
    configured: LevelRules,
    overrides: BTreeMap<String, Override>,
    console: String,
}

/// Takes the filter of what is kept, and of what is printed.
type SetFilters = dyn Fn(Targets, Targets) + Send + Sync;

impl fmt::Debug for Levels {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Levels").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Levels {
    pub(super) fn new(switch: LevelSwitch, console: &str, apply: Box<SetFilters>) -> Self {
        let configured = switch.rules();
        let changed = watch::Sender::new(configured.clone());
        let state = State { configured, overrides: BTreeMap::new(), console: console.to_owned() };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), switch, changed, apply }) }
    }

    /// What the configuration says from now on; what was set stays set.
    pub(crate) fn configure(&self, logs: &LogsSection) {
        self.change(|state| {
            state.configured = configured(&logs.level, &logs.levels);
            state.console.clone_from(&logs.console);
        });
    }

    /// The rules of somebody who knows all of them.
    pub(crate) fn adopt(&self, rules: LevelRules) {
        self.change(|state| state.configured = rules);
    }

    /// Sets a level for a while.
    pub(crate) fn set(&self, level: Override) {
        self.change(|state| drop(state.overrides.insert(level.name.clone(), level)));
    }

    /// Takes back what was set for `name`, or everything; what that was.
    pub(crate) fn reset(&self, name: Option<&str>) -> Vec<Override> {
        let mut gone = Vec::new();
        self.change(|state| {
            gone = match name {
                Some(name) => state.overrides.remove(name).into_iter().collect(),
                None => std::mem::take(&mut state.overrides).into_values().collect(),
            };
        });
        gone
    }

    /// Takes back what was set until `now`; what that was.
    pub(crate) fn expire(&self, now: Timestamp) -> Vec<Override> {
        let is_over = |level: &Override| level.until.is_some_and(|until| until <= now);
        let over: Vec<_> = self.state().overrides.values().filter(|level| is_over(level)).cloned().collect();
        over.iter().for_each(|level| drop(self.reset(Some(&level.name))));
        over
    }

    /// When something that was set ends next.
    pub(crate) fn next_end(&self) -> Option<Timestamp> {
        self.state().overrides.values().filter_map(|level| level.until).min()
    }

    pub(crate) fn status(&self) -> LevelStatus {
        let overrides = self.state().overrides.values().cloned().collect();
        LevelStatus { rules: self.rules(), overrides }
    }

    /// All rules in force.
    pub(crate) fn rules(&self) -> LevelRules {
        self.shared.switch.rules()
    }

    /// All rules in force, and each change of them.
    pub(crate) fn watch(&self) -> watch::Receiver<LevelRules> {
        self.shared.changed.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        let mut rules = state.configured.clone();
        state.overrides.values().for_each(|level| rules.set(&level.name, level.level, TALKATIVE));
        let printed = configured(&state.console, &BTreeMap::new());
        self.shared.switch.set(rules.clone());
        (self.shared.apply)(targets(&rules), targets(&printed));
        super::log_crate::set_loudest(&self.shared.switch);
        self.shared.changed.send_replace(rules);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The filter in front of the layer: lets through what any component may have kept; the layer knows the component.
pub(super) fn targets(rules: &LevelRules) -> Targets {
    let filter = |threshold| match threshold {
        Threshold::Off => LevelFilter::OFF,
        Threshold::From(Level::Trace) => LevelFilter::TRACE,
        Threshold::From(Level::Debug) => LevelFilter::DEBUG,
        Threshold::From(Level::Info) => LevelFilter::INFO,
        Threshold::From(Level::Warn) => LevelFilter::WARN,
        Threshold::From(Level::Error) => LevelFilter::ERROR,
    };
    let modules = rules.modules.iter().map(|(module, threshold)| (module.clone(), filter(*threshold)));
    Targets::new().with_default(filter(rules.loudest())).with_targets(modules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_stands_above_the_configuration_until_it_ends() {
        let rules = configured("info", &BTreeMap::from([("gateway".to_owned(), "warn".to_owned())]));
        let levels = Levels::new(LevelSwitch::new(rules), "off", Box::new(|_, _| ()));
        let mut heard = levels.watch();
        let keeps = |component: &str| levels.rules().keeps(Level::Debug, "x", component);
        assert!(!keeps("gateway"));
        let (now, later) = (Timestamp::from_second(100).unwrap(), Timestamp::from_second(200).unwrap());
        let set =
            Override { name: "gateway".to_owned(), level: "debug".parse().unwrap(), until: Some(later) };
        levels.set(set.clone());
        assert!(keeps("gateway") && !keeps("model") && heard.has_changed().unwrap());
        heard.mark_unchanged();
        assert_eq!((levels.next_end(), levels.expire(now)), (Some(later), vec![]));
        assert!(!heard.has_changed().unwrap());
        assert_eq!(levels.status().overrides, std::slice::from_ref(&set));
        assert_eq!(levels.expire(later), [set]);
        assert!(!keeps("gateway") && heard.has_changed().unwrap() && levels.next_end().is_none());
        assert!(levels.rules().keeps(Level::Warn, "x", "gateway"), "the configuration holds again");
        assert!(!levels.rules().keeps(Level::Info, "hyper::client", "model"), "talkative crates stay quiet");
    }
}
