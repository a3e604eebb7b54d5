//! The training loop on a policy over the plane: it learns, it resumes, and nothing is silently zero.

use burn::tensor::Device;
use elbow::{
    Prompt, Reward, RewardError, RgbImage,
    advantage::{AdvantageKind, BestWorst, LeaveOneOut, Nft, PerPrompt, Softmax, Standard, Top},
    behavior::BehaviorLag,
    config::{Batch, Config, StartNoise},
    drafts::Drafts,
    likelihood::{Density, Elbo, LikelihoodKind, Points, StepWeights, Timesteps, Trajectory, Weighting},
    objective::{
        Dpo, Epg, FlowDppo, Gmpo, Grpo, GrpoGuard, NegativeAware, ObjectiveKind, Par, Pepg, Ram, Rpg, TrajectoryBalance,
    },
    noise::{Key, Purpose},
    optimizer::OptimizerConfig,
    sampler::{
        Branch, Cps, Dance, Ddim, Euler, FlowSde, SaSolver, SamplerKind, Sampling, Sde, Strategy, Unipc, Window,
    },
    toy::{Toy, point},
    train::{Drawn, Replay, TrainError, Trainer},
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

    fn score(&self, images: &[RgbImage], _: &[Prompt]) -> Vec<Result<f32, RewardError>> {
        let score = |(i, image)| {
            let [x, y] = point(image);
            (self.spoil)(i).unwrap_or(Ok(-(x - 1.0).powi(2) - y.powi(2)))
        };
        images.iter().enumerate().map(score).collect()
    }
}

const HONEST: Near = Near { spoil: |_| None };

fn config() -> Config {
    Config {
        batch: Batch { groups: 2, group_size: 32, updates: 1, rows: 64 },
        advantage: AdvantageKind::Standard(Standard::default()),
        optimizer: OptimizerConfig { learning_rate: 0.02, ..OptimizerConfig::default() },
        ..Config::default()
    }
}

fn sampler(rule: SamplerKind) -> Sampling {
    Sampling { rule, ..Sampling::default() }
}

fn sa_solver(tau: f64, order: usize) -> SamplerKind {
    SamplerKind::SaSolver(SaSolver { tau, order })
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
        replay: Replay { prompts: 3, groups: 2, images: 2, ..Replay::default() },
        ..config()
    }
}

/// Four stochastic steps of ten, at another place every other epoch.
fn window(strategy: Strategy) -> Sampling {
    let sde = Sde::FlowSde(FlowSde::default());
    sampler(SamplerKind::Window(Window { sde, every: 2, strategy, ..Window::default() }))
}

fn rewards(config: Config, epochs: usize) -> Vec<f64> {
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a point")]);
    let mut trainer = Trainer::new(config, &policy, &prompts, &HONEST, Device::flex()).expect("a valid configuration");
    let mut epoch = || trainer.epoch(&()).expect("an epoch").record["reward_near"].as_f64().expect("a number");
    (0..epochs).map(|_| epoch()).collect()
}

