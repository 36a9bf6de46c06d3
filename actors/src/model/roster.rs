//! Which models there are, and which of them a request goes to, one after the other. Pure.

use std::collections::VecDeque;

use super::{
    config::{DEFAULT_NAME, ServiceConfig},
    error::BackEndError,
};

/// The models by name.
#[derive(Debug)]
pub(super) struct Roster {
    entries: Vec<Entry>,
    fallback: Vec<usize>,
    is_open: bool,
}

#[derive(Debug)]
struct Entry {
    name: String,
    /// What its back end calls it, if that is known.
    alias: Option<String>,
    embeddings: bool,
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// The models, by their place: the first is asked first, the others stand in.
    pub(super) models: VecDeque<usize>,
    /// What the server is asked for, if the configuration does not say it.
    pub(super) pass_on: Option<String>,
}

impl Roster {
    /// The models of a valid configuration; `aliases` are what their back ends call them, and whether those can make
    /// embeddings at all.
    pub(super) fn new(config: &ServiceConfig, aliases: Vec<(Option<String>, bool)>) -> Self {
        let entries = config.models.iter().zip(aliases).map(|(model, (alias, can_embed))| Entry {
            name: model.name.clone(),
            alias,
            embeddings: can_embed && model.config.embeddings,
        });
        let place = |name: &String| config.models.iter().position(|model| model.name == *name);
        Self {
            entries: entries.collect(),
            fallback: config.fallback.iter().filter_map(place).collect(),
            is_open: config.is_open,
        }
    }

    pub(super) fn makes_embeddings(&self, place: usize) -> bool {
        self.entries.get(place).is_some_and(|entry| entry.embeddings)
    }

    /// The models that answer whoever names none.
    pub(super) fn of_nobody(&self) -> VecDeque<usize> {
        self.with_fallback(0)
    }

    /// Where a completion goes that names `wanted`.
    pub(super) fn completion(&self, wanted: Option<&str>) -> Result<Route, BackEndError> {
        let Some(wanted) = wanted else { return Ok(Route { models: self.of_nobody(), pass_on: None }) };
        let (place, pass_on) = self.find(wanted)?;
        Ok(Route { models: self.with_fallback(place), pass_on })
    }

    /// Where a request for embeddings goes: to one model and no other.
    pub(super) fn embeddings(&self, wanted: Option<&str>) -> Result<Route, BackEndError> {
        let able = || self.entries.iter().filter(|entry| entry.embeddings).map(|entry| entry.name.clone());
        let (place, pass_on) = match wanted {
            Some(wanted) => self.find(wanted)?,
            None => {
                let first = self.entries.iter().position(|entry| entry.embeddings).unwrap_or(0);
                (first, None)
            }
        };
        if !self.makes_embeddings(place) {
            let model = wanted.unwrap_or(&self.entries[place].name).to_owned();
            return Err(BackEndError::NoEmbeddings { model, able: able().collect() });
        }
        Ok(Route { models: VecDeque::from([place]), pass_on })
    }

    fn with_fallback(&self, first: usize) -> VecDeque<usize> {
        let others = self.fallback.iter().copied().filter(|place| *place != first);
        std::iter::once(first).chain(others).collect()
    }

    /// By its name, by what its back end calls it, or as something that its server may know.
    fn find(&self, wanted: &str) -> Result<(usize, Option<String>), BackEndError> {
        let by_name = self.entries.iter().position(|entry| entry.name == wanted);
        let by_alias = || self.entries.iter().position(|entry| entry.alias.as_deref() == Some(wanted));
        if let Some(place) = by_name.or_else(by_alias) {
            return Ok((place, None));
        }
        if self.is_open {
            return Ok((0, Some(wanted.to_owned())));
        }
        let name = |entry: &Entry| match (&entry.alias, entry.name.as_str()) {
            (Some(alias), DEFAULT_NAME) => alias.clone(),
            (_, name) => name.to_owned(),
        };
        let known = self.entries.iter().map(name).collect();
        Err(BackEndError::NotConfigured { model: wanted.to_owned(), known })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ModelConfig, NamedModel};

    fn roster(fallback: &[&str], is_open: bool, names: &[(&str, Option<&str>, bool)]) -> Roster {
        let models = names.iter().map(|(name, _, embeddings)| NamedModel {
            name: (*name).to_owned(),
            config: ModelConfig { embeddings: *embeddings, ..ModelConfig::default() },
        });
        let config = ServiceConfig {
            models: models.collect(),
            fallback: fallback.iter().map(|name| (*name).to_owned()).collect(),
            is_open,
        };
        Roster::new(&config, names.iter().map(|(_, alias, _)| (alias.map(str::to_owned), true)).collect())
    }

    const THREE: &[(&str, Option<&str>, bool)] =
        &[("big", Some("gpt"), false), ("small", Some("llama"), true), ("third", None, false)];

    fn models(route: Result<Route, BackEndError>) -> Vec<usize> {
        route.unwrap().models.into_iter().collect()
    }

    #[test]
    fn the_named_one_is_asked_first_and_then_those_that_stand_in_in_their_order() {
        let roster = roster(&["third", "big"], false, THREE);
        assert_eq!(models(roster.completion(None)), [0, 2]);
        assert_eq!(models(roster.completion(Some("small"))), [1, 2, 0]);
        assert_eq!(models(roster.completion(Some("llama"))), [1, 2, 0]);
        let error = roster.completion(Some("gpt-5")).unwrap_err().to_string();
        assert_eq!(error, "no model `gpt-5` is configured; there are `big`, `small`, `third`");
    }

    #[test]
    fn a_server_that_is_alone_is_asked_for_whatever_is_wanted() {
        let roster = roster(&[], true, &[("default", None, true)]);
        let passed = Route { models: VecDeque::from([0]), pass_on: Some("llama3.2".to_owned()) };
        assert_eq!(roster.completion(Some("llama3.2")).unwrap(), passed);
        assert_eq!(roster.embeddings(Some("llama3.2")).unwrap(), passed);
        assert_eq!(roster.completion(Some("default")).unwrap().pass_on, None);
    }

    #[test]
    fn nobody_stands_in_for_embeddings_and_who_makes_none_names_those_that_do() {
        let roster = roster(&["third", "big"], false, THREE);
        assert_eq!(models(roster.embeddings(None)), [1]);
        assert_eq!(models(roster.embeddings(Some("small"))), [1]);
        let error = roster.embeddings(Some("big")).unwrap_err().to_string();
        assert_eq!(error, "model `big` makes no embeddings; `small` can");
    }
}
