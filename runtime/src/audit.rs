//! Takes the audit file of the key store over into the log. The file is where a change of keys cannot be lost; the log is
//! where people look for it. Each act has one id in both, so that what is taken over twice is stored once.

use std::time::Duration;

use interlock_actors::{
    log_record::{Level, LogRecord},
    store::{Store, StoreError},
};
use interlock_bus::keys::{
    Audit, KeyError,
    audit::{Entry, Outcome},
};

use crate::site::Site;

/// What the records are found under.
pub(crate) const COMPONENT: &str = "keys";
/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Takes over what there is and what comes, for as long as it is polled. What cannot be stored now stays in the file.
pub(crate) async fn follow(site: &Site) {
    let audit = site.keys.audit();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut said = None;
    loop {
        looks.tick().await;
        let Ok(store) = site.store.store() else { continue };
        let problem = match take_over(&audit, &store).await {
            // The store says itself what is wrong with it.
            Ok(()) | Err(Problem::Store(_)) => None,
            Err(Problem::Keys(error)) => Some(error.to_string()),
        };
        if problem != said
            && let Some(error) = &problem
        {
            tracing::warn!(%error, "changes of keys are not taken over into the log");
        }
        said = problem;
    }
}

/// Why something was not taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Keys(#[from] KeyError),
}

/// Takes over what is there.
pub(crate) async fn take_over(audit: &Audit, store: &Store) -> Result<(), Problem> {
    loop {
        let takeover = audit.to_take_over()?;
        if takeover.entries.is_empty() && takeover.damaged == 0 {
            return Ok(());
        }
        let mut records: Vec<LogRecord> = takeover.entries.iter().map(record).collect();
        if takeover.damaged > 0 {
            let lines = takeover.damaged;
            let text = format!(
                "{lines} lines of the audit file cannot be read: somebody was killed, or has changed them"
            );
            records.push(LogRecord::new(Level::Warn, COMPONENT, text));
        }
        store.append_waiting(records).await.map_err(|refused| refused.error)?;
        audit.taken(takeover.to)?;
    }
}

/// An act as the log has it.
fn record(entry: &Entry) -> LogRecord {
    let act = &entry.act;
    let (level, result) = match &entry.outcome {
        Outcome::Done | Outcome::Begun => (Level::Info, "done".to_owned()),
        Outcome::Failed(why) => (Level::Warn, format!("failed: {why}")),
        Outcome::Unknown => (Level::Warn, "unknown: the command was killed before it was over".to_owned()),
    };
    let of = act.peer.as_ref().map(|peer| format!(" of `{peer}`")).unwrap_or_default();
    let mut record = LogRecord::new(level, COMPONENT, format!("{}{of}: {result}", act.action));
    record.id = entry.id;
    record.time_ns = entry.at_ms.saturating_mul(1_000_000);
    record.target = "interlock::keys".to_owned();
    record.process = entry.pid;
    let user = nix::unistd::User::from_uid(entry.uid.into()).ok().flatten().map(|user| user.name);
    let fields = [
        ("action", Some(act.action.clone())),
        ("peer", act.peer.as_ref().map(ToString::to_string)),
        ("fingerprint", act.fingerprint.clone()),
        ("detail", act.detail.clone()),
        ("uid", Some(entry.uid.to_string())),
        ("user", user),
        ("pid", Some(entry.pid.to_string())),
        ("by", entry.by.as_ref().map(ToString::to_string)),
        ("result", Some(result)),
    ];
    record.fields = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    record
}
