//! What each key does.
//!
//! | key | does |
//! |---|---|
//! | `Tab`, `1` to `4`, left and right | another view |
//! | up, down, `j`, `k`, page up and down, `g`, `G` | another row |
//! | `Enter` | detail of the row; `w` the last refusal and why |
//! | `m` | the messages of the topic |
//! | `s`, `S`, `r` | sort by the next column, by the one before, the other way round |
//! | `/` | filter; `Esc` takes it back |
//! | `a` | with or without the bus's own topics |
//! | `space` | pause |
//! | `i`, `+`, `-` | how often it looks |
//! | `?`, `q` | help, end |

use super::{super::detail::Detail, FILTER_MAX, INTERVALS, Model, Order, Sort, View};

/// A key, whatever terminal it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tool::top) enum Key {
    Char(char),
    Enter,
    Esc,
    Tab,
    BackTab,
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
    Backspace,
    /// Ctrl-C.
    Interrupt,
}

impl Model {
    pub(super) fn on_key(&mut self, key: Key) -> Vec<Order> {
        if key == Key::Interrupt {
            return vec![Order::Quit];
        }
        if self.typing.is_some() {
            return self.on_typed(key);
        }
        if self.shows_help {
            self.shows_help = false;
            return Vec::new();
        }
        if self.detail.is_some() {
            return self.on_key_in_detail(key);
        }
        match key {
            Key::Char('q') => vec![Order::Quit],
            // Back by one step, and out of the last one.
            Key::Esc if self.place().filter.is_empty() => vec![Order::Quit],
            Key::Esc => self.set_filter(String::new()),
            Key::Char('?') => {
                self.shows_help = true;
                Vec::new()
            }
            Key::Char(digit @ '1'..='4') => self.show(View::ALL[digit as usize - '1' as usize]),
            Key::Tab | Key::Right | Key::Char('l') => self.show(View::ALL[(self.view as usize + 1) % 4]),
            Key::BackTab | Key::Left | Key::Char('h') => self.show(View::ALL[(self.view as usize + 3) % 4]),
            Key::Char('m') => self.show(View::Messages),
            Key::Char('/') => {
                self.typing = Some(self.place().filter.clone());
                Vec::new()
            }
            Key::Char(' ') => {
                self.is_paused = !self.is_paused;
                vec![Order::Look]
            }
            Key::Char('i') => self.change_interval(|at| (at + 1) % INTERVALS.len()),
            Key::Char('+') => self.change_interval(|at| (at + 1).min(INTERVALS.len() - 1)),
            Key::Char('-') => self.change_interval(|at| at.saturating_sub(1)),
            Key::Char('a') => {
                self.shows_own = !self.shows_own;
                vec![Order::Look]
            }
            Key::Char('s') => self.sort(|at, columns| (at + 1) % columns),
            Key::Char('S') => self.sort(|at, columns| (at + columns - 1) % columns),
            Key::Char('r') => {
                if let Some(sort) = &mut self.place_mut().sort {
                    sort.reverse = !sort.reverse;
                }
                Vec::new()
            }
            Key::Char('w') => self.open(Detail::of_last_refusal(self.picture.as_ref())),
            Key::Enter => {
                let detail = self.detail_of_selected();
                detail.map_or_else(Vec::new, |detail| self.open(detail))
            }
            key => {
                self.move_selection(key);
                Vec::new()
            }
        }
    }

    fn on_typed(&mut self, key: Key) -> Vec<Order> {
        let Some(typed) = &mut self.typing else { return Vec::new() };
        match key {
            Key::Char(character) if typed.len() < FILTER_MAX => typed.push(character),
            Key::Backspace => drop(typed.pop()),
            Key::Esc => {
                self.typing = None;
                return self.set_filter(String::new());
            }
            Key::Enter => {
                self.typing = None;
                return Vec::new();
            }
            _ => return Vec::new(),
        }
        let typed = typed.clone();
        self.set_filter(typed)
    }

    /// Topics are looked for by the broker, which knows those beyond the busiest.
    fn set_filter(&mut self, filter: String) -> Vec<Order> {
        if self.view == View::Messages {
            self.tail.search(&filter);
        }
        self.place_mut().filter = filter;
        if self.view == View::Topics { vec![Order::Look] } else { Vec::new() }
    }

