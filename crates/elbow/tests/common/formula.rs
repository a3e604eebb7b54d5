//! Losses re-derived from the formulas in `f64`.
//!
//! This shares nothing with the library but the batch, the points the likelihood looks at, and the noise generator.
//! Stop-gradients are explicit: whatever a formula wraps in sg is computed at `base`, which stays where it is while `theta`
//! moves.

use super::{ADVANTAGES, B, Case, DIMS, GROUP, PROMPTS, REFERENCE, UNCONDITIONAL, WEIGHTS, behavior, current, lagged};
use burn::tensor::{Device, Tensor};
use elbow::{
    batch::Batch,
    kl::{Anchor, KlKind},
    likelihood::{
        Density, Draws, Elbo, LikelihoodKind, Neighbor, Normalizer, Points, Query, Ratio, StepWeights, Timesteps,
        Trajectory, Weighting,
    },
    noise::{self, Key, Purpose},
    sampler::{Branch, Cps, Dance, Ddim, FlowSde, SaSolver, SamplerKind, Sde, Window},
    schedule::Schedule,
};

pub(crate) type Weights = [f64; WEIGHTS];
pub(super) type Latent = [f64; DIMS];

/// One network evaluation of one sample, and what its velocity is compared with.
pub(super) struct Draw {
    x: Latent,
    /// As the network sees it.
    t: f64,
    /// As the formula has it.
    pub(super) time: f64,
    cond: [f64; 3],
    /// ELBO: ε. Trajectory: the next point.
    pub(super) goal: Latent,
    /// The finished sample.
    pub(super) clean: Latent,
    /// Neighbors: the next points of the group.
    neighbors: Vec<Latent>,
}

/// The re-derivation: `groups[query][sample]` are the draws that make one log-probability.
pub(crate) struct Formula<'a> {
    pub(super) case: &'a Case,
    pub(super) grid: Vec<f64>,
    groups: Vec<Vec<Vec<Draw>>>,
    /// The finished samples.
    clean: Vec<Latent>,
}

fn latents(tensor: &Tensor<2>) -> Vec<Latent> {
    let values: Vec<f64> = tensor.clone().into_data().iter::<f64>().collect();
    values.chunks(DIMS).map(|row| row.try_into().expect("the shape of a latent")).collect()
}

/// α, σ, α′, σ′.
pub(super) fn level(schedule: Schedule, t: f64) -> [f64; 4] {
    match schedule {
        Schedule::RectifiedFlow => [1.0 - t, t, -1.0, 1.0],
        Schedule::VariancePreserving { beta_min, beta_max } => {
            let alpha = (-0.25 * t * t * (beta_max - beta_min) - 0.5 * t * beta_min).exp();
            let sigma = (1.0 - alpha * alpha).sqrt();
            let d_alpha = alpha * (-0.5 * t * (beta_max - beta_min) - 0.5 * beta_min);
            [alpha, sigma, d_alpha, -alpha * d_alpha / sigma]
        }
        Schedule::ScaledLinear { beta_start, beta_end } => {
            // Hermite's basis between ln α at two steps, with half the sum of the neighboring differences as slopes.
            let (from, to) = (beta_start.sqrt(), beta_end.sqrt());
            let less = |i: f64| 0.5 * (1.0 - (from + (to - from) * i / 999.0).powi(2)).ln();
            let k = (t * 1000.0).floor().min(999.0);
            let at: f64 = (0..k as usize).map(|i| less(i as f64)).sum();
            let [f, here, next] =
                [t * 1000.0 - k, f64::midpoint(less(k - 1.0), less(k)), f64::midpoint(less(k), less(k + 1.0))];
            let [h00, h10] = [(1.0 + 2.0 * f) * (1.0 - f).powi(2), f * (1.0 - f).powi(2)];
            let [h01, h11] = [f * f * (3.0 - 2.0 * f), f * f * (f - 1.0)];
            let log_alpha = h00 * at + h10 * here + h01 * (at + less(k)) + h11 * next;
            let steep = 6.0 * f * (1.0 - f) * less(k);
            let rate = 1000.0 * (steep + (1.0 - f) * (1.0 - 3.0 * f) * here + f * (3.0 * f - 2.0) * next);
            let (alpha, sigma) = (log_alpha.exp(), (1.0 - (2.0 * log_alpha).exp()).sqrt());
            [alpha, sigma, alpha * rate, -alpha * alpha * rate / sigma]
        }
        Schedule::Linear { .. } | Schedule::SquaredCosine => unreachable!("the cases are on other paths"),
    }
}

