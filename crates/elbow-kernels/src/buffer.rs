//! The engine's tensors as `f32` slices: outputs that are not cleared first, and inputs that may be views.

use std::{borrow::Cow, mem::MaybeUninit};

use burn::{
    backend::flex::{FlexTensor, Layout},
    tensor::{Bytes, DType, Shape},
};

/// One element of an output that a kernel has yet to write.
pub(crate) type Slot = MaybeUninit<f32>;

/// An output whose elements are all written by a kernel.
///
/// Clearing a large buffer costs about as much as the elementwise pass that then fills it, so outputs start without
/// a value.
pub(crate) struct Output(Box<[Slot]>);

impl Output {
    /// Room for `len` elements.
    pub(crate) fn new(len: usize) -> Self {
        Self(Box::new_uninit_slice(len))
    }

    /// The elements, for the kernel to write.
    pub(crate) fn slots(&mut self) -> &mut [Slot] {
        &mut self.0
    }

    /// The finished tensor.
    ///
    /// # Safety
    ///
    /// Every slot has been written.
    #[expect(unsafe_code, reason = "the kernel's promise that it wrote each slot cannot be expressed in the types")]
    pub(crate) unsafe fn finish(self, shape: impl Into<Shape>) -> FlexTensor {
        // SAFETY: the caller has written every slot.
        tensor(unsafe { self.0.assume_init() }.into_vec(), shape)
    }
}

/// A tensor that takes over `values` without copying.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), DType::F32)
}

/// The tensor's dimensions.
pub(crate) fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    std::array::from_fn(|i| tensor.layout().shape()[i])
}

/// The tensor's elements in row-major order, copied only if it is not contiguous.
pub(crate) fn dense(tensor: &FlexTensor) -> Cow<'_, [f32]> {
    if let Some(values) = tensor.as_slice::<f32>() {
        return Cow::Borrowed(values);
    }
    if let (&[batch, tokens, width], &[outer, inner, 1]) = (&**tensor.layout().shape(), tensor.layout().strides())
        && inner == width as isize
        && outer >= 0
    {
        // A slice of the tokens: each batch element is one piece.
        let (storage, start) = (tensor.storage::<f32>(), tensor.layout().start_offset());
        let mut values = Vec::with_capacity(batch * tokens * width);
        for b in 0..batch {
            values.extend_from_slice(&storage[start + b * outer as usize..][..tokens * width]);
        }
        return Cow::Owned(values);
    }
    Cow::Owned(tensor.to_contiguous().into_data().try_into_vec().expect("the kernels are given f32 tensors"))
}

/// The values, none standing for zeros, and zeros after them up to `len`.
pub(crate) fn padded(values: Option<&[f32]>, len: usize) -> Vec<f32> {
    let mut values = values.map_or_else(Vec::new, <[f32]>::to_vec);
    values.resize(len, 0.0);
    values
}

/// The tensor as one that owns its memory alone, so that a kernel may overwrite it: free if nothing else holds it.
pub(crate) fn exclusive(tensor: FlexTensor) -> FlexTensor {
    let contiguous = tensor.to_contiguous();
    drop(tensor); // the last handle but ours, if the memory is not shared
    contiguous
}

/// An input kept from the forward pass.
pub(crate) fn kept(input: Option<&FlexTensor>) -> &FlexTensor {
    input.expect("`keeps` names every input that `backward` reads")
}

/// A `[B, N, H]` or `[B, H]` tensor (then `N` is 1) whose rows of `H` elements are dense, wherever they lie.
///
/// The slices of a `[B, 6H]` tensor of modulation vectors, of a `[B, N, 3H]` tensor of queries, keys and values, and
/// of the image or text tokens of a joint sequence all have this form: they are read where they are.
pub(crate) struct Rows<'a> {
    storage: Cow<'a, [f32]>,
    batch_stride: usize,
    /// Elements from one row of a batch element to the next, at least `H`.
    pub(crate) row_stride: usize,
    tokens: usize,
    width: usize,
}

impl<'a> Rows<'a> {
    /// Views the tensor, or a contiguous copy of it where its rows are not dense.
    pub(crate) fn new(tensor: &'a FlexTensor) -> Self {
        let shape = tensor.layout().shape();
        let last = shape.num_dims() - 1;
        let (tokens, width) = (if last == 2 { shape[1] } else { 1 }, shape[last]);
        let strides = tensor.layout().strides();
        let row_stride = if tokens > 1 { strides[1] } else { width as isize };
        let in_place = (width == 1 || strides[last] == 1) && row_stride >= width as isize && strides[0] >= 0;
        if in_place {
            let storage = Cow::Borrowed(&tensor.storage::<f32>()[tensor.layout().start_offset()..]);
            Self { storage, batch_stride: strides[0] as usize, row_stride: row_stride as usize, tokens, width }
        } else {
            Self { storage: dense(tensor), batch_stride: tokens * width, row_stride: width, tokens, width }
        }
    }

    /// The rows of batch element `b`: the first starts the slice, the next lies [`row_stride`](Self::row_stride) on,
    /// the last ends it.
    pub(crate) fn batch(&self, b: usize) -> &[f32] {
        &self.storage[b * self.batch_stride..][..(self.tokens - 1) * self.row_stride + self.width]
    }
}
