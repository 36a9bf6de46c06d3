//! The flags that say which records.

use clap::Args;
use interlock_actors::{
    log_record::Level,
    store::{FieldPattern, Grep, LogQuery, NamePattern, TextQuery},
};
use interlock_bus::envelope::now_ns;
use jiff::Timestamp;

use super::moment::{self, Last};
use crate::{cli::CliError, exit::Exit};

/// Which records. What several flags say must all hold.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which records")]
pub(super) struct Filter {
    /// This level and above: trace, debug, info, warn, error.
    #[arg(short, long)]
    level: Option<Level>,
    /// Of this component; `*` stands for any characters, `!NAME` is all but this one. May be repeated.
    #[arg(short, long, value_name = "NAME")]
    component: Vec<String>,
    /// Raised in this module or below it. May be repeated.
    #[arg(long, value_name = "MODULE")]
    target: Vec<String>,
    /// Not older: 10m, today, yesterday, 2026-01-31, "2026-01-31 08:00", 08:00, or RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = moment::argument)]
    since: Option<Timestamp>,
    /// Before this time, written like that of --since.
    #[arg(long, value_name = "TIME", value_parser = moment::argument)]
    until: Option<Timestamp>,
    /// The last so many records, or those of so much time: 50, 10m.
    #[arg(long, value_name = "N|DURATION", value_parser = moment::last, conflicts_with_all = ["since", "until"])]
    last: Option<Last>,
    /// With this field, NAME=VALUE, or NAME for any value. Repeated: one of the values of each name.
    #[arg(short = 'F', long, value_name = "NAME=VALUE")]
    field: Vec<String>,
    /// Of this trace, or of the turn with this id: what one request caused, in every component. Turns that go well are told
    /// at the level debug.
    #[arg(long, value_name = "ID")]
    trace: Option<String>,
    /// Of this conversation.
    #[arg(long, value_name = "ID")]
    conversation: Option<String>,
    /// With these words in message or fields; "two words" in this order, beg* for a beginning.
    #[arg(short, long, value_name = "WORDS")]
    text: Option<String>,
    /// And with a match of this regular expression in the message or a NAME=VALUE; (?i) ignores case.
    #[arg(short, long, value_name = "REGEX", value_parser = Grep::new)]
    grep: Option<Grep>,
    /// Of the process with this id.
    #[arg(long, value_name = "PID")]
    process: Option<u32>,
    /// Of this start of a component, counted from one.
    #[arg(long, value_name = "N")]
    incarnation: Option<u64>,
}

impl Filter {
    /// How many records `--last` asks for, if it asks for a number.
    pub(super) fn last_lines(&self) -> Option<usize> {
        match self.last {
            Some(Last::Lines(lines)) => Some(lines),
            Some(Last::Time(_)) | None => None,
        }
    }

    /// The question to the store, all but the number of records.
    pub(super) fn query(&self) -> Result<LogQuery, CliError> {
        // Before 1970 nothing was logged, and after 2554 nothing will be.
        let ns = |time: Timestamp| {
            u64::try_from(time.as_nanosecond()).unwrap_or(if time < Timestamp::UNIX_EPOCH {
                0
            } else {
                u64::MAX
            })
        };
        let since_ns = match self.last {
            Some(Last::Time(time)) => {
                Some(now_ns().saturating_sub(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
            }
            Some(Last::Lines(_)) | None => self.since.map(ns),
        };
        let until_ns = self.until.map(ns);
        if let (Some(since), Some(until)) = (self.since, self.until)
            && since >= until
        {
            let text = format!("--since `{since}` is not before --until `{until}`: nothing can match");
            return Err(CliError::new(Exit::Misuse, text));
        }
        let names = |names: &[String]| names.iter().map(|name| NamePattern::from(name.as_str())).collect();
        Ok(LogQuery {
            min_level: self.level,
            since_ns,
            until_ns,
            components: names(&self.component),
            targets: self.target.clone(),
            fields: self.field.iter().map(|field| FieldPattern::from(field.as_str())).collect(),
            trace_id: self.trace.clone(),
            conversation: self.conversation.clone(),
            process: self.process,
            incarnation: self.incarnation,
            text: self.text.as_deref().map(TextQuery::new),
            grep: self.grep.clone(),
            ..LogQuery::default()
        })
    }
}
