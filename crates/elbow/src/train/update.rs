//! From advantages to new weights.

use super::{MAX_NOT_FINITE, Observer, TrainError, Trainer};
use crate::{
    advantage::Grouped,
    evaluation::Evaluation,
    gradient::Gradient,
    lanes,
    likelihood::Rollout,
    params::{Params, Tensors},
    policy::VelocityField,
};
use burn::tensor::{Tensor, TensorData};
use std::cell::OnceCell;

/// What the updates of an epoch saw.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// ln ρ of every (sample, query) where it was known.
    pub log_ratios: Vec<f64>,
    /// 1 where the ratio was outside the clip range, for objectives that clip.
    pub clipped: Vec<f64>,
    /// Objective's loss of every (sample, query).
    pub policy_losses: Vec<f64>,
    /// Unweighted divergence of every (sample, query).
    pub kls: Vec<f64>,
    /// Gradient norm of every update, before clipping.
    pub grad_norms: Vec<f64>,
    /// Samples that were trained on.
    pub trained: usize,
    /// Their forward passes, under all weights.
    pub passes: usize,
}

impl Outcome {
    /// Adds what was seen later.
    fn extend(&mut self, later: Self) {
        self.log_ratios.extend(later.log_ratios);
        self.clipped.extend(later.clipped);
        self.policy_losses.extend(later.policy_losses);
        self.kls.extend(later.kls);
        self.grad_norms.extend(later.grad_norms);
        self.trained += later.trained;
        self.passes += later.passes;
    }
}

/// The frozen fields of an epoch. `behavior: None` means equal to the current weights, `lagged: None` to the behavior weights.
struct Frozen<'a> {
    behavior: Option<&'a dyn VelocityField>,
    lagged: Option<&'a dyn VelocityField>,
    reference: &'a dyn VelocityField,
}

pub(super) fn run(
    trainer: &mut Trainer<'_>,
    rollout: &Rollout,
    rewards: &Grouped,
    observer: &dyn Observer,
) -> Result<Outcome, TrainError> {
    let batch = trainer.config.batch;
    let advantages = trainer.config.advantage.get().advantages(rewards);
    let silent = trainer.config.advantage.get().silent(rewards);
    // Made when the first update needs it: the weights do not move before the last.
    let lagged = OnceCell::new();
    let reference = trainer.field(None);
    let mut outcome = Outcome::default();
    let share = batch.groups * batch.group_size / batch.updates;
    let with = |i: usize| advantages[i].map(|a| (i, a));
    for update in 0..batch.updates {
        let samples = update * share..(update + 1) * share;
        let rows: Vec<(usize, f64)> = samples.filter(|&i| !silent[rewards.groups[i]]).filter_map(with).collect();
        let valid = advantages[update * share..(update + 1) * share].iter().flatten().count();
        let moved = trainer.state.behavior.values() != trainer.state.current.values();
        let lagged = moved.then(|| &**lagged.get_or_init(|| trainer.field(Some(&trainer.state.behavior))));
        let (behavior, lagged) = if trainer.config.behavior.on_policy { (None, lagged) } else { (lagged, None) };
        let frozen = Frozen { behavior, lagged, reference: &*reference };
        let observe = |done| {
            observer.progress("update", update * share + done * share / rows.len().max(1), share * batch.updates);
        };
        let mut gradient = accumulate(trainer, rollout, &rows, valid, &frozen, &mut outcome, &observe);
        if !rows.is_empty() {
            step(trainer, &mut gradient, &mut outcome)?;
        }
    }
    trainer
        .state
        .behavior
        .decay_toward(&trainer.state.current, trainer.config.behavior.decay(trainer.state.optimizer.step));
    Ok(outcome)
}

