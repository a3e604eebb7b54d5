//! The full product of the three axes: for every legal combination, the loss and its gradient by automatic
//! differentiation against a re-derivation from the formulas and its central finite differences.

mod common;

use common::{Case, current, formula::Formula};
use elbow::{
    kl::{Anchor, Kl, KlKind},
    likelihood::{
        Density, Draws, Elbo, LikelihoodKind, Neighbor, Normalizer, Points, Query, Ratio, StepWeights, Timesteps,
        Trajectory, Weighting,
    },
    objective::{
        Centring, Cispo, Compare, Crd, Dgpo, Distill, Divergence, Dpo, Dpok, Epg, FlowDppo, Gmpo, Grpo, GrpoGuard,
        Guided, Nft, ObjectiveKind, Origin, Other, Par, Pepg, Ram, Residual, Rpg, Sapo, Target, Teacher,
        TrajectoryBalance,
    },
    sampler::{
        Branch, Cps, Dance, Ddim, Dpm2, Euler, FlowSde, SaSolver, SamplerConfig, SamplerKind, Sde, Strategy, Unipc,
        Window,
    },
    schedule::Schedule,
};

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
        let batch = case.batch();
        let queries: Vec<Query> = case.likelihood.get().queries(&batch, &batch).collect();
        let formula = Formula::new(case, &batch, &queries);
        let base = current().map(f64::from);
        let (loss, gradient) = case.automatic(&batch, &queries);
        let exact = formula.loss(&base, &base);
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let compare = |width: f64| {
            let slopes = formula.finite_differences(width);
            let size = norm(&mut slopes.iter().copied());
            (norm(&mut gradient.iter().zip(&slopes).map(|(a, b)| a - b)) / size, size, slopes)
        };
        // The network computes in f32, and two weightings magnify its rounding: by 1/t near data, and by σ/α near noise.
        let magnified = match case.likelihood {
            LikelihoodKind::Elbo(Elbo { weighting: Weighting::PathKl, .. }) => true,
            LikelihoodKind::Elbo(Elbo { weighting: Weighting::T, .. }) => case.schedule != Schedule::RectifiedFlow,
            _ => false,
        };
        let tolerance = if magnified { 5e-4 } else { 1e-5 };
        let (mut off, mut size, mut slopes) = compare(1e-5);
        if off >= tolerance {
            // Ranges of ratios have edges, which so wide a step may cross.
            (off, size, slopes) = compare(1e-7);
        }
        // Samples cancel in the loss, so that its own size is no measure.
        let loss_off = (loss - exact).abs() / (1.0 + exact.abs() + size);
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

fn crd(centring: Centring, other: Other) -> ObjectiveKind {
    ObjectiveKind::Crd(Crd { beta: 0.7, centring, temperature: 0.6, other })
}

fn guided(target: Target, origin: Origin) -> ObjectiveKind {
    ObjectiveKind::Guided(Guided { target, origin, step: 0.7, anchor: 0.3 })
}

fn distill(compare: Compare, normalized: bool) -> ObjectiveKind {
    let teachers = vec![Teacher { weights: "anywhere".into(), tag: None }];
    ObjectiveKind::Distill(Distill { teachers, compare, normalized })
}