#[test]
fn every_objective_and_likelihood_learns() {
    let elbo = |weighting| LikelihoodKind::Elbo(Elbo { weighting, ..Elbo::default() });
    let sde = sampler(SamplerKind::FlowSde(FlowSde::default()));
    let euler = sampler(SamplerKind::Euler(Euler {}));
    let pepg = ObjectiveKind::Pepg(Pepg::default());
    let squared = Trajectory { density: Density::SquaredError, ..Trajectory::default() };
    let timesteps = Timesteps::Stratified { count: 6, first: false, fraction: 0.99 };
    let awm = Elbo { weighting: Weighting::Ghuber, timesteps, antithetic: true, ..Elbo::default() };
    for (objective, likelihood, sampler) in [
        (pepg, elbo(Weighting::Adaptive), Sampling::default()),
        (ObjectiveKind::Epg(Epg::default()), elbo(Weighting::Adaptive), euler),
        (ObjectiveKind::Par(Par::default()), elbo(Weighting::Simple), sde),
        (ObjectiveKind::Grpo(Grpo { clip: 0.2, ..Grpo::default() }), elbo(Weighting::T), Sampling::default()),
        (pepg, LikelihoodKind::Trajectory(Trajectory::default()), sde),
        (pepg, LikelihoodKind::Trajectory(Trajectory::default()), sampler(SamplerKind::Ddim(Ddim::default()))),
        (pepg, LikelihoodKind::Trajectory(Trajectory::default()), sampler(SamplerKind::Dance(Dance { eta: 0.7 }))),
        (pepg, LikelihoodKind::Trajectory(squared), sampler(SamplerKind::Cps(Cps::default()))),
        (pepg, LikelihoodKind::Trajectory(Trajectory::default()), window(Strategy::Progressive)),
        (pepg, LikelihoodKind::Elbo(awm), Sampling::default()),
        (pepg, LikelihoodKind::Elbo(Elbo { points: Points::Sampler, ..Elbo::default() }), Sampling::default()),
        (pepg, elbo(Weighting::Adaptive), sampler(SamplerKind::Unipc(Unipc {}))),
        (pepg, elbo(Weighting::Adaptive), sampler(sa_solver(0.4, 2))),
        (pepg, LikelihoodKind::Trajectory(Trajectory::default()), sampler(sa_solver(0.8, 1))),
    ] {
        let rewards = rewards(Config { objective, likelihood, sampler, ..config() }, 40);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&rewards[..2]), mean(&rewards[36..]));
        assert!(last > first + 0.5, "{objective:?} × {likelihood:?}: {first:.2} to {last:.2}");
    }
}

#[test]
fn groups_that_share_a_start_and_groups_that_are_chosen_learn() {
    let trajectory = LikelihoodKind::Trajectory(Trajectory::default());
    let dance = sampler(SamplerKind::Dance(Dance { eta: 0.7 }));
    let drafts = Drafts { count: 96, steps: 3, ..Drafts::default() };
    for config in [
        Config { sampler: dance, likelihood: trajectory, start_noise: StartNoise::PerGroup, ..config() },
        branching(),
        Config { drafts, ..config() },
        Config { batch: Batch { groups: 4, group_size: 16, ..config().batch }, ..replaying() },
    ] {
        let rewards = rewards(config.clone(), 60);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&rewards[..2]), mean(&rewards[56..]));
        assert!(last > first + 0.3, "{config:?}: {first:.2} to {last:.2}");
    }
}

#[test]
fn objectives_of_velocities_steps_and_pairs_learn() {
    let elbo = LikelihoodKind::Elbo(Elbo::default());
    let trajectory = LikelihoodKind::Trajectory(Trajectory::default());
    let (ode, sde) = (Sampling::default(), sampler(SamplerKind::FlowSde(FlowSde::default())));
    let standard = config().advantage;
    let pairs = AdvantageKind::BestWorst(BestWorst {});
    for (objective, likelihood, sampler, advantage) in [
        (ObjectiveKind::Nft(NegativeAware::default()), elbo, ode, AdvantageKind::Nft(Nft::default())),
        (ObjectiveKind::Ram(Ram::default()), elbo, ode, standard),
        (ObjectiveKind::Rpg(Rpg::default()), elbo, ode, standard),
        (ObjectiveKind::Gmpo(Gmpo { log_clip: 0.2 }), elbo, ode, standard),
        (ObjectiveKind::TrajectoryBalance(TrajectoryBalance {}), elbo, ode, standard),
        (ObjectiveKind::Dpo(Dpo { beta: 10.0 }), elbo, ode, pairs),
        (ObjectiveKind::GrpoGuard(GrpoGuard { clip: 0.2, ..GrpoGuard::default() }), trajectory, sde, standard),
        (ObjectiveKind::FlowDppo(FlowDppo { max_divergence: 0.1 }), trajectory, sde, standard),
        (
            ObjectiveKind::Epg(Epg { ratio: false }),
            elbo,
            ode,
            AdvantageKind::Softmax(Softmax { inverse_temperature: 2.0 }),
        ),
        (ObjectiveKind::Epg(Epg { ratio: false }), elbo, ode, AdvantageKind::Top(Top { percentile: 0.7 })),
        (ObjectiveKind::Epg(Epg::default()), elbo, ode, AdvantageKind::LeaveOneOut(LeaveOneOut::default())),
        (ObjectiveKind::Epg(Epg::default()), elbo, ode, AdvantageKind::PerPrompt(PerPrompt::default())),
    ] {
        let rewards = rewards(Config { objective, likelihood, sampler, advantage, ..config() }, 60);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&rewards[..2]), mean(&rewards[56..]));
        assert!(last > first + 0.3, "{objective:?} × {advantage:?}: {first:.2} to {last:.2}");
    }
}

