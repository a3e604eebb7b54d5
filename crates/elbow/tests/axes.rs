//! The full product of the three axes: for every legal combination, the loss and its gradient by automatic
//! differentiation against an `f64` re-derivation from the formulas and its central finite differences.
//!
//! The re-derivation shares nothing with the library but the rollout, the points the likelihood looks at, and the noise
//! generator. Stop-gradients are explicit in it: whatever a formula wraps in sg is computed at `base`, which stays where it
//! is while `theta` moves.

use burn::tensor::{Device, Tensor, TensorData};
use elbow::{
    Prompt, RgbImage,
    evaluation::Evaluation,
    guidance::Guided,
    kl::{Kl, KlKind},
    likelihood::{Elbo, LikelihoodKind, Query, Ratio, Rollout, Timesteps, Trajectory, Weighting},
    noise::{self, Key, Purpose},
    objective::{Epg, Grpo, ObjectiveKind, Par, Pepg},
    params::{Params, Tensors},
    policy::{Conditioning, EncodeError, Policy, VelocityField},
    sampler::{self, Dpm2, Euler, FlowSde, SamplerKind, Sampling},
    schedule::Schedule,
};

const B: usize = 4;
const SHAPE: [usize; 3] = [2, 1, 2];
const DIMS: usize = 4;
const STEPS: usize = 5;
const WEIGHTS: usize = 11;
const ADVANTAGES: [f64; B] = [0.9, -1.3, 0.4, -0.2];
const UNCONDITIONAL: [f32; 3] = [0.5, -0.5, 0.25];
const PROMPTS: [[f32; 3]; B] = [[0.2, 0.9, -0.4], [0.2, 0.9, -0.4], [-0.7, 0.1, 0.6], [-0.7, 0.1, 0.6]];
const REFERENCE: [f32; WEIGHTS] = [0.8, -0.5, 0.3, 0.6, -0.9, 0.7, -0.3, 0.2, 0.4, -0.6, 0.5];

/// v = w tanh(a x + b t + c·prompt) + e x, with a, b, w and e one number a channel.
struct Tiny;

/// [`Tiny`] with its weights.
struct Field(Tensors);

impl Field {
    fn per_channel(&self, name: &str) -> Tensor<4> {
        self.0.tensor::<1>(name).reshape([1, 2, 1, 1])
    }
}

impl VelocityField for Field {
    fn velocity(&self, x: Tensor<4>, t: Tensor<1>, cond: &Conditioning) -> Tensor<4> {
        let n = t.dims()[0];
        let c: Tensor<2> = self.0.tensor::<1>("c").reshape([1, 3]);
        let prompt = (cond.pooled.clone() * c).sum_dim(1).reshape([n, 1, 1, 1]);
        let inside = x.clone() * self.per_channel("a") + t.reshape([n, 1, 1, 1]) * self.per_channel("b") + prompt;
        inside.tanh() * self.per_channel("w") + x * self.per_channel("e")
    }
}

fn params(values: [f32; WEIGHTS]) -> Params {
    let entry = |name: &str, from: usize, len: usize| (name.to_owned(), vec![len], values[from..from + len].to_vec());
    Params::new([entry("a", 0, 2), entry("b", 2, 2), entry("w", 4, 2), entry("e", 6, 2), entry("c", 8, 3)])
}

impl Policy for Tiny {
    fn latent_shape(&self) -> [usize; 3] {
        SHAPE
    }

    fn initial(&self) -> Params {
        params(REFERENCE)
    }

    fn bind(&self, trained: Option<&Tensors>) -> Box<dyn VelocityField> {
        Box::new(Field(trained.cloned().unwrap_or_else(|| self.initial().tensors(&Device::flex()))))
    }

    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        // The number of a row, or nothing.
        let row = |p: &Prompt| p.text.parse::<usize>().map_or(UNCONDITIONAL, |i| PROMPTS[i]);
        let (n, device) = (prompts.len(), Device::flex());
        let pooled: Vec<f32> = prompts.iter().flat_map(row).collect();
        let pooled = Tensor::from_data(TensorData::new(pooled, [n, 3]), &device);
        Ok(Conditioning { tokens: Tensor::zeros([n, 1, 1], &device), pooled })
    }

    fn decode(&self, latents: Tensor<4>) -> Vec<RgbImage> {
        vec![RgbImage::new(1, 1); latents.dims()[0]]
    }
}

