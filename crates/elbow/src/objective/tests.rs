//! Objectives and divergences against closed forms, on a network whose parameters are its velocities.

mod golden;
mod identities;

use super::*;
use crate::{
    gaussian,
    kl::{Anchor, Kl, KlKind, Proximal},
    likelihood::{Elbo, Likelihood, Query, Ratio, Rollout, Timesteps, Weighting},
    noise::{self, Key, Purpose},
    policy::{Conditioning, VelocityField},
    sampler::{self, Ddim, FlowSde, Sampler, SamplerKind, Sampling, Visit},
    schedule::{Grid, Schedule},
};
use burn::tensor::{Device, TensorData};

const B: usize = 6;
const PIXELS: usize = 2;
const ADVANTAGES: [f64; B] = [1.5, -0.7, 0.3, -2.0, 7.0, -6.0];

/// The same velocities at whatever points.
struct Table(Tensor<4>);

impl VelocityField for Table {
    fn velocity(&self, _: Tensor<4>, _: Tensor<1>, _: &Conditioning) -> Tensor<4> {
        self.0.clone()
    }
}

/// A field that may not be asked.
struct Never;

impl VelocityField for Never {
    fn velocity(&self, _: Tensor<4>, _: Tensor<1>, _: &Conditioning) -> Tensor<4> {
        unreachable!("nothing asked for these weights")
    }
}

/// One draw of the ELBO with weight 1 for B samples: L = −mean (v − u)².
fn query() -> Query {
    queries(4, Timesteps::One, Ratio::PerDraw).remove(0)
}

/// The same for some times of a grid of so many steps.
fn queries(steps: usize, timesteps: Timesteps, ratio: Ratio) -> Vec<Query> {
    let elbo = Elbo { weighting: Weighting::Simple, timesteps, ratio, ..Elbo::default() };
    elbo.queries(&rollout(steps)).collect()
}

/// B black images.
fn rollout(steps: usize) -> Rollout {
    let device = Device::flex();
    Rollout {
        points: vec![Tensor::zeros([B, 1, 1, PIXELS], &device)],
        cond: Conditioning { tokens: Tensor::zeros([B, 1, 1], &device), pooled: Tensor::zeros([B, 1], &device) },
        keys: (0..B as u64).map(|i| Key::new(3, Purpose::Step, 0).sample(i)).collect(),
        group_keys: vec![Key::new(3, Purpose::Step, 0); B],
        importance: vec![1.0; B],
        sampling: Sampling { steps, ..Sampling::default() },
        schedule: Schedule::RectifiedFlow,
    }
}

/// Velocities under which the rows of the query have (nearly) these log-probabilities, none above 0.
fn table(query: &Query, log_probs: &[f64], device: &Device) -> Table {
    // Images are 0, so that u = ε = x / t.
    let rows = log_probs.len();
    let times = query.t.clone().reshape([rows, 1, 1, 1]);
    let target = (query.x.clone() / times).into_data().iter::<f64>().collect::<Vec<_>>();
    let velocity = |(i, u): (usize, f64)| {
        let sign = if i % 3 == 0 { 1.0 } else { -1.0 };
        (u + sign * (-log_probs[i / PIXELS]).sqrt()) as f32
    };
    let values: Vec<f32> = target.into_iter().enumerate().map(velocity).collect();
    let table = Tensor::from_data(TensorData::new(values, [rows, 1, 1, PIXELS]), device);
    Table(if device.is_autodiff() { table.require_grad() } else { table })
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.inner().into_data().iter::<f64>().collect()
}

fn advantages(values: [f64; B], e: &Evaluation<'_>) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [B]), (&Device::flex(), e.log_prob().dtype()))
}

const CURRENT: [f64; B] = [-1.0, -0.8, -1.2, -0.5, -0.9, -1.1];
const BEHAVIOR: [f64; B] = [-0.9, -1.0, -1.201, -0.4, -0.9005, -1.3];
const REFERENCE: [f64; B] = [-1.3, -0.7, -1.0, -0.55, -0.2, -2.0];

