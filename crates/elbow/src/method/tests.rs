use crate::{
    advantage::{Exact, LeaveOneOut, Nft, Standard},
    collection::Prefilter,
    config::{BatchConfig, Config, MicroBatch},
    likelihood::{Ratio, StepWeights, Trajectory},
    objective::{self, Grpo},
    sampler::{Branch, Ddim, FlowSde, SamplerConfig, SamplerKind},
    schedule::{Schedule, Spacing},
    setting::StartNoise,
};

/// What is wrong with a configuration on rectified flow.
fn problems(config: &Config) -> Vec<String> {
    config.build(Schedule::RectifiedFlow).err().map(|error| error.problems).unwrap_or_default()
}

fn none() -> Vec<String> {
    Vec::new()
}

#[test]
fn the_default_runs() {
    assert_eq!(problems(&Config::default()), none());
}

#[test]
fn every_problem_is_told_at_once() {
    let batch = BatchConfig {
        groups: 5,
        group_size: 1,
        updates: 2,
        micro_batch: MicroBatch::Size(0),
        ..BatchConfig::default()
    };
    let config = Config { batch, likelihood: Trajectory::default().into(), ..Config::default() };
    let problems = problems(&config);
    assert_eq!(problems.len(), 4, "{problems:?}");
    assert!(problems[1].contains("batch.groups = 5") && problems[1].contains("batch.updates = 2"));
    assert!(problems[2].contains("batch.micro_batch = 0"));
    assert!(problems[3].contains("flow-sde"));
}

/// DDIM on diffusers' grid of 10 goes to t = .001 with a deviation of .001: its slope/std is 112, squared 12,500, where that of others
/// is at most 2.6.
#[test]
fn a_step_that_owns_the_gradient_is_told() {
    let ddim = |grid, fraction| {
        let sampler =
            SamplerConfig { rule: Ddim::default().into(), shift: Some(1.0), grid, ..SamplerConfig::default() };
        let likelihood = Trajectory { fraction, ..Trajectory::default() }.into();
        Config { sampler, likelihood, ..Config::default() }.build(Schedule::RectifiedFlow).expect("it runs")
    };
    let all = ddim(Spacing::Diffusers, 1.0);
    let weights = all.step_weights(Schedule::RectifiedFlow);
    assert_eq!(weights.len(), 9);
    assert!((weights[8].1 - 12_518.0).abs() < 1.0, "{weights:?}");
    assert!(weights[..8].iter().all(|(_, weight)| *weight < 2.6), "{weights:?}");
    let warnings = all.warnings(Schedule::RectifiedFlow);
    assert!(warnings.len() == 1 && warnings[0].starts_with("step 9 (t = 0.112 to 0.001)"), "{warnings:?}");
    for fine in [ddim(Spacing::Diffusers, 0.85), ddim(Spacing::Uniform, 1.0)] {
        assert_eq!(fine.warnings(Schedule::RectifiedFlow), none());
    }
    let elbo = Config::default().build(Schedule::RectifiedFlow).expect("it runs");
    assert_eq!((elbo.step_weights(Schedule::RectifiedFlow).len(), elbo.warnings(Schedule::RectifiedFlow)), (0, none()));
}

/// Stable Diffusion 1's own steps have no such step: all 50 of DDPO's are noisy and scored.
#[test]
fn ddpos_own_steps_are_all_scored() {
    let schedule = Schedule::ScaledLinear { beta_start: 0.00085, beta_end: 0.012 };
    let sampler = SamplerConfig {
        rule: Ddim::default().into(),
        steps: 50,
        grid: Spacing::Leading,
        shift: Some(1.0),
        ..SamplerConfig::default()
    };
    let likelihood = Trajectory { fraction: 1.0, ..Trajectory::default() }.into();
    let method = Config { sampler, likelihood, ..Config::default() }.build(schedule).expect("it runs");
    assert_eq!((method.points(schedule), method.warnings(schedule)), (50, none()));
}

