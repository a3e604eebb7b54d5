//! A policy small enough to differentiate by hand, and one combination of the axes run on it.

pub(crate) mod formula;
mod objectives;

use burn::tensor::{Device, Tensor, TensorData};
use elbow::{
    Needs, Prompt, RgbImage,
    advantage::{AdvantageKind, BestWorst, Nft},
    batch::{Batch, Sample},
    config::Config,
    draw::{Drawing, Seat},
    evaluation::{Evaluation, Fields, Groups},
    guidance::GuidedField,
    kl::Kl,
    likelihood::{LikelihoodKind, Query},
    noise::{Key, Purpose},
    objective::ObjectiveKind,
    params::{Params, Tensors},
    policy::{Conditioning, Decoded, EncodeError, Policy, VelocityField},
    sampler::{Keep, SamplerConfig, SamplerKind},
    schedule::Schedule,
    setting::StartNoise,
};
use std::sync::Arc;

pub(crate) const B: usize = 4;
/// Samples of a prompt: half of them have the first prompt.
pub(crate) const GROUP: usize = 2;
/// Two channels of two numbers.
pub(crate) const DIMS: usize = 4;
pub(crate) const WEIGHTS: usize = 11;
pub(crate) const ADVANTAGES: [f64; B] = [0.9, -1.3, 0.4, -0.2];
pub(crate) const UNCONDITIONAL: [f32; 3] = [0.5, -0.5, 0.25];
pub(crate) const PROMPTS: [[f32; 3]; B / GROUP] = [[0.2, 0.9, -0.4], [-0.7, 0.1, 0.6]];
pub(crate) const REFERENCE: [f32; WEIGHTS] = [0.8, -0.5, 0.3, 0.6, -0.9, 0.7, -0.3, 0.2, 0.4, -0.6, 0.5];

/// v = w tanh(a x + b t + c·prompt) + e x, with a, b, w and e one number a channel.
pub(crate) struct Tiny {
    schedule: Schedule,
}

/// [`Tiny`] with its weights.
pub(crate) struct Field(Tensors);

impl Field {
    fn per_channel(&self, name: &str) -> Tensor<3> {
        self.0.tensor::<1>(name).reshape([1, 2, 1])
    }
}

impl VelocityField for Field {
    fn velocity(&self, x: Tensor<2>, t: Tensor<1>, cond: &Conditioning) -> Tensor<2> {
        let n = t.dims()[0];
        let x: Tensor<3> = x.reshape([n, 2, 2]);
        let pooled = cond.pooled.clone().expect("encoded below");
        let c: Tensor<2> = self.0.tensor::<1>("c").reshape([1, 3]);
        let prompt = (pooled * c).sum_dim(1).reshape([n, 1, 1]);
        let inside = x.clone() * self.per_channel("a") + t.reshape([n, 1, 1]) * self.per_channel("b") + prompt;
        let velocity = inside.tanh() * self.per_channel("w") + x * self.per_channel("e");
        velocity.reshape([n, DIMS])
    }
}

pub(crate) fn params(values: [f32; WEIGHTS]) -> Params {
    let entry = |name: &str, from: usize, len: usize| (name.to_owned(), vec![len], values[from..from + len].to_vec());
    Params::new([entry("a", 0, 2), entry("b", 2, 2), entry("w", 4, 2), entry("e", 6, 2), entry("c", 8, 3)])
}

impl Policy for Tiny {
    fn schedule(&self) -> Schedule {
        self.schedule
    }

    fn dims(&self) -> usize {
        DIMS
    }

    fn initial(&self) -> Params {
        params(REFERENCE)
    }

    fn bind(&self, trained: Option<&Tensors>) -> Box<dyn VelocityField> {
        Box::new(Field(trained.cloned().unwrap_or_else(|| self.initial().tensors(&Device::flex()))))
    }

    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        // The number of a row, or nothing.
        let row = |p: &Prompt| p.text.parse::<usize>().map_or(UNCONDITIONAL, |i| PROMPTS[i]);
        let (n, device) = (prompts.len(), Device::flex());
        let pooled: Vec<f32> = prompts.iter().flat_map(row).collect();
        let pooled = Tensor::from_data(TensorData::new(pooled, [n, 3]), &device);
        Ok(Conditioning { tokens: Tensor::zeros([n, 1, 1], &device), mask: None, pooled: Some(pooled) })
    }

    fn decode(&self, latents: Tensor<2>) -> Vec<Decoded> {
        vec![RgbImage::new(1, 1).into(); latents.dims()[0]]
    }
}

/// What the behavior and the current weights are away from the reference, and from each other.
pub(crate) fn behavior() -> [f32; WEIGHTS] {
    std::array::from_fn(|i| REFERENCE[i] + 0.05 * (1.0 + i as f32 * 2.3).sin())
}

pub(crate) fn current() -> [f32; WEIGHTS] {
    let behavior = behavior();
    std::array::from_fn(|i| behavior[i] + 0.005 * (0.5 + i as f32 * 1.7).cos())
}

