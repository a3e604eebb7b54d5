//! Rewards that are missing, late, slow or asleep: what is trained on is never a made-up number.

use burn::tensor::{Device, Tensor};
use elbow::{
    Needs, Policy, Prompt, Request, Reward, RewardError, Score,
    advantage::StandardizeParts,
    batch::Sample,
    config::{BatchConfig, Config, MicroBatch},
    eval::{self, EvalConfig, MeasureError},
    missing::OnMissing,
    noise::{Key, Purpose},
    observer::{Observer, Waiting},
    params::{Params, Tensors},
    policy::{Conditioning, Decoded, EncodeError, VelocityField},
    reward::{Part, Shape, Sum, Weighted},
    rollout::RolloutError,
    schedule::Schedule,
    toy::{Toy, point},
    train::{State, TrainError, Trainer},
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// −‖p − (1, 0)‖² once it has been asked about `away` pictures; before, nobody can be reached. A picture far above is `hopeless`.
struct Shop {
    away: AtomicUsize,
    hopeless: bool,
    needs: Needs,
    /// What was called, in order.
    calls: Mutex<Vec<&'static str>>,
}

fn shop(away: usize) -> Shop {
    Shop { away: away.into(), hopeless: false, needs: Needs::default(), calls: Mutex::default() }
}

impl Reward for Shop {
    fn name(&self) -> &'static str {
        "shop"
    }

    fn needs(&self) -> Needs {
        self.needs
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        self.calls.lock().expect("whole").push("score");
        let score = |image| {
            let [x, y] = point(image);
            if self.hopeless && y > 0.5 {
                return Err(RewardError::Failed("too high".into()));
            }
            let closed = self.away.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
            if closed {
                Err(RewardError::Unavailable("closed".into()))
            } else {
                Ok((-(x - 1.0).powi(2) - y.powi(2)).into())
            }
        };
        request.images.iter().map(score).collect()
    }

    fn wake(&self) {
        self.calls.lock().expect("whole").push("wake");
    }

    fn sleep(&self) {
        self.calls.lock().expect("whole").push("sleep");
    }
}

/// Waits no time at all, at most so often, and counts.
struct Patient {
    most: usize,
    waits: Mutex<Vec<(usize, usize, u32)>>,
}