/// What the behavior and the current weights are away from the reference, and from each other.
fn behavior() -> [f32; WEIGHTS] {
    std::array::from_fn(|i| REFERENCE[i] + 0.05 * (1.0 + i as f32 * 2.3).sin())
}

fn current() -> [f32; WEIGHTS] {
    let behavior = behavior();
    std::array::from_fn(|i| behavior[i] + 0.005 * (0.5 + i as f32 * 1.7).cos())
}

/// One combination of the axes.
#[derive(Clone, Copy, Debug)]
struct Case {
    objective: ObjectiveKind,
    likelihood: LikelihoodKind,
    sampling: Sampling,
    schedule: Schedule,
    kl: Kl,
}

impl Case {
    fn refusal(&self) -> Option<String> {
        let sampler = self.sampling.rule.get().refuses(self.schedule);
        sampler.or_else(|| self.likelihood.get().refuses(&self.sampling, self.schedule))
    }

    fn guided(&self, field: Box<dyn VelocityField>) -> Guided<'static> {
        let unconditional = Tiny.encode(&[Prompt::from("")]).expect("any prompt is known");
        Guided { field, scale: self.sampling.guidance, unconditional }
    }

    fn field(&self, weights: [f32; WEIGHTS]) -> Guided<'static> {
        self.guided(Tiny.bind(Some(&params(weights).tensors(&Device::flex()))))
    }

    /// Images (and the path, where the likelihood wants it) from the behavior weights.
    fn rollout(&self) -> Rollout {
        let keys: Vec<Key> = (0..B as u64).map(|i| Key::new(11, Purpose::Step, 4).sample(i)).collect();
        let prompts: Vec<Prompt> = (0..B).map(|i| Prompt::from(i.to_string().as_str())).collect();
        let cond = Tiny.encode(&prompts).expect("any prompt is known");
        let start = noise::normal(keys.iter().map(|&k| Key { purpose: Purpose::Start, ..k }), SHAPE, &Device::flex());
        let keep = self.likelihood.get().needs_trajectory();
        let points = sampler::sample(&self.field(behavior()), &self.sampling, self.schedule, start, &cond, &keys, keep);
        Rollout { points, cond, keys, sampling: self.sampling, schedule: self.schedule }
    }

    /// The mean loss over samples and queries, and its gradient, as the trainer takes them.
    fn automatic(&self, queries: &[Query]) -> (f64, Vec<f64>) {
        let weights = params(current());
        let leaves = weights.tensors(&Device::flex().autodiff());
        let field = self.guided(Tiny.bind(Some(&leaves)));
        let (behavior, reference) = (self.field(behavior()), self.guided(Tiny.bind(None)));
        let mut gradient = weights.zeros_like();
        let mut total = 0.0;
        for query in queries {
            let e = Evaluation::new(query, &field, Some(&behavior), &reference);
            let advantages = TensorData::new(ADVANTAGES.to_vec(), [B]);
            let advantages = Tensor::from_data(advantages, (&Device::flex(), e.log_prob().dtype()));
            let mut loss = self.objective.get().loss(&e, advantages);
            if let Some(kl) = self.kl.value(&e) {
                loss = loss + kl * self.kl.weight;
            }
            let loss = loss.sum() / (B * queries.len()) as f64;
            total += loss.clone().inner().into_scalar::<f64>();
            gradient.add_gradients(&leaves, &mut loss.backward());
        }
        (total, gradient.values().iter().copied().map(f64::from).collect())
    }
}

type Weights = [f64; WEIGHTS];
type Latent = [f64; DIMS];

/// One network evaluation of one sample, and what its velocity is compared with.
struct Draw {
    x: Latent,
    /// As the network sees it.
    t: f64,
    cond: [f64; 3],
    /// The step of the grid that t is.
    k: usize,
    /// ELBO: ε. Trajectory: the next point.
    goal: Latent,
    /// The finished image.
    clean: Latent,
}

/// The re-derivation: `groups[query][sample]` are the draws that make one log-probability.
struct Formula<'a> {
    case: &'a Case,
    grid: Vec<f64>,
    groups: Vec<Vec<Vec<Draw>>>,
}

fn latents(tensor: &Tensor<4>) -> Vec<Latent> {
    let values: Vec<f64> = tensor.clone().into_data().iter::<f64>().collect();
    values.chunks(DIMS).map(|row| row.try_into().expect("the shape of a latent")).collect()
}

