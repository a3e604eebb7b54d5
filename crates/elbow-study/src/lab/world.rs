//! Policies whose every number is known: mixtures of Gaussians.
//!
//! A component is N(μ, diag s²) with weight π. On rectified flow, x_t of the component is N((1 − t) μ, V) with V = (1 − t)² s² + t², and
//!
//! E[ε − x₀ | x_t] = −μ + (x_t − (1 − t) μ) (t − (1 − t) s²)/V,
//!
//! so the velocity of the mixture is the mean of these over p(component | x_t). Its parameters are the logits of the weights, μ and ln s.
//! The noise is isotropic, so a rotation of the data rotates all of this: diagonal covariances lose nothing.

use burn::tensor::{Device, Tensor, activation::softmax};
use elbow::{
    Needs, Policy, Prompt, Request, Reward, RewardError, RgbImage, Score,
    noise::Key,
    params::{Params, Tensors},
    policy::{Conditioning, Decoded, EncodeError, VelocityField},
    schedule::Schedule,
};

/// The names of the parameters, in the order of their gradients.
pub const NAMES: [&str; 3] = ["log_std", "logits", "mean"];

/// A mixture of M Gaussians in D dimensions.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// M logits of the weights.
    pub logits: Vec<f64>,
    /// M means of D numbers.
    pub means: Vec<Vec<f64>>,
    /// M lists of D logarithms of deviations.
    pub log_stds: Vec<Vec<f64>>,
}

impl Mixture {
    /// A single Gaussian.
    pub fn gaussian(mean: &[f64], std: &[f64]) -> Self {
        let log_stds = vec![std.iter().map(|s| s.ln()).collect()];
        Self { logits: vec![0.0], means: vec![mean.to_vec()], log_stds }
    }

    /// D.
    pub fn dims(&self) -> usize {
        self.means[0].len()
    }

    /// The weights of the components.
    pub fn weights(&self) -> Vec<f64> {
        normalized(&self.logits)
    }

    /// The parameters, repeated for so many rows: one row is a policy's.
    pub fn params(&self, rows: usize) -> Params {
        let (modes, dims) = (self.logits.len(), self.dims());
        let repeat = |values: Vec<f64>| values.iter().map(|&v| v as f32).collect::<Vec<f32>>().repeat(rows);
        Params::new([
            ("log_std".into(), vec![rows, modes, dims], repeat(self.log_stds.concat())),
            ("logits".into(), vec![rows, modes], repeat(self.logits.clone())),
            ("mean".into(), vec![rows, modes, dims], repeat(self.means.concat())),
        ])
    }

    /// The same with the values of those parameters that are given.
    #[must_use]
    pub fn with(&self, params: &Params) -> Self {
        let mut all = self.params(1);
        all.assign(params);
        let values: Vec<f64> = all.values().iter().copied().map(f64::from).collect();
        let (modes, dims) = (self.logits.len(), self.dims());
        let rows = |from: usize| values[from..from + modes * dims].chunks(dims).map(<[f64]>::to_vec).collect();
        let logits = values[modes * dims..modes * (dims + 1)].to_vec();
        Self { log_stds: rows(0), logits, means: rows(modes * (dims + 1)) }
    }

    /// ln π_k N(x; (1 − t) μ_k, V_k) of each component.
    fn joint(&self, x: &[f64], t: f64) -> Vec<f64> {
        let of = |((mean, log_std), weight): ((&Vec<f64>, &Vec<f64>), f64)| {
            let term = |((x, m), l): ((&f64, &f64), &f64)| {
                let variance = (1.0 - t).powi(2) * (2.0 * l).exp() + t * t;
                -(x - (1.0 - t) * m).powi(2) / (2.0 * variance) - 0.5 * (std::f64::consts::TAU * variance).ln()
            };
            weight.ln() + x.iter().zip(mean).zip(log_std).map(term).sum::<f64>()
        };
        self.means.iter().zip(&self.log_stds).zip(self.weights()).map(of).collect()
    }

