use super::*;
use crate::{
    Policy, Request, Reward, RewardError,
    advantage::Standard,
    config::{BatchConfig, Config, MicroBatch},
    gaussian::Reduction,
    likelihood::{LikelihoodKind, Trajectory},
    noise::{self, Key, Purpose},
    optimizer::OptimizerConfig,
    sampler::{self, FlowSde, SamplerConfig},
    schedule::Schedule,
    toy::{Toy, point},
    train::Trainer,
};

/// −‖p − (1, 0)‖².
struct Near;

impl Reward for Near {
    fn name(&self) -> &'static str {
        "near"
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        let near = |[x, y]: [f32; 2]| Ok((-(x - 1.0).powi(2) - y.powi(2)).into());
        request.images.iter().map(point).map(near).collect()
    }
}

const REPLAY: Replay = Replay { prompts: 3, groups: 2, samples: 2, max_weight: 2.0 };

fn config() -> Config {
    Config {
        batch: BatchConfig { groups: 4, group_size: 8, updates: 1, micro_batch: MicroBatch::Size(10), ..BatchConfig::default() },
        sampler: SamplerConfig { rule: FlowSde::default().into(), ..SamplerConfig::default() },
        likelihood: Trajectory { fraction: 0.6, ..Trajectory::default() }.into(),
        advantage: Standard::default().into(),
        optimizer: OptimizerConfig { learning_rate: 0.02, ..OptimizerConfig::default() },
        collection: REPLAY.into(),
        ..Config::default()
    }
}

fn prompts() -> Vec<Prompt> {
    ["a", "b", "c", "d", "e", "f"].into_iter().map(Prompt::from).collect()
}

fn trainer<'a>(policy: &'a Toy, prompts: &'a Vec<Prompt>) -> Trainer<'a> {
    let method = config().build(Schedule::RectifiedFlow).expect("valid");
    Trainer::new(method, policy, prompts, &Near, Device::flex()).expect("a policy that encodes nothing")
}

fn collected(trainer: &Trainer<'_>) -> Collected {
    trainer.collect(&()).expect("an epoch")
}

fn replayed(batch: &Batch) -> Vec<usize> {
    (0..batch.len()).filter(|&i| batch.samples[i].replayed).collect()
}

/// One group with these rewards.
fn group(rewards: &[Option<f64>]) -> Batch {
    let sample = |(i, reward): (usize, &Option<f64>)| Sample {
        reward: reward.map(Score::from).ok_or_else(|| RewardError::Failed("lost".into())),
        ..Sample::new(Arc::new("a".into()), Key::new(0, Purpose::Step, 0).sample(i as u64))
    };
    let policy = Toy::default();
    let grid = SamplerConfig::default().build().grid(Schedule::RectifiedFlow);
    Batch {
        samples: rewards.iter().enumerate().map(sample).collect(),
        prompts: policy.encode(&["a".into()]).expect("any prompt"),
        points: vec![Tensor::zeros([rewards.len(), 2], &Device::flex())],
        velocities: Vec::new(),
        stds: vec![0.0; grid.steps()].into(),
        grid: grid.into(),
        guidance: 1.0,
    }
}

#[test]
fn the_best_stand_above_their_group() {
    let best = |rewards: &[Option<f64>], count| {
        let members: Vec<usize> = (0..rewards.len()).collect();
        best(&group(rewards), &members, count)
    };
    let some = |rewards: &[f64]| rewards.iter().map(|&r| Some(r)).collect::<Vec<_>>();
    assert_eq!(best(&some(&[0.0, 3.0, 1.0, 0.0]), 2), None, "the second best is at the mean");
    assert_eq!(best(&some(&[0.0, 4.0, 3.0, 1.0]), 2), Some((1.5, vec![1, 2])));
    assert_eq!(best(&some(&[1.0, 0.0, 1.0, 1.0]), 2), Some((0.25, vec![0, 2])), "the first of equals");
    assert_eq!(best(&some(&[0.5; 4]), 1), None, "they agree");
    assert_eq!(best(&[None, Some(-1.0), None, Some(-3.0)], 1), Some((1.0, vec![1])), "missing is not zero");
    assert_eq!(best(&[None, Some(-1.0)], 2), None, "too few");
}

#[test]
fn slots_are_spread_over_the_updates() {
    let kept: Vec<Kept> =
        prompts()[..3].iter().map(|p| Kept { prompt: p.clone(), margin: 0.0, samples: Vec::new() }).collect();
    let given = |groups: usize, kept: &[Kept]| -> Vec<Option<String>> {
        let slots = REPLAY.slots(kept, groups);
        slots.into_iter().map(|slot| slot.map(|kept| kept.prompt.text.clone())).collect()
    };
    let [a, b] = ["a", "b"].map(|text| Some(text.to_owned()));
    assert_eq!(given(4, &kept), [a.clone(), None, b, None]);
    assert_eq!(given(3, &kept[..1]), [a, None, None]);
    assert_eq!(given(2, &[]), [None, None]);
}

