//! tests of Interlock.