    /// ln π(x).
    pub fn log_density(&self, x: &[f64]) -> f64 {
        let joint = self.joint(x, 0.0);
        let most = joint.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        most + joint.iter().map(|j| (j - most).exp()).sum::<f64>().ln()
    }

    /// ∇ ln π(x) by the parameters, in the order of [`NAMES`].
    pub fn score(&self, x: &[f64]) -> Vec<f64> {
        let shares = normalized(&self.joint(x, 0.0));
        let weights = self.weights();
        let each = |of: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            let component = |(k, share): (usize, &f64)| -> Vec<f64> {
                let place = |j: usize| share * of(x[j] - self.means[k][j], (2.0 * self.log_stds[k][j]).exp());
                (0..x.len()).map(place).collect()
            };
            shares.iter().enumerate().flat_map(component).collect()
        };
        let logits: Vec<f64> = shares.iter().zip(&weights).map(|(share, weight)| share - weight).collect();
        [each(&|off, variance| off * off / variance - 1.0), logits, each(&|off, variance| off / variance)].concat()
    }

    /// The velocity at (x, t), in f64.
    pub fn velocity(&self, x: &[f64], t: f64) -> Vec<f64> {
        let shares = normalized(&self.joint(x, t));
        let component = |k: usize, j: usize| {
            let (mean, variance) = (self.means[k][j], (2.0 * self.log_stds[k][j]).exp());
            let noisy = (1.0 - t).powi(2) * variance + t * t;
            -mean + (x[j] - (1.0 - t) * mean) * (t - (1.0 - t) * variance) / noisy
        };
        (0..x.len()).map(|j| shares.iter().enumerate().map(|(k, share)| share * component(k, j)).sum()).collect()
    }

    /// Exact samples, one a key.
    pub fn samples(&self, keys: impl Iterator<Item = Key>) -> Vec<Vec<f64>> {
        let weights = self.weights();
        let sample = |key: Key| {
            let mut u = key.draw(1).uniforms().next().unwrap_or(0.0);
            let mut k = 0;
            while k + 1 < weights.len() && u >= weights[k] {
                u -= weights[k];
                k += 1;
            }
            let mut noise = Vec::new();
            key.extend_normals(self.dims(), &mut noise);
            let place = |j: usize| self.means[k][j] + self.log_stds[k][j].exp() * f64::from(noise[j]);
            (0..self.dims()).map(place).collect()
        };
        keys.map(sample).collect()
    }

    /// E R and its gradient by the parameters, of the reward −½ ‖x − target‖².
    pub fn expected_square(&self, target: &[f64]) -> (f64, Vec<f64>) {
        let dims = self.dims();
        let value = |k: usize| -> f64 {
            let place = |j: usize| (self.means[k][j] - target[j]).powi(2) + (2.0 * self.log_stds[k][j]).exp();
            -0.5 * (0..dims).map(place).sum::<f64>()
        };
        let (weights, values): (Vec<f64>, Vec<f64>) = (self.weights(), (0..self.logits.len()).map(value).collect());
        let mean: f64 = weights.iter().zip(&values).map(|(w, v)| w * v).sum();
        let each = |of: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            (0..weights.len())
                .flat_map(|k| (0..dims).map(move |j| (k, j)))
                .map(|(k, j)| weights[k] * of(k, j))
                .collect()
        };
        let logits: Vec<f64> = weights.iter().zip(&values).map(|(w, v)| w * (v - mean)).collect();
        let log_stds = each(&|k, j| -(2.0 * self.log_stds[k][j]).exp());
        (mean, [log_stds, logits, each(&|k, j| target[j] - self.means[k][j])].concat())
    }
}

/// KL(p ‖ q) of two single Gaussians.
///
/// # Panics
/// If one has several components.
pub fn divergence(p: &Mixture, q: &Mixture) -> f64 {
    assert!(p.logits.len() == 1 && q.logits.len() == 1, "invariant: single Gaussians");
    let place = |j: usize| {
        let (a, b) = (p.log_stds[0][j], q.log_stds[0][j]);
        b - a + ((2.0 * a).exp() + (p.means[0][j] - q.means[0][j]).powi(2)) / (2.0 * (2.0 * b).exp()) - 0.5
    };
    (0..p.dims()).map(place).sum()
}

