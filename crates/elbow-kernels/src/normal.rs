//! Standard normal numbers from uniform integers (Box & Muller 1958).
//!
//! With `u` in (0, 1] and `v` in [0, 1) from 32 bits each:
//!
//! ```text
//! r = √(−2 ln u)        r cos 2πv        r sin 2πv
//! ```
//!
//! In `f64`, by polynomials that are good to 1e-13, so that whole vectors are computed at a time; the results are then
//! rounded to `f32`. An angle is first brought to the nearest quarter turn, exactly, in integers.

use std::f64::consts::{LN_2, TAU};

use crate::isa::kernel;

/// 2⁵² as bits: the low bits of a double of this exponent are an integer.
const INTEGER: u64 = 0x4330_0000_0000_0000;
/// √½ as bits, and what is added so that mantissas lie in [√½, √2).
const ROOT_HALF: u64 = 0x3fe6_a09e_667f_3bcd;
const SHIFT: u64 = 0x3ff0_0000_0000_0000 - ROOT_HALF;

kernel! {
    /// Pairs of uniform integers to pairs of standard normal numbers, which are independent.
    ///
    /// # Panics
    ///
    /// If the slices differ in length, or it is odd.
    pub fn normals(integers: &[u32], values: &mut [f32]) {
        assert!(integers.len() == values.len() && values.len().is_multiple_of(2), "normals come in pairs");
        let (integers, _) = integers.as_chunks::<2>();
        let (values, _) = values.as_chunks_mut::<2>();
        for (&[u, v], pair) in integers.iter().zip(values) {
            let radius = (-2.0 * ln_of_share(u)).sqrt();
            let [cos, sin] = turn(v);
            *pair = [(radius * cos) as f32, (radius * sin) as f32];
        }
    }
}

/// `ln((u + 1) / 2³²)`: with `u + 1 = 2ᵏ m` and `s = (m − 1)/(m + 1)`, `ln m = 2 (s + s³/3 + s⁵/5 + …)`.
#[inline(always)]
fn ln_of_share(u: u32) -> f64 {
    let bits = (f64::from(u) + 1.0).to_bits() + SHIFT;
    let exponent = f64::from_bits(INTEGER | (bits >> 52)) - (4_503_599_627_370_496.0 + 1023.0 + 32.0);
    let m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) + ROOT_HALF);
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let series = [1.0 / 15.0, 1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0, 1.0];
    exponent * LN_2 + 2.0 * s * polynomial(z, series)
}

/// Cosine and sine of `v / 2³²` of a full turn.
#[inline(always)]
fn turn(v: u32) -> [f64; 2] {
    let quarter = v.wrapping_add(1 << 29) >> 30;
    let rest = v.wrapping_sub(quarter << 30).cast_signed();
    let x = f64::from(rest) * (TAU / 4_294_967_296.0);
    let z = x * x;
    let sin =
        [1.0 / 6_227_020_800.0, -1.0 / 39_916_800.0, 1.0 / 362_880.0, -1.0 / 5_040.0, 1.0 / 120.0, -1.0 / 6.0, 1.0];
    let sin = x * polynomial(z, sin);
    let cos = [-1.0 / 87_178_291_200.0, 1.0 / 479_001_600.0, -1.0 / 3_628_800.0, 1.0 / 40_320.0, -1.0 / 720.0];
    let cos = (polynomial(z, cos) * z + 1.0 / 24.0) * (z * z) + (1.0 - 0.5 * z);
    let (a, b) = if quarter & 1 == 0 { (cos, sin) } else { (sin, cos) };
    // Cosine is negative in the second and third quarter, sine in the third and fourth.
    [if (quarter + 1) & 2 == 0 { a } else { -a }, if quarter & 2 == 0 { b } else { -b }]
}

/// Horner's rule, the highest power first.
#[inline(always)]
fn polynomial<const N: usize>(x: f64, coefficients: [f64; N]) -> f64 {
    let mut sum = 0.0;
    for c in coefficients {
        sum = sum * x + c;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithm_and_turn_are_those_of_the_library() {
        let edges = [0, 1, 2, u32::MAX, u32::MAX - 1, 1 << 29, 1 << 30, 1 << 31, (1 << 29) - 1, (3 << 30) + (1 << 29)];
        for u in (0..=u32::MAX).step_by(65_519).chain(edges) {
            let share = (f64::from(u) + 1.0) / 4_294_967_296.0;
            let (exact, got) = (share.ln(), ln_of_share(u));
            assert!((got - exact).abs() <= 1e-13 * exact.abs(), "ln {share}: {got} for {exact}");
            let (sin, cos) = (TAU * f64::from(u) / 4_294_967_296.0).sin_cos();
            let [c, s] = turn(u);
            assert!((c - cos).abs() < 1e-13 && (s - sin).abs() < 1e-13, "turn {u}: {c} {s} for {cos} {sin}");
        }
    }
}
