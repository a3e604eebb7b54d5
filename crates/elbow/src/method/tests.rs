use crate::{
    collection::Prefilter,
    config::{BatchConfig, Config, MicroBatch},
    likelihood::Trajectory,
    sampler::{Branch, FlowSde, SamplerConfig, SamplerKind},
    schedule::Schedule,
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
    let batch = BatchConfig { groups: 5, group_size: 1, updates: 2, micro_batch: MicroBatch::Size(0) };
    let config = Config { batch, likelihood: Trajectory::default().into(), ..Config::default() };
    let problems = problems(&config);
    assert_eq!(problems.len(), 4, "{problems:?}");
    assert!(problems[1].contains("batch.groups = 5") && problems[1].contains("batch.updates = 2"));
    assert!(problems[2].contains("batch.micro_batch = 0"));
    assert!(problems[3].contains("flow-sde"));
}

#[test]
fn numbers_out_of_range_are_told_with_their_place() {
    let mut config = Config::default();
    config.sampler.shift = 0.0;
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
