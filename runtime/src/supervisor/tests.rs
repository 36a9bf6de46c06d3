//! The loop with real hosts: actors that fail in every way they can, and programs.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use interlock_actors::{
    actor::{Actor, Failure, Input},
    context::Context,
    host::{ActorHost, Bus, Busy, Exit, Host, Load, Mailroom},
};

use super::*;
use crate::process::{Program, ProgramHost};

const DEADLINE: Duration = Duration::from_secs(20);

/// Far less than any clock of a supervisor, and enough for a busy machine.
const AT_ONCE: Duration = Duration::from_millis(700);

/// Fails in the place named, `failures` times in all; then lives.
struct Clumsy {
    place: &'static str,
    failures: Arc<AtomicU32>,
}

impl Clumsy {
    fn stumble(&self, place: &str) {
        let left = |left: u32| left.checked_sub(1);
        if self.place == place && self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok()
        {
            panic!("stumbled");
        }
    }
}

impl Actor for Clumsy {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        self.stumble("started");
        if self.place == "spawned" {
            let beside = Clumsy { place: self.place, failures: self.failures.clone() };
            context.spawn_background(async move {
                beside.stumble("spawned");
                std::future::pending().await
            });
        }
        context.status("lives");
        Ok(())
    }

    async fn handle(&mut self, _: Input, _: &Context) -> Result<(), Failure> {
        Ok(())
    }

    fn tick_every(&self) -> Option<Duration> {
        Some(Duration::from_millis(1))
    }

    async fn tick(&mut self, context: &Context) -> Result<(), Failure> {
        self.stumble("tick");
        if self.place == "block" && context.incarnation() == 1 {
            // Blocks its thread: the supervisor must neither wait for it nor be late elsewhere.
            std::thread::sleep(Duration::from_secs(3));
        }
        Ok(())
    }

    async fn stopping(&mut self, _: &Context) -> Result<(), Failure> {
        self.stumble("stopping");
        Ok(())
    }
}

fn clumsy(name: &str, mailroom: &Arc<Mailroom>, place: &'static str, failures: u32) -> ChildSpecification {
    let failures = Arc::new(AtomicU32::new(failures));
    let factory = move || Ok(Clumsy { place, failures: failures.clone() });
    let name: PeerName = name.parse().unwrap();
    ChildSpecification::actor(name.clone(), ActorHost::new(name, Bus::none(), mailroom, factory))
}

fn supervise(children: Vec<ChildSpecification>) -> Supervision {
    Supervisor::new("root").start(Strategy::OneForOne, Children::Lasting(children)).unwrap()
}

fn wait(supervision: &Supervision, wanted: impl Fn(&TreeSnapshot) -> bool) -> Arc<TreeSnapshot> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let waited = runtime.block_on(supervision.handle().wait_until(wanted, DEADLINE));
    waited.unwrap_or_else(|tree| panic!("not within the deadline: {tree:#?}"))
}

fn stop(supervision: Supervision) -> Outcome {
    supervision.handle().shutdown(ShutdownPhases::default()).unwrap();
    supervision.join()
}

#[test]
fn an_actor_that_panics_anywhere_is_restarted_and_its_siblings_are_untouched() {
    for place in ["started", "tick", "spawned"] {
        let mailroom = Mailroom::open().unwrap();
        let supervision =
            supervise(vec![clumsy("calm", &mailroom, "nowhere", 0), clumsy("clumsy", &mailroom, place, 2)]);
        let tree = wait(&supervision, |tree| {
            tree.state == State::Running && tree.child("clumsy").is_some_and(|child| child.restarts == 2)
        });
        let [calm, clumsy] = &tree.children[..] else { panic!("two children") };
        assert_eq!((calm.restarts, calm.last_failure.as_ref()), (0, None));
        let failure = clumsy.last_failure.as_ref().unwrap();
        assert!(
            failure.reason.contains("panicked in") && failure.reason.ends_with("stumbled"),
            "{failure:?}"
        );
        assert!(clumsy.readiness.as_ref().unwrap().starts_with("started in"));
        assert_eq!(clumsy.status.as_deref(), Some("lives"));
        let outcome = stop(supervision);
        assert_eq!(outcome.to_string(), "stopped as asked", "{place}");
    }
}

