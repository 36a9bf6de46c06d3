//! A table: headings, rows, the selected one, and what is left out.

use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Modifier, Style},
};

use super::{
    super::{
        columns::{Cell, Grid, Heading, Line, Mark},
        model::{Model, View},
        trend::trend,
    },
    Pen, Theme, line,
};

/// Characters between columns.
const GAP: u16 = 1;
/// What names may take at most while there is something else to show.
const NAME_WIDTH_MAX: u16 = 60;

/// Where each column that is shown begins and how wide it is.
struct Slot {
    column: usize,
    x: u16,
    width: u16,
}

pub(super) fn draw(buffer: &mut Buffer, theme: Theme, body: Rect, model: &Model) {
    let grid = model.grid();
    let slots = slots(&grid, body.width);
    headings(buffer, theme, line(body, 0), &grid.headings, &slots);
    let room = usize::from(body.height.saturating_sub(1));
    let selected = model.selected_in(&grid);
    // The selected row is always on the screen.
    let first = (selected + 1).saturating_sub(room);
    for (at, row) in (1..).zip(grid.rows.iter().skip(first).take(room)) {
        let is_selected = first + usize::from(at) - 1 == selected;
        draw_row(buffer, theme, line(body, at), row, &slots, &grid.headings, is_selected);
    }
    if grid.rows.is_empty() {
        let text = match (model.no_actors(), model.view) {
            (Some(reason), View::Actors) => reason,
            _ if grid.filtered > 0 => {
                format!("none of {} rows contains `{}`", grid.filtered, model.place().filter)
            }
            (_, View::Topics) => "nothing was published yet; `a` shows the bus's own topics".to_owned(),
            _ => "nothing to show".to_owned(),
        };
        Pen::new(buffer, theme, line(body, 2))
            .write("  ", Style::new())
            .write(&text, theme.style(Mark::Faint));
    }
}

/// The first column takes what the names need, the last one what is left.
fn slots(grid: &Grid, width: u16) -> Vec<Slot> {
    let shown: Vec<usize> =
        (0..grid.headings.len()).filter(|at| grid.headings[*at].from_width <= width).collect();
    let fixed: u16 = shown.iter().skip(1).map(|at| grid.headings[*at].width + GAP).sum();
    let most = width.saturating_sub(fixed + 1);
    let longest = grid.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or_default() as u16;
    let name_width = longest.clamp(12, NAME_WIDTH_MAX).min(most);
    let mut x = 1;
    let mut slots = Vec::new();
    for (place, column) in shown.iter().enumerate() {
        let is_last = place + 1 == shown.len();
        let column_width = match place {
            0 => name_width,
            _ if is_last => width.saturating_sub(x),
            _ => grid.headings[*column].width,
        };
        slots.push(Slot { column: *column, x, width: column_width });
        x += column_width + GAP;
    }
    slots
}

/// A text in its column: numbers to the right.
fn put(
    buffer: &mut Buffer,
    theme: Theme,
    area: Rect,
    slot: &Slot,
    text: &str,
    style: Style,
    is_number: bool,
) {
    let text = theme.harmless.show(text);
    let length = text.chars().count().min(slot.width.into()) as u16;
    let indent = if is_number { slot.width - length } else { 0 };
    let room = area.width.saturating_sub(slot.x + indent).min(slot.width - indent);
    if area.height > 0 && room > 0 {
        buffer.set_stringn(area.x + slot.x + indent, area.y, text, room.into(), style);
    }
}

fn headings(buffer: &mut Buffer, theme: Theme, area: Rect, headings: &[Heading], slots: &[Slot]) {
    buffer.set_style(area, Style::new().add_modifier(Modifier::UNDERLINED));
    for slot in slots {
        let heading = &headings[slot.column];
        let (text, style) = match heading.falling {
            Some(falling) => {
                // The mark takes the place of the last letters where the column is narrow.
                let room = usize::from(slot.width).saturating_sub(1);
                let title: String = heading.title.chars().take(room).collect();
                (format!("{title}{}", if falling { "v" } else { "^" }), theme.accent())
            }
            None => (heading.title.to_owned(), theme.style(Mark::Plain).add_modifier(Modifier::BOLD)),
        };
        // The trend grows to the right; its title stands where it begins.
        let is_number = heading.is_number && !heading.title.starts_with("TREND");
        put(buffer, theme, area, slot, &text, style.add_modifier(Modifier::UNDERLINED), is_number);
    }
}

fn draw_row(
    buffer: &mut Buffer,
    theme: Theme,
    area: Rect,
    row: &Line,
    slots: &[Slot],
    headings: &[Heading],
    is_selected: bool,
) {
    let gutter = match (row.is_bad, is_selected) {
        (true, _) => ("!", theme.style(Mark::Bad)),
        (false, true) => (">", theme.accent()),
        (false, false) => (" ", Style::new()),
    };
    Pen::new(buffer, theme, area).write(gutter.0, gutter.1);
    for slot in slots {
        match &row.cells[slot.column] {
            Cell::Text(text, mark) => {
                let text = if slot.column == 0 { elide(text, slot.width.into()) } else { text.clone() };
                let is_number = headings[slot.column].is_number;
                put(buffer, theme, area, slot, &text, theme.style(*mark), is_number);
            }
            Cell::Trend(cells) => {
                let width = usize::from(slot.width).min(cells.len());
                let bars = trend(cells, width, theme.harmless.is_ascii());
                put(buffer, theme, area, slot, &bars, theme.trend(), false);
            }
        }
    }
    if is_selected {
        buffer.set_style(area, Style::new().add_modifier(Modifier::REVERSED));
    }
}

/// A name without its middle, if it is too long: topics differ at their ends.
fn elide(name: &str, width: usize) -> String {
    let length = name.chars().count();
    if length <= width || width < 5 {
        return name.to_owned();
    }
    let (head, tail) = ((width - 2) / 2, (width - 2).div_ceil(2));
    let start: String = name.chars().take(head).collect();
    let end: String = name.chars().skip(length - tail).collect();
    format!("{start}..{end}")
}

#[cfg(test)]
mod tests {
    use super::elide;

    #[test]
    fn a_long_name_keeps_both_ends() {
        assert_eq!(elide("conversation/turn/delta/v1", 14), "conver..lta/v1");
        assert_eq!(elide("short", 14), "short");
    }
}
