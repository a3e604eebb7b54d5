//! A recipe made real: its model, prompts, reward and judges, and the run that trains on them.
//!
//! ```no_run
//! use elbow_run::{Components, Device, Event, Run, Status, recipe};
//!
//! # fn main() -> elbow_run::Result<()> {
//! let (_, recipe) = recipe::load(None, &["epochs=5".to_owned()])?;
//! let watch = |event: Event<'_>| {
//!     if let Event::Epoch { epoch, record, .. } = event {
//!         println!("{epoch}: {}", record["reward_geneval"]);
//!     }
//! };
//! let components = Components::load(&recipe, &Device::flex(), &watch)?;
//! let mut run = Run::create("runs/mine", recipe, &components, &watch)?;
//! while run.step()? == Status::Training {}
//! let results = run.finish()?;
//! # Ok(())
//! # }
//! ```
//!
//! [`recipe::of_run`] and [`Run::resume`] go on with a run that was stopped, bit for bit. What needs less builds less:
//! [`LoadedModel`] is the policy alone, [`data::held_out`] the prompts that it is measured on, [`judges::judges`] what measures it.
//!
//! Nothing here prints, apart from the word on a download; a run tells what happens by an [`Event`].

pub mod adapter;
pub mod components;
pub mod data;
pub mod error;
pub mod event;
pub mod finished;
pub mod hub;
pub mod judges;
pub mod machine;
mod memory;
pub mod model;
pub mod pictures;
pub mod plan;
pub mod radar;
pub mod recipe;
pub mod reward;
pub mod run;
pub mod samples;
pub mod self_test;

pub use burn::tensor::Device;
pub use components::{Components, LoadedModel, Weights};
pub use error::{Error, Result};
pub use event::{Event, Watch};
pub use finished::Finished;
pub use plan::Plan;
pub use recipe::Recipe;
pub use run::{Results, Run, Status};