#[test]
fn a_child_that_never_comes_up_degrades_the_tree_and_can_be_tried_again() {
    let mailroom = Mailroom::open().unwrap();
    let supervision =
        supervise(vec![clumsy("calm", &mailroom, "nowhere", 0), clumsy("clumsy", &mailroom, "started", 6)]);
    let tree =
        wait(&supervision, |tree| tree.child("clumsy").is_some_and(|child| child.state == State::Error));
    assert_eq!(tree.state, State::Degraded);
    assert_eq!(tree.child("calm").unwrap().state, State::Running);

    supervision.handle().restart("clumsy").unwrap();
    wait(&supervision, |tree| tree.state == State::Running);
    stop(supervision);
}

#[test]
fn a_failed_first_start_of_an_escalating_child_ends_the_supervisor_with_its_reason() {
    let mailroom = Mailroom::open().unwrap();
    let supervision = supervise(vec![
        clumsy("calm", &mailroom, "nowhere", 0),
        clumsy("store", &mailroom, "started", 1).escalates(),
    ]);
    let handle = supervision.handle().clone();
    let outcome = supervision.join();
    assert!(matches!(&outcome.why, Why::StartFailed { child, .. } if child.as_str() == "store"), "{outcome}");
    assert_eq!(handle.snapshot().state, State::Stopped);
    assert_eq!(handle.start("calm"), Err(OrderError::NotRunning));
}

#[test]
fn a_blocked_thread_is_found_killed_abandoned_and_replaced_while_questions_are_answered() {
    let mailroom = Mailroom::open().unwrap();
    let brisk = Clocks {
        ask_every: Duration::from_millis(100),
        ask_timeout: Duration::from_millis(50),
        ..Clocks::ACTOR
    };
    let supervision = supervise(vec![clumsy("blocked", &mailroom, "block", 0).clocks(brisk)]);
    wait(&supervision, |tree| tree.state == State::Degraded);
    let asked = Instant::now();
    let error = supervision.handle().start("nobody").unwrap_err();
    assert!(asked.elapsed() < Duration::from_millis(50), "an order is answered beside a blocked actor");
    assert_eq!(error.to_string(), "no component is named `nobody`; there are `blocked`");

    let tree = wait(&supervision, |tree| tree.state == State::Running && tree.children[0].restarts == 1);
    let failure = tree.children[0].last_failure.as_ref().unwrap();
    assert!(failure.reason.starts_with("not alive: 3 questions"), "{failure:?}");
    stop(supervision);
}

#[test]
fn a_failure_while_stopping_is_reported_and_does_not_hold_up_the_stop() {
    let mailroom = Mailroom::open().unwrap();
    let supervision = supervise(vec![clumsy("clumsy", &mailroom, "stopping", 1)]);
    wait(&supervision, |tree| tree.state == State::Running);
    let handle = supervision.handle().clone();
    assert_eq!(stop(supervision).to_string(), "stopped as asked");
    let failure = handle.snapshot().children[0].last_failure.clone().unwrap();
    assert_eq!(failure.context, "shutdown_error");
}

#[test]
fn a_supervisor_whose_handles_are_gone_stops_its_children() {
    let mailroom = Mailroom::open().unwrap();
    let supervision = supervise(vec![clumsy("calm", &mailroom, "nowhere", 0)]);
    wait(&supervision, |tree| tree.state == State::Running);
    let Supervision { handle, thread } = supervision;
    drop(handle);
    assert_eq!(thread.join().unwrap().to_string(), "stopped as asked");
}

#[test]
fn a_program_is_a_child_like_any_other() {
    // No guardian in this binary's arguments: what is seen is how a program fails that cannot be started.
    let name: PeerName = "program".parse().unwrap();
    let program = Program {
        guardian: crate::process::GuardianCommand {
            binary: "/no/such/guardian".into(),
            ..Default::default()
        },
        ..Program::new("true")
    };
    let mailroom = Mailroom::open().unwrap();
    let supervision = supervise(vec![
        clumsy("calm", &mailroom, "nowhere", 0),
        ChildSpecification::process(name.clone(), ProgramHost::new(name, program)),
    ]);
    let tree =
        wait(&supervision, |tree| tree.child("program").is_some_and(|child| child.state == State::Error));
    let program = tree.child("program").unwrap();
    assert_eq!((program.kind, program.restarts), (ChildKind::Process, 5));
    assert!(program.last_failure.as_ref().unwrap().reason.contains("/no/such/guardian"));
    assert_eq!(tree.child("calm").unwrap().state, State::Running);
    stop(supervision);
}

