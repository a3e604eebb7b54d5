//! Drawing samples from a velocity field, and judging them on another thread while the next are drawn. Training, prefilters and
//! evaluation all draw here.

use crate::{
    batch::{Batch, Sample},
    lanes,
    noise::{self, Key},
    observer::Observer,
    policy::{Conditioning, Policy, VelocityField},
    prompts::Prompt,
    reward::Request,
    sampler::{self, Sampling},
};
use burn::tensor::{Device, Tensor};
use image::RgbImage;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

/// A sample to draw.
#[derive(Clone, Debug)]
pub struct Seat {
    /// What is known of it before: its prompt, its group, the key of its steps' noise.
    pub sample: Sample,
    /// The key of its start noise.
    pub start: Key,
}

/// What samples are drawn with.
#[derive(Clone, Copy)]
pub struct Drawing<'a> {
    /// Decodes latents, and knows their path.
    pub policy: &'a dyn Policy,
    /// The field that draws, with guidance.
    pub field: &'a dyn VelocityField,
    /// By which rule, in how many steps.
    pub sampling: &'a Sampling,
    /// Keep every point of the walk, not the clean samples alone.
    pub keep_path: bool,
    /// Samples in one forward pass.
    pub micro_batch: usize,
    /// Forward passes side by side.
    pub in_flight: usize,
    /// Judge all samples in one request after the last is drawn, in place of one request a forward pass.
    pub judge_together: bool,
    /// Where tensors live.
    pub device: &'a Device,
    /// What `observer` is told that this is.
    pub phase: &'static str,
    /// Is told how many samples are drawn.
    pub observer: &'a dyn Observer,
}

/// Samples and what a judge said of each.
pub struct Judged<T> {
    /// The samples, in the order of their seats.
    pub batch: Batch,
    /// One verdict a sample.
    pub verdicts: Vec<T>,
    /// How long judging took.
    pub time: Duration,
}

/// Pictures on their way to the judge.
struct Part {
    number: usize,
    images: Vec<RgbImage>,
    latents: Tensor<2>,
}

impl Drawing<'_> {
    /// Draws the samples of the given seats, `prompts` having one row a prompt, and lets `judge` see them. It gives one verdict a
    /// sample.
    pub fn draw<T: Send>(
        &self,
        seats: Vec<Seat>,
        prompts: Conditioning,
        judge: impl Fn(&Request<'_>) -> Vec<T> + Send,
    ) -> Judged<T> {
        let grid = Arc::new(self.sampling.grid(self.policy.schedule()));
        let (mut samples, starts): (Vec<Sample>, Vec<Key>) =
            seats.into_iter().map(|seat| (seat.sample, seat.start)).unzip();
        for sample in &mut samples {
            sample.walk = self.sampling.rule.walk(&grid, sample.key).into();
        }
        let (total, size) = (samples.len(), self.micro_batch.max(1));
        let (send, receive) = mpsc::channel::<Part>();
        let done = AtomicUsize::new(0);
        let draw = |number: usize, send: &mpsc::Sender<Part>| {
            let rows = number * size..total.min((number + 1) * size);
            let start = noise::normal(starts[rows.clone()].iter().copied(), self.policy.dims(), self.device);
            let walks: Vec<_> = samples[rows.clone()].iter().map(|sample| (sample.key, &*sample.walk)).collect();
            let conditions: Vec<usize> = samples[rows.clone()].iter().map(|sample| sample.row).collect();
            let cond = prompts.select(&conditions);
            let points = sampler::walk(self.field, &grid, start, &cond, &walks, self.keep_path);
            let latents = points.last().expect("invariant: a walk ends").clone();
            let images = self.policy.decode(latents.clone());
            send.send(Part { number, images, latents }).expect("invariant: the judge outlives the senders");
            let done = done.fetch_add(rows.len(), Ordering::Relaxed) + rows.len();
            self.observer.progress(self.phase, done, total);
            points
        };
        let (points, (images, verdicts, time)) = std::thread::scope(|scope| {
            let judging = scope.spawn(|| self.judge(&samples, receive, judge));
            let mut points = Vec::new();
            let draw = |number| draw(number, &send);
            lanes::in_order(self.in_flight, total.div_ceil(size), draw, |part| points.push(part));
            drop(send);
            (points, judging.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        for (sample, image) in samples.iter_mut().zip(images) {
            sample.image = Arc::new(image);
        }
        let stds = (0..grid.steps()).map(|k| self.sampling.rule.step(&grid, k).std).collect();
        let guidance = self.sampling.guidance;
        let batch = Batch { samples, prompts, points: joined(points), grid, stds, guidance };
        Judged { batch, verdicts, time }
    }

    /// Pictures and verdicts in order, and how long the judge took.
    fn judge<T>(
        &self,
        samples: &[Sample],
        receive: mpsc::Receiver<Part>,
        judge: impl Fn(&Request<'_>) -> Vec<T>,
    ) -> (Vec<RgbImage>, Vec<T>, Duration) {
        let prompts: Vec<Arc<Prompt>> = samples.iter().map(|sample| Arc::clone(&sample.prompt)).collect();
        let groups: Vec<usize> = samples.iter().map(|sample| sample.group).collect();
        let mut time = Duration::ZERO;
        let mut ask = |first: usize, images: &[RgbImage], latents: &Tensor<2>| {
            let rows = first..first + images.len();
            let started = Instant::now();
            let (prompts, groups) = (&prompts[rows.clone()], &groups[rows]);
            let verdicts = judge(&Request { images, prompts, latents: Some(latents), groups });
            time += started.elapsed();
            assert_eq!(verdicts.len(), images.len(), "invariant: one verdict a sample");
            verdicts
        };
        let mut parts: Vec<(Part, Vec<T>)> = Vec::new();
        for part in receive {
            let first = part.number * self.micro_batch.max(1);
            let verdicts = if self.judge_together { Vec::new() } else { ask(first, &part.images, &part.latents) };
            parts.push((part, verdicts));
        }
        parts.sort_by_key(|(part, _)| part.number);
        let latents: Vec<Tensor<2>> = parts.iter().map(|(part, _)| part.latents.clone()).collect();
        let (mut images, mut verdicts) = (Vec::new(), Vec::new());
        for (part, verdicts_of_part) in parts {
            images.extend(part.images);
            verdicts.extend(verdicts_of_part);
        }
        if self.judge_together && !images.is_empty() {
            verdicts = ask(0, &images, &Tensor::cat(latents, 0));
        }
        (images, verdicts, time)
    }
}

/// The points of all parts, time after time.
fn joined(parts: Vec<Vec<Tensor<2>>>) -> Vec<Tensor<2>> {
    let times = parts.first().map_or(0, Vec::len);
    (0..times).map(|k| Tensor::cat(parts.iter().map(|points| points[k].clone()).collect(), 0)).collect()
}
