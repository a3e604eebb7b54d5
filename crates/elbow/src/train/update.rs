//! From advantages to new weights.

use super::{TrainError, Trainer};
use crate::{
    batch::{Batch, Sample},
    evaluation::{Evaluation, Fields, Groups, Weights},
    gaussian,
    gradient::{Gradient, Tree},
    lanes,
    likelihood::Query,
    observer::Observer,
    params::{Params, Tensors},
};
use burn::tensor::{Device, Tensor};
use std::{
    cell::{OnceCell, RefCell},
    collections::BTreeMap,
};

/// Updates in a row that may fail before the run stops.
const MAX_NOT_FINITE: u32 = 3;

/// What the updates of an epoch saw.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// ln ρ of every (sample, query) where it was known.
    pub log_ratios: Vec<f64>,
    /// 1 where the ratio was outside the clip range, for objectives that clip.
    pub clipped: Vec<f64>,
    /// L under the current weights of every (sample, query), where it was asked for.
    pub log_probs: Vec<f64>,
    /// Objective's loss of every (sample, query).
    pub policy_losses: Vec<f64>,
    /// Unweighted divergence of every (sample, query).
    pub kls: Vec<f64>,
    /// mean ‖v − v_ref‖² of the samples that are looked at, where [`Trainer::watch_reference`] asks and no penalty measures it.
    pub reference_distances: Vec<f64>,
    /// Gradient norm of every update, before clipping.
    pub grad_norms: Vec<f64>,
    /// The advantage of every sample of the batch.
    pub advantages: Vec<Option<f64>>,
    /// Whether it was trained on.
    pub used: Vec<bool>,
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
        self.log_probs.extend(later.log_probs);
        self.policy_losses.extend(later.policy_losses);
        self.kls.extend(later.kls);
        self.reference_distances.extend(later.reference_distances);
        self.grad_norms.extend(later.grad_norms);
        self.trained += later.trained;
        self.passes += later.passes;
    }
}

/// One optimizer step's share of an epoch.
struct Update<'a, 'b> {
    trainer: &'a Trainer<'b>,
    /// Its samples.
    batch: &'a Batch,
    /// One advantage a sample that is trained on.
    advantages: &'a [Option<f64>],
    /// Samples that the mean loss is over. Those of them that are left out, being of a group with zero variance, count as zero.
    valid: usize,
    fields: Fields<'a>,
    /// Whether a few of its samples are compared with the reference.
    watches: bool,
}

pub(super) fn run(trainer: &mut Trainer<'_>, batch: &Batch, observer: &dyn Observer) -> Result<Outcome, TrainError> {
    let (sizes, lag) = (trainer.method.batch, trainer.method.behavior);
    let compared = trainer.method.standardize_parts.of(&batch.samples);
    let known = trainer.method.advantage.advantages(&compared, &trainer.state.history);
    let zero_variance = trainer.method.advantage.zero_variance(&compared);
    let idle = trainer.method.rests_without_advantage();
    let without_gradient = |sample: &Sample, advantage: f64| {
        zero_variance[sample.group] && (sizes.drop_zero_variance || (idle && advantage == 0.0))
    };
    let samples = batch.samples.iter().zip(&known);
    let trained: Vec<Option<f64>> = samples.map(|(sample, a)| a.filter(|&a| !without_gradient(sample, a))).collect();
    // Made when the first update needs it: the weights do not move before the last.
    let lagged = OnceCell::new();
    let reference = trainer.field(trainer.reference.as_ref());
    let guided_reference = trainer.guided_reference();
    let teachers: Vec<_> = trainer.teachers.iter().map(|teacher| trainer.field(Some(teacher))).collect();
    let share = batch.len() / sizes.updates;
    let used = trained.iter().map(Option::is_some).collect();
    let mut outcome = Outcome { advantages: known.clone(), used, ..Outcome::default() };
    for number in 0..sizes.updates {
        let rows = number * share..(number + 1) * share;
        let moved = trainer.state.behavior.values() != trainer.state.current.values();
        let lagged = moved.then(|| &**lagged.get_or_init(|| trainer.field(Some(&trainer.state.behavior))));
        let (behavior, lagged) = if lag.on_policy { (None, lagged) } else { (lagged, None) };
        let update = Update {
            trainer,
            batch: &batch.select(&rows.clone().collect::<Vec<_>>()),
            advantages: &trained[rows.clone()],
            valid: known[rows.clone()].iter().flatten().count(),
            fields: Fields {
                behavior,
                lagged,
                reference: &*reference,
                guided_reference: guided_reference.as_deref(),
                teachers: &teachers,
            },
            watches: trainer.watch_reference && !trainer.method.kl.measures_reference() && number + 1 == sizes.updates,
        };
        let progress = |done| observer.progress("update", rows.start + done, share * sizes.updates);
        let (gradient, seen) = update.gradient(&progress);
        let any = seen.trained > 0;
        outcome.extend(seen);
        if any {
            step(trainer, gradient, &mut outcome)?;
        }
    }
    let decay = lag.decay(trainer.state.optimizer.step);
    trainer.state.behavior.decay_toward(&trainer.state.current, decay);
    Ok(outcome)
}

