//! The training loop on a policy over the plane: it learns, it resumes, and nothing is silently zero.

use burn::tensor::{Device, Tensor};
use elbow::{
    Policy, Prompt, Request, Reward, RewardError, Score,
    advantage::{AdvantageKind, BestWorst, LeaveOneOut, Nft, PerPrompt, Softmax, Standard, Top},
    batch::{Batch, Sample},
    behavior::BehaviorLag,
    collection::{Collected, CollectionKind, Prefilter, Replay},
    config::{BatchConfig, Config, MicroBatch, Reuse},
    kl::{Anchor, Kl},
    likelihood::{Choice, Density, Elbo, LikelihoodKind, Points, StepWeights, Timesteps, Trajectory, Weighting},
    noise::{Key, Purpose},
    objective::{
        self, Dgpo, Dpo, Epg, FlowDppo, Gmpo, Grpo, GrpoGuard, ObjectiveKind, Par, Pepg, Ram, Rpg, TrajectoryBalance,
    },
    optimizer::OptimizerConfig,
    params::{Params, Tensors},
    policy::{Conditioning, Decoded, EncodeError, VelocityField},
    rollout::RolloutError,
    sampler::{
        self, Branch, Cps, Dance, Ddim, Euler, FlowSde, SaSolver, SamplerConfig, SamplerKind, Sde, Strategy, Unipc,
        Window,
    },
    schedule::Schedule,
    setting::StartNoise,
    toy::{Toy, point},
    train::{TrainError, Trainer, depends_on_machine},
};
use std::collections::BTreeSet;

/// −‖p − (1, 0)‖², or whatever `spoil` makes of the i-th image of a call.
struct Near {
    spoil: fn(usize) -> Option<Result<f32, RewardError>>,
}

impl Reward for Near {
    fn name(&self) -> &'static str {
        "near"
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        let score = |(i, image)| {
            let [x, y] = point(image);
            (self.spoil)(i).unwrap_or(Ok(-(x - 1.0).powi(2) - y.powi(2))).map(Score::from)
        };
        request.images.iter().enumerate().map(score).collect()
    }
}

const HONEST: Near = Near { spoil: |_| None };

fn config() -> Config {
    Config {
        batch: BatchConfig {
            groups: 2,
            group_size: 32,
            updates: 1,
            micro_batch: MicroBatch::Size(64),
            ..BatchConfig::default()
        },
        advantage: AdvantageKind::Standard(Standard::default()),
        optimizer: OptimizerConfig { learning_rate: 0.02, ..OptimizerConfig::default() },
        ..Config::default()
    }
}

fn sampler(rule: SamplerKind) -> SamplerConfig {
    SamplerConfig { rule, ..SamplerConfig::default() }
}

fn sa_solver(tau: f64, order: usize) -> SamplerKind {
    SamplerKind::SaSolver(SaSolver { tau, order, ..SaSolver::default() })
}

/// Groups that share their start and branch at four steps of ten, eight images each.
fn branching() -> Config {
    Config {
        sampler: sampler(SamplerKind::Branch(Branch { points: 4, explorations: 8, ..Branch::default() })),
        likelihood: LikelihoodKind::Trajectory(Trajectory { weights: StepWeights::Noise, ..Trajectory::default() }),
        start_noise: StartNoise::PerGroup,
        ..config()
    }
}

/// Two of an epoch's groups meet good images of earlier ones.
fn replaying() -> Config {
    Config {
        sampler: sampler(SamplerKind::FlowSde(FlowSde::default())),
        likelihood: LikelihoodKind::Trajectory(Trajectory { fraction: 0.7, ..Trajectory::default() }),
        collection: Replay { prompts: 3, groups: 2, samples: 2, ..Replay::default() }.into(),
        ..config()
    }
}

/// Four stochastic steps of ten, at another place every other epoch.
fn window(strategy: Strategy) -> SamplerConfig {
    let sde = Sde::FlowSde(FlowSde::default());
    sampler(SamplerKind::Window(Window { sde, every: 2, strategy, ..Window::default() }))
}

