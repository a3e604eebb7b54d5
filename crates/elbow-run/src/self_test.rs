//! Rewards on pictures of which something is known, before any work: one that cannot score stops a run before it starts.

use crate::{
    error::{At, Error, Result},
    reward::{Probe, RewardConfig, SelfTest},
};
use elbow::{Prompt, Request, Reward, RewardError, RgbImage, Score, reward};
use elbow_rewards::jpeg::{Aim, Unit};
use elbow_world::{Scene, Task, prompts, splitmix};
use std::sync::Arc;

/// Bytes of a plain picture, 32 × 32, as libjpeg writes it.
const PLAIN: f64 = 646.0;

/// Asks a reward about pictures: the embedded ones give known scores, the others a number for any picture.
pub fn try_out(config: &RewardConfig, reward: &dyn Reward, probe: &Probe) -> Result<String> {
    match config {
        RewardConfig::Geneval { .. } => geneval(reward),
        RewardConfig::Jpeg { aim, unit } => jpeg(reward, *aim, *unit),
        RewardConfig::SelfConsistency { .. } => {
            Ok(format!("{}: scores latents, so that no picture can try it", reward.name()))
        }
        _ if probe.given => Ok(format!("{}: asked about the pictures of [[self_test]]", reward.name())),
        _ => any(reward, probe),
    }
}

/// A scene drawn for its prompt scores 1, an empty picture less.
fn geneval(reward: &dyn Reward) -> Result<String> {
    let record =
        prompts::records_of(Task::TwoObject).first().ok_or_else(|| broken("the world has no prompts".into()))?;
    let scene = Scene::sample(record, &mut splitmix(0)).map_err(|error| broken(error.to_string()))?;
    let [right, wrong] = numbers(reward, [scene.render(), Scene::default().render()], &Prompt::from(record))?;
    let prompt = &record.prompt;
    if right.to_bits() == 1f64.to_bits() && wrong < 1.0 {
        return Ok(format!("{}: 1 for a picture of {prompt:?}, {wrong} for an empty one", reward.name()));
    }
    Err(broken(format!("{}: {right} for a picture of {prompt:?}, 1 expected; {wrong} for an empty one", reward.name())))
}

fn jpeg(reward: &dyn Reward, aim: Aim, unit: Unit) -> Result<String> {
    let plain = RgbImage::from_pixel(32, 32, image::Rgb([200, 120, 40]));
    let [score, same] = numbers(reward, [plain.clone(), plain], &"a plain picture".into())?;
    let said = format!("{}: {score} for a plain picture of {PLAIN} bytes", reward.name());
    let sign = if aim == Aim::Compress { -1.0 } else { 1.0 };
    let right = (sign * score * unit.bytes() - PLAIN).abs() < 0.5 && score.to_bits() == same.to_bits();
    if right { Ok(said) } else { Err(broken(said)) }
}

/// Two pictures of the model's size have scores.
fn any(reward: &dyn Reward, probe: &Probe) -> Result<String> {
    let [height, width] = probe.size.sides().map(|side| side as u32);
    let ramp = |x, y| image::Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 128]);
    let ramp = RgbImage::from_fn(width, height, ramp);
    let board =
        RgbImage::from_fn(width, height, |x, y| image::Rgb([if (x / 8 + y / 8) % 2 == 0 { 230 } else { 30 }; 3]));
    let [ramp, board] = numbers(reward, [ramp, board], &probe.prompt)?;
    let name = reward.name();
    Ok(format!("{name}: {ramp} for a color ramp and {board} for a checkerboard, prompt {:?}", probe.prompt.text))
}

/// Asks the whole reward of a recipe about the pictures of `[[self_test]]`.
pub fn known(tests: &[SelfTest], reward: &dyn Reward, prompt: &Prompt) -> Result<Vec<String>> {
    tests.iter().map(|test| pair(test, reward, prompt)).collect()
}

fn pair(test: &SelfTest, reward: &dyn Reward, prompt: &Prompt) -> Result<String> {
    let read = |path: &std::path::Path| -> Result<RgbImage> {
        let picture = image::open(path).map_err(|error| {
            Error::new(format!("cannot read picture {}: {error}", path.display()), "name a PNG file that is there")
        })?;
        Ok(picture.to_rgb8())
    };
    let place = || "in [[self_test]]".to_owned();
    let pictures = [read(&test.better).at(place)?, read(&test.worse).at(place)?];
    let prompt = test.prompt.as_deref().map_or_else(|| prompt.clone(), Prompt::from);
    let [better, worse] = numbers(reward, pictures, &prompt).at(place)?;
    let (first, second) = (test.better.display(), test.worse.display());
    if better > worse {
        return Ok(format!("{}: {better} for {first}, {worse} for {second}", reward.name()));
    }
    let message = format!(
        "reward `{}` gives {better} to {first} and {worse} to {second}, which should score less",
        reward.name()
    );
    Err(Error::new(message, "turn the reward around, or correct [[self_test]]: nothing is trained before they agree"))
}

/// The scores of two pictures; an error, with what to do, if one has none.
fn numbers(reward: &dyn Reward, images: [RgbImage; 2], prompt: &Prompt) -> Result<[f64; 2]> {
    let prompts = [prompt, prompt].map(|prompt| Arc::new(prompt.clone()));
    reward.wake();
    let request = Request { images: &images, prompts: &prompts, latents: None, groups: &[0, 0] };
    let scores = reward::ask(reward, &request);
    reward.sleep();
    let number = |score: Result<Score, RewardError>| {
        score.map(|score| score.value).map_err(|error| {
            let hint = match error {
                RewardError::Unavailable(_) => "see that it runs and can be reached; `elbow reward check` asks it again",
                _ => {
                    "mend the reward; if it has no score for such pictures, name two of which you know the better one: [[self_test]] with \
                     better = \"a.png\", worse = \"b.png\" and perhaps prompt = \"…\""
                }
            };
            Error::new(format!("reward `{}` gave no score for a test picture: {error}", reward.name()), hint)
        })
    };
    let numbers: Vec<f64> = scores.into_iter().map(number).collect::<Result<_>>()?;
    Ok(numbers.try_into().expect("invariant: one answer a picture"))
}

fn broken(message: String) -> Error {
    Error::new(message, "this build is broken: build it again, and report it if that does not help")
}