pub(super) fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.into_iter().collect();
    values.iter().sum::<f64>() / values.len() as f64
}

/// The key that a sample's draws come from.
fn key(elbo: &Elbo, batch: &Batch, sample: usize, purpose: Purpose) -> Key {
    let owner = match elbo.draws {
        Draws::PerSample => sample,
        Draws::PerGroup => sample / GROUP * GROUP,
    };
    Key { purpose, ..batch.samples[owner].key }
}

/// A time that no grid has.
fn continuous(elbo: &Elbo, batch: &Batch, sample: usize, draw: usize) -> f64 {
    let Timesteps::LogitNormal { count, mean, std } = elbo.timesteps else { unreachable!("other times are levels") };
    let mut normals = Vec::new();
    key(elbo, batch, sample, Purpose::Timestep).extend_normals(count, &mut normals);
    let logit = mean + std * f64::from(normals[if elbo.antithetic { draw / 2 } else { draw }]);
    logit.exp() / (1.0 + logit.exp())
}

impl<'a> Formula<'a> {
    pub(crate) fn new(case: &'a Case, batch: &Batch, queries: &[Query]) -> Self {
        let mut formula =
            Self { case, grid: batch.grid.times.clone(), groups: Vec::new(), clean: latents(batch.clean()) };
        let clean = formula.clean.clone();
        for (q, query) in queries.iter().enumerate() {
            let (points, times) = (latents(&query.x), query.t.clone().into_data().iter::<f64>().collect::<Vec<_>>());
            let mut group: Vec<Vec<Draw>> = (0..B).map(|_| Vec::new()).collect();
            for (row, (x, t)) in points.into_iter().zip(times).enumerate() {
                // Draw after draw, all samples in each.
                let (sample, draw) = (row % B, q + row / B);
                let first = sample / GROUP * GROUP;
                let level = formula.grid.iter().position(|g| (g - t).abs() < 1e-6);
                let stored = |k: usize| latents(&batch.points[k])[sample];
                let (time, goal) = match case.likelihood {
                    LikelihoodKind::Elbo(elbo) => {
                        let time = level.map_or_else(|| continuous(&elbo, batch, sample, draw), |k| formula.grid[k]);
                        let point = level.filter(|_| elbo.points == Points::Sampler).map(stored);
                        (time, formula.noise(&elbo, batch, [sample, draw], x, clean[sample], time, point))
                    }
                    LikelihoodKind::Neighbor(_) => {
                        // The point of some member of the group.
                        let k = level.expect("a time of the grid");
                        let points = latents(&batch.points[k]);
                        let is = |point: &Latent| point.map(f64::to_bits) == x.map(f64::to_bits);
                        assert!(points[first..first + GROUP].iter().any(is), "{case:?}");
                        (formula.grid[k], stored(k + 1))
                    }
                    LikelihoodKind::Trajectory(_) => {
                        let k = level.expect("a time of the grid");
                        assert_eq!(x.map(f64::to_bits), stored(k).map(f64::to_bits), "{case:?}");
                        (formula.grid[k], stored(k + 1))
                    }
                };
                let neighbors = match case.likelihood {
                    LikelihoodKind::Neighbor(_) => {
                        let next = latents(&batch.points[1 + level.expect("a time of the grid")]);
                        next[first..first + GROUP].to_vec()
                    }
                    _ => Vec::new(),
                };
                let cond = PROMPTS[sample / GROUP].map(f64::from);
                group[sample].push(Draw { x, t, time, cond, goal, clean: clean[sample], neighbors });
            }
            formula.groups.push(group);
        }
        formula
    }