    fn on_key_in_detail(&mut self, key: Key) -> Vec<Order> {
        let page = self.page;
        let Some(detail) = &mut self.detail else { return Vec::new() };
        match key {
            Key::Esc | Key::Enter | Key::Left | Key::Char('q' | 'h') => self.detail = None,
            Key::Up | Key::Char('k') => detail.scroll_by(-1),
            Key::Down | Key::Char('j') => detail.scroll_by(1),
            Key::PageUp => detail.scroll_by(-(page as isize)),
            Key::PageDown | Key::Char(' ') => detail.scroll_by(page as isize),
            Key::Char('?') => self.shows_help = true,
            _ => {}
        }
        Vec::new()
    }

    fn open(&mut self, detail: Detail) -> Vec<Order> {
        let orders = detail.questions().map(Order::Ask).collect();
        self.detail = Some(detail);
        orders
    }

    /// Goes to a view. Messages are followed only while they are looked at.
    fn show(&mut self, view: View) -> Vec<Order> {
        let before = std::mem::replace(&mut self.view, view);
        match (before, view) {
            (View::Messages, View::Messages) => Vec::new(),
            (_, View::Messages) => {
                let chosen = self.topic_in_hand();
                // From the list of topics, the one that is selected there; else the one that was followed before.
                let wanted = match (before, self.tail.filter()) {
                    (View::Topics, _) | (_, None) => {
                        chosen.filter(|topic| topic.parse::<crate::TopicName>().is_ok())
                    }
                    (_, Some(followed)) => Some(followed.to_owned()),
                };
                let wanted = wanted.unwrap_or_else(|| "#".to_owned());
                self.tail.follow(&wanted);
                vec![Order::Follow(Some(wanted))]
            }
            (View::Messages, _) => {
                self.tail.leave();
                vec![Order::Follow(None)]
            }
            _ => Vec::new(),
        }
    }

    /// The topic that is selected among the topics.
    fn topic_in_hand(&self) -> Option<String> {
        let grid = self.grid_of(View::Topics);
        let at = self.selected_among(View::Topics, &grid);
        grid.rows.into_iter().nth(at).map(|line| line.name)
    }

    fn change_interval(&mut self, change: impl FnOnce(usize) -> usize) -> Vec<Order> {
        // One that was given in the arguments may lie between two.
        let at =
            INTERVALS.iter().position(|interval| *interval >= self.interval).unwrap_or(INTERVALS.len() - 1);
        self.interval = INTERVALS[change(at)];
        vec![Order::Look]
    }

    fn sort(&mut self, change: impl FnOnce(usize, usize) -> usize) -> Vec<Order> {
        let columns = self.columns();
        if columns > 0 {
            let place = self.place_mut();
            let column = place.sort.map_or(0, |sort| change(sort.column, columns));
            place.sort = Some(Sort { column, reverse: false });
        }
        Vec::new()
    }

    fn move_selection(&mut self, key: Key) {
        let page = self.page.max(1) as isize;
        let step = match key {
            Key::Up | Key::Char('k') => -1,
            Key::Down | Key::Char('j') => 1,
            Key::PageUp => -page,
            Key::PageDown => page,
            Key::Home | Key::Char('g') => isize::MIN,
            Key::End | Key::Char('G') => isize::MAX,
            _ => return,
        };
        if self.view == View::Messages {
            return self.tail.move_by(step);
        }
        let grid = self.grid();
        let Some(last) = grid.rows.len().checked_sub(1) else { return };
        let at = (self.selected_in(&grid) as isize).saturating_add(step).clamp(0, last as isize);
        self.place_mut().selected = Some(grid.rows[at as usize].name.clone());
    }

    fn detail_of_selected(&mut self) -> Option<Detail> {
        if self.view == View::Messages {
            return self.tail.selected().map(Detail::of_message);
        }
        let grid = self.grid();
        let name = grid.rows.get(self.selected_in(&grid))?.name.clone();
        let picture = self.picture.as_ref()?;
        let detail = match self.view {
            View::Topics => Detail::of_topic(&name),
            View::Peers => Detail::of_peer(picture, &name),
            View::Actors => Detail::of_actor(picture, &name),
            View::Messages => return None,
        };
        self.place_mut().selected = Some(name);
        Some(detail)
    }
}
