//! From advantages to new weights.

use super::{Drawn, MAX_NOT_FINITE, Observer, TrainError, Trainer};
use crate::{
    advantage::Moments,
    evaluation::Evaluation,
    likelihood::Rollout,
    params::{Params, Tensors},
    policy::VelocityField,
};
use burn::tensor::{Tensor, TensorData};

/// What the updates of an epoch saw.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
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
}

/// The frozen fields of an epoch. `behavior: None` means equal to the current weights.
struct Frozen<'a> {
    behavior: Option<&'a dyn VelocityField>,
    reference: &'a dyn VelocityField,
}

pub(super) fn run(trainer: &mut Trainer<'_>, drawn: &Drawn, observer: &dyn Observer) -> Result<Outcome, TrainError> {
    let batch = trainer.config.batch;
    let advantages = trainer.config.advantage.get().advantages(&drawn.rewards);
    let moments = drawn.rewards.moments();
    let behavior = trainer.field(Some(&trainer.state.behavior));
    let reference = trainer.field(None);
    let mut outcome = Outcome::default();
    let share = batch.groups * batch.group_size / batch.updates;
    for update in 0..batch.updates {
        let samples = update * share..(update + 1) * share;
        let rows: Vec<(usize, f64)> = samples.filter_map(|i| trainable(i, drawn, &moments, &advantages)).collect();
        let valid = drawn.rewards.rewards[update * share..(update + 1) * share].iter().flatten().count();
        let on_policy = trainer.state.behavior.values() == trainer.state.current.values();
        let frozen = Frozen { behavior: (!on_policy).then_some(&*behavior), reference: &*reference };
        let observe = |done| {
            observer.progress("update", update * share + done * share / rows.len().max(1), share * batch.updates);
        };
        let mut gradient = accumulate(trainer, drawn, &rows, valid, &frozen, &mut outcome, &observe);
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

/// The sample and its advantage, unless its reward is missing or its group agrees.
fn trainable(i: usize, drawn: &Drawn, moments: &[Moments], advantages: &[Option<f64>]) -> Option<(usize, f64)> {
    let group = moments[drawn.rewards.groups[i]];
    advantages[i].filter(|_| !group.agree).map(|a| (i, a))
}

/// The gradient of the mean loss over the `valid` samples of an update; samples that are not in `rows` count as zero.
fn accumulate(
    trainer: &Trainer<'_>,
    drawn: &Drawn,
    rows: &[(usize, f64)],
    valid: usize,
    frozen: &Frozen<'_>,
    outcome: &mut Outcome,
    observe: &dyn Fn(usize),
) -> Params {
    let mut gradient = trainer.state.current.zeros_like();
    let leaves = trainer.state.current.tensors(&trainer.device.clone().autodiff());
    outcome.trained += rows.len();
    let mut done = 0;
    for chunk in rows.chunks(trainer.config.batch.rows) {
        let (indices, advantages): (Vec<usize>, Vec<f64>) = chunk.iter().copied().unzip();
        let part: Rollout = drawn.rollout.select(&indices);
        let queries = trainer.config.likelihood.get().queries(&part);
        let weight = 1.0 / (valid * queries.len()) as f64;
        for query in &queries {
            let current = trainer.guided(trainer.policy.bind(Some(&leaves)));
            let evaluation = Evaluation::new(query, &*current, frozen.behavior, frozen.reference);
            backward(trainer, &evaluation, &advantages, weight, &leaves, &mut gradient, outcome);
        }
        done += chunk.len();
        observe(done);
    }
    gradient
}

fn backward(
    trainer: &Trainer<'_>,
    evaluation: &Evaluation<'_>,
    advantages: &[f64],
    weight: f64,
    leaves: &Tensors,
    gradient: &mut Params,
    outcome: &mut Outcome,
) {
    let log_prob = evaluation.log_prob();
    let data = TensorData::new(advantages.to_vec(), [advantages.len()]);
    let advantages = Tensor::<1>::from_data(data, (&trainer.device, log_prob.dtype()));
    let objective = trainer.config.objective.get();
    let policy = objective.loss(evaluation, advantages.clone());
    outcome.policy_losses.extend(values(policy.clone()));
    let mut loss = policy;
    if let Some(kl) = trainer.config.kl.value(evaluation) {
        outcome.kls.extend(values(kl.clone()));
        loss = loss + kl * trainer.config.kl.weight;
    }
    outcome.clipped.extend(objective.clipped(evaluation, advantages).into_iter().flat_map(values));
    outcome.log_ratios.extend(evaluation.known_log_ratio().into_iter().flat_map(values));
    gradient.add_gradients(leaves, &mut (loss.sum() * weight).backward());
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