/// The gradient of the mean loss over the `valid` samples of an update; those of them that are not in `rows`, since their group
/// agrees, count as zero. The parts of a batch run side by side and are added in order.
fn accumulate(
    trainer: &Trainer<'_>,
    rollout: &Rollout,
    rows: &[(usize, f64)],
    valid: usize,
    frozen: &Frozen<'_>,
    outcome: &mut Outcome,
    observe: &dyn Fn(usize),
) -> Params {
    let parts: Vec<&[(usize, f64)]> = rows.chunks(trainer.config.batch.rows).collect();
    let mut gradient = trainer.state.current.zeros_like();
    let mut done = 0;
    let weights = trainer.state.current.tensors(&trainer.device.clone().without_autodiff());
    let compute = |i: usize| part(trainer, rollout, parts[i], valid, frozen, &weights.leaves());
    lanes::in_order(&trainer.device, parts.len(), compute, |(part, seen): (Gradient, Outcome)| {
        part.add_to(&mut gradient);
        done += seen.trained;
        outcome.extend(seen);
        observe(done);
    });
    gradient
}

/// What the samples of one micro-batch add to the gradient, and what was seen of them.
fn part(
    trainer: &Trainer<'_>,
    rollout: &Rollout,
    rows: &[(usize, f64)],
    valid: usize,
    frozen: &Frozen<'_>,
    leaves: &Tensors,
) -> (Gradient, Outcome) {
    let config = &trainer.config;
    let (indices, advantages): (Vec<usize>, Vec<f64>) = rows.iter().copied().unzip();
    let rollout = rollout.select(&indices);
    let queries = config.likelihood.get().queries(&rollout);
    let weight = 1.0 / (valid * queries.len()) as f64;
    let mut gradient = Gradient::none(&trainer.state.current);
    let mut seen = Outcome { trained: rows.len(), ..Outcome::default() };
    for query in queries {
        let current = trainer.guided(trainer.policy.bind(Some(leaves)));
        let e = Evaluation::new(&query, &*current, frozen.behavior, frozen.reference).with_lagged(frozen.lagged);
        let number = |values: &[f64]| {
            let data = TensorData::new(values.to_vec(), [rows.len()]);
            Tensor::<1>::from_data(data, (&trainer.device, e.log_prob().dtype()))
        };
        let (advantages, importance) = (number(&advantages), number(&rollout.importance));
        let objective = config.objective.get();
        let policy = query.weighted(objective.loss(&e, advantages.clone())) * importance;
        seen.policy_losses.extend(values(policy.clone()));
        let mut loss = policy;
        if let Some(proximity) = config.proximal.value(&e) {
            loss = loss + proximity * config.proximal.weight;
        }
        if let Some(kl) = config.kl.value(&e) {
            seen.kls.extend(values(kl.clone()));
            loss = loss + kl * config.kl.weight;
        }
        seen.clipped.extend(objective.clipped(&e, advantages).into_iter().flat_map(values));
        seen.log_ratios.extend(e.known_log_ratio().into_iter().flat_map(values));
        seen.passes += rows.len() * e.passes();
        let mut gradients = (loss.sum() * weight).backward();
        gradient = gradient.plus(Gradient::take(&trainer.state.current, leaves, &mut gradients));
    }
    (gradient, seen)
}

/// One optimizer step and the average that follows it.
fn step(trainer: &mut Trainer<'_>, gradient: &mut Params, outcome: &mut Outcome) -> Result<(), TrainError> {
    let state = &mut trainer.state;
    let norm = state.optimizer.step(&trainer.config.optimizer, &mut state.current, gradient);
    outcome.grad_norms.push(norm);
    if norm.is_finite() {
        state.not_finite = 0;
        state.ema.decay_toward(&state.current, trainer.config.ema.decay(state.optimizer.step));
    } else {
        state.not_finite += 1;
        if state.not_finite >= MAX_NOT_FINITE {
            return Err(TrainError::NotFinite { epoch: state.epoch, updates: state.not_finite });
        }
    }
    Ok(())
}

fn values(tensor: Tensor<1>) -> Vec<f64> {
    tensor.inner().into_data().iter::<f64>().collect()
}
