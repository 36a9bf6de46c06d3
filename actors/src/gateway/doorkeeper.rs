//! Knows the tokens: the operator's, and those that were issued, as the key store has them at the moment.

use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroU32,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use interlock_bus::{
    PeerName,
    keys::{KeyError, Registry, token_file::Digest},
};

use super::{
    access::{Access, Attach, Bearer, Ended},
    error::ApiError,
    token::{self, Token},
    tokens::{TokenRecord, TokenStore, now_ms},
};

/// How often it looks after open streams: whether their tokens have ended.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often it is written down that a token goes on being used.
const WRITE_USE_EVERY: Duration = Duration::from_secs(60);

/// The tokens, and who has come in by them.
pub(super) struct Doorkeeper {
    token: Token,
    operator: Arc<Bearer>,
    store: TokenStore,
    attach: Arc<Attach>,
    rate: NonZeroU32,
    issued: Mutex<Issued>,
}

impl fmt::Debug for Doorkeeper {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Doorkeeper")
    }
}

/// What the file said when it was last read.
#[derive(Default)]
struct Issued {
    /// The outer `None` if it was never read.
    seen: Option<Option<Stamp>>,
    /// Why it is not in force as it is.
    problem: Option<String>,
    /// The registry when it was last read, as above.
    seen_registry: Option<Option<Stamp>>,
    /// What it said: which tokens are over, whatever the file says.
    registry: Option<Registry>,
    bearers: Arc<[Arc<Bearer>]>,
    /// What was written down of their use.
    written: BTreeMap<PeerName, u64>,
}

/// What changes when a file is written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    modified: (i64, i64),
    bytes: u64,
}

fn stamp(path: &Path) -> Option<Stamp> {
    let about = std::fs::metadata(path).ok()?;
    Some(Stamp { inode: about.ino(), modified: (about.mtime(), about.mtime_nsec()), bytes: about.len() })
}

impl Doorkeeper {
    /// For the operator's token, whose bearer is this peer on the bus, and those in `store`.
    pub(super) fn new(
        token: Token,
        operator: PeerName,
        store: TokenStore,
        attach: Arc<Attach>,
        rate: NonZeroU32,
    ) -> Self {
        let written = store.last_use();
        let issued = Mutex::new(Issued { written, ..Issued::default() });
        let operator = Arc::new(Bearer::operator(operator, Arc::clone(&attach), rate));
        Self { token, operator, store, attach, rate, issued }
    }

    /// Where tokens are issued and revoked.
    pub(super) fn store(&self) -> &TokenStore {
        &self.store
    }

    /// Whoever has the token of this header.
    pub(super) fn admit(&self, authorization: Option<&[u8]>) -> Result<Access, ApiError> {
        self.admit_token(authorization.and_then(token::bearer).ok_or(ApiError::Unauthorized)?)
    }

    /// Whoever has this token, for those who cannot send the header. What was revoked a moment ago is refused: the file
    /// is looked at each time. Takes the same time for each token that there is.
    pub(super) fn admit_token(&self, token: &[u8]) -> Result<Access, ApiError> {
        let (bearers, digest) = (self.bearers(), Digest::of(token));
        let mut found = self.token.is(token).then_some(&self.operator);
        for bearer in bearers.iter() {
            if bearer.record().is_some_and(|record| record.digest.is(&digest)) {
                found = Some(bearer);
            }
        }
        match found {
            Some(bearer) => bearer.enter(),
            // It may be one of those that cannot be read.
            None if self.problem().is_some() => Err(ApiError::TokensUnreadable),
            None => Err(ApiError::Unauthorized),
        }
    }

    /// Ends what has ended, and gives up sessions that nobody needs.
    pub(super) fn look_after(&self) {
        let (bearers, now) = (self.bearers(), now_ms());
        for bearer in bearers.iter() {
            bearer.check_end(now);
            bearer.drop_idle_session(Instant::now());
        }
        self.operator.drop_idle_session(Instant::now());
    }

    /// Why the file of tokens is not in force as it is; `None` if it is.
    pub(super) fn problem(&self) -> Option<String> {
        self.issued().problem.clone()
    }

