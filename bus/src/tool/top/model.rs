//! What is shown and what was typed: events in, state and orders out. Pure: the caller brings the time.

mod keys;
mod recent;

use std::time::Duration;

use super::{
    columns::{self, Grid, Look, Sort, grid},
    detail::{Detail, Question},
    picture::{Actors, Picture},
    tail::{Tail, TailItem},
};
use crate::exit::Exit;
pub(super) use keys::Key;
use recent::Recent;

/// How often the broker may be asked.
pub(super) const INTERVALS: [Duration; 7] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(60),
];

/// Characters of a filter.
const FILTER_MAX: usize = 128;

/// Which table is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Topics,
    Peers,
    Actors,
    Messages,
}

impl View {
    pub(super) const ALL: [Self; 4] = [Self::Topics, Self::Peers, Self::Actors, Self::Messages];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Topics => "Topics",
            Self::Peers => "Peers",
            Self::Actors => "Actors",
            Self::Messages => "Messages",
        }
    }
}

/// What can happen.
#[derive(Debug)]
pub(super) enum Event {
    Key(Key),
    /// Another size; everything is drawn anew.
    Resized,
    Picture(Box<Picture>),
    /// The broker did not answer.
    Lost(String),
    /// No session will be made any more.
    Closed(String),
    Tail(Vec<TailItem>),
    Answer(Question, Result<serde_json::Value, String>),
    /// A signal, or the terminal has gone.
    End,
    /// A thread has panicked.
    Broken(&'static str),
}

/// What is to be done beyond the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Quit,
    /// It cannot go on: the session with the broker is gone for good, or a thread is.
    Fail(Exit, String),
    Ask(Question),
    /// Look again now, at the present interval, and on what is wanted now.
    Look,
    /// Follow this topic or filter, or nothing.
    Follow(Option<String>),
}

/// What one view remembers.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    pub(super) sort: Option<Sort>,
    /// The name of the selected row, which stays selected wherever it goes.
    selected: Option<String>,
    pub(super) filter: String,
}

/// Where the broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Up,
    Lost(String),
}

/// Everything that is drawn.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) view: View,
    pub(super) picture: Option<Picture>,
    pub(super) link: Link,
    pub(super) recent: Recent,
    pub(super) is_paused: bool,
    pub(super) interval: Duration,
    pub(super) places: [Place; 4],
    /// The filter that is being typed.
    pub(super) typing: Option<String>,
    /// Whether topics that begin with `$` are shown.
    pub(super) shows_own: bool,
    pub(super) detail: Option<Detail>,
    pub(super) shows_help: bool,
    pub(super) tail: Tail,
    /// Rows that fit on the screen, as they were drawn last.
    pub(super) page: usize,
}

impl Model {
    pub(super) fn new(interval: Duration) -> Self {
        let mut places: [Place; 4] = Default::default();
        // The busiest topics, the peers in trouble, the actors in the order of their start.
        places[View::Topics as usize].sort = Some(Sort { column: 1, reverse: false });
        places[View::Peers as usize].sort = Some(Sort { column: 0, reverse: false });
        Self {
            view: View::Topics,
            picture: None,
            link: Link::Up,
            recent: Recent::default(),
            is_paused: false,
            interval,
            places,
            typing: None,
            shows_own: false,
            detail: None,
            shows_help: false,
            tail: Tail::default(),
            page: 1,
        }
    }

    /// What this event changes, and what is to be done about it.
    pub(super) fn on(&mut self, event: Event) -> Vec<Order> {
        match event {
            Event::Key(key) => self.on_key(key),
            Event::Resized => Vec::new(),
            Event::Picture(picture) => self.on_picture(*picture),
            Event::Lost(reason) => {
                self.link = Link::Lost(reason);
                Vec::new()
            }
            Event::Closed(reason) => vec![Order::Fail(Exit::Denied, reason)],
            Event::Tail(items) => {
                if !self.is_paused {
                    self.tail.take(items);
                }
                Vec::new()
            }
            Event::Answer(question, answer) => {
                if let Some(detail) = self.detail.as_mut().filter(|detail| detail.asks(&question)) {
                    detail.answer(&question, answer);
                }
                Vec::new()
            }
            Event::End => vec![Order::Quit],
            Event::Broken(thread) => {
                let text = format!("the thread `{thread}` has failed; that is a bug, please report it");
                vec![Order::Fail(Exit::Failed, text)]
            }
        }
    }

    /// What the drawing has found out: how many rows fit, and where a detail begins.
    pub(super) fn settle(&mut self, page: usize, scroll: Option<usize>) {
        self.page = page;
        if let (Some(detail), Some(scroll)) = (&mut self.detail, scroll) {
            detail.scroll_to(scroll);
        }
    }

    fn on_picture(&mut self, picture: Picture) -> Vec<Order> {
        self.link = Link::Up;
        // One that was on its way when somebody paused.
        if self.is_paused && self.picture.is_some() {
            return Vec::new();
        }
        self.recent.add(&picture);
        self.picture = Some(picture);
        self.detail.as_ref().map_or_else(Vec::new, |detail| detail.questions().map(Order::Ask).collect())
    }

    pub(super) fn place(&self) -> &Place {
        &self.places[self.view as usize]
    }

    fn place_mut(&mut self) -> &mut Place {
        &mut self.places[self.view as usize]
    }

    /// What the topics that are asked for contain, if that is typed.
    pub(super) fn topic_filter(&self) -> &str {
        &self.places[View::Topics as usize].filter
    }

    /// The table of the present view; of messages there is none.
    pub(super) fn grid(&self) -> Grid {
        self.grid_of(self.view)
    }

    fn grid_of(&self, view: View) -> Grid {
        let Some(picture) = &self.picture else { return Grid::default() };
        let look = Look { now_ms: picture.broker.now_ms };
        let Place { sort, filter, .. } = &self.places[view as usize];
        match view {
            View::Topics => grid(&picture.topics, columns::TOPICS, *sort, filter, look),
            View::Peers => grid(&picture.peers, columns::PEERS, *sort, filter, look),
            View::Actors => grid(picture.actors.rows(), columns::ACTORS, *sort, filter, look),
            View::Messages => Grid::default(),
        }
    }

    fn columns(&self) -> usize {
        match self.view {
            View::Topics => columns::TOPICS.len(),
            View::Peers => columns::PEERS.len(),
            View::Actors => columns::ACTORS.len(),
            View::Messages => 0,
        }
    }

    /// Which row of the table is selected: the one that was, wherever it is now, else the first.
    pub(super) fn selected_in(&self, grid: &Grid) -> usize {
        self.selected_among(self.view, grid)
    }

    fn selected_among(&self, view: View, grid: &Grid) -> usize {
        let name = self.places[view as usize].selected.as_deref();
        name.and_then(|name| grid.rows.iter().position(|line| line.name == name)).unwrap_or_default()
    }

    /// Why the view of actors is empty, if it is.
    pub(super) fn no_actors(&self) -> Option<String> {
        match self.picture.as_ref().map(|picture| &picture.actors)? {
            Actors::NoRuntime => Some(
                "no runtime answers on this bus: it is a broker that stands alone, without supervised actors"
                    .to_owned(),
            ),
            Actors::Silent(reason) => Some(format!("the runtime did not say how its actors are: {reason}")),
            Actors::Unknown => Some("the runtime was not asked yet".to_owned()),
            Actors::Tree(..) => None,
        }
    }
}

#[cfg(test)]
mod tests;