#[test]
fn a_saved_state_continues_bit_for_bit() {
    let config = Config {
        batch: Batch { groups: 4, group_size: 8, updates: 2, rows: 5 },
        behavior: BehaviorLag { start: 0, rate: 0.1, max: 0.5, on_policy: false },
        ..config()
    };
    continues(&config);
    for strategy in [Strategy::Progressive, Strategy::Random, Strategy::Decay] {
        let (sampler, likelihood) = (window(strategy), LikelihoodKind::Trajectory(Trajectory::default()));
        let places = (0..6).map(|epoch| {
            let key = Key::new(0, Purpose::Step, epoch);
            sampler.stochastic_steps(config.schedule, key)
        });
        assert!(places.collect::<BTreeSet<_>>().len() > 1, "{strategy:?} moves");
        continues(&Config { sampler, likelihood, ..config.clone() });
    }
    let batch = Batch { groups: 2, ..branching().batch };
    continues(&Config { batch, ..branching() });
    continues(&Config { drafts: Drafts { count: 11, ..Drafts::default() }, ..config.clone() });
    continues(&Config { batch: config.batch, ..replaying() });
}

/// Six epochs are three epochs, saved and loaded, and three more.
fn continues(config: &Config) {
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a"), Prompt::from("b"), Prompt::from("c")]);
    let new = || Trainer::new(config.clone(), &policy, &prompts, &HONEST, Device::flex()).expect("valid");
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
        record.retain(|key, _| !key.starts_with("time_") && key != "samples_per_second");
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
    let mut trainer = Trainer::new(config(), &policy, &prompts, &reward, Device::flex()).expect("valid");
    let record = trainer.epoch(&()).expect("an epoch").record;
    assert_eq!((&record["reward_missing"], &record["trained_samples"]), (&8.into(), &56.into()));
    assert!(record["reward_near"].as_f64().is_some_and(f64::is_finite));
}

#[test]
fn too_many_missing_rewards_stop_the_epoch_and_change_nothing() {
    let spoil = |i| (i % 2 == 0).then(|| Err(RewardError::Failed("server is gone".into())));
    let (policy, prompts, reward) = (Toy::default(), vec![Prompt::from("a point")], Near { spoil });
    let mut trainer = Trainer::new(config(), &policy, &prompts, &reward, Device::flex()).expect("valid");
    let before = trainer.state.clone();
    let error = trainer.epoch(&()).expect_err("half are missing");
    assert!(matches!(error, TrainError::Missing { missing: 32, total: 64, .. }), "{error}");
    assert!(error.to_string().contains("server is gone"));
    assert_eq!(trainer.state, before);
}

#[test]
fn groups_that_agree_are_reported_and_train_nothing() {
    let (policy, prompts, reward) = (Toy::default(), vec![Prompt::from("a point")], Near { spoil: |_| Some(Ok(0.3)) });
    let mut trainer = Trainer::new(config(), &policy, &prompts, &reward, Device::flex()).expect("valid");
    let before = trainer.state.current.clone();
    let record = trainer.epoch(&()).expect("an epoch").record;
    assert_eq!((&record["zero_std_ratio"], &record["trained_samples"]), (&1.0.into(), &0.into()));
    assert_eq!(trainer.state.current, before);
}

/// One epoch's images of a configuration.
fn drawn(config: Config, reward: &Near) -> Drawn {
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a"), Prompt::from("b")]);
    Trainer::new(config, &policy, &prompts, reward, Device::flex()).expect("valid").draw(&()).expect("an epoch")
}

/// The bits of point `k` of every image.
fn points(drawn: &Drawn, k: usize) -> Vec<[u32; 2]> {
    let values: Vec<f32> = drawn.rollout.points[k].clone().into_data().iter::<f32>().collect();
    values.chunks(2).map(|p| [p[0].to_bits(), p[1].to_bits()]).collect()
}