fn trainer<'a>(
    config: &Config,
    policy: &'a dyn Policy,
    prompts: &'a Vec<Prompt>,
    reward: &'a dyn Reward,
) -> Trainer<'a> {
    let method = config.build(Schedule::RectifiedFlow).expect("a valid configuration");
    Trainer::new(method, policy, prompts, reward, Device::flex()).expect("a policy that encodes nothing")
}

fn rewards(config: &Config, epochs: usize) -> Vec<f64> {
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a point")]);
    let mut trainer = trainer(config, &policy, &prompts, &HONEST);
    let mut epoch = || trainer.epoch(&()).expect("an epoch").record["reward_near"].as_f64().expect("a number");
    (0..epochs).map(|_| epoch()).collect()
}

#[test]
fn every_objective_and_likelihood_learns() {
    let elbo = |weighting| LikelihoodKind::Elbo(Elbo { weighting, ..Elbo::default() });
    let sde = || sampler(SamplerKind::FlowSde(FlowSde::default()));
    let euler = sampler(SamplerKind::Euler(Euler {}));
    let pepg = || ObjectiveKind::Pepg(Pepg::default());
    let squared = Trajectory { density: Density::SquaredError, ..Trajectory::default() };
    let timesteps = Timesteps::Stratified { count: 6, first: false, fraction: 0.99 };
    let awm = Elbo { weighting: Weighting::Ghuber, timesteps, antithetic: true, ..Elbo::default() };
    for (objective, likelihood, sampler) in [
        (pepg(), elbo(Weighting::Adaptive), SamplerConfig::default()),
        (ObjectiveKind::Epg(Epg::default()), elbo(Weighting::Adaptive), euler),
        (ObjectiveKind::Par(Par::default()), elbo(Weighting::Simple), sde()),
        (ObjectiveKind::Grpo(Grpo { clip: 0.2, ..Grpo::default() }), elbo(Weighting::T), SamplerConfig::default()),
        (pepg(), LikelihoodKind::Trajectory(Trajectory::default()), sde()),
        (pepg(), LikelihoodKind::Trajectory(Trajectory::default()), sampler(SamplerKind::Ddim(Ddim::default()))),
        (pepg(), LikelihoodKind::Trajectory(Trajectory::default()), sampler(SamplerKind::Dance(Dance { eta: 0.7 }))),
        (pepg(), LikelihoodKind::Trajectory(squared), sampler(SamplerKind::Cps(Cps::default()))),
        (pepg(), LikelihoodKind::Trajectory(Trajectory::default()), window(Strategy::Progressive)),
        (pepg(), LikelihoodKind::Elbo(awm), SamplerConfig::default()),
        (pepg(), LikelihoodKind::Elbo(Elbo { points: Points::Sampler, ..Elbo::default() }), SamplerConfig::default()),
        (pepg(), elbo(Weighting::Adaptive), sampler(SamplerKind::Unipc(Unipc {}))),
        (pepg(), elbo(Weighting::Adaptive), sampler(sa_solver(0.4, 2))),
        (pepg(), LikelihoodKind::Trajectory(Trajectory::default()), sampler(sa_solver(0.8, 1))),
    ] {
        let what = format!("{objective:?} × {likelihood:?}");
        let rewards = rewards(&Config { objective, likelihood, sampler, ..config() }, 40);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&rewards[..2]), mean(&rewards[36..]));
        assert!(last > first + 0.5, "{what}: {first:.2} to {last:.2}");
    }
}

#[test]
fn groups_that_share_a_start_and_groups_that_are_chosen_learn() {
    let likelihood = LikelihoodKind::Trajectory(Trajectory::default());
    let dance = sampler(SamplerKind::Dance(Dance { eta: 0.7 }));
    let collection = CollectionKind::from(Prefilter { count: 96, steps: 3, ..Prefilter::default() });
    for config in [
        Config { sampler: dance, likelihood, start_noise: StartNoise::PerGroup, ..config() },
        branching(),
        Config { collection, ..config() },
        Config { batch: BatchConfig { groups: 4, group_size: 16, ..config().batch }, ..replaying() },
    ] {
        let rewards = rewards(&config, 60);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&rewards[..2]), mean(&rewards[56..]));
        assert!(last > first + 0.3, "{config:?}: {first:.2} to {last:.2}");
    }
}

