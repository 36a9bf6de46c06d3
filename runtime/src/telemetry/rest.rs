//! What the log path leaves when it ends: into the store directly, or into the journal for the next start.

use interlock_actors::{log_transport::LogBuffer, store::Store};
use interlock_bus::blocking::wait;

use crate::{cli::Output, site::Site};

/// Saves what was logged after the log path had ended. `told` is why there was no start: it is not told again.
///
/// | the journal has older records | the store opens | then |
/// |---|---|---|
/// | no | yes | into the store |
/// | no | no | into the journal, and the console says so |
/// | yes, or it was not looked into | | into the journal, behind them |
pub(crate) fn save(site: &Site, told: Option<&str>) {
    let buffer = &site.log_buffer;
    if buffer.is_journaled() {
        spill(buffer);
    }
    if buffer.report().waiting == 0 {
        return;
    }
    let Err(error) = site.open_again().map_err(|error| error.to_string()).and_then(|store| {
        let stored = append(buffer, &store);
        store.close();
        stored
    }) else {
        return;
    };
    let spilled = spill(buffer);
    let because = match told {
        Some(told) if told.contains(&error) => "for the same reason".to_owned(),
        _ => format!("because of this: {error}"),
    };
    if spilled > 0 {
        Output::quick(&format!(
            "the last {spilled} log records wait in the journal for the next start, {because}"
        ));
    }
    let lost = buffer.report().waiting;
    if lost > 0 {
        Output::quick(&format!("the last {lost} log records are lost, {because}"));
    }
}

fn append(buffer: &LogBuffer, store: &Store) -> Result<(), String> {
    let appended = wait(store.append(buffer.take_rest()));
    appended.map(drop).map_err(|refused| {
        let error = refused.error.to_string();
        buffer.give_back(refused.work.unwrap_or_default());
        error
    })
}

/// How many records went to the journal.
fn spill(buffer: &LogBuffer) -> usize {
    buffer.journal().map_or(0, |journal| wait(journal.spill_all()))
}
