//! `interlock db status`.

use interlock_actors::store::status::{Content, DatabaseStatus};

use super::{super::output::table, CliError, Form, Global, Output, json, time};
use crate::{exit::Exit, lifecycle::DataDir};

pub(super) fn run(
    form: &Form,
    global: &Global,
    data_dir: &DataDir,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let vault = global.vault(data_dir);
    let status = DatabaseStatus::of(&data_dir.database(), &data_dir.keys(), || vault.open())?;
    if form.json {
        output.line(&json(&status)?)?;
        return Ok(Exit::Done);
    }
    let mut rows = vec![
        row("path", status.path.display().to_string()),
        row("schema", format!("{} (this program knows {})", status.schema_version, status.known_version)),
        row("key", status.wrap.map_or("none yet".to_owned(), |wrap| format!("sealed: {wrap}"))),
        row("sqlite", format!("{}, SQLCipher {}", status.sqlite, status.sqlcipher)),
    ];
    match &status.content {
        Some(content) => inside(content, &mut rows),
        None => output.say("it is not initialised; `interlock db init` or the first run makes it"),
    }
    output.lines(&table(&rows))?;
    Ok(Exit::Done)
}

fn row(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

fn inside(content: &Content, rows: &mut Vec<Vec<String>>) {
    rows.extend([
        row("migrated", time(content.migrated_ns.into())),
        row("size", format!("{} bytes, {} in the write-ahead log", content.bytes, content.wal_bytes)),
        row(
            "pages",
            format!("{} of {} bytes, {} free", content.pages, content.page_bytes, content.free_pages),
        ),
        row("journal", format!("{}, {} bytes mapped", content.journal_mode, content.mmap_bytes)),
    ]);
    rows.extend(content.rows.iter().map(|(table, count)| row("rows", format!("{count} in {table}"))));
}
