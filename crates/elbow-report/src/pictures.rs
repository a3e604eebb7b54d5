//! Pictures of a run, small enough for a page: pairs of before and after, and samples by their rewards.
//!
//! Pictures of samples are there if the run kept them (`keep.pictures`). Otherwise they are cut from the contact sheets in `images/`, which
//! hold one of every group.

use crate::{
    number::capital,
    run::{Run, number},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use elbow_runlog::{Tile, metrics::Record, sheet};
use image::{
    ExtendedColorType, ImageEncoder, RgbImage,
    codecs::png::{CompressionType, FilterType, PngEncoder},
    imageops,
};
use std::{
    fs,
    path::{Component, Path, PathBuf},
};

/// Enlargement of the sheets of a run.
const SCALE: u32 = 4;
/// Pictures up to this side stay as they are; their pixels are shown as squares.
const SMALL: u32 = 96;
/// Larger ones are scaled down to this side: at most 77 kB each before compression.
const SIDE: u32 = 160;
/// Pictures of a row of a gallery.
const ROW: usize = 4;
/// Quantiles of the reward that a gallery shows, and their names.
const LEVELS: [(f64, &str); 5] =
    [(1.0, "highest"), (0.75, "upper quartile"), (0.5, "median"), (0.25, "lower quartile"), (0.0, "lowest")];

/// A picture inside a page.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    /// A data URL of a PNG file.
    pub(crate) url: String,
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Whether its pixels are to be seen as squares.
    pub(crate) pixels: bool,
}

impl Picture {
    /// Scaled down if it is large.
    pub(crate) fn of(image: &RgbImage) -> Self {
        let longest = image.width().max(image.height());
        let pixels = longest <= SMALL;
        let scaled;
        let image = if longest <= SIDE {
            image
        } else {
            let side = |length: u32| (u64::from(length) * u64::from(SIDE) / u64::from(longest)).max(1) as u32;
            scaled = imageops::thumbnail(image, side(image.width()), side(image.height()));
            &scaled
        };
        let (width, height) = image.dimensions();
        let mut bytes = Vec::new();
        let encoder = PngEncoder::new_with_quality(&mut bytes, CompressionType::Best, FilterType::Adaptive);
        encoder
            .write_image(image.as_raw(), width, height, ExtendedColorType::Rgb8)
            .expect("invariant: the buffer is as large as the picture, and memory takes what is written");
        Self { url: format!("data:image/png;base64,{}", STANDARD.encode(bytes)), width, height, pixels }
    }
}

/// A held-out prompt before and after training, from equal noise.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) prompt: String,
    pub(crate) before: Picture,
    pub(crate) after: Picture,
    /// What the strict score says of both: "right" or "wrong".
    pub(crate) verdicts: Option<[String; 2]>,
}

/// Pairs of the run's `images/before-after.png`, or why there are none.
pub(crate) fn pairs(run: &Run) -> Result<Vec<Pair>, String> {
    let path = run.folder.images().join("before-after.png");
    if !path.exists() {
        return Err("A finished run has pictures of before and after; this one has none yet.".into());
    }
    let (before, after) = sheet::read_before_after(&path, run.recipe.side(), SCALE).map_err(sentence)?;
    let judged = run.measures.iter().any(|measure| measure.name == "geneval");
    let most = if run.recipe.side() <= SMALL { 24 } else { 12 };
    let count = before.len().min(after.len());
    let kept = count.min(most);
    let pair = |k: usize| {
        let (before, after) = (&before[k * count / kept], &after[k * count / kept]);
        let (prompt, first) = words(before, judged);
        let (_, second) = words(after, judged);
        let verdicts = first.zip(second).map(|(first, second)| [first, second]);
        Pair { prompt, before: Picture::of(&before.image), after: Picture::of(&after.image), verdicts }
    };
    Ok((0..kept).map(pair).collect())
}

