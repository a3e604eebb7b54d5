//! Peak memory of an epoch of the nano model by the number of rollout steps: flat under the ELBO, which looks at the final
//! image; growing under the likelihood of the trajectory, which is kept whole. The ELBO's times are those of the rollout unless
//! told otherwise, so that more steps are more points too; there is one at a time. The only test of this program, since it
//! counts every allocation.

#![expect(clippy::print_stdout, reason = "the table is what docs/performance.md shows")]

#[path = "../../elbow-models/tests/common/counting.rs"]
mod counting;

use burn::tensor::Device;
use counting::peak;
use elbow::{
    Prompt,
    advantage::{AdvantageKind, Standard},
    config::{BatchConfig, Config, MicroBatch},
    likelihood::{Elbo, LikelihoodKind, Timesteps, Trajectory},
    noise::{Key, Purpose},
    prediction::Prediction,
    sampler::{FlowSde, SamplerConfig, SamplerKind},
    schedule::Schedule,
    train::Trainer,
};
use elbow_models::{
    linear::Precision,
    mmdit::MmditConfig,
    policy::{Decoder, Network, NetworkPolicy, Tuning},
    recompute::Checkpointing,
};
use elbow_rewards::jpeg::Jpeg;
use elbow_world::encoder::WordCodes;
const GROUPS: usize = 2;
const GROUP_SIZE: usize = 4;
const MICRO_BATCH: usize = 4;

/// The most bytes that the rollout and the update of an epoch held, beyond those held before.
fn epoch(policy: &NetworkPolicy, likelihood: LikelihoodKind, steps: usize) -> usize {
    let prompts: Vec<Prompt> = ["a photo of a cat", "a photo of a red car"].map(Prompt::from).into();
    let rule = SamplerKind::FlowSde(FlowSde::default());
    let config = Config {
        batch: BatchConfig {
            groups: GROUPS,
            group_size: GROUP_SIZE,
            updates: 1,
            micro_batch: MicroBatch::Size(MICRO_BATCH),
            ..BatchConfig::default()
        },
        advantage: AdvantageKind::Standard(Standard::default()),
        sampler: SamplerConfig { rule, steps, ..SamplerConfig::default() },
        likelihood,
        ..Config::default()
    };
    let reward = Jpeg::default();
    let method = config.build(policy.schedule).expect("a valid configuration");
    let mut trainer = Trainer::new(method, policy, &prompts, &reward, Device::flex()).expect("a valid configuration");
    let (report, peak) = peak(|| trainer.epoch(&()).expect("an epoch"));
    let trained = report.record["trained_samples"].as_u64().expect("a number");
    assert_eq!(trained, (GROUPS * GROUP_SIZE) as u64);
    peak
}

#[test]
fn the_elbo_needs_no_more_memory_for_more_steps_and_the_trajectory_does() {
    // One micro-batch at a time, so that the peak does not depend on how several meet.
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().expect("the first to ask");
    let (device, config) = (Device::flex(), MmditConfig::default());
    let policy = NetworkPolicy {
        latent: config.latent(),
        schedule: Schedule::RectifiedFlow,
        prediction: Prediction::Velocity,
        base: config.initial(Key::new(0, Purpose::Initialization, 0)).tensors(&device),
        network: Network::from(config),
        tuning: Tuning::Full,
        precision: Precision::F32,
        checkpointing: Checkpointing::None,
        text: Box::new(WordCodes { device }),
        decoder: Decoder::Pixels,
        adapter: None,
        seed: 0,
    };
    let fixed = Elbo { timesteps: Timesteps::Stratified { count: 4, first: false, fraction: 1.0 }, ..Elbo::default() };
    let kinds = [
        LikelihoodKind::Elbo(fixed),
        LikelihoodKind::Elbo(Elbo::default()),
        LikelihoodKind::Trajectory(Trajectory::default()),
    ];
    epoch(&policy, kinds[0].clone(), 5); // what is allocated once
    let steps = [5, 10, 20, 40];
    let rows = steps.map(|steps| kinds.clone().map(|kind| epoch(&policy, kind, steps)));
    println!("| rollout steps | ELBO at 4 times | ELBO at the rollout's times | trajectory |\n|---|---|---|---|");
    for (steps, bytes) in steps.iter().zip(rows) {
        let [fixed, grid, trajectory] = bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
        println!("| {steps} | {fixed:.1} MiB | {grid:.1} MiB | {trajectory:.1} MiB |");
    }
    let more = [0, 1, 2].map(|kind| rows[3][kind].saturating_sub(rows[0][kind]));
    let image = policy.latent.iter().product::<usize>() * size_of::<f32>();
    assert!(more[0] < 1 << 19, "the ELBO at 4 times: {rows:?}");
    assert!(more[1] < 1 << 19, "the ELBO at the rollout's times: {rows:?}");
    assert!(more[2] > 35 * GROUPS * GROUP_SIZE * image, "every point of every image: {rows:?}");
}