    /// ε of an ELBO's draw, after a check that the query looks at α x₀ + σ ε.
    #[expect(clippy::too_many_arguments, reason = "all that a draw is made of")]
    fn noise(
        &self,
        elbo: &Elbo,
        batch: &Batch,
        [sample, draw]: [usize; 2],
        x: Latent,
        clean: Latent,
        time: f64,
        point: Option<Latent>,
    ) -> Latent {
        let [alpha, sigma, ..] = level(self.case.schedule, time);
        if let Some(point) = point {
            assert_eq!(x.map(f64::to_bits), point.map(f64::to_bits), "{:?}", self.case);
            return std::array::from_fn(|i| (x[i] - alpha * clean[i]) / sigma);
        }
        let (draw, sign) = if elbo.antithetic { (draw / 2, [1.0, -1.0][draw % 2]) } else { (draw, 1.0) };
        let key = key(elbo, batch, sample, Purpose::Draw).draw(draw as u32);
        let noise = latents(&noise::normal([key], DIMS, &Device::flex()))[0].map(|e| sign * e);
        for i in 0..DIMS {
            let expected = alpha * clean[i] + sigma * noise[i];
            assert!((x[i] - expected).abs() < 1e-6, "{:?}: {} {expected}", self.case, x[i]);
        }
        noise
    }

    /// Advantage and finished sample of the two of a draw's group.
    pub(super) fn pair_of(&self, draw: &Draw) -> [(f64, Latent); 2] {
        let number = self.clean.iter().position(|clean| clean.map(f64::to_bits) == draw.clean.map(f64::to_bits));
        let first = number.expect("a sample of the batch") / GROUP * GROUP;
        [first, first + 1].map(|i| (ADVANTAGES[i], self.clean[i]))
    }

    /// The network with guidance.
    pub(super) fn velocity(&self, draw: &Draw, weights: &Weights) -> Latent {
        let branch = |cond: &[f64; 3]| -> Latent {
            std::array::from_fn(|i| {
                let channel = |from: usize| weights[from + i / 2];
                let prompt: f64 = (0..3).map(|j| cond[j] * weights[8 + j]).sum();
                let inside = channel(0) * draw.x[i] + channel(2) * draw.t + prompt;
                channel(4) * inside.tanh() + channel(6) * draw.x[i]
            })
        };
        let (with, without) = (branch(&draw.cond), branch(&UNCONDITIONAL.map(f64::from)));
        let g = self.case.sampler.guidance;
        std::array::from_fn(|i| without[i] + g * (with[i] - without[i]))
    }

    /// ln p of one draw; sg(m) of the adaptive weighting at `base`.
    pub(super) fn score(&self, draw: &Draw, theta: &Weights, base: &Weights) -> f64 {
        self.score_of(draw, self.velocity(draw, theta), self.velocity(draw, base))
    }