/// The prompt under a picture, and the score in the last line if there is to be one.
fn words(tile: &Tile, scored: bool) -> (String, Option<String>) {
    match tile.caption.split_last() {
        Some((score, prompt)) if scored && !prompt.is_empty() => (prompt.join(" "), Some(score.clone())),
        _ => (tile.caption.join(" "), None),
    }
}

/// Samples of an epoch in rows by their rewards.
#[derive(Debug)]
pub(crate) struct Gallery {
    pub(crate) epoch: u64,
    pub(crate) rows: Vec<Row>,
    /// Samples that it was chosen of.
    pub(crate) of: usize,
}

/// Samples around a quantile of the reward.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) samples: Vec<Sample>,
}

/// A sample of training.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) prompt: String,
    /// `None` if it is missing.
    pub(crate) reward: Option<f64>,
    pub(crate) picture: Picture,
}

/// Galleries of the first and the last epoch that have pictures; and how to have more, or why there are none.
pub(crate) fn galleries(run: &Run) -> (Vec<Gallery>, String) {
    let logs = numbered(&run.folder.samples(), "jsonl");
    let kept = run.recipe.field("keep.pictures") == Some("true");
    if kept {
        let galleries: Vec<Gallery> = ends(&logs).filter_map(|(epoch, path)| of_kept(run, *epoch, path)).collect();
        if !galleries.is_empty() {
            return (galleries, "Chosen of all samples of the epoch, by reward.".into());
        }
    }
    let sheets = numbered(&run.folder.images(), "png");
    let mut reasons = Vec::new();
    let mut galleries = Vec::new();
    for (epoch, path) in ends(&sheets) {
        match of_sheet(run, *epoch, path) {
            Ok(gallery) => galleries.extend(gallery),
            Err(reason) => reasons.push(reason),
        }
    }
    let more = "One sample of every group, cut from the sheets in images/. With keep.pictures = true a run keeps every sample, and this \
                page chooses of all.";
    match (galleries.is_empty(), reasons.is_empty()) {
        (false, _) => (galleries, more.into()),
        (true, false) => (galleries, reasons.join(" ")),
        (true, true) => {
            let none = "No pictures were kept of this run’s epochs so far: keep.images_every = 5 keeps a sheet of them every five \
                        epochs, keep.pictures = true every picture.";
            (galleries, none.into())
        }
    }
}

/// The first and the last; one if they are the same.
fn ends<T>(all: &[T]) -> impl Iterator<Item = &T> {
    all.first().into_iter().chain(if all.len() > 1 { all.last() } else { None })
}

/// Files `epoch-<number>.<end>` of a folder, by number.
pub(crate) fn numbered(folder: &Path, end: &str) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let number = |path: &Path| path.file_stem()?.to_str()?.strip_prefix("epoch-")?.parse().ok();
    let named = entries.filter(|path| path.extension().is_some_and(|found| found == end));
    let mut files: Vec<(u64, PathBuf)> = named.filter_map(|path| Some((number(&path)?, path))).collect();
    files.sort();
    files
}

/// The lines of a sample log that can be read.
pub(crate) fn log(path: &Path) -> Vec<Record> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Samples whose pictures the run kept.
fn of_kept(run: &Run, epoch: u64, path: &Path) -> Option<Gallery> {
    let root = run.folder.samples();
    let lines = log(path);
    let kept: Vec<(&Record, PathBuf)> = lines.iter().filter_map(|line| Some((line, inside(&root, line)?))).collect();
    let rewards: Vec<Option<f64>> = kept.iter().map(|(line, _)| number(line, "reward")).collect();
    let rows = rows(&rewards, |index| {
        let (line, path) = &kept[index];
        let picture = Picture::of(&image::open(path).ok()?.to_rgb8());
        Some(Sample { prompt: prompt(line), reward: rewards[index], picture })
    });
    (!rows.is_empty()).then_some(Gallery { epoch, rows, of: kept.len() })
}

