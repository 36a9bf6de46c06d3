//! The runtime for people with actors of their own.
//!
//! ```no_run
//! use interlock::{Actor, Context, Failure, Input, Payload, Permissions, Runtime};
//!
//! #[derive(Default)]
//! struct Greeter;
//!
//! impl Actor for Greeter {
//!     async fn started(&mut self, context: &Context) -> Result<(), Failure> {
//!         Ok(context.serve(&"greeter/hello/v1".parse()?).await?)
//!     }
//!
//!     async fn handle(&mut self, input: Input, _context: &Context) -> Result<(), Failure> {
//!         if let Input::Request(request) = input {
//!             request.end(Payload::text("hello")).await?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     let permissions = Permissions::from_lists(&[], &[], &["greeter/#"], &[]).expect("valid filters");
//!     Runtime::builder().actor("greeter", permissions, Greeter::default).run()
//! }
//! ```

use std::{fmt, process::ExitCode, sync::Arc};

use interlock_actors::{
    actor::{Actor, Failure},
    host::{ActorHost, Bus, Mailroom},
};
use interlock_bus::{PeerName, Permissions};

use crate::{
    cli,
    config::schema,
    exit::Exit,
    supervisor::{AutoShutdown, Strategy},
};

/// The runtime; begin with [`Runtime::builder`].
#[derive(Debug)]
pub struct Runtime;

impl Runtime {
    /// A runtime with the five components, to which actors are added.
    pub fn builder() -> Builder {
        Builder { extras: Extras::default() }
    }
}

/// Builds a runtime. [`Builder::run`] is the `interlock` program with more children.
#[derive(Debug)]
pub struct Builder {
    extras: Extras,
}

type MakeHost = dyn FnOnce(&PeerName, Bus, &Arc<Mailroom>) -> ActorHost + Send;

/// One actor of the user.
pub(crate) struct Extra {
    pub(crate) name: PeerName,
    pub(crate) permissions: Permissions,
    pub(crate) host: Box<MakeHost>,
    /// The group it belongs to, by its place.
    pub(crate) group: Option<usize>,
    pub(crate) role: Role,
}

/// What an actor is to its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// If it is given up, the rest goes on.
    Helper,
    /// If it is given up, the group is restarted.
    Essential,
    /// When it ends by itself, that counts towards the end of the group.
    Significant,
}

/// A group of actors under a supervisor of their own.
pub(crate) struct GroupRules {
    pub(crate) name: PeerName,
    pub(crate) strategy: Strategy,
    /// By which rule its significant actors end it; `None`: it lasts.
    pub(crate) until: Option<AutoShutdown>,
}

impl fmt::Debug for GroupRules {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("GroupRules").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Extra {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Extra").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The actors of the user, or the mistake in them.
#[derive(Debug, Default)]
pub struct Extras {
    pub(crate) actors: Vec<Extra>,
    pub(crate) groups: Vec<GroupRules>,
    pub(crate) mistake: Option<String>,
}

impl Builder {
    /// Adds an actor: its name in the tree and on the bus, what it may do there, and how one is made. It is made afresh
    /// for each incarnation. Children are started in the order in which they were added, after the conversation engine
    /// and before the gateway.
    pub fn actor<A: Actor>(
        self,
        name: &str,
        permissions: Permissions,
        factory: impl Fn() -> A + Send + Sync + 'static,
    ) -> Self {
        self.fallible_actor(name, permissions, move || Ok(factory()))
    }

    /// Adds an actor whose making can fail; that counts as a failed start.
    pub fn fallible_actor<A: Actor>(
        mut self,
        name: &str,
        permissions: Permissions,
        factory: impl Fn() -> Result<A, Failure> + Send + Sync + 'static,
    ) -> Self {
        self.extras.add(name, permissions, factory, None, Role::Helper);
        self
    }

