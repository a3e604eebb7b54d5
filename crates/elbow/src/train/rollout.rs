//! Drawing an epoch's images, and scoring them on another thread while the next are drawn.

use super::{Extra, Observer, TrainError, Trainer};
use crate::{
    advantage::{Grouped, Part},
    lanes,
    likelihood::Rollout,
    noise::{self, Key, Purpose},
    prompts::Prompt,
    reward::{self, RewardError, Score},
    sampler,
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
    /// What was drawn beyond these.
    pub extra: Extra,
    pub(super) reward_time: Duration,
}

/// Draws and scores groups of the epoch, which are numbered: the same number, the same group.
pub(super) fn draw(trainer: &Trainer<'_>, observer: &dyn Observer, numbers: Range<usize>) -> Result<Drawn, TrainError> {
    let (config, epoch) = (&trainer.config, trainer.state.epoch);
    let batch = config.batch;
    let offset = numbers.start * batch.group_size;
    let prompt_key = Key::new(config.seed, Purpose::Prompt, epoch).sample(numbers.start as u64);
    let prompts = trainer.prompts.draw(prompt_key, numbers.len());
    let cond = trainer.policy.encode(&prompts)?;
    let field = trainer.field(Some(trainer.drawing()));
    let total = numbers.len() * batch.group_size;
    let sampling = config.sampler.at(config.seed, epoch);
    let keep = config.likelihood.get().needs_trajectory();
    let groups: Vec<usize> = (0..total).map(|i| i / batch.group_size).collect();

    let (send, receive) = mpsc::channel::<ToScore>();
    let done = AtomicUsize::new(0);
    let draw = |part: usize, send: &mpsc::Sender<ToScore>| {
        let first = part * batch.rows;
        let rows = &groups[first..total.min(first + batch.rows)];
        let sample = |i: usize| Key::new(config.seed, Purpose::Step, epoch).sample((offset + first + i) as u64);
        let keys: Vec<Key> = (0..rows.len()).map(sample).collect();
        let starts = keys.iter().map(|&k| Key { purpose: Purpose::Start, ..k });
        let start = noise::normal(starts, trainer.policy.latent_shape(), &trainer.device);
        let (cond, schedule) = (cond.select(rows), config.schedule);
        let points = sampler::sample(&*field, &sampling, schedule, start, &cond, &keys, keep);
        let group_keys =
            rows.iter().map(|&g| Key { sample: (offset + g * batch.group_size) as u64, ..keys[0] }).collect();
        let rollout = Rollout { points, cond, keys, group_keys, sampling, schedule };
        let images = trainer.policy.decode(rollout.images().clone());
        let asked = rows.iter().map(|&g| prompts[g].clone()).collect();
        send.send(ToScore { part, images, prompts: asked }).expect("invariant: the worker outlives the senders");
        observer.progress("rollout", done.fetch_add(rows.len(), Ordering::Relaxed) + rows.len(), total);
        rollout
    };
    let (parts, scored) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| score(trainer, receive));
        let parts = lanes::map(total.div_ceil(batch.rows), |part| draw(part, &send));
        drop(send);
        (parts, worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let Scored { images, scores, time } = scored;
    let (rewards, several) = check(trainer, &scores)?;
    let memory = config.advantage.get().memory();
    let earlier = |p: &Prompt| if memory == 0 { Vec::new() } else { trainer.state.history.of(&p.text) };
    let earlier = prompts.iter().map(earlier).collect();
    let rewards = Grouped { rewards, groups, earlier, parts: several };
    Ok(Drawn { rollout: Rollout::cat(&parts), prompts, images, rewards, extra: Extra::default(), reward_time: time })
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
