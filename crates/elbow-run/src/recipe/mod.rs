//! Recipes: what a run is made of, as TOML that is laid over the defaults.
//!
//! [`load`] reads the layers (what a file `extends`, the file, changes of the command line), [`merge()`] lays one over the other, and
//! [`check`] reads the whole and gathers all that is wrong with it.

pub mod check;
mod fields;
pub mod library;
mod load;
mod merge;
mod place;

pub use fields::{Eval, Keep, PromptsConfig, Recipe, Setting};
pub use load::{load, of_run, saved};
pub use merge::merge;