#[test]
fn objectives_of_velocities_steps_and_pairs_learn() {
    let elbo = LikelihoodKind::default;
    let trajectory = || LikelihoodKind::Trajectory(Trajectory::default());
    let (ode, sde) = (SamplerConfig::default, || sampler(SamplerKind::FlowSde(FlowSde::default())));
    let standard = || config().advantage;
    let pairs = AdvantageKind::BestWorst(BestWorst {});
    for (objective, likelihood, sampler, advantage) in [
        (ObjectiveKind::Nft(objective::Nft::default()), elbo(), ode(), AdvantageKind::Nft(Nft::default())),
        (ObjectiveKind::Ram(Ram::default()), elbo(), ode(), standard()),
        (ObjectiveKind::Rpg(Rpg::default()), elbo(), ode(), standard()),
        (ObjectiveKind::Gmpo(Gmpo { log_clip: 0.2 }), elbo(), ode(), standard()),
        (ObjectiveKind::TrajectoryBalance(TrajectoryBalance {}), elbo(), ode(), standard()),
        (ObjectiveKind::Dpo(Dpo { beta: 10.0 }), elbo(), ode(), pairs),
        (ObjectiveKind::Dgpo(Dgpo { beta: 10.0, ..Dgpo::default() }), elbo(), ode(), standard()),
        (ObjectiveKind::GrpoGuard(GrpoGuard { clip: 0.2, ..GrpoGuard::default() }), trajectory(), sde(), standard()),
        (ObjectiveKind::FlowDppo(FlowDppo { max_divergence: 0.1 }), trajectory(), sde(), standard()),
        (
            ObjectiveKind::Epg(Epg { ratio: false }),
            elbo(),
            ode(),
            AdvantageKind::Softmax(Softmax { inverse_temperature: 2.0 }),
        ),
        (ObjectiveKind::Epg(Epg { ratio: false }), elbo(), ode(), AdvantageKind::Top(Top { percentile: 0.7 })),
        (ObjectiveKind::Epg(Epg::default()), elbo(), ode(), AdvantageKind::LeaveOneOut(LeaveOneOut::default())),
        (ObjectiveKind::Epg(Epg::default()), elbo(), ode(), AdvantageKind::PerPrompt(PerPrompt::default())),
    ] {
        let what = format!("{objective:?} × {advantage:?}");
        let rewards = rewards(&Config { objective, likelihood, sampler, advantage, ..config() }, 60);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&rewards[..2]), mean(&rewards[56..]));
        assert!(last > first + 0.3, "{what}: {first:.2} to {last:.2}");
    }
}

#[test]
fn a_saved_state_continues_bit_for_bit() {
    let config = Config {
        batch: BatchConfig {
            groups: 4,
            group_size: 8,
            updates: 2,
            micro_batch: MicroBatch::Size(5),
            ..BatchConfig::default()
        },
        behavior: BehaviorLag { start: 0, rate: 0.1, max: 0.5, on_policy: false },
        ..config()
    };
    continues(&config);
    for strategy in [Strategy::Progressive, Strategy::Random, Strategy::Decay] {
        let (sampler, likelihood) = (window(strategy), LikelihoodKind::Trajectory(Trajectory::default()));
        let walks = sampler.build();
        let places = (0..6).map(|epoch| {
            let key = Key::new(0, Purpose::Step, epoch);
            sampler::stochastic(&walks.rule.walk(&walks.grid(Schedule::RectifiedFlow), key))
        });
        assert!(places.collect::<BTreeSet<_>>().len() > 1, "{strategy:?} moves");
        continues(&Config { sampler, likelihood, ..config.clone() });
    }
    let batch = BatchConfig { groups: 2, ..branching().batch };
    continues(&Config { batch, ..branching() });
    continues(&Config { collection: Prefilter { count: 11, ..Prefilter::default() }.into(), ..config.clone() });
    continues(&Config { batch: config.batch, ..replaying() });
}

