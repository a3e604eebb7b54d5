//! Many runs as one study: methods × seeds, matched and tuned alike, and what their numbers allow to say.
//!
//! ```no_run
//! use elbow_run::Device;
//! use elbow_study::{Report, Store, Study, Workshop};
//! use std::{path::Path, sync::Arc};
//!
//! # fn main() -> elbow_run::Result<()> {
//! let study = Study::read(Path::new("studies/first.toml"))?;
//! let store = Store::new("docs/studies/first/cells");
//! let shop = Workshop {
//!     store: store.clone(),
//!     runs: "runs/first".into(),
//!     device: Device::flex(),
//!     stop: Arc::default(),
//!     most: usize::MAX,
//!     watch: &|_| {},
//! };
//! study.run(&shop)?;
//! Report::make(&study, &store)?.write(Path::new("docs/studies/first"))?;
//! # Ok(())
//! # }
//! ```
//!
//! From the file to the tables: [`mod@file`] reads what a study says, [`plan`] makes the runs of it, [`run`] finishes those that are not, [`cell`] keeps
//! each as a small file, [`report`] compares them by [`statistics`]. [`passes`] counts what methods evaluate, and [`cost`] what that costs.
//! [`lab`] compares estimators with the truth, where that is known.

pub mod cell;
pub mod cost;
pub mod file;
pub mod lab;
pub mod passes;
pub mod plan;
pub mod report;
pub mod run;
pub mod statistics;
mod trial;

pub use cell::{Finished, Store};
pub use file::StudyFile;
pub use plan::{Cell, Stage, Study};
pub use report::Report;
pub use run::{Standing, Told, Workshop};
