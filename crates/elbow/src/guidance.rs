//! Classifier-free guidance (arXiv 2207.12598) as a velocity field around a velocity field.
//!
//! v = v_∅ + G (v_c − v_∅)

use crate::policy::{Conditioning, VelocityField};
use burn::tensor::Tensor;

/// Both branches run in one forward pass of twice the rows.
pub struct Guided<'a> {
    /// The field without guidance.
    pub field: Box<dyn VelocityField + 'a>,
    /// G; 1 is off and costs nothing.
    pub scale: f64,
    /// One row: the embedding of the empty prompt.
    pub unconditional: Conditioning,
}

impl VelocityField for Guided<'_> {
    fn velocity(&self, x: Tensor<2>, t: Tensor<1>, cond: &Conditioning) -> Tensor<2> {
        #[expect(clippy::float_cmp, reason = "exactly 1 means off")]
        if self.scale == 1.0 {
            return self.field.velocity(x, t, cond);
        }
        let n = t.dims()[0];
        let nothing = self.unconditional.select(&vec![0; n]);
        let twice = |t: Tensor<2>| Tensor::cat(vec![t.clone(), t], 0);
        let both = Conditioning::cat(&[cond, &nothing]);
        let v = self.field.velocity(twice(x), Tensor::cat(vec![t.clone(), t], 0), &both);
        let (conditional, unconditional) = (v.clone().narrow(0, 0, n), v.narrow(0, n, n));
        unconditional.clone() + (conditional - unconditional) * self.scale
    }
}
