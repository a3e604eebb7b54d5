//! How data turns into noise: x_t = α(t) x₀ + σ(t) ε, with t = 0 data and t = 1 noise.
//!
//! Rectified flow (arXiv 2209.03003) and variance-preserving diffusion (arXiv 2011.13456) are two choices of (α, σ).
//! Everything else follows: the velocity of the path is v = α′ x₀ + σ′ ε, and since (x_t, v) is linear in (x₀, ε),
//! either pair gives the other. With the determinant Δ = α σ′ − α′ σ,
//!
//! x₀ = (σ′ x_t − σ v) / Δ,   ε = (α v − α′ x_t) / Δ.

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;

/// The path from data to noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// α = 1 − t, σ = t: straight lines, as SD3, FLUX and the nano model have them (arXiv 2209.03003).
    #[default]
    RectifiedFlow,
    /// α² + σ² = 1 with ln α = −t²(β₁ − β₀)/4 − t β₀/2 (arXiv 2011.13456, appendix C): DDPM in continuous time.
    VariancePreserving {
        /// β₀, noise rate at t = 0.
        #[serde(default = "beta_min")]
        beta_min: f64,
        /// β₁, noise rate at t = 1.
        #[serde(default = "beta_max")]
        beta_max: f64,
    },
    /// DDPM in a thousand steps of growing noise, √β linear: Stable Diffusion 1 and 2 (arXiv 2112.10752).
    /// Step k is the time t = (k + 1)/1000, where α² is exactly Π (1 − β_i) over i ≤ k; between steps ln α is a cubic, and
    /// t = 0 is clean.
    ScaledLinear {
        /// β of the first step.
        #[serde(default = "beta_start")]
        beta_start: f64,
        /// β of the last step.
        #[serde(default = "beta_end")]
        beta_end: f64,
    },
    /// The same with β itself linear: DDPM as it was published (arXiv 2006.11239).
    Linear {
        /// β of the first step.
        #[serde(default = "linear_start")]
        beta_start: f64,
        /// β of the last step.
        #[serde(default = "linear_end")]
        beta_end: f64,
    },
    /// The same with α² = cos² of an angle that grows evenly, and no β above 0.999 (arXiv 2102.09672): `squaredcos_cap_v2` of diffusers.
    SquaredCosine,
}

/// Steps that models on [`Schedule::ScaledLinear`], [`Schedule::Linear`] and [`Schedule::SquaredCosine`] are trained on.
pub const SCALED_LINEAR_STEPS: usize = 1000;

fn beta_start() -> f64 {
    0.00085
}

fn beta_end() -> f64 {
    0.012
}

fn linear_start() -> f64 {
    0.0001
}

fn linear_end() -> f64 {
    0.02
}

fn beta_min() -> f64 {
    BETA_MIN
}

fn beta_max() -> f64 {
    BETA_MAX
}

impl Schedule {
    /// The usual rates of a variance-preserving path (arXiv 2011.13456).
    pub const VARIANCE_PRESERVING: Self = Self::VariancePreserving { beta_min: BETA_MIN, beta_max: BETA_MAX };
}

const BETA_MIN: f64 = 0.1;
const BETA_MAX: f64 = 20.0;

/// α, σ and their derivatives at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Weight of the data.
    pub alpha: f64,
    /// Weight of the noise.
    pub sigma: f64,
    /// dα/dt
    pub d_alpha: f64,
    /// dσ/dt
    pub d_sigma: f64,
}

impl Level {
    /// Δ = α σ′ − α′ σ; 1 for rectified flow.
    pub fn determinant(self) -> f64 {
        self.alpha * self.d_sigma - self.d_alpha * self.sigma
    }

    /// How much an error of the velocity moves the clean sample: x̂₀ − x₀ = −gain · (v̂ − v), gain = σ/Δ.
    pub fn clean_gain(self) -> f64 {
        self.sigma / self.determinant()
    }

    /// α/(σΔ + 10⁻³): the weight ½ g² (α/(Δσ))², g² = 2σΔ/α, of the squared distance of two velocities in the divergence of the paths
    /// that they make (Girsanov's theorem); (1 − t)/t on rectified flow.
    pub fn path_weight(self) -> f64 {
        self.alpha / (self.sigma * self.determinant() + 1e-3)
    }