fn group(name: &str, strategy: Strategy, children: Vec<ChildSpecification>) -> ChildSpecification {
    let children = Children::Lasting(children);
    ChildSpecification::supervisor(name.parse().unwrap(), strategy, children, ShutdownPhases::default())
        .unwrap()
}

#[test]
fn a_supervisor_is_a_child_like_any_other_and_its_children_take_orders_through_the_root() {
    let mailroom = Mailroom::open().unwrap();
    let inner = group("inner", Strategy::OneForOne, vec![clumsy("deep", &mailroom, "nowhere", 0)]);
    let outer = group("outer", Strategy::OneForAll, vec![inner, clumsy("b", &mailroom, "tick", 1)]);
    let supervision = supervise(vec![clumsy("first", &mailroom, "nowhere", 0), outer]);
    // `b` fails once and takes `inner`, with all below it, along.
    let tree = wait(&supervision, |tree| {
        tree.state == State::Running && tree.child("deep").is_some_and(|deep| deep.incarnation == 2)
    });
    let names: Vec<_> = tree.children.iter().map(|child| child.name.as_str()).collect();
    assert_eq!(names, ["first", "outer", "inner", "deep", "b"]);
    let below = |name: &str| tree.child(name).unwrap().supervisor.clone();
    assert_eq!(
        (below("first"), below("inner"), below("b")),
        (None, Some("outer".into()), Some("outer".into()))
    );
    assert_eq!(below("deep").as_deref(), Some("inner"));
    assert_eq!((tree.child("outer").unwrap().restarts, tree.child("first").unwrap().restarts), (0, 0));

    let handle = supervision.handle();
    handle.stop("deep").unwrap();
    wait(&supervision, |tree| {
        tree.state == State::Degraded
            && tree.child("deep").is_some_and(|deep| deep.state == State::Stopped)
            && tree.child("outer").is_some_and(|outer| outer.impaired.is_some())
    });
    handle.start("deep").unwrap();
    wait(&supervision, |tree| tree.state == State::Running);
    handle.stop("outer").unwrap();
    wait(&supervision, |tree| tree.child("outer").is_some_and(|outer| outer.state == State::Stopped));
    let error = handle.restart("b").unwrap_err().to_string();
    assert_eq!(error, "`b` belongs to `outer`, which is down; start that");
    handle.start("outer").unwrap();
    let tree = wait(&supervision, |tree| tree.state == State::Running);
    assert_eq!(tree.child("deep").unwrap().incarnation, 4);
    let error = handle.restart("depe").unwrap_err().to_string();
    assert!(error.starts_with("no component is named `depe`; `deep`?"), "{error}");
    assert_eq!(stop(supervision).to_string(), "stopped as asked");
}

#[test]
fn a_child_that_escalates_fails_its_supervisor_which_the_one_above_restarts() {
    let mailroom = Mailroom::open().unwrap();
    // Its first start fails: it is not tried again, but its supervisor is.
    let children =
        vec![clumsy("calm", &mailroom, "nowhere", 0), clumsy("vital", &mailroom, "started", 2).escalates()];
    let supervision = supervise(vec![group("group", Strategy::OneForOne, children)]);
    let tree = wait(&supervision, |tree| tree.state == State::Running);
    let group = tree.child("group").unwrap();
    assert_eq!(group.restarts, 2);
    let reason = &group.last_failure.as_ref().unwrap().reason;
    assert!(reason.starts_with("`vital` did not start: panicked in `started`"), "{reason}");
    assert_eq!(tree.child("calm").unwrap().incarnation, 3);
    assert_eq!(stop(supervision).to_string(), "stopped as asked");
}

/// Is ready at once, and once it is asked to stop says so and asks for an hour.
struct Lingering {
    asked: Sender<()>,
    /// Where what it reports with is to be found.
    given: Sender<Reports>,
    reports: Option<Reports>,
}