/// α, σ, α′, σ′.
fn level(schedule: Schedule, t: f64) -> [f64; 4] {
    match schedule {
        Schedule::RectifiedFlow => [1.0 - t, t, -1.0, 1.0],
        Schedule::VariancePreserving { beta_min, beta_max } => {
            let alpha = (-0.25 * t * t * (beta_max - beta_min) - 0.5 * t * beta_min).exp();
            let sigma = (1.0 - alpha * alpha).sqrt();
            let d_alpha = alpha * (-0.5 * t * (beta_max - beta_min) - 0.5 * beta_min);
            [alpha, sigma, d_alpha, -alpha * d_alpha / sigma]
        }
    }
}

fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.into_iter().collect();
    values.iter().sum::<f64>() / values.len() as f64
}

impl<'a> Formula<'a> {
    fn new(case: &'a Case, rollout: &Rollout, queries: &[Query]) -> Self {
        let mut formula = Self { case, grid: case.sampling.times(), groups: Vec::new() };
        let clean = latents(rollout.images());
        for (q, query) in queries.iter().enumerate() {
            let (points, times) = (latents(&query.x), query.t.clone().into_data().iter::<f64>().collect::<Vec<_>>());
            let mut group: Vec<Vec<Draw>> = (0..B).map(|_| Vec::new()).collect();
            for (row, (x, t)) in points.into_iter().zip(times).enumerate() {
                // Draw after draw, all samples in each.
                let (sample, draw) = (row % B, q + row / B);
                let k = formula.grid.iter().position(|g| *g as f32 == t as f32).expect("a time of the grid");
                let goal = match case.likelihood {
                    LikelihoodKind::Elbo(_) => {
                        let key = Key { purpose: Purpose::Draw, ..rollout.keys[sample] }.draw(draw as u32);
                        let noise = latents(&noise::normal([key], SHAPE, &Device::flex()))[0];
                        let [alpha, sigma, ..] = level(case.schedule, formula.grid[k]);
                        for i in 0..DIMS {
                            let expected = alpha * clean[sample][i] + sigma * noise[i];
                            assert!((x[i] - expected).abs() < 1e-6, "{case:?}: {} {expected}", x[i]);
                        }
                        noise
                    }
                    LikelihoodKind::Trajectory(_) => {
                        assert_eq!((k, x), (draw, latents(&rollout.points[k])[sample]), "{case:?}");
                        latents(&rollout.points[k + 1])[sample]
                    }
                };
                let cond = PROMPTS[sample].map(f64::from);
                group[sample].push(Draw { x, t, cond, k, goal, clean: clean[sample] });
            }
            formula.groups.push(group);
        }
        formula
    }

    /// The network with guidance.
    fn velocity(&self, draw: &Draw, weights: &Weights) -> Latent {
        let branch = |cond: &[f64; 3]| -> Latent {
            std::array::from_fn(|i| {
                let channel = |from: usize| weights[from + i / 2];
                let prompt: f64 = (0..3).map(|j| cond[j] * weights[8 + j]).sum();
                let inside = channel(0) * draw.x[i] + channel(2) * draw.t + prompt;
                channel(4) * inside.tanh() + channel(6) * draw.x[i]
            })
        };
        let (with, without) = (branch(&draw.cond), branch(&UNCONDITIONAL.map(f64::from)));
        let g = self.case.sampling.guidance;
        std::array::from_fn(|i| without[i] + g * (with[i] - without[i]))
    }