/// Six epochs are three epochs, saved and loaded, and three more.
fn continues(config: &Config) {
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a"), Prompt::from("b"), Prompt::from("c")]);
    let new = || trainer(config, &policy, &prompts, &HONEST);
    let mut straight = new();
    let mut records: Vec<_> = (0..6).map(|_| straight.epoch(&()).expect("an epoch").record).collect();

    let mut first = new();
    (0..3).for_each(|_| drop(first.epoch(&()).expect("an epoch")));
    let (files, counters) = first.state.save();
    let files = files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    let mut second = new();
    second.state = second.state.load(&files, &counters).expect("fits");
    let mut resumed: Vec<_> = (0..3).map(|_| second.epoch(&()).expect("an epoch").record).collect();

    assert_eq!(second.state, straight.state);
    for record in records.iter_mut().chain(&mut resumed) {
        record.retain(|key, _| !depends_on_machine(key));
    }
    assert_eq!(resumed, records[3..]);
}

#[test]
fn a_missing_reward_is_counted_and_left_out() {
    let spoil = |i| match i % 16 {
        3 => Some(Err(RewardError::Failed("server is gone".into()))),
        7 => Some(Ok(f32::NAN)),
        _ => None,
    };
    let (policy, prompts, reward) = (Toy::default(), vec![Prompt::from("a point")], Near { spoil });
    let mut trainer = trainer(&config(), &policy, &prompts, &reward);
    let record = trainer.epoch(&()).expect("an epoch").record;
    assert_eq!((&record["reward_missing"], &record["trained_samples"]), (&8.into(), &56.into()));
    assert_eq!(record["drawn_samples"], 64);
    assert!(record["reward_near"].as_f64().is_some_and(f64::is_finite));
}

#[test]
fn too_many_missing_rewards_stop_the_epoch_and_change_nothing() {
    let spoil = |i| (i % 2 == 0).then(|| Err(RewardError::Failed("server is gone".into())));
    let (policy, prompts, reward) = (Toy::default(), vec![Prompt::from("a point")], Near { spoil });
    let mut trainer = trainer(&config(), &policy, &prompts, &reward);
    let before = trainer.state.clone();
    let error = trainer.epoch(&()).expect_err("half are missing");
    let missing = matches!(error, TrainError::Rollout(RolloutError::Missing { missing: 32, total: 64, .. }));
    assert!(missing, "{error}");
    assert!(error.to_string().contains("server is gone"));
    assert_eq!(trainer.state, before);
}

const AGREEING: Near = Near { spoil: |_| Some(Ok(0.3)) };

/// A gradient that advantages alone make is 0 without them, and costs no forward pass.
#[test]
fn groups_that_agree_are_reported_and_train_nothing() {
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a point")]);
    let grpo = Config { objective: Grpo::default().into(), kl: Kl { weight: 0.0, ..Kl::default() }, ..config() };
    let dropped = Config { batch: BatchConfig { drop_zero_variance: true, ..config().batch }, ..config() };
    for config in [grpo, dropped] {
        let mut trainer = trainer(&config, &policy, &prompts, &AGREEING);
        let before = trainer.state.current.clone();
        let record = trainer.epoch(&()).expect("an epoch").record;
        assert_eq!((&record["zero_std_ratio"], &record["trained_samples"]), (&1.0.into(), &0.into()));
        assert_eq!(trainer.state.current, before);
    }
}