impl Observer for Patient {
    fn progress(&self, _: &'static str, _: usize, _: usize) {}

    fn wait(&self, waiting: &Waiting<'_>) -> bool {
        let mut waits = self.waits.lock().expect("whole");
        waits.push((waiting.missing, waiting.total, waiting.attempt));
        waits.len() <= self.most
    }
}

fn patient(most: usize) -> Patient {
    Patient { most, waits: Mutex::default() }
}

fn config(on_missing: OnMissing, max_missing: f64) -> Config {
    Config {
        batch: BatchConfig {
            groups: 4,
            group_size: 8,
            updates: 1,
            micro_batch: MicroBatch::Size(8),
            ..BatchConfig::default()
        },
        on_missing,
        max_missing,
        ..Config::default()
    }
}

/// The state after two epochs, or why there is none.
fn trained(config: &Config, reward: &dyn Reward, observer: &dyn Observer) -> Result<State, TrainError> {
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a"), Prompt::from("b")]);
    let method = config.build(policy.schedule()).expect("valid");
    let mut trainer = Trainer::new(method, &policy, &prompts, reward, Device::flex()).expect("valid");
    for _ in 0..2 {
        trainer.epoch(observer)?;
    }
    Ok(trainer.state)
}

#[test]
fn a_reward_that_is_waited_for_leaves_no_trace() {
    let config = config(OnMissing::Wait, 0.0);
    let expected = trained(&config, &shop(0), &()).expect("trains");
    let watching = patient(100);
    assert_eq!(trained(&config, &shop(50), &watching).expect("trains"), expected);
    // All 32 were missing; asked again 18 were, and then none.
    assert_eq!(*watching.waits.lock().expect("whole"), [(32, 32, 0), (18, 32, 1)]);
    // Whole groups are asked again whole, and requests side by side change nothing.
    for needs in [Needs { whole_groups: true, ..Needs::default() }, Needs { in_flight: 3, ..Needs::default() }] {
        assert_eq!(
            trained(&config, &Shop { needs, ..shop(20) }, &patient(100)).expect("trains"),
            expected,
            "{needs:?}"
        );
    }
}

#[test]
fn whoever_watches_may_stop_waiting() {
    let config = config(OnMissing::Wait, 0.0);
    let error = trained(&config, &shop(1000), &patient(2)).expect_err("stopped");
    assert!(matches!(error, TrainError::Rollout(RolloutError::Stopped { .. })), "{error}");
}

#[test]
fn what_no_waiting_brings_ends_the_run_or_is_left_out() {
    let hopeless = || Shop { hopeless: true, ..shop(0) };
    let watching = patient(0);
    let error = trained(&config(OnMissing::Wait, 0.0), &hopeless(), &watching).expect_err("too many");
    assert!(
        matches!(error, TrainError::Rollout(RolloutError::Missing { .. })) && error.to_string().contains("too high"),
        "{error}"
    );
    assert!(watching.waits.lock().expect("whole").is_empty());
    let few = trained(&config(OnMissing::GoOn, 0.0), &hopeless(), &()).expect("trains on the rest");
    assert_ne!(few, trained(&config(OnMissing::Stop, 0.0), &shop(0), &()).expect("trains"));
    // Nothing to train on: the weights stay, and the run goes on.
    let none = trained(&config(OnMissing::GoOn, 0.0), &shop(usize::MAX), &()).expect("goes on");
    assert_eq!((none.epoch, &none.current), (2, &Toy::default().initial()));
}

#[test]
fn a_reward_wakes_before_it_is_asked_and_sleeps_while_the_policy_learns() {
    let reward = shop(0);
    trained(&config(OnMissing::Stop, 0.0), &reward, &()).expect("trains");
    let epoch = ["wake", "score", "score", "score", "score", "sleep"];
    assert_eq!(*reward.calls.lock().expect("whole"), [epoch, epoch].concat());
}

#[test]
fn an_evaluation_waits_too_and_counts_what_stays_missing() {
    let (policy, prompts) = (Toy::default(), [Prompt::from("a"), Prompt::from("b")]);
    let eval = EvalConfig { images_per_prompt: 4, ..EvalConfig::default() };
    let measure = |reward: &Shop, on_missing, observer: &dyn Observer| {
        eval::measure(&policy, policy.bind(None), &prompts, &[reward], &eval, on_missing, &Device::flex(), observer)
    };
    let whole = measure(&shop(0), OnMissing::Stop, &()).expect("measures").scores;
    assert_eq!(measure(&shop(5), OnMissing::Wait, &patient(9)).expect("measures").scores, whole);
    let gaps = measure(&shop(5), OnMissing::Stop, &()).expect("measures").scores;
    assert_eq!(gaps["shop"].iter().filter(|score| score.is_none()).count(), 5);
    assert_eq!(gaps["shop"][5..], whole["shop"][5..]);
    let closed = shop(1000);
    let stopped = measure(&closed, OnMissing::Wait, &patient(1));
    assert!(matches!(stopped, Err(MeasureError::Stopped(_))));
    let calls = closed.calls.lock().expect("whole");
    assert_eq!((calls[0], calls[calls.len() - 1]), ("wake", "sleep"), "{calls:?}");
}

/// Takes a while for every request.
struct Slow(Duration);

impl Reward for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn needs(&self) -> Needs {
        Needs { in_flight: 4, ..Needs::default() }
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        static SIDE_BY_SIDE: AtomicUsize = AtomicUsize::new(0);
        let now = SIDE_BY_SIDE.fetch_add(1, Ordering::SeqCst) + 1;
        thread::sleep(self.0);
        SIDE_BY_SIDE.fetch_sub(1, Ordering::SeqCst);
        vec![Ok((now as f64).into()); request.images.len()]
    }
}