    /// ln p of one draw; sg(m) of the adaptive weighting at `base`.
    fn score(&self, draw: &Draw, theta: &Weights, base: &Weights) -> f64 {
        let t = self.grid[draw.k];
        let g = self.case.sampling.guidance;
        let v = self.velocity(draw, theta);
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
                        let m = mean(d(self.velocity(draw, base)).map(f64::abs)).max(1e-5);
                        -mean(d(v).map(|d| d * d / m)) / g
                    }
                    Weighting::Simple => -mean(e(v).map(|e| e * e)) / (g * g),
                    Weighting::PathKl => -(1.0 - t) / (t + 1e-3) * mean(e(v).map(|e| e * e)),
                    Weighting::T => -mean(d(v).map(|d| d * d)),
                }
            }
            LikelihoodKind::Trajectory(_) => {
                let SamplerKind::FlowSde(FlowSde { noise_level }) = self.case.sampling.rule else {
                    unreachable!("only an SDE has densities")
                };
                let dt = self.grid[draw.k + 1] - t;
                let s = noise_level * (t / (1.0 - t.min(self.grid[1]))).sqrt();
                mean((0..DIMS).map(|i| {
                    let score = -(draw.x[i] + (1.0 - t) * v[i]) / t;
                    let mean = draw.x[i] + (v[i] - s * s / 2.0 * score) * dt;
                    let variance = s * s * -dt;
                    -(draw.goal[i] - mean).powi(2) / (2.0 * variance) - (std::f64::consts::TAU * variance).ln() / 2.0
                }))
            }
        }
    }

    /// Several draws of a sample as one: mean of ELBOs, sum of steps.
    fn merge(&self, draws: impl ExactSizeIterator<Item = f64>) -> f64 {
        let count = draws.len() as f64;
        let sum: f64 = draws.sum();
        if matches!(self.case.likelihood, LikelihoodKind::Elbo(_)) { sum / count } else { sum }
    }

    fn log_prob(&self, draws: &[Draw], theta: &Weights, base: &Weights) -> f64 {
        self.merge(draws.iter().map(|draw| self.score(draw, theta, base)))
    }

    fn divergence(&self, draws: &[Draw], theta: &Weights, base: &Weights) -> f64 {
        let (reference, behavior) = (REFERENCE.map(f64::from), behavior().map(f64::from));
        let l = self.log_prob(draws, theta, base);
        let d = l - self.log_prob(draws, &reference, &reference);
        let value = match self.case.kl.kind {
            KlKind::Girsanov => self.merge(draws.iter().map(|draw| {
                let (v, v_ref) = (self.velocity(draw, theta), self.velocity(draw, &reference));
                mean((0..DIMS).map(|i| (v[i] - v_ref[i]).powi(2)))
            })),
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
    fn loss(&self, theta: &Weights, base: &Weights) -> f64 {
        let behavior = behavior().map(f64::from);
        let one = |sample: usize, draws: &[Draw]| {
            let a = ADVANTAGES[sample];
            let l = self.log_prob(draws, theta, base);
            let l_b = self.log_prob(draws, &behavior, &behavior);
            let frozen = self.log_prob(draws, base, base) - l_b;
            let factor = |ratio: bool| if ratio { frozen.exp() } else { 1.0 };
            let policy = match self.case.objective {
                ObjectiveKind::Epg(Epg { ratio }) => -factor(ratio) * a * l,
                ObjectiveKind::Pepg(Pepg { ratio }) => -factor(ratio) * (a - frozen) * l,
                ObjectiveKind::Par(Par { ratio }) => 0.5 * factor(ratio) * (a - (l - l_b)).powi(2),
                ObjectiveKind::Grpo(Grpo { clip, max_advantage }) => {
                    let (a, rho) = (a.clamp(-max_advantage, max_advantage), (l - l_b).exp());
                    f64::max(-a * rho, -a * rho.clamp(1.0 - clip, 1.0 + clip))
                }
            };
            policy + self.case.kl.weight * self.divergence(draws, theta, base)
        };
        let samples = |group: &Vec<Vec<Draw>>| mean(group.iter().enumerate().map(|(i, draws)| one(i, draws)));
        mean(self.groups.iter().map(samples))
    }

    /// How many ratios lie outside and inside GRPO's range.
    fn outside(&self, clip: f64) -> [usize; 2] {
        let (current, behavior) = (current().map(f64::from), behavior().map(f64::from));
        let mut counts = [0; 2];
        for draws in self.groups.iter().flatten() {
            let rho = (self.log_prob(draws, &current, &current) - self.log_prob(draws, &behavior, &behavior)).exp();
            counts[usize::from((rho - 1.0).abs() <= clip)] += 1;
        }
        counts
    }

    fn finite_differences(&self) -> Vec<f64> {
        const H: f64 = 1e-5;
        let base = current().map(f64::from);
        let at = |i: usize, h: f64| {
            let mut theta = base;
            theta[i] += h;
            self.loss(&theta, &base)
        };
        (0..WEIGHTS).map(|i| (at(i, H) - at(i, -H)) / (2.0 * H)).collect()
    }
}

/// The largest disagreements seen.
#[derive(Default)]
struct Worst {
    combinations: usize,
    loss: f64,
    gradient: f64,
    /// Ratios outside and inside GRPO's range.
    ratios: [usize; 2],
}

impl Worst {
    fn check(&mut self, case: &Case) {
        let rollout = case.rollout();
        let queries = case.likelihood.get().queries(&rollout);
        let formula = Formula::new(case, &rollout, &queries);
        let base = current().map(f64::from);
        let (loss, gradient) = case.automatic(&queries);
        let (exact, slopes) = (formula.loss(&base, &base), formula.finite_differences());
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let size = norm(&mut slopes.iter().copied());
        let off = norm(&mut gradient.iter().zip(&slopes).map(|(a, b)| a - b)) / size;
        // Samples cancel in the loss, so that its own size is no measure.
        let loss_off = (loss - exact).abs() / (1.0 + exact.abs() + size);
        // The network computes in f32, and two weightings magnify its rounding: by 1/t near data, and by σ/α near noise.
        let magnified = match case.likelihood {
            LikelihoodKind::Elbo(Elbo { weighting: Weighting::PathKl, .. }) => true,
            LikelihoodKind::Elbo(Elbo { weighting: Weighting::T, .. }) => case.schedule != Schedule::RectifiedFlow,
            _ => false,
        };
        let tolerance = if magnified { 5e-4 } else { 5e-6 };
        assert!(size > 1e-6, "{case:?}: the gradient vanishes: {slopes:?}");
        assert!(loss_off < tolerance, "{case:?}: loss {loss}, by the formula {exact}");
        assert!(off < tolerance, "{case:?}: off by {off}\nautomatic {gradient:?}\ndifferences {slopes:?}");
        if let ObjectiveKind::Grpo(Grpo { clip, .. }) = case.objective {
            let counts = formula.outside(clip);
            self.ratios = [self.ratios[0] + counts[0], self.ratios[1] + counts[1]];
        }
        self.combinations += 1;
        self.loss = self.loss.max(loss_off);
        self.gradient = self.gradient.max(off);
    }

    #[expect(clippy::print_stderr, reason = "seen with --nocapture")]
    fn report(&self, what: &str) {
        let Self { combinations, loss, gradient, .. } = self;
        eprintln!("{what}: {combinations} combinations, loss off by {loss:.1e}, gradient by {gradient:.1e} at most");
    }
}

fn objectives() -> Vec<ObjectiveKind> {
    let with = |ratio| {
        [ObjectiveKind::Epg(Epg { ratio }), ObjectiveKind::Pepg(Pepg { ratio }), ObjectiveKind::Par(Par { ratio })]
    };
    let grpo = ObjectiveKind::Grpo(Grpo { clip: 1e-3, max_advantage: 1.0 });
    with(true).into_iter().chain(with(false)).chain([grpo]).collect()
}

fn likelihoods() -> Vec<LikelihoodKind> {
    let mut all = Vec::new();
    for ratio in [Ratio::PerDraw, Ratio::PerSample] {
        for timesteps in [Timesteps::Permutation { fraction: 0.99 }, Timesteps::One, Timesteps::All] {
            for weighting in [Weighting::Adaptive, Weighting::Simple, Weighting::PathKl, Weighting::T] {
                all.push(LikelihoodKind::Elbo(Elbo { weighting, timesteps, ratio, ..Elbo::default() }));
            }
        }
        all.push(LikelihoodKind::Trajectory(Trajectory { fraction: 0.99, ratio, ..Trajectory::default() }));
    }
    all
}

const SDE: SamplerKind = SamplerKind::FlowSde(FlowSde { noise_level: 0.7 });
const SILENT: SamplerKind = SamplerKind::FlowSde(FlowSde { noise_level: 0.0 });
const EULER: SamplerKind = SamplerKind::Euler(Euler {});
const DPM2: SamplerKind = SamplerKind::Dpm2(Dpm2 {});
const GIRSANOV: Kl = Kl { kind: KlKind::Girsanov, weight: 0.1, importance: false };
const VARIANCE_PRESERVING: Schedule = Schedule::VariancePreserving { beta_min: 0.1, beta_max: 20.0 };

fn sampling(rule: SamplerKind, guidance: f64) -> Sampling {
    Sampling { rule, steps: STEPS, shift: 3.0, guidance }
}

/// The product of all axes on one schedule, legal or not.
fn product(schedule: Schedule, rules: &[SamplerKind], guidance: &[f64]) -> Vec<Case> {
    let mut cases = Vec::new();
    for objective in objectives() {
        for likelihood in likelihoods() {
            for (&rule, &guidance) in rules.iter().flat_map(|r| guidance.iter().map(move |g| (r, g))) {
                cases.push(Case { objective, likelihood, sampling: sampling(rule, guidance), schedule, kl: GIRSANOV });
            }
        }
    }
    cases
}

#[test]
fn every_legal_combination_has_the_gradient_of_its_formula() {
    let mut worst = Worst::default();
    let mut refused = 0;
    for case in product(Schedule::RectifiedFlow, &[EULER, DPM2, SDE], &[1.0, 2.0]) {
        if case.refusal().is_some() {
            refused += 1;
        } else {
            worst.check(&case);
        }
    }
    worst.report("rectified flow");
    // 7 objectives × 2 guidance scales × (24 ELBOs × 3 samplers + 2 trajectories × 1 sampler); trajectories on 2 ODEs.
    assert_eq!((worst.combinations, refused), (7 * 2 * (24 * 3 + 2), 7 * 2 * 2 * 2));
    assert!(worst.ratios.iter().all(|&n| n > 500), "GRPO is tried clipped and not: {:?}", worst.ratios);
}

#[test]
fn every_legal_combination_on_a_variance_preserving_path() {
    let mut worst = Worst::default();
    let mut refused = 0;
    for case in product(VARIANCE_PRESERVING, &[EULER, DPM2, SDE], &[1.0]) {
        if case.refusal().is_some() {
            refused += 1;
        } else {
            worst.check(&case);
        }
    }
    worst.report("variance preserving");
    // Neither the SDE, nor trajectories, nor the path-KL weighting.
    assert_eq!((worst.combinations, refused), (7 * 18 * 2, 7 * (26 + (6 + 2) * 2)));
}

#[test]
fn every_divergence_has_the_gradient_of_its_formula() {
    let mut worst = Worst::default();
    for kind in [KlKind::Girsanov, KlKind::K1, KlKind::K2, KlKind::K3, KlKind::K3Reversed] {
        for (importance, likelihood) in
            [false, true].into_iter().flat_map(|i| likelihoods().into_iter().map(move |l| (i, l)))
        {
            let kl = Kl { kind, weight: 2.0, importance };
            let objective = ObjectiveKind::Epg(Epg { ratio: true });
            worst.check(&Case {
                objective,
                likelihood,
                sampling: sampling(SDE, 1.5),
                schedule: Schedule::RectifiedFlow,
                kl,
            });
        }
    }
    worst.report("divergences");
}

#[test]
fn illegal_combinations_say_what_to_change() {
    let flow = Schedule::RectifiedFlow;
    let trajectory = LikelihoodKind::Trajectory(Trajectory::default());
    let elbo = |weighting| LikelihoodKind::Elbo(Elbo { weighting, ..Elbo::default() });
    let illegal = [
        (trajectory, EULER, flow, ["trajectory", "flow-sde", "elbo"]),
        (trajectory, DPM2, flow, ["trajectory", "flow-sde", "elbo"]),
        (trajectory, SILENT, flow, ["trajectory", "noise_level", "elbo"]),
        (trajectory, EULER, VARIANCE_PRESERVING, ["trajectory", "flow-sde", "elbo"]),
        (trajectory, DPM2, VARIANCE_PRESERVING, ["trajectory", "flow-sde", "elbo"]),
        (trajectory, SDE, VARIANCE_PRESERVING, ["flow-sde", "euler", "dpm2"]),
        (elbo(Weighting::Adaptive), SDE, VARIANCE_PRESERVING, ["flow-sde", "euler", "dpm2"]),
        (elbo(Weighting::Simple), SILENT, VARIANCE_PRESERVING, ["flow-sde", "euler", "dpm2"]),
        (elbo(Weighting::PathKl), EULER, VARIANCE_PRESERVING, ["path-kl", "simple", "adaptive"]),
        (elbo(Weighting::PathKl), DPM2, VARIANCE_PRESERVING, ["path-kl", "simple", "adaptive"]),
    ];
    let objective = ObjectiveKind::default();
    for (likelihood, rule, schedule, words) in illegal {
        let case = Case { objective, likelihood, sampling: sampling(rule, 1.0), schedule, kl: GIRSANOV };
        let message = case.refusal().unwrap_or_else(|| panic!("{case:?} is legal"));
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
    let silent = Case {
        objective,
        likelihood: elbo(Weighting::Adaptive),
        sampling: sampling(SILENT, 1.0),
        schedule: flow,
        kl: GIRSANOV,
    };
    assert_eq!(silent.refusal(), None, "an SDE without noise is an ODE");
}