/// A policy away from its base, whose samples all score alike: what remains is the penalty, and the policy goes home.
#[test]
fn without_any_preference_a_penalty_leads_back_to_the_base() {
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a point")]);
    let pepg = Config { kl: Kl { weight: 1.0, ..Kl::default() }, ..config() };
    for config in [Config { objective: Grpo { clip: 0.1, ..Grpo::default() }.into(), ..pepg.clone() }, pepg] {
        let mut trainer = trainer(&config, &policy, &prompts, &AGREEING);
        let mut away = Vec::new();
        Key::new(5, Purpose::Initialization, 1).extend_normals(2 * 32, &mut away);
        let values = trainer.state.current.values_mut();
        let first = values.len() - away.len();
        values[first..].iter_mut().zip(away).for_each(|(value, noise)| *value += 0.1 * noise);
        trainer.state.behavior = trainer.state.current.clone();
        let mut epoch = || trainer.epoch(&()).expect("an epoch").record["kl_loss"].as_f64().expect("a number");
        let distances: Vec<f64> = (0..60).map(|_| epoch()).collect();
        assert!(distances[59] < 0.01 * distances[0], "{distances:?}");
    }
}

/// One epoch's samples of a configuration, and the record they leave.
fn collected(config: &Config, reward: &Near) -> Collected {
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a"), Prompt::from("b")]);
    trainer(config, &policy, &prompts, reward).collect(&()).expect("an epoch")
}

fn drawn(config: &Config, reward: &Near) -> Batch {
    collected(config, reward).batch
}

/// The bits of point `k` of every image.
fn points(drawn: &Batch, k: usize) -> Vec<[u32; 2]> {
    let values: Vec<f32> = drawn.points[k].clone().into_data().iter::<f32>().collect();
    values.chunks(2).map(|p| [p[0].to_bits(), p[1].to_bits()]).collect()
}

#[test]
fn images_of_a_group_can_share_their_start() {
    let likelihood = LikelihoodKind::Trajectory(Trajectory::default());
    let dance = Config { sampler: sampler(SamplerKind::Dance(Dance::default())), likelihood, ..config() };
    let distinct = |drawn: &Batch, k| points(drawn, k).into_iter().collect::<BTreeSet<_>>().len();
    let own = drawn(&dance, &HONEST);
    assert_eq!([distinct(&own, 0), distinct(&own, 1)], [64, 64]);
    let shared = drawn(&Config { start_noise: StartNoise::PerGroup, ..dance }, &HONEST);
    assert_eq!([distinct(&shared, 0), distinct(&shared, 1)], [2, 64]);
    assert_eq!(points(&shared, 0)[..32], vec![points(&own, 0)[0]; 32]);
}

#[test]
fn images_that_branch_together_are_compared_with_each_other() {
    let drawn = drawn(&branching(), &HONEST);
    let groups: Vec<usize> = drawn.samples.iter().map(|sample| sample.group).collect();
    assert_eq!(groups, (0..64).map(|i| i / 8).collect::<Vec<_>>());
    for group in 0..8 {
        let distinct = |k: usize| points(&drawn, k)[8 * group..8 * group + 8].iter().collect::<BTreeSet<_>>().len();
        let split = (0..=10).position(|k| distinct(k) > 1).expect("they branch");
        assert!((1..=9).contains(&split) && (split..=10).all(|k| distinct(k) == 8), "group {group}: {split}");
        // The shared path is that of the whole prompt.
        assert_eq!(points(&drawn, split - 1)[8 * group], points(&drawn, split - 1)[8 * group / 32 * 32 + 31]);
    }
}

