//! What a training run leaves on disk.
//!
//! A run is one folder: the resolved configuration, one JSON line per epoch, TensorBoard event files, image grids and
//! checkpoints. This crate writes and reads those files and knows nothing of training.
//!
//! ```text
//! <run>/config.toml          the resolved configuration
//! <run>/manifest.json        what produced the run
//! <run>/lock.json            the process that writes to it    lock
//! <run>/metrics.jsonl        one record per epoch             metrics
//! <run>/events.out.tfevents* the same for TensorBoard         tensorboard
//! <run>/images/              grids of samples                 grid, sheet
//! <run>/checkpoints/         checkpoint-<step>/ folders       checkpoint
//! ```
//!
//! Two rules hold throughout. A file that replaces another is written beside it and renamed, so that a kill leaves the
//! old one or the new one and never half of either ([`write_atomic`]). And a reader either returns what was written or
//! names the file, and the line where there is one, that is damaged.

mod atomic;
pub mod checkpoint;
mod error;
mod folder;
pub mod grid;
mod lock;
pub mod metrics;
mod png;
pub mod sheet;
pub mod tensorboard;
mod text;

pub use atomic::{replace_dir, write_atomic};
pub use checkpoint::Checkpoint;
pub use error::RunLogError;
pub use folder::RunFolder;
pub use grid::Tile;
pub use lock::Holder;
pub use metrics::MetricsWriter;
pub use png::save_png;
pub use tensorboard::EventWriter;
