//! Any reward, shaped so that pictures of one prompt stay different from each other.
//!
//! - [`Kind::Clusters`] divides a reward by the size of the sample's cluster among those of its group, after DiverseGRPO (arXiv
//!   2512.21514): pictures that look alike share one reward.
//! - [`Kind::Nearest`] adds the distance to the nearest other picture of the group, after DRIFT (arXiv 2601.12401).
//!
//! Both papers compare features of large networks, and the first clusters them spectrally. Ours is simpler and needs no weights: the
//! distance of two pictures is 1 − cos of the angle between their color layouts, which is between 0 and 2. A layout is the picture's
//! mean color in each cell of an 8 × 8 grid, RGB in [0, 1], less the mean of all 192 numbers. It sees where colors are and not
//! how bright the whole is. Clusters are joined by single linkage: a picture belongs with all to which a chain of short distances leads.

use elbow::{
    Prompt, Request, Reward, RewardError, RgbImage, Score,
    reward::{Needs, Part},
};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Cells of a layout in each direction.
const GRID: usize = 8;

/// Name of the distance among the parts of a score.
const PART: &str = "diversity";

/// How a reward is shaped.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Kind {
    /// Divided by the number of pictures in the sample's cluster (arXiv 2512.21514). For rewards that are not negative: a negative one
    /// would gain by company.
    Clusters {
        /// Pictures whose distance is below this are of one cluster: above 0, at most 2.
        #[serde(default = "threshold")]
        threshold: f64,
    },
    /// Plus the weighted distance to the nearest other picture of the group (arXiv 2601.12401).
    Nearest {
        /// How much a distance of 1 adds: 0 or more. A distance is at most 2.
        #[serde(default = "weight")]
        weight: f64,
    },
}

fn threshold() -> f64 {
    0.1
}

fn weight() -> f64 {
    0.5
}

impl Default for Kind {
    fn default() -> Self {
        Self::Nearest { weight: weight() }
    }
}

impl Kind {
    /// What is wrong with it, one sentence each.
    pub fn validate(&self) -> Vec<String> {
        match *self {
            Self::Clusters { threshold } if !(threshold > 0.0 && threshold <= 2.0) => {
                vec![format!("reward.threshold = {threshold}: must be above 0 and at most 2")]
            }
            Self::Nearest { weight } if !(weight >= 0.0 && weight.is_finite()) => {
                vec![format!("reward.weight = {weight}: must be a finite number of at least 0")]
            }
            Self::Clusters { .. } | Self::Nearest { .. } => Vec::new(),
        }
    }
}

/// A reward that is shaped over each group. It has the name of the reward within.
///
/// A sample without a score stays without, and takes no part: it is in no cluster and nobody's neighbor. A sample that is alone in its
/// group keeps its score.
pub struct Diversity {
    /// The reward that is shaped.
    pub inner: Box<dyn Reward>,
    /// How.
    pub kind: Kind,
}

impl Reward for Diversity {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn check(&self, prompts: &[Prompt]) -> Result<(), RewardError> {
        self.inner.check(prompts)
    }

    fn needs(&self) -> Needs {
        Needs { whole_groups: true, ..self.inner.needs() }
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        let scores = self.inner.score(request);
        let layouts: Vec<Layout> = request.images.par_iter().map(layout).collect();
        // The samples of i's group that have scores, i among them.
        let company = |i: usize| -> Vec<usize> {
            let together = |&j: &usize| request.groups[j] == request.groups[i] && scores[j].is_ok();
            (0..scores.len()).filter(together).collect()
        };
        let shaped = |(i, score): (usize, &Result<Score, RewardError>)| {
            let score = score.clone()?;
            Ok(match self.kind {
                Kind::Clusters { threshold } => divided(score, cluster(i, &company(i), &layouts, threshold)),
                Kind::Nearest { weight } => self.plus(score, weight, nearest(i, &company(i), &layouts)),
            })
        };
        scores.iter().enumerate().map(shaped).collect()
    }

    fn wake(&self) {
        self.inner.wake();
    }

    fn sleep(&self) {
        self.inner.sleep();
    }
}

impl Diversity {
    /// The score with the distance as one more part.
    fn plus(&self, score: Score, weight: f64, distance: f64) -> Score {
        let own = || vec![Part { name: self.inner.name().into(), weight: 1.0, value: score.value }];
        let mut parts = if score.parts.is_empty() { own() } else { score.parts };
        parts.push(Part { name: PART.into(), weight, value: distance });
        Score { value: score.value + weight * distance, parts }
    }
}

