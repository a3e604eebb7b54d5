//! The embedded world, *emoji scenes*: 32×32 RGB images of Twemoji sprites on white, with GenEval's six tasks.
//!
//! A [`Scene`] is a 2×2 grid of 16×16 px areas, each empty or holding one [`Object`] in its natural colors or tinted in one
//! [`Color`]. [`prompts`] writes every prompt of the six tasks with its checklist ([`Record`]), splits them into train and
//! test by held-out combinations, and draws them; [`Scene::sample`] draws a layout that a record asks for, so ground truth
//! is exact; [`vocabulary`] turns prompts into word ids. [`SceneDetector`] is the detector of the training reward,
//! [`SceneJudge`] an independent one for evaluation.
//!
//! Nothing here has a random state of its own: whatever draws takes a source of uniform 64-bit numbers, such as [`splitmix`].
//!
//! Art: Twemoji, CC-BY 4.0; `assets/make_atlas.py` makes the atlas.

pub mod data;
pub mod detector;
pub mod draw;
pub mod encoder;
pub mod judge;
pub mod object;
pub mod prompts;
pub mod scene;
pub mod sprites;
pub mod vocabulary;

pub use detector::SceneDetector;
pub use draw::splitmix;
pub use elbow_rewards::geneval::{Record, Task};
pub use judge::SceneJudge;
pub use object::{Color, Object};
pub use scene::{Placement, Scene, SceneError};
