//! Child specifications: what a supervisor is given, and the check of a whole list of them.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    time::Duration,
};

use interlock_actors::host::Host;
use interlock_bus::PeerName;

use super::{
    SupervisorHandle,
    machine::{Rules, ShutdownPhases},
    nested::Nested,
    strategy::{AutoShutdown, No, Restart, Strategy, WhenSpent},
};

/// One child: its body, and the rules for it.
///
/// `S` says whether it may be significant: see [`Restart`].
#[derive(Debug)]
pub struct ChildSpecification<S = No> {
    /// Its name in the tree and on the bus.
    pub name: PeerName,
    /// When it is started again.
    pub restart: Restart<S>,
    /// What happens when it has spent its budget.
    pub when_spent: WhenSpent,
    /// What must be there before it is started.
    pub dependencies: Dependencies,
    /// How long it may take for what.
    pub clocks: Clocks,
    /// What kind of body it has.
    pub kind: ChildKind,
    /// Its body, which builds each incarnation afresh.
    pub host: Body,
    /// The supervisor that the body is, if it is one.
    pub(crate) below: Option<SupervisorHandle>,
}

/// A host, boxed: two kinds exist, actors and programs.
pub struct Body(pub Box<dyn Host>);

impl std::fmt::Debug for Body {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Body")
    }
}

/// What kind of body a child has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChildKind {
    /// A thread of this process.
    #[default]
    Actor,
    /// A program, in a process group of its own.
    Process,
    /// A supervisor with children of its own.
    Supervisor,
}

impl ChildKind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Actor => "actor",
            Self::Process => "process",
            Self::Supervisor => "supervisor",
        }
    }
}

/// What must be there before a child is started. It is stopped before any of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependencies {
    /// Every start of it waits until these are ready. They stand before it in the list.
    pub needs: Vec<PeerName>,
    /// What is waited for instead of readiness, of those among `needs` for whom it is something else. All of it counts.
    pub until: Vec<(PeerName, Condition)>,
    /// Whether its first start also waits until every child before it in the list is ready, or has failed once; so one
    /// that does not come up never holds up those that did not say that they need it.
    pub in_line: bool,
}

impl Default for Dependencies {
    /// In line, without needs.
    fn default() -> Self {
        Self { needs: Vec::new(), until: Vec::new(), in_line: true }
    }
}

/// What of a child is waited for. Waiting survives its restarts: what counts is its present incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It has been started.
    Started,
    /// It is ready.
    Ready,
    /// It is ready, and has answered a question whether it lives since then.
    Healthy,
    /// It has ended by itself, and well.
    Completed,
    /// It has written a line that matches this regular expression.
    Line(String),
}

impl Condition {
    /// For people: what is waited for of the child named `name`.
    pub fn words(&self, name: &str) -> String {
        match self {
            Self::Started => format!("`{name}` to be started"),
            Self::Ready => format!("`{name}` to be ready"),
            Self::Healthy => format!("`{name}` to be ready and to answer"),
            Self::Completed => format!("`{name}` to end by itself, and well"),
            Self::Line(pattern) => format!("`{name}` to write a line that matches `{pattern}`"),
        }
    }
}

impl fmt::Display for Condition {
    /// As in the setting `program.needs`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => formatter.write_str("started"),
            Self::Ready => formatter.write_str("ready"),
            Self::Healthy => formatter.write_str("healthy"),
            Self::Completed => formatter.write_str("completed"),
            Self::Line(pattern) => write!(formatter, "log:{pattern}"),
        }
    }
}

/// How much longer than the phases of its own stop a supervisor may take to stop.
const SUPERVISOR_SLACK: Duration = Duration::from_secs(5);

/// How long a child may take for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// From start, or from its last progress, to ready. Then it is killed and counts as failed.
    pub start_deadline: Duration,
    /// From being asked to stop to its end. Then it is killed.
    pub stop_grace: Duration,
    /// How long one input may take without progress. Then it counts as stuck.
    pub stuck_after: Duration,
    /// How often it is asked whether it lives.
    pub ask_every: Duration,
    /// How long the answer may take.
    pub ask_timeout: Duration,
    /// Questions in a row without an answer after which it counts as dead.
    pub asks_missed_max: u32,
}

