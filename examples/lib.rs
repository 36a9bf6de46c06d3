//! examples of Interlock.
