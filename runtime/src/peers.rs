//! The peers that the runtime enrols, and what each may do on the bus.

use interlock_actors::{
    gateway::{Scope, tokens::Grants},
    host::dead_letter,
    topics,
};
use interlock_bus::{
    KeyStore, PeerName, Permissions, Rules, TopicName,
    durable::words,
    keys::{KeyError, Registry},
};

use crate::{admin, builder::Extra, component, config::Config, site::Site};

/// The peer that the runtime itself is.
pub(crate) const RUNTIME: &str = "runtime";

/// The peer that people are who use the tools, or the gateway with its own token.
pub(crate) const OPERATOR: &str = "operator";

/// What each built-in peer may do. Written to the registry at the first start. Edits there stay; what a
/// later version adds here or takes away is added or taken away there.
pub(crate) fn permissions() -> [(&'static str, Permissions); 8] {
    own_permissions().map(|(name, permissions)| (name, with_implied(&name_of(name), &permissions)))
}

fn own_permissions() -> [(&'static str, Permissions); 8] {
    let rights = |publish: &[&str], subscribe: &[&str], serve: &[&str], request: &[&str]| {
        Permissions::from_lists(publish, subscribe, serve, request)
            .expect("the filters of this list are valid; a test reads it")
    };
    let (logs, consumer) = (topics::LOGS_ALL, topics::LOG_CONSUMER_ALL);
    [
        (
            RUNTIME,
            rights(
                &[],
                &["$peers/#", "$sys/#"],
                &[admin::ALL],
                &["$sys/broker/#", component::log_levels_topic().as_str()],
            ),
        ),
        ("log-consumer", rights(&[consumer], &[logs], &[consumer], &[])),
        ("log-transport", rights(&[logs], &[consumer], &[], &[consumer])),
        ("outbox", rights(&[], &[], &["outbox/#"], &["inbox/#"])),
        // In a process of its own it brings its own log transport, which speaks of itself as well.
        (
            "model",
            rights(&["logs/model/#", "logs/log-transport/#"], &[consumer], &["modelservice/#"], &[consumer]),
        ),
        (
            "conversation",
            rights(
                &["conversation/turn/#"],
                &[topics::USER_INPUT],
                &[topics::USER_INPUT, topics::USER_CHAT, topics::CANCEL, topics::DELETE],
                &["modelservice/#"],
            ),
        ),
        (
            "gateway",
            rights(
                &[],
                &[topics::TURN_ALL],
                &[],
                &[
                    topics::USER_INPUT,
                    topics::CANCEL,
                    topics::DELETE,
                    topics::USER_CHAT,
                    topics::MODELS,
                    topics::MODEL_STATISTICS,
                    topics::EMBEDDINGS,
                    admin::status_topic().as_str(),
                    admin::ps_topic().as_str(),
                    "$sys/broker/#",
                ],
            ),
        ),
        (OPERATOR, rights(&["#"], &["#", "$sys/#", "$peers/#", "$dlq/#"], &["#"], &["#", "$sys/#"])),
    ]
}

/// What there is to say of consumers of the outbox whom nobody knows: no peer, no component, no program.
pub(crate) fn unknown_consumers(config: &Config, registry: &Registry) -> Vec<String> {
    let is_program = |name: &PeerName| config.programs.iter().any(|program| program.name == *name);
    let is_known = |name: &PeerName| registry.peer(name).is_some() || is_program(name);
    let unknown = config.outbox.unknown_consumers(is_known);
    let text = |name| {
        format!(
            "`outbox.topics` names the consumer `{name}`, and no peer has this name: messages to it wait; `interlock keys issue {name}` enrols it"
        )
    };
    unknown.into_iter().map(text).collect()
}

/// Enrols every peer of the tree that is not enrolled yet. Rights of programs follow the configuration.
pub(crate) fn enrol(site: &Site, extras: &[Extra]) -> Result<(), KeyError> {
    let keys: &KeyStore = &site.keys;
    for (name, permissions) in permissions() {
        keys.ensure(&name_of(name), &permissions, &site.endpoints)?;
        keys.grant_built_in(&name_of(name), &permissions)?;
    }
    for extra in extras {
        let permissions = with_implied(&extra.name, &extra.permissions);
        keys.ensure(&extra.name, &permissions, &site.endpoints)?;
        keys.set_permissions(&extra.name, &permissions)?;
    }
    for program in &site.config().programs {
        let permissions = with_implied(&program.name, &program.permissions());
        keys.ensure(&program.name, &permissions, &site.endpoints)?;
        keys.set_permissions(&program.name, &permissions)?;
    }
    Ok(())
}

/// These rights, and what goes with them: to set messages aside, and to hear which of its own were; to take what the outbox
/// has for it, and to say that it does. A peer that may do nothing stays one: it is refused at the handshake.
pub(crate) fn with_implied(name: &PeerName, permissions: &Permissions) -> Permissions {
    let mut permissions = permissions.clone();
    if !permissions.is_empty() {
        permissions.publish.allow.push(dead_letter::set_aside_by(name));
        permissions.subscribe.allow.push(dead_letter::sent_by(name));
        permissions.serve.allow.push(words::inbox_of(name));
        permissions.request.allow.push(words::filter(words::CONSUME));
    }
    permissions
}

/// What the peer of a token may do: what it was given, and what the other scopes need on the bus.
pub(crate) fn of_bearer(name: &PeerName, grants: &Grants) -> Permissions {
    let mut permissions = Permissions {
        publish: Rules::allowing(grants.publish.clone()),
        subscribe: Rules::allowing(grants.subscribe.clone()),
        request: Rules::allowing(grants.request.clone()),
        ..Permissions::default()
    };
    let mut allow = |subscribe: &[&str], request: &[&str]| {
        permissions.subscribe.allow.extend(subscribe.iter().map(|text| words::filter(text)));
        permissions.request.allow.extend(request.iter().map(|text| words::filter(text)));
    };
    if grants.scopes.contains(&Scope::Inspect) {
        allow(&["$sys/#", "$peers/#"], &["$sys/broker/#"]);
        allow(
            &[],
            &[admin::status_topic(), admin::ps_topic(), admin::plan_topic()]
                .each_ref()
                .map(TopicName::as_str),
        );
    }
    if grants.scopes.contains(&Scope::Admin) {
        allow(&[], &[admin::ALL, "outbox/#"]);
    }
    with_implied(name, &permissions)
}

/// A name of the list above.
pub(crate) fn name_of(name: &str) -> PeerName {
    name.parse().expect("the names of the built-in peers are valid; a test reads them")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema;

    #[test]
    fn who_may_do_something_may_set_aside_and_consume_in_its_own_name_read_what_it_sent_and_nothing_else() {
        let [own, other] = ["mine", "theirs"].map(name_of);
        let permissions = with_implied(&own, &Permissions::from_lists(&["a"], &[], &[], &[]).unwrap());
        for (from, to, publish, subscribe) in [
            (&own, &other, true, false),
            (&other, &own, false, true),
            (&other, &other, false, false),
            (&own, &own, true, true),
        ] {
            let topic = dead_letter::topic(from, to);
            assert_eq!(permissions.publish.permit(&topic), publish, "{topic}");
            assert_eq!(permissions.subscribe.permit(&topic), subscribe, "{topic}");
        }
        for (topic, serve, request) in [
            ("inbox/mine/orders/new", true, false),
            ("inbox/theirs/orders/new", false, false),
            (words::CONSUME, false, true),
            ("outbox/put/orders/new", false, false),
        ] {
            let topic = topic.parse().unwrap();
            assert_eq!(permissions.serve.permit(&topic), serve, "{topic}");
            assert_eq!(permissions.request.permit(&topic), request, "{topic}");
        }
        assert!(with_implied(&own, &Permissions::default()).is_empty());
    }

    #[test]
    fn every_built_in_name_is_taken_and_every_filter_is_valid() {
        for (name, permissions) in permissions() {
            assert!(schema::NAMES_TAKEN.contains(&name), "{name}");
            assert!(!permissions.is_empty());
        }
    }
}
