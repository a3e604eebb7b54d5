//! Objectives and divergences against closed forms, on a network whose parameters are its velocities.

mod golden;
mod identities;
mod temperature;

use super::*;
use crate::{
    batch::{Batch, Sample},
    evaluation::{Fields, Weights},
    gaussian::{self, to_f64},
    kl::{Anchor, Kl, KlKind, Proximal, Tightness},
    likelihood::{Elbo, Likelihood, Query, Ratio, Timesteps, Weighting},
    noise::{self, Key, Purpose},
    policy::{Conditioning, VelocityField},
    sampler::{self, Ddim, FlowSde, Sampler, SamplerConfig, Visit},
    schedule::{Grid, Schedule},
};
use burn::tensor::{Device, TensorData};
use serde::Deserialize;
use std::sync::Arc;

const B: usize = 6;
const DIMS: usize = 2;
const ADVANTAGES: [f64; B] = [1.5, -0.7, 0.3, -2.0, 7.0, -6.0];
/// The group of each sample.
const GROUPS: [usize; B] = [0, 0, 1, 1, 2, 2];

/// The same velocities at whatever points.
struct Table(Tensor<2>);

impl VelocityField for Table {
    fn velocity(&self, _: Tensor<2>, _: Tensor<1>, _: &Conditioning) -> Tensor<2> {
        self.0.clone()
    }
}

/// A field that may not be asked.
struct Never;