/// The score and each of its parts, shared by so many.
fn divided(mut score: Score, by: usize) -> Score {
    score.value /= by as f64;
    score.parts.iter_mut().for_each(|part| part.value /= by as f64);
    score
}

/// The mean distance of two pictures of a group, over all pairs within groups; `None` if no group has two.
pub fn within(groups: &[Vec<&RgbImage>]) -> Option<f64> {
    let sums = |group: &Vec<&RgbImage>| {
        let layouts: Vec<Layout> = group.iter().map(|image| layout(image)).collect();
        let pairs = (0..layouts.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
        pairs.fold((0.0, 0_u64), |(sum, n), (i, j)| (sum + distance(&layouts[i], &layouts[j]), n + 1))
    };
    // Collected first: the order of the sum does not depend on the threads.
    let parts: Vec<(f64, u64)> = groups.par_iter().map(sums).collect();
    let (sum, pairs) = parts.into_iter().fold((0.0, 0), |(sum, n), part| (sum + part.0, n + part.1));
    (pairs > 0).then(|| sum / pairs as f64)
}

/// How many of the company are in one cluster with i, which counts too.
fn cluster(i: usize, company: &[usize], layouts: &[Layout], threshold: f64) -> usize {
    let mut rest: Vec<usize> = company.iter().copied().filter(|&j| j != i).collect();
    let (mut reached, mut size) = (vec![i], 0);
    while let Some(from) = reached.pop() {
        size += 1;
        let near = |j: &mut usize| distance(&layouts[from], &layouts[*j]) < threshold;
        reached.extend(rest.extract_if(.., near));
    }
    size
}

/// The distance to the nearest other of the company; 0 if there is none.
fn nearest(i: usize, company: &[usize], layouts: &[Layout]) -> f64 {
    let others = company.iter().filter(|&&j| j != i);
    others.map(|&j| distance(&layouts[i], &layouts[j])).reduce(f64::min).unwrap_or(0.0)
}

/// A color layout of length 1; none of a picture that is grey and the same everywhere.
type Layout = Option<[f64; 3 * GRID * GRID]>;

fn layout(image: &RgbImage) -> Layout {
    let (width, height) = (image.width() as usize, image.height() as usize);
    // Pixels of a cell along a side: at least one, which cells of a picture of fewer than 8 share.
    let cell = |k: usize, side: usize| k * side / GRID..((k + 1) * side / GRID).max(k * side / GRID + 1).min(side);
    let mut layout = [0.0; 3 * GRID * GRID];
    for (k, color) in layout.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let (columns, rows) = (cell(k % GRID, width), cell(k / GRID, height));
        let pixels = (columns.len() * rows.len()) as f64;
        for (x, y) in rows.flat_map(|y| columns.clone().map(move |x| (x, y))) {
            let pixel = image.get_pixel(x as u32, y as u32).0;
            color.iter_mut().zip(pixel).for_each(|(mean, channel)| *mean += f64::from(channel) / 255.0 / pixels);
        }
    }
    let mean = layout.iter().sum::<f64>() / layout.len() as f64;
    let layout = layout.map(|x| x - mean);
    let norm = layout.iter().map(|x| x * x).sum::<f64>().sqrt();
    // What is left of a grey picture is rounding; the least that 8 bits can differ leaves 10⁻⁵ or more.
    (norm > 1e-9).then(|| layout.map(|x| x / norm))
}

