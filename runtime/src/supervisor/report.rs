//! What a supervisor says about a child that went down: OTP's report, one line.

use std::fmt;

use interlock_actors::actor::Failure;
use interlock_bus::PeerName;

use crate::telemetry::TOLD_OTHERWISE;

/// In which situation a child went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportContext {
    /// Before it was ready.
    StartError,
    /// After it was ready, without being asked.
    ChildTerminated,
    /// While it was being stopped.
    ShutdownError,
}

impl ReportContext {
    /// OTP's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StartError => "start_error",
            Self::ChildTerminated => "child_terminated",
            Self::ShutdownError => "shutdown_error",
        }
    }
}

/// One child went down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Name of the supervisor.
    pub supervisor: String,
    /// In which situation.
    pub context: ReportContext,
    /// Why.
    pub reason: Failure,
    /// The child.
    pub offender: PeerName,
    /// Which of its incarnations.
    pub incarnation: u64,
    /// Its supervisor gives up for it: the reason goes on to whoever started that, and is told there.
    pub(super) is_passed_on: bool,
}

impl Report {
    /// Writes the report as one log event.
    pub(crate) fn log(&self) {
        let Self { supervisor, context, reason, offender, incarnation, is_passed_on } = self;
        let context = context.as_str();
        if *is_passed_on {
            tracing::error!(target: TOLD_OTHERWISE, supervisor, context, %offender, incarnation, %reason, "child went down");
        } else {
            tracing::error!(supervisor, context, %offender, incarnation, %reason, "child went down");
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { supervisor, context, reason, offender, incarnation, .. } = self;
        let (context, reason) = (context.as_str(), reason.to_string());
        write!(
            formatter,
            "report supervisor={supervisor} context={context} offender={offender} incarnation={incarnation} reason={reason:?}"
        )
    }
}
