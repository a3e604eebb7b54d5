//! Objectives that look at a whole group: their gradient is that of one graph, whatever the size of a micro-batch; and what decides
//! no bit of any method.

use burn::tensor::{Device, Tensor};
use elbow::{
    Policy, Prompt, Request, Reward, RewardError, Score,
    advantage::Standard,
    batch::Batch,
    collection::Collected,
    config::{BatchConfig, Config, MicroBatch},
    evaluation::{Evaluation, Fields, Groups, Weights},
    guidance::GuidedField,
    kl::Kl,
    likelihood::{Elbo, Ratio, StepWeights, Timesteps, Trajectory},
    objective::Objective,
    optimizer::OptimizerConfig,
    params::Params,
    sampler::{FlowSde, SamplerConfig},
    schedule::Schedule,
    toy::{Toy, point},
    train::Trainer,
};

/// −ln Σ_j exp(A_j d_j) over the group, d = L − L_ref, the same for each of its samples.
struct LogSumExp;

impl Objective for LogSumExp {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let d = e.log_prob(Weights::Current) - e.log_prob(Weights::Reference);
        let terms = (d * groups.advantages.clone() * 20.0).exp();
        let mut losses: Vec<Option<Tensor<1>>> = vec![None; groups.samples.len()];
        for members in groups.members() {
            let sum = members.iter().map(|&i| terms.clone().narrow(0, i, 1)).reduce(|a, b| a + b).expect("a member");
            for i in members {
                losses[i] = Some(-sum.clone().log());
            }
        }
        Tensor::cat(losses.into_iter().flatten().collect(), 0)
    }

    fn groupwise(&self) -> bool {
        true
    }
}

/// −‖p − (1, 0)‖², missing for every fifth picture of a call if asked.
struct Near {
    fails: bool,
}

impl Reward for Near {
    fn name(&self) -> &'static str {
        "near"
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        // By the picture, not by its place in a request.
        let score = |image| {
            let [x, y] = point(image);
            let fails = self.fails && (x * 1e4) as i64 % 5 == 0;
            if fails { Err(RewardError::Failed("lost".into())) } else { Ok((-(x - 1.0).powi(2) - y.powi(2)).into()) }
        };
        request.images.iter().map(score).collect()
    }
}

fn config(micro_batch: usize) -> Config {
    Config {
        batch: BatchConfig {
            groups: 3,
            group_size: 7,
            updates: 1,
            micro_batch: MicroBatch::Size(micro_batch),
            ..BatchConfig::default()
        },
        advantage: Standard::default().into(),
        likelihood: Elbo {
            timesteps: Timesteps::Stratified { count: 2, first: false, fraction: 0.9 },
            ..Elbo::default()
        }
        .into(),
        kl: Kl { weight: 0.3, ..Kl::default() },
        // The gradient is read off the weights after one step of plain descent: the first moment is a tenth of it.
        optimizer: OptimizerConfig { max_grad_norm: 1e9, ..OptimizerConfig::default() },
        max_missing: 0.9,
        ..Config::default()
    }
}

/// A trainer of the toy, its weights off the base, with the objective above.
fn trainer<'a>(config: &Config, policy: &'a Toy, prompts: &'a Vec<Prompt>, reward: &'a Near) -> Trainer<'a> {
    let mut method = config.build(Schedule::RectifiedFlow).expect("valid");
    method.objective = Box::new(LogSumExp);
    let mut trainer =
        Trainer::new(method, policy, prompts, reward, Device::flex()).expect("a policy that encodes nothing");
    let moved = |weights: &mut Params, size: f32| {
        weights.values_mut().iter_mut().enumerate().for_each(|(i, w)| *w += size * (i as f32 * 0.7).sin());
    };
    moved(&mut trainer.state.current, 0.05);
    moved(&mut trainer.state.behavior, 0.04);
    trainer
}

/// The gradient that a first step took, from the first moment of AdamW.
fn gradient(trainer: &Trainer<'_>) -> Vec<f64> {
    trainer.state.optimizer.first.values().iter().map(|&m| f64::from(m) / 0.1).collect()
}

