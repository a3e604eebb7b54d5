//! What a constructor says of its network: tensors, how fresh ones start, layers that take adapters, and what costs.
//!
//! A layout is the record of a constructor that ran on no tensors ([`Layout::of`] is beside the source that it runs
//! on). It follows from the sizes of a network alone and holds no values, so that of a model of many billion parameters
//! costs as little as that of the nano model.

use elbow::{noise::Key, params::Params};

/// One tensor of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// Its name, as in a checkpoint of `diffusers`.
    pub name: String,
    /// Its shape, row-major.
    pub shape: Vec<usize>,
    /// How fresh values are made.
    pub start: Start,
    /// The vectors that it is multiplied with, if it is the matrix or the kernel of a layer.
    pub product: Option<Tokens>,
    /// Whether the layer takes an adapter.
    pub adapter: Adapter,
}

/// How the values of a fresh tensor are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// Zeros.
    Zeros,
    /// Ones.
    Ones,
    /// Gaussian with this deviation.
    Normal(f64),
    /// Gaussian with deviation √(2 / (in + out)).
    Xavier,
    /// Gaussian with deviation √(1 / in).
    FanIn,
    /// Sinusoids of a square grid, in units of a grid of `base` cells a side. They are a fixed table, which is not trained.
    Positions {
        /// Cells a side.
        base: usize,
    },
}

impl Start {
    /// Zeros with the signs of Gaussian numbers, which files of fresh weights have.
    pub const SIGNED_ZEROS: Self = Self::Normal(0.0);
}

/// To which vectors of one row of a batch something is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// One vector that belongs to the whole row: time, pooled text, modulations.
    One,
    /// The text tokens.
    Text,
    /// One for each square of `side × side` latents.
    Image {
        /// Height and width of the square.
        side: usize,
    },
    /// Those of the image and of the text in one sequence.
    Joint {
        /// Height and width of the square of latents that makes one image token.
        side: usize,
    },
    /// The pixels of a picture, `side × side` for each latent.
    Pixels {
        /// Height and width of the square.
        side: usize,
    },
}

/// Whether a layer takes an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adapter {
    /// It takes none: a convolution, or no layer at all.
    None,
    /// It can have one.
    Possible,
    /// The field adapts it, and names it so in `target_modules`.
    Usual(String),
}

/// Vectors of one width, one a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vectors {
    /// Numbers in each.
    pub width: usize,
    /// How many there are.
    pub tokens: Tokens,
}

/// One attention: every query meets every key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    /// Width of queries, keys and values, all heads together.
    pub width: usize,
    /// How many queries there are.
    pub queries: Tokens,
    /// How many keys and values there are.
    pub keys: Tokens,
}

/// What one block of a network holds between the forward and the backward pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its input, which is all that is kept where the block is recomputed.
    pub input: Vectors,
    /// What its operations keep.
    pub kept: Vec<Vectors>,
    /// What they also keep if its weights are trained.
    pub kept_to_train: Vec<Vectors>,
    /// Candidates for the widest of its tensors, twice which is about the size of the gradients inside it.
    pub wide: Vec<Vectors>,
}

/// The record of a network, in the order in which its constructor asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    slots: Vec<Slot>,
    attentions: Vec<Attention>,
    blocks: Vec<Block>,
}

impl Layout {
    /// The tensors, in the order in which parameters are laid out.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Names and shapes, in order.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.slots.iter().map(|slot| (slot.name.as_str(), slot.shape.as_slice()))
    }

    /// The same, owned.
    pub fn to_shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.slots.iter().map(|slot| (slot.name.clone(), slot.shape.clone())).collect()
    }

    /// The same without fixed tables, such as those of positions: what full fine-tuning trains.
    pub fn trainable(&self) -> impl Iterator<Item = (&str, &[usize])> {
        let trainable = self.slots.iter().filter(|slot| !matches!(slot.start, Start::Positions { .. }));
        trainable.map(|slot| (slot.name.as_str(), slot.shape.as_slice()))
    }

    /// All attentions.
    pub fn attentions(&self) -> &[Attention] {
        &self.attentions
    }

    /// All blocks.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Number of parameters, fixed tables included.
    pub fn size(&self) -> usize {
        self.slots.iter().map(Slot::size).sum()
    }

    /// The layers that the field adapts, in the words of `target_modules`, each once.
    pub fn usual_targets(&self) -> Vec<String> {
        let mut targets = Vec::new();
        for slot in &self.slots {
            if let Adapter::Usual(target) = &slot.adapter
                && !targets.contains(target)
            {
                targets.push(target.clone());
            }
        }
        targets
    }

    /// Fresh values; tensor `i` draws from stream `i` of `key`.
    pub fn initial(&self, key: Key) -> Params {
        let fresh =
            |(i, slot): (usize, &Slot)| (slot.name.clone(), slot.shape.clone(), slot.initial(key.sample(i as u64)));
        Params::new(self.slots.iter().enumerate().map(fresh))
    }

    pub(crate) fn push(&mut self, slot: Slot) {
        self.slots.push(slot);
    }

    pub(crate) fn push_attention(&mut self, attention: Attention) {
        self.attentions.push(attention);
    }

    pub(crate) fn push_block(&mut self, input: Vectors) {
        let (kept, kept_to_train, wide) = (Vec::new(), Vec::new(), Vec::new());
        self.blocks.push(Block { input, kept, kept_to_train, wide });
    }

    /// The block that the constructor began last.
    pub(crate) fn block(&mut self) -> &mut Block {
        self.blocks.last_mut().expect("invariant: a constructor begins a block before it says what the block holds")
    }
}

impl Slot {
    /// Number of values.
    pub fn size(&self) -> usize {
        self.shape.iter().product()
    }

    /// The name of the layer whose weight this is.
    pub fn layer(&self) -> &str {
        self.name.strip_suffix(".weight").unwrap_or(&self.name)
    }

    fn initial(&self, key: Key) -> Vec<f32> {
        let (output, input) = (self.shape[0], self.shape[1..].iter().product::<usize>());
        let deviation = match self.start {
            Start::Zeros => return vec![0.0; self.size()],
            Start::Ones => return vec![1.0; self.size()],
            Start::Positions { base } => return sinusoids_2d(self.shape[2], self.shape[1].isqrt(), base),
            Start::Normal(deviation) => deviation,
            Start::Xavier => (2.0 / (input + output) as f64).sqrt(),
            Start::FanIn => 1.0 / (input as f64).sqrt(),
        };
        let mut values = Vec::with_capacity(self.size());
        key.extend_normals(self.size(), &mut values);
        for value in &mut values {
            *value *= deviation as f32;
        }
        values
    }
}

/// Position embeddings `[1, m·m, width]` as the reference makes them: columns in the first half of the channels, rows in
/// the second, positions in units of the model's own grid (`base` patches a side).
fn sinusoids_2d(width: usize, max_size: usize, base: usize) -> Vec<f32> {
    let half = width / 2;
    let encode = |position: f64| {
        let angles = (0..half / 2).map(move |i| position / 10_000f64.powf(i as f64 / (half / 2) as f64));
        angles.clone().map(f64::sin).chain(angles.map(f64::cos)).map(|v| v as f32)
    };
    let scale = base as f64 / max_size as f64;
    let cells = (0..max_size * max_size).map(|cell| (cell / max_size, cell % max_size));
    cells.flat_map(|(row, column)| encode(column as f64 * scale).chain(encode(row as f64 * scale))).collect()
}