    /// The same of any velocity, and of that velocity without gradient.
    pub(super) fn score_of(&self, draw: &Draw, v: Latent, base: Latent) -> f64 {
        let t = draw.time;
        let g = self.case.sampler.guidance;
        match self.case.likelihood {
            LikelihoodKind::Elbo(elbo) => {
                let [alpha, sigma, d_alpha, d_sigma] = level(self.case.schedule, t);
                let (x0, eps) = (draw.clean, draw.goal);
                let e = |v: Latent| -> Latent { std::array::from_fn(|i| v[i] - d_alpha * x0[i] - d_sigma * eps[i]) };
                // x̂₀ − x₀, with x̂₀ solved from x and v.
                let d = |v: Latent| -> Latent {
                    std::array::from_fn(|i| {
                        let x = alpha * x0[i] + sigma * eps[i];
                        (d_sigma * x - sigma * v[i]) / (alpha * d_sigma - d_alpha * sigma) - x0[i]
                    })
                };
                match elbo.weighting {
                    Weighting::Adaptive => {
                        let shared = elbo.normalizer == Normalizer::Shared;
                        let measured = if shared { self.velocity(draw, &behavior().map(f64::from)) } else { base };
                        let m = mean(d(measured).map(f64::abs)).max(1e-5);
                        -mean(d(v).map(|d| d * d / m)) / g
                    }
                    Weighting::Simple => -mean(e(v).map(|e| e * e)) / (g * g),
                    Weighting::PathKl => {
                        let delta = alpha * d_sigma - d_alpha * sigma;
                        -alpha / (sigma * delta + 1e-3) * mean(e(v).map(|e| e * e))
                    }
                    Weighting::T => -mean(d(v).map(|d| d * d)),
                    Weighting::Noise => {
                        // ε̂ − ε, with ε̂ solved from x and v.
                        let delta = alpha * d_sigma - d_alpha * sigma;
                        let noise = |i: usize| (alpha * v[i] - d_alpha * (alpha * x0[i] + sigma * eps[i])) / delta;
                        let square: Latent = std::array::from_fn(|i| (noise(i) - eps[i]).powi(2));
                        -mean(square)
                    }
                    Weighting::AwmT => -t * mean(e(v).map(|e| e * e)),
                    Weighting::Huber => -t * ((mean(e(v).map(|e| e * e)) + 1e-10).sqrt() - 1e-5),
                    Weighting::Ghuber => {
                        let power = |square: f64| (elbo.power * (square + 1e-10).ln()).exp();
                        -t / elbo.power * (power(mean(e(v).map(|e| e * e))) - power(0.0))
                    }
                }
            }
            LikelihoodKind::Neighbor(neighbor) => {
                let step = self.next(draw) - draw.time;
                let near = |point: &Latent| {
                    let square = (0..DIMS).map(|i| (point[i] - draw.x[i] - step * v[i]).powi(2));
                    -mean(square) / neighbor.temperature
                };
                near(&draw.goal) - draw.neighbors.iter().map(|point| near(point).exp()).sum::<f64>().ln()
            }
            LikelihoodKind::Trajectory(trajectory) => {
                let (mu, variance) = self.transition(draw, v);
                let square = mean((0..DIMS).map(|i| (draw.goal[i] - mu[i]).powi(2)));
                match trajectory.density {
                    Density::SquaredError => -square,
                    Density::Gaussian => -square / (2.0 * variance) - (std::f64::consts::TAU * variance).ln() / 2.0,
                }
            }
        }
    }

