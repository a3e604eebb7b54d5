//! Where the constructor of a network gets its weights.
//!
//! A constructor asks for named layers: `w.at("attn.to_q").linear(input, output)`. On a source with tensors
//! (`WeightSource::from(weights)`) it makes the network. On a source that records ([`Layout::of`]) the same constructor says
//! which tensors there are, how they start, which layers take adapters, and what a pass costs.
//!
//! What is said beside names and sizes holds for everything below a place: `w.on(Tokens::Text)`, `w.starting(Start::Xavier)`.

use crate::layout::{Adapter, Attention, Layout, Slot, Start, Tokens, Vectors};
use burn::tensor::{Device, Tensor};
use elbow::params::Tensors;
pub use elbow_kernels::Precision;
use std::cell::RefCell;

/// The tensors a network is built from: its weights, and the adapter factors if there are any.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// The network's own tensors.
    pub base: &'a Tensors,
    /// `<layer>.lora_A.weight` `[rank, in]` and `<layer>.lora_B.weight` `[out, rank]`, with their scale alpha / rank.
    pub adapter: Option<(&'a Tensors, f64)>,
    /// What the factors of the products of dense layers are rounded to.
    pub precision: Precision,
}

impl<'a> Weights<'a> {
    /// A network as it is, in `f32`.
    pub fn plain(base: &'a Tensors) -> Self {
        Self { base, adapter: None, precision: Precision::F32 }
    }
}

/// A place in a network, `transformer_blocks.3.attn` for example, and what gives the tensors there.
#[derive(Clone, Debug)]
pub struct WeightSource<'a> {
    origin: Origin<'a>,
    path: String,
    tokens: Tokens,
    start: Start,
    /// Length of the beginning of `path` that the names of adapted layers leave out.
    left_out: usize,
    /// The field adapts the layers here.
    usual: bool,
}

#[derive(Clone, Copy, Debug)]
enum Origin<'a> {
    Tensors(Weights<'a>),
    /// Placeholders are given out.
    Record(&'a RefCell<Layout>),
}

impl<'a> From<Weights<'a>> for WeightSource<'a> {
    fn from(weights: Weights<'a>) -> Self {
        Self::root(Origin::Tensors(weights))
    }
}

impl Layout {
    /// What `constructor` asks for. The network that it makes consists of placeholders and is thrown away.
    pub fn of<T>(constructor: impl FnOnce(&WeightSource<'_>) -> T) -> Self {
        let record = RefCell::new(Self::default());
        constructor(&WeightSource::root(Origin::Record(&record)));
        record.into_inner()
    }
}

/// Places, and what holds for them.
impl<'a> WeightSource<'a> {
    fn root(origin: Origin<'a>) -> Self {
        Self { origin, path: String::new(), tokens: Tokens::One, start: Start::Xavier, left_out: 0, usual: false }
    }

    /// The place `name` below this one.
    #[must_use]
    pub fn at(&self, name: &str) -> Self {
        Self { path: self.name_of(name), ..self.clone() }
    }

    /// Layers here are applied to these vectors.
    #[must_use]
    pub fn on(self, tokens: Tokens) -> Self {
        Self { tokens, ..self }
    }

    /// Fresh weights of layers here start so.
    #[must_use]
    pub fn starting(self, start: Start) -> Self {
        Self { start, ..self }
    }

    /// Adapted layers are named from here on: `attn.to_q`, not `transformer_blocks.0.attn.to_q`.
    #[must_use]
    pub fn naming_adapters(self) -> Self {
        Self { left_out: self.name_of("").len(), ..self }
    }

    /// The field adapts the dense layers here.
    #[must_use]
    pub fn usually_adapted(self) -> Self {
        Self { usual: true, ..self }
    }

    fn name_of(&self, part: &str) -> String {
        if self.path.is_empty() { part.to_owned() } else { format!("{}.{part}", self.path) }
    }
}

/// Tensors.
impl<'a> WeightSource<'a> {
    /// The matrix `[out, in]` or the kernel `[out, in, side, side]` of a layer, called `weight`.
    pub fn weight<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        self.take("weight", shape, self.start, Some(self.tokens), Adapter::None)
    }

    /// The matrix `[out, in]` of a layer that can have an adapter.
    pub fn adaptable_weight(&self, shape: [usize; 2]) -> Tensor<2> {
        let usual = || Adapter::Usual(self.path[self.left_out..].to_owned());
        let adapter = if self.usual { usual() } else { Adapter::Possible };
        self.take("weight", shape, self.start, Some(self.tokens), adapter)
    }

    /// A tensor that is no factor of a product: a bias, a norm, a table.
    pub fn tensor<const D: usize>(&self, name: &str, shape: [usize; D], start: Start) -> Tensor<D> {
        self.take(name, shape, start, None, Adapter::None)
    }

    /// The factors A `[rank, in]` and B `[out, rank]` of the adapter here and their scale, if there is one.
    pub fn adapter(&self) -> Option<(Tensor<2>, Tensor<2>, f64)> {
        let (tensors, scale) = self.tensors()?.adapter?;
        let (a, b) = (self.name_of("lora_A.weight"), self.name_of("lora_B.weight"));
        tensors.contains(&a).then(|| (tensors.tensor(&a), tensors.tensor(&b), scale))
    }

    /// What the factors of the products of dense layers are rounded to.
    pub fn precision(&self) -> Precision {
        self.tensors().map_or(Precision::F32, |weights| weights.precision)
    }

    /// The tensors of the whole network; `None` if this source records.
    pub(crate) fn tensors(&self) -> Option<Weights<'a>> {
        match self.origin {
            Origin::Tensors(weights) => Some(weights),
            Origin::Record(_) => None,
        }
    }

    /// `transformer_blocks.3.attn`
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    fn take<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        start: Start,
        product: Option<Tokens>,
        adapter: Adapter,
    ) -> Tensor<D> {
        let name = self.name_of(name);
        match self.origin {
            Origin::Tensors(weights) => {
                let tensor = weights.base.tensor(&name);
                assert_eq!(tensor.dims(), shape, "invariant: `{name}` has the shape that its layout says");
                tensor
            }
            Origin::Record(layout) => {
                layout.borrow_mut().push(Slot { name, shape: shape.to_vec(), start, product, adapter });
                Tensor::zeros([1; D], &Device::flex())
            }
        }
    }
}

/// Cost: said once beside the layers, and heard by a source that records.
impl WeightSource<'_> {
    /// An attention of heads that are `width` wide together.
    pub fn attention(&self, width: usize, queries: Tokens, keys: Tokens) {
        self.record(|layout| layout.push_attention(Attention { width, queries, keys }));
    }

    /// A block begins, whose input is `width` wide.
    pub fn begin_block(&self, width: usize) {
        self.record(|layout| layout.push_block(self.vectors(width)));
    }

    /// The block keeps vectors of this width for the backward pass.
    pub fn keeps(&self, width: usize) {
        self.record(|layout| layout.block().kept.push(self.vectors(width)));
    }

    /// It also keeps these if its weights are trained.
    pub fn keeps_to_train(&self, width: usize) {
        self.record(|layout| layout.block().kept_to_train.push(self.vectors(width)));
    }

    /// Its tensors are up to so wide.
    pub fn widens_to(&self, width: usize) {
        self.record(|layout| layout.block().wide.push(self.vectors(width)));
    }

    fn vectors(&self, width: usize) -> Vectors {
        Vectors { width, tokens: self.tokens }
    }

    fn record(&self, say: impl FnOnce(&mut Layout)) {
        if let Origin::Record(layout) = self.origin {
            say(&mut layout.borrow_mut());
        }
    }
}
