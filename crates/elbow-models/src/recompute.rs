//! Blocks whose inner values are computed again in the backward pass instead of being kept (arXiv 1604.06174).
//!
//! The graph of a network then holds the input of each block, and while one block is differentiated what is inside it: memory
//! grows with the depth by one sequence of tokens a block, at the price of one more forward pass. The values are the same, so
//! the gradients are: bit for bit, except that those of c, which only matter where the embeddings of time and pooled text are
//! trained, are added up block by block.

use crate::weight_source::{Precision, WeightSource, Weights};
use burn::{
    backend::{
        Autodiff, Backend, DispatchKindConversion, DispatchTensor, Flex,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        tensor::FloatTensor,
    },
    tensor::{Tensor, TensorData},
};
use elbow::params::{Entry, Tensors};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, sync::Arc};

/// What becomes of the values inside the blocks of a network between the forward and the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Checkpointing {
    /// They are kept.
    #[default]
    None,
    /// They are computed again, block by block: a third more time, a small part of the memory.
    Block,
}

/// The weights of one block, of which the trained ones are one vector: a function of as many tensors as a block has weights
/// could not be an operation of the engine.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    path: String,
    fixed: Tensors,
    trained: Option<Tensor<1>>,
    entries: Arc<Vec<Entry>>,
    scale: Option<f64>,
    precision: Precision,
}

impl Part {
    /// The weights of the block at `w`.
    pub(crate) fn new(w: &WeightSource<'_>) -> Self {
        let weights = w.tensors().expect("invariant: a network is recorded with its blocks kept");
        let path = w.path().to_owned();
        let prefix = format!("{path}.");
        let mut all = weights.base.under(&prefix);
        if let Some((factors, _)) = weights.adapter {
            all = all.overlaid(&factors.under(&prefix));
        }
        let (trained, fixed) = all.by_gradient();
        let (trained, entries) = trained.joined();
        let scale = weights.adapter.map(|(_, scale)| scale);
        Self { path, fixed, trained, entries: Arc::new(entries), scale, precision: weights.precision }
    }

    /// `block(w, x, c)`, computed again in the backward pass. `x [N, L, H]`, `c [N, H]`.
    pub(crate) fn run(
        &self,
        x: Tensor<3>,
        c: Tensor<2>,
        block: impl Fn(&WeightSource<'_>, Tensor<3>, Tensor<2>) -> Tensor<3> + Send + Sync + 'static,
    ) -> Tensor<3> {
        let (path, fixed, scale, precision) = (self.path.clone(), self.fixed.clone(), self.scale, self.precision);
        let function = move |x: Tensor<3>, c: Tensor<2>, trained: &Tensors| {
            let all = fixed.overlaid(trained);
            let weights = Weights { base: &all, adapter: scale.map(|scale| (&all, scale)), precision };
            block(&WeightSource::from(weights).at(&path), x, c)
        };
        let nothing = || Tensor::from_data(TensorData::new(vec![0.0f32], [1]), &x.device().without_autodiff());
        let trained = self.trained.clone().unwrap_or_else(nothing);
        recomputed(x, c, trained, &Block { function: Arc::new(function), entries: Arc::clone(&self.entries) })
    }
}

/// Of tokens, conditioning and trained weights.
type Function = dyn Fn(Tensor<3>, Tensor<2>, &Tensors) -> Tensor<3> + Send + Sync;

/// A block, and where in their vector its trained weights lie.
#[derive(Clone)]
struct Block {
    function: Arc<Function>,
    entries: Arc<Vec<Entry>>,
}

/// The value of a block, of which the graph keeps the arguments only.
fn recomputed(x: Tensor<3>, c: Tensor<2>, trained: Tensor<1>, block: &Block) -> Tensor<3> {
    let value = on::<Flex>(&x, &c, &trained, block);
    #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda", feature = "rocm"))]
    let value = value.or_else(|| on::<burn::backend::Cube>(&x, &c, &trained, block));
    value.expect("invariant: the CPU and all accelerators are listed")
}

/// The same, if that is the backend of the arguments.
fn on<B: Backend>(x: &Tensor<3>, c: &Tensor<2>, trained: &Tensor<1>, block: &Block) -> Option<Tensor<3>>
where
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B>>,
{
    let x = x.clone().autodiff().try_into_primitive::<Autodiff<B>>().ok()?;
    let c = c.clone().autodiff().try_into_primitive::<Autodiff<B>>().ok()?;
    let trained = trained.clone().autodiff().try_into_primitive::<Autodiff<B>>().ok()?;
    let nodes = [x.node(), c.node(), trained.node()];
    let arguments = [x, c, trained].map(FloatTensor::<Autodiff<B>>::into_primitive);
    let [x, c, trained] = arguments.clone();
    let trained = Tensors::cut(&Tensor::from_primitive::<B>(trained), &block.entries);
    let y = (block.function)(Tensor::from_primitive::<B>(x), Tensor::from_primitive::<B>(c), &trained);
    let y = y.without_autodiff().try_into_primitive::<B>().ok()?;
    let y = match <Step as Backward<B, 3>>::prepare::<NoCheckpointing>(Step, nodes).compute_bound().stateful() {
        OpsKind::Tracked(node) => node.finish(State { arguments, block: block.clone() }, y),
        OpsKind::UnTracked(node) => node.finish(y),
    };
    Some(Tensor::from_primitive::<Autodiff<B>>(y))
}

#[derive(Debug)]
struct Step;

/// What waits for the backward pass. No tracked tensor is among it: it would keep the graph alive.
#[derive(Clone)]
struct State<B: Backend> {
    arguments: [FloatTensor<B>; 3],
    block: Block,
}

impl<B: Backend> fmt::Debug for State<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("State").field("arguments", &self.arguments).finish_non_exhaustive()
    }
}