    /// How much an error of the velocity moves the noise: ε̂ − ε = gain · (v̂ − v), gain = α/Δ.
    pub fn noise_gain(self) -> f64 {
        self.alpha / self.determinant()
    }
}

impl Schedule {
    /// α, σ, α′, σ′ at `t` in [0, 1].
    pub fn level(self, t: f64) -> Level {
        match self {
            Self::RectifiedFlow => Level { alpha: 1.0 - t, sigma: t, d_alpha: -1.0, d_sigma: 1.0 },
            Self::VariancePreserving { beta_min, beta_max } => {
                let log_alpha = -t * t * (beta_max - beta_min) / 4.0 - t * beta_min / 2.0;
                variance_preserving(log_alpha, -(t * (beta_max - beta_min) + beta_min) / 2.0)
            }
            Self::ScaledLinear { beta_start, beta_end } => {
                let (first, rise) = (beta_start.sqrt(), beta_end.sqrt() - beta_start.sqrt());
                discrete(t, |i| (first + rise * i / (STEPS - 1.0)).powi(2))
            }
            Self::Linear { beta_start, beta_end } => {
                discrete(t, |i| beta_start + (beta_end - beta_start) * i.min(STEPS - 1.0) / (STEPS - 1.0))
            }
            Self::SquaredCosine => discrete(t, squared_cosine),
        }
    }

    /// x_t for each row. `clean`, `noise` `[N, D]`, `t` one time a row.
    pub fn mix(self, clean: Tensor<2>, noise: Tensor<2>, t: &[f64]) -> Tensor<2> {
        let device = clean.device();
        clean * per_row(t, &device, |t| self.level(t).alpha) + noise * per_row(t, &device, |t| self.level(t).sigma)
    }

    /// The velocity of the path through `clean` and `noise`: α′ x₀ + σ′ ε.
    pub fn target(self, clean: Tensor<2>, noise: Tensor<2>, t: &[f64]) -> Tensor<2> {
        let device = clean.device();
        clean * per_row(t, &device, |t| self.level(t).d_alpha) + noise * per_row(t, &device, |t| self.level(t).d_sigma)
    }

    /// x̂₀ from a point and its velocity.
    pub fn clean(self, x: Tensor<2>, velocity: Tensor<2>, t: f64) -> Tensor<2> {
        let level = self.level(t);
        (x * level.d_sigma - velocity * level.sigma) / level.determinant()
    }

    /// ε̂ from a point and its velocity.
    pub fn noise(self, x: Tensor<2>, velocity: Tensor<2>, t: f64) -> Tensor<2> {
        let level = self.level(t);
        (velocity * level.alpha - x * level.d_alpha) / level.determinant()
    }
}

/// The level with the given ln α and its derivative, and α² + σ² = 1.
fn variance_preserving(log_alpha: f64, rate: f64) -> Level {
    let alpha = log_alpha.exp();
    // 1 − α² without cancellation near t = 0, where σ′ diverges: t is kept off 0 by the last grid level.
    let sigma = (-(2.0 * log_alpha).exp_m1()).sqrt().max(1e-8);
    let d_alpha = alpha * rate;
    Level { alpha, sigma, d_alpha, d_sigma: -alpha * d_alpha / sigma }
}

/// [`SCALED_LINEAR_STEPS`] as a number to divide by.
const STEPS: f64 = SCALED_LINEAR_STEPS as f64;

/// The level of a thousand steps whose β is given. Step i takes `log(i)` from ln α; between steps, ln α is the cubic whose slope at a step
/// is the mean of what the steps before and after it take, so that the derivative has no jumps.
fn discrete(t: f64, beta: impl Fn(f64) -> f64) -> Level {
    let log = |i: f64| (-beta(i)).ln_1p() / 2.0;
    let at = (t * STEPS).clamp(0.0, STEPS);
    let whole = at.floor().min(STEPS - 1.0);
    let before: f64 = (0..whole as usize).map(|i| log(i as f64)).sum();
    let (f, step) = (at - whole, log(whole));
    let (from, to) = (f64::midpoint(log(whole - 1.0), step), f64::midpoint(step, log(whole + 1.0)));
    let (square, cube) = (3.0 * step - 2.0 * from - to, from + to - 2.0 * step);
    let slope = from + f * (2.0 * square + f * 3.0 * cube);
    variance_preserving(before + f * (from + f * (square + f * cube)), slope * STEPS)
}

