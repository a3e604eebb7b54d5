//! One file a subcommand.

pub mod bench;
pub mod config;
pub mod doctor;
pub mod estimate;
pub mod eval;
pub mod export;
pub mod lab;
pub mod merge;
pub mod methods;
pub mod plan;
pub mod pretrain;
pub mod progress;
pub mod report;
pub mod reward;
pub mod sample;
pub mod study;
pub mod train;