fn objectives() -> Vec<ObjectiveKind> {
    let with = |ratio| {
        [ObjectiveKind::Epg(Epg { ratio }), ObjectiveKind::Pepg(Pepg { ratio }), ObjectiveKind::Par(Par { ratio })]
    };
    let grpo = ObjectiveKind::Grpo(Grpo { clip: 1e-3, clip_high: Some(1.5e-3), max_advantage: 1.0 });
    // Ranges with ratios inside and outside, and none so near an edge that a finite difference steps over it.
    let more = [
        ObjectiveKind::Cispo(Cispo { low: 0.02, high: 0.02 }),
        ObjectiveKind::Sapo(Sapo { tau_positive: 3.0, tau_negative: 5.0 }),
        ObjectiveKind::Dpok(Dpok { clip: 1e-3 }),
        ObjectiveKind::Gmpo(Gmpo { log_clip: 1e-3 }),
        ObjectiveKind::Rpg(Rpg { divergence: Divergence::Reverse, beta: 0.3 }),
        ObjectiveKind::Rpg(Rpg { divergence: Divergence::Forward, beta: 0.3 }),
        ObjectiveKind::Nft(Nft { mix: 0.5, scale: 5.0 }),
        ObjectiveKind::TrajectoryBalance(TrajectoryBalance {}),
        ObjectiveKind::Dpo(Dpo { beta: 3.0 }),
        ObjectiveKind::Dgpo(Dgpo { beta: 3.0, other: Other::Reference }),
        ObjectiveKind::Dgpo(Dgpo { beta: 3.0, other: Other::Lagged }),
        crd(Centring::Mean, Other::Lagged),
        crd(Centring::Halves, Other::Reference),
        crd(Centring::Softmax, Other::Lagged),
        // Of velocities, with and without trajectories.
        distill(Compare::Velocity, false),
        distill(Compare::Clean, true),
        distill(Compare::Next, true),
        ObjectiveKind::Ram(Ram { multiplier: 0.7, residual: Residual::Behavior }),
        ObjectiveKind::Ram(Ram { multiplier: 0.7, residual: Residual::Current }),
        guided(Target::Residual, Origin::Reference),
        guided(Target::Covariance, Origin::Behavior),
        guided(Target::Pair, Origin::Behavior),
        // Of steps, without ELBOs.
        ObjectiveKind::GrpoGuard(GrpoGuard { clip: 1e-4, max_advantage: 1.0 }),
        ObjectiveKind::FlowDppo(FlowDppo { max_divergence: 1e-6 }),
    ];
    with(true).into_iter().chain(with(false)).chain([grpo]).chain(more).collect()
}

fn likelihoods() -> Vec<LikelihoodKind> {
    let mut all = Vec::new();
    for ratio in [Ratio::PerDraw, Ratio::PerSample] {
        for timesteps in [Timesteps::Permutation { fraction: 0.99 }, Timesteps::One, Timesteps::All] {
            for weighting in [Weighting::Adaptive, Weighting::Simple, Weighting::PathKl, Weighting::T] {
                all.push(LikelihoodKind::Elbo(Elbo { weighting, timesteps, ratio, ..Elbo::default() }));
            }
        }
        all.push(LikelihoodKind::Elbo(Elbo { draws: Draws::PerGroup, ratio, ..Elbo::default() }));
        all.push(LikelihoodKind::Elbo(Elbo { normalizer: Normalizer::Shared, ratio, ..Elbo::default() }));
        all.push(LikelihoodKind::Trajectory(Trajectory { fraction: 0.99, ratio, ..Trajectory::default() }));
        all.push(LikelihoodKind::Neighbor(Neighbor { temperature: 0.3, fraction: 0.7, ratio }));
    }
    all
}

const STEPS: usize = 5;
const SDE: SamplerKind = SamplerKind::FlowSde(FlowSde { noise_level: 0.7 });
const SILENT: SamplerKind = SamplerKind::FlowSde(FlowSde { noise_level: 0.0 });
const EULER: SamplerKind = SamplerKind::Euler(Euler {});
const DPM2: SamplerKind = SamplerKind::Dpm2(Dpm2 {});
const SA_SOLVER: SamplerKind =
    SamplerKind::SaSolver(SaSolver { tau: 0.4, order: 2, noise_between: None, first_correction: true });
const GIRSANOV: Kl =
    Kl { kind: KlKind::Girsanov, weight: 0.1, importance: false, reference: Anchor::Base, guidance: None };
const VARIANCE_PRESERVING: Schedule = Schedule::VariancePreserving { beta_min: 0.1, beta_max: 20.0 };

fn sampler(rule: SamplerKind, guidance: f64) -> SamplerConfig {
    SamplerConfig { rule, steps: STEPS, shift: Some(3.0), guidance, ..SamplerConfig::default() }
}