/// Softmax.
pub fn normalized(logits: &[f64]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - most).exp()).sum();
    logits.iter().map(|l| (l - most).exp() / sum).collect()
}

/// A mixture as a policy. Parameters may have a row of their own for each row of the batch, so that one backward pass gives the gradient of
/// every sample.
#[derive(Clone, Debug)]
pub struct World {
    /// The base.
    pub base: Mixture,
    /// The names of the parameters that are trained, of [`NAMES`].
    pub trained: &'static [&'static str],
}

/// `log_std` and `mean` `[R, M, D]`, `logits` `[R, M]`, R being 1 or the rows of a batch.
struct Field {
    log_std: Tensor<3>,
    logits: Tensor<2>,
    mean: Tensor<3>,
}

impl VelocityField for Field {
    fn velocity(&self, x: Tensor<2>, t: Tensor<1>, _: &Conditioning) -> Tensor<2> {
        let [n, dims] = x.dims();
        let [rows, modes] = self.logits.dims();
        let t: Tensor<3> = t.reshape([n, 1, 1]);
        let rest = -t.clone() + 1.0;
        let x: Tensor<3> = x.reshape([n, 1, dims]);
        let data = (self.log_std.clone() * 2.0).exp();
        let variance = rest.clone().square() * data.clone() + t.clone().square();
        let off = x - rest.clone() * self.mean.clone();
        let each = off.clone() * (t - rest * data) / variance.clone() - self.mean.clone();
        if modes == 1 {
            return each.reshape([n, dims]);
        }
        let logits: Tensor<3> = self.logits.clone().reshape([rows, modes, 1]);
        let joint = logits - (off.square() / variance.clone() + variance.log()).sum_dim(2) * 0.5;
        (each * softmax(joint, 1)).sum_dim(1).reshape([n, dims])
    }
}

impl Policy for World {
    fn schedule(&self) -> Schedule {
        Schedule::RectifiedFlow
    }

    fn dims(&self) -> usize {
        self.base.dims()
    }

    fn initial(&self) -> Params {
        self.base.params(1).filtered(|name| self.trained.contains(&name))
    }

    fn bind(&self, trained: Option<&Tensors>) -> Box<dyn VelocityField> {
        let base = self.base.params(1).tensors(&Device::flex());
        let all = trained.map_or_else(|| base.clone(), |trained| base.overlaid(trained));
        Box::new(Field { log_std: all.tensor("log_std"), logits: all.tensor("logits"), mean: all.tensor("mean") })
    }

    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        let tokens = Tensor::zeros([prompts.len(), 1, 1], &Device::flex());
        Ok(Conditioning { tokens, mask: None, pooled: None })
    }

    /// A black picture of one pixel: rewards of the lab look at latents.
    fn decode(&self, latents: Tensor<2>) -> Vec<Decoded> {
        let points = rows(latents).into_iter();
        points.map(|x| Decoded { picture: RgbImage::new(1, 1), finite: x.iter().all(|x| x.is_finite()) }).collect()
    }
}

/// The rows of a tensor.
pub fn rows(x: Tensor<2>) -> Vec<Vec<f64>> {
    let dims = x.dims()[1];
    let values: Vec<f64> = x.into_data().iter::<f64>().collect();
    values.chunks(dims).map(<[f64]>::to_vec).collect()
}

/// A reward that is a function of the point.
pub struct Function<F>(pub F);

impl<F: Fn(&[f64]) -> f64 + Send + Sync> Reward for Function<F> {
    fn name(&self) -> &'static str {
        "function"
    }

    fn needs(&self) -> Needs {
        Needs { latents: true, ..Needs::default() }
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        let points = request.latents.map(|x| rows(x.clone())).unwrap_or_default();
        points.iter().map(|x| Ok((self.0)(x).into())).collect()
    }
}