/// β of a step of [`Schedule::SquaredCosine`]; those before the first and after the last are these.
fn squared_cosine(i: f64) -> f64 {
    let i = i.clamp(0.0, STEPS - 1.0);
    let square = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    (1.0 - square((i + 1.0) / STEPS) / square(i / STEPS)).min(0.999)
}

/// α² after each of the thousand steps of these β.
fn products(betas: impl Iterator<Item = f64>) -> Vec<f64> {
    let step = |product: &mut f64, beta: f64| {
        *product *= 1.0 - beta;
        Some(*product)
    };
    betas.scan(1.0, step).collect()
}

impl Schedule {
    /// The schedule whose thousand β these are, to 10⁻⁴ of α² after each step; `None` if they are not those of a formula that is known here.
    pub fn of_betas(betas: &[f64]) -> Option<Self> {
        let (&[beta_start, .., beta_end], SCALED_LINEAR_STEPS) = (betas, betas.len()) else { return None };
        let given = products(betas.iter().copied());
        let known =
            [Self::ScaledLinear { beta_start, beta_end }, Self::Linear { beta_start, beta_end }, Self::SquaredCosine];
        known.into_iter().find(|schedule| {
            let alpha_squared = |k: usize| schedule.level((k + 1) as f64 / STEPS).alpha.powi(2);
            given.iter().enumerate().all(|(k, &given)| (alpha_squared(k) / given - 1.0).abs() < 1e-4)
        })
    }
}

/// One number a row, shaped `[N, 1]` to multiply latents with.
pub fn per_row(t: &[f64], device: &burn::tensor::Device, f: impl Fn(f64) -> f64) -> Tensor<2> {
    let values: Vec<f32> = t.iter().map(|&t| f(t) as f32).collect();
    Tensor::from_data(burn::tensor::TensorData::new(values, [t.len(), 1]), device)
}

/// SD3's time shift, σ′ = s σ / (1 + (s − 1) σ): s > 1 spends more steps near noise (arXiv 2403.03206, eq. 23).
pub fn shift(t: f64, by: f64) -> f64 {
    by * t / (1.0 + (by - 1.0) * t)
}

/// `steps + 1` times from 1 down to 0, as the reference scheduler makes them: evenly from 1 to the *shifted* smallest
/// training level (1/1000), then shifted again, then 0. The double shift is the reference's, kept for equal grids.
pub fn grid(steps: usize, by: f64) -> Vec<f64> {
    let last = shift(0.001, by);
    let even = |i: usize| if steps == 1 { 1.0 } else { 1.0 + (last - 1.0) * i as f64 / (steps - 1) as f64 };
    (0..steps).map(|i| shift(even(i), by)).chain([0.0]).collect()
}

/// The times that a walk from noise to data stops at.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Spacing {
    /// [`grid`]: as `FlowMatchEulerDiscreteScheduler` of diffusers makes them, shifted twice.
    #[default]
    Diffusers,
    /// Evenly from 1 to 0, shifted once: DanceGRPO's and MixGRPO's. The word `"pipeline"` says the same: FLUX's pipeline shifts
    /// `linspace(1, 1/T, T)`.
    Uniform,
    /// Training steps of a thousand, evenly up from the second (T = 50: 981, 961, …, 1) and down to the first, where the walk ends:
    /// Stable Diffusion 1 as its pipeline and DDPO (arXiv 2305.13301) draw. The shift has no effect.
    Leading,
    /// These T times, falling, and then 0. The shift has no effect.
    Times(Vec<f64>),
}