impl Host for Lingering {
    fn start(&mut self, _: u64, reports: Reports) {
        reports.send(HostReport::Ready { proof: "it says so".to_owned() });
        self.given.send(reports.clone()).unwrap();
        self.reports = Some(reports);
    }

    fn stop(&mut self, _: Stop) {
        self.asked.send(()).unwrap();
        self.reports.as_ref().unwrap().send(HostReport::Extend(Duration::from_secs(3600)));
    }

    fn kill(&mut self, _: bool) {
        self.reports.as_ref().unwrap().send(HostReport::Exited(Exit::Killed));
    }

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
fn a_supervisor_below_stops_within_the_phases_that_it_was_given() {
    let ((asked, was_asked), (given, _reports)) = (bounded(4), bounded(4));
    let name: PeerName = "lingering".parse().unwrap();
    let children =
        Children::Lasting(vec![ChildSpecification::actor(name, Lingering { asked, given, reports: None })]);
    let phases = ShutdownPhases { drain: Duration::from_millis(200), forced: Duration::from_secs(600) };
    let name: PeerName = "group".parse().unwrap();
    let group = ChildSpecification::supervisor(name, Strategy::OneForOne, children, phases).unwrap();
    assert!(group.clocks.stop_grace > phases.forced, "the one above waits for it");
    let supervision = supervise(vec![group]);
    wait(&supervision, |tree| tree.state == State::Running);
    let begin = Instant::now();
    supervision.handle().stop("group").unwrap();
    was_asked.recv_timeout(DEADLINE).unwrap();
    let tree =
        wait(&supervision, |tree| tree.child("group").is_some_and(|group| group.state == State::Stopped));
    assert!(begin.elapsed() >= phases.drain, "it had its time: {:?}", begin.elapsed());
    let failure = tree.child("group").unwrap().last_failure.as_ref().unwrap();
    assert_eq!(failure.reason, "stopped as asked; killed: `lingering`");
    stop(supervision);
}

#[test]
fn a_stop_goes_on_as_soon_as_the_last_job_has_ended_and_looks_at_no_clock() {
    let (asked, was_asked) = bounded(4);
    let (given, reports) = bounded(4);
    let lingering = |name: &str| {
        let host = Lingering { asked: asked.clone(), given: given.clone(), reports: None };
        ChildSpecification::actor(name.parse().unwrap(), host)
    };
    let mailroom = Mailroom::open().unwrap();
    // In three levels, below a supervisor of its own, and with a sibling that ends at once.
    let inner = group("inner", Strategy::OneForOne, vec![lingering("third")]);
    let supervision = supervise(vec![
        lingering("first"),
        clumsy("calm", &mailroom, "nowhere", 0),
        lingering("second"),
        inner,
    ]);
    wait(&supervision, |tree| tree.state == State::Running);
    let mut reports: Vec<Reports> = reports.try_iter().collect();
    assert_eq!(reports.len(), 3);
    supervision.handle().shutdown(ShutdownPhases::default()).unwrap();
    let mut ended = Instant::now();
    // In reverse order, each as soon as the one after it has ended.
    while let Some(last) = reports.pop() {
        was_asked.recv_timeout(DEADLINE).unwrap();
        assert!(ended.elapsed() < AT_ONCE, "{} are left: {:?}", reports.len() + 1, ended.elapsed());
        ended = Instant::now();
        last.send(HostReport::Exited(Exit::Normal));
    }
    assert_eq!(supervision.join().to_string(), "stopped as asked");
    assert!(ended.elapsed() < AT_ONCE, "{:?}", ended.elapsed());
}

#[test]
fn a_name_is_one_in_the_whole_tree() {
    let mailroom = Mailroom::open().unwrap();
    let below = group("group", Strategy::OneForOne, vec![clumsy("twice", &mailroom, "nowhere", 0)]);
    let children = vec![clumsy("twice", &mailroom, "nowhere", 0), below];
    let error = Supervisor::new("root").start(Strategy::OneForOne, Children::Lasting(children)).unwrap_err();
    assert!(error.to_string().contains("two children are named `twice`"), "{error}");
}