impl Clocks {
    /// The clocks of an actor.
    pub const ACTOR: Self = Self {
        start_deadline: Duration::from_secs(30),
        stop_grace: Duration::from_secs(5),
        stuck_after: Duration::from_secs(60),
        ask_every: Duration::from_secs(5),
        ask_timeout: Duration::from_secs(1),
        asks_missed_max: 3,
    };

    /// The clocks of a program.
    pub const PROCESS: Self = Self { stop_grace: Duration::from_secs(10), ..Self::ACTOR };

    /// The clocks of a supervisor with the usual phases; to stop it has a little longer than they last. Each child that
    /// gets ready moves its start deadline.
    pub const SUPERVISOR: Self =
        Self { start_deadline: Duration::from_secs(40), stop_grace: Duration::from_secs(125), ..Self::ACTOR };
}

impl<S> ChildSpecification<S> {
    /// A permanent child with the usual rules, on an actor.
    pub fn actor(name: PeerName, host: impl Host + 'static) -> Self {
        Self::boxed(name, Box::new(host))
    }

    /// [`ChildSpecification::actor`] for a host that is boxed already.
    pub fn boxed(name: PeerName, host: Box<dyn Host>) -> Self {
        Self {
            name,
            restart: Restart::Permanent,
            when_spent: WhenSpent::LeaveFailed,
            dependencies: Dependencies::default(),
            clocks: Clocks::ACTOR,
            kind: ChildKind::Actor,
            host: Body(host),
            below: None,
        }
    }

    /// A permanent child with the usual rules, on a program.
    pub fn process(name: PeerName, host: impl Host + 'static) -> Self {
        Self { clocks: Clocks::PROCESS, kind: ChildKind::Process, ..Self::actor(name, host) }
    }

    /// A permanent child that is a supervisor. What its children need besides each other, it needs itself.
    ///
    /// | inside | here |
    /// |---|---|
    /// | a child that escalates spends its budget, or does not start | it fails, and is restarted with all its children |
    /// | another child spends its budget | it is degraded |
    /// | its significant children have ended | it ends normally |
    ///
    /// Each of its stops has these phases; a shutdown of the one above that has less time is over earlier.
    ///
    /// # Errors
    /// The list of children contradicts itself.
    pub fn supervisor(
        name: PeerName,
        strategy: Strategy,
        children: Children,
        phases: ShutdownPhases,
    ) -> Result<Self, TreeError> {
        let specification = SupervisorSpecification { name: name.to_string(), strategy, children };
        let nested = Nested::new(specification, phases)?;
        let below = Some(nested.handle());
        let clocks = Clocks { stop_grace: phases.forced + SUPERVISOR_SLACK, ..Clocks::SUPERVISOR };
        let kind = ChildKind::Supervisor;
        Ok(Self { clocks, kind, below, ..Self::actor(name, nested) })
    }

    /// Without it nothing works: its spent budget ends the supervisor.
    pub fn escalates(self) -> Self {
        Self { when_spent: WhenSpent::Escalate, ..self }
    }

    /// Starts only while `needs` are ready.
    pub fn depends_on(mut self, needs: impl IntoIterator<Item = PeerName>) -> Self {
        self.dependencies.needs.extend(needs);
        self
    }

    /// Starts only when `condition` is true of `need`.
    pub fn depends_until(mut self, need: PeerName, condition: Condition) -> Self {
        if !self.dependencies.needs.contains(&need) {
            self.dependencies.needs.push(need.clone());
        }
        self.dependencies.until.push((need, condition));
        self
    }

    /// Waits for what it needs and for nothing else; so nothing before it in the list delays its first start.
    pub fn out_of_line(mut self) -> Self {
        self.dependencies.in_line = false;
        self
    }

    /// Another rule for restarting.
    pub fn restarts(self, restart: Restart<S>) -> Self {
        Self { restart, ..self }
    }

    /// Another kind of body.
    pub fn kind(self, kind: ChildKind) -> Self {
        Self { kind, ..self }
    }

    /// Other clocks.
    pub fn clocks(self, clocks: Clocks) -> Self {
        Self { clocks, ..self }
    }
}