    /// Adds a group: actors under a supervisor of their own, which restarts them together as `strategy` says. Give it
    /// its actors in `fill`.
    ///
    /// ```no_run
    /// # use interlock::{Actor, Context, Failure, Input, Permissions, Runtime, supervisor::Strategy};
    /// # #[derive(Default)] struct Ears;
    /// # impl Actor for Ears {
    /// #     async fn handle(&mut self, _: Input, _: &Context) -> Result<(), Failure> { Ok(()) }
    /// # }
    /// # #[derive(Default)] struct Mouth;
    /// # impl Actor for Mouth {
    /// #     async fn handle(&mut self, _: Input, _: &Context) -> Result<(), Failure> { Ok(()) }
    /// # }
    /// # fn rights() -> Permissions { Permissions::default() }
    /// // The two share a device: when one fails, both begin anew.
    /// Runtime::builder().group("speech", Strategy::OneForAll, |group| {
    ///     group.actor("ears", rights(), Ears::default).essential_actor("mouth", rights(), Mouth::default)
    /// });
    /// ```
    pub fn group(mut self, name: &str, strategy: Strategy, fill: impl FnOnce(Group) -> Group) -> Self {
        if let Some(place) = self.extras.begin_group(name, strategy, None) {
            self.extras = fill(Group { extras: self.extras, place }).extras;
        }
        self
    }

    /// Adds a group that has something to get done: it ends, in order, when its significant actors have ended by
    /// themselves, as `until` says. It is not started again then, unless by `interlock start`.
    ///
    /// ```no_run
    /// # use interlock::{Actor, Context, Failure, Input, Permissions, Runtime, supervisor::{AutoShutdown, Strategy}};
    /// # #[derive(Default)] struct Reader;
    /// # impl Actor for Reader {
    /// #     async fn handle(&mut self, _: Input, _: &Context) -> Result<(), Failure> { Ok(()) }
    /// # }
    /// # #[derive(Default)] struct Writer;
    /// # impl Actor for Writer {
    /// #     async fn handle(&mut self, _: Input, _: &Context) -> Result<(), Failure> { Ok(()) }
    /// # }
    /// # fn rights() -> Permissions { Permissions::default() }
    /// // When the writer has stopped itself, with `Context::stop`, the import is done and the reader is stopped too.
    /// Runtime::builder().group_until("import", Strategy::OneForAll, AutoShutdown::AllSignificant, |group| {
    ///     group.actor("reader", rights(), Reader::default).significant_actor("writer", rights(), Writer::default)
    /// });
    /// ```
    pub fn group_until(
        mut self,
        name: &str,
        strategy: Strategy,
        until: AutoShutdown,
        fill: impl FnOnce(FiniteGroup) -> FiniteGroup,
    ) -> Self {
        if let Some(place) = self.extras.begin_group(name, strategy, Some(until)) {
            self.extras = fill(FiniteGroup(Group { extras: self.extras, place })).0.extras;
        }
        self
    }

    /// Runs the command line of `interlock`: without arguments, the runtime, until it is asked to stop. To be called in
    /// `main`, before anything else, and to end it: this binary also is what runs supervised processes.
    pub fn run(self) -> ExitCode {
        cli::main(self.extras)
    }
}

/// The actors of a group; see [`Builder::group`].
#[derive(Debug)]
pub struct Group {
    extras: Extras,
    place: usize,
}

impl Group {
    /// Adds an actor. If it is given up, the group goes on without it.
    pub fn actor<A: Actor>(
        mut self,
        name: &str,
        permissions: Permissions,
        factory: impl Fn() -> A + Send + Sync + 'static,
    ) -> Self {
        self.extras.add(name, permissions, move || Ok(factory()), Some(self.place), Role::Helper);
        self
    }

    /// Adds an actor without which the group is nothing: if it does not start, or is given up, the group is restarted as
    /// a whole, and in the end given up itself.
    pub fn essential_actor<A: Actor>(
        mut self,
        name: &str,
        permissions: Permissions,
        factory: impl Fn() -> A + Send + Sync + 'static,
    ) -> Self {
        self.extras.add(name, permissions, move || Ok(factory()), Some(self.place), Role::Essential);
        self
    }
}

/// The actors of a group that ends; see [`Builder::group_until`]. Only here actors are significant.
#[derive(Debug)]
pub struct FiniteGroup(Group);

impl FiniteGroup {
    /// See [`Group::actor`].
    pub fn actor<A: Actor>(
        self,
        name: &str,
        permissions: Permissions,
        factory: impl Fn() -> A + Send + Sync + 'static,
    ) -> Self {
        Self(self.0.actor(name, permissions, factory))
    }

    /// See [`Group::essential_actor`].
    pub fn essential_actor<A: Actor>(
        self,
        name: &str,
        permissions: Permissions,
        factory: impl Fn() -> A + Send + Sync + 'static,
    ) -> Self {
        Self(self.0.essential_actor(name, permissions, factory))
    }

