//! What SD3 and FLUX are both made of: joint blocks of image and text, rotary positions, embeddings of time and text, patches,
//! and the head.

mod block;
mod embed;
mod head;
mod modulation;
mod rope;

pub(crate) use block::{Block, HeadNorms, Qkv, Sizes};
pub(crate) use embed::{TimeText, TimeTextSizes, patches};
pub(crate) use head::Head;
pub(crate) use modulation::{EPSILON, part, silu};
pub(crate) use rope::Rope;