#[test]
fn images_of_a_group_can_share_their_start() {
    let likelihood = LikelihoodKind::Trajectory(Trajectory::default());
    let dance = Config { sampler: sampler(SamplerKind::Dance(Dance::default())), likelihood, ..config() };
    let distinct = |drawn: &Drawn, k| points(drawn, k).into_iter().collect::<BTreeSet<_>>().len();
    let own = drawn(dance.clone(), &HONEST);
    assert_eq!([distinct(&own, 0), distinct(&own, 1)], [64, 64]);
    let shared = drawn(Config { start_noise: StartNoise::PerGroup, ..dance }, &HONEST);
    assert_eq!([distinct(&shared, 0), distinct(&shared, 1)], [2, 64]);
    assert_eq!(points(&shared, 0)[..32], vec![points(&own, 0)[0]; 32]);
}

#[test]
fn images_that_branch_together_are_compared_with_each_other() {
    let drawn = drawn(branching(), &HONEST);
    assert_eq!(drawn.rewards.groups, (0..64).map(|i| i / 8).collect::<Vec<_>>());
    for group in 0..8 {
        let distinct = |k: usize| points(&drawn, k)[8 * group..8 * group + 8].iter().collect::<BTreeSet<_>>().len();
        let split = (0..=10).position(|k| distinct(k) > 1).expect("they branch");
        assert!((1..=9).contains(&split) && (split..=10).all(|k| distinct(k) == 8), "group {group}: {split}");
        // The shared path is that of the whole prompt.
        assert_eq!(points(&drawn, split - 1)[8 * group], points(&drawn, split - 1)[8 * group / 32 * 32 + 31]);
    }
}

/// Drafts in as many steps as the images are the images.
#[test]
fn the_best_and_worst_drafts_are_drawn_in_full() {
    let drafts = Drafts { count: 50, steps: 10, ..Drafts::default() };
    let batch = Batch { group_size: 8, ..config().batch };
    let config = Config { drafts, batch, ..config() };
    let drawn = drawn(config.clone(), &HONEST);
    assert_eq!((drawn.drafts.len(), drawn.images.len()), (100, 16));
    for (drafts, images) in drawn.drafts.chunks(50).zip(drawn.rewards.rewards.chunks(8)) {
        let sorted = |rewards: &[Option<f64>]| {
            let mut rewards: Vec<f64> = rewards.iter().map(|r| r.expect("a reward")).collect();
            rewards.sort_by(f64::total_cmp);
            rewards
        };
        let (drafts, images) = (sorted(drafts), sorted(images));
        let (worst, best) = (&drafts[..4], &drafts[46..]);
        assert_eq!(images, [worst, best].concat());
    }
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a")]);
    let mut trainer = Trainer::new(config, &policy, &prompts, &HONEST, Device::flex()).expect("valid");
    let record = trainer.epoch(&()).expect("an epoch").record;
    assert_eq!((&record["drafts"], &record["draft_reward_missing"]), (&100.into(), &0.into()));
    let spread = |key: &str| record[key].as_f64().expect("a number");
    assert!(spread("reward_near_std") > 1.3 * spread("draft_reward_near_std"), "{record:?}");
}

#[test]
fn a_draft_without_a_reward_is_counted_and_never_zero() {
    // Zero would be the best reward there is.
    let spoil = |i| (i % 8 == 3).then(|| Err(RewardError::Failed("server is gone".into())));
    let drafts = Drafts { count: 40, steps: 10, ..Drafts::default() };
    let batch = Batch { group_size: 8, ..config().batch };
    let config = Config { drafts, batch, max_missing: 0.2, ..config() };
    let missing = drawn(config.clone(), &Near { spoil });
    assert_eq!(missing.drafts.iter().filter(|r| r.is_none()).count(), 10);
    let best = missing.drafts.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
    assert!(missing.rewards.rewards.iter().flatten().all(|&r| r <= best));
    let (policy, prompts, reward) = (Toy::default(), vec![Prompt::from("a")], Near { spoil });
    let run = |max_missing| {
        let config = Config { max_missing, ..config.clone() };
        Trainer::new(config, &policy, &prompts, &reward, Device::flex()).expect("valid").epoch(&())
    };
    assert_eq!(run(0.2).expect("an epoch").record["draft_reward_missing"], 10);
    let error = run(0.1).expect_err("an eighth of the drafts is missing");
    assert!(matches!(error, TrainError::Missing { missing: 10, total: 80, .. }), "{error}");
}