/// 1 − cos of the angle; 0 between two that have no layout, 1 between one that has and one that has not.
fn distance(a: &Layout, b: &Layout) -> f64 {
    match (a, b) {
        (Some(a), Some(b)) => (1.0 - a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>()).clamp(0.0, 2.0),
        (None, None) => 0.0,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const RED: [u8; 3] = [255, 0, 0];
    const YELLOW: [u8; 3] = [255, 255, 0];
    const GREEN: [u8; 3] = [0, 255, 0];
    const BLUE: [u8; 3] = [0, 0, 255];

    fn plain(color: [u8; 3]) -> RgbImage {
        RgbImage::from_pixel(16, 16, image::Rgb(color))
    }

    fn between(a: &RgbImage, b: &RgbImage) -> f64 {
        distance(&layout(a), &layout(b))
    }

    fn assert_near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }

    #[test]
    fn the_distance_of_plain_colors_is_one_less_the_cosine_of_their_hues() {
        let hues = [(RED, 0.0f64), (YELLOW, 60.0), (GREEN, 120.0), ([0, 255, 255], 180.0), (BLUE, 240.0)];
        for (a, alpha) in hues {
            for (b, beta) in hues {
                assert_near(between(&plain(a), &plain(b)), 1.0 - (alpha - beta).to_radians().cos());
            }
        }
    }

    #[test]
    fn brightness_does_not_count_and_grey_is_like_grey_alone() {
        assert_near(between(&plain([200, 40, 40]), &plain([100, 20, 20])), 0.0);
        assert_near(between(&plain([0; 3]), &plain([170; 3])), 0.0);
        assert_near(between(&plain([90; 3]), &plain(RED)), 1.0);
        // The least difference of 8 bits is no rounding.
        assert_near(between(&plain([90, 90, 91]), &plain(BLUE)), 0.0);
    }

    #[test]
    fn places_count_and_sizes_do_not() {
        let halves = |left, right, side: u32| {
            RgbImage::from_fn(side, side / 2, |x, _| image::Rgb(if x < side / 2 { left } else { right }))
        };
        let red_blue = halves(RED, BLUE, 16);
        // Red and blue are 120° apart in each place.
        assert_near(between(&red_blue, &halves(BLUE, RED, 16)), 1.5);
        assert_near(between(&red_blue, &halves(RED, BLUE, 48)), 0.0);
        // Fewer pixels than cells.
        assert_near(between(&red_blue, &halves(RED, BLUE, 4)), 0.0);
        // A side that is no multiple of 8.
        assert_near(between(&RgbImage::from_pixel(11, 5, image::Rgb(RED)), &plain(RED)), 0.0);
    }

    /// Scores in order; an error for NaN.
    struct Given(Vec<f64>);

    impl Reward for Given {
        fn name(&self) -> &'static str {
            "given"
        }

        fn score(&self, _: &Request<'_>) -> Vec<Result<Score, RewardError>> {
            let score = |&value: &f64| if value.is_nan() { Err(lost()) } else { Ok(value.into()) };
            self.0.iter().map(score).collect()
        }
    }

    fn lost() -> RewardError {
        RewardError::Unavailable("lost".into())
    }

    fn shaped(kind: Kind, samples: &[([u8; 3], f64, usize)]) -> Vec<Result<Score, RewardError>> {
        let images: Vec<RgbImage> = samples.iter().map(|sample| plain(sample.0)).collect();
        let groups: Vec<usize> = samples.iter().map(|sample| sample.2).collect();
        let prompt = Arc::new(Prompt::from("a color"));
        let prompts = vec![prompt; samples.len()];
        let inner = Box::new(Given(samples.iter().map(|sample| sample.1).collect()));
        Diversity { inner, kind }.score(&Request { images: &images, prompts: &prompts, latents: None, groups: &groups })
    }

    fn values(kind: Kind, samples: &[([u8; 3], f64, usize)]) -> Vec<f64> {
        shaped(kind, samples).into_iter().map(|score| score.expect("scored").value).collect()
    }

    #[test]
    fn diversity_is_the_mean_over_pairs_within_groups() {
        let (red, yellow, blue) = (plain(RED), plain(YELLOW), plain(BLUE));
        // 60° and 120° and 180° in the first group, none in the second, 0° in the third.
        let groups = [vec![&red, &yellow, &blue], vec![&blue], vec![&red, &red]];
        assert_near(within(&groups).expect("pairs"), (0.5 + 1.5 + 2.0 + 0.0) / 4.0);
        assert_eq!(within(&groups[1..2]), None);
    }

    #[test]
    fn a_cluster_shares_its_rewards() {
        let kind = Kind::Clusters { threshold: 0.2 };
        // Two groups, mixed: in the first two reds and a blue, in the second a red and a green.
        let samples = [(RED, 3.0, 7), (RED, 2.0, 4), (RED, 5.0, 7), (BLUE, 4.0, 7), (GREEN, 8.0, 4)];
        assert_eq!(values(kind, &samples), [1.5, 2.0, 2.5, 4.0, 8.0]);
    }

    #[test]
    fn clusters_are_chains() {
        // Hues of about 0°, 30° and 60°: neighbors are 0.13 apart, the ends 0.5.
        let samples = [(RED, 3.0, 0), (YELLOW, 3.0, 0), ([255, 128, 0], 6.0, 0)];
        assert_eq!(values(Kind::Clusters { threshold: 0.2 }, &samples), [1.0, 1.0, 2.0]);
        assert_eq!(values(Kind::Clusters { threshold: 0.1 }, &samples), [3.0, 3.0, 6.0]);
        // Without the one between there are two clusters.
        assert_eq!(values(Kind::Clusters { threshold: 0.2 }, &samples[..2]), [3.0, 3.0]);
    }

    #[test]
    fn the_distance_to_the_nearest_is_added_as_a_part() {
        let samples = [(RED, 1.0, 0), (YELLOW, 2.0, 0), (BLUE, -3.0, 0), (GREEN, 4.0, 1)];
        let scores = shaped(Kind::Nearest { weight: 0.5 }, &samples);
        // Red and yellow are 60° apart, blue is 120° from red; the green is alone.
        for ((score, distance), (_, own, _)) in scores.into_iter().zip([0.5, 0.5, 1.5, 0.0]).zip(samples) {
            let score = score.expect("scored");
            assert_near(score.value, own + 0.5 * distance);
            let [first, second] = score.parts.as_slice() else { panic!("{score:?}") };
            assert_eq!((&*first.name, first.weight, first.value), ("given", 1.0, own));
            assert_eq!((&*second.name, second.weight), ("diversity", 0.5));
            assert_near(second.value, distance);
        }
    }

    #[test]
    fn a_sample_without_a_score_stays_so_and_takes_no_part() {
        let samples = [(RED, 2.0, 0), (RED, f64::NAN, 0), (BLUE, 1.0, 0)];
        let clusters = shaped(Kind::Clusters { threshold: 0.2 }, &samples);
        assert_eq!(clusters, [Ok(2.0.into()), Err(lost()), Ok(1.0.into())]);
        let nearest = shaped(Kind::Nearest { weight: 1.0 }, &samples);
        assert_near(nearest[0].as_ref().expect("scored").value, 3.5);
        assert_eq!(nearest[1], Err(lost()));
    }

    #[test]
    fn parts_of_a_sum_are_shared_too() {
        let part = |name: &str, weight, value| Part { name: name.into(), weight, value };
        let sum = Score::sum(vec![part("a", 2.0, 3.0), part("b", 1.0, 4.0)]);
        let half = divided(sum.clone(), 2);
        assert_eq!(half, Score::sum(vec![part("a", 2.0, 1.5), part("b", 1.0, 2.0)]));
        let diversity = Diversity { inner: Box::new(Given(Vec::new())), kind: Kind::default() };
        let more = diversity.plus(sum, 0.5, 1.0);
        let expected = vec![part("a", 2.0, 3.0), part("b", 1.0, 4.0), part("diversity", 0.5, 1.0)];
        assert_eq!(more, Score::sum(expected));
    }

    #[test]
    fn it_needs_whole_groups_and_what_the_reward_within_needs() {
        let diversity = Diversity { inner: Box::new(Given(Vec::new())), kind: Kind::default() };
        assert_eq!(diversity.needs(), Needs { whole_groups: true, ..Needs::default() });
        assert_eq!(diversity.name(), "given");
    }

    #[test]
    fn settings_are_checked_and_have_defaults() {
        let parse = |text: &str| serde_json::from_str::<Kind>(text).expect("valid");
        assert_eq!(parse(r#"{"kind": "clusters"}"#), Kind::Clusters { threshold: 0.1 });
        assert_eq!(parse(r#"{"kind": "nearest"}"#), Kind::default());
        assert!(serde_json::from_str::<Kind>(r#"{"kind": "nearest", "threshold": 1}"#).is_err());
        for kind in [Kind::Clusters { threshold: 2.0 }, Kind::Nearest { weight: 0.0 }, Kind::default()] {
            assert_eq!(kind.validate(), Vec::<String>::new());
        }
        let zero = Kind::Clusters { threshold: 0.0 }.validate();
        assert_eq!(zero, ["reward.threshold = 0: must be above 0 and at most 2"]);
        assert_eq!(Kind::Clusters { threshold: f64::NAN }.validate().len(), 1);
        assert_eq!(Kind::Nearest { weight: -1.0 }.validate().len(), 1);
        assert_eq!(Kind::Nearest { weight: f64::INFINITY }.validate().len(), 1);
    }
}