/// A supervisor and its children, in start order.
#[derive(Debug)]
pub struct SupervisorSpecification {
    /// Its name in reports.
    pub name: String,
    /// Which siblings follow a failing child.
    pub strategy: Strategy,
    /// Its children.
    pub children: Children,
}

/// Children, and whether some of them end the supervisor by ending.
#[derive(Debug)]
pub enum Children {
    /// The supervisor goes on until it is asked to stop or fails; no child is significant.
    Lasting(Vec<ChildSpecification>),
    /// The end of significant children ends it.
    Finite {
        /// By which rule.
        until: AutoShutdown,
        /// The children.
        children: Vec<ChildSpecification<bool>>,
    },
}

/// Why a list of children is not a tree that can be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// Two children with one name.
    #[error("two children are named `{name}`; give each a name of its own")]
    Duplicate {
        /// The name.
        name: PeerName,
    },
    /// A dependency that is not in the list.
    #[error("`{child}` needs `{need}`, which is not a child of this tree; the children are {known}")]
    Unknown {
        /// Who needs it.
        child: PeerName,
        /// What it needs.
        need: PeerName,
        /// What there is.
        known: String,
    },
    /// Children that wait for each other.
    #[error("the children wait for each other in a circle: {path}; remove one of these dependencies")]
    Cycle {
        /// The circle: `a -> b -> a`.
        path: String,
    },
    /// A dependency that would be started later.
    #[error(
        "`{child}` needs `{need}`, which stands after it; the list is the start order, so move `{need}` before `{child}`"
    )]
    Order {
        /// Who needs it.
        child: PeerName,
        /// What it needs.
        need: PeerName,
    },
}

impl SupervisorSpecification {
    /// Checks the list and takes it apart: rules for the machine, bodies for the loop.
    #[expect(clippy::type_complexity, reason = "used once, by the loop")]
    pub(crate) fn take_apart(self) -> Result<(Vec<Rules>, Vec<Member>, Option<AutoShutdown>), TreeError> {
        let (until, parts): (_, Vec<_>) = match self.children {
            Children::Lasting(children) => {
                (None, children.into_iter().map(ChildSpecification::part).collect())
            }
            Children::Finite { until, children } => {
                (Some(until), children.into_iter().map(ChildSpecification::part).collect())
            }
        };
        let places = check(parts.iter().map(|(rules, dependencies, _)| (&rules.name, dependencies)))?;
        check_names_below(&parts)?;
        let place: HashMap<PeerName, usize> =
            parts.iter().enumerate().map(|(place, (rules, ..))| (rules.name.clone(), place)).collect();
        let mut rules = Vec::new();
        let mut members = Vec::new();
        for ((rule, dependencies, member), needs) in parts.into_iter().zip(places) {
            let until = dependencies.until.into_iter().map(|(need, condition)| (place[&need], condition));
            rules.push(Rules { needs, until: until.collect(), ..rule });
            members.push(member);
        }
        Ok((rules, members, until))
    }
}

/// One child, as the loop has it.
pub(crate) struct Member {
    pub(crate) kind: ChildKind,
    pub(crate) host: Box<dyn Host>,
    pub(crate) below: Option<SupervisorHandle>,
}

/// A name is one in the whole tree: orders and the bus know no other.
fn check_names_below(parts: &[(Rules, Dependencies, Member)]) -> Result<(), TreeError> {
    let mut names: HashSet<String> = parts.iter().map(|(rules, ..)| rules.name.to_string()).collect();
    for below in parts.iter().filter_map(|(.., member)| member.below.as_ref()) {
        for child in &below.snapshot().children {
            if !names.insert(child.name.clone()) {
                let name = child.name.parse().expect("names in a tree are peer names");
                return Err(TreeError::Duplicate { name });
            }
        }
    }
    Ok(())
}

impl<S: Into<bool>> ChildSpecification<S> {
    fn part(self) -> (Rules, Dependencies, Member) {
        let rules = Rules {
            name: self.name,
            restart: self.restart.settled(),
            when_spent: self.when_spent,
            needs: Vec::new(),
            until: Vec::new(),
            in_line: self.dependencies.in_line,
            clocks: self.clocks,
        };
        let member = Member { kind: self.kind, host: self.host.0, below: self.below };
        (rules, self.dependencies, member)
    }
}