/// Kept samples come back as they were, and count by how much likelier the weights of now make them.
#[test]
fn a_replayed_sample_is_the_kept_one_with_its_weight() {
    let (policy, prompts) = (Toy::default(), prompts());
    let mut trainer = trainer(&policy, &prompts);
    assert!(replayed(&collected(&trainer).batch).is_empty(), "nothing is kept yet");
    trainer.epoch(&()).expect("an epoch");
    let kept = recalled(&trainer.state.memory);
    assert!(kept.len() == 3 && kept.windows(2).all(|k| k[0].margin >= k[1].margin), "{kept:?}");
    assert_eq!(remembered(&kept), trainer.state.memory);

    let Collected { batch, memory, drawn, .. } = collected(&trainer);
    assert_eq!((replayed(&batch), drawn), (vec![6, 7, 22, 23], 28));
    assert_eq!([&*batch.samples[0].prompt, &*batch.samples[16].prompt], [&kept[0].prompt, &kept[1].prompt]);
    let samples: Vec<&KeptSample> = kept[..2].iter().flat_map(|k| &k.samples).collect();
    let again = batch.select(&replayed(&batch));
    for (k, point) in again.points.iter().enumerate() {
        let expected: Vec<f32> = samples.iter().flat_map(|s| s.path[2 * k..2 * k + 2].to_vec()).collect();
        assert_eq!(point.clone().into_data().iter::<f32>().collect::<Vec<_>>(), expected);
    }
    // The reward of the picture is the kept one, and both sides of the ratio are the sampler's densities.
    let field = trainer.field(Some(&trainer.state.behavior));
    let moved = log_probs(&*trainer.method().likelihood, &again, &*field);
    for ((sample, kept), now) in again.samples.iter().zip(&samples).zip(moved) {
        let [x, y] = point(&sample.image);
        assert_eq!(sample.value(), Some(kept.reward));
        assert!((kept.reward - f64::from(-(x - 1.0).powi(2) - y.powi(2))).abs() < 1e-6);
        let weight = sample.importance;
        let expected = (now - kept.log_prob).exp().min(2.0);
        assert!((weight - expected).abs() < 1e-12 && (weight - 1.0).abs() > 1e-9, "{weight}");
    }
    let new = batch.samples.iter().filter(|sample| !sample.replayed);
    assert!(new.into_iter().all(|sample| sample.importance.to_bits() == 1f64.to_bits()));
    let keys = batch.samples.iter().map(|sample| (sample.key.epoch, sample.key.sample));
    let keys: std::collections::BTreeSet<(u64, u64)> = keys.collect();
    assert_eq!(keys.len(), 32, "each has a key of its own");
    // Replayed once: what is left is the third, unless its prompt was drawn again, and what is new.
    let after = recalled(&memory);
    assert!(!after.is_empty() && !after.contains(&kept[0]) && !after.contains(&kept[1]));
    let drawn_again = batch.samples.iter().any(|sample| *sample.prompt == kept[2].prompt);
    assert!(after.contains(&kept[2]) || drawn_again);
}

/// Under the weights that drew it, a sample counts as any other.
#[test]
fn without_a_change_of_weights_the_weight_is_one() {
    let (policy, prompts) = (Toy::default(), prompts());
    let mut trainer = trainer(&policy, &prompts);
    trainer.state.memory = collected(&trainer).memory;
    trainer.state.epoch = 1;
    let batch = collected(&trainer).batch;
    let again = replayed(&batch);
    assert_eq!(again.len(), 4);
    assert!(again.iter().all(|&row| (batch.samples[row].importance - 1.0).abs() < 1e-12));
}

/// E[π_b/π_c] = 1 over paths from c: what makes the weighted mean that of b.
#[test]
fn importance_weights_have_mean_one() {
    let (policy, device, count) = (Toy::default(), Device::flex(), 20_000);
    let mut other = policy.initial();
    other.values_mut().iter_mut().enumerate().for_each(|(i, w)| *w += 0.05 * (i as f32).sin());
    let bind = |weights: &Params| policy.bind(Some(&weights.tensors(&device)));
    let (old, now) = (bind(&policy.initial()), bind(&other));
    let sampling = config().sampler.build();
    let grid = sampling.grid(Schedule::RectifiedFlow);
    let prompt: Arc<Prompt> = Arc::new("a point".into());
    let sample = |i: u64| {
        let key = Key::new(1, Purpose::Step, 0).sample(i);
        Sample { walk: sampling.rule.walk(&grid, key).into(), ..Sample::new(Arc::clone(&prompt), key) }
    };
    let samples: Vec<Sample> = (0..count).map(sample).collect();
    let start = samples.iter().map(|sample| Key { purpose: Purpose::Start, ..sample.key });
    let start = noise::normal(start, policy.dims(), &device);
    let prompts = policy.encode(&["a point".into()]).expect("any prompt");
    let walks: Vec<_> = samples.iter().map(|sample| (sample.key, &*sample.walk)).collect();
    let cond = prompts.select(&vec![0; count as usize]);
    let keep = sampler::Keep { points: true, velocities: false };
    let points = sampler::walk(&*old, &grid, start, &cond, &walks, (0..walks.len()).collect(), keep).points;
    let stds = vec![0.0; grid.steps()].into();
    let batch = Batch { samples, prompts, points, velocities: Vec::new(), grid: grid.into(), stds, guidance: 1.0 };
    let likelihood = Trajectory { reduction: Reduction::Sum, ..Trajectory::default() };
    let [old, now] = [old, now].map(|field| log_probs(&likelihood, &batch, &*field));
    let weights: Vec<f64> = now.iter().zip(&old).map(|(now, old)| (now - old).exp()).collect();
    let moments = Moments::of(&weights);
    let error = moments.std / (count as f64).sqrt();
    assert!(moments.std > 0.1 && (moments.mean - 1.0).abs() < 4.0 * error, "{moments:?}, {error}");
}