/// The picture of a line, which lies inside the run folder.
fn inside(root: &Path, line: &Record) -> Option<PathBuf> {
    let file = Path::new(line.get("file")?.as_str()?);
    file.components()
        .all(|part| matches!(part, Component::Normal(_)))
        .then(|| root.join(file))
        .filter(|path| path.is_file())
}

fn prompt(line: &Record) -> String {
    line.get("prompt").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
}

/// Samples of a sheet. Their rewards are in the log of the epoch, if there is one; else what stands under the pictures is read.
fn of_sheet(run: &Run, epoch: u64, path: &Path) -> Result<Option<Gallery>, String> {
    let tiles = sheet::read_grid(path, run.recipe.side(), SCALE).map_err(sentence)?;
    let lines = log(&run.folder.samples().join(format!("epoch-{epoch:05}.jsonl")));
    let group_size = run.recipe.group_size();
    let known = |index: usize| -> (String, Option<f64>) {
        if let Some(line) = lines.get(index * group_size) {
            return (prompt(line), number(line, "reward"));
        }
        let (prompt, reward) = words(&tiles[index], true);
        (prompt, reward.and_then(|reward| reward.parse().ok()))
    };
    let known: Vec<(String, Option<f64>)> = (0..tiles.len()).map(known).collect();
    let rewards: Vec<Option<f64>> = known.iter().map(|(_, reward)| *reward).collect();
    let rows = rows(&rewards, |index| {
        let picture = Picture::of(&tiles[index].image);
        Some(Sample { prompt: known[index].0.clone(), reward: rewards[index], picture })
    });
    Ok((!rows.is_empty()).then_some(Gallery { epoch, rows, of: tiles.len() }))
}

/// Rows of samples around the quantiles of their rewards, and one of those without.
fn rows(rewards: &[Option<f64>], sample: impl Fn(usize) -> Option<Sample>) -> Vec<Row> {
    let mut chosen = quantiles(rewards);
    let missing: Vec<usize> = (0..rewards.len()).filter(|&i| rewards[i].is_none()).take(ROW).collect();
    if !missing.is_empty() {
        chosen.push(("no reward", missing));
    }
    let row = |(name, indices): (&'static str, Vec<usize>)| Row {
        name,
        samples: indices.into_iter().filter_map(&sample).collect(),
    };
    chosen.into_iter().map(row).filter(|row| !row.samples.is_empty()).collect()
}

/// Indices of the samples at each level, the best first. Few samples are one level.
fn quantiles(rewards: &[Option<f64>]) -> Vec<(&'static str, Vec<usize>)> {
    let value = |i: &usize| rewards[*i].unwrap_or(f64::NAN);
    let mut order: Vec<usize> = (0..rewards.len()).filter(|&i| rewards[i].is_some()).collect();
    // Equal rewards are shuffled, always in the same way: neighbors are of one prompt.
    order.sort_by_key(|index| index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7);
    order.sort_by(|a, b| value(a).total_cmp(&value(b)));
    let each = (order.len() / LEVELS.len()).min(ROW);
    if each == 0 {
        order.reverse();
        return if order.is_empty() { Vec::new() } else { vec![("all", order)] };
    }
    let level = |&(share, name): &(f64, &'static str)| {
        let start = (share * (order.len() - each) as f64).round() as usize;
        (name, order[start..start + each].iter().rev().copied().collect())
    };
    LEVELS.iter().map(level).collect()
}

/// An error as a sentence on a page.
fn sentence(error: impl std::fmt::Display) -> String {
    capital(&error.to_string()) + "."
}

