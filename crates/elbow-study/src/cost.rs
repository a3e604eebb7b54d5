//! What a pass costs here: a few seconds of drawing and training of a recipe's model, on a machine that should be idle.

use crate::{file::Cost, plan::Cell};
use elbow::{
    Policy,
    advantage::Standard,
    config::{BatchConfig, Config, Reuse},
    kl::Kl,
    lanes,
    objective::Epg,
    sampler::SamplerConfig,
    train::{TrainError, Trainer},
};
use elbow_run::{
    Components, Recipe, Result, data,
    plan::{branches, disagreeing},
};
use std::time::Instant;

/// Steps of the two rollouts whose difference is evaluations alone.
const STEPS: [usize; 2] = [4, 12];

/// Measures a recipe's model for at least `least` seconds, after a first run of each part that is not counted; the fastest run counts. The
/// method of the recipe does not matter: what is timed is a plain rollout, and an update that asks the current weights alone.
pub fn measure(recipe: &Recipe, components: &Components, least: f64) -> Result<Cost> {
    let micro_batch = components.micro_batch(&recipe.method);
    let group_size = 8;
    let groups = (2 * micro_batch * lanes::count(&components.model.device)).div_ceil(group_size);
    let config = |steps: usize| Config {
        batch: BatchConfig {
            groups,
            group_size,
            updates: 1,
            micro_batch: recipe.method.batch.micro_batch,
            drop_zero_variance: false,
            reuse_velocities: Reuse::No,
        },
        sampler: SamplerConfig { steps, shift: recipe.method.sampler.shift, ..SamplerConfig::default() },
        objective: Epg { ratio: false }.into(),
        advantage: Standard::default().into(),
        kl: Kl { weight: 0.0, ..Kl::default() },
        ..Config::default()
    };
    let images = (groups * group_size) as f64;
    let [short, long] = STEPS;
    let (few, many): (Trainer<'_>, Trainer<'_>) =
        (components.trainer(&config(short))?, components.trainer(&config(long))?);
    let mut trained = components.trainer(&config(short))?;
    let points = trained.method().points(components.model.policy.schedule()) as f64;
    let batch = disagreeing(trained.collect(&())?.batch);
    let mut parts: [Part<'_>; 3] = [
        Box::new(|| few.collect(&()).map(drop)),
        Box::new(|| many.collect(&()).map(drop)),
        Box::new(|| trained.update(&batch, &()).map(drop)),
    ];
    let [few, many, updated] = fastest(least, &mut parts)?.map(|seconds| seconds / images);
    let forward = (many - few) / (long - short) as f64;
    Ok(Cost {
        forward,
        backward: updated / points,
        image: (few - forward * short as f64).max(0.0),
        from: format!("measured by elbow study --measure on {}", machine()),
    })
}

/// The machine, and how busy it was.
fn machine() -> String {
    let facts = elbow_run::machine::facts();
    let text = |name: &str| facts[name].as_str().unwrap_or("unknown").to_owned();
    let load = std::fs::read_to_string("/proc/loadavg").ok();
    let load = load.and_then(|text| text.split_whitespace().next().map(str::to_owned));
    format!(
        "{}, {} threads, {}, at a load of {} before",
        text("cpu"),
        facts["threads"],
        text("instructions"),
        load.unwrap_or_else(|| "unknown".into())
    )
}

/// Something that is timed.
type Part<'a> = Box<dyn FnMut() -> Result<(), TrainError> + 'a>;

/// Seconds of the fastest of several runs of each part; the first is not counted. They take turns, so that a busy moment meets all of them.
fn fastest<const N: usize>(least: f64, parts: &mut [Part<'_>; N]) -> Result<[f64; N]> {
    for part in &mut *parts {
        part()?;
    }
    let (start, mut best) = (Instant::now(), [f64::INFINITY; N]);
    while best[0].is_infinite() || start.elapsed().as_secs_f64() < least {
        for (part, best) in parts.iter_mut().zip(&mut best) {
            let began = Instant::now();
            part()?;
            *best = best.min(began.elapsed().as_secs_f64());
        }
    }
    Ok(best)
}

/// Seconds of a cell: its epochs, if every sample is trained on, and its measurements.
pub fn seconds(cell: &Cell, cost: &Cost) -> Result<f64> {
    let Cell { recipe, passes, .. } = cell;
    let measure = &recipe.setting.eval.measure;
    let epoch = cost.seconds(passes.images, passes.draw + passes.forward, passes.backward);
    let images = (data::held_out(recipe)?.0.len() * measure.images_per_prompt) as f64;
    let evaluations = images * (measure.sampler.steps * branches(&measure.sampler)) as f64;
    let epochs = recipe.method.epochs;
    // That of the base, those on the way, and one after the last epoch.
    let between = epochs.checked_div(measure.every).unwrap_or(0);
    let measured = 1 + between + u64::from(measure.every == 0 || !epochs.is_multiple_of(measure.every));
    Ok(epoch * epochs as f64 + cost.seconds(images, evaluations, 0.0) * measured as f64)
}