/// The product of all axes on one schedule, legal or not.
fn product(schedule: Schedule, rules: &[SamplerKind], guidance: &[f64]) -> Vec<Case> {
    let mut cases = Vec::new();
    for objective in objectives() {
        for likelihood in likelihoods() {
            for (rule, &guidance) in rules.iter().flat_map(|r| guidance.iter().map(move |g| (r, g))) {
                cases.push(Case {
                    objective: objective.clone(),
                    likelihood: likelihood.clone(),
                    sampler: sampler(rule.clone(), guidance),
                    schedule,
                    kl: GIRSANOV,
                });
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
    // 2 guidance scales × (28 ELBOs × 3 samplers for 28 objectives, 2 trajectories × 1 for 26, 2 of neighbors × 1 for 23).
    let legal = 2 * (28 * 3 * 28 + 2 * 26 + 2 * 23);
    assert_eq!((worst.combinations, refused), (legal, 31 * 2 * 32 * 3 - legal));
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
    // Neither the SDE, nor trajectories.
    let legal = 28 * 28 * 2 + 2 * 23;
    assert_eq!((worst.combinations, refused), (legal, 31 * 32 * 3 - legal));
}

/// Likelihoods beyond [`likelihoods`], which the whole product would take too long with.
fn more_likelihoods() -> Vec<LikelihoodKind> {
    let elbo = Elbo::default();
    let mut all = Vec::new();
    for ratio in [Ratio::PerDraw, Ratio::PerSample] {
        let stratified = |first| Timesteps::Stratified { count: 3, first, fraction: 1.0 };
        let normal = Timesteps::LogitNormal { count: 3, mean: 0.5, std: 1.0 };
        all.extend(
            [
                Elbo { weighting: Weighting::Noise, ..elbo },
                Elbo { weighting: Weighting::AwmT, ..elbo },
                Elbo { weighting: Weighting::Huber, ..elbo },
                Elbo { weighting: Weighting::Ghuber, ..elbo },
                Elbo { weighting: Weighting::Ghuber, power: 0.4, timesteps: stratified(true), ..elbo },
                Elbo { timesteps: stratified(false), ..elbo },
                Elbo { timesteps: normal, ..elbo },
                Elbo { timesteps: normal, antithetic: true, ..elbo },
                Elbo { antithetic: true, draws: Draws::PerGroup, ..elbo },
                Elbo { points: Points::Sampler, ..elbo },
                Elbo { points: Points::Sampler, draws: Draws::PerGroup, timesteps: Timesteps::All, ..elbo },
            ]
            .map(|e| LikelihoodKind::Elbo(Elbo { ratio, ..e })),
        );
        let density = Density::SquaredError;
        all.push(LikelihoodKind::Trajectory(Trajectory { density, ratio, ..Trajectory::default() }));
        all.push(LikelihoodKind::Trajectory(Trajectory { fraction: 1.0, ratio, ..Trajectory::default() }));
    }
    let weights = StepWeights::Noise;
    all.push(LikelihoodKind::Trajectory(Trajectory { fraction: 1.0, weights, ..Trajectory::default() }));
    let (elbo, ratio) = (Elbo { normalizer: Normalizer::Shared, ..elbo }, Ratio::PerSampleMean);
    all.push(LikelihoodKind::Elbo(Elbo { draws: Draws::PerGroup, ratio, ..elbo }));
    all.push(LikelihoodKind::Trajectory(Trajectory { ratio, ..Trajectory::default() }));
    all.push(LikelihoodKind::Trajectory(Trajectory { density: Density::SquaredError, ratio, ..Trajectory::default() }));
    all
}

/// The stochastic samplers, each alone and in a window in some epoch, and those that look back.
fn further() -> Vec<SamplerKind> {
    let (flow, dance) = (FlowSde { noise_level: 0.7 }, Dance { eta: 0.5 });
    let (ddim, cps) = (Ddim { eta: 0.9 }, Cps { eta: 0.8 });
    let window = |sde, strategy| SamplerKind::Window(Window { sde, size: 2, every: 1, stride: 1, strategy });
    vec![
        SDE,
        SamplerKind::Dance(dance),
        SamplerKind::Ddim(ddim),
        SamplerKind::Cps(cps),
        window(Sde::FlowSde(flow), Strategy::Progressive),
        window(Sde::Dance(dance), Strategy::Random),
        window(Sde::Ddim(ddim), Strategy::Decay),
        window(Sde::Cps(cps), Strategy::Progressive),
        SamplerKind::SaSolver(SaSolver { tau: 0.8, order: 1, ..SaSolver::default() }),
        // The two samples of each prompt branch at the same step, those of the other prompt at another.
        SamplerKind::Branch(Branch { sde: Sde::FlowSde(flow), points: 2, explorations: 2 }),
        SamplerKind::Unipc(Unipc {}),
        SA_SOLVER,
    ]
}

/// The further samplers and likelihoods, with an objective of each kind rather than all.
#[test]
fn further_samplers_and_likelihoods_have_the_gradient_of_their_formulas() {
    // 3 objectives × (30 likelihoods × 10 samplers + 23 ELBOs × 2), and on the other paths 22 × 5 + 15 × 2.
    let schedules = [
        (Schedule::RectifiedFlow, [1038, 42]),
        (VARIANCE_PRESERVING, [420, 660]),
        (Schedule::ScaledLinear { beta_start: 0.00085, beta_end: 0.012 }, [420, 660]),
    ];
    for (schedule, expected) in schedules {
        let (mut worst, mut refused) = (Worst::default(), 0);
        // Without an edge, which a finite difference might step over.
        let objectives = [
            ObjectiveKind::Pepg(Pepg { ratio: true }),
            ObjectiveKind::Par(Par { ratio: true }),
            ObjectiveKind::Sapo(Sapo { tau_positive: 3.0, tau_negative: 5.0 }),
        ];
        for (objective, likelihood) in
            objectives.iter().flat_map(|o| more_likelihoods().into_iter().map(move |l| (o, l)))
        {
            for rule in further() {
                let case = Case {
                    objective: objective.clone(),
                    likelihood: likelihood.clone(),
                    sampler: sampler(rule, 1.5),
                    schedule,
                    kl: GIRSANOV,
                };
                if case.refusal().is_some() {
                    refused += 1;
                } else {
                    worst.check(&case);
                }
            }
        }
        worst.report(&format!("further ones, {schedule:?}"));
        assert_eq!([worst.combinations, refused], expected, "{schedule:?}");
    }
}

#[test]
fn every_divergence_has_the_gradient_of_its_formula() {
    let mut worst = Worst::default();
    let kinds = [
        KlKind::Girsanov,
        KlKind::Path,
        KlKind::Step,
        KlKind::StepDt,
        KlKind::K1,
        KlKind::K2,
        KlKind::K3,
        KlKind::K3Reversed,
    ];
    let variants = [(false, Anchor::Base), (true, Anchor::Base), (false, Anchor::Lagged), (true, Anchor::Lagged)];
    for (kind, (importance, reference)) in kinds.into_iter().flat_map(|k| variants.map(|v| (k, v))) {
        for likelihood in likelihoods() {
            let kl = Kl { kind, weight: 2.0, importance, reference, guidance: None };
            let objective = ObjectiveKind::Epg(Epg { ratio: true });
            let case =
                Case { objective, likelihood, sampler: sampler(SDE, 1.5), schedule: Schedule::RectifiedFlow, kl };
            if case.refusal().is_none() {
                worst.check(&case);
            }
        }
    }
    worst.report("divergences");
    // The divergences of steps have 2 likelihoods, the others all 30.
    assert_eq!(worst.combinations, 4 * (6 * 30 + 2 * 2));
}

#[test]
fn illegal_combinations_say_what_to_change() {
    let flow = Schedule::RectifiedFlow;
    let trajectory = || LikelihoodKind::Trajectory(Trajectory::default());
    let elbo = |weighting| LikelihoodKind::Elbo(Elbo { weighting, ..Elbo::default() });
    let silent_window =
        SamplerKind::Window(Window { sde: Sde::FlowSde(FlowSde { noise_level: 0.0 }), size: 2, ..Window::default() });
    let timesteps = Timesteps::LogitNormal { count: 1, mean: 0.0, std: 1.0 };
    let off_grid = LikelihoodKind::Elbo(Elbo { points: Points::Sampler, timesteps, ..Elbo::default() });
    let (weights, ratio) = (StepWeights::Noise, Ratio::PerSample);
    let merged = LikelihoodKind::Trajectory(Trajectory { weights, ratio, ..Trajectory::default() });
    let illegal = [
        (trajectory(), EULER, flow, ["trajectory", "flow-sde", "elbo"]),
        (trajectory(), DPM2, flow, ["trajectory", "flow-sde", "elbo"]),
        (trajectory(), SILENT, flow, ["trajectory", "noise_level", "elbo"]),
        (trajectory(), EULER, VARIANCE_PRESERVING, ["trajectory", "flow-sde", "elbo"]),
        (trajectory(), DPM2, VARIANCE_PRESERVING, ["trajectory", "flow-sde", "elbo"]),
        (trajectory(), SDE, VARIANCE_PRESERVING, ["flow-sde", "euler", "dpm2"]),
        (elbo(Weighting::Adaptive), SDE, VARIANCE_PRESERVING, ["flow-sde", "euler", "dpm2"]),
        (elbo(Weighting::Simple), SILENT, VARIANCE_PRESERVING, ["flow-sde", "euler", "dpm2"]),
        (trajectory(), SamplerKind::Ddim(Ddim { eta: 0.0 }), flow, ["trajectory", "eta > 0", "elbo"]),
        (trajectory(), SamplerKind::Cps(Cps { eta: 0.0 }), VARIANCE_PRESERVING, ["trajectory", "eta > 0", "elbo"]),
        (trajectory(), SamplerKind::Dance(Dance { eta: 0.0 }), flow, ["trajectory", "eta > 0", "elbo"]),
        (trajectory(), silent_window, flow, ["trajectory", "noise_level", "elbo"]),
        (trajectory(), SamplerKind::Dance(Dance { eta: 0.3 }), VARIANCE_PRESERVING, ["dance", "ddim", "cps"]),
        (elbo(Weighting::AwmT), EULER, VARIANCE_PRESERVING, ["awm-t", "simple", "adaptive"]),
        (elbo(Weighting::Huber), DPM2, VARIANCE_PRESERVING, ["huber", "simple", "adaptive"]),
        (elbo(Weighting::Ghuber), DPM2, VARIANCE_PRESERVING, ["ghuber", "simple", "adaptive"]),
        (off_grid, SDE, flow, ["sampler", "grid", "renoised"]),
        (trajectory(), SamplerKind::Unipc(Unipc {}), flow, ["trajectory", "flow-sde", "elbo"]),
        (trajectory(), SA_SOLVER, flow, ["one velocity a step", "order = 1", "elbo"]),
        (merged, SDE, flow, ["weights", "a ratio per sample", "per-draw"]),
    ];
    let objective = ObjectiveKind::default();
    for (likelihood, rule, schedule, words) in illegal {
        let case =
            Case { objective: objective.clone(), likelihood, sampler: sampler(rule, 1.0), schedule, kl: GIRSANOV };
        let message = case.refusal().unwrap_or_else(|| panic!("{case:?} is legal"));
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
    let silent = Case {
        objective,
        likelihood: elbo(Weighting::Adaptive),
        sampler: sampler(SILENT, 1.0),
        schedule: flow,
        kl: GIRSANOV,
    };
    assert_eq!(silent.refusal(), None, "an SDE without noise is an ODE");
}