/// The rewards of an epoch's cheap samples and of those in full: in as many steps, they are the same samples.
#[test]
fn the_best_and_worst_are_drawn_in_full() {
    let batch = BatchConfig { group_size: 8, ..config().batch };
    let config =
        Config { collection: Prefilter { count: 50, steps: 10, ..Prefilter::default() }.into(), batch, ..config() };
    let full = drawn(&config, &HONEST);
    assert_eq!(full.len(), 16);
    // Every start of the cheap ones, drawn in full.
    let all = Config {
        batch: BatchConfig { group_size: 50, ..batch },
        collection: CollectionKind::default(),
        ..config.clone()
    };
    let sorted = |samples: &[elbow::batch::Sample]| {
        let mut rewards: Vec<f64> = samples.iter().map(|sample| sample.value().expect("a reward")).collect();
        rewards.sort_by(f64::total_cmp);
        rewards
    };
    for (cheap, full) in drawn(&all, &HONEST).samples.chunks(50).zip(full.samples.chunks(8)) {
        let (cheap, full) = (sorted(cheap), sorted(full));
        assert_eq!(full, [&cheap[..4], &cheap[46..]].concat());
    }
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a")]);
    let record = trainer(&config, &policy, &prompts, &HONEST).epoch(&()).expect("an epoch").record;
    assert_eq!((&record["prefilter_samples"], &record["prefilter_reward_missing"]), (&100.into(), &0.into()));
    let spread = |key: &str| record[key].as_f64().expect("a number");
    assert!(spread("reward_near_std") > 1.3 * spread("prefilter_reward_near_std"), "{record:?}");
}

#[test]
fn a_cheap_sample_without_a_reward_is_counted_and_never_zero() {
    // Zero would be the best reward there is.
    let spoil = |i| (i % 8 == 3).then(|| Err(RewardError::Failed("server is gone".into())));
    let batch = BatchConfig { group_size: 8, ..config().batch };
    let collection = Prefilter { count: 40, steps: 10, ..Prefilter::default() }.into();
    let config = Config { collection, batch, max_missing: 0.2, ..config() };
    let missing = collected(&config, &Near { spoil });
    let log = |key: &str| missing.log.iter().find(|(name, _)| name == key).expect("an entry").1.clone();
    assert_eq!(log("prefilter_reward_missing"), 10);
    // The best of what was scored is redone, and no unscored one in its place.
    let honest = collected(&config, &HONEST);
    let best = |batch: &Batch| batch.samples.iter().filter_map(Sample::value).fold(f64::NEG_INFINITY, f64::max);
    assert!(best(&missing.batch) <= best(&honest.batch));
    let (policy, prompts, reward) = (Toy::default(), vec![Prompt::from("a")], Near { spoil });
    let run = |max_missing| {
        let config = Config { max_missing, ..config.clone() };
        trainer(&config, &policy, &prompts, &reward).epoch(&())
    };
    assert_eq!(run(0.2).expect("an epoch").record["prefilter_reward_missing"], 10);
    let error = run(0.1).expect_err("an eighth of them is missing");
    let missing = matches!(error, TrainError::Rollout(RolloutError::Missing { missing: 10, total: 80, .. }));
    assert!(missing, "{error}");
}

/// Velocities of the rollout stand for a forward pass of the weights that drew: the same bits of everything, at fewer passes.
#[test]
fn velocities_of_the_rollout_are_used_again() {
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a"), Prompt::from("b")]);
    let paths = Config {
        likelihood: LikelihoodKind::Elbo(Elbo { points: Points::Sampler, ..Elbo::default() }),
        objective: Pepg::default().into(),
        ..config()
    };
    let steps = Config {
        sampler: sampler(SamplerKind::FlowSde(FlowSde::default())),
        likelihood: Trajectory::default().into(),
        objective: Grpo::default().into(),
        ..config()
    };
    let guard = Config { objective: GrpoGuard::default().into(), ..steps.clone() };
    let whole = Trajectory { ratio: elbow::likelihood::Ratio::PerSample, ..Trajectory::default() };
    let whole = Config { likelihood: whole.into(), ..steps.clone() };
    for config in [paths, steps, guard, whole] {
        let run = |reuse_velocities| {
            let batch = BatchConfig { updates: 2, micro_batch: MicroBatch::Size(12), reuse_velocities, ..config.batch };
            let behavior = BehaviorLag { start: 0, rate: 0.2, max: 0.5, on_policy: false };
            let config = Config { batch, behavior, ..config.clone() };
            let mut trainer = trainer(&config, &policy, &prompts, &HONEST);
            assert!(trainer.reproduces().expect("it draws"), "{config:?}");
            let records: Vec<_> = (0..3).map(|_| trainer.epoch(&()).expect("an epoch").record).collect();
            let batch = trainer.collect(&()).expect("an epoch").batch;
            let passes = trainer.update(&batch, &()).expect("an update").passes;
            let ratios: Vec<_> =
                records.iter().map(|r| (r["logratio_std"].clone(), r["policy_loss"].clone())).collect();
            (trainer.state.clone(), ratios, passes)
        };
        let ((state, ratios, passes), (again, again_ratios, more)) = (run(Reuse::Yes), run(Reuse::No));
        assert_eq!((&state, &ratios), (&again, &again_ratios), "{config:?}");
        assert!(ratios.iter().all(|(ratio, _)| ratio.as_f64().is_some_and(|r| r > 0.0)), "{ratios:?}");
        assert!(passes < more, "{config:?}: {passes} {more}");
    }
}