    /// Mean and variance of the next point.
    pub(super) fn transition(&self, draw: &Draw, v: Latent) -> (Latent, f64) {
        let t = draw.time;
        let next = self.next(draw);
        let (dt, [alpha, sigma, d_alpha, d_sigma]) = (next - t, level(self.case.schedule, t));
        let [alpha_next, sigma_next, ..] = level(self.case.schedule, next);
        let delta = alpha * d_sigma - d_alpha * sigma;
        let clean: Latent = std::array::from_fn(|i| (d_sigma * draw.x[i] - sigma * v[i]) / delta);
        let noise: Latent = std::array::from_fn(|i| (alpha * v[i] - d_alpha * draw.x[i]) / delta);
        // dx = [v − (g²/2) ∇ ln p] dt + g dw
        let sde = |g: f64| {
            let drift = |i: usize| v[i] - g * g / 2.0 * (-noise[i] / t);
            (std::array::from_fn(|i| draw.x[i] + drift(i) * dt), g * g * -dt)
        };
        let redrawn = |variance: f64| {
            let kept = (sigma_next * sigma_next - variance).sqrt();
            (std::array::from_fn(|i| alpha_next * clean[i] + kept * noise[i]), variance)
        };
        let rule = match self.case.sampler.rule.clone() {
            SamplerKind::Window(Window { sde, .. }) | SamplerKind::Branch(Branch { sde, .. }) => match sde {
                Sde::FlowSde(s) => SamplerKind::FlowSde(s),
                Sde::Dance(s) => SamplerKind::Dance(s),
                Sde::Cps(s) => SamplerKind::Cps(s),
                Sde::Ddim(s) => SamplerKind::Ddim(s),
            },
            rule => rule,
        };
        match rule {
            SamplerKind::FlowSde(FlowSde { noise_level }) => {
                sde(noise_level * (t / (1.0 - t.min(self.grid[1]))).sqrt())
            }
            SamplerKind::Dance(Dance { eta }) => sde(eta),
            SamplerKind::Ddim(Ddim { eta }) => {
                let kept = sigma_next * alpha / alpha_next;
                redrawn((eta * sigma_next / sigma).powi(2) * (sigma * sigma - kept * kept))
            }
            SamplerKind::Cps(Cps { eta }) => redrawn((sigma_next * (eta * std::f64::consts::PI / 2.0).sin()).powi(2)),
            // Of first order: N(α′ x̂₀ + σ′ e^{−τ²h} ε̂, σ′² (1 − e^{−2τ²h}) I).
            SamplerKind::SaSolver(SaSolver { tau, order: 1, .. }) => {
                let h = (alpha_next / sigma_next).ln() - (alpha / sigma).ln();
                redrawn(sigma_next * sigma_next * (1.0 - (-2.0 * tau * tau * h).exp()))
            }
            _ => unreachable!("no density"),
        }
    }

    /// The level after that of a draw.
    fn next(&self, draw: &Draw) -> f64 {
        self.grid[1 + self.grid.iter().position(|g| g.to_bits() == draw.time.to_bits()).expect("a level")]
    }

    /// How much the objective's loss counts.
    fn weight(&self, draws: &[Draw]) -> f64 {
        let noise = |time: f64| {
            let [x, goal, clean] = [[0.0; DIMS]; 3];
            let draw = Draw { x, t: time, time, cond: [0.0; 3], goal, clean, neighbors: Vec::new() };
            self.transition(&draw, [0.0; DIMS]).1.sqrt()
        };
        match self.case.likelihood {
            LikelihoodKind::Trajectory(Trajectory { weights: StepWeights::Noise, .. }) => {
                noise(draws[0].time) / mean(self.grid[..self.grid.len() - 2].iter().map(|&t| noise(t)))
            }
            _ => 1.0,
        }
    }

    /// How long the step of a draw is.
    pub(super) fn length(&self, draw: &Draw) -> f64 {
        draw.time - self.next(draw)
    }

    /// mean ‖μ_θ − μ_b‖² / (2 · variance) of one step.
    pub(super) fn step_divergence(&self, draw: &Draw, theta: &Weights) -> f64 {
        self.step_divergence_from(draw, theta, &behavior().map(f64::from))
    }

    /// The same from other weights.
    fn step_divergence_from(&self, draw: &Draw, theta: &Weights, other: &Weights) -> f64 {
        let (here, variance) = self.transition(draw, self.velocity(draw, theta));
        let (there, _) = self.transition(draw, self.velocity(draw, other));
        mean((0..DIMS).map(|i| (here[i] - there[i]).powi(2))) / (2.0 * variance)
    }

    /// Several draws of a sample as one: mean of ELBOs, sum of steps unless their mean is asked for.
    pub(super) fn merge(&self, draws: impl ExactSizeIterator<Item = f64>) -> f64 {
        let count = draws.len() as f64;
        let sum: f64 = draws.sum();
        match self.case.likelihood {
            LikelihoodKind::Elbo(_)
            | LikelihoodKind::Trajectory(Trajectory { ratio: Ratio::PerSampleMean, .. })
            | LikelihoodKind::Neighbor(Neighbor { ratio: Ratio::PerSampleMean, .. }) => sum / count,
            LikelihoodKind::Trajectory(_) | LikelihoodKind::Neighbor(_) => sum,
        }
    }

