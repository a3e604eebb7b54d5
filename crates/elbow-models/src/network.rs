//! Which network, and its sizes: what everything but the network itself knows of it.

use crate::{
    layout::Layout,
    recompute::Checkpointing,
    weight_source::{WeightSource, Weights},
};
use burn::tensor::Tensor;
use elbow::policy::Conditioning;
use serde::{Deserialize, Serialize};
use std::{fmt, sync::Arc};

/// A network bound to weights.
pub trait Backbone: Send + Sync {
    /// | Argument | Shape | |
    /// |---|---|---|
    /// | `x` | `[N, C, H, W]` | points |
    /// | `t` | `[N]` | times in [0, 1] |
    /// | `cond` | N rows | what the image should show |
    ///
    /// Returns `[N, C, H, W]`: what the network was trained to predict, a velocity or noise.
    fn predict(&self, x: Tensor<4>, t: Tensor<1>, cond: &Conditioning) -> Tensor<4>;
}

/// The sizes of a network: whatever decides its tensors and what it computes from them.
pub trait Architecture: fmt::Debug + Send + Sync {
    /// The network with the weights of a source, or its record.
    fn build(&self, w: &WeightSource<'_>, checkpointing: Checkpointing) -> Box<dyn Backbone>;

    /// The same in words, which are hashed as a part of a model: they may never change.
    fn identity(&self) -> String;

    /// Whose layers it has.
    fn family(&self) -> Family;

    /// Its name in the words of `modelspec.architecture`, which tools sort files by: `stable-diffusion-3-5-medium`. A size
    /// that was never published has the name of its family.
    fn model_name(&self) -> &'static str;

    /// Channels of a latent.
    fn latent_channels(&self) -> usize;

    /// Height and width of the latents that it was made for; where its configuration does not say it, those of its pipeline.
    fn own_side(&self) -> usize;

    /// Why latents `[channels, height, width]` do not fit, if they do not.
    fn latent_problem(&self, latent: [usize; 3]) -> Option<String>;

    /// Width of a text token, and of the pooled text if the network uses it.
    fn text_widths(&self) -> (usize, Option<usize>);

    /// Text tokens of a prompt, of which `t5` come from T5 if the network reads that.
    fn text_tokens(&self, t5: usize) -> usize;

    /// Why no block can be recomputed, if none can.
    fn checkpointing_problem(&self) -> Option<&'static str> {
        None
    }
}

/// Networks whose layers have the same names, in `diffusers` and in other programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// SD3, SD3.5 and the nano model.
    Sd3,
    /// FLUX.1.
    Flux,
    /// SD1.x and SD2.x.
    Unet,
}

impl Family {
    /// The component of a pipeline that such a network is.
    pub fn component(self) -> Component {
        match self {
            Self::Sd3 | Self::Flux => Component::Transformer,
            Self::Unet => Component::Unet,
        }
    }
}

/// Which part of a pipeline a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// `transformer`: SD3, FLUX.
    Transformer,
    /// `unet`: SD1.x, SD2.x.
    Unet,
}

impl Component {
    /// The component that a network is.
    pub fn of(network: &Network) -> Self {
        network.family().component()
    }

    /// Its name in a model folder.
    pub fn component(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::Unet => "unet",
        }
    }
}

/// Any architecture. Clones share it.
#[derive(Clone)]
pub struct Network(Arc<dyn Architecture>);

impl<A: Architecture + 'static> From<A> for Network {
    fn from(architecture: A) -> Self {
        Self(Arc::new(architecture))
    }
}

impl std::ops::Deref for Network {
    type Target = dyn Architecture;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.identity())
    }
}

impl Network {
    /// Every tensor of the network, what is adapted and what costs.
    pub fn layout(&self) -> Layout {
        Layout::of(|w| self.build(w, Checkpointing::None))
    }

    /// The network under the given weights.
    pub fn with_weights(&self, weights: Weights<'_>, checkpointing: Checkpointing) -> Box<dyn Backbone> {
        self.build(&weights.into(), checkpointing)
    }

    /// The layers that the field adapts.
    pub fn usual_targets(&self) -> Vec<String> {
        self.layout().usual_targets()
    }
}