impl<B: Backend> Backward<B, 3> for Step
where
    DispatchTensor: DispatchKindConversion<B>,
{
    type State = State<B>;

    /// Builds the graph of this block alone and walks it back. The trained weights are leaves of their own in it, as they are
    /// where nothing is recomputed: the engine orders operations by their distance from the leaves, and sums gradients in
    /// that order.
    fn backward(self, ops: Ops<State<B>, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = Tensor::<3>::from_primitive::<B>(grads.consume::<B>(&ops.node));
        let [of_x, of_c, of_trained] = ops.parents;
        let State { arguments: [x, c, trained], block } = ops.state;
        let (x, c) = (leaf::<B, 3>(x, of_x.is_some()), leaf::<B, 2>(c, of_c.is_some()));
        let mut trained = Tensors::cut(&Tensor::from_primitive::<B>(trained), &block.entries);
        if of_trained.is_some() {
            trained = trained.leaves();
        }
        let y = (block.function)(x.clone(), c.clone(), &trained);
        let mut inner = (y * upstream).sum().backward();
        if let Some(node) = of_x {
            grads.register::<B>(node.id, primitive(gradient(&x, &mut inner)));
        }
        if let Some(node) = of_c {
            grads.register::<B>(node.id, primitive(gradient(&c, &mut inner)));
        }
        if let (Some(node), Some(gradients)) = (of_trained, trained.gradients(&mut inner)) {
            grads.register::<B>(node.id, primitive(gradients));
        }
    }
}

/// A tensor that begins a graph if it is tracked.
fn leaf<B: Backend, const D: usize>(value: FloatTensor<B>, tracked: bool) -> Tensor<D>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    let tensor = Tensor::from_primitive::<B>(value);
    if tracked { tensor.autodiff().require_grad() } else { tensor }
}

/// The gradient of a leaf; zero if the loss does not depend on it.
fn gradient<const D: usize>(leaf: &Tensor<D>, gradients: &mut burn::tensor::Gradients) -> Tensor<D> {
    leaf.grad_remove(gradients).unwrap_or_else(|| leaf.clone().without_autodiff().zeros_like())
}

fn primitive<B: Backend, const D: usize>(tensor: Tensor<D>) -> FloatTensor<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    tensor.without_autodiff().try_into_primitive::<B>().expect("invariant: made of leaves on this backend")
}