/// A weight scales the policy's part of the loss, sample by sample, and its gradient.
#[test]
fn the_loss_of_a_sample_counts_by_its_weight() {
    let (policy, prompts) = (Toy::default(), prompts());
    let run = |weights: [f64; 2]| {
        let mut trainer = trainer(&policy, &prompts);
        let mut batch = collected(&trainer).batch;
        batch.samples.iter_mut().enumerate().for_each(|(i, sample)| sample.importance = weights[i % 2]);
        trainer.update(&batch, &()).expect("an update")
    };
    let (even, double, mixed) = (run([1.0, 1.0]), run([2.0, 2.0]), run([1.0, 2.0]));
    assert!((double.grad_norms[0] / even.grad_norms[0] - 2.0).abs() < 1e-5);
    // Micro-batches of 10 samples, six scored steps each.
    for (i, loss) in mixed.policy_losses.iter().enumerate() {
        let sample = i / 60 * 10 + i % 60 % if i < 180 { 10 } else { 2 };
        let expected = even.policy_losses[i] * if sample % 2 == 0 { 1.0 } else { 2.0 };
        assert!((loss - expected).abs() < 1e-12, "{i}");
    }
}

#[test]
fn the_log_tells_new_rewards_from_replayed_ones() {
    let (policy, prompts) = (Toy::default(), prompts());
    let mut trainer = trainer(&policy, &prompts);
    let first = trainer.epoch(&()).expect("an epoch").record;
    assert_eq!([&first["replayed"], &first["replay_weight"]], [&Value::from(0), &Value::Null]);
    let batch = collected(&trainer).batch;
    let second = trainer.epoch(&()).expect("an epoch").record;
    let new = batch.samples.iter().filter(|sample| !sample.replayed).filter_map(Sample::value);
    let new = Moments::of(&new.collect::<Vec<_>>());
    assert_eq!((&second["reward_near"], &second["replayed"]), (&new.mean.into(), &4.into()));
    assert!(second["reward_missing"] == 0 && second["replay_weight_max"].as_f64() <= Some(2.0));
}

#[test]
fn what_does_not_go_together_is_told() {
    let problems =
        |config: &Config| config.build(Schedule::RectifiedFlow).err().map(|error| error.problems).unwrap_or_default();
    assert_eq!(problems(&config()), Vec::<String>::new());
    let with = |replay: Replay| Config { collection: replay.into(), ..config() };
    let many = problems(&with(Replay { groups: 4, samples: 8, max_weight: 0.5, ..REPLAY }));
    assert_eq!(many.len(), 3, "{many:?}");
    assert!(many[0].contains("groups = 4") && many[1].contains("samples = 8") && many[2].contains("0.5"));
    assert!(problems(&with(Replay { prompts: 0, ..REPLAY }))[0].contains("prompts = 0"));
    let elbo = Config { likelihood: LikelihoodKind::default(), ..config() };
    let shared = Config { start_noise: StartNoise::PerGroup, ..config() };
    for (wrong, word) in [(elbo, "likelihood `trajectory`"), (shared, "per-group")] {
        let problems = problems(&wrong);
        assert!(problems.len() == 1 && problems[0].contains(word), "{problems:?}");
    }
}

/// Sixteen paths: a file has them in the order of their names, where 10 comes before 2.
#[test]
fn every_kept_sample_has_its_own_path_after_a_checkpoint() {
    let sample = |i: usize| KeptSample { reward: 0.0, parts: Vec::new(), epoch: 1, number: i as u64, log_prob: 0.0, path: vec![i as f32; 3] };
    let kept = |i: usize| Kept { prompt: "a".into(), margin: 0.0, samples: vec![sample(2 * i), sample(2 * i + 1)] };
    let all: Vec<Kept> = (0..8).map(kept).collect();
    let memory = remembered(&all);
    let tensors = Params::from_safetensors(&memory.tensors.to_safetensors(None)).expect("its own file");
    assert_eq!(recalled(&Memory { tensors, ..memory }), all);
}