/// A student becomes its teacher, whatever the rewards; with two, the tag of a prompt says which.
#[test]
fn a_student_becomes_its_teacher() {
    let teacher = |tag: Option<&str>| objective::Teacher { weights: "given".into(), tag: tag.map(str::to_owned) };
    let distill = objective::Distill { teachers: vec![teacher(Some("other")), teacher(None)], ..Default::default() };
    let likelihood = LikelihoodKind::Elbo(Elbo { points: Points::Sampler, ..Elbo::default() });
    let config = Config {
        objective: distill.into(),
        likelihood,
        sampler: sampler(SamplerKind::Euler(Euler {})),
        kl: Kl { weight: 0.0, ..Kl::default() },
        ..config()
    };
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a point")]);
    let mut trainer = trainer(&config, &policy, &prompts, &AGREEING);
    let error = trainer.epoch(&()).expect_err("it has no teachers").to_string();
    assert!(error.contains("2 teachers and there are 0"), "{error}");
    let moved = |scale: f32| {
        let mut params = policy.initial();
        let mut away = Vec::new();
        Key::new(5, Purpose::Initialization, 1).extend_normals(2 * 32, &mut away);
        let values = params.values_mut();
        let first = values.len() - away.len();
        values[first..].iter_mut().zip(away).for_each(|(value, noise)| *value += scale * noise);
        params
    };
    trainer.teachers = vec![moved(5.0), moved(0.2)];
    let mut epoch = || trainer.epoch(&()).expect("an epoch").record["policy_loss"].as_f64().expect("a number");
    let losses: Vec<f64> = (0..80).map(|_| epoch()).collect();
    assert!(losses[79] < 0.02 * losses[0], "{losses:?}");
}

/// A sample that comes back is scored at the steps that were chosen for it then: under weights that stand still its weight is 1.
#[test]
fn steps_chosen_at_random_are_those_of_then() {
    let likelihood = Trajectory { fraction: 0.5, choice: Choice::Random, ..Trajectory::default() };
    let optimizer = OptimizerConfig { learning_rate: 1e-30, weight_decay: 0.0, ..config().optimizer };
    let batch = BatchConfig { groups: 4, group_size: 16, ..config().batch };
    let config = Config { likelihood: likelihood.into(), optimizer, batch, ..replaying() };
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a"), Prompt::from("b")]);
    let mut trainer = trainer(&config, &policy, &prompts, &HONEST);
    let records: Vec<_> = (0..4).map(|_| trainer.epoch(&()).expect("an epoch").record).collect();
    let weights: Vec<f64> = records[1..].iter().filter_map(|record| record["replay_weight"].as_f64()).collect();
    assert!(weights.len() == 3 && weights.iter().all(|w| (w - 1.0).abs() < 1e-6), "{weights:?}");
}

/// The toy, going on with somebody's weights.
struct Started {
    toy: Toy,
    start: Params,
}

impl Policy for Started {
    fn schedule(&self) -> Schedule {
        self.toy.schedule()
    }

    fn dims(&self) -> usize {
        self.toy.dims()
    }

