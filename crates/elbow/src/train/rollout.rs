//! Drawing an epoch's images, and scoring them on another thread while the next are drawn.

use super::{Observer, TrainError, Trainer};
use crate::{
    advantage::Grouped,
    config::StartNoise,
    drafts, lanes,
    likelihood::Rollout,
    noise::{self, Key, Purpose},
    policy::{Conditioning, VelocityField},
    prompts::Prompt,
    reward::RewardError,
    sampler::{self, Sampling},
};
use image::RgbImage;
use std::{
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

/// An epoch's images and their rewards.
pub struct Drawn {
    /// All images, group after group.
    pub rollout: Rollout,
    /// The prompt of each group.
    pub prompts: Vec<Prompt>,
    /// Decoded images, in order.
    pub images: Vec<RgbImage>,
    /// Rewards and groups.
    pub rewards: Grouped,
    /// Rewards of the drafts that the images were chosen by, prompt after prompt; none unless the recipe asks for drafts.
    pub drafts: Vec<Option<f64>>,
    pub(super) reward_time: Duration,
}

pub(super) fn draw(trainer: &Trainer<'_>, observer: &dyn Observer) -> Result<Drawn, TrainError> {
    let (config, epoch) = (&trainer.config, trainer.state.epoch);
    let (groups, size) = (config.batch.groups, config.batch.group_size);
    let prompts = trainer.prompts.draw(Key::new(config.seed, Purpose::Prompt, epoch), groups);
    let cond = trainer.policy.encode(&prompts)?;
    let field = trainer.field(Some(&trainer.state.behavior));
    let scene = Scene { trainer, prompts: &prompts, cond, field, observer };
    let total = groups * size;
    let (drafts, draft_time) = scene.drafts()?;
    let starts: Vec<usize> = match config.start_noise {
        _ if config.drafts.count > 0 => {
            let chosen = |(prompt, rewards): (usize, &[Option<f64>])| {
                let first = prompt * config.drafts.count;
                drafts::best_and_worst(rewards, size).into_iter().map(move |i| first + i)
            };
            drafts.chunks(config.drafts.count).enumerate().flat_map(chosen).collect()
        }
        StartNoise::PerSample => (0..total).collect(),
        StartNoise::PerGroup => (0..total).map(|i| i / size * size).collect(),
    };
    let keep = config.likelihood.get().needs_trajectory();
    let (parts, Scored { images, scores, time }) =
        scene.images("rollout", config.sampler.at(config.seed, epoch), &starts, keep);
    let rewards = check(trainer, &scores)?;
    let memory = config.advantage.get().memory();
    let earlier = |p: &Prompt| if memory == 0 { Vec::new() } else { trainer.state.history.of(&p.text) };
    let compared = config.compared();
    let earlier = (0..total / compared).map(|g| earlier(&prompts[g * compared / size])).collect();
    let rewards = Grouped { rewards, groups: (0..total).map(|i| i / compared).collect(), earlier };
    let (rollout, reward_time) = (Rollout::cat(&parts), draft_time + time);
    drop(scene);
    Ok(Drawn { rollout, prompts, images, rewards, drafts, reward_time })
}

/// What an epoch's images are drawn from.
struct Scene<'a> {
    trainer: &'a Trainer<'a>,
    prompts: &'a [Prompt],
    /// One row a prompt.
    cond: Conditioning,
    field: Box<dyn VelocityField + 'a>,
    observer: &'a dyn Observer,
}