/// Losses and dloss/dv of every objective in turn, at [`CURRENT`] against `behavior`.
fn evaluate(behavior: Option<[f64; B]>, of: &dyn Fn(&Evaluation<'_>) -> Tensor<1>) -> (Vec<f64>, Vec<f64>) {
    let query = query();
    let current = table(&query, &CURRENT, &Device::flex().autodiff());
    let behavior = behavior.map(|b| table(&query, &b, &Device::flex()));
    let reference = table(&query, &REFERENCE, &Device::flex());
    let e = Evaluation::new(&query, &current, behavior.as_ref().map(|b| b as &dyn VelocityField), &reference);
    let loss = of(&e);
    let gradient = current.0.grad(&loss.clone().sum().backward()).expect("depends on the weights");
    (numbers(loss), numbers(gradient))
}

fn gradient(objective: ObjectiveKind, behavior: Option<[f64; B]>) -> Vec<f64> {
    evaluate(behavior, &|e| objective.get().loss(e, advantages(ADVANTAGES, e))).1
}

fn log_prob(e: &Evaluation<'_>) -> Tensor<1> {
    e.log_prob()
}

fn relative(a: &[f64], b: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

const EPG: [ObjectiveKind; 2] = [ObjectiveKind::Epg(Epg { ratio: true }), ObjectiveKind::Epg(Epg { ratio: false })];
const PEPG: [ObjectiveKind; 2] =
    [ObjectiveKind::Pepg(Pepg { ratio: true }), ObjectiveKind::Pepg(Pepg { ratio: false })];
const PAR: [ObjectiveKind; 2] = [ObjectiveKind::Par(Par { ratio: true }), ObjectiveKind::Par(Par { ratio: false })];

fn grpo(clip: f64) -> ObjectiveKind {
    ObjectiveKind::Grpo(Grpo { clip, clip_high: None, max_advantage: f64::INFINITY })
}

fn sapo(tau_positive: f64, tau_negative: f64) -> ObjectiveKind {
    ObjectiveKind::Sapo(Sapo { tau_positive, tau_negative })
}

/// What clamps a ratio on its own.
fn clamped(width: f64) -> [ObjectiveKind; 2] {
    [ObjectiveKind::Cispo(Cispo { low: width, high: width }), ObjectiveKind::Dpok(Dpok { clip: width })]
}

#[test]
fn on_policy_all_objectives_have_one_gradient() {
    for behavior in [None, Some(CURRENT)] {
        let expected = gradient(EPG[0], behavior);
        assert!(expected.iter().all(|g| g.abs() > 1e-3), "{expected:?}");
        let [cispo, dpok] = clamped(1e-3);
        let more =
            [grpo(f64::INFINITY), grpo(1e-3), cispo, dpok, sapo(1.0, 1.05), ObjectiveKind::Gmpo(Gmpo::default())];
        for objective in [EPG[1], PEPG[0], PEPG[1], PAR[0], PAR[1]].into_iter().chain(more) {
            let off = relative(&gradient(objective, behavior), &expected);
            assert!(off < 1e-6, "{objective:?}: {off}");
        }
    }
}

#[test]
fn pepg_and_par_always_have_one_gradient() {
    for behavior in [None, Some(BEHAVIOR), Some(REFERENCE)] {
        for (pepg, par) in PEPG.into_iter().zip(PAR) {
            let off = relative(&gradient(pepg, behavior), &gradient(par, behavior));
            assert!(off < 1e-6, "{pepg:?}: {off}");
        }
        let off = relative(&gradient(PEPG[0], behavior), &gradient(PEPG[1], behavior));
        assert!(behavior.is_none() || off > 1e-3, "off policy the ratio matters: {off}");
    }
}

/// Value and dloss/dL of an objective of L and L_b alone.
fn closed_form(objective: ObjectiveKind, a: f64, l: f64, b: f64) -> (f64, f64) {
    let (log_ratio, ratio) = (l - b, (l - b).exp());
    let factor = |keep: bool| if keep { ratio } else { 1.0 };
    match objective {
        ObjectiveKind::Epg(o) => (-factor(o.ratio) * a * l, -factor(o.ratio) * a),
        ObjectiveKind::Pepg(o) => {
            let weight = factor(o.ratio) * (a - log_ratio);
            (-weight * l, -weight)
        }
        ObjectiveKind::Par(o) => {
            let residual = a - log_ratio;
            (0.5 * factor(o.ratio) * residual * residual, -factor(o.ratio) * residual)
        }
        ObjectiveKind::Grpo(o) => {
            let a = a.clamp(-o.max_advantage, o.max_advantage);
            let high = o.clip_high.unwrap_or(o.clip);
            let clipped = ratio.clamp(1.0 - o.clip, 1.0 + high);
            let stuck = (a > 0.0 && ratio > 1.0 + high) || (a < 0.0 && ratio < 1.0 - o.clip);
            (if stuck { -a * clipped } else { -a * ratio }, if stuck { 0.0 } else { -a * ratio })
        }
        ObjectiveKind::Cispo(o) => {
            let weight = ratio.clamp(1.0 - o.low, 1.0 + o.high);
            (-weight * a * l, -weight * a)
        }
        ObjectiveKind::Sapo(o) => {
            let tau = if a > 0.0 { o.tau_positive } else { o.tau_negative };
            let gate = 1.0 / (1.0 + (-tau * (ratio - 1.0)).exp());
            (-4.0 / tau * gate * a, -4.0 * gate * (1.0 - gate) * ratio * a)
        }
        ObjectiveKind::Dpok(o) => {
            let inside = (ratio - 1.0).abs() <= o.clip;
            (-a * ratio.clamp(1.0 - o.clip, 1.0 + o.clip), if inside { -a * ratio } else { 0.0 })
        }
        other => unreachable!("{other:?} is in `identities`"),
    }
}

#[test]
fn closed_forms() {
    let clipping =
        [1e-3, 0.15, f64::INFINITY].map(|clip| ObjectiveKind::Grpo(Grpo { clip, clip_high: None, max_advantage: 5.0 }));
    // DAPO's: wider above.
    let dapo =
        [0.02, 0.15].map(|high| ObjectiveKind::Grpo(Grpo { clip: 0.1, clip_high: Some(high), max_advantage: 5.0 }));
    let more = [0.1, 0.9].into_iter().flat_map(clamped).chain([sapo(1.0, 1.05), sapo(20.0, 7.0)]);
    for objective in EPG.into_iter().chain(PEPG).chain(PAR).chain(clipping).chain(dapo).chain(more) {
        let (l, dl) = evaluate(Some(BEHAVIOR), &log_prob);
        let (b, _) = evaluate(Some(BEHAVIOR), &|e| e.log_prob() - e.log_ratio());
        for (got, wanted) in l.iter().chain(&b).zip(CURRENT.iter().chain(&BEHAVIOR)) {
            assert!((got - wanted).abs() < 1e-5, "the set-up gives {got}, not {wanted}");
        }
        let (got, gradient) = evaluate(Some(BEHAVIOR), &|e| objective.get().loss(e, advantages(ADVANTAGES, e)));
        for i in 0..B {
            let (value, slope) = closed_form(objective, ADVANTAGES[i], l[i], b[i]);
            assert!((got[i] - value).abs() < 1e-12, "{objective:?} sample {i}: {} {value}", got[i]);
            for (g, d) in gradient.iter().zip(&dl).skip(i * PIXELS).take(PIXELS) {
                let expected = slope * d;
                assert!(
                    (g - expected).abs() < 1e-6 * (1.0 + expected.abs()),
                    "{objective:?} sample {i}: {g} {expected}"
                );
            }
        }
    }
}

#[test]
fn clipping_stops_only_the_step_further_away() {
    // ρ below, inside and above [0.9, 1.1], for a good and a bad image.
    let behavior = [0.2, 0.05, -0.2, 0.2, 0.05, -0.2];
    let behavior: [f64; B] = std::array::from_fn(|i| CURRENT[i] + behavior[i]);
    let objective = Grpo { clip: 0.1, clip_high: None, max_advantage: 5.0 };
    let signs = [2.0, 2.0, 2.0, -2.0, -2.0, -2.0];
    let (losses, gradient) = evaluate(Some(behavior), &|e| objective.loss(e, advantages(signs, e)));
    let expected =
        [-2.0 * (-0.2f64).exp(), -2.0 * (-0.05f64).exp(), -2.2, 1.8, 2.0 * (-0.05f64).exp(), 2.0 * 0.2f64.exp()];
    for (got, expected) in losses.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-5, "{losses:?}");
    }
    let moves: Vec<bool> = gradient.chunks(PIXELS).map(|g| g.iter().all(|g| *g != 0.0)).collect();
    let stays: Vec<bool> = gradient.chunks(PIXELS).map(|g| g.iter().all(|g| *g == 0.0)).collect();
    assert_eq!(moves, [true, true, false, false, true, true]);
    assert_eq!(stays, [false, false, true, true, false, false]);
    let outside = evaluate(Some(behavior), &|e| {
        objective.clipped(e, advantages(signs, e)).expect("it clips").cast(e.log_prob().dtype()) + e.log_ratio() * 0.0
    });
    assert_eq!(outside.0, [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]);
}