/// ∂loss/∂L of a groupwise objective: one row a query, one number a sample that is trained on.
type Factors = Vec<Vec<f64>>;

impl Update<'_, '_> {
    /// The gradient of the mean loss over the samples. Micro-batches run side by side; their gradients are added in one pairwise tree
    /// over their numbers.
    fn gradient(&self, progress: &dyn Fn(usize)) -> (Params, Outcome) {
        let current = &self.trainer.state.current;
        let weights = current.tensors(&self.trainer.device.clone().without_autodiff());
        let mut outcome = Outcome::default();
        let factors = self.trainer.method.objective.groupwise().then(|| self.factors(&weights, &mut outcome));
        let micro_batches = self.micro_batches();
        let mut tree = Tree::default();
        let mut done = 0;
        let watched = micro_batches.iter().position(|rows| self.watches && !rows.is_empty());
        let compute =
            |i: usize| self.micro_batch(&micro_batches[i], &weights.leaves(), factors.as_ref(), watched == Some(i));
        let consume = |(part, seen): (Gradient, Outcome)| {
            tree.push(part);
            outcome.extend(seen);
            done += self.trainer.method.batch.micro_batch;
            progress(done.min(self.batch.len()));
        };
        lanes::in_order(self.trainer.in_flight, micro_batches.len(), compute, consume);
        let mut gradient = current.zeros_like();
        tree.sum().into_iter().for_each(|sum| sum.add_to(&mut gradient));
        (gradient, outcome)
    }

    /// Slices of the batch as it was drawn, of each the samples that are trained on: those that are not leave a hole, so that no
    /// other sample moves to another micro-batch.
    fn micro_batches(&self) -> Vec<Vec<usize>> {
        let rows: Vec<usize> = (0..self.batch.len()).collect();
        let trained = |slice: &[usize]| slice.iter().copied().filter(|&row| self.advantages[row].is_some()).collect();
        rows.chunks(self.trainer.method.batch.micro_batch).map(trained).collect()
    }

    /// Their advantages.
    fn advantages(&self, rows: &[usize]) -> Vec<f64> {
        rows.iter().filter_map(|&row| self.advantages[row]).collect()
    }

    /// What the samples of one micro-batch add to the gradient, and what was seen of them. Where it is `watched`, three of its points are
    /// compared with the reference, which adds nothing to the loss.
    fn micro_batch(
        &self,
        rows: &[usize],
        leaves: &Tensors,
        factors: Option<&Factors>,
        watched: bool,
    ) -> (Gradient, Outcome) {
        let (trainer, method) = (self.trainer, &self.trainer.method);
        let mut gradient = Gradient::none(&trainer.state.current);
        let mut seen = Outcome { trained: rows.len(), ..Outcome::default() };
        if rows.is_empty() {
            return (gradient, seen);
        }
        let part = self.batch.select(rows);
        let groups = Groups::new(&self.advantages(rows), &part.samples, self.batch, &trainer.device);
        let importance = importance(&part, &trainer.device);
        let queries = method.likelihood.queries(&part, self.batch);
        let weight = 1.0 / (self.valid * queries.len()) as f64;
        let last = queries.len().saturating_sub(1);
        for (number, query) in queries.enumerate() {
            let current = trainer.guided(trainer.policy.bind(Some(leaves)));
            let e = Evaluation::new(&query, &*current, &self.fields);
            let mut loss = match factors {
                None => {
                    let policy = query.weighted(method.objective.loss(&e, &groups)) * importance.clone();
                    seen.policy_losses.extend(values(policy.clone()));
                    seen.clipped.extend(method.objective.clipped(&e, &groups).into_iter().flat_map(values));
                    policy
                }
                Some(factors) => {
                    let first = self.trained_before(rows[0]);
                    let factors = gaussian::rows(&factors[number][first..first + rows.len()], &trainer.device);
                    e.log_prob(Weights::Current) * factors
                }
            };
            if let Some(proximity) = method.proximal.value(&e) {
                loss = loss + proximity * method.proximal.weight;
            }
            if let Some(drift) = method.tightness.value(&e) {
                loss = loss + drift * method.tightness.weight;
            }
            if let Some(kl) = method.kl.value(&e) {
                seen.kls.extend(values(kl.clone()));
                loss = loss + kl * method.kl.weight;
            }
            if watched && [0, last / 2, last].contains(&number) {
                seen.reference_distances.extend(values(e.mean(e.distance(Weights::Reference))));
            }
            if factors.is_none() {
                seen.log_ratios.extend(e.known_log_ratio().into_iter().flat_map(values));
            }
            seen.log_probs.extend(e.known_log_prob().into_iter().flat_map(numbers));
            seen.passes += rows.len() * e.passes();
            let mut gradients = (loss.sum() * weight).backward();
            gradient = gradient.plus(Gradient::take(&trainer.state.current, leaves, &mut gradients));
        }
        (gradient, seen)
    }

    /// Samples before `row` that are trained on.
    fn trained_before(&self, row: usize) -> usize {
        self.advantages[..row].iter().flatten().count()
    }