impl Spacing {
    /// The `steps + 1` times, from noise on.
    pub fn times(&self, steps: usize, by: f64) -> Vec<f64> {
        match self {
            Self::Diffusers => grid(steps, by),
            Self::Uniform => (0..=steps).map(|i| shift(1.0 - i as f64 / steps as f64, by)).collect(),
            Self::Leading => {
                let training_step = |i: usize| i * (SCALED_LINEAR_STEPS / steps) + 1;
                let times = (0..steps).rev().map(|i| (training_step(i) + 1) as f64 / SCALED_LINEAR_STEPS as f64);
                times.chain([1.0 / SCALED_LINEAR_STEPS as f64]).collect()
            }
            Self::Times(times) => times.iter().copied().chain([0.0]).collect(),
        }
    }

    /// The same for any number of steps: of a list, diffusers' grid.
    #[must_use]
    pub fn of_any_length(&self) -> Self {
        if matches!(self, Self::Times(_)) { Self::default() } else { self.clone() }
    }

    /// Why there are no such times in a walk of `steps`, one sentence each. `place` is where a recipe says it.
    pub fn validate(&self, place: &str, steps: usize) -> Vec<String> {
        let mut problems = Vec::new();
        match self {
            Self::Leading if steps > SCALED_LINEAR_STEPS / 2 => problems.push(format!(
                "{place}.grid = \"leading\" and {place}.steps = {steps}: at most {} of {SCALED_LINEAR_STEPS} training steps",
                SCALED_LINEAR_STEPS / 2
            )),
            Self::Diffusers | Self::Uniform | Self::Leading => {}
            Self::Times(times) => {
                if times.len() != steps {
                    let count = times.len();
                    problems.push(format!("{place}.grid has {count} times and {place}.steps = {steps}: make them equal"));
                }
                let inside = times.iter().all(|t| *t > 0.0 && *t <= 1.0);
                if !inside || times.windows(2).any(|pair| pair[0] <= pair[1]) {
                    problems.push(format!("{place}.grid: times fall from 1 or below and stay above 0; 0 follows by itself"));
                }
            }
        }
        problems
    }
}

impl Serialize for Spacing {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Diffusers => to.serialize_str("diffusers"),
            Self::Uniform => to.serialize_str("uniform"),
            Self::Leading => to.serialize_str("leading"),
            Self::Times(times) => times.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for Spacing {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ReadSpacing)
    }
}

struct ReadSpacing;

impl<'de> de::Visitor<'de> for ReadSpacing {
    type Value = Spacing;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("\"diffusers\", \"uniform\", \"pipeline\", \"leading\", or a list of falling times")
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<Spacing, E> {
        match word {
            "diffusers" => Ok(Spacing::Diffusers),
            "uniform" | "pipeline" => Ok(Spacing::Uniform),
            "leading" => Ok(Spacing::Leading),
            _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
        }
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Spacing, A::Error> {
        let mut times = Vec::new();
        while let Some(time) = list.next_element()? {
            times.push(time);
        }
        Ok(Spacing::Times(times))
    }
}

impl JsonSchema for Spacing {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Spacing".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["string", "array"] })
    }
}

/// Times of a walk from noise to data, and the path's levels there.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// The path.
    pub schedule: Schedule,
    /// T + 1 of them, falling, from noise on.
    pub times: Vec<f64>,
    levels: Vec<Level>,
}

impl Grid {
    /// These times on a path.
    pub fn new(schedule: Schedule, times: Vec<f64>) -> Self {
        let levels = times.iter().map(|&t| schedule.level(t)).collect();
        Self { schedule, times, levels }
    }

    /// T, the number of steps.
    pub fn steps(&self) -> usize {
        self.times.len() - 1
    }

    /// α, σ, α′, σ′ at `times[k]`.
    pub fn level(&self, k: usize) -> Level {
        self.levels[k]
    }

    /// Whether step `k` ends at data.
    pub fn is_last(&self, k: usize) -> bool {
        self.times[k + 1] <= 0.0
    }