#[test]
fn large_advantages_are_clamped_by_grpo_only() {
    let clamped: [f64; B] = ADVANTAGES.map(|a| a.clamp(-5.0, 5.0));
    let losses = |objective: ObjectiveKind, values| {
        evaluate(Some(BEHAVIOR), &|e| objective.get().loss(e, advantages(values, e))).0
    };
    let objective = ObjectiveKind::Grpo(Grpo::default());
    assert_eq!(losses(objective, ADVANTAGES), losses(objective, clamped));
    for objective in EPG.into_iter().chain(PEPG).chain(PAR) {
        assert!((losses(objective, ADVANTAGES)[4] - losses(objective, clamped)[4]).abs() > 0.1);
    }
}

#[test]
fn only_what_is_asked_for_is_computed() {
    let query = query();
    let current = table(&query, &CURRENT, &Device::flex());
    let e = Evaluation::new(&query, &current, Some(&Never), &Never);
    let losses = numbers(EPG[1].get().loss(&e, advantages(ADVANTAGES, &e)));
    assert!(losses.iter().zip(ADVANTAGES).zip(CURRENT).all(|((got, a), l)| (got + a * l).abs() < 1e-4), "{losses:?}");
    assert!(Kl { weight: 0.0, ..Kl::default() }.value(&e).is_none());
    let kl = Kl { weight: 1.0, ..Kl::default() };
    let e = Evaluation::new(&query, &current, Some(&Never), &current);
    assert_eq!(numbers(kl.value(&e).expect("on")), [0.0; B]);
}