/// Checks names and dependencies of a list in start order; the places each child needs.
pub(crate) fn check<'a>(
    children: impl Iterator<Item = (&'a PeerName, &'a Dependencies)>,
) -> Result<Vec<Vec<usize>>, TreeError> {
    let children: Vec<_> = children.collect();
    let mut places = HashMap::new();
    for (place, (name, _)) in children.iter().enumerate() {
        if places.insert(*name, place).is_some() {
            return Err(TreeError::Duplicate { name: (*name).clone() });
        }
    }
    let mut needs = Vec::new();
    for (name, dependencies) in &children {
        let found = dependencies.needs.iter().map(|need| {
            places.get(need).copied().ok_or_else(|| {
                let known: Vec<_> = children.iter().map(|(name, _)| format!("`{name}`")).collect();
                TreeError::Unknown { child: (*name).clone(), need: need.clone(), known: known.join(", ") }
            })
        });
        needs.push(found.collect::<Result<Vec<_>, _>>()?);
    }
    let name = |place: usize| children[place].0;
    if let Some(circle) = circle(&needs) {
        let path: Vec<_> = circle.into_iter().map(|place| name(place).as_str()).collect();
        return Err(TreeError::Cycle { path: path.join(" -> ") });
    }
    for (child, needs) in needs.iter().enumerate() {
        if let Some(&need) = needs.iter().find(|&&need| need > child) {
            return Err(TreeError::Order { child: name(child).clone(), need: name(need).clone() });
        }
    }
    Ok(needs)
}

/// A circle in the graph, first place repeated at the end; `None` if there is none.
pub(crate) fn circle(needs: &[Vec<usize>]) -> Option<Vec<usize>> {
    /// Follows `place`; `path` is the way to it. `clear` holds places known to lead into no circle.
    fn follow(
        place: usize,
        needs: &[Vec<usize>],
        path: &mut Vec<usize>,
        clear: &mut [bool],
    ) -> Option<Vec<usize>> {
        if let Some(begin) = path.iter().position(|&passed| passed == place) {
            return Some([&path[begin..], &[place]].concat());
        }
        if clear[place] {
            return None;
        }
        path.push(place);
        let found = needs[place].iter().find_map(|&need| follow(need, needs, path, clear));
        path.pop();
        clear[place] = true;
        found
    }
    let mut clear = vec![false; needs.len()];
    (0..needs.len()).find_map(|place| follow(place, needs, &mut Vec::new(), &mut clear))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a b:a c:a,b` is a list with dependencies.
    fn checked(list: &str) -> Result<Vec<Vec<usize>>, String> {
        let children: Vec<(PeerName, Dependencies)> = list
            .split(' ')
            .map(|child| match child.split_once(':') {
                None => (child.parse().unwrap(), Dependencies::default()),
                Some((name, needs)) => {
                    let needs = needs.split(',').map(|need| need.parse().unwrap()).collect();
                    (name.parse().unwrap(), Dependencies { needs, ..Dependencies::default() })
                }
            })
            .collect();
        check(children.iter().map(|(name, dependencies)| (name, dependencies)))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_list_whose_dependencies_stand_before_is_accepted() {
        assert_eq!(
            checked("broker store:broker gateway:store,broker"),
            Ok(vec![vec![], vec![0], vec![1, 0]])
        );
    }

    #[test]
    fn a_circle_is_refused_with_its_path() {
        let error = checked("a b:d c:b d:c").unwrap_err();
        assert_eq!(
            error,
            "the children wait for each other in a circle: b -> d -> c -> b; remove one of these dependencies"
        );
        assert!(checked("a:a").unwrap_err().contains("a -> a"));
    }

    #[test]
    fn an_unknown_need_a_wrong_order_and_a_double_name_are_refused() {
        assert!(checked("a b:x").unwrap_err().contains("`b` needs `x`, which is not a child"));
        assert!(checked("a:b b").unwrap_err().contains("move `b` before `a`"));
        assert!(checked("a a").unwrap_err().contains("two children are named `a`"));
    }
}