    /// Step `k` in λ = ln(α/σ): its length h, infinite from pure noise and to data, and e^{−h}, which is finite everywhere.
    pub fn span(&self, k: usize) -> (f64, f64) {
        let (from, to) = (self.levels[k], self.levels[k + 1]);
        let lambda = |level: Level| (level.alpha / level.sigma).ln();
        (lambda(to) - lambda(from), (from.alpha * to.sigma) / (from.sigma * to.alpha))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sd3_grid_of_ten_steps() {
        let expected = [1.0, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0.0];
        let grid = grid(10, 3.0);
        assert!(grid.iter().zip(expected).all(|(a, b)| (a - b).abs() < 6e-5), "{grid:?}");
    }

    /// FLUX's pipeline shifts `linspace(1, 1/T, T)`, DanceGRPO `linspace(1, 0, T + 1)`: the same times.
    #[test]
    fn a_uniform_grid_is_shifted_once() {
        let (steps, by) = (16, 3.0);
        let uniform = Spacing::Uniform.times(steps, by);
        let linspace = |i: usize| 1.0 + (1.0 / steps as f64 - 1.0) * i as f64 / (steps - 1) as f64;
        let pipeline = (0..steps).map(|i| shift(linspace(i), by)).chain([0.0]);
        assert!(uniform.iter().zip(pipeline).all(|(a, b)| (a - b).abs() < 1e-12), "{uniform:?}");
        assert_eq!(uniform.len(), 17);
        // Not diffusers' own, whose smallest level is shifted twice.
        assert!((grid(steps, by)[steps - 1] - uniform[steps - 1]).abs() > 0.1);
    }

    /// 981, 961, …, 1 and then step 0, of a thousand numbered from 0.
    #[test]
    fn leading_steps_are_those_of_stable_diffusion() {
        let times = Spacing::Leading.times(50, 1.0);
        let steps: Vec<i64> = times.iter().map(|t| (t * 1000.0).round() as i64 - 1).collect();
        assert_eq!((steps[0], steps[1], steps[49], steps[50], steps.len()), (981, 961, 1, 0, 51));
        assert!(!Grid::new(STABLE_DIFFUSION, times).is_last(49), "its last step has noise");
    }

    #[test]
    fn a_grid_is_a_word_or_a_list() {
        let read = |text: &str| serde_json::from_str::<Spacing>(text);
        assert_eq!(read("\"pipeline\"").expect("a word"), Spacing::Uniform);
        let list = read("[0.999, 0.5, 0.25]").expect("a list");
        assert_eq!(list.times(3, 3.0), [0.999, 0.5, 0.25, 0.0]);
        assert_eq!(serde_json::to_string(&list).expect("text"), "[0.999,0.5,0.25]");
        let error = read("\"evenly\"").expect_err("no word of it").to_string();
        assert!(error.contains("\"diffusers\", \"uniform\""), "{error}");
        assert!(list.validate("sampler", 3).is_empty());
        for (times, part) in [(vec![0.5], "1 times"), (vec![0.2, 0.5, 0.1], "fall"), (vec![1.5, 0.5, 0.1], "fall")] {
            let problems = Spacing::Times(times).validate("sampler", 3);
            assert!(problems.len() == 1 && problems[0].contains(part), "{problems:?}");
        }
        assert_eq!(Spacing::Leading.validate("sampler", 501).len(), 1);
    }

    const STABLE_DIFFUSION: Schedule = Schedule::ScaledLinear { beta_start: 0.00085, beta_end: 0.012 };
    const LINEAR: Schedule = Schedule::Linear { beta_start: 0.0001, beta_end: 0.02 };

    /// Each schedule.
    fn any() -> impl Strategy<Value = Schedule> {
        let vp = Schedule::VariancePreserving { beta_min: 0.1, beta_max: 20.0 };
        proptest::sample::select(vec![Schedule::RectifiedFlow, vp, STABLE_DIFFUSION, LINEAR, Schedule::SquaredCosine])
    }

    /// A table of β is known by its formula, also where it was rounded to float32, and no other is taken for one.
    #[test]
    fn betas_are_known_by_their_formula() {
        let root = |i: f64| (0.00085f64.sqrt() + (0.012f64.sqrt() - 0.00085f64.sqrt()) * i / 999.0).powi(2);
        let table = |beta: &dyn Fn(f64) -> f64| -> Vec<f64> {
            (0..1000).map(|i| f64::from(beta(f64::from(i)) as f32)).collect()
        };
        let scaled = table(&root);
        let Some(Schedule::ScaledLinear { beta_start, beta_end }) = Schedule::of_betas(&scaled) else {
            panic!("unknown")
        };
        assert!((beta_start - 0.00085).abs() < 1e-9 && (beta_end - 0.012).abs() < 1e-8);
        let linear = table(&|i| 0.0001 + 0.0199 * i / 999.0);
        assert!(matches!(Schedule::of_betas(&linear), Some(Schedule::Linear { .. })));
        assert_eq!(Schedule::of_betas(&table(&squared_cosine)), Some(Schedule::SquaredCosine));
        let mut other = scaled.clone();
        other[500] *= 1.1;
        assert_eq!(Schedule::of_betas(&other), None);
        assert_eq!(Schedule::of_betas(&scaled[..999]), None);
        assert_eq!(Schedule::of_betas(&[]), None);
    }

    /// ᾱ is a product of 1 − β, and the ends are clean data and nearly pure noise.
    #[test]
    fn discrete_steps_are_exact() {
        let mut product = 1.0;
        for k in 0..SCALED_LINEAR_STEPS {
            let root = 0.00085f64.sqrt() + k as f64 / 999.0 * (0.012f64.sqrt() - 0.00085f64.sqrt());
            product *= 1.0 - root.powi(2);
            let level = STABLE_DIFFUSION.level((k + 1) as f64 / 1000.0);
            assert!((level.alpha.powi(2) / product - 1.0).abs() < 1e-10, "step {k}");
        }
        assert!((product - 0.00466).abs() < 1e-5, "{product}");
        let clean = STABLE_DIFFUSION.level(0.0);
        assert!((clean.alpha - 1.0).abs() < 1e-15 && clean.sigma < 1e-7, "{clean:?}");
    }

    #[test]
    fn slopes_do_not_jump_at_steps() {
        for k in 1..SCALED_LINEAR_STEPS {
            let t = k as f64 / 1000.0;
            let [below, above] = [t - 1e-9, t + 1e-9].map(|t| STABLE_DIFFUSION.level(t).d_sigma);
            assert!((below / above - 1.0).abs() < 1e-5 && below > 0.0, "step {k}: {below} {above}");
        }
    }

    proptest! {
        #[test]
        fn derivatives_match_finite_differences(t in 0.05f64..0.95, schedule in any()) {
            let vp = schedule != Schedule::RectifiedFlow;
            let (a, b, l, h) = (schedule.level(t - 1e-6), schedule.level(t + 1e-6), schedule.level(t), 2e-6);
            prop_assert!(((b.alpha - a.alpha) / h - l.d_alpha).abs() < 1e-6 * (1.0 + l.d_alpha.abs()));
            prop_assert!(((b.sigma - a.sigma) / h - l.d_sigma).abs() < 1e-6 * (1.0 + l.d_sigma.abs()));
            if vp { prop_assert!((l.alpha.powi(2) + l.sigma.powi(2) - 1.0).abs() < 1e-12); }
        }

        #[test]
        fn clean_and_noise_come_back(t in 0.1f64..0.9, x0 in -2f32..2.0, e in -2f32..2.0, schedule in any()) {
            let device = burn::tensor::Device::flex();
            let one = |v: f32| Tensor::<2>::full([1, 1], v, &device);
            let (x, v) = (schedule.mix(one(x0), one(e), &[t]), schedule.target(one(x0), one(e), &[t]));
            let clean = schedule.clean(x.clone(), v.clone(), t).into_scalar::<f32>();
            let noise = schedule.noise(x, v, t).into_scalar::<f32>();
            let tolerance = 2e-5 / (schedule.level(t).alpha as f32).min(1.0);
            prop_assert!((clean - x0).abs() < tolerance && (noise - e).abs() < tolerance, "{clean} {x0} {noise} {e}");
        }
    }
}
