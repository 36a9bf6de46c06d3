//! The model as a picture of characters.

mod header;
mod over;
mod table;

use ratatui::{
    Frame,
    buffer::Buffer,
    layout::Rect,
    style::{Color, Modifier, Style},
};

use super::{
    columns::Mark,
    model::{Link, Model, View},
    tail::TailItem,
};
use crate::tool::output::Harmless;

/// Columns and lines below which nothing useful can be shown.
const LEAST: (u16, u16) = (60, 10);

/// How it looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Theme {
    /// Whether colours are used at all. Whatever they say is said without them, too.
    pub(super) has_color: bool,
    /// What may be shown of texts that come from others.
    pub(super) harmless: Harmless,
}

impl Theme {
    fn style(self, mark: Mark) -> Style {
        let colored = |color| if self.has_color { Style::new().fg(color) } else { Style::new() };
        match mark {
            Mark::Plain => Style::new(),
            Mark::Bad => colored(Color::Red).add_modifier(Modifier::BOLD),
            Mark::Warn => colored(Color::Yellow),
            Mark::Faint => Style::new().add_modifier(Modifier::DIM),
        }
    }

    fn accent(self) -> Style {
        let style = Style::new().add_modifier(Modifier::BOLD);
        if self.has_color { style.fg(Color::Cyan) } else { style }
    }

    fn trend(self) -> Style {
        if self.has_color { Style::new().fg(Color::Green) } else { Style::new() }
    }
}

/// What the drawing has found out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Rows that fit.
    pub(super) page: usize,
    /// The first line of the detail that is shown.
    pub(super) scroll: Option<usize>,
}

/// Where to write: one line, from a column on, and never beyond the end.
struct Pen<'a> {
    buffer: &'a mut Buffer,
    theme: Theme,
    line: Rect,
    x: u16,
}

impl<'a> Pen<'a> {
    fn new(buffer: &'a mut Buffer, theme: Theme, line: Rect) -> Self {
        let x = line.x;
        Self { buffer, theme, line, x }
    }

    fn room(&self) -> u16 {
        self.line.right().saturating_sub(self.x)
    }

    /// Writes a text after what was written.
    fn write(&mut self, text: &str, style: Style) -> &mut Self {
        let text = self.theme.harmless.show(text);
        if self.line.height > 0 {
            (self.x, _) = self.buffer.set_stringn(self.x, self.line.y, text, self.room().into(), style);
        }
        self
    }

    /// Writes a text so that it ends with the line, if there is room for all of it.
    fn write_right(&mut self, text: &str, style: Style) {
        let width = text.chars().count() as u16;
        if width <= self.room() {
            self.x = self.line.right() - width;
            self.write(text, style);
        }
    }
}

/// One line of an area, counted from its top; empty if it has fewer.
fn line(area: Rect, at: u16) -> Rect {
    let height = u16::from(at < area.height);
    Rect { x: area.x, y: area.y + at.min(area.height.saturating_sub(1)), width: area.width, height }
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, theme: Theme) -> Seen {
    let area = frame.area();
    let buffer = frame.buffer_mut();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        too_small(buffer, theme, area);
        return Seen::default();
    }
    header::draw(buffer, theme, area, model);
    let body = Rect { y: area.y + 4, height: area.height - 5, ..area };
    let mut seen = Seen { page: body.height.saturating_sub(1).into(), scroll: None };
    match model.view {
        _ if model.picture.is_none() => {
            let text = match &model.link {
                Link::Up => "asking the broker ...",
                Link::Lost(_) => "there is nothing to show yet",
            };
            Pen::new(buffer, theme, line(body, 1)).write(text, theme.style(Mark::Faint));
        }
        View::Messages => messages(buffer, theme, body, model),
        _ => table::draw(buffer, theme, body, model),
    }
    if let Some(detail) = &model.detail {
        seen = over::detail(buffer, theme, body, detail);
    }
    if model.shows_help {
        over::help(buffer, theme, area);
    }
    footer(buffer, theme, line(area, area.height - 1), model);
    seen
}

fn too_small(buffer: &mut Buffer, theme: Theme, area: Rect) {
    let text = [
        format!("bus top needs {} x {} characters;", LEAST.0, LEAST.1),
        format!("this terminal has {} x {}.", area.width, area.height),
        "q ends it; `bus top --once`".to_owned(),
        "prints a table instead.".to_owned(),
    ];
    for (at, text) in (0..).zip(text) {
        Pen::new(buffer, theme, line(area, at)).write(&text, Style::new());
    }
}