    /// Writes down which tokens were used, if there is something new to say; everything if `last`. Blocks.
    pub(super) fn write_use(&self, last: bool) -> Result<(), KeyError> {
        let every = if last { 1 } else { u64::try_from(WRITE_USE_EVERY.as_millis()).unwrap_or(u64::MAX) };
        let used = {
            let mut issued = self.issued();
            let mut used = BTreeMap::new();
            let mut is_new = false;
            for bearer in issued.bearers.iter() {
                let Some(record) = bearer.record() else { continue };
                let before = issued.written.get(&record.name).copied();
                let now = bearer.used_ms().into_iter().chain(before).max();
                is_new |= now.unwrap_or(0) >= before.unwrap_or(0).saturating_add(every);
                used.extend(now.map(|at_ms| (record.name.clone(), at_ms)));
            }
            if !is_new {
                return Ok(());
            }
            issued.written = used.clone();
            used
        };
        self.store.save_last_use(&used)
    }

    /// The bearers of the file as it is now, without those whose peer was revoked.
    fn bearers(&self) -> Arc<[Arc<Bearer>]> {
        let mut issued = self.issued();
        let records = self.read_tokens(&mut issued);
        // After the tokens: whoever issues one writes the registry first.
        let is_changed = self.read_registry(&mut issued);
        if records.is_some() || is_changed {
            let same = || issued.bearers.iter().filter_map(|bearer| bearer.record().cloned()).collect();
            let records = records.unwrap_or_else(same);
            issued.bearers = replaced(&issued.bearers, records, &self.attach, self.rate);
            let is_over = |bearer: &&Arc<Bearer>| {
                let registry = issued.registry.as_ref();
                bearer.record().zip(registry).is_some_and(|(record, registry)| record.is_over_in(registry))
            };
            issued.bearers.iter().filter(is_over).for_each(|bearer| bearer.end(Ended::Revoked));
        }
        Arc::clone(&issued.bearers)
    }

    /// What is in the file, if that is something new.
    fn read_tokens(&self, issued: &mut Issued) -> Option<Vec<TokenRecord>> {
        let now = stamp(&self.store.path());
        if issued.seen == Some(now) {
            return None;
        }
        issued.seen = Some(now);
        match self.store.load() {
            Ok(records) => {
                issued.problem = None;
                Some(records)
            }
            Err(error) => {
                // What the disk says may be different the next time.
                if matches!(error, KeyError::Io { .. }) {
                    issued.seen = None;
                }
                let problem = Some(error.to_string());
                if issued.problem != problem {
                    let in_force = issued.bearers.len();
                    tracing::error!(%error, in_force, "only the tokens that were in force stay in force");
                    issued.problem = problem;
                }
                None
            }
        }
    }

    /// Reads the registry, if it was changed. One that cannot be read changes nothing.
    fn read_registry(&self, issued: &mut Issued) -> bool {
        let now = stamp(&self.store.registry_path());
        if issued.seen_registry == Some(now) {
            return false;
        }
        let Ok(registry) = self.store.registry() else { return false };
        issued.seen_registry = Some(now);
        issued.registry = Some(registry);
        true
    }

    fn issued(&self) -> MutexGuard<'_, Issued> {
        // No code that can panic runs under this lock.
        self.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bearers of these records. Who is among those there are goes on; the others have ended.
fn replaced(
    before: &[Arc<Bearer>],
    records: Vec<TokenRecord>,
    attach: &Arc<Attach>,
    rate: NonZeroU32,
) -> Arc<[Arc<Bearer>]> {
    let bearers: Arc<[Arc<Bearer>]> = records
        .into_iter()
        .map(|record| {
            // Who was revoked in the registry may have been taken back there.
            let same = before.iter().find(|bearer| bearer.record() == Some(&record) && !bearer.is_over());
            same.cloned().unwrap_or_else(|| Arc::new(Bearer::of(record, Arc::clone(attach), rate)))
        })
        .collect();
    for gone in before.iter().filter(|bearer| !bearers.iter().any(|other| Arc::ptr_eq(bearer, other))) {
        let digest = gone.record().map(|record| &record.digest);
        let now =
            bearers.iter().filter_map(|bearer| bearer.record()).find(|record| Some(&record.digest) == digest);
        gone.end(match now {
            Some(record) if record.revoked_ms.is_none() => Ended::Changed,
            _ => Ended::Revoked,
        });
    }
    bearers
}
