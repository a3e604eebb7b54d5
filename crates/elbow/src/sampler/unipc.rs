//! UniPC of order 2 in the clean sample, with B(h) = e^h − 1 (arXiv 2302.04867, algorithms 7 and 8; diffusers' `bh2`): the
//! velocity at a predicted point first corrects that point, then predicts the next.
//!
//! The predictor is [`super::Dpm2`]. With m₀, m₁, m₂ the clean samples predicted at the last three points, newest first,
//! h and h₋ the last two steps in λ = ln(α/σ), E = 1 − e^{−h}, q = −h/h₋,
//!
//! b₁ = 1/E − 1/h,   b₂ = (1 − 2 (1 − E/h)/h) / E,   γ = (b₂ − b₁)/(1 − q),
//!
//! what the corrector adds to the point it was predicted from is
//!
//! δ = α E [ (b₁ − q γ)(m₀ − m₁) − q² γ (m₁ − m₂) + ½ q (m₁ − m₂) ],   after the first step   δ = α E ½ (m₀ − m₁).
//!
//! The network is asked once a step, at predicted points: those are what a rollout keeps, and the next mean moves by
//! (σ′/σ) δ. The last step is first order, so that the last correction changes nothing. h₋ is infinite from pure noise on,
//! where q = 0.

use super::{Dpm2, Mean, Sampler, Step};
use crate::schedule::Grid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Second order with a corrector, deterministic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unipc {}

/// δ at step `k`, if there is a step to correct.
fn correction(grid: &Grid, k: usize) -> Option<Mean> {
    if k == 0 {
        return None;
    }
    let (newest, before) = (Mean::clean(grid, k, 0), Mean::clean(grid, k, 1));
    let (h, shrink) = grid.span(k - 1);
    let (scale, first) = (grid.level(k).alpha * (1.0 - shrink), newest - before);
    if k == 1 {
        return Some(first * (scale * 0.5));
    }
    let oldest = Mean::clean(grid, k, 2);
    let (earlier, _) = grid.span(k - 2);
    let (e, q) = (1.0 - shrink, -h / earlier);
    let (b1, b2) = (1.0 / e - 1.0 / h, (1.0 - 2.0 * (1.0 - e / h) / h) / e);
    let gamma = (b2 - b1) / (1.0 - q);
    Some(first * (scale * (b1 - q * gamma)) + (before - oldest) * (scale * (0.5 * q - q * q * gamma)))
}

impl Sampler for Unipc {
    fn step(&self, grid: &Grid, k: usize) -> Step {
        let Step { mean, std } = Dpm2 {}.step(grid, k);
        let kept = grid.level(k + 1).sigma / grid.level(k).sigma;
        match correction(grid, k).filter(|_| !grid.is_last(k)) {
            Some(delta) => Step { mean: mean + delta * kept, std },
            None => Step { mean, std },
        }
    }
}
