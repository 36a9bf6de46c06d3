//! What a program waits for: another child, and what of it.

use std::{collections::BTreeMap, fmt, str::FromStr};

use interlock_bus::PeerName;
use serde::{Deserialize, Serialize};
use toml::Value;

use super::{
    layers::{Held, ProgramHeld, backticked, did_you_mean},
    problem::Problem,
    schema,
};
use crate::supervisor::Condition;

/// `NAME`, or `NAME:` and `started`, `ready`, `healthy`, `completed` or `log:REGEX`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Need {
    /// Another child.
    pub name: PeerName,
    /// What of it is waited for.
    pub until: Condition,
}

/// A text that is no need.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is nothing that can be waited for")]
pub struct NeedError(String);

impl FromStr for Need {
    type Err = NeedError;

    fn from_str(text: &str) -> Result<Self, NeedError> {
        let wrong = || NeedError(text.to_owned());
        let (name, condition) = text.split_once(':').unwrap_or((text, "ready"));
        let until = match condition {
            "started" => Condition::Started,
            "ready" => Condition::Ready,
            "healthy" => Condition::Healthy,
            "completed" => Condition::Completed,
            _ => match condition.strip_prefix("log:") {
                Some(pattern) if !pattern.is_empty() && regex_lite::Regex::new(pattern).is_ok() => {
                    Condition::Line(pattern.to_owned())
                }
                _ => return Err(wrong()),
            },
        };
        Ok(Self { name: name.parse().map_err(|_| wrong())?, until })
    }
}

impl fmt::Display for Need {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, until } = self;
        match until {
            Condition::Started => write!(formatter, "{name}:started"),
            Condition::Ready => write!(formatter, "{name}"),
            Condition::Healthy => write!(formatter, "{name}:healthy"),
            Condition::Completed => write!(formatter, "{name}:completed"),
            Condition::Line(pattern) => write!(formatter, "{name}:log:{pattern}"),
        }
    }
}

impl TryFrom<String> for Need {
    type Error = NeedError;

    fn try_from(text: String) -> Result<Self, NeedError> {
        text.parse()
    }
}

impl From<Need> for String {
    fn from(need: Need) -> Self {
        need.to_string()
    }
}

fn components() -> impl Iterator<Item = &'static str> {
    schema::NAMES_TAKEN.iter().copied().filter(|name| !schema::NO_COMPONENTS.contains(name))
}

/// Needs of programs that can never be met: what is not there, circles, a wrong order, an end or a line of something that
/// has none. `actors` are the names that the user's own actors and groups have in the tree.
pub(super) fn check(programs: &[ProgramHeld], actors: &[String]) -> Vec<Problem> {
    let text = |held: Option<&Held>| held.and_then(|held| held.value.as_str()).unwrap_or_default().to_owned();
    let names: Vec<String> = programs.iter().map(|program| text(program.keys.get("name"))).collect();
    let place: BTreeMap<&str, usize> =
        names.iter().enumerate().map(|(place, name)| (name.as_str(), place)).collect();
    let mut problems = Vec::new();
    let mut graph: Vec<Vec<usize>> = Vec::new();
    for (own, program) in programs.iter().enumerate() {
        let held = program.keys.get("needs");
        let listed =
            held.and_then(|held| held.value.as_array()).into_iter().flatten().filter_map(Value::as_str);
        let needs: Vec<Need> = listed.filter_map(|text| text.parse().ok()).collect();
        graph.push(needs.iter().filter_map(|need| place.get(need.name.as_str()).copied()).collect());
        let Some(held) = held else { continue };
        let mut refuse = |text: String| {
            problems.push(Problem {
                origin: Some(held.origin.clone()),
                key: "program.needs".to_owned(),
                text,
            });
        };
        for need in &needs {
            let other = place.get(need.name.as_str()).map(|place| &programs[*place]);
            let restart = other.map(|other| text(other.keys.get("restart")));
            let is_built_in = schema::NAMES_TAKEN.contains(&need.name.as_str());
            let is_actor = actors.iter().any(|actor| actor == need.name.as_str());
            if !(is_actor || other.is_some() || components().any(|name| name == need.name.as_str())) {
                let mut known: Vec<&str> = components().collect();
                known.extend(
                    actors.iter().chain(&names).map(String::as_str).filter(|name| *name != names[own]),
                );
                let otherwise = format!("there are {}", backticked(known.iter().copied()));
                let meant = schema::nearest(need.name.as_str(), known.iter().copied());
                refuse(format!(
                    "`program.needs` of `{}` has `{}`, which is no component{}",
                    names[own],
                    need.name,
                    did_you_mean(meant, &otherwise)
                ));
                continue;
            }
            match (&need.until, restart.as_deref()) {
                (Condition::Completed, Some("" | "permanent")) => refuse(format!(
                    "`program.needs` of `{}` has `{need}`, but `{}` is permanent and never completes; set its `restart` to \"transient\" or \"temporary\"",
                    names[own], need.name
                )),
                (Condition::Completed | Condition::Line(_), None) if is_built_in => refuse(format!(
                    "`program.needs` of `{}` has `{need}`, but only programs complete and write lines; wait for `{}`",
                    names[own], need.name
                )),
                _ => {}
            }
        }
    }
    let circle = crate::supervisor::child::circle(&graph);
    for (own, needs) in graph.iter().enumerate() {
        let Some(origin) = programs[own].keys.get("needs").map(|held| held.origin.clone()) else { continue };
        let text = match &circle {
            Some(circle) if circle[0] == own => {
                let path: Vec<&str> = circle.iter().map(|place| names[*place].as_str()).collect();
                format!(
                    "the programs wait for each other in a circle: {}; take one of these needs out",
                    path.join(" -> ")
                )
            }
            Some(_) => continue,
            None => match needs.iter().find(|need| **need > own) {
                Some(need) => format!(
                    "`program.needs` of `{}` has `{}`, which stands below it; the order of the blocks is the order of start, so move it up",
                    names[own], names[*need]
                ),
                None => continue,
            },
        };
        problems.push(Problem { origin: Some(origin), key: "program.needs".to_owned(), text });
    }
    problems
}
