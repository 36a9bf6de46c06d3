//! Which records are kept: a level for all, and others for components and for modules (prefixes of targets).
//!
//! A rule is for modules if its name has `::` in it or is one of a crate; or else for the component of that name. Of several
//! rules the longest module's wins, then the component's, then the level for all.

use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use crate::log_record::{Level, LevelError};

/// The least serious records kept; `Off` keeps none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Threshold {
    /// This level and above.
    From(Level),
    /// None.
    Off,
}

impl Threshold {
    /// Whether records of this level are kept.
    pub fn keeps(self, level: Level) -> bool {
        matches!(self, Self::From(least) if level >= least)
    }
}

impl FromStr for Threshold {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, LevelError> {
        if text == "off" { Ok(Self::Off) } else { text.parse().map(Self::From) }
    }
}

impl TryFrom<String> for Threshold {
    type Error = LevelError;

    fn try_from(text: String) -> Result<Self, LevelError> {
        text.parse()
    }
}

impl From<Threshold> for String {
    fn from(threshold: Threshold) -> Self {
        threshold.to_string()
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(level) => level.fmt(formatter),
            Self::Off => formatter.write_str("off"),
        }
    }
}

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelRules {
    /// Of everything that no rule names.
    pub all: Threshold,
    /// Of components, by name.
    pub components: BTreeMap<String, Threshold>,
    /// Of modules, by prefix.
    pub modules: BTreeMap<String, Threshold>,
}

impl LevelRules {
    /// Everything from this level on.
    pub fn new(all: Threshold) -> Self {
        Self { all, components: BTreeMap::new(), modules: BTreeMap::new() }
    }

    /// Adds a rule, or changes it. `crates` are names that mean a crate and not a component.
    pub fn set(&mut self, name: &str, threshold: Threshold, crates: &[&str]) {
        let of_modules = name.contains("::") || crates.contains(&name);
        let rules = if of_modules { &mut self.modules } else { &mut self.components };
        rules.insert(name.to_owned(), threshold);
    }

    /// The rule for a module: the longest one that it is or is in.
    fn of_module(&self, target: &str) -> Option<Threshold> {
        let is_in = |module: &str| {
            target.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        let fitting = self.modules.iter().filter(|(module, _)| is_in(module));
        fitting.max_by_key(|(module, _)| module.len()).map(|(_, threshold)| *threshold)
    }

    /// Whether a record is kept.
    pub fn keeps(&self, level: Level, target: &str, component: &str) -> bool {
        let rule = self.of_module(target).or_else(|| self.components.get(component).copied());
        rule.unwrap_or(self.all).keeps(level)
    }

    /// The least serious records that any component may have kept, where no rule is for the module.
    pub fn loudest(&self) -> Threshold {
        self.components.values().copied().chain([self.all]).min().unwrap_or(self.all)
    }
}

/// The rules in force, which may change while events are raised. Cheap to clone; all clones are the same.
#[derive(Clone, Debug)]
pub struct LevelSwitch {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    rules: RwLock<LevelRules>,
    /// Without rules for components the filter in front of the layer has decided.
    has_components: AtomicBool,
}

impl LevelSwitch {
    /// These rules.
    pub fn new(rules: LevelRules) -> Self {
        let has_components = AtomicBool::new(!rules.components.is_empty());
        Self { shared: Arc::new(Shared { rules: RwLock::new(rules), has_components }) }
    }

    /// From now on others.
    pub fn set(&self, rules: LevelRules) {
        let has_components = !rules.components.is_empty();
        *self.shared.rules.write().unwrap_or_else(PoisonError::into_inner) = rules;
        self.shared.has_components.store(has_components, Ordering::Relaxed);
    }

    /// The rules now.
    pub fn rules(&self) -> LevelRules {
        self.shared.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a record is kept that a filter for modules has let through already.
    pub(super) fn keeps<'a>(&self, level: Level, target: &str, component: impl FnOnce() -> &'a str) -> bool {
        if !self.shared.has_components.load(Ordering::Relaxed) {
            return true;
        }
        self.keeps_exactly(level, target, component())
    }

    /// Whether a record is kept.
    pub fn keeps_exactly(&self, level: Level, target: &str, component: &str) -> bool {
        self.shared.rules.read().unwrap_or_else(PoisonError::into_inner).keeps(level, target, component)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_module_wins_then_the_component_then_the_level_for_all() {
        let mut rules = LevelRules::new(Threshold::From(Level::Info));
        for (name, threshold) in
            [("gateway", "debug"), ("mio", "warn"), ("a::b", "trace"), ("a::b::c", "off"), ("quiet", "error")]
        {
            rules.set(name, threshold.parse().unwrap(), &["mio"]);
        }
        let table = [
            (Level::Info, "x", "other", true),
            (Level::Debug, "x", "other", false),
            (Level::Debug, "x", "gateway", true),
            (Level::Trace, "x", "gateway", false),
            (Level::Warn, "x", "quiet", false),
            (Level::Info, "mio::poll", "gateway", false),
            (Level::Warn, "mio", "gateway", true),
            (Level::Info, "miop", "other", true),
            (Level::Trace, "a::b::d", "quiet", true),
            (Level::Error, "a::b::c::d", "gateway", false),
        ];
        for (level, target, component, kept) in table {
            assert_eq!(rules.keeps(level, target, component), kept, "{level} {target} {component}");
        }
        assert_eq!(rules.loudest(), Threshold::From(Level::Debug));
        let json = serde_json::to_string(&rules).unwrap();
        assert_eq!(serde_json::from_str::<LevelRules>(&json).unwrap(), rules);
        assert!("loud".parse::<Threshold>().is_err());
    }

    #[test]
    fn what_is_switched_holds_for_the_next_event() {
        let rules = |all: &str| LevelRules::new(all.parse().unwrap());
        let switch = LevelSwitch::new(rules("info"));
        assert!(
            switch.keeps(Level::Trace, "x", || "gateway"),
            "without rules for components a filter decides"
        );
        let mut loud = rules("info");
        loud.set("gateway", Threshold::From(Level::Debug), &[]);
        switch.set(loud);
        assert!(switch.keeps(Level::Debug, "x", || "gateway"));
        assert!(!switch.keeps(Level::Debug, "x", || "store"));
    }
}