/// A moving average that is neither of them.
pub(crate) fn lagged() -> [f32; WEIGHTS] {
    let behavior = behavior();
    std::array::from_fn(|i| behavior[i] + 0.03 * (0.2 + i as f32 * 0.9).sin())
}

/// One combination of the axes.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) objective: ObjectiveKind,
    pub(crate) likelihood: LikelihoodKind,
    pub(crate) sampler: SamplerConfig,
    pub(crate) schedule: Schedule,
    pub(crate) kl: Kl,
}

impl Case {
    /// Everything that is wrong with the combination, with the advantage its objective asks for.
    pub(crate) fn refusal(&self) -> Option<String> {
        let advantage = match self.objective {
            ObjectiveKind::Nft(_) => AdvantageKind::Nft(Nft::default()),
            ObjectiveKind::Dpo(_) => AdvantageKind::BestWorst(BestWorst {}),
            _ => AdvantageKind::default(),
        };
        let Self { objective, likelihood, sampler, schedule, kl } = self.clone();
        let mut config = Config { objective, likelihood, sampler, kl, advantage, ..Config::default() };
        if let LikelihoodKind::Neighbor(_) = config.likelihood {
            config.start_noise = StartNoise::PerGroup;
            config.start_spread = 0.5;
        }
        if let SamplerKind::Branch(branch) = config.sampler.rule {
            config.batch.group_size = branch.points * branch.explorations;
            config.start_noise = StartNoise::PerGroup;
        }
        config.build(schedule).err().map(|error| error.problems.join("\n"))
    }

    fn policy(&self) -> Tiny {
        Tiny { schedule: self.schedule }
    }

    fn guided(&self, field: Box<dyn VelocityField>) -> GuidedField<'static> {
        let unconditional = self.policy().encode(&[Prompt::from("")]).expect("any prompt is known");
        GuidedField { field, scale: self.sampler.guidance, detach: false, unconditional }
    }

    fn field(&self, weights: [f32; WEIGHTS]) -> GuidedField<'static> {
        self.guided(self.policy().bind(Some(&params(weights).tensors(&Device::flex()))))
    }

    /// Samples (and the path, where the likelihood wants it) from the behavior weights.
    pub(crate) fn batch(&self) -> Batch {
        let (policy, device) = (self.policy(), Device::flex());
        let prompts: Vec<Prompt> = (0..PROMPTS.len()).map(|i| Prompt::from(i.to_string().as_str())).collect();
        let cond = policy.encode(&prompts).expect("any prompt is known");
        let seat = |i: usize| {
            let key = Key::new(11, Purpose::Step, 4).sample(i as u64);
            let (group, first) = (i / GROUP, i / GROUP * GROUP);
            let sample = Sample {
                row: group,
                group,
                shared_key: key.sample(first as u64),
                reward: Ok(ADVANTAGES[i].into()),
                ..Sample::new(Arc::new(prompts[group].clone()), key)
            };
            let start = Key { purpose: Purpose::Start, ..key };
            match self.likelihood {
                LikelihoodKind::Neighbor(_) => {
                    let apart = Some((start.draw(1), 0.5));
                    Seat { apart, ..Seat::new(sample, start.sample(first as u64)) }
                }
                _ => Seat::new(sample, start),
            }
        };
        let drawing = Drawing {
            policy: &policy,
            field: &self.field(behavior()),
            sampling: &self.sampler.build(),
            keep: Keep { points: self.likelihood.get().needs_path(), velocities: false },
            micro_batch: B,
            in_flight: 1,
            needs: Needs::default(),
            device: &device,
            phase: "test",
            observer: &(),
        };
        drawing.draw((0..B).map(seat).collect(), cond, |request| vec![(); request.images.len()]).batch
    }

    /// The mean loss over samples and queries, and its gradient, as the trainer takes them.
    pub(crate) fn automatic(&self, batch: &Batch, queries: &[Query]) -> (f64, Vec<f64>) {
        let weights = params(current());
        let leaves = weights.tensors(&Device::flex().autodiff());
        let field = self.guided(self.policy().bind(Some(&leaves)));
        let teachers: Vec<Box<dyn VelocityField>> = vec![Box::new(self.field(lagged()))];
        let (behavior, lagged) = (self.field(behavior()), self.field(lagged()));
        let reference = self.guided(self.policy().bind(None));
        let fields = Fields {
            behavior: Some(&behavior),
            lagged: Some(&lagged),
            reference: &reference,
            guided_reference: None,
            teachers: &teachers,
        };
        let groups = Groups::new(&ADVANTAGES, &batch.samples, batch, &Device::flex());
        let mut gradient = weights.zeros_like();
        let mut total = 0.0;
        for query in queries {
            let e = Evaluation::new(query, &field, &fields);
            let mut loss = query.weighted(self.objective.get().loss(&e, &groups));
            if let Some(kl) = self.kl.value(&e) {
                loss = loss + kl * self.kl.weight;
            }
            let loss = loss.sum() / (B * queries.len()) as f64;
            total += loss.clone().inner().into_scalar::<f64>();
            gradient.add_gradients(&leaves, &mut loss.backward());
        }
        (total, gradient.values().iter().copied().map(f64::from).collect())
    }
}
