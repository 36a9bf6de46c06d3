//! The way of a log record from the program to the store. See DESIGN.md, section 3.

mod path;

pub use path::{is_marked, mark_thread};
