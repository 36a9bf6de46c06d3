//! The built-in supervision tree: one literal list in start order. Stop is the reverse.

mod broker;
mod broker_events;
mod presence;
mod program;

use interlock_actors::host::Host;
use interlock_bus::PeerName;

pub use self::{
    broker::{BrokerActor, BrokerSeat, NoteRefusal},
    presence::{Presence, Tie},
    program::{ProgramError, program},
};
use crate::{
    config::ShutdownSection,
    supervisor::{ChildKind, ChildSpecification, Clocks},
};

/// The bodies of the built-in children. Each builds its incarnations afresh.
#[expect(missing_debug_implementations, reason = "hosts are opaque")]
pub struct BuiltIn {
    /// The broker.
    pub broker: Box<dyn Host>,
    /// Answers for the runtime on the bus.
    pub runtime: Box<dyn Host>,
    /// The encrypted store.
    pub store: Box<dyn Host>,
    /// Writes log records into the store.
    pub log_consumer: Box<dyn Host>,
    /// Publishes log records.
    pub log_transport: Box<dyn Host>,
    /// Takes what is published durably and delivers it.
    pub outbox: Box<dyn Host>,
    /// The model service.
    pub model: Box<dyn Host>,
    /// Where the model service runs.
    pub model_kind: ChildKind,
    /// The conversation engine.
    pub conversation: Box<dyn Host>,
    /// The gateway.
    pub gateway: Box<dyn Host>,
}

/// The built-in children, in start order. The gateway opens its port last; people's own children come after it.
///
/// What a child *needs* is declared here and checked at start; beside that each waits in line for those before it to be
/// ready, or to have failed once. A model service that does not come up delays nobody: turns then end with an error that
/// says so, which is why the conversation engine does not need it.
///
/// What works on a turn may take the whole drain phase to end it.
pub fn built_in(hosts: BuiltIn, shutdown: &ShutdownSection) -> Vec<ChildSpecification> {
    let BuiltIn {
        broker,
        runtime,
        store,
        log_consumer,
        log_transport,
        outbox,
        model,
        model_kind,
        conversation,
        gateway,
    } = hosts;
    let draining = Clocks { stop_grace: shutdown.drain, ..Clocks::ACTOR };
    vec![
        child("broker", broker, &[]).escalates(),
        child("runtime", runtime, &["broker"]),
        child("store", store, &[]).escalates(),
        child("log-consumer", log_consumer, &["broker", "store"]),
        child("log-transport", log_transport, &["broker"]),
        // It needs the key, which the store makes at the first start.
        child("outbox", outbox, &["broker", "store"]).clocks(draining),
        child("model", model, &["broker"]).kind(model_kind).clocks(draining),
        child("conversation", conversation, &["broker", "store"]).clocks(draining),
        child("gateway", gateway, &["broker"]).clocks(draining),
    ]
}

fn child(name: &'static str, host: Box<dyn Host>, needs: &[&'static str]) -> ChildSpecification {
    ChildSpecification::boxed(built_in_name(name), host).depends_on(needs.iter().copied().map(built_in_name))
}

fn built_in_name(name: &'static str) -> PeerName {
    name.parse().expect("the names in this file are legal")
}

#[cfg(test)]
mod tests {
    use interlock_actors::host::{Busy, Load, Reports, Stop};

    use super::*;
    use crate::supervisor::{Children, Strategy, Supervisor};

    struct Nothing;

    impl Host for Nothing {
        fn start(&mut self, _: u64, reports: Reports) {
            reports.send(interlock_actors::host::HostReport::Exited(interlock_actors::host::Exit::Normal));
        }
        fn stop(&mut self, _: Stop) {}
        fn kill(&mut self, _: bool) {}
        fn abandon(&mut self, _: bool) {}
        fn ask(&mut self, _: u64) {}
        fn busy(&self) -> Option<Busy> {
            None
        }
        fn load(&self) -> Load {
            Load::default()
        }
    }

    #[test]
    fn the_built_in_list_is_a_tree_whose_order_agrees_with_its_dependencies() {
        let nothing = || Box::new(Nothing);
        let hosts = BuiltIn {
            broker: nothing(),
            runtime: nothing(),
            store: nothing(),
            log_consumer: nothing(),
            log_transport: nothing(),
            outbox: nothing(),
            model: nothing(),
            model_kind: ChildKind::Process,
            conversation: nothing(),
            gateway: nothing(),
        };
        let children = built_in(hosts, &crate::config::Config::defaults().shutdown);
        let names: Vec<_> = children.iter().map(|child| child.name.to_string()).collect();
        assert_eq!(
            names,
            [
                "broker",
                "runtime",
                "store",
                "log-consumer",
                "log-transport",
                "outbox",
                "model",
                "conversation",
                "gateway"
            ]
        );
        // The broker ends at once, and a first start that fails is not retried: that it is started shows that
        // the list was accepted.
        let supervision =
            Supervisor::new("root").start(Strategy::OneForOne, Children::Lasting(children)).unwrap();
        assert_eq!(supervision.join().to_string(), "`broker` did not start: ended before it was ready");
    }
}
