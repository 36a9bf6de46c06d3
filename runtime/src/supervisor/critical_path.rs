//! What made the start slow: from the last child that became ready back through what each had waited for. Pure, out
//! of the tree's snapshot.

use std::time::Duration;

use serde::Serialize;

use super::snapshot::TreeSnapshot;
use crate::config::duration::brief;

/// One child on the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stretch {
    /// Its name.
    pub name: String,
    /// When nothing stood in its way any more, from the start of the tree on.
    pub began_us: u64,
    /// When it was ready for the first time.
    pub ready_us: u64,
    /// How much of the whole it took.
    pub took_us: u64,
    /// What it said about its readiness.
    pub proof: Option<String>,
}

/// The path, first child first. Empty if nothing ever was ready.
pub fn critical_path(tree: &TreeSnapshot) -> Vec<Stretch> {
    let started = |name: &str| {
        let child = tree.child(name)?;
        let first = child.first_start.as_ref()?;
        Some((child, first, first.ready_us?))
    };
    let last = tree.children.iter().filter_map(|child| started(&child.name)).max_by_key(|(.., ready)| *ready);
    let mut path: Vec<Stretch> = Vec::new();
    let mut next = last.map(|(child, ..)| child.name.as_str());
    while let Some(name) = next {
        let Some((child, first, ready_us)) = started(name) else { break };
        if path.iter().any(|stretch| stretch.name == name) {
            break;
        }
        path.push(Stretch {
            name: name.to_owned(),
            began_us: first.began_us,
            ready_us,
            took_us: ready_us.saturating_sub(first.began_us),
            proof: child.readiness.clone(),
        });
        next = first.after.as_deref();
    }
    path.reverse();
    path
}

/// The path for people.
pub fn text(tree: &TreeSnapshot) -> String {
    let path = critical_path(tree);
    let Some(last) = path.last() else { return "nothing has been ready yet".to_owned() };
    let time = |us: u64| brief(Duration::from_micros(us));
    let mut text = format!("ready after {}; the longest chain of waits:", time(last.ready_us));
    for stretch in &path {
        text += &format!(
            "\n  {:<16} +{:<8} took {:<8} {:>3} %",
            stretch.name,
            time(stretch.began_us),
            time(stretch.took_us),
            stretch.took_us * 100 / last.ready_us.max(1)
        );
    }
    let starting: Vec<_> = tree
        .children
        .iter()
        .filter(|child| child.first_start.as_ref().is_none_or(|first| first.ready_us.is_none()))
        .map(|child| format!("`{}`", child.name))
        .collect();
    if !starting.is_empty() {
        text += &format!("\nnever ready so far: {}", starting.join(", "));
    }
    text
}
