//! Reinforcement-learning post-training for diffusion and flow-matching image models.

pub mod noise;
pub mod optimizer;
pub mod params;
pub mod policy;
pub mod prediction;
pub mod pretrain;
pub mod prompts;
pub mod reward;
pub mod schedule;

pub use image::RgbImage;
pub use prompts::Prompt;
pub use reward::{Reward, RewardError};
