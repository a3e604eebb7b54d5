//! The objectives, re-derived like the rest of [`super::formula`].

use super::{
    ADVANTAGES, DIMS, GROUP, REFERENCE, behavior,
    formula::{Draw, Formula, Latent, Weights, level, mean},
    lagged,
};
use elbow::{
    likelihood::{Elbo, LikelihoodKind, Weighting},
    objective::{
        Centring, Cispo, Compare, Crd, Dgpo, Distill, Divergence, Dpo, Dpok, Epg, FlowDppo, Gmpo, Grpo, GrpoGuard,
        Guided, Nft, ObjectiveKind, Origin, Other, Par, Pepg, Ram, Residual, Rpg, Sapo, Target,
    },
};

impl Formula<'_> {
    /// The objective of one sample; `None` if that depends on others.
    pub(super) fn policy(&self, a: f64, draws: &[Draw], theta: &Weights, base: &Weights) -> Option<f64> {
        let behavior = behavior().map(f64::from);
        let l = self.log_prob(draws, theta, base);
        let l_b = self.log_prob(draws, &behavior, &behavior);
        let frozen = self.log_prob(draws, base, base) - l_b;
        let factor = |ratio: bool| if ratio { frozen.exp() } else { 1.0 };
        let row = |draw: &Draw| self.score(draw, theta, base) - self.score(draw, &behavior, &behavior);
        Some(match self.case.objective.clone() {
            ObjectiveKind::Epg(Epg { ratio }) => -factor(ratio) * a * l,
            ObjectiveKind::Pepg(Pepg { ratio }) => -factor(ratio) * (a - frozen) * l,
            ObjectiveKind::Par(Par { ratio }) => 0.5 * factor(ratio) * (a - (l - l_b)).powi(2),
            ObjectiveKind::Grpo(Grpo { clip, clip_high, max_advantage }) => {
                let (a, rho) = (a.clamp(-max_advantage, max_advantage), (l - l_b).exp());
                f64::max(-a * rho, -a * rho.clamp(1.0 - clip, 1.0 + clip_high.unwrap_or(clip)))
            }
            ObjectiveKind::Cispo(Cispo { low, high }) => -frozen.exp().clamp(1.0 - low, 1.0 + high) * a * l,
            ObjectiveKind::Sapo(Sapo { tau_positive, tau_negative }) => {
                let tau = if a > 0.0 { tau_positive } else { tau_negative };
                -4.0 / tau / (1.0 + (-tau * ((l - l_b).exp() - 1.0)).exp()) * a
            }
            ObjectiveKind::Dpok(Dpok { clip }) => -a * (l - l_b).exp().clamp(1.0 - clip, 1.0 + clip),
            ObjectiveKind::Rpg(Rpg { divergence: Divergence::Reverse, beta }) => {
                -frozen.exp() * (a - beta * frozen) * l
            }
            ObjectiveKind::Rpg(Rpg { divergence: Divergence::Forward, beta }) => -(frozen.exp() * a + beta) * l,
            ObjectiveKind::Gmpo(Gmpo { log_clip }) => {
                let sign = f64::signum(a);
                -a * mean(draws.iter().map(|draw| sign * (sign * row(draw)).min(log_clip))).exp()
            }
            ObjectiveKind::TrajectoryBalance(_)
            | ObjectiveKind::Dpo(_)
            | ObjectiveKind::Dgpo(_)
            | ObjectiveKind::Crd(_) => {
                return None;
            }
            _ => self.of_draws(a, draws, theta, base),
        })
    }

    /// The objective of one sample where it looks at velocities or steps.
    fn of_draws(&self, a: f64, draws: &[Draw], theta: &Weights, base: &Weights) -> f64 {
        let behavior = behavior().map(f64::from);
        let row = |draw: &Draw| self.score(draw, theta, base) - self.score(draw, &behavior, &behavior);
        match self.case.objective.clone() {
            ObjectiveKind::GrpoGuard(GrpoGuard { clip, max_advantage }) => mean(draws.iter().map(|draw| {
                let (_, variance) = self.transition(draw, self.velocity(draw, theta));
                let rho = ((row(draw) + self.step_divergence(draw, theta)) * variance.sqrt()).exp();
                let a = a.clamp(-max_advantage, max_advantage);
                let loss = f64::max(-a * rho, -a * rho.clamp(1.0 - clip, 1.0 + clip));
                loss / self.length(draw)
            })),
            ObjectiveKind::FlowDppo(FlowDppo { max_divergence }) => mean(draws.iter().map(|draw| {
                let away = a * (self.score(draw, base, base) - self.score(draw, &behavior, &behavior)) > 0.0;
                let stop = away && self.step_divergence(draw, base) > max_divergence;
                if stop { 0.0 } else { -a * row(draw).exp() }
            })),
            ObjectiveKind::Nft(Nft { mix, scale }) => {
                let branch = |side: f64| {
                    self.merge(draws.iter().map(|draw| {
                        let v_b = self.velocity(draw, &behavior);
                        let at = |weights: &Weights| -> Latent {
                            let v = self.velocity(draw, weights);
                            std::array::from_fn(|i| v_b[i] + side * mix * (v[i] - v_b[i]))
                        };
                        self.score_of(draw, at(theta), at(base))
                    }))
                };
                // Not divided by the guidance scale, as scores are.
                let divisor = match self.case.likelihood {
                    LikelihoodKind::Elbo(Elbo { weighting: Weighting::Adaptive, .. }) => self.case.sampler.guidance,
                    LikelihoodKind::Elbo(Elbo { weighting: Weighting::Simple, .. }) => {
                        self.case.sampler.guidance.powi(2)
                    }
                    _ => 1.0,
                };
                -scale / mix * divisor * (a * branch(1.0) + (1.0 - a) * branch(-1.0))
            }
            ObjectiveKind::Ram(Ram { multiplier, residual }) => mean(draws.iter().map(|draw| {
                let [_, _, d_alpha, d_sigma] = level(self.case.schedule, draw.time);
                let (v, v_ref) = (self.velocity(draw, theta), self.velocity(draw, &REFERENCE.map(f64::from)));
                let from = self.velocity(draw, if residual == Residual::Behavior { &behavior } else { base });
                mean((0..DIMS).map(|i| {
                    let u = d_alpha * draw.clean[i] + d_sigma * draw.goal[i];
                    (v[i] - v_ref[i] - multiplier * a * (u - from[i])).powi(2)
                }))
            })),
            // Its teacher has the lagged weights.
            ObjectiveKind::Distill(Distill { compare, normalized, .. }) => mean(draws.iter().map(|draw| {
                let teacher = lagged().map(f64::from);
                let [alpha, sigma, d_alpha, d_sigma] = level(self.case.schedule, draw.time);
                let moved = |v: Latent| match compare {
                    Compare::Velocity => v,
                    Compare::Clean => v.map(|v| -sigma / (alpha * d_sigma - d_alpha * sigma) * v),
                    Compare::Next => self.transition(draw, v).0,
                };
                let off = |weights: &Weights| -> Latent {
                    let [here, there] = [weights, &teacher].map(|weights| moved(self.velocity(draw, weights)));
                    std::array::from_fn(|i| here[i] - there[i])
                };
                let size = if normalized { mean(off(base).map(f64::abs)).max(1e-5) } else { 1.0 };
                mean(off(theta).map(|d| d * d)) / size
            })),
            ObjectiveKind::Guided(guided) => mean(draws.iter().map(|draw| self.guided(guided, a, draw, theta))),
            _ => unreachable!("of log-probabilities, or of the batch"),
        }
    }

    /// ‖v − v_o − γ Ψ‖² + c ‖v − v_ref‖² of one draw. In groups of two, a covariance is a pair's.
    fn guided(&self, guided: Guided, a: f64, draw: &Draw, theta: &Weights) -> f64 {
        let (behavior, reference) = (behavior().map(f64::from), REFERENCE.map(f64::from));
        let [_, _, d_alpha, d_sigma] = level(self.case.schedule, draw.time);
        let [v, v_b, v_ref] = [theta, &behavior, &reference].map(|weights| self.velocity(draw, weights));
        let from = if guided.origin == Origin::Behavior { v_b } else { v_ref };
        let direction: Latent = match guided.target {
            Target::Residual => {
                std::array::from_fn(|i| a * (d_alpha * draw.clean[i] + d_sigma * draw.goal[i] - v_b[i]))
            }
            Target::Covariance | Target::Pair => {
                let [first, second] = self.pair_of(draw);
                let sign = (first.0 - second.0).signum();
                let off: Latent = std::array::from_fn(|i| -sign * (first.1[i] - second.1[i]));
                let size = mean(off.map(|x| x * x)).sqrt();
                off.map(|x| x / size)
            }
        };
        let moved = mean((0..DIMS).map(|i| (v[i] - from[i] - guided.step * direction[i]).powi(2)));
        moved + guided.anchor * mean((0..DIMS).map(|i| (v[i] - v_ref[i]).powi(2)))
    }

    /// The objective of sample `i` where it depends on the others of the batch.
    pub(super) fn of_batch(&self, i: usize, group: &[Vec<Draw>], theta: &Weights, base: &Weights) -> f64 {
        let off = |j: usize, theta: &Weights, other: &Weights| {
            self.log_prob(&group[j], theta, base) - self.log_prob(&group[j], other, other)
        };
        let (reference, moving) = (REFERENCE.map(f64::from), lagged().map(f64::from));
        let d = |j: usize, theta: &Weights| off(j, theta, &reference);
        let from_lagged = |j: usize, theta: &Weights| off(j, theta, &moving);
        match self.case.objective.clone() {
            ObjectiveKind::TrajectoryBalance(_) => {
                let first = i / GROUP * GROUP;
                let level = mean((first..first + GROUP).map(|j| d(j, base)));
                0.5 * (ADVANTAGES[i] - (d(i, theta) - level)).powi(2)
            }
            ObjectiveKind::Dpo(Dpo { beta }) => {
                let first = i / GROUP * GROUP;
                let margin: f64 = (first..first + GROUP).map(|j| ADVANTAGES[j] * d(j, theta)).sum();
                0.5 * (-beta / 2.0 * margin).exp().ln_1p()
            }
            ObjectiveKind::Dgpo(Dgpo { beta, other }) => {
                let first = i / GROUP * GROUP;
                let group = first..first + GROUP;
                let from = |j: usize, theta: &Weights| {
                    if other == Other::Lagged { from_lagged(j, theta) } else { d(j, theta) }
                };
                let side = |sign: f64| {
                    let weight = |j: usize| (sign * ADVANTAGES[j]).max(0.0);
                    let all: f64 = group.clone().map(weight).sum();
                    group.clone().map(|j| weight(j) / all * from(j, theta)).sum::<f64>()
                };
                (-beta * (side(1.0) - side(-1.0))).exp().ln_1p() / GROUP as f64
            }
            ObjectiveKind::Crd(Crd { beta, centring, temperature, other }) => {
                let first = i / GROUP * GROUP;
                let from = |j: usize, theta: &Weights| {
                    if other == Other::Lagged { from_lagged(j, theta) } else { d(j, theta) }
                };
                let weighted = |weight: &dyn Fn(f64) -> f64| {
                    let weights = (first..first + GROUP).map(|j| weight(ADVANTAGES[j]));
                    let sum: f64 = weights.clone().zip(first..).map(|(w, j)| w * from(j, base)).sum();
                    sum / weights.sum::<f64>()
                };
                let center = match centring {
                    Centring::Mean => weighted(&|_| 1.0),
                    Centring::Halves => {
                        let half = |sign: f64| weighted(&|a| f64::from(u8::from(sign * a > 0.0)));
                        f64::midpoint(half(1.0), half(-1.0))
                    }
                    Centring::Softmax => weighted(&|a| (a / temperature).exp()),
                };
                0.5 * (beta * (from(i, theta) - center) - ADVANTAGES[i]).powi(2)
            }
            _ => unreachable!("of one sample"),
        }
    }
}
