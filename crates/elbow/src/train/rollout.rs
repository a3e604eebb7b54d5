//! Drawing an epoch's images, and scoring them on another thread while the next are drawn.

use super::{
    Extra, Observer, TrainError, Trainer,
    replay::{self, Kept},
};
use crate::{
    advantage::{Grouped, Part},
    config::StartNoise,
    drafts, lanes,
    likelihood::Rollout,
    noise::{self, Key, Purpose},
    policy::{Conditioning, VelocityField},
    prompts::Prompt,
    reward::{self, RewardError, Score},
    sampler::{self, Sampling},
};
use image::RgbImage;
use std::{
    ops::Range,
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
    /// What was drawn beyond these.
    pub extra: Extra,
    /// The images that are not of this epoch, by their number.
    pub replayed: Vec<usize>,
    pub(super) reward_time: Duration,
}

/// Draws and scores groups of the epoch, which are numbered: the same number, the same group.
pub(super) fn draw(trainer: &Trainer<'_>, observer: &dyn Observer, numbers: Range<usize>) -> Result<Drawn, TrainError> {
    let config = &trainer.config;
    let (first, groups, size) = (numbers.start, numbers.len(), config.batch.group_size);
    let slots = config.replay.slots(&trainer.state.kept, groups);
    let prompts = prompts(trainer, first, &slots);
    let cond = trainer.policy.encode(&prompts)?;
    let field = trainer.field(Some(trainer.drawing()));
    let scene = Scene { trainer, first, prompts: &prompts, cond, field, observer };
    let total = groups * size;
    let (drafts, draft_time) = scene.drafts()?;
    let starts: Vec<usize> = match config.start_noise {
        _ if config.drafts.count > 0 => {
            let chosen = |(prompt, rewards): (usize, &[Option<f64>])| {
                let start = (first + prompt) * config.drafts.count;
                drafts::best_and_worst(rewards, size).into_iter().map(move |i| start + i)
            };
            drafts.chunks(config.drafts.count).enumerate().flat_map(chosen).collect()
        }
        StartNoise::PerSample => (0..total).map(|i| first * size + i).collect(),
        StartNoise::PerGroup => (0..total).map(|i| (first + i / size) * size).collect(),
    };
    let replayed = config.replay.rows(&slots, size);
    let seats = starts.into_iter().enumerate().filter(|(i, _)| !replayed.contains(i));
    let seats: Vec<Seat> = seats.map(|(number, start)| Seat { number, start }).collect();
    let keep = config.likelihood.get().needs_trajectory();
    let (parts, Scored { images, scores, time }) =
        scene.images("rollout", config.sampler, size, &seats, keep);
    let (rewards, parts_of_rewards) = check(trainer, &scores)?;
    let memory = config.advantage.get().memory();
    let earlier = |p: &Prompt| if memory == 0 { Vec::new() } else { trainer.state.history.of(&p.text) };
    let compared = config.compared();
    let rewards = Grouped {
        rewards,
        groups: (0..total).map(|i| i / compared).collect(),
        earlier: (0..total / compared).map(|g| earlier(&prompts[g * compared / size])).collect(),
        parts: parts_of_rewards,
    };
    let (rollout, reward_time) = (Rollout::cat(&parts), draft_time + time);
    let new = New { rollout, images, rewards };
    let New { rollout, images, rewards } =
        if replayed.is_empty() { new } else { replay::insert(&scene, new, &slots, &replayed) };
    drop(scene);
    Ok(Drawn { rollout, prompts, images, rewards, drafts, extra: Extra::default(), replayed, reward_time })
}

/// Images drawn in an epoch and their rewards.
pub(super) struct New {
    pub(super) rollout: Rollout,
    pub(super) images: Vec<RgbImage>,
    pub(super) rewards: Grouped,
}

/// The prompt of each group: that of its slot, or the next of the source.
fn prompts(trainer: &Trainer<'_>, first: usize, slots: &[Option<&Kept>]) -> Vec<Prompt> {
    let key = Key::new(trainer.config.seed, Purpose::Prompt, trainer.state.epoch).sample(first as u64);
    let new = slots.iter().filter(|slot| slot.is_none()).count();
    let mut new = trainer.prompts.draw(key, new).into_iter();
    let prompt = |slot: Option<&Kept>| slot.map_or_else(|| new.next(), |kept| Some(kept.prompt().clone()));
    slots.iter().copied().filter_map(prompt).collect()
}

/// An image to draw: its number among those of its scene, and the number in the epoch of its start noise.
#[derive(Clone, Copy)]
struct Seat {
    number: usize,
    start: usize,
}

