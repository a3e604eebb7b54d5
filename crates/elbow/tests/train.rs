//! The training loop on a policy over the plane: it learns, it resumes, and nothing is silently zero.

use burn::tensor::Device;
use elbow::{
    Prompt, Reward, RewardError, RgbImage,
    advantage::{AdvantageKind, BestWorst, LeaveOneOut, Nft, PerPrompt, Softmax, Standard, Top},
    behavior::BehaviorLag,
    config::{Batch, Config},
    likelihood::{Density, Elbo, LikelihoodKind, Points, Timesteps, Trajectory, Weighting},
    objective::{
        Dpo, Epg, FlowDppo, Gmpo, Grpo, GrpoGuard, NegativeAware, ObjectiveKind, Par, Pepg, Ram, Rpg, TrajectoryBalance,
    },
    optimizer::OptimizerConfig,
    sampler::{Cps, Dance, Ddim, Euler, FlowSde, SamplerKind, Sampling, Sde, Strategy, Window},
    toy::{Toy, point},
    train::{TrainError, Trainer},
};

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
    ] {
        let rewards = rewards(Config { objective, likelihood, sampler, ..config() }, 40);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&rewards[..2]), mean(&rewards[36..]));
        assert!(last > first + 0.5, "{objective:?} × {likelihood:?}: {first:.2} to {last:.2}");
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
        let places = (0..6).map(|epoch| sampler.at(0, epoch).stochastic_steps(config.schedule));
        assert!(places.collect::<std::collections::BTreeSet<_>>().len() > 1, "{strategy:?} moves");
        continues(&Config { sampler, likelihood, ..config.clone() });
    }
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