#[test]
fn values_that_destroy_a_run_are_refused() {
    type Change = fn(&mut Config);
    let cases: [(Change, &str); 16] = [
        (|c| c.optimizer.weight_decay = -1e-4, "optimizer.weight_decay = -0.0001"),
        (|c| c.optimizer.weight_decay = f64::INFINITY, "optimizer.weight_decay = inf"),
        (|c| c.optimizer.beta1 = 1.0, "optimizer.beta1 = 1"),
        (|c| c.optimizer.beta2 = f64::NAN, "optimizer.beta2 = NaN"),
        (|c| c.behavior.max = 1.0, "behavior.max = 1"),
        (|c| c.behavior.rate = -1.0, "behavior.rate = -1"),
        (|c| c.ema.max_decay = 1.0, "ema.max_decay = 1"),
        (|c| c.advantage = Exact { eta: f64::NAN, beta: 1.0 }.into(), "advantage.eta = NaN"),
        (|c| c.advantage = Exact { eta: -1.0, beta: 1.0 }.into(), "advantage.eta = -1"),
        (|c| c.advantage = Standard { scale: f64::INFINITY, ..Standard::default() }.into(), "advantage.scale = inf"),
        (|c| c.advantage = Standard { floor: 0.0, ..Standard::default() }.into(), "advantage.floor = 0"),
        (|c| c.advantage = LeaveOneOut { scale: -1.0 }.into(), "advantage.scale = -1"),
        (|c| c.advantage = Nft { max_advantage: 0.0 }.into(), "advantage.max_advantage = 0"),
        (|c| c.objective = Grpo { max_advantage: 0.0, ..Grpo::default() }.into(), "objective.max_advantage = 0"),
        (|c| c.kl.guidance = Some(0.0), "kl.guidance = 0"),
        (
            |c| {
                c.objective = objective::Nft { scale: f64::INFINITY, ..objective::Nft::default() }.into();
                c.advantage = Nft::default().into();
            },
            "objective.scale = inf",
        ),
    ];
    for (change, part) in cases {
        let mut config = Config::default();
        change(&mut config);
        let problems = problems(&config);
        assert!(problems.len() == 1 && problems[0].contains(part), "{part}: {problems:?}");
    }
}

/// Weights of single steps have no meaning where a ratio brings steps together, by their sum or by their mean.
#[test]
fn steps_are_weighed_one_by_one() {
    for ratio in [Ratio::PerSample, Ratio::PerSampleMean] {
        let likelihood = Trajectory { weights: StepWeights::Noise, ratio, ..Trajectory::default() }.into();
        let sampler = SamplerConfig { rule: FlowSde::default().into(), ..SamplerConfig::default() };
        let problems = problems(&Config { sampler, likelihood, ..Config::default() });
        assert!(problems.len() == 1 && problems[0].contains("likelihood.weights"), "{problems:?}");
    }
}

#[test]
fn numbers_out_of_range_are_told_with_their_place() {
    let mut config = Config::default();
    config.sampler.shift = Some(0.0);
    config.optimizer.beta1 = 1.5;
    config.kl.weight = f64::NAN;
    config.max_missing = -0.1;
    let problems = problems(&config);
    for part in ["sampler.shift = 0", "optimizer.beta1 = 1.5", "kl.weight = NaN", "max_missing = -0.1"] {
        assert!(problems.iter().any(|problem| problem.contains(part)), "{part}: {problems:?}");
    }
    assert_eq!(problems.len(), 4, "{problems:?}");
}

#[test]
fn what_a_group_shares_fits_the_sampler() {
    let with = |rule: SamplerKind, start_noise, count: usize| {
        let mut config =
            Config { sampler: SamplerConfig { rule, ..SamplerConfig::default() }, start_noise, ..Config::default() };
        if count > 0 {
            config.collection = Prefilter { count, ..Prefilter::default() }.into();
        }
        config
    };
    let (sde, branch) = (|| FlowSde::default().into(), || Branch::default().into());
    let (ode, own, shared) = (SamplerKind::default, StartNoise::PerSample, StartNoise::PerGroup);
    for fine in [with(sde(), shared, 0), with(branch(), shared, 0), with(ode(), own, 24), with(sde(), own, 24)] {
        assert_eq!(problems(&fine), none());
    }
    let split = Branch { points: 3, ..Branch::default() };
    for (wrong, words) in [
        (with(ode(), shared, 0), ["per-group", "would be the same"]),
        (with(branch(), own, 0), ["branch", "per-group"]),
        (with(split.into(), shared, 0), ["make 18 samples", "group_size = 24"]),
        (with(sde(), shared, 24), ["prefilter", "per-sample"]),
        (with(ode(), own, 23), ["collection.count = 23", "group_size = 24"]),
    ] {
        let problems = problems(&wrong);
        assert!(problems.len() == 1 && words.iter().all(|word| problems[0].contains(word)), "{problems:?}");
    }
}

#[test]
fn a_cheap_sample_takes_no_more_steps_than_one_in_full() {
    let problems = problems(&Config {
        collection: Prefilter { count: 7, steps: 11, ..Prefilter::default() }.into(),
        batch: BatchConfig { group_size: 8, ..BatchConfig::default() },
        ..Config::default()
    });
    assert!(
        problems.len() == 2 && problems[0].contains("= 7") && problems[0].contains("group_size = 8"),
        "{problems:?}"
    );
    assert!(problems[1].contains("steps = 11") && problems[1].contains("= 10"), "{problems:?}");
}

#[test]
fn an_sde_takes_a_trajectory() {
    let sampler = SamplerConfig { rule: FlowSde::default().into(), ..SamplerConfig::default() };
    assert_eq!(problems(&Config { sampler, likelihood: Trajectory::default().into(), ..Config::default() }), none());
}