    /// Adds an actor that stops itself when its work is done ([`Context::stop`](crate::Context::stop)), which counts
    /// towards the end of the group. If it fails it is restarted.
    pub fn significant_actor<A: Actor>(
        mut self,
        name: &str,
        permissions: Permissions,
        factory: impl Fn() -> A + Send + Sync + 'static,
    ) -> Self {
        let Group { extras, place } = &mut self.0;
        extras.add(name, permissions, move || Ok(factory()), Some(*place), Role::Significant);
        self
    }
}

impl Extras {
    /// The place of a new group; `None` if that is a mistake.
    fn begin_group(&mut self, name: &str, strategy: Strategy, until: Option<AutoShutdown>) -> Option<usize> {
        match self.check(name) {
            Ok(name) => {
                self.groups.push(GroupRules { name, strategy, until });
                Some(self.groups.len() - 1)
            }
            Err(mistake) => {
                self.mistake.get_or_insert(mistake);
                None
            }
        }
    }

    fn add<A: Actor>(
        &mut self,
        name: &str,
        permissions: Permissions,
        factory: impl Fn() -> Result<A, Failure> + Send + Sync + 'static,
        group: Option<usize>,
        role: Role,
    ) {
        match self.check(name) {
            Ok(name) => {
                let host = Box::new(|name: &PeerName, bus: Bus, mailroom: &Arc<Mailroom>| {
                    ActorHost::new(name.clone(), bus, mailroom, factory)
                });
                self.actors.push(Extra { name, permissions, host, group, role });
            }
            Err(mistake) => {
                self.mistake.get_or_insert(mistake);
            }
        }
    }

    fn check(&self, name: &str) -> Result<PeerName, String> {
        let peer: PeerName =
            name.parse().map_err(|error: interlock_bus::peer::PeerNameError| error.to_string())?;
        if schema::NAMES_TAKEN.contains(&name) {
            return Err(format!("actor name `{name}` is that of a built-in component; choose another"));
        }
        let mut taken =
            self.actors.iter().map(|extra| &extra.name).chain(self.groups.iter().map(|group| &group.name));
        if taken.any(|taken| *taken == peer) {
            return Err(format!("two actors or groups are named `{name}`; give each a name of its own"));
        }
        Ok(peer)
    }

    /// The actors, if their list makes sense together with the configured programs.
    /// The names that its actors and groups have below the root.
    pub(crate) fn names_in_the_tree(&self) -> Vec<String> {
        let actors = self.actors.iter().filter(|extra| extra.group.is_none()).map(|extra| &extra.name);
        actors.chain(self.groups.iter().map(|group| &group.name)).map(ToString::to_string).collect()
    }

    pub(crate) fn checked<'a>(
        mut self,
        programs: impl Iterator<Item = &'a PeerName>,
    ) -> Result<Self, cli::CliError> {
        let clash = programs.into_iter().find(|name| {
            let is_group = self.groups.iter().any(|group| group.name == **name);
            is_group || self.actors.iter().any(|extra| extra.name == **name)
        });
        let mistake = self.mistake.take().or_else(|| {
            clash.map(|name| format!("`program.name` is `{name}`, the name of an actor or a group"))
        });
        match mistake {
            None => Ok(self),
            Some(mistake) => Err(cli::CliError::new(Exit::Misuse, mistake)),
        }
    }
}

#[cfg(test)]
mod tests {
    use interlock_actors::{actor::Input, context::Context};

    use super::*;

    struct Idle;

    impl Actor for Idle {
        async fn handle(&mut self, _input: Input, _context: &Context) -> Result<(), Failure> {
            Ok(())
        }
    }

    #[test]
    fn a_bad_or_taken_name_is_refused_before_anything_starts() {
        let with = |names: &[&str]| {
            let builder = names.iter().fold(Runtime::builder(), |builder, name| {
                builder.actor(name, Permissions::default(), || Idle)
            });
            builder.extras.checked(["taken".parse().unwrap()].iter()).err().map(|error| error.to_string())
        };
        assert_eq!(with(&["one", "two"]), None);
        assert!(with(&["a/b"]).unwrap().contains("`a/b`"));
        assert!(with(&["gateway"]).unwrap().contains("built-in"));
        assert!(with(&["one", "one"]).unwrap().contains("two actors"));
        let grouped = Runtime::builder().group("one", Strategy::OneForAll, |group| {
            group.actor("two", Permissions::default(), || Idle).actor("one", Permissions::default(), || Idle)
        });
        assert!(grouped.extras.mistake.unwrap().contains("two actors or groups are named `one`"));
        assert!(with(&["taken"]).unwrap().contains("program.name"));
    }
}