#[test]
fn divergences() {
    let (l, _) = evaluate(Some(BEHAVIOR), &log_prob);
    let (b, _) = evaluate(Some(BEHAVIOR), &|e| e.log_prob() - e.log_ratio());
    let (r, _) = evaluate(Some(BEHAVIOR), &|e| e.log_prob() * 0.0 + e.reference_log_prob());
    let (distance, _) = evaluate(None, &|e| {
        let difference = gaussian::wide(e.velocity()) - gaussian::wide(e.reference_velocity());
        let rows: Tensor<2> = difference.square().reshape([B, PIXELS]);
        rows.sum_dim(1).reshape([B]) / PIXELS as f64
    });
    for (kind, importance) in [KlKind::Girsanov, KlKind::K1, KlKind::K2, KlKind::K3, KlKind::K3Reversed]
        .into_iter()
        .flat_map(|k| [(k, false), (k, true)])
    {
        let kl = Kl { kind, weight: 0.3, importance, reference: Anchor::Base };
        let (got, _) = evaluate(Some(BEHAVIOR), &|e| kl.value(e).expect("on"));
        for i in 0..B {
            let d = l[i] - r[i];
            let value = match kind {
                KlKind::Girsanov => distance[i],
                KlKind::K1 => d,
                KlKind::K2 => d * d / 2.0,
                KlKind::K3 => (-d).exp() - 1.0 + d,
                KlKind::K3Reversed => d.exp() - 1.0 - d,
            };
            let expected = if importance { value * (l[i] - b[i]).exp() } else { value };
            assert!((got[i] - expected).abs() < 1e-6 * (1.0 + expected), "{kl:?}: {} {expected}", got[i]);
            assert!(kind == KlKind::K1 || got[i] >= 0.0, "{kl:?}: {}", got[i]);
        }
    }
}