impl VelocityField for Never {
    fn velocity(&self, _: Tensor<2>, _: Tensor<1>, _: &Conditioning) -> Tensor<2> {
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
    let batch = batch(steps);
    elbo.queries(&batch, &batch).collect()
}

/// B samples whose latents are 0.
fn batch(steps: usize) -> Batch {
    let config = SamplerConfig { steps, ..SamplerConfig::default() };
    drawn(&config, vec![Tensor::zeros([B, DIMS], &Device::flex())])
}

/// B samples of one prompt with these points, as the sampler draws them.
fn drawn(config: &SamplerConfig, points: Vec<Tensor<2>>) -> Batch {
    let (sampling, device) = (config.build(), Device::flex());
    let grid = sampling.grid(Schedule::RectifiedFlow);
    let (prompt, shared_key) = (Arc::new("anything".into()), Key::new(3, Purpose::Step, 0));
    let sample = |(i, group)| {
        let key = shared_key.sample(i as u64);
        let walk = sampling.rule.walk(&grid, key).into();
        Sample { group, shared_key, walk, ..Sample::new(Arc::clone(&prompt), key) }
    };
    Batch {
        samples: GROUPS.into_iter().enumerate().map(sample).collect(),
        prompts: Conditioning { tokens: Tensor::zeros([1, 1, 1], &device), mask: None, pooled: None },
        points,
        velocities: Vec::new(),
        stds: (0..grid.steps()).map(|k| sampling.rule.step(&grid, k).std).collect(),
        grid: grid.into(),
        guidance: sampling.guidance,
    }
}

/// Velocities under which the rows of the query have (nearly) these log-probabilities, none above 0.
fn table(query: &Query, log_probs: &[f64], device: &Device) -> Table {
    // Latents are 0, so that u = ε = x / t.
    let rows = log_probs.len();
    let times: Tensor<2> = query.t.clone().reshape([rows, 1]);
    let target = (query.x.clone() / times).into_data().iter::<f64>().collect::<Vec<_>>();
    let velocity = |(i, u): (usize, f64)| {
        let sign = if i % 3 == 0 { 1.0 } else { -1.0 };
        (u + sign * (-log_probs[i / DIMS]).sqrt()) as f32
    };
    let values: Vec<f32> = target.into_iter().enumerate().map(velocity).collect();
    let table = Tensor::from_data(TensorData::new(values, [rows, DIMS]), device);
    Table(if device.is_autodiff() { table.require_grad() } else { table })
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.inner().into_data().iter::<f64>().collect()
}

/// One number a sample, as log-probabilities are.
fn per_sample(values: [f64; B]) -> Tensor<1> {
    gaussian::rows(&values, &Device::flex())
}

/// What `value` makes of B samples with these advantages, in these groups.
fn in_groups(groups: [usize; B], advantages: [f64; B], value: impl Fn(&Groups<'_>) -> Tensor<1>) -> Tensor<1> {
    let mut batch = batch(1);
    batch.samples.iter_mut().zip(groups).for_each(|(sample, group)| sample.group = group);
    value(&Groups::new(&advantages, &batch.samples, &batch, &Device::flex()))
}

/// The losses of samples with these advantages.
fn losses(objective: &dyn Objective, advantages: [f64; B], e: &Evaluation<'_>) -> Tensor<1> {
    in_groups(GROUPS, advantages, |groups| objective.loss(e, groups))
}

/// Which of them are outside the clip range.
fn clipped(objective: &dyn Objective, advantages: [f64; B], e: &Evaluation<'_>) -> Tensor<1> {
    in_groups(GROUPS, advantages, |groups| objective.clipped(e, groups).expect("it clips"))
}

const CURRENT: [f64; B] = [-1.0, -0.8, -1.2, -0.5, -0.9, -1.1];
const BEHAVIOR: [f64; B] = [-0.9, -1.0, -1.201, -0.4, -0.9005, -1.3];
const REFERENCE: [f64; B] = [-1.3, -0.7, -1.0, -0.55, -0.2, -2.0];

/// The value of each sample and its slope with respect to v, at [`CURRENT`] against `behavior`.
fn evaluate(behavior: Option<[f64; B]>, value: &dyn Fn(&Evaluation<'_>) -> Tensor<1>) -> (Vec<f64>, Vec<f64>) {
    let query = query();
    let current = table(&query, &CURRENT, &Device::flex().autodiff());
    let behavior = behavior.map(|b| table(&query, &b, &Device::flex()));
    let reference = table(&query, &REFERENCE, &Device::flex());
    let behavior = behavior.as_ref().map(|b| b as &dyn VelocityField);
    let fields = Fields { behavior, lagged: None, reference: &reference, guided_reference: None, teachers: &[] };
    let values = value(&Evaluation::new(&query, &current, &fields));
    let gradient = current.0.grad(&values.clone().sum().backward()).expect("depends on the weights");
    (numbers(values), numbers(gradient))
}

fn gradient(objective: &ObjectiveKind, behavior: Option<[f64; B]>) -> Vec<f64> {
    evaluate(behavior, &|e| losses(objective.get(), ADVANTAGES, e)).1
}

fn log_prob(e: &Evaluation<'_>) -> Tensor<1> {
    e.log_prob(Weights::Current)
}

fn behavior_log_prob(e: &Evaluation<'_>) -> Tensor<1> {
    e.log_prob(Weights::Current) - e.log_ratio()
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
        let expected = gradient(&EPG[0], behavior);
        assert!(expected.iter().all(|g| g.abs() > 1e-3), "{expected:?}");
        let [cispo, dpok] = clamped(1e-3);
        let more =
            [grpo(f64::INFINITY), grpo(1e-3), cispo, dpok, sapo(1.0, 1.05), ObjectiveKind::Gmpo(Gmpo::default())];
        for objective in EPG.into_iter().skip(1).chain(PEPG).chain(PAR).chain(more) {
            let off = relative(&gradient(&objective, behavior), &expected);
            assert!(off < 1e-6, "{objective:?}: {off}");
        }
    }
}

#[test]
fn pepg_and_par_always_have_one_gradient() {
    for behavior in [None, Some(BEHAVIOR), Some(REFERENCE)] {
        for (pepg, par) in PEPG.into_iter().zip(PAR) {
            let off = relative(&gradient(&pepg, behavior), &gradient(&par, behavior));
            assert!(off < 1e-6, "{pepg:?}: {off}");
        }
        let off = relative(&gradient(&PEPG[0], behavior), &gradient(&PEPG[1], behavior));
        assert!(behavior.is_none() || off > 1e-3, "off policy the ratio matters: {off}");
    }
}

/// Value and dloss/dL of an objective of L and L_b alone.
fn closed_form(objective: &ObjectiveKind, a: f64, l: f64, b: f64) -> (f64, f64) {
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
        let (b, _) = evaluate(Some(BEHAVIOR), &behavior_log_prob);
        for (got, wanted) in l.iter().chain(&b).zip(CURRENT.iter().chain(&BEHAVIOR)) {
            assert!((got - wanted).abs() < 1e-5, "the set-up gives {got}, not {wanted}");
        }
        let (got, gradient) = evaluate(Some(BEHAVIOR), &|e| losses(objective.get(), ADVANTAGES, e));
        for i in 0..B {
            let (value, slope) = closed_form(&objective, ADVANTAGES[i], l[i], b[i]);
            assert!((got[i] - value).abs() < 1e-12, "{objective:?} sample {i}: {} {value}", got[i]);
            for (g, d) in gradient.iter().zip(&dl).skip(i * DIMS).take(DIMS) {
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
    let (got, gradient) = evaluate(Some(behavior), &|e| losses(&objective, signs, e));
    let expected =
        [-2.0 * (-0.2f64).exp(), -2.0 * (-0.05f64).exp(), -2.2, 1.8, 2.0 * (-0.05f64).exp(), 2.0 * 0.2f64.exp()];
    for (value, expected) in got.iter().zip(expected) {
        assert!((value - expected).abs() < 1e-5, "{got:?}");
    }
    let moves: Vec<bool> = gradient.chunks(DIMS).map(|g| g.iter().all(|g| *g != 0.0)).collect();
    let stays: Vec<bool> = gradient.chunks(DIMS).map(|g| g.iter().all(|g| *g == 0.0)).collect();
    assert_eq!(moves, [true, true, false, false, true, true]);
    assert_eq!(stays, [false, false, true, true, false, false]);
    let outside =
        evaluate(Some(behavior), &|e| clipped(&objective, signs, e).cast(log_prob(e).dtype()) + e.log_ratio() * 0.0);
    assert_eq!(outside.0, [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]);
}

#[test]
fn large_advantages_are_clamped_by_grpo_only() {
    let clamped: [f64; B] = ADVANTAGES.map(|a| a.clamp(-5.0, 5.0));
    let values =
        |objective: &dyn Objective, advantages| evaluate(Some(BEHAVIOR), &|e| losses(objective, advantages, e)).0;
    let objective = Grpo::default();
    assert_eq!(values(&objective, ADVANTAGES), values(&objective, clamped));
    for objective in EPG.into_iter().chain(PEPG).chain(PAR) {
        let objective = objective.get();
        assert!((values(objective, ADVANTAGES)[4] - values(objective, clamped)[4]).abs() > 0.1);
    }
}

#[test]
fn only_what_is_asked_for_is_computed() {
    let query = query();
    let current = table(&query, &CURRENT, &Device::flex());
    let fields =
        Fields { behavior: Some(&Never), lagged: None, reference: &Never, guided_reference: None, teachers: &[] };
    let e = Evaluation::new(&query, &current, &fields);
    let got = numbers(losses(EPG[1].get(), ADVANTAGES, &e));
    assert!(got.iter().zip(ADVANTAGES).zip(CURRENT).all(|((got, a), l)| (got + a * l).abs() < 1e-4), "{got:?}");
    assert!(Kl { weight: 0.0, ..Kl::default() }.value(&e).is_none());
    let kl = Kl { weight: 1.0, ..Kl::default() };
    let fields = Fields { reference: &current, ..fields };
    let e = Evaluation::new(&query, &current, &fields);
    assert_eq!(numbers(kl.value(&e).expect("on")), [0.0; B]);
}

#[test]
fn divergences() {
    let (l, _) = evaluate(Some(BEHAVIOR), &log_prob);
    let (b, _) = evaluate(Some(BEHAVIOR), &behavior_log_prob);
    let (r, _) = evaluate(Some(BEHAVIOR), &|e| log_prob(e) * 0.0 + e.log_prob(Weights::Reference));
    let (distance, _) = evaluate(None, &|e| {
        let difference = to_f64(e.velocity(Weights::Current)) - to_f64(e.velocity(Weights::Reference));
        difference.square().sum_dim(1).reshape([B]) / DIMS as f64
    });
    for (kind, importance) in [KlKind::Girsanov, KlKind::K1, KlKind::K2, KlKind::K3, KlKind::K3Reversed]
        .into_iter()
        .flat_map(|k| [(k, false), (k, true)])
    {
        let kl = Kl { kind, weight: 0.3, importance, reference: Anchor::Base, guidance: None };
        let (got, _) = evaluate(Some(BEHAVIOR), &|e| kl.value(e).expect("on"));
        for i in 0..B {
            let d = l[i] - r[i];
            let value = match kind {
                KlKind::Girsanov => distance[i],
                KlKind::K1 => d,
                KlKind::K2 => d * d / 2.0,
                KlKind::K3 => (-d).exp() - 1.0 + d,
                KlKind::K3Reversed => d.exp() - 1.0 - d,
                KlKind::Path | KlKind::Step | KlKind::StepDt => unreachable!("not of this query"),
            };
            let expected = if importance { value * (l[i] - b[i]).exp() } else { value };
            assert!((got[i] - expected).abs() < 1e-6 * (1.0 + expected), "{kl:?}: {} {expected}", got[i]);
            assert!(kind == KlKind::K1 || got[i] >= 0.0, "{kl:?}: {}", got[i]);
        }
    }
}

/// The lagged weights are the behavior policy's, unless there are others.
#[test]
fn penalties_reach_for_the_base_or_for_lagged_weights() {
    let (query, device) = (query(), Device::flex());
    let [current, behavior, other] = [CURRENT, BEHAVIOR, REFERENCE].map(|l| table(&query, &l, &device));
    let log_probs = |field: &Table| numbers(query.log_prob(field.0.clone()));
    let distances = |field: &Table| {
        let square = (to_f64(current.0.clone()) - to_f64(field.0.clone())).square();
        numbers(gaussian::mean(square))
    };
    for (lagged, expected) in [(None, &behavior), (Some(&other as &dyn VelocityField), &other)] {
        let fields =
            Fields { behavior: Some(&behavior), lagged, reference: &Never, guided_reference: None, teachers: &[] };
        let e = Evaluation::new(&query, &current, &fields);
        let kl = |kind| {
            let kl = Kl { kind, weight: 1.0, importance: false, reference: Anchor::Lagged, guidance: None };
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

/// `kl.guidance` gives the base a guidance of its own: the penalty reaches for that, and objectives for the base as everything is guided.
#[test]
fn the_penalty_may_reach_for_a_guided_base() {
    let (query, device) = (query(), Device::flex());
    let [current, reference, guided] = [CURRENT, REFERENCE, BEHAVIOR].map(|l| table(&query, &l, &device));
    let fields =
        Fields { behavior: None, lagged: None, reference: &reference, guided_reference: Some(&guided), teachers: &[] };
    let e = Evaluation::new(&query, &current, &fields);
    let kl = Kl { kind: KlKind::K1, weight: 1.0, guidance: Some(4.5), ..Kl::default() };
    let log_probs = |field: &Table| numbers(query.log_prob(field.0.clone()));
    let (penalty, asked) = (numbers(kl.value(&e).expect("on")), numbers(e.log_prob(Weights::Reference)));
    let (l, base, guided) = (log_probs(&current), log_probs(&reference), log_probs(&guided));
    for i in 0..B {
        assert!((penalty[i] - (l[i] - guided[i])).abs() < 1e-12 && (asked[i] - base[i]).abs() < 1e-12, "{i}");
    }
}

/// Σ π k = KL(π ‖ π_ref) for k1 and k3 where samples come from π, and Σ b ρ k where they come from b; of k3 this holds with the
/// canonical sign only.
#[test]
fn k1_and_k3_estimate_the_divergence() {
    let pi = [0.3, 0.25, 0.05, 0.2, 0.15, 0.05f64];
    let pi_ref = [0.1, 0.2, 0.3, 0.05, 0.05, 0.3f64];
    let b = [0.2, 0.15, 0.15, 0.15, 0.25, 0.1f64];
    let exact: f64 = pi.iter().zip(pi_ref).map(|(p, r)| p * (p / r).ln()).sum();
    let (query, device) = (query(), Device::flex());
    let [current, behavior, reference] = [pi, b, pi_ref].map(|p| table(&query, &p.map(f64::ln), &device));
    let fields = Fields {
        behavior: Some(&behavior),
        lagged: None,
        reference: &reference,
        guided_reference: None,
        teachers: &[],
    };
    let e = Evaluation::new(&query, &current, &fields);
    let estimate = |kind, importance| {
        let values = numbers(
            Kl { kind, weight: 1.0, importance, reference: Anchor::Base, guidance: None }.value(&e).expect("on"),
        );
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

/// With a = √2, the Gaussian divergence of a step of the SDE is the path divergence with Girsanov's weight:
/// ‖μ_θ − μ_ref‖² / (2 σ² |Δ|) = |Δ| (1 − t)/t ‖v_θ − v_ref‖².
#[test]
fn the_divergence_of_an_sde_step_is_girsanovs() {
    let (sde, sampling) = (FlowSde { noise_level: 2f64.sqrt() }, SamplerConfig::default().build());
    let (grid, device) = (sampling.grid(Schedule::RectifiedFlow), Device::flex());
    let normal = |sample| to_f64(noise::normal([Key::new(9, Purpose::Draw, 0).sample(sample)], 48, &device));
    let (x, v, v_ref) = (normal(0), normal(1), normal(2));
    let square = |a: Tensor<2>, b: Tensor<2>| (a - b).square().sum().into_scalar::<f64>();
    // At t = 1 the sampler's σ is another one.
    for k in 1..10 {
        let step = sde.step(&grid, k);
        let mean = |v: &Tensor<2>| sampler::mean(&[step], &[Visit { x: x.clone(), velocity: v.clone() }]);
        let (t, dt) = (grid.times[k], grid.times[k] - grid.times[k + 1]);
        let divergence = square(mean(&v), mean(&v_ref)) / (2.0 * step.std * step.std);
        let expected = dt * (1.0 - t) / t * square(v.clone(), v_ref.clone());
        assert!((divergence - expected).abs() < 1e-6 * expected, "t = {t}: {divergence} {expected}");
    }
}
