//! Rewards, one file or folder each, behind [`elbow::Reward`].

pub mod diversity;
pub mod geneval;
pub mod journal;
pub mod jpeg;
pub mod log;
pub mod pickle;
pub mod serve;
pub mod served;
mod side_by_side;
pub mod worker;

pub use geneval::{Detection, Detector, GenEval, Mode};
pub use log::Log;
pub use served::Served;
pub use worker::Worker;