    fn initial(&self) -> Params {
        self.start.clone()
    }

    fn bind(&self, trained: Option<&Tensors>) -> Box<dyn VelocityField> {
        self.toy.bind(trained)
    }

    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        self.toy.encode(prompts)
    }

    fn decode(&self, latents: Tensor<2>) -> Vec<Decoded> {
        self.toy.decode(latents)
    }
}

/// A policy that goes on with an adapter is held near the base, or near that adapter: the distance is then 0 before it moves.
#[test]
fn a_policy_is_held_near_the_base_or_near_what_it_starts_from() {
    let toy = Toy::default();
    let mut start = toy.initial();
    start.values_mut().iter_mut().rev().take(2 * toy.hidden).for_each(|value| *value = 0.3);
    let policy = Started { toy, start };
    let prompts = vec![Prompt::from("a point")];
    let distances = |reference: Anchor, objective: ObjectiveKind| {
        let kl = Kl { weight: 0.5, reference, ..Kl::default() };
        let config = Config { kl, objective, ..config() };
        let mut trainer = trainer(&config, &policy, &prompts, &HONEST);
        let mut epoch = || trainer.epoch(&()).expect("an epoch").record;
        let number = |value: &serde_json::Value| value.as_f64().expect("a number");
        let (first, second) = (epoch(), epoch());
        [number(&first["kl_loss"]), number(&second["kl_loss"]), number(&first["policy_loss"])]
    };
    let [base, _, _] = distances(Anchor::Base, Epg::default().into());
    let [first, second, _] = distances(Anchor::Adapter, Epg::default().into());
    assert!(base > 0.1 && first == 0.0 && second > 0.0 && second < base, "{base} {first} {second}");
    // An objective that compares with a reference compares with the same one: −ln σ(β · 0), whatever β.
    let losses = |reference| [1.0, 100.0].map(|beta| distances(reference, Dgpo { beta, ..Dgpo::default() }.into())[2]);
    let ([one, other], [near, far]) = (losses(Anchor::Adapter), losses(Anchor::Base));
    assert!((one - other).abs() < 1e-6 && (near - far).abs() > 1e-3, "{one} {other} {near} {far}");
}

/// What is watched is what a penalty would measure, and nothing is trained by it.
#[test]
fn the_distance_from_the_reference_is_told_without_a_penalty() {
    let toy = Toy::default();
    let mut start = toy.initial();
    start.values_mut().iter_mut().rev().take(2 * toy.hidden).for_each(|value| *value = 0.3);
    let (policy, prompts) = (Started { toy, start }, vec![Prompt::from("a point")]);
    let train = |objective: &ObjectiveKind, weight: f64, watch_reference: bool| {
        let kl = Kl { weight, ..Kl::default() };
        // As many points as are looked at.
        let timesteps = Timesteps::Stratified { count: 3, first: false, fraction: 1.0 };
        let likelihood = LikelihoodKind::Elbo(Elbo { timesteps, ..Elbo::default() });
        let config = Config { kl, objective: objective.clone(), likelihood, ..config() };
        let mut trainer = trainer(&config, &policy, &prompts, &HONEST);
        trainer.watch_reference = watch_reference;
        let record = trainer.epoch(&()).expect("an epoch").record;
        (record, trainer.state.current.values().to_vec())
    };
    // Of whole groups too, whose losses need two passes.
    for objective in [Epg::default().into(), Dgpo::default().into()] {
        let (penalized, _) = train(&objective, 0.5, true);
        let (watched, weights) = train(&objective, 0.0, true);
        let (plain, same) = train(&objective, 0.0, false);
        let (expected, found) = (penalized["kl_loss"].as_f64(), watched["kl_reference"].as_f64());
        assert!(expected > Some(0.1) && found == expected, "{found:?} and not {expected:?}");
        assert!(watched["kl_loss"].is_null() && weights == same);
        assert!(!plain.contains_key("kl_reference") && !penalized.contains_key("kl_reference"));
    }
}