    pub(super) fn log_prob(&self, draws: &[Draw], theta: &Weights, base: &Weights) -> f64 {
        self.merge(draws.iter().map(|draw| self.score(draw, theta, base)))
    }

    fn divergence(&self, draws: &[Draw], theta: &Weights, base: &Weights) -> f64 {
        let anchor = if self.case.kl.reference == Anchor::Base { REFERENCE } else { lagged() };
        let (reference, behavior) = (anchor.map(f64::from), behavior().map(f64::from));
        let l = self.log_prob(draws, theta, base);
        let d = l - self.log_prob(draws, &reference, &reference);
        let distance = |draw: &Draw| {
            let (v, v_ref) = (self.velocity(draw, theta), self.velocity(draw, &reference));
            mean((0..DIMS).map(|i| (v[i] - v_ref[i]).powi(2)))
        };
        let value = match self.case.kl.kind {
            KlKind::Girsanov => mean(draws.iter().map(distance)),
            // ½ g² ‖s_θ − s_ref‖² with the score s = −ε̂/σ and g² = 2 σ² d ln(σ/α)/dt; on rectified flow g² = 2t/(1 − t).
            KlKind::Path => mean(draws.iter().map(|draw| {
                let [alpha, sigma, d_alpha, d_sigma] = level(self.case.schedule, draw.time);
                let delta = alpha * d_sigma - d_alpha * sigma;
                distance(draw) * alpha / (sigma * delta + 1e-3)
            })),
            KlKind::Step => mean(draws.iter().map(|draw| self.step_divergence_from(draw, theta, &reference))),
            KlKind::StepDt => {
                mean(draws.iter().map(|draw| self.step_divergence_from(draw, theta, &reference) * self.length(draw)))
            }
            KlKind::K1 => d,
            KlKind::K2 => d * d / 2.0,
            KlKind::K3 => (-d).exp() - 1.0 + d,
            KlKind::K3Reversed => d.exp() - 1.0 - d,
        };
        let importance =
            if self.case.kl.importance { (l - self.log_prob(draws, &behavior, &behavior)).exp() } else { 1.0 };
        value * importance
    }

    /// The loss at `theta` with everything under a stop-gradient at `base`.
    pub(crate) fn loss(&self, theta: &Weights, base: &Weights) -> f64 {
        let samples = |group: &Vec<Vec<Draw>>| {
            let loss = |(i, draws): (usize, &Vec<Draw>)| {
                let policy = self.policy(ADVANTAGES[i], draws, theta, base);
                self.weight(draws) * policy.unwrap_or_else(|| self.of_batch(i, group, theta, base))
                    + self.case.kl.weight * self.divergence(draws, theta, base)
            };
            mean(group.iter().enumerate().map(loss))
        };
        mean(self.groups.iter().map(samples))
    }

    /// How many ratios lie outside and inside GRPO's range.
    pub(crate) fn outside(&self, clip: f64) -> [usize; 2] {
        let (current, behavior) = (current().map(f64::from), behavior().map(f64::from));
        let mut counts = [0; 2];
        for draws in self.groups.iter().flatten() {
            let rho = (self.log_prob(draws, &current, &current) - self.log_prob(draws, &behavior, &behavior)).exp();
            counts[usize::from((rho - 1.0).abs() <= clip)] += 1;
        }
        counts
    }

    /// Slopes of the loss along every weight, by a step of `width` to either side.
    pub(crate) fn finite_differences(&self, width: f64) -> Vec<f64> {
        let base = current().map(f64::from);
        let at = |i: usize, h: f64| {
            let mut theta = base;
            theta[i] += h;
            self.loss(&theta, &base)
        };
        (0..WEIGHTS).map(|i| (at(i, width) - at(i, -width)) / (2.0 * width)).collect()
    }
}
