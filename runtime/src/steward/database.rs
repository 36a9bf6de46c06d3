//! The database of the installation that runs.

use std::sync::{Arc, atomic::AtomicBool};

use interlock_actors::{
    gateway::steward::{Refusal, RefusalKind},
    store::{Reader, StoreError, status::DatabaseStatus},
};
use serde_json::{Value, json};

use super::{Turn, refused};
use crate::site::Site;

pub(super) fn status(site: &Site) -> Result<Value, Refusal> {
    let place = &site.data_dir;
    let status = DatabaseStatus::of(&place.database(), &place.keys(), || site.vault.open());
    Ok(json!(status.map_err(of_store)?))
}

pub(super) fn check(site: &Site, checking: &Arc<AtomicBool>) -> Result<Value, Refusal> {
    let _turn = Turn::take(checking).ok_or_else(|| {
        refused(RefusalKind::Busy, "busy", "the database is being checked; wait for its end")
    })?;
    let path = site.data_dir.database();
    let checkup = site.vault.open().and_then(|key| Reader::open(&path, &key)?.checkup()).map_err(of_store)?;
    if !checkup.is_well() {
        tracing::error!(
            findings = checkup.findings.len(),
            "the database is not well; `interlock db check` shows how"
        );
    }
    Ok(checkup.as_json(&path))
}

fn of_store(error: StoreError) -> Refusal {
    refused(RefusalKind::Failed, "store", error.to_string())
}
