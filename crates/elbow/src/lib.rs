//! Reinforcement-learning post-training for diffusion and flow-matching image models.
//!
//! A **policy** is a velocity field with parameters ([`policy`]). A **sampler** draws samples from it
//! ([`mod@sampler`]), a **collection** decides which of them make an epoch ([`collection`]), a **reward** scores them
//! ([`mod@reward`]), an **advantage** compares those of one prompt ([`mod@advantage`]), a **likelihood** says where to
//! look at the network again and how to read a log-probability off it ([`mod@likelihood`]), and an **objective** turns
//! advantages and log-probabilities into a loss ([`objective`]).
//!
//! Those are the design space of *Rethinking the Design Space of RL for Diffusion Models* (arXiv 2602.04663). An algorithm
//! is a [`config::Config`] that names one variant on each axis; the loop ([`train`]) knows no algorithm.
//!
//! Teach a policy over the plane to draw points near (1, 0):
//!
//! ```
//! use burn::tensor::Device;
//! use elbow::{Policy, Prompt, Request, Reward, RewardError, Score, advantage::*, config::*, optimizer::*, toy, train::Trainer};
//!
//! struct Near;
//! impl Reward for Near {
//!     fn name(&self) -> &str { "near" }
//!     fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
//!         let score = |[x, y]: [f32; 2]| Ok((-(x - 1.0).powi(2) - y.powi(2)).into());
//!         request.images.iter().map(toy::point).map(score).collect()
//!     }
//! }
//!
//! let config = Config {
//!     batch: BatchConfig { groups: 2, group_size: 64, ..Default::default() },
//!     advantage: Standard::default().into(),
//!     optimizer: OptimizerConfig { learning_rate: 0.02, ..Default::default() },
//!     ..Config::default() // PEPG, adaptive ELBO, ten dpm2 steps
//! };
//! let (policy, prompts) = (toy::Toy::default(), vec![Prompt::from("a point")]);
//! let method = config.build(policy.schedule())?;
//! let mut trainer = Trainer::new(method, &policy, &prompts, &Near, Device::flex())?;
//! let before = trainer.epoch(&())?.record["reward_near"].as_f64();
//! (0..30).try_for_each(|_| trainer.epoch(&()).map(drop))?;
//! let after = trainer.epoch(&())?.record["reward_near"].as_f64();
//! assert!(after > before.map(|r| r + 0.7), "{before:?} to {after:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A method can also be put together by hand, of an objective, a likelihood, a sampler, an advantage or a collection of your own:
//! [`method::Method`].

pub mod advantage;
mod axis;
pub mod batch;
pub mod behavior;
pub mod collection;
pub mod config;
pub mod draw;
pub mod eval;
pub mod evaluation;
pub mod functions;
pub mod gaussian;
pub mod gradient;
pub mod guidance;
pub mod kl;
pub mod lanes;
pub mod likelihood;
pub mod method;
pub mod missing;
pub mod noise;
pub mod objective;
pub mod observer;
pub mod optimizer;
pub mod params;
pub mod policy;
pub mod prediction;
pub mod pretrain;
pub mod prompts;
pub mod reward;
pub mod rollout;
pub mod sampler;
pub mod schedule;
pub mod self_consistency;
pub mod setting;
pub mod text;
pub mod toy;
pub mod train;

pub use image::RgbImage;
pub use policy::Policy;
pub use prompts::Prompt;
pub use reward::{Needs, Request, Reward, RewardError, Score};

/// The worked example of CONTRIBUTING.md, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../../CONTRIBUTING.md")]
struct Contributing;
