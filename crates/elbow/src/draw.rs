//! Drawing samples from a velocity field, and judging them on another thread while the next are drawn. Training, prefilters and
//! evaluation all draw here.

use crate::{
    batch::{Batch, Sample},
    lanes,
    noise::{self, Key},
    observer::Observer,
    policy::{Conditioning, Decoded, Policy, VelocityField},
    prompts::Prompt,
    reward::{Needs, Request},
    sampler::{self, Keep, Sampling},
};
use burn::tensor::{Device, Tensor};
use image::RgbImage;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
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
    /// A noise δ of its own, and how much of it: it starts from √(1 − s²) ε + s δ.
    pub apart: Option<(Key, f64)>,
}

impl Seat {
    /// One that starts from the noise of the given key.
    pub fn new(sample: Sample, start: Key) -> Self {
        Self { sample, start, apart: None }
    }
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
    /// What is kept of the walk.
    pub keep: Keep,
    /// Samples in one forward pass.
    pub micro_batch: usize,
    /// Forward passes side by side.
    pub in_flight: usize,
    /// What the judge needs: whole groups are judged in one request after the last sample is drawn, in place of one request a forward
    /// pass.
    pub needs: Needs,
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
    /// Whether the values of each picture were finite.
    finite: Vec<bool>,
    latents: Tensor<2>,
}