    /// The first pass of a groupwise objective: log-probabilities of all samples without a graph, and by automatic differentiation
    /// over these numbers alone what each is to be multiplied with in the second.
    fn factors(&self, weights: &Tensors, outcome: &mut Outcome) -> Factors {
        let (objective, device) = (&self.trainer.method.objective, &self.trainer.device);
        let rows: Vec<usize> = (0..self.batch.len()).filter(|&row| self.advantages[row].is_some()).collect();
        let part = self.batch.select(&rows);
        let groups = Groups::new(&self.advantages(&rows), &part.samples, self.batch, device);
        let importance = importance(&part, device);
        let known: RefCell<BTreeMap<Weights, Vec<Scores>>> = RefCell::default();
        let ask = |number: usize, asked: Weights| {
            let mut known = known.borrow_mut();
            let all = known.entry(asked).or_insert_with(|| self.scores(asked, weights));
            all.get(number).cloned().unwrap_or_default()
        };
        let queries = if rows.is_empty() { 0 } else { self.scores_count(&part) };
        let mut factors = Factors::new();
        for number in 0..queries {
            let scores = ask(number, Weights::Current);
            let leaf = gaussian::rows(&scores.log_probs, device).autodiff().require_grad();
            let log_probs = |asked| match asked {
                Weights::Current => leaf.clone(),
                asked => gaussian::rows(&ask(number, asked).log_probs, device),
            };
            let e = Evaluation::of_numbers(&log_probs);
            let counts = gaussian::rows(&scores.weights, device);
            let loss = objective.loss(&e, &groups) * counts * importance.clone();
            outcome.policy_losses.extend(values(loss.clone()));
            outcome.clipped.extend(objective.clipped(&e, &groups).into_iter().flat_map(values));
            outcome.log_ratios.extend(e.known_log_ratio().into_iter().flat_map(values));
            let slope = leaf.grad(&loss.sum().backward()).map_or_else(|| vec![0.0; rows.len()], numbers);
            factors.push(slope);
        }
        outcome.passes += rows.len() * queries * known.borrow().len();
        factors
    }

    /// Queries that the likelihood makes of samples.
    fn scores_count(&self, part: &Batch) -> usize {
        self.trainer.method.likelihood.queries(&part.select(&[0]), self.batch).len()
    }

    /// Log-probabilities of all samples that are trained on, query after query, without a graph.
    fn scores(&self, asked: Weights, weights: &Tensors) -> Vec<Scores> {
        let trainer = self.trainer;
        let current = || trainer.guided(trainer.policy.bind(Some(weights)));
        let micro_batches = self.micro_batches();
        let compute = |i: usize| {
            let rows = &micro_batches[i];
            if rows.is_empty() {
                return Vec::new();
            }
            let part = self.batch.select(rows);
            let field = current();
            let score = |query: Query| {
                let e = Evaluation::new(&query, &*field, &self.fields);
                let weights = query.weighted(gaussian::rows(&vec![1.0; rows.len()], &trainer.device));
                Scores { log_probs: numbers(e.log_prob(asked)), weights: numbers(weights) }
            };
            trainer.method.likelihood.queries(&part, self.batch).map(score).collect()
        };
        let mut all: Vec<Scores> = Vec::new();
        for scores in lanes::map(trainer.in_flight, micro_batches.len(), compute) {
            all.resize_with(all.len().max(scores.len()), Scores::default);
            for (all, scores) in all.iter_mut().zip(scores) {
                all.log_probs.extend(scores.log_probs);
                all.weights.extend(scores.weights);
            }
        }
        all
    }
}

/// One query's log-probabilities, and how much the objective's loss counts for each sample there.
#[derive(Clone, Default)]
struct Scores {
    log_probs: Vec<f64>,
    weights: Vec<f64>,
}

/// How much the objective's loss counts for each sample `[B]`.
fn importance(batch: &Batch, device: &Device) -> Tensor<1> {
    let importance: Vec<f64> = batch.samples.iter().map(|sample| sample.importance).collect();
    gaussian::rows(&importance, device)
}

/// One optimizer step and the average that follows it.
fn step(trainer: &mut Trainer<'_>, mut gradient: Params, outcome: &mut Outcome) -> Result<(), TrainError> {
    let (method, state) = (&trainer.method, &mut trainer.state);
    let total = method.epochs * method.batch.updates as u64;
    let norm = state.optimizer.step(&method.optimizer, total, &mut state.current, &mut gradient);
    outcome.grad_norms.push(norm);
    if norm.is_finite() {
        state.not_finite = 0;
        state.ema.decay_toward(&state.current, method.ema.decay(state.optimizer.step));
        return Ok(());
    }
    state.not_finite += 1;
    if state.not_finite >= MAX_NOT_FINITE {
        return Err(TrainError::NotFinite { epoch: state.epoch, updates: state.not_finite });
    }
    Ok(())
}

/// The values of a tensor with a graph.
fn values(tensor: Tensor<1>) -> Vec<f64> {
    numbers(tensor.inner())
}

fn numbers(tensor: Tensor<1>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}