#[test]
fn several_requests_are_in_flight() {
    let (policy, prompts) = (Toy::default(), vec![Prompt::from("a")]);
    let method = config(OnMissing::Stop, 0.0).build(policy.schedule()).expect("valid");
    let reward = Slow(Duration::from_millis(300));
    let trainer = Trainer::new(method, &policy, &prompts, &reward, Device::flex()).expect("valid");
    let batch = trainer.collect(&()).expect("draws").batch;
    let most = batch.samples.iter().filter_map(Sample::value).fold(0.0, f64::max);
    assert_eq!(most.to_bits(), 4f64.to_bits());
}

struct Axis(usize);

impl Reward for Axis {
    fn name(&self) -> &'static str {
        "axis"
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        request.images.iter().map(|image| Ok(point(image)[self.0].into())).collect()
    }
}

#[test]
fn a_part_of_a_sum_is_cut_clipped_and_gated() {
    let images: Vec<_> =
        [[100u8, 140, 0], [200, 90, 0]].map(|p| image::RgbImage::from_pixel(1, 1, image::Rgb(p))).into();
    let [[x0, y0], [x1, y1]] = [point(&images[0]), point(&images[1])].map(|p| p.map(f64::from));
    assert!(x0 < x1 && y0 > y1);
    let prompts = ["a", "a"].map(|text| Arc::new(Prompt::from(text)));
    let of = |shapes: [Shape; 2]| -> Vec<Score> {
        let [x, y] = shapes;
        let part = |name: &str, weight, axis, shape| Weighted {
            name: name.into(),
            weight,
            shape,
            reward: Box::new(Axis(axis)),
        };
        let sum = Sum { name: "sum".into(), parts: vec![part("x", 2.0, 0, x), part("y", -1.0, 1, y)] };
        let request = Request { images: &images, prompts: &prompts, latents: None, groups: &[0, 0] };
        sum.score(&request).into_iter().map(|score| score.expect("scored")).collect()
    };
    let values =
        |scores: &[Score]| -> Vec<[f64; 2]> { scores.iter().map(|s| [s.parts[0].value, s.parts[1].value]).collect() };
    let threshold = Shape { threshold: Some(f64::midpoint(x0, x1)), ..Shape::default() };
    let cut = of([threshold, Shape::default()]);
    assert_eq!(values(&cut), [[0.0, y0], [1.0, y1]]);
    assert!((cut[0].value + y0).abs() < 1e-12 && (cut[1].value - 2.0 + y1).abs() < 1e-12, "{cut:?}");
    let clip = Shape { clip: Some([x0 + 0.1, x0 + 0.2]), ..Shape::default() };
    assert_eq!(values(&of([clip, Shape::default()])), [[x0 + 0.1, y0], [x0 + 0.2, y1]]);
    // y counts where x reaches the middle, whatever x counts itself.
    let gate = Shape { gate: Some((0, f64::midpoint(x0, x1))), ..Shape::default() };
    let off = Shape { clip: Some([0.0, 0.0]), ..Shape::default() };
    assert_eq!(values(&of([off, gate])), [[0.0, 0.0], [0.0, y1]]);
}

