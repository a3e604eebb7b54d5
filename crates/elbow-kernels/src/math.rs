//! Scalar functions and sums that compile to vector instructions.
//!
//! Everything here is `#[inline(always)]`, so that it is compiled with the instruction set of the kernel
//! around it. No fused multiply-add is used and sums have a fixed number of lanes: these functions give the
//! same bits with each instruction set.

/// Partial sums kept by a reduction: one 512-bit vector, or several narrower ones.
pub(crate) const LANES: usize = 16;

/// `eˣ` to about one unit in the last place; arguments are clamped to ±87, NaN is kept.
///
/// `eˣ = 2ⁿ eᶠ` with `n = round(x / ln 2)` and `|f| ≤ ln 2 / 2`, where `eᶠ` is the polynomial of degree 6 of Cephes.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5·2²³: adding it rounds to an integer, which then stands in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with few enough bits that its product with `n` is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let f = x - n * LN_2[0] - n * LN_2[1];
    let p = 1.987_569_2e-4;
    let p = p * f + 1.398_199_9e-3;
    let p = p * f + 8.333_452e-3;
    let p = p * f + 4.166_579_6e-2;
    let p = p * f + 1.666_666_5e-1;
    let p = p * f + 0.5;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    power * (p * f * f + f + 1.0)
}

/// `Σ f(aᵢ, bᵢ)`, each lane summed in order and then the lanes as a tree.
#[inline(always)]
pub(crate) fn sum_of(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += f(a, b);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += f(a, b);
    }
    fold(lanes, |a, b| a + b)
}

/// The largest element; NaN elements are passed over.
#[inline(always)]
pub(crate) fn max(a: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = a.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &a) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, a);
        }
    }
    for (lane, &a) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, a);
    }
    fold(lanes, larger)
}

/// Combines the lanes as a balanced tree.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_to_the_last_places() {
        for i in -8700..=8700 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 2e-7, "exp({x})");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert!(exp(f32::INFINITY).is_finite());
    }

    #[test]
    fn reductions_cover_the_remainder() {
        for len in 0..70 {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            assert_eq!(sum_of(&a, &a, |a, _| a) as i32, (0..len).sum::<i32>());
            assert_eq!(max(&a).to_bits(), if len == 0 { f32::NEG_INFINITY } else { (len - 1) as f32 }.to_bits());
        }
    }
}
