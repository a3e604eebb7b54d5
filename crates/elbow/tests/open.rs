//! Anybody's variants train: an objective, a likelihood, a sampler, a collection and an advantage that the library does not know.

use burn::tensor::{Device, Tensor};
use elbow::{
    Policy, Prompt, Request, Reward, RewardError, Score,
    advantage::{Advantage, History, StandardizeParts},
    batch::{Batch, Sample},
    behavior::{BehaviorLag, Ema},
    collection::{Collected, Collection, Memory},
    evaluation::{Evaluation, Groups, Weights},
    gaussian, kl,
    likelihood::{Likelihood, Queries, Query},
    method::Method,
    missing::{OnMissing, Patience},
    noise::{self, Key, Purpose},
    objective::Objective,
    optimizer::OptimizerConfig,
    rollout::{Rollout, RolloutError},
    sampler::{Mean, Sampler, Sampling, Step},
    schedule::Grid,
    setting::{BatchSize, Scored, Setting, StartNoise},
    toy::{Toy, point},
    train::Trainer,
};
use std::sync::Arc;

struct Near;

impl Reward for Near {
    fn name(&self) -> &'static str {
        "near"
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        request.images.iter().map(point).map(|[x, y]| Ok((-(x - 1.0).powi(2) - y.powi(2)).into())).collect()
    }
}

/// −A L, and a share of the distance to a teacher.
struct TowardTeacher;

impl Objective for TowardTeacher {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        assert_eq!(groups.batch.len(), 64, "the whole update is in sight");
        -groups.advantages.clone() * e.log_prob(Weights::Current) + e.proximity(Weights::Teacher(0), false) * 0.01
    }
}

/// The error of the clean sample at one time for all, ½, under noise of its own.
struct Halfway;

impl Likelihood for Halfway {
    fn needs_path(&self) -> bool {
        false
    }

    fn scored(&self) -> Scored {
        Scored::Velocities
    }

    fn count(&self, _: &[Step]) -> usize {
        1
    }

    fn queries<'a>(&self, part: &'a Batch, _: &'a Batch) -> Queries<'a> {
        let (clean, times) = (part.clean().clone(), vec![0.5; part.len()]);
        let keys = part.samples.iter().map(|sample| Key { purpose: Purpose::Draw, ..sample.key });
        let noise = noise::normal(keys, clean.dims()[1], &clean.device());
        let schedule = part.grid.schedule;
        let (x, target) = (schedule.mix(clean.clone(), noise.clone(), &times), schedule.target(clean, noise, &times));
        let score = {
            let target = gaussian::to_f64(target.clone());
            move |velocity: Tensor<2>, _: Option<&Tensor<2>>| {
                -gaussian::mean((gaussian::to_f64(velocity) - target.clone()).square())
            }
        };
        let query = Query::new(x, &times, part, Box::new(score)).with_target(target);
        Box::new(std::iter::once(query))
    }

    fn validate(&self, setting: &Setting) -> Vec<String> {
        if setting.grid.steps() == 0 { vec!["no steps".into()] } else { Vec::new() }
    }
}

/// Euler's rule with a constant amount of noise, but in the last step.
struct Jitter;

impl Sampler for Jitter {
    fn step(&self, grid: &Grid, k: usize) -> Step {
        let dt = grid.times[k + 1] - grid.times[k];
        let std = if grid.is_last(k) { 0.0 } else { 0.05 };
        Step { mean: Mean::point(0) + Mean::velocity(0) * dt, std }
    }
}

/// Counts its epochs in its memory, and draws twice to keep the second half of the groups.
struct SecondHalf;

impl Collection for SecondHalf {
    fn collect(&self, rollout: &Rollout<'_>, memory: &Memory) -> Result<Collected, RolloutError> {
        let groups = rollout.batch.groups;
        let batch = rollout.groups(groups..2 * groups)?;
        let epochs = memory.notes.as_u64().unwrap_or(0) + 1;
        let memory = Memory { notes: epochs.into(), ..Memory::default() };
        Ok(Collected { memory, log: vec![("second_halves".into(), epochs.into())], ..Collected::all(batch) })
    }
}

/// The sign of a reward above or below its group's middle.
struct Signs;

impl Advantage for Signs {
    fn advantages(&self, samples: &[Sample], _: &History) -> Vec<Option<f64>> {
        let middle = |group: usize| {
            let mut rewards: Vec<f64> = samples.iter().filter(|s| s.group == group).filter_map(Sample::value).collect();
            rewards.sort_by(f64::total_cmp);
            rewards[rewards.len() / 2]
        };
        samples.iter().map(|sample| Some((sample.value()? - middle(sample.group)).signum())).collect()
    }
}

#[test]
fn a_method_of_strangers_learns_and_its_memory_is_saved() {
    let method = Method {
        seed: 3,
        epochs: 40,
        start_noise: StartNoise::PerSample,
        batch: BatchSize {
            groups: 2,
            group_size: 32,
            updates: 1,
            micro_batch: 20,
            drop_zero_variance: false,
            reuse_velocities: false,
        },
        sampler: Sampling::plain(Arc::new(Jitter), 8),
        collection: Box::new(SecondHalf),
        likelihood: Box::new(Halfway),
        objective: Box::new(TowardTeacher),
        start_spread: 0.0,
        tightness: kl::Tightness::default(),
        kl: kl::Kl { weight: 0.0, ..kl::Kl::default() },
        proximal: kl::Proximal::default(),
        advantage: Box::new(Signs),
        behavior: BehaviorLag::default(),
        ema: Ema::default(),
        optimizer: OptimizerConfig { learning_rate: 0.02, ..OptimizerConfig::default() },
        standardize_parts: StandardizeParts::No,
        patience: Patience { most: 0.0, then: OnMissing::Stop },
    };
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a"), Prompt::from("b")]);
    let mut trainer = Trainer::new(method, &policy, &prompts, &Near, Device::flex()).expect("they fit together");
    trainer.teachers = vec![policy.initial()];
    let mut rewards = Vec::new();
    for epoch in 1..=40u64 {
        let record = trainer.epoch(&()).expect("an epoch").record;
        assert_eq!(record["second_halves"], epoch);
        rewards.push(record["reward_near"].as_f64().expect("a number"));
    }
    let (first, last) = (rewards[..2].iter().sum::<f64>() / 2.0, rewards[36..].iter().sum::<f64>() / 4.0);
    assert!(last > first + 0.5, "{first:.2} to {last:.2}");

    let (files, counters) = trainer.state.save();
    let files = files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    assert_eq!(trainer.state.load(&files, &counters).expect("its own").memory.notes, 40);
}