// The lagged weights are the behavior policy's, unless there are others.
#[test]
fn penalties_reach_for_the_base_or_for_lagged_weights() {
    let (query, device) = (query(), Device::flex());
    let [current, behavior, other] = [CURRENT, BEHAVIOR, REFERENCE].map(|l| table(&query, &l, &device));
    let log_probs = |field: &Table| numbers(query.log_prob(field.0.clone()));
    let distances = |field: &Table| {
        let square = (gaussian::wide(current.0.clone()) - gaussian::wide(field.0.clone())).square();
        numbers(gaussian::mean(square))
    };
    for (own, expected) in [(None, &behavior), (Some(&other as &dyn VelocityField), &other)] {
        let e = Evaluation::new(&query, &current, Some(&behavior), &Never).with_lagged(own);
        let kl = |kind| {
            let kl = Kl { kind, weight: 1.0, importance: false, reference: Anchor::Lagged };
            numbers(kl.value(&e).expect("on"))
        };
        let proximity = numbers(Proximal { weight: 1.0, clean: false }.value(&e).expect("on"));
        let (l, from, distances) = (log_probs(&current), log_probs(expected), distances(expected));
        for i in 0..B {
            assert!((kl(KlKind::K1)[i] - (l[i] - from[i])).abs() < 1e-12, "{i}");
            assert!((kl(KlKind::Girsanov)[i] - distances[i]).abs() < 1e-6, "{i}");
            assert!((proximity[i] - distances[i]).abs() < 1e-6, "{i}");
        }
    }
}

// Σ π k = KL(π ‖ π_ref) for k1 and k3 where samples come from π, and Σ b ρ k where they come from b; of k3 this holds with the
// canonical sign only.
#[test]
fn k1_and_k3_estimate_the_divergence() {
    let pi = [0.3, 0.25, 0.05, 0.2, 0.15, 0.05f64];
    let pi_ref = [0.1, 0.2, 0.3, 0.05, 0.05, 0.3f64];
    let b = [0.2, 0.15, 0.15, 0.15, 0.25, 0.1f64];
    let exact: f64 = pi.iter().zip(pi_ref).map(|(p, r)| p * (p / r).ln()).sum();
    let (query, device) = (query(), Device::flex());
    let [current, behavior, reference] = [pi, b, pi_ref].map(|p| table(&query, &p.map(f64::ln), &device));
    let e = Evaluation::new(&query, &current, Some(&behavior), &reference);
    let estimate = |kind, importance| {
        let values = numbers(Kl { kind, weight: 1.0, importance, reference: Anchor::Base }.value(&e).expect("on"));
        values.iter().zip(if importance { b } else { pi }).map(|(k, p)| k * p).sum::<f64>()
    };
    for importance in [false, true] {
        for kind in [KlKind::K1, KlKind::K3] {
            let got = estimate(kind, importance);
            assert!((got - exact).abs() < 1e-5, "{kind:?}: {got} {exact}");
        }
        assert!((estimate(KlKind::K3Reversed, importance) - exact).abs() > 0.01);
    }
}

// With a = √2, the Gaussian divergence of a step of the SDE is the path divergence with Girsanov's weight:
// ‖μ_θ − μ_ref‖² / (2 σ² |Δ|) = |Δ| (1 − t)/t ‖v_θ − v_ref‖².
#[test]
fn the_divergence_of_an_sde_step_is_girsanovs() {
    let (sde, sampling) = (FlowSde { noise_level: 2f64.sqrt() }, Sampling { steps: 10, ..Sampling::default() });
    let (times, device) = (sampling.times(), Device::flex());
    let normal =
        |sample| gaussian::wide(noise::normal([Key::new(9, Purpose::Draw, 0).sample(sample)], [3, 4, 4], &device));
    let (x, v, v_ref) = (normal(0), normal(1), normal(2));
    let square = |a: Tensor<4>, b: Tensor<4>| (a - b).square().sum().into_scalar::<f64>();
    let grid = sampling.grid(Schedule::RectifiedFlow);
    // At t = 1 the sampler's σ is another one.
    for k in 1..10 {
        let step = sde.step(&grid, k);
        let mean = |v: &Tensor<4>| sampler::mean(&[step], &[Visit { x: x.clone(), velocity: v.clone() }]);
        let (t, dt) = (times[k], times[k] - times[k + 1]);
        let divergence = square(mean(&v), mean(&v_ref)) / (2.0 * step.std * step.std);
        let expected = dt * (1.0 - t) / t * square(v.clone(), v_ref.clone());
        assert!((divergence - expected).abs() < 1e-6 * expected, "t = {t}: {divergence} {expected}");
    }
}
