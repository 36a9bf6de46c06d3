//! The first four lines: the broker, its traffic, what was lost or refused, and which view this is.

use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Modifier, Style},
};

use super::{
    super::{
        columns::{Mark, ago, bytes_text, count, rate_text},
        model::{Link, Model, View},
        trend::trend,
    },
    Pen, Theme, line,
};

pub(super) fn draw(buffer: &mut Buffer, theme: Theme, area: Rect, model: &Model) {
    broker(&mut Pen::new(buffer, theme, line(area, 0)), theme, model);
    traffic(&mut Pen::new(buffer, theme, line(area, 1)), theme, model);
    alarms(&mut Pen::new(buffer, theme, line(area, 2)), theme, model);
    tabs(&mut Pen::new(buffer, theme, line(area, 3)), theme, model);
}

fn broker(pen: &mut Pen<'_>, theme: Theme, model: &Model) {
    pen.write(" bus top ", theme.accent().add_modifier(Modifier::REVERSED));
    if let Some(picture) = &model.picture {
        let broker = &picture.broker;
        let up = ago(broker.now_ms, broker.started_ms);
        pen.write(
            &format!("  broker {}  up {up}  {} sessions", broker.version, broker.sessions),
            Style::new(),
        );
        if broker.requests_in_flight > 0 {
            pen.write(&format!("  {} requests open", broker.requests_in_flight), Style::new());
        }
    }
    let (text, mark) = match (&model.link, model.is_paused) {
        (Link::Lost(_), _) => ("BROKER GONE ".to_owned(), Mark::Bad),
        (Link::Up, true) => ("PAUSED ".to_owned(), Mark::Warn),
        (Link::Up, false) => (format!("every {:?} ", model.interval), Mark::Faint),
    };
    pen.write_right(&text, theme.style(mark));
}

fn traffic(pen: &mut Pen<'_>, theme: Theme, model: &Model) {
    let Some(picture) = &model.picture else { return };
    let broker = &picture.broker;
    pen.write(&format!(" {} msg/s", rate_text(broker.messages_per_second)), theme.accent());
    let rest = format!("  {}/s  {} messages ", bytes_text(broker.bytes_per_second), count(broker.messages));
    pen.write(&rest, Style::new());
    // As wide as the window of the trend has cells, so that a cell is a cell wherever there is room.
    let room = usize::from(pen.room()).saturating_sub(8).min(broker.cells.len());
    let bars = trend(&broker.cells, room, theme.harmless.is_ascii());
    if room > 0 {
        pen.write_right(&format!("{} 2 min ", " ".repeat(room)), theme.style(Mark::Faint));
        pen.x = pen.line.right().saturating_sub(room as u16 + 7);
        pen.write(&bars, theme.trend());
    }
}

fn alarms(pen: &mut Pen<'_>, theme: Theme, model: &Model) {
    let (bad, faint) = (theme.style(Mark::Bad), theme.style(Mark::Faint));
    if let Link::Lost(reason) = &model.link {
        pen.write(&format!(" ! the broker does not answer: {reason}; trying again"), bad);
        return;
    }
    let Some(picture) = &model.picture else { return };
    let (broker, recent) = (&picture.broker, &model.recent);
    if let Some(problem) = &broker.registry_problem {
        pen.write(&format!(" ! the registry's last edit is not in force: {problem}"), bad);
        return;
    }
    let lost = recent.lost();
    let mut alarms = Vec::new();
    if !lost.is_empty() {
        let reasons: Vec<String> =
            lost.iter().map(|(reason, lost)| format!("{reason} {}", count(*lost))).collect();
        alarms.push(format!("LOST {}", reasons.join(", ")));
    }
    if recent.denied() > 0 {
        let last = picture.refusals.iter().find(|refusal| refusal.operation.is_some());
        let last = last.and_then(|refusal| Some((refusal.peer.clone()?, refusal.operation.clone()?)));
        let last = last.map(|(peer, (operation, topic))| format!(" (last: {peer} {operation} {topic})"));
        alarms.push(format!("DENIED {}{}", count(recent.denied()), last.unwrap_or_default()));
    }
    if recent.refused() > 0 {
        let last = picture.refusals.iter().find(|refusal| refusal.operation.is_none());
        let last = last.map(|refusal| format!(" (last: {})", refusal.code));
        alarms.push(format!("REFUSED {}{}", count(recent.refused()), last.unwrap_or_default()));
    }
    if !alarms.is_empty() {
        pen.write(&format!(" ! in the last minute: {}", alarms.join("; ")), bad);
        return;
    }
    pen.write(" nothing lost or refused in the last minute", faint);
    let before = [("lost", broker.lost_in_all()), ("denied", broker.denied), ("refused", broker.refused)];
    let before: Vec<String> = before
        .iter()
        .filter(|(_, all)| *all > 0)
        .map(|(what, all)| format!("{what} {}", count(*all)))
        .collect();
    if !before.is_empty() {
        pen.write(&format!("; since the start {}", before.join(", ")), faint);
    }
}

fn tabs(pen: &mut Pen<'_>, theme: Theme, model: &Model) {
    for (number, view) in (1..).zip(View::ALL) {
        let has = match (&model.picture, view) {
            (Some(picture), View::Topics) => {
                format!(" {}", picture.topics.len() as u64 + picture.broker.topics_left_out)
            }
            (Some(picture), View::Peers) => format!(" {}", picture.peers.len()),
            (Some(picture), View::Actors) if !picture.actors.rows().is_empty() => {
                format!(" {}", picture.actors.rows().len())
            }
            _ => String::new(),
        };
        let text = format!("{number} {}{has}", view.title());
        match view == model.view {
            true => pen.write(&format!("[{text}]"), theme.accent()),
            false => pen.write(&format!(" {text} "), Style::new()),
        };
    }
    let filter = &model.place().filter;
    if !filter.is_empty() {
        pen.write_right(&format!("only /{filter}  "), theme.style(Mark::Warn));
    }
}
