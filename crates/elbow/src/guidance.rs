//! Classifier-free guidance (arXiv 2207.12598) as a velocity field around a velocity field.
//!
//! v = v_∅ + G (v_c − v_∅)

use crate::policy::{Conditioning, VelocityField};
use burn::tensor::Tensor;

/// Both branches run in one forward pass of twice the rows.
pub struct GuidedField<'a> {
    /// The field without guidance.
    pub field: Box<dyn VelocityField + 'a>,
    /// G; 1 is off and costs nothing.
    pub scale: f64,
    /// Whether v_∅ is a constant: it then has no gradient (Flow-GRPO's code; DDPO's and that of arXiv 2602.04663 have one).
    pub detach: bool,
    /// One row: the embedding of the empty prompt.
    pub unconditional: Conditioning,
}

impl VelocityField for GuidedField<'_> {
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
        let unconditional = if self.detach { unconditional.detach() } else { unconditional };
        unconditional.clone() + (conditional - unconditional) * self.scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    /// v = w (x + condition)
    struct Scaled(Tensor<1>);

    impl VelocityField for Scaled {
        fn velocity(&self, x: Tensor<2>, _: Tensor<1>, cond: &Conditioning) -> Tensor<2> {
            (x + cond.pooled.clone().expect("given")) * self.0.clone().reshape([1, 1])
        }
    }

    fn condition(value: f32, device: &Device) -> Conditioning {
        let tokens = Tensor::zeros([1, 1, 1], device);
        Conditioning { tokens, mask: None, pooled: Some(Tensor::full([1, 1], value, device)) }
    }

    /// dv/dw = G (x + c) + (1 − G)(x + c_∅), and G (x + c) with the unconditional branch as a constant.
    #[test]
    fn a_constant_branch_has_no_gradient() {
        let device = Device::flex();
        for (detach, expected) in [(false, 3.0 * 3.0 - 2.0 * 1.5), (true, 3.0 * 3.0)] {
            let w = Tensor::<1>::from_data([0.5], &device.clone().autodiff()).require_grad();
            let field = Box::new(Scaled(w.clone()));
            let guided = GuidedField { field, scale: 3.0, detach, unconditional: condition(0.5, &device) };
            let one = Tensor::<2>::full([1, 1], 1.0, &device);
            let v = guided.velocity(one, Tensor::full([1], 0.5, &device), &condition(2.0, &device));
            let slope = w.grad(&v.clone().sum().backward()).expect("depends on w").into_scalar::<f32>();
            let value = v.inner().into_scalar::<f32>();
            assert!((value - 0.5 * (9.0 - 3.0)).abs() < 1e-6, "{value}");
            assert!((slope - expected).abs() < 1e-6, "{detach}: {slope}");
        }
    }
}
