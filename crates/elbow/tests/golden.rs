//! Grids, sampler steps and the optimizer against reference implementations (`fixtures/README.md` says how the
//! references were made).

use burn::tensor::{Device, Tensor, TensorData};
use elbow::{
    gaussian::{Reduction, log_density},
    optimizer::{Optimizer, OptimizerConfig, RateSchedule},
    params::Params,
    prediction::Prediction,
    sampler::{self, Ddim, Dpm2, FlowSde, SaSolver, Sampler, Unipc, Visit},
    schedule::{Grid, Schedule, grid},
};
use serde::{Deserialize, de::DeserializeOwned};
use std::{fs, path::Path};

fn read<T: DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/method").join(name);
    serde_json::from_str(&fs::read_to_string(path).expect("a fixture")).expect("its fields")
}

fn tensor(values: &[f64]) -> Tensor<2> {
    let data: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    Tensor::from_data(TensorData::new(data, [1, values.len()]), &Device::flex())
}

fn values(x: Tensor<2>) -> Vec<f64> {
    x.into_data().as_slice::<f32>().expect("f32").iter().map(|&v| f64::from(v)).collect()
}

/// Compares relative to the largest value of the reference, or to 1 if that is larger.
fn close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let size = expected.iter().fold(1.0, |m, v| f64::max(m, v.abs()));
    let off = got.iter().zip(expected).fold(0.0, |m, (a, b)| f64::max(m, (a - b).abs()));
    assert!(off <= tolerance * size && got.iter().all(|v| v.is_finite()), "{what}: off by {off:e}, largest {size:e}");
}

#[test]
fn grids_are_those_of_the_flow_match_euler_scheduler() {
    #[derive(Deserialize)]
    struct Grid {
        steps: usize,
        shift: f64,
        times: Vec<f64>,
    }
    for Grid { steps, shift, times } in read::<Vec<Grid>>("grid.json") {
        close(&format!("{steps} steps"), &grid(steps, shift), &times, 1e-6);
    }
}

/// The reference on its own grid, which starts below 1, and on the grid of SD3, which starts at 1.
#[test]
fn dpm2_follows_the_multistep_scheduler() {
    #[derive(Deserialize)]
    struct Trajectory {
        times: Vec<f64>,
        a: Vec<f64>,
        b: Vec<f64>,
        points: Vec<Vec<f64>>,
    }
    for Trajectory { times, a, b, points } in read::<Vec<Trajectory>>("dpm2.json") {
        let (a, b) = (tensor(&a), tensor(&b));
        let (mut x, mut visits) = (tensor(&points[0]), Vec::new());
        let grid = Grid::new(Schedule::RectifiedFlow, times.clone());
        for (k, expected) in points[1..].iter().enumerate() {
            let velocity = (x.clone() * a.clone()).tanh() + b.clone() * times[k];
            visits.insert(0, Visit { x, velocity });
            x = sampler::mean(&[Dpm2 {}.step(&grid, k)], &visits);
            close(&format!("{} steps, point {}", times.len() - 1, k + 1), &values(x.clone()), expected, 1e-5);
        }
    }
}

const VARIANCE_PRESERVING: Schedule = Schedule::VariancePreserving { beta_min: 0.1, beta_max: 20.0 };

/// The time of [`VARIANCE_PRESERVING`] with a given ᾱ = α²: ½ ln ᾱ = −t²(β₁ − β₀)/4 − t β₀/2.
fn time(alpha_bar: f64) -> f64 {
    let (a, b) = ((20.0 - 0.1) / 4.0, 0.1 / 2.0);
    ((b * b - 2.0 * a * alpha_bar.ln()).sqrt() - b) / (2.0 * a)
}

/// A run of a multistep reference, on a flow or on a variance-preserving path, perhaps without its last steps.
#[derive(Deserialize)]
struct Multistep {
    #[serde(default)]
    times: Vec<f64>,
    #[serde(default)]
    alphas_bar: Vec<f64>,
    #[serde(default)]
    tau: f64,
    #[serde(default)]
    noises: Vec<Vec<f64>>,
    a: Vec<f64>,
    b: Vec<f64>,
    points: Vec<Vec<f64>>,
}

impl Multistep {
    /// Takes the reference's steps with its noise and compares every point.
    fn compare(&self, name: &str, rule: &dyn Sampler, tolerance: f64) {
        let flow = self.alphas_bar.is_empty();
        let schedule = if flow { Schedule::RectifiedFlow } else { VARIANCE_PRESERVING };
        let mut times = if flow { self.times.clone() } else { self.alphas_bar.iter().map(|&v| time(v)).collect() };
        *times.last_mut().expect("levels") = 0.0;
        let (a, b, mut x) = (tensor(&self.a), tensor(&self.b), tensor(&self.points[0]));
        let mut visits = Vec::new();
        let grid = Grid::new(schedule, times.clone());
        for (k, expected) in self.points[1..].iter().enumerate() {
            let network = (x.clone() * a.clone()).tanh() + b.clone() * schedule.level(times[k]).sigma;
            let prediction = if flow { Prediction::Velocity } else { Prediction::Noise };
            let velocity = prediction.velocity(schedule, x.clone(), network, &[times[k]]);
            visits.insert(0, Visit { x, velocity });
            let step = rule.step(&grid, k);
            let noise = self.noises.get(k).map_or_else(|| tensor(&[0.0; 12]), |z| tensor(z));
            x = sampler::mean(&[step], &visits) + noise * step.std;
            close(&format!("{name} on {schedule:?}, point {}", k + 1), &values(x.clone()), expected, tolerance);
        }
    }
}

