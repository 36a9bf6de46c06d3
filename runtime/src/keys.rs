//! What people may do with the keys of peers, and what there is to say of them: the same for the command line and the gateway.

use interlock_actors::gateway::tokens::{TokenError, TokenStore, is_bearer};
use interlock_bus::{
    KeyStore, PeerName, Permissions,
    keys::{KeyError, KeyState, LastUse, Registry, Right, registry::Peer, token_file},
};
use serde_json::{Value, json};

use crate::{config::schema, peers};

/// The rights in the order in which they are shown.
pub(crate) const RIGHTS: [Right; 4] = [Right::Publish, Right::Subscribe, Right::Serve, Right::Request];

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyOrderError {
    #[error(
        "`{0}` is the name of a built-in component; choose another, or revoke it first and give no rights to replace its key"
    )]
    BuiltIn(PeerName),
    /// A key that ended by itself would end the runtime with it.
    #[error("`{0}` is a built-in component, and its key must not end by itself; leave out `--expires`")]
    EndOfBuiltIn(PeerName),
    #[error("`{name}` is the name of a peer that a token stands for, and has no key; `interlock tokens issue {token}` makes a token", token = token_of(.name))]
    OfToken { name: PeerName },
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Keys(#[from] KeyError),
}

fn token_of(peer: &PeerName) -> &str {
    token_file::token_of(peer).unwrap_or("NAME")
}

/// `Some` for a name that components have taken, with its rights if it is a peer.
fn built_in(name: &PeerName) -> Option<Option<Permissions>> {
    let of_peer = peers::permissions().into_iter().find(|(peer, _)| *peer == name.as_str());
    schema::NAMES_TAKEN.contains(&name.as_str()).then(|| of_peer.map(|(_, rights)| rights))
}

/// Whether the runtime needs this peer.
pub(crate) fn is_built_in(name: &PeerName) -> bool {
    built_in(name).is_some()
}

/// What a peer of this name gets that was given these rights, with a key that ends or does not.
pub(crate) fn rights_of_new(
    store: &KeyStore,
    name: &PeerName,
    given: &Permissions,
    expires: bool,
) -> Result<Permissions, KeyOrderError> {
    if is_bearer(name) {
        return Err(KeyOrderError::OfToken { name: name.clone() });
    }
    match built_in(name) {
        None => Ok(peers::with_implied(name, given)),
        Some(_) if expires => Err(KeyOrderError::EndOfBuiltIn(name.clone())),
        // A built-in peer whose key was revoked gets a new one; its rights are nobody's to choose.
        Some(Some(rights)) if given.is_empty() && is_revoked(store, name)? => Ok(rights),
        Some(_) => Err(KeyOrderError::BuiltIn(name.clone())),
    }
}

/// Refuses what must not get a new key, or none with this end.
pub(crate) fn check_rotation(name: &PeerName, expires: bool) -> Result<(), KeyOrderError> {
    match name {
        name if is_bearer(name) => Err(KeyOrderError::OfToken { name: name.clone() }),
        name if expires && is_built_in(name) => Err(KeyOrderError::EndOfBuiltIn(name.clone())),
        _ => Ok(()),
    }
}

fn is_revoked(store: &KeyStore, name: &PeerName) -> Result<bool, KeyError> {
    Ok(store.registry()?.peer(name).is_some_and(|peer| peer.state == KeyState::Revoked))
}

/// Revokes the key of a peer; that of a token's bearer with the token, or the list of tokens would say that it can be used.
/// The answer is why that list does not say so, if it cannot be written.
pub(crate) fn revoke(store: &KeyStore, name: &PeerName) -> Result<Option<KeyError>, KeyOrderError> {
    let token = token_file::token_of(name).and_then(|token| token.parse().ok());
    match token.map(|token| TokenStore::new(store.clone()).revoke(&token)) {
        Some(Ok(unsaid)) => Ok(unsaid),
        None | Some(Err(TokenError::Unknown(_))) => Ok(store.revoke(name).map(|()| None)?),
        Some(Err(error)) => Err(error.into()),
    }
}

/// One filter, and where it stands.
pub(crate) struct PlacedRule {
    pub(crate) right: Right,
    pub(crate) decision: &'static str,
    pub(crate) filter: String,
    pub(crate) line: Option<usize>,
}

/// Every filter of a peer.
pub(crate) fn placed_rules(registry: &Registry, name: &PeerName, peer: &Peer) -> Vec<PlacedRule> {
    let mut placed = Vec::new();
    for right in RIGHTS {
        let rules = peer.permissions.rules(right);
        for (decision, filters) in [("allow", &rules.allow), ("deny", &rules.deny)] {
            placed.extend(filters.iter().map(|filter| {
                let line =
                    registry.source().and_then(|source| source.line_of_rule(name, right, decision, filter));
                PlacedRule { right, decision, filter: filter.to_string(), line }
            }));
        }
    }
    placed
}

/// What is known of a peer, for programs. Times are Unix milliseconds, `null` where there is none or it is not known.
pub(crate) fn facts(name: &PeerName, peer: &Peer, last_use: &LastUse, now_ms: u64) -> Value {
    let old_keys = peer.old_keys.iter().map(|old| {
        json!({
            "public_key": old.key, "fingerprint": old.key.fingerprint(), "until_ms": old.until_ms,
            "last_use_ms": last_use.of_key(&old.key),
        })
    });
    json!({
        "name": name, "state": state(peer, now_ms), "public_key": peer.key, "fingerprint": peer.key.fingerprint(),
        "issued_ms": peer.issued_ms, "expires_ms": peer.expires_ms,
        "last_use_ms": last_use.of_peer(name), "key_last_use_ms": last_use.of_key(&peer.key),
        "old_keys": old_keys.collect::<Value>(), "permissions": &*peer.permissions,
    })
}

/// The same of one peer, with each of its filters and where that stands.
pub(crate) fn facts_with_rules(
    store: &KeyStore,
    registry: &Registry,
    name: &PeerName,
    peer: &Peer,
    last_use: &LastUse,
    now_ms: u64,
) -> Value {
    let path = store.registry_path();
    let mut facts = facts(name, peer, last_use, now_ms);
    let places = placed_rules(registry, name, peer).into_iter().map(|rule| {
        json!({
            "right": rule.right.as_str(), "decision": rule.decision, "filter": rule.filter,
            "file": path, "line": rule.line,
        })
    });
    facts["rules"] = places.collect();
    facts
}

/// Whether its key can be used, in one word.
pub(crate) fn state(peer: &Peer, now_ms: u64) -> &'static str {
    match peer.state {
        KeyState::Revoked => "revoked",
        KeyState::Active if peer.has_expired(now_ms) => "expired",
        KeyState::Active => "active",
    }
}