/// (R − mean)/deviation of each part, by hand: a has mean 2 and deviation 1 in group 0, b 30 and 10; of both groups a has mean 3.
#[test]
fn parts_are_standardized_before_any_advantage_sees_them() {
    let prompt: Arc<Prompt> = Arc::new("a".into());
    let sample = |group, a, b| {
        let part = |name: &str, weight, value| Part { name: name.into(), weight, value };
        let reward = Ok(Score::sum(vec![part("a", 2.0, a), part("b", 0.5, b)]));
        Sample { group, reward, ..Sample::new(Arc::clone(&prompt), Key::new(0, Purpose::Step, 0)) }
    };
    let mut samples = vec![sample(0, 1.0, 20.0), sample(0, 3.0, 40.0), sample(1, 4.0, 0.0), sample(1, 4.0, 0.0)];
    samples.push(Sample { reward: Err(RewardError::Failed("lost".into())), ..samples[0].clone() });
    let seen = |how: StandardizeParts| -> Vec<Option<f64>> { how.of(&samples).iter().map(Sample::value).collect() };
    let close = |got: Vec<Option<f64>>, expected: [f64; 4]| {
        assert_eq!(got[4], None);
        for (got, expected) in got.into_iter().zip(expected) {
            assert!((got.expect("scored") - expected).abs() < 1e-5, "{got:?} {expected}");
        }
    };
    close(seen(StandardizeParts::No), [12.0, 26.0, 8.0, 8.0]);
    close(seen(StandardizeParts::ByGroup), [-2.5, 2.5, 0.0, 0.0]);
    let (a, b) = (1.5f64.sqrt(), 275f64.sqrt());
    let z = |x: f64, y: f64| 2.0 * (x - 3.0) / a + 0.5 * (y - 15.0) / b;
    close(seen(StandardizeParts::ByBatch), [z(1.0, 20.0), z(3.0, 40.0), z(4.0, 0.0), z(4.0, 0.0)]);
}

/// The toy, whose decoder overflows far above: latents are finite there, and pictures are not.
struct Overflows(Toy);

impl Policy for Overflows {
    fn schedule(&self) -> Schedule {
        self.0.schedule()
    }

    fn dims(&self) -> usize {
        self.0.dims()
    }

    fn initial(&self) -> Params {
        self.0.initial()
    }

    fn bind(&self, trained: Option<&Tensors>) -> Box<dyn VelocityField> {
        self.0.bind(trained)
    }

    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        self.0.encode(prompts)
    }

    fn decode(&self, latents: Tensor<2>) -> Vec<Decoded> {
        let all = self.0.decode(latents).into_iter();
        all.map(|decoded| Decoded { finite: point(&decoded.picture)[1] <= 0.5, ..decoded }).collect()
    }
}

#[test]
fn a_picture_that_is_not_finite_has_no_reward() {
    let (policy, prompts) = (Overflows(Toy::default()), vec![Prompt::from("a"), Prompt::from("b")]);
    let epoch = |config: &Config, reward: &Shop, observer: &dyn Observer| {
        let method = config.build(policy.schedule()).expect("valid");
        let mut trainer = Trainer::new(method, &policy, &prompts, reward, Device::flex()).expect("valid");
        trainer.epoch(observer)
    };
    let record = epoch(&config(OnMissing::GoOn, 0.0), &shop(0), &()).expect("trains").record;
    let missing = record["reward_missing"].as_u64().expect("a number");
    assert!(
        missing > 0 && record["trained_samples"].as_u64().is_some_and(|trained| trained + missing <= 32),
        "{record:?}"
    );
    let error = epoch(&config(OnMissing::Stop, 0.0), &shop(0), &()).expect_err("too many").to_string();
    assert!(error.contains("its picture is not finite: the decoder overflows"), "{error}");
    // Groups that are asked again whole do not bring it back.
    let whole = Shop { needs: Needs { whole_groups: true, ..Needs::default() }, ..shop(3) };
    let share = missing as f64 / 32.0;
    let again = epoch(&config(OnMissing::Wait, share), &whole, &patient(100)).expect("trains").record;
    assert_eq!(again["reward_missing"], record["reward_missing"]);
    let eval = EvalConfig { images_per_prompt: 16, micro_batch: 8, ..EvalConfig::default() };
    let (rewards, device) = ([&shop(0) as &dyn Reward], Device::flex());
    let measured = eval::measure(&policy, policy.bind(None), &prompts, &rewards, &eval, OnMissing::Stop, &device, &())
        .expect("measured");
    let far = measured.images.iter().filter(|image| point(image)[1] > 0.5).count();
    assert!(far > 0 && measured.summary("shop").expect("a reward").missing == far, "{far}");
}
