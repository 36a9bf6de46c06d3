//! What lies over the table: a detail, the help.

use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Modifier, Style},
    widgets::{Clear, Widget},
};

use super::{
    super::{
        columns::Mark,
        detail::{Detail, Row},
    },
    Pen, Seen, Theme, line,
};

/// What each key does, for people. The table in `model/keys.rs` is the same.
const HELP: &[(&str, &str)] = &[
    ("Tab, 1-4, left/right, h/l", "topics, peers, actors, messages"),
    ("up/down, j/k, g/G, pages", "another row"),
    ("Enter", "detail of the row; Esc goes back"),
    ("m", "the messages of the selected topic"),
    ("w", "what was refused last, and why"),
    ("s / S", "sort by the next column / the one before"),
    ("r", "the other way round"),
    ("/", "filter; Enter keeps it, Esc takes it back"),
    ("a", "with or without the bus's own topics ($sys, $peers)"),
    ("space", "pause; messages that come meanwhile are not kept"),
    ("i, +, -", "how often the broker is asked"),
    ("q, Esc, Ctrl-C", "end"),
    ("", ""),
    ("!", "something of this row was lost, refused or failed"),
    ("LOST", "messages that did not reach a subscriber"),
    ("LAG", "how long the queue takes at the present pace"),
    ("FULL", "how full the fullest queue of the peer is"),
];

/// Clears an area and draws its first line as a title; what is left is given back.
fn window(buffer: &mut Buffer, theme: Theme, area: Rect, title: &str) -> Rect {
    Clear.render(area, buffer);
    let head = line(area, 0);
    buffer.set_style(head, Style::new().add_modifier(Modifier::REVERSED));
    Pen::new(buffer, theme, head)
        .write(&format!(" {title}"), theme.accent().add_modifier(Modifier::REVERSED));
    Rect { x: area.x + 1, y: area.y + 1, width: area.width - 2, height: area.height.saturating_sub(1) }
}

pub(super) fn help(buffer: &mut Buffer, theme: Theme, area: Rect) {
    let height = (HELP.len() as u16 + 2).min(area.height - 1);
    let inside = window(buffer, theme, Rect { height, ..area }, "bus top: keys (any key closes this)");
    for (at, (key, does)) in (0..).zip(HELP) {
        let mut pen = Pen::new(buffer, theme, line(inside, at));
        pen.write(&format!("{key:<26}"), theme.accent()).write(does, Style::new());
    }
}

/// Text in lines that fit, each with the mark of its text.
fn wrapped<'a>(rows: impl Iterator<Item = &'a Row>, theme: Theme, width: usize) -> Vec<(String, Mark)> {
    let mut lines = Vec::new();
    for (text, mark) in rows {
        let text = theme.harmless.show(text);
        let characters: Vec<char> = text.chars().collect();
        if characters.is_empty() {
            lines.push((String::new(), *mark));
        }
        let mut rest = &characters[..];
        while !rest.is_empty() {
            let most = rest.len().min(width.max(1));
            // Between words, if one ends in this line at all.
            let space = rest[..most].iter().rposition(|character| *character == ' ').filter(|at| *at > 0);
            let end = if most == rest.len() { most } else { space.map_or(most, |at| at + 1) };
            lines.push((rest[..end].iter().collect(), *mark));
            rest = &rest[end..];
        }
    }
    lines
}

pub(super) fn detail(buffer: &mut Buffer, theme: Theme, area: Rect, detail: &Detail) -> Seen {
    let inside = window(buffer, theme, area, &detail.title);
    let lines = wrapped(detail.rows(), theme, inside.width.into());
    let room = usize::from(inside.height);
    let first = detail.scrolled(lines.len(), room);
    for (at, (text, mark)) in (0..).zip(lines.iter().skip(first).take(room)) {
        Pen::new(buffer, theme, line(inside, at)).write(text, theme.style(*mark));
    }
    if lines.len() > first + room {
        let more = format!("{} more lines ", lines.len() - first - room);
        Pen::new(buffer, theme, line(area, 0))
            .write_right(&more, Style::new().add_modifier(Modifier::REVERSED));
    }
    Seen { page: room, scroll: Some(first) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::output::Harmless;

    #[test]
    fn long_lines_break_between_words_and_nothing_is_left_out() {
        let theme = Theme { has_color: false, harmless: Harmless::ascii() };
        let rows = [
            ("one two three".to_owned(), Mark::Bad),
            (String::new(), Mark::Plain),
            ("x".repeat(12), Mark::Plain),
        ];
        let lines: Vec<String> = wrapped(rows.iter(), theme, 8).into_iter().map(|(text, _)| text).collect();
        assert_eq!(lines, ["one two ", "three", "", "xxxxxxxx", "xxxx"]);
    }
}
