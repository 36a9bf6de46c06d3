//! Who is started again, and who else with it. OTP's words and meaning (`supervisor` in stdlib). Pure.

/// Which siblings follow a failing child: they are stopped, then started again with it, in start order.
///
/// | | siblings before it | siblings after it |
/// |---|---|---|
/// | `OneForOne` | untouched | untouched |
/// | `RestForOne` | untouched | follow |
/// | `OneForAll` | follow | follow |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Only the failing child.
    #[default]
    OneForOne,
    /// The failing child and those started after it.
    RestForOne,
    /// All children.
    OneForAll,
}

impl Strategy {
    /// Whether the sibling at `sibling` follows a failure of the child at `failed` (places in start order).
    pub fn follows(self, sibling: usize, failed: usize) -> bool {
        match self {
            Self::OneForOne => false,
            Self::RestForOne => sibling > failed,
            Self::OneForAll => sibling != failed,
        }
    }
}

/// When a stopped child is started again.
///
/// | | it failed | it stopped normally | a sibling's failure took it along | may be significant |
/// |---|---|---|---|---|
/// | `Permanent` | restart | restart, and it counts as a failure | restart | no: it never ends |
/// | `Transient` | restart | leave | restart | yes |
/// | `Temporary` | leave | leave | leave | yes |
///
/// `S` is [`No`] in a supervisor without auto-shutdown and `bool` in one with it, so that a significant child
/// in a supervisor that ignores significance cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart<S = No> {
    /// Always.
    Permanent,
    /// After a failure only.
    Transient {
        /// Whether its normal end may end the supervisor.
        significant: S,
    },
    /// Never.
    Temporary {
        /// Whether its end, of either kind, may end the supervisor.
        significant: S,
    },
}

/// "Not significant", where nothing else is possible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct No;

impl From<No> for bool {
    fn from(_: No) -> Self {
        false
    }
}

impl<S: Into<bool>> Restart<S> {
    /// The same rule, whatever kind of supervisor it was written for.
    pub(crate) fn settled(self) -> Restart<bool> {
        match self {
            Self::Permanent => Restart::Permanent,
            Self::Transient { significant } => Restart::Transient { significant: significant.into() },
            Self::Temporary { significant } => Restart::Temporary { significant: significant.into() },
        }
    }
}

/// When the end of significant children ends the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoShutdown {
    /// When one of them has ended.
    AnySignificant,
    /// When all of them have ended.
    AllSignificant,
}

/// What happens when a child has spent its budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenSpent {
    /// The supervisor stops its children and fails itself. The first start of such a child is not retried: the start
    /// fails with its reason.
    Escalate,
    /// The child stays down, the status says so, the rest goes on. `interlock restart` tries again.
    #[default]
    LeaveFailed,
}