/// On the reference's own grid, on one that starts almost at noise, and on Stable Diffusion's schedule.
#[test]
fn unipc_follows_the_multistep_scheduler() {
    let runs = read::<Vec<Multistep>>("unipc.json");
    assert!(runs.len() == 3 && runs.iter().all(|run| run.points.len() == 9));
    for run in &runs {
        run.compare("unipc", &Unipc {}, 1e-5);
    }
}

/// The same with the reference's noise.
#[test]
fn sa_solver_follows_the_stochastic_adams_scheduler() {
    let runs = read::<Vec<Multistep>>("sa_solver.json");
    assert!(runs.len() == 3 && runs.iter().all(|run| run.tau > 0.0 && run.noises.len() == 7));
    for run in &runs {
        run.compare("sa-solver", &SaSolver { tau: run.tau, order: 2, ..SaSolver::default() }, 1e-5);
    }
}

/// The reference's levels are discrete; each is a time of the continuous schedule.
#[test]
fn ddim_steps_have_the_mean_and_deviation_of_the_ddim_scheduler() {
    #[derive(Deserialize)]
    struct Transition {
        alphas_bar: [f64; 2],
        eta: f64,
        x: Vec<f64>,
        noise: Vec<f64>,
        mean: Vec<f64>,
        std: f64,
    }
    let schedule = VARIANCE_PRESERVING;
    for s in read::<Vec<Transition>>("ddim.json") {
        let what = format!("η = {}, ᾱ = {:?}", s.eta, s.alphas_bar);
        let [t, next] = s.alphas_bar.map(time);
        let velocity = Prediction::Noise.velocity(schedule, tensor(&s.x), tensor(&s.noise), &[t]);
        let step = Ddim { eta: s.eta }.step(&Grid::new(schedule, vec![t, next, 0.0]), 0);
        let mean = sampler::mean(&[step], &[Visit { x: tensor(&s.x), velocity }]);
        close(&format!("mean, {what}"), &values(mean), &s.mean, 1e-6);
        close(&format!("deviation, {what}"), &[step.std], &[s.std], 1e-12);
    }
}

#[test]
fn flow_sde_steps_have_the_published_mean_deviation_and_density() {
    #[derive(Deserialize)]
    struct Fixture {
        times: Vec<f64>,
        steps: Vec<Transition>,
    }
    #[derive(Deserialize)]
    struct Transition {
        k: usize,
        noise_level: f64,
        x: Vec<f64>,
        velocity: Vec<f64>,
        mean: Vec<f64>,
        std: f64,
        next: Vec<f64>,
        log_prob: f64,
    }
    let Fixture { times, steps } = read::<Fixture>("flow_sde.json");
    let grid = Grid::new(Schedule::RectifiedFlow, times);
    for s in steps {
        let step = FlowSde { noise_level: s.noise_level }.step(&grid, s.k);
        let mean = sampler::mean(&[step], &[Visit { x: tensor(&s.x), velocity: tensor(&s.velocity) }]);
        close(&format!("mean of step {}", s.k), &values(mean.clone()), &s.mean, 1e-6);
        close(&format!("deviation of step {}", s.k), &[step.std], &[s.std], 1e-12);
        let log_prob = log_density(tensor(&s.next) - mean, &[step.std], Reduction::Mean).into_scalar::<f64>();
        close(&format!("log-density of step {}", s.k), &[log_prob], &[s.log_prob], 1e-6);
    }
}

#[test]
fn the_optimizer_steps_as_pytorch_does() {
    #[derive(Deserialize)]
    struct Run {
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        epsilon: f64,
        weight_decay: f64,
        max_grad_norm: f64,
        start: Vec<f32>,
        steps: Vec<Taken>,
    }
    #[derive(Deserialize)]
    struct Taken {
        gradient: Vec<f32>,
        norm: f64,
        weights: Vec<f64>,
    }
    let params = |values: Vec<f32>| Params::new([("w".into(), vec![values.len()], values)]);
    for run in read::<Vec<Run>>("adamw.json") {
        let config = OptimizerConfig {
            learning_rate: run.learning_rate,
            warmup_steps: 0,
            schedule: RateSchedule::Constant,
            half_life: f64::INFINITY,
            beta1: run.beta1,
            beta2: run.beta2,
            epsilon: run.epsilon,
            weight_decay: run.weight_decay,
            max_grad_norm: run.max_grad_norm,
        };
        let mut weights = params(run.start);
        let (mut optimizer, total) = (Optimizer::new(&weights), run.steps.len() as u64);
        for (i, taken) in run.steps.into_iter().enumerate() {
            let norm = optimizer.step(&config, total, &mut weights, &mut params(taken.gradient));
            close(&format!("norm {i}"), &[norm], &[taken.norm], 1e-6);
            let got: Vec<f64> = weights.values().iter().map(|&v| f64::from(v)).collect();
            close(&format!("clipped at {}, step {i}", run.max_grad_norm), &got, &taken.weights, 1e-6);
        }
    }
}
