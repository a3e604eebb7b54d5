//! Rewards on pictures of which the answer is known, and one step of a recipe.

use super::Check;
use crate::{commands::plan::disagreeing, failure::Hint, recipe::Recipe, reward::RewardConfig, session::Session};
use anyhow::{Context, Result};
use burn::tensor::Tensor;
use elbow::{
    Prompt, RgbImage,
    config::{Batch, Config},
    evaluation::Evaluation,
    likelihood::Rollout,
    policy::Policy,
    train::Trainer,
};
use elbow_world::{Scene, Task, prompts, splitmix};

/// Each reward of a recipe on pictures whose score is known.
pub fn rewards(reward: &RewardConfig) -> Vec<Check> {
    match reward {
        RewardConfig::Sum { parts } => parts.iter().flat_map(|part| rewards(&part.reward)).collect(),
        RewardConfig::Geneval { .. } => vec![Check::new("reward", geneval(reward))],
        RewardConfig::Jpeg { .. } => vec![Check::new("reward", jpeg(reward))],
    }
}

/// A scene drawn for its prompt scores 1, an empty picture less.
fn geneval(reward: &RewardConfig) -> Result<String> {
    let record = prompts::records_of(Task::TwoObject).first().context("the world has no prompts")?;
    let scene = Scene::sample(record, &mut splitmix(0))?;
    let [right, wrong] = scores(reward, [scene.render(), Scene::default().render()], &Prompt::from(record))?;
    if right.to_bits() == 1f32.to_bits() && wrong < 1.0 {
        return Ok(format!("geneval: 1 for a picture of {:?}, {wrong} for an empty one", record.prompt));
    }
    Err(broken(format!("geneval: {right} for a picture of {:?}, 1 expected; {wrong} for an empty one", record.prompt)))
}

/// Bytes of a plain picture, 32 × 32, as libjpeg writes it.
const PLAIN: f32 = 646.0;

fn jpeg(reward: &RewardConfig) -> Result<String> {
    let plain = RgbImage::from_pixel(32, 32, image::Rgb([200, 120, 40]));
    let [kilobytes, _] = scores(reward, [plain.clone(), plain], &"a plain picture".into())?;
    let said = format!("jpeg: {kilobytes} for a plain picture of {PLAIN} bytes");
    // Encoders differ by a byte or two.
    if (kilobytes.abs() * 1000.0 - PLAIN).abs() < 2.5 { Ok(said) } else { Err(broken(said)) }
}

fn scores(reward: &RewardConfig, images: [RgbImage; 2], prompt: &Prompt) -> Result<[f32; 2]> {
    let scored = reward.build().score(&images, &[prompt.clone(), prompt.clone()]);
    let [first, second] = <[_; 2]>::try_from(scored).map_err(|_| broken("two pictures have not two scores".into()))?;
    Ok([first?, second?])
}

fn broken(message: String) -> anyhow::Error {
    Hint::error(message, "this build is broken: build it again, and report it if that does not help")
}

/// Two images, scored 0 and 1, and one optimizer step on them.
pub fn step(recipe: &Recipe, session: &Session) -> Result<String> {
    let config = small(&recipe.method);
    let device = session.device.clone();
    let mut trainer = Trainer::new(config, &session.policy, &*session.train, &*session.reward, device)?;
    let drawn = trainer.draw(&())?;
    let ratio = equal_weights(&trainer, session, &drawn.rollout)?;
    let outcome = trainer.update(&drawn.rollout, &disagreeing(drawn.rewards), &())?;
    let losses = &outcome.policy_losses;
    let loss = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
    let norm = outcome.grad_norms.first().copied().unwrap_or(f64::NAN);
    let said = format!("log-ratio {ratio} under equal weights, loss {loss:.3e}, gradient {norm:.3e}");
    if loss.is_finite() && norm.is_finite() {
        return Ok(said);
    }
    Err(Hint::error(said, "loss and gradient must be finite: check that the base weights are, and lower the guidance"))
}

/// The recipe with as few images and steps as it allows.
fn small(method: &Config) -> Config {
    let least = method.of_one_batch(Batch { groups: 1, updates: 1, ..method.batch });
    let mut pair = Config { batch: Batch { group_size: 2, rows: 2, ..least.batch }, ..least.clone() };
    if pair.validate().is_err() {
        pair = least;
    }
    let mut short = pair.clone();
    short.sampler.steps = 2;
    if short.validate().is_ok() { short } else { pair }
}

/// The largest |ln ρ| between the current weights with a graph and the same weights without, which must be 0, bit for bit.
fn equal_weights(trainer: &Trainer<'_>, session: &Session, rollout: &Rollout) -> Result<f64> {
    let rollout = rollout.select(&[0, 1]);
    let leaves = trainer.state.current.tensors(&session.device.clone().autodiff());
    let current = trainer.guided(session.policy.bind(Some(&leaves)));
    let (behavior, reference) = (trainer.field(Some(&trainer.state.current)), trainer.field(None));
    let query = trainer.config().likelihood.get().queries(&rollout).next().context("the likelihood asks nothing")?;
    let ratios: Tensor<1> = Evaluation::new(&query, &*current, Some(&*behavior), &*reference).log_ratio();
    let largest = ratios.inner().into_data().iter::<f64>().map(f64::abs).fold(0.0, f64::max);
    if largest == 0.0 {
        return Ok(largest);
    }
    let hint = "sampling and training do not compute the same thing: report it with the output of `elbow doctor`";
    Err(Hint::error(format!("log-ratio {largest:e} under equal weights, 0 expected"), hint))
}