/// What an epoch's images are drawn from.
pub(super) struct Scene<'a> {
    pub(super) trainer: &'a Trainer<'a>,
    /// Number of the first prompt's group in the epoch.
    first: usize,
    prompts: &'a [Prompt],
    /// One row a prompt.
    pub(super) cond: Conditioning,
    pub(super) field: Box<dyn VelocityField + 'a>,
    observer: &'a dyn Observer,
}

impl Scene<'_> {
    /// Rewards of the epoch's drafts, if the recipe asks for any, and how long scoring took.
    fn drafts(&self) -> Result<(Vec<Option<f64>>, Duration), TrainError> {
        let config = &self.trainer.config;
        let count = config.drafts.count;
        let seat = |number| Seat { number, start: self.first * count + number };
        let seats: Vec<Seat> = (0..self.prompts.len() * count).map(seat).collect();
        if seats.is_empty() {
            return Ok((Vec::new(), Duration::ZERO));
        }
        let (_, scored) = self.images("drafts", config.drafts.sampling(config.sampler), count, &seats, false);
        Ok((check(self.trainer, &scored.scores)?.0, scored.time))
    }

    /// The key of an image of the epoch by its number.
    pub(super) fn key(&self, number: usize) -> Key {
        Key::new(self.trainer.config.seed, Purpose::Step, self.trainer.state.epoch).sample(number as u64)
    }

    /// Draws the images of the given seats, of which each prompt has `size`. Returns them in parts of `batch.rows`.
    fn images(
        &self,
        phase: &'static str,
        sampling: Sampling,
        size: usize,
        seats: &[Seat],
        trajectory: bool,
    ) -> (Vec<Rollout>, Scored) {
        let (schedule, rows, total) = (self.trainer.config.schedule, self.trainer.config.batch.rows, seats.len());
        let (send, receive) = mpsc::channel::<ToScore>();
        let done = AtomicUsize::new(0);
        let draw = |part: usize, send: &mpsc::Sender<ToScore>| {
            let seats = &seats[part * rows..total.min((part + 1) * rows)];
            let owners: Vec<usize> = seats.iter().map(|seat| seat.number / size).collect();
            let keys: Vec<Key> = seats.iter().map(|seat| self.key(self.first * size + seat.number)).collect();
            let start = seats.iter().map(|seat| Key { purpose: Purpose::Start, ..self.key(seat.start) });
            let start = noise::normal(start, self.trainer.policy.latent_shape(), &self.trainer.device);
            let cond = self.cond.select(&owners);
            let points = sampler::sample(&*self.field, &sampling, schedule, start, &cond, &keys, trajectory);
            let group_keys = owners.iter().map(|&g| self.key((self.first + g) * size)).collect();
            let importance = vec![1.0; keys.len()];
            let rollout = Rollout { points, cond, keys, group_keys, importance, sampling, schedule };
            let images = self.trainer.policy.decode(rollout.images().clone());
            let prompts = owners.iter().map(|&g| self.prompts[g].clone()).collect();
            send.send(ToScore { part, images, prompts }).expect("invariant: the worker outlives the senders");
            let done = done.fetch_add(owners.len(), Ordering::Relaxed) + owners.len();
            self.observer.progress(phase, done, total);
            rollout
        };
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| score(self.trainer, receive));
            let parts = lanes::map(&self.trainer.device, total.div_ceil(rows), |part| draw(part, &send));
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
    scores: Vec<Result<Score, RewardError>>,
    time: Duration,
}

fn score(trainer: &Trainer<'_>, receive: mpsc::Receiver<ToScore>) -> Scored {
    let mut time = Duration::ZERO;
    let mut parts = Vec::new();
    for ToScore { part, images, prompts } in receive {
        let start = Instant::now();
        let scores = reward::score(trainer.reward, &images, &prompts);
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

/// Rewards, and those they are the sums of. One that failed or is not finite is missing; too many missing end the epoch.
fn check(
    trainer: &Trainer<'_>,
    scores: &[Result<Score, RewardError>],
) -> Result<(Vec<Option<f64>>, Vec<Part>), TrainError> {
    let valid = |score: &Result<Score, RewardError>| match score {
        Ok(score) if score.total.is_finite() => Ok(score.clone()),
        Ok(score) => Err(format!("the score is {}", score.total)),
        Err(error) => Err(error.to_string()),
    };
    let scores: Vec<Result<Score, String>> = scores.iter().map(valid).collect();
    let missing = scores.iter().filter(|s| s.is_err()).count();
    if let Some(first) = scores.iter().find_map(|s| s.as_ref().err())
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
    let each = |f: &dyn Fn(&Score) -> f32| scores.iter().map(|s| s.as_ref().ok().map(|s| f64::from(f(s)))).collect();
    let part = |(k, part): (usize, &reward::Weighted)| Part { weight: part.weight, rewards: each(&|s| s.parts[k]) };
    Ok((each(&|s| s.total), trainer.reward.parts().iter().enumerate().map(part).collect()))
}
