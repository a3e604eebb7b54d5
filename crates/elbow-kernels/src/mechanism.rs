//! How a hand-written CPU kernel with its own backward pass becomes an operation of the tensor engine.
//!
//! The engine routes an operation through a *backend extension*: a trait implemented for each backend it may meet.
//! One such trait, [`CpuOps`], serves every operation here. Its methods differ only in the number of inputs and take
//! the operation itself as a value, `Arc<dyn CpuOp<N>>`:
//!
//! ```text
//! gelu_tanh(x) ── call1(x, Gelu) ── Dispatch ─┬─ Flex:           Gelu.forward([x])
//!                                             └─ Autodiff<Flex>: Gelu.forward([x]); record a node holding Gelu
//!                                                and the inputs it keeps; later Gelu.backward(kept, grad)
//! ```
//!
//! So a new operation is one `impl CpuOp<N>` and a public function that asks [`fuses`] and otherwise runs the
//! composite. The question is not optional: the engine panics when an extension meets a backend it does not list.

use std::{fmt::Debug, sync::Arc};

use burn::{
    backend::{
        Autodiff, Backend, Dispatch, DispatchTensorKind, Flex,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        backend_extension,
        flex::FlexTensor,
        tensor::FloatTensor,
    },
    tensor::{DType, Tensor},
};

use crate::isa::{Isa, chosen};

/// A differentiable operation of `N` tensors on the CPU backend; all tensors are `f32`, but for weights that the operation
/// widens itself, and non-empty.
pub(crate) trait CpuOp<const N: usize>: Debug + Send + Sync + 'static {
    /// The value. Inputs may be strided views.
    fn forward(&self, inputs: [&FlexTensor; N]) -> FlexTensor;

    /// Which inputs [`backward`](Self::backward) reads when gradients are wanted for the `tracked` inputs.
    ///
    /// The others are not held between the passes.
    fn keeps(&self, tracked: [bool; N]) -> [bool; N];

    /// The gradient of each tracked input, given the kept inputs and the gradient of the value.
    fn backward(&self, kept: [Option<FlexTensor>; N], grad: FlexTensor, tracked: [bool; N]) -> [Option<FlexTensor>; N];
}

/// Operations as the extension carries them.
pub(crate) type Shared<const N: usize> = Arc<dyn CpuOp<N>>;

/// The backend extension: runs a [`CpuOp`] of one, two or three inputs.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait CpuOps: Backend {
    fn cpu_op1(a: FloatTensor<Self>, op: Shared<1>) -> FloatTensor<Self>;
    fn cpu_op2(a: FloatTensor<Self>, b: FloatTensor<Self>, op: Shared<2>) -> FloatTensor<Self>;
    fn cpu_op3(a: FloatTensor<Self>, b: FloatTensor<Self>, c: FloatTensor<Self>, op: Shared<3>) -> FloatTensor<Self>;
}

impl CpuOps for Flex {
    fn cpu_op1(a: FlexTensor, op: Shared<1>) -> FlexTensor {
        op.forward([&a])
    }

    fn cpu_op2(a: FlexTensor, b: FlexTensor, op: Shared<2>) -> FlexTensor {
        op.forward([&a, &b])
    }

    fn cpu_op3(a: FlexTensor, b: FlexTensor, c: FlexTensor, op: Shared<3>) -> FlexTensor {
        op.forward([&a, &b, &c])
    }
}

type Tracked<C> = FloatTensor<Autodiff<Flex, C>>;

impl<C: CheckpointStrategy> CpuOps for Autodiff<Flex, C> {
    fn cpu_op1(a: Tracked<C>, op: Shared<1>) -> Tracked<C> {
        record::<C, 1>([a], op)
    }

    fn cpu_op2(a: Tracked<C>, b: Tracked<C>, op: Shared<2>) -> Tracked<C> {
        record::<C, 2>([a, b], op)
    }

    fn cpu_op3(a: Tracked<C>, b: Tracked<C>, c: Tracked<C>, op: Shared<3>) -> Tracked<C> {
        record::<C, 3>([a, b, c], op)
    }
}

/// Runs the forward pass and, if any input is tracked, adds the backward step to the graph.
fn record<C: CheckpointStrategy, const N: usize>(inputs: [Tracked<C>; N], op: Shared<N>) -> Tracked<C> {
    let nodes = inputs.each_ref().map(Tracked::<C>::node);
    let tracked = inputs.each_ref().map(Tracked::<C>::is_tracked);
    let values = inputs.each_ref().map(Tracked::<C>::primitive);
    let output = op.forward(values);
    match <Step as Backward<Flex, N>>::prepare::<C>(Step, nodes).compute_bound().stateful() {
        OpsKind::Tracked(node) => {
            let mut kept = op.keeps(tracked).into_iter();
            let kept = values.map(|value| kept.next().unwrap_or(false).then(|| value.clone()));
            node.finish(State { op, kept }, output)
        }
        OpsKind::UnTracked(node) => node.finish(output),
    }
}

/// The backward step of every operation; what differs is in its state.
#[derive(Debug)]
struct Step;

#[derive(Clone, Debug)]
struct State<const N: usize> {
    op: Shared<N>,
    kept: [Option<FlexTensor>; N],
}

impl<const N: usize> Backward<Flex, N> for Step {
    type State = State<N>;

    fn backward(self, ops: Ops<State<N>, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let tracked = ops.parents.each_ref().map(Option::is_some);
        let State { op, kept } = ops.state;
        for (parent, grad) in ops.parents.into_iter().zip(op.backward(kept, grad, tracked)) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}

/// Whether the fused operation applies to this input: `f32`, not empty, and on the CPU backend, tracked or not.
pub(crate) fn fuses<const D: usize>(tensor: &Tensor<D>) -> bool {
    chosen() != Isa::Composite && tensor.dtype() == DType::F32 && on_cpu(tensor)
}

/// The same in any type of number, with any instruction set.
pub(crate) fn on_cpu<const D: usize>(tensor: &Tensor<D>) -> bool {
    if tensor.dims().contains(&0) {
        return false;
    }
    match tensor.clone().into_dispatch().kind {
        DispatchTensorKind::Flex(_) => true,
        DispatchTensorKind::Autodiff(inner) => matches!(*inner, DispatchTensorKind::Flex(_)),
        #[allow(unreachable_patterns, reason = "other backends exist only where the application enables them")]
        _ => false,
    }
}

/// Runs an operation of one input; the caller has checked [`fuses`].
pub(crate) fn call1<const A: usize, const O: usize>(a: Tensor<A>, op: impl CpuOp<1>) -> Tensor<O> {
    Tensor::from_dispatch(Dispatch::cpu_op1(a.into_dispatch(), Arc::new(op)))
}

/// Runs an operation of two inputs; the caller has checked that both [`fuses`].
pub(crate) fn call2<const A: usize, const B: usize, const O: usize>(
    a: Tensor<A>,
    b: Tensor<B>,
    op: impl CpuOp<2>,
) -> Tensor<O> {
    Tensor::from_dispatch(Dispatch::cpu_op2(a.into_dispatch(), b.into_dispatch(), Arc::new(op)))
}

/// Runs an operation of three inputs; the caller has checked that all [`fuses`].
pub(crate) fn call3<const A: usize, const B: usize, const C: usize, const O: usize>(
    a: Tensor<A>,
    b: Tensor<B>,
    c: Tensor<C>,
    op: impl CpuOp<3>,
) -> Tensor<O> {
    Tensor::from_dispatch(Dispatch::cpu_op3(a.into_dispatch(), b.into_dispatch(), c.into_dispatch(), Arc::new(op)))
}