/// Quantiles of the rewards of an epoch: 0.1, 0.25, 0.5, 0.75 and 0.9 by linear interpolation; nothing if there is no reward.
pub(crate) fn spread(path: &Path) -> Option<[f64; 5]> {
    let mut rewards: Vec<f64> = log(path).iter().filter_map(|line| number(line, "reward")).collect();
    rewards.sort_by(f64::total_cmp);
    let last = rewards.len().checked_sub(1)?;
    Some([0.1, 0.25, 0.5, 0.75, 0.9].map(|share| {
        let at = share * last as f64;
        let below = at.floor() as usize;
        rewards[below] + (at - at.floor()) * (rewards[(below + 1).min(last)] - rewards[below])
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn small_pictures_stay_and_large_ones_shrink() {
        let decode = |picture: &Picture| {
            let bytes = STANDARD.decode(picture.url.strip_prefix("data:image/png;base64,").unwrap()).unwrap();
            image::load_from_memory(&bytes).unwrap().to_rgb8()
        };
        let small = RgbImage::from_fn(32, 32, |x, y| Rgb([x as u8, y as u8, 7]));
        let picture = Picture::of(&small);
        assert!(picture.pixels && decode(&picture) == small);
        let noise =
            RgbImage::from_fn(512, 256, |x, y| Rgb([(x * 7919 + y * 104_729) as u8, (x * y) as u8, (x ^ y) as u8]));
        let picture = Picture::of(&noise);
        assert_eq!((picture.width, picture.height, picture.pixels), (SIDE, SIDE / 2, false));
        assert_eq!(decode(&picture).dimensions(), (SIDE, SIDE / 2));
        assert!(picture.url.len() < 110_000, "{}", picture.url.len());
        let between = Picture::of(&RgbImage::new(128, 100));
        assert_eq!((between.width, between.height, between.pixels), (128, 100, false));
    }

    #[test]
    fn rows_are_around_quantiles_and_none_is_twice() {
        let rewards: Vec<Option<f64>> = (0..40).map(|i| Some(f64::from((i * 17) % 40))).collect();
        let levels = quantiles(&rewards);
        let of = |index: usize| levels[index].1.iter().map(|&i| rewards[i].unwrap()).collect::<Vec<_>>();
        assert_eq!(of(0), [39.0, 38.0, 37.0, 36.0]);
        assert_eq!(of(2), [21.0, 20.0, 19.0, 18.0]);
        assert_eq!(of(4), [3.0, 2.0, 1.0, 0.0]);
        let mut all: Vec<usize> = levels.into_iter().flat_map(|(_, row)| row).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!((count, all.len()), (20, 20));
        // Sixteen of a sheet: three a level.
        assert!(quantiles(&rewards[..16]).iter().all(|(_, row)| row.len() == 3));
        assert_eq!(quantiles(&[Some(1.0), None, Some(2.0)]), [("all", vec![2, 0])]);
        assert_eq!(quantiles(&[None]), []);
    }

    #[test]
    fn a_picture_outside_the_run_is_not_shown() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("secret.png"), "").unwrap();
        let samples = root.path().join("samples");
        fs::create_dir(&samples).unwrap();
        fs::write(samples.join("a.png"), "").unwrap();
        let line = |file: &str| serde_json::json!({ "file": file }).as_object().unwrap().clone();
        assert!(inside(&samples, &line("a.png")).is_some());
        let outside = root.path().join("secret.png").to_string_lossy().into_owned();
        for file in ["../secret.png", &*outside, "absent.png"] {
            assert!(inside(&samples, &line(file)).is_none(), "{file}");
        }
    }

    #[test]
    fn quantiles_of_rewards_are_interpolated_and_missing_ones_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("epoch-00001.jsonl");
        let lines = "{\"reward\":0}\n{\"reward\":4}\n{\"status\":\"failed\"}\n{\"reward\":1}\n{\"reward\":3}\n{\"reward\":2}\n{\"rew";
        fs::write(&path, lines).unwrap();
        let found = spread(&path).unwrap();
        assert!(found.iter().zip([0.4, 1.0, 2.0, 3.0, 3.6]).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
        assert_eq!(spread(&folder.path().join("absent")), None);
    }
}