impl Drawing<'_> {
    /// Draws the samples of the given seats, `prompts` having one row a prompt, and lets `judge` see them. It gives one verdict a
    /// sample.
    pub fn draw<T: Send>(
        &self,
        mut seats: Vec<Seat>,
        prompts: Conditioning,
        judge: impl Fn(&Request<'_>) -> Vec<T> + Sync,
    ) -> Judged<T> {
        let grid = Arc::new(self.sampling.grid(self.policy.schedule()));
        for seat in &mut seats {
            seat.sample.walk = self.sampling.rule.walk(&grid, seat.sample.key).into();
        }
        let (total, size) = (seats.len(), self.micro_batch.max(1));
        let (send, receive) = mpsc::channel::<Part>();
        let done = AtomicUsize::new(0);
        let draw = |number: usize, send: &mpsc::Sender<Part>| {
            let rows = number * size..total.min((number + 1) * size);
            let seats = &seats[rows.clone()];
            let start = start(seats, self.policy.dims(), self.device);
            let walks: Vec<_> = seats.iter().map(|seat| (seat.sample.key, &*seat.sample.walk)).collect();
            let conditions: Vec<usize> = seats.iter().map(|seat| seat.sample.row).collect();
            let cond = prompts.select(&conditions);
            let path = sampler::walk(self.field, &grid, start, &cond, &walks, alike(seats), self.keep);
            let latents = path.points.last().expect("invariant: a walk ends").clone();
            let decoded = self.policy.decode(latents.clone()).into_iter().map(|d| (d.picture, d.finite));
            let (images, finite) = decoded.unzip();
            send.send(Part { number, images, finite, latents }).expect("invariant: the judge outlives the senders");
            let done = done.fetch_add(rows.len(), Ordering::Relaxed) + rows.len();
            self.observer.progress(self.phase, done, total);
            path
        };
        let ((points, velocities), (images, verdicts, time)) = std::thread::scope(|scope| {
            let judging = scope.spawn(|| self.judge(&seats, receive, &judge));
            let (mut points, mut velocities) = (Vec::new(), Vec::new());
            let draw = |number| draw(number, &send);
            lanes::in_order(self.in_flight, total.div_ceil(size), draw, |path| {
                points.push(path.points);
                velocities.push(path.velocities);
            });
            drop(send);
            ((points, velocities), judging.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let drawn = |(seat, Decoded { picture, finite }): (Seat, Decoded)| Sample {
            image: Arc::new(picture),
            decoded: finite,
            ..seat.sample
        };
        let samples = seats.into_iter().zip(images).map(drawn).collect();
        let stds = (0..grid.steps()).map(|k| self.sampling.rule.step(&grid, k).std).collect();
        let guidance = self.sampling.guidance;
        let (points, velocities) = (joined(points), joined(velocities));
        let batch = Batch { samples, prompts, points, velocities, grid, stds, guidance };
        Judged { batch, verdicts, time }
    }

    /// Pictures and verdicts in order, and how long the judge took, over all requests.
    fn judge<T: Send>(
        &self,
        seats: &[Seat],
        receive: mpsc::Receiver<Part>,
        judge: &(impl Fn(&Request<'_>) -> Vec<T> + Sync),
    ) -> (Vec<Decoded>, Vec<T>, Duration) {
        let prompts: Vec<Arc<Prompt>> = seats.iter().map(|seat| Arc::clone(&seat.sample.prompt)).collect();
        let groups: Vec<usize> = seats.iter().map(|seat| seat.sample.group).collect();
        let time = Mutex::new(Duration::ZERO);
        let ask = |first: usize, images: &[RgbImage], latents: &Tensor<2>| {
            let rows = first..first + images.len();
            let started = Instant::now();
            let (prompts, groups) = (&prompts[rows.clone()], &groups[rows]);
            let verdicts = judge(&Request { images, prompts, latents: Some(latents), groups });
            *time.lock().unwrap_or_else(PoisonError::into_inner) += started.elapsed();
            assert_eq!(verdicts.len(), images.len(), "invariant: one verdict a sample");
            verdicts
        };
        let together = self.needs.whole_groups;
        let (receive, parts) = (Mutex::new(receive), Mutex::new(Vec::new()));
        let work = || {
            loop {
                let next = receive.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(part) = next else { return };
                let first = part.number * self.micro_batch.max(1);
                let verdicts = if together { Vec::new() } else { ask(first, &part.images, &part.latents) };
                parts.lock().unwrap_or_else(PoisonError::into_inner).push((part, verdicts));
            }
        };
        std::thread::scope(|scope| {
            let requests = if together { 1 } else { self.needs.in_flight.max(1) };
            (0..requests).for_each(|_| drop(scope.spawn(work)));
        });
        let mut parts: Vec<(Part, Vec<T>)> = parts.into_inner().unwrap_or_else(PoisonError::into_inner);
        parts.sort_by_key(|(part, _)| part.number);
        let latents: Vec<Tensor<2>> = parts.iter().map(|(part, _)| part.latents.clone()).collect();
        let (mut images, mut finite, mut verdicts) = (Vec::new(), Vec::new(), Vec::new());
        for (part, verdicts_of_part) in parts {
            images.extend(part.images);
            finite.extend(part.finite);
            verdicts.extend(verdicts_of_part);
        }
        if together && !images.is_empty() {
            verdicts = ask(0, &images, &Tensor::cat(latents, 0));
        }
        let time = *time.lock().unwrap_or_else(PoisonError::into_inner);
        let pictures = images.into_iter().zip(finite).map(|(picture, finite)| Decoded { picture, finite });
        (pictures.collect(), verdicts, time)
    }
}

/// The points that samples start from `[N, D]`.
fn start(seats: &[Seat], dims: usize, device: &Device) -> Tensor<2> {
    let start = noise::normal(seats.iter().map(|seat| seat.start), dims, device);
    if seats.iter().all(|seat| seat.apart.is_none()) {
        return start;
    }
    let share = |seat: &Seat| seat.apart.map_or(0.0, |(_, share)| share);
    let own = noise::normal(seats.iter().map(|seat| seat.apart.map_or(seat.start, |(key, _)| key)), dims, device);
    let own = sampler::scaled(own, seats.iter().map(share));
    let start = sampler::scaled(start, seats.iter().map(|seat| (1.0 - share(seat).powi(2)).sqrt()));
    start.into_iter().chain(own).reduce(|start, own| start + own).expect("invariant: one of the shares is not 0")
}

/// For each sample the first with the same start noise and the same prompt.
fn alike(seats: &[Seat]) -> Vec<usize> {
    let same = |a: &Seat, b: &Seat| a.start == b.start && a.apart == b.apart && a.sample.row == b.sample.row;
    let first = |i: usize| (0..i).find(|&before| same(&seats[before], &seats[i])).unwrap_or(i);
    (0..seats.len()).map(first).collect()
}

/// The points of all parts, time after time.
fn joined(parts: Vec<Vec<Tensor<2>>>) -> Vec<Tensor<2>> {
    let times = parts.first().map_or(0, Vec::len);
    (0..times).map(|k| Tensor::cat(parts.iter().map(|points| points[k].clone()).collect(), 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Purpose;

    /// Starts of a group are standard normal, and correlated by 1 − s².
    #[test]
    fn starts_spread_around_one_noise() {
        let (dims, device) = (40_000, Device::flex());
        let key = Key::new(0, Purpose::Start, 0);
        let correlation = |spread: f64| {
            let seat = |i: u64| {
                let sample = Sample::new(Arc::new("a".into()), key.sample(i));
                Seat { apart: Some((key.sample(i).draw(1), spread)), ..Seat::new(sample, key) }
            };
            let values: Vec<f64> = start(&[seat(0), seat(1)], dims, &device).into_data().iter::<f64>().collect();
            let (a, b) = values.split_at(dims);
            let mean = |product: &dyn Fn(usize) -> f64| (0..dims).map(product).sum::<f64>() / dims as f64;
            for square in [mean(&|i| a[i] * a[i]), mean(&|i| b[i] * b[i])] {
                assert!((square - 1.0).abs() < 0.03, "{spread}: {square}");
            }
            mean(&|i| a[i] * b[i])
        };
        for spread in [0.0, 0.3, 0.8, 1.0] {
            let got = correlation(spread);
            assert!((got - (1.0 - spread * spread)).abs() < 0.03, "{spread}: {got}");
        }
    }

    #[test]
    fn samples_are_alike_by_start_and_prompt() {
        let key = Key::new(0, Purpose::Start, 0);
        let seat = |start: u64, row: usize, apart: Option<u64>| {
            let sample = Sample { row, ..Sample::new(Arc::new("a".into()), key) };
            Seat { apart: apart.map(|i| (key.sample(i), 0.5)), ..Seat::new(sample, key.sample(start)) }
        };
        let seats = [
            seat(1, 0, None),
            seat(2, 0, None),
            seat(1, 0, None),
            seat(1, 1, None),
            seat(1, 0, Some(4)),
            seat(2, 0, None),
        ];
        assert_eq!(alike(&seats), [0, 1, 0, 3, 4, 1]);
    }
}