fn footer(buffer: &mut Buffer, theme: Theme, area: Rect, model: &Model) {
    let mut pen = Pen::new(buffer, theme, area);
    if let Some(typed) = &model.typing {
        pen.write(" filter: ", theme.accent()).write(typed, Style::new()).write("_", theme.accent());
        pen.write_right("Enter keeps it, Esc takes it back ", theme.style(Mark::Faint));
        return;
    }
    let keys: &[(&str, &str)] = match (&model.detail, model.view) {
        (Some(_), _) => &[("Esc", "back"), ("j/k", "scroll"), ("?", "help"), ("^C", "quit")],
        (None, View::Messages) => &[
            ("q", "quit"),
            ("?", "help"),
            ("Tab", "view"),
            ("/", "filter"),
            ("space", "pause"),
            ("j/k", "older"),
            ("Enter", "whole"),
        ],
        (None, _) => &[
            ("q", "quit"),
            ("?", "help"),
            ("Tab", "view"),
            ("/", "filter"),
            ("s", "sort"),
            ("r", "rev"),
            ("space", "pause"),
            ("Enter", "detail"),
            ("w", "why"),
        ],
    };
    for (key, does) in keys {
        // Whole or not at all.
        if usize::from(pen.room()) < key.len() + does.len() + 2 {
            break;
        }
        pen.write(" ", Style::new()).write(key, theme.accent()).write(" ", Style::new());
        pen.write(does, theme.style(Mark::Faint)).write(" ", Style::new());
    }
}

fn messages(buffer: &mut Buffer, theme: Theme, body: Rect, model: &Model) {
    let tail = &model.tail;
    let mut pen = Pen::new(buffer, theme, line(body, 0));
    pen.write(tail.filter().unwrap_or("nothing"), theme.accent());
    pen.write(&format!("  {} came", tail.seen), Style::new());
    if tail.lost > 0 || tail.lost_unknown {
        let more = if tail.lost_unknown { " and an unknown number" } else { "" };
        let text = format!("  LOST {}{more}: more than this view takes", tail.lost);
        pen.write(&text, theme.style(Mark::Bad));
    }
    if !tail.is_followed {
        pen.write("  not followed", theme.style(Mark::Warn));
    }
    let room = usize::from(body.height.saturating_sub(1));
    let mut rows: Vec<(usize, &TailItem)> = tail.rows().rev().enumerate().collect();
    // The selected one is on the screen, and the newest if there is room for it.
    let hidden = (tail.above() + 1).saturating_sub(room);
    rows = rows.into_iter().skip(hidden).take(room).collect();
    rows.reverse();
    if rows.is_empty() {
        let text = match model.place().filter.as_str() {
            filter if tail.seen > 0 && !filter.is_empty() => {
                format!("  none of the last messages contains `{filter}`")
            }
            _ => "  nothing came yet".to_owned(),
        };
        Pen::new(buffer, theme, line(body, 2)).write(&text, theme.style(Mark::Faint));
    }
    for (at, (above, item)) in (1..).zip(rows) {
        let area = line(body, at);
        let mut pen = Pen::new(buffer, theme, area);
        pen.write(if above == tail.above() { ">" } else { " " }, theme.accent());
        match item {
            TailItem::Message(message) => {
                // Date and digits beyond milliseconds are in its detail.
                let time = message.time.get(11..23).unwrap_or(&message.time);
                pen.write(time, theme.style(Mark::Faint)).write(" ", Style::new());
                pen.write(&message.topic, theme.trend()).write("  ", Style::new());
                pen.write(&message.text, Style::new());
            }
            TailItem::Gap(count, reason) => {
                let count =
                    count.map_or_else(|| "an unknown number of".to_owned(), |count| count.to_string());
                pen.write(&format!("! {count} messages are missing ({reason})"), theme.style(Mark::Bad));
            }
            TailItem::Ended(reason) => {
                pen.write(&format!("! it has ended: {reason}"), theme.style(Mark::Bad));
            }
        }
        if above == tail.above() {
            buffer.set_style(area, Style::new().add_modifier(Modifier::REVERSED));
        }
    }
}

#[cfg(test)]
mod tests;