/// The same by one graph over all samples of the batch.
fn of_one_graph(trainer: &Trainer<'_>, policy: Toy, batch: &Batch) -> Vec<f64> {
    let method = trainer.method();
    let advantages = method.advantage.advantages(&batch.samples, &trainer.state.history);
    let rows: Vec<usize> = (0..batch.len()).filter(|&i| advantages[i].is_some()).collect();
    let (part, known) = (batch.select(&rows), advantages.iter().flatten().copied().collect::<Vec<f64>>());
    let unconditional = policy.encode(&["".into()]).expect("any prompt");
    let guided = |field| GuidedField {
        field,
        scale: method.sampler.guidance,
        detach: false,
        unconditional: unconditional.clone(),
    };
    let leaves = trainer.state.current.tensors(&Device::flex().autodiff());
    let reference = trainer.field(None);
    let behavior = trainer.field(Some(&trainer.state.behavior));
    let fields = Fields {
        behavior: Some(&*behavior),
        lagged: None,
        reference: &*reference,
        guided_reference: None,
        teachers: &[],
    };
    let groups = Groups::new(&known, &part.samples, batch, &Device::flex());
    let mut gradient = trainer.state.current.zeros_like();
    let queries: Vec<_> = method.likelihood.queries(&part, batch).collect();
    let weight = 1.0 / (rows.len() * queries.len()) as f64;
    for query in &queries {
        let current = guided(policy.bind(Some(&leaves)));
        let e = Evaluation::new(query, &current, &fields);
        let policy_loss = query.weighted(LogSumExp.loss(&e, &groups));
        let loss = policy_loss + method.kl.value(&e).expect("it is on") * method.kl.weight;
        gradient.add_gradients(&leaves, &mut (loss.sum() * weight).backward());
    }
    gradient.values().iter().map(|&g| f64::from(g)).collect()
}

fn relative(a: &[f64], b: &[f64]) -> f64 {
    let norm = |values: Vec<f64>| values.into_iter().map(|v| v * v).sum::<f64>().sqrt();
    norm(a.iter().zip(b).map(|(a, b)| a - b).collect()) / norm(b.to_vec())
}

#[test]
fn micro_batches_of_any_size_have_the_gradient_of_one_graph() {
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a"), Prompt::from("b")]);
    let sde = SamplerConfig { rule: FlowSde::default().into(), ..SamplerConfig::default() };
    let two_draws = config(7).likelihood;
    let timesteps = Timesteps::Stratified { count: 2, first: true, fraction: 0.9 };
    let merged = Elbo { ratio: Ratio::PerSample, timesteps, ..Elbo::default() };
    let noisy = Trajectory { weights: StepWeights::Noise, ..Trajectory::default() };
    for (likelihood, guidance, fails) in [
        (two_draws.clone(), 1.0, false),
        (two_draws, 2.5, true),
        (merged.into(), 2.5, false),
        (noisy.into(), 1.0, true),
    ] {
        let sampler = SamplerConfig { guidance, ..sde.clone() };
        let reward = Near { fails };
        for micro_batch in [1, 5, 7, 21] {
            let config = Config { likelihood: likelihood.clone(), sampler: sampler.clone(), ..config(micro_batch) };
            let mut trainer = trainer(&config, &policy, &prompts, &reward);
            let Collected { batch, .. } = trainer.collect(&()).expect("drawn");
            assert_eq!(batch.samples.iter().any(|sample| sample.reward.is_err()), fails);
            let expected = of_one_graph(&trainer, policy, &batch);
            trainer.update(&batch, &()).expect("an update");
            let off = relative(&gradient(&trainer), &expected);
            assert!(off < 1e-6, "{likelihood:?}, micro-batches of {micro_batch}: off by {off:e}");
        }
    }
}

/// The loss of a sample sees the others: leaving a group's mate out changes its factor.
#[test]
fn the_gradient_is_not_that_of_single_samples() {
    let (policy, prompts, reward) = (Toy::default(), vec![Prompt::from("a")], Near { fails: false });
    let mut all = trainer(&config(7), &policy, &prompts, &reward);
    let Collected { batch, .. } = all.collect(&()).expect("drawn");
    let mut apart = trainer(&config(7), &policy, &prompts, &reward);
    let mut alone = batch.clone();
    alone.samples.iter_mut().enumerate().for_each(|(i, sample)| sample.group = i / 7 * 4 + i % 7 / 2);
    all.update(&batch, &()).expect("an update");
    apart.update(&alone, &()).expect("an update");
    assert!(relative(&gradient(&apart), &gradient(&all)) > 1e-2);
}

/// As many micro-batches in flight as one likes, and rewards that fail: the same bits.
#[test]
fn what_runs_side_by_side_changes_no_bit() {
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a"), Prompt::from("b"), Prompt::from("c")]);
    for fails in [false, true] {
        for groupwise in [false, true] {
            let reward = Near { fails };
            let run = |in_flight: usize| {
                let config = Config { batch: BatchConfig { groups: 4, group_size: 6, ..config(5).batch }, ..config(5) };
                let mut method = config.build(Schedule::RectifiedFlow).expect("valid");
                if groupwise {
                    method.objective = Box::new(LogSumExp);
                }
                let mut trainer = Trainer::new(method, &policy, &prompts, &reward, Device::flex()).expect("valid");
                trainer.in_flight = in_flight;
                let records: Vec<_> =
                    (0..4).map(|_| trainer.epoch(&()).expect("an epoch").record["policy_loss"].clone()).collect();
                (trainer.state, records)
            };
            let first = run(1);
            assert_eq!(first, run(2));
            assert_eq!(first, run(5));
        }
    }
}