impl Scene<'_> {
    /// Rewards of the epoch's drafts, if the recipe asks for any, and how long scoring took.
    fn drafts(&self) -> Result<(Vec<Option<f64>>, Duration), TrainError> {
        let config = &self.trainer.config;
        let starts: Vec<usize> = (0..self.prompts.len() * config.drafts.count).collect();
        if starts.is_empty() {
            return Ok((Vec::new(), Duration::ZERO));
        }
        let (_, scored) = self.images("drafts", config.drafts.sampling(config.sampler), &starts, false);
        Ok((check(self.trainer, &scored.scores)?, scored.time))
    }

    /// As many images of each prompt as there are starts for; `starts[i]` is the number of the start noise of image i. Returns
    /// them in parts of `batch.rows`.
    fn images(
        &self,
        phase: &'static str,
        sampling: Sampling,
        starts: &[usize],
        trajectory: bool,
    ) -> (Vec<Rollout>, Scored) {
        let (config, epoch, total) = (&self.trainer.config, self.trainer.state.epoch, starts.len());
        let (rows, size) = (config.batch.rows, total / self.prompts.len());
        let (send, receive) = mpsc::channel::<ToScore>();
        let done = AtomicUsize::new(0);
        let draw = |part: usize, send: &mpsc::Sender<ToScore>| {
            let samples = part * rows..total.min((part + 1) * rows);
            let owners: Vec<usize> = samples.clone().map(|i| i / size).collect();
            let key = |i: usize| Key::new(config.seed, Purpose::Step, epoch).sample(i as u64);
            let keys: Vec<Key> = samples.clone().map(key).collect();
            let start = starts[samples].iter().map(|&i| Key { purpose: Purpose::Start, ..key(i) });
            let start = noise::normal(start, self.trainer.policy.latent_shape(), &self.trainer.device);
            let (cond, schedule) = (self.cond.select(&owners), config.schedule);
            let points = sampler::sample(&*self.field, &sampling, schedule, start, &cond, &keys, trajectory);
            let group_keys = owners.iter().map(|&g| key(g * size)).collect();
            let rollout = Rollout { points, cond, keys, group_keys, sampling, schedule };
            let images = self.trainer.policy.decode(rollout.images().clone());
            let prompts = owners.iter().map(|&g| self.prompts[g].clone()).collect();
            send.send(ToScore { part, images, prompts }).expect("invariant: the worker outlives the senders");
            let done = done.fetch_add(owners.len(), Ordering::Relaxed) + owners.len();
            self.observer.progress(phase, done, total);
            rollout
        };
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| score(self.trainer, receive));
            let parts = lanes::map(total.div_ceil(rows), |part| draw(part, &send));
            drop(send);
            (parts, worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }
}

/// A batch on its way to the worker.
struct ToScore {
    part: usize,
    images: Vec<RgbImage>,
    prompts: Vec<Prompt>,
}

struct Scored {
    images: Vec<RgbImage>,
    scores: Vec<Result<f32, RewardError>>,
    time: Duration,
}

fn score(trainer: &Trainer<'_>, receive: mpsc::Receiver<ToScore>) -> Scored {
    let mut time = Duration::ZERO;
    let mut parts = Vec::new();
    for ToScore { part, images, prompts } in receive {
        let start = Instant::now();
        let scores = trainer.reward.score(&images, &prompts);
        time += start.elapsed();
        parts.push((part, images, scores));
    }
    parts.sort_by_key(|(part, ..)| *part);
    let (mut images, mut scores) = (Vec::new(), Vec::new());
    for (_, part_images, part_scores) in parts {
        images.extend(part_images);
        scores.extend(part_scores);
    }
    Scored { images, scores, time }
}

/// A reward that failed or is not finite is missing; too many missing end the epoch.
fn check(trainer: &Trainer<'_>, scores: &[Result<f32, RewardError>]) -> Result<Vec<Option<f64>>, TrainError> {
    let reason = |score: &Result<f32, RewardError>| match score {
        Ok(value) if value.is_finite() => None,
        Ok(value) => Some(format!("the score is {value}")),
        Err(error) => Some(error.to_string()),
    };
    let reasons: Vec<Option<String>> = scores.iter().map(reason).collect();
    let missing = reasons.iter().flatten().count();
    if let Some(first) = reasons.iter().flatten().next()
        && missing as f64 > trainer.config.max_missing * scores.len() as f64
    {
        return Err(TrainError::Missing {
            name: trainer.reward.name().to_owned(),
            missing,
            total: scores.len(),
            epoch: trainer.state.epoch,
            limit: trainer.config.max_missing,
            first: first.clone(),
        });
    }
    Ok(scores
        .iter()
        .zip(reasons)
        .map(|(s, r)| s.as_ref().ok().filter(|_| r.is_none()).map(|&v| f64::from(v)))
        .collect())
}
