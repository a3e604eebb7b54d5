//! The affine map over a frozen weight in half precision.
//!
//! The weight is widened to `f32`, which is exact, for one product, and the copy is given up after it.
//! Values and gradients therefore have the bits that the widened weight itself would give. Between the passes the graph holds
//! the weight as it is stored, in memory that it shares with its owner, and no copy of it.

use burn::{
    backend::flex::FlexTensor,
    tensor::{DType, Tensor, bf16, f16},
};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::{
    buffer::{Output, Slot},
    mechanism::{CpuOp, on_cpu},
};

/// Elements that one task widens.
const TASK: usize = 1 << 16;

/// Elements widened at once, in the first-level cache.
const LINE: usize = 1 << 10;

/// Whether a weight is widened by [`Frozen`]: in half precision, on the CPU backend, and not tracked. The composite alone knows
/// gradients of such a weight.
pub(crate) fn applies(weight: &Tensor<2>) -> bool {
    matches!(weight.dtype(), DType::BF16 | DType::F16) && on_cpu(weight) && !weight.is_tracked()
}

/// An operation whose second input is a weight, which it is given widened.
#[derive(Debug)]
pub(crate) struct Frozen<O>(pub(crate) O);

impl<O: CpuOp<2>> CpuOp<2> for Frozen<O> {
    fn forward(&self, [x, weight]: [&FlexTensor; 2]) -> FlexTensor {
        self.0.forward([x, &widened(weight)])
    }

    fn keeps(&self, tracked: [bool; 2]) -> [bool; 2] {
        self.0.keeps(tracked)
    }

    fn backward(
        &self,
        [x, weight]: [Option<FlexTensor>; 2],
        grad: FlexTensor,
        tracked: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        self.0.backward([x, weight.as_ref().map(widened)], grad, tracked)
    }
}

impl<O: CpuOp<3>> CpuOp<3> for Frozen<O> {
    fn forward(&self, [x, weight, bias]: [&FlexTensor; 3]) -> FlexTensor {
        self.0.forward([x, &widened(weight), bias])
    }

    fn keeps(&self, tracked: [bool; 3]) -> [bool; 3] {
        self.0.keeps(tracked)
    }

    fn backward(
        &self,
        [x, weight, bias]: [Option<FlexTensor>; 3],
        grad: FlexTensor,
        tracked: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        self.0.backward([x, weight.as_ref().map(widened), bias], grad, tracked)
    }
}

/// The same values in `f32`.
#[expect(unsafe_code, reason = "an output written whole is not cleared first")]
fn widened(weight: &FlexTensor) -> FlexTensor {
    let weight = weight.to_contiguous();
    let mut wide = Output::new(weight.layout().num_elements());
    match weight.dtype() {
        DType::BF16 => widen(wide.slots(), weight.storage::<bf16>()),
        DType::F16 => widen(wide.slots(), weight.storage::<f16>()),
        other => unreachable!("a weight of {other:?} is not widened"),
    }
    // SAFETY: `widen` writes every element.
    unsafe { wide.finish(weight.layout().shape().clone()) }
}

/// Writes every element of `to`.
fn widen<T: Sync>(to: &mut [Slot], from: &[T])
where
    [T]: HalfFloatSliceExt,
{
    assert_eq!(to.len(), from.len(), "a weight fills its storage");
    to.par_chunks_mut(TASK).zip(from.par_chunks(TASK)).for_each(|(to, from)| {
        let mut line = [0.0; LINE];
        for (to, from) in to.chunks_mut(LINE).zip(from.chunks(LINE)) {
            let line = &mut line[..from.len()];
            from.convert_to_f32_slice(line);
            to.write_copy_of_slice(line);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::{
        backend::flex::Layout,
        tensor::{Bytes, Shape},
    };

    /// All 65536 of them, NaNs included, over several tasks.
    #[test]
    fn every_number_is_widened_as_the_engine_widens_it() {
        let bits: Vec<u16> = (0..=u16::MAX).chain(0..=u16::MAX).chain(0..77).collect();
        let tensor = |dtype| {
            let layout = Layout::contiguous(Shape::new([1, bits.len()]));
            FlexTensor::new(Bytes::from_elems(bits.clone()), layout, dtype)
        };
        let wide = |dtype| {
            let wide = widened(&tensor(dtype));
            wide.as_slice::<f32>().expect("f32").iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let expected: Vec<u32> = bits.iter().map(|&b| bf16::from_bits(b).to_f32().to_bits()).collect();
        assert!(wide(DType::BF16) == expected);
        let expected: Vec<u32> = bits.iter().map(|&b| f16::from_bits(b).to_f32().to_bits()).collect();
        assert!(wide(DType::F16) == expected);
    }
}
