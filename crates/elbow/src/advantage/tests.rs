use super::*;
use crate::{
    noise::{Key, Purpose},
    prompts::Prompt,
    reward::{Part, RewardError, Score},
};
use proptest::prelude::*;
use std::sync::Arc;

/// A sample of a group, whose prompt is the group's own.
fn sample(group: usize, reward: Result<Score, RewardError>) -> Sample {
    let prompt = Prompt::from(format!("prompt {group}").as_str());
    Sample { group, reward, ..Sample::new(Arc::new(prompt), Key::new(0, Purpose::Step, 0)) }
}

fn missing() -> Result<Score, RewardError> {
    Err(RewardError::Failed("lost".into()))
}

fn batch(rewards: &[f64], groups: &[usize]) -> Vec<Sample> {
    groups.iter().zip(rewards).map(|(&group, &reward)| sample(group, Ok(reward.into()))).collect()
}

/// Sums of rewards with these weights, and the rewards: one row a reward.
fn batch_of_sums<const N: usize>(weights: [f64; 2], rewards: [[f64; N]; 2], groups: [usize; N]) -> Vec<Sample> {
    let score = |i: usize| {
        let part = |k: usize| Part { name: ["a", "b"][k].into(), weight: weights[k], value: rewards[k][i] };
        Score::sum((0..2).map(part).collect())
    };
    (0..N).map(|i| sample(groups[i], Ok(score(i)))).collect()
}

/// Advantages without a past.
fn advantages(advantage: &dyn Advantage, samples: &[Sample]) -> Vec<Option<f64>> {
    advantage.advantages(samples, &History::default())
}

const KINDS: [AdvantageKind; 4] = [
    AdvantageKind::Exact(Exact { eta: 1e-4, beta: 1e-3 }),
    AdvantageKind::Standard(Standard {
        scale: 1.0,
        deviation: Deviation::Batch,
        unbiased: false,
        floor: 1e-4,
        several: Several::Sum,
        soft_clip: None,
    }),
    AdvantageKind::Standard(Standard {
        scale: 1.0,
        deviation: Deviation::Group,
        unbiased: false,
        floor: 1e-4,
        several: Several::Sum,
        soft_clip: None,
    }),
    AdvantageKind::Nft(Nft { max_advantage: 5.0 }),
];

#[test]
fn closed_forms_of_two_groups() {
    let two = batch(&[1.0, 3.0, 0.0, 2.0], &[0, 0, 1, 1]);
    // Group means 2 and 1, group deviations 1, batch deviation √1.25.
    let batch_std = 1.25f64.sqrt() + 1e-4;
    let expected = [0.1, 1.0 / batch_std, 1.0 / 1.0001, 0.1 / batch_std];
    for (kind, size) in KINDS.iter().zip(expected) {
        let neutral = if matches!(kind, AdvantageKind::Nft(_)) { 0.5 } else { 0.0 };
        for (a, sign) in advantages(kind.get(), &two).into_iter().zip([-1.0, 1.0, -1.0, 1.0]) {
            assert!((a.expect("present") - neutral - sign * size).abs() < 1e-12, "{kind:?}: {a:?}");
        }
    }
}

#[test]
fn a_group_that_agrees_is_exactly_neutral() {
    let rewards = [0.1f32, 0.1, 0.1, 0.7, 0.2, 0.3].map(f64::from);
    for kind in KINDS {
        let neutral = if matches!(kind, AdvantageKind::Nft(_)) { 0.5 } else { 0.0 };
        let a = advantages(kind.get(), &batch(&rewards, &[0, 0, 0, 1, 1, 1]));
        assert_eq!(a[..3], [Some(neutral); 3], "{kind:?}");
    }
}

#[test]
fn a_missing_reward_stays_missing_and_out_of_the_mean() {
    let some = [sample(0, Ok(1.0f64.into())), sample(0, missing()), sample(0, Ok(3.0f64.into()))];
    assert_eq!(advantages(KINDS[0].get(), &some), [Some(-0.1), None, Some(0.1)]);
}

/// Advantages that must be there.
fn all(advantage: &dyn Advantage, samples: &[Sample]) -> Vec<f64> {
    advantages(advantage, samples).into_iter().map(|a| a.expect("present")).collect()
}

#[test]
fn leave_one_out_is_the_mean_of_the_others() {
    let rewards = [1.0, 3.0, 8.0, 0.5, 0.5, 2.0];
    let got = all(&LeaveOneOut { scale: 2.0 }, &batch(&rewards, &[0, 0, 0, 1, 1, 1]));
    for (i, a) in got.into_iter().enumerate() {
        let others = (i / 3 * 3..i / 3 * 3 + 3).filter(|&j| j != i).map(|j| rewards[j]).sum::<f64>() / 2.0;
        assert!((a - 2.0 * (rewards[i] - others)).abs() < 1e-12, "{i}: {a}");
    }
}

#[test]
fn softmax_weights_follow_rewards_and_average_to_one() {
    let two = batch(&[1.0, 3.0, 0.0, 200.0], &[0, 0, 1, 1]);
    let weights = all(&Softmax { inverse_temperature: 0.7 }, &two);
    // Each group is at ±1 deviations, whatever its scale.
    let [low, high] = [-0.7f64, 0.7].map(f64::exp);
    for (got, e) in weights.iter().zip([low, high, low, high]) {
        assert!((got - 2.0 * e / (low + high)).abs() < 1e-5, "{weights:?}");
    }
    assert!((weights.iter().sum::<f64>() - 4.0).abs() < 1e-12);
    assert!(!Softmax { inverse_temperature: -1.0 }.validate().is_empty());
}

#[test]
fn the_top_is_counted_over_the_batch() {
    let rewards: Vec<f64> = (0..10).map(f64::from).collect();
    let one_group = batch(&rewards, &[0; 10]);
    let kept = |percentile| all(&Top { percentile }, &one_group).iter().filter(|w| **w > 0.0).count();
    assert_eq!([0.0, 0.5, 0.9, 0.99].map(kept), [10, 5, 1, 1]);
    assert!(all(&Top { percentile: 0.9 }, &one_group)[9] > 0.0);
    assert!(advantages(&Top::default(), &[sample(0, missing())])[0].is_none());
}

#[test]
fn best_and_worst_of_each_group_make_a_pair() {
    let mut three = batch(&[1.0, 3.0, 3.0, 5.0, 5.0, 5.0, 2.0, 0.0, 0.0], &[0, 0, 0, 1, 1, 1, 2, 2, 2]);
    three[0].reward = missing();
    // The first group's two rewards agree, and so does the second's all; the first of equals counts.
    let got = advantages(&BestWorst {}, &three);
    assert_eq!(got, [None, None, None, None, None, None, Some(1.0), Some(-1.0), None]);
}

#[test]
fn a_prompts_history_decides_once_it_is_long_enough() {
    let mut history = History::default();
    let per_prompt = PerPrompt { buffer: 4, min_count: 3 };
    for reward in [100.0, 1.0, 2.0, 3.0, 4.0] {
        history.extend("a cat", [reward].into_iter(), per_prompt.memory());
    }
    assert_eq!(history.of("a cat"), [1.0, 2.0, 3.0, 4.0]);
    assert!(history.of("a dog").is_empty());
    // One image of each prompt: the cat's reward is among 2, 3, 4, 5; the dog has none but its own, so the batch stands in.
    let prompts = ["a cat", "a dog"].map(|text| Arc::new(Prompt::from(text)));
    let samples: Vec<Sample> = batch(&[5.0, 1.0], &[0, 1])
        .into_iter()
        .zip(prompts)
        .map(|(sample, prompt)| Sample { prompt, ..sample })
        .collect();
    let got: Vec<f64> = per_prompt.advantages(&samples, &history).into_iter().map(|a| a.expect("present")).collect();
    assert!((got[0] - 1.5 / 1.25f64.sqrt()).abs() < 1e-5, "{got:?}");
    assert!((got[1] + 1.0).abs() < 1e-5, "{got:?}");
    let text = serde_json::to_string(&history).expect("text");
    assert_eq!(serde_json::from_str::<History>(&text).expect("the same text"), history);
}

#[test]
fn outliers_of_a_history_are_clamped() {
    let rewards: Vec<f64> = (0..100).map(|i| if i == 0 { 1e6 } else { 0.0 }).collect();
    let groups: Vec<usize> = (0..100).collect();
    assert!((all(&PerPrompt::default(), &batch(&rewards, &groups))[0] - 5.0).abs() < 1e-12);
}

/// Two rewards of weights 2 and ½, the second ten times as wide, and their sums.
fn two_rewards() -> Vec<Sample> {
    let rewards = [[0.0, 1.0, 1.0, 0.0, 0.0, 0.0], [10.0, 0.0, 20.0, 5.0, 15.0, 10.0]];
    batch_of_sums([2.0, 0.5], rewards, [0, 0, 0, 1, 1, 1])
}

fn standard(several: Several) -> Standard {
    Standard { deviation: Deviation::Group, several, ..Standard::default() }
}

#[test]
fn several_rewards_are_summed_before_or_after_they_are_standardized() {
    let two = two_rewards();
    let z = |rewards: &[f64], i: usize| {
        let m = Moments::of(&rewards[i / 3 * 3..i / 3 * 3 + 3]);
        (rewards[i] - m.mean) / (m.std + 1e-4)
    };
    let scores: Vec<&Score> = two.iter().map(|sample| sample.reward.as_ref().expect("present")).collect();
    let column = |k: usize| scores.iter().map(|score| score.parts[k].value).collect::<Vec<f64>>();
    let sums: Vec<f64> = scores.iter().map(|score| score.value).collect();
    let normalized: Vec<f64> = (0..6).map(|i| 2.0 * z(&column(0), i) + 0.5 * z(&column(1), i)).collect();
    let all = Moments::of(&normalized);
    for (i, &sum) in normalized.iter().enumerate() {
        for (several, expected) in [
            (Several::Sum, z(&sums, i)),
            (Several::Normalize, sum),
            (Several::Decouple, (sum - all.mean) / (all.std + 1e-4)),
        ] {
            let got = advantages(&standard(several), &two)[i].expect("present");
            assert!((got - expected).abs() < 1e-12, "{several:?} {i}: {got} {expected}");
            // A single reward has nothing to be summed with.
            let single = advantages(&standard(several), &batch(&sums, &[0, 0, 0, 1, 1, 1]))[i].expect("present");
            assert!((single - z(&sums, i)).abs() < 1e-12, "{several:?} {i}: {single}");
        }
    }
}

#[test]
fn sums_that_agree_say_something_where_their_parts_do_not() {
    // Equal sums of opposite parts in the first group; equal parts in the second.
    let opposite = batch_of_sums([1.0, 1.0], [[0.0, 1.0, 3.0, 3.0], [1.0, 0.0, 2.0, 2.0]], [0, 0, 1, 1]);
    assert_eq!(opposite.iter().map(Sample::value).collect::<Vec<_>>(), [1.0, 1.0, 5.0, 5.0].map(Some));
    assert_eq!(standard(Several::Sum).zero_variance(&opposite), [true, true]);
    assert_eq!(standard(Several::Normalize).zero_variance(&opposite), [false, true]);
    assert_eq!(Softmax::default().zero_variance(&opposite), [false, false]);
    assert_eq!(LeaveOneOut::default().zero_variance(&opposite), [true, true]);
}

#[test]
fn a_missing_sum_is_missing_from_every_part() {
    let mut two = two_rewards();
    two[1].reward = missing();
    for several in [Several::Sum, Several::Normalize, Several::Decouple] {
        let got = advantages(&standard(several), &two);
        assert_eq!(got.iter().map(Option::is_none).collect::<Vec<_>>(), [false, true, false, false, false, false]);
    }
    // (0 + 1)/2 and (10 + 20)/2 are the means of what is left.
    let a = advantages(&standard(Several::Normalize), &two)[2].expect("present");
    assert!((a - (2.0 * 0.5 / 0.5001 + 0.5 * 5.0 / 5.0001)).abs() < 1e-12, "{a}");
}

#[test]
fn a_soft_clip_bounds_smoothly() {
    let rewards: Vec<f64> = (0..50).map(|i| if i == 0 { 1.0 } else { 0.0 }).collect();
    let (plain, group) = (Standard::default(), batch(&rewards, &[0; 50]));
    let clipped = Standard { soft_clip: Some(3.0), ..plain };
    for (a, b) in all(&plain, &group).into_iter().zip(all(&clipped, &group)) {
        assert!((b - 3.0 * (a / 3.0).tanh()).abs() < 1e-12 && b.abs() < 3.0, "{a} {b}");
    }
    assert!(all(&plain, &group)[0] > 6.9);
    assert!(clipped.validate().is_empty());
    assert_eq!(Standard { soft_clip: Some(0.0), ..plain }.validate(), ["advantage.soft_clip = 0: must be above 0"]);
}

proptest! {
    #[test]
    fn centered_advantages_sum_to_zero_and_ignore_the_order_of_groups(
        rewards in proptest::collection::vec(-5f64..5.0, 12), shift in -3f64..3.0,
    ) {
        let groups: Vec<usize> = (0..12).map(|i| i / 4).collect();
        let swapped: Vec<usize> = groups.iter().map(|g| 2 - g).collect();
        for kind in &KINDS[..3] {
            let a = advantages(kind.get(), &batch(&rewards, &groups));
            for g in 0..3 {
                prop_assert!(a[4 * g..4 * g + 4].iter().flatten().sum::<f64>().abs() < 1e-9);
            }
            prop_assert_eq!(&a, &advantages(kind.get(), &batch(&rewards, &swapped)));
            let shifted: Vec<f64> = rewards.iter().map(|r| r + shift).collect();
            for (x, y) in a.iter().zip(advantages(kind.get(), &batch(&shifted, &groups))) {
                prop_assert!((x.unwrap_or(0.0) - y.unwrap_or(0.0)).abs() < 1e-6);
            }
        }
    }
}

/// DanceGRPO's code: torch.std, which divides by n − 1, and 10⁻⁸.
#[test]
fn a_deviation_may_be_unbiased_and_have_another_floor() {
    let samples = batch(&[1.0, 2.0, 6.0, 5.0, 5.0, 5.0], &[0, 0, 0, 1, 1, 1]);
    let dance = Standard { deviation: Deviation::Group, unbiased: true, floor: 1e-8, ..Standard::default() };
    let got = all(&dance, &samples);
    for (got, reward) in got.iter().zip([1.0, 2.0, 6.0]) {
        assert!((got - (reward - 3.0) / (7f64.sqrt() + 1e-8)).abs() < 1e-12, "{got}");
    }
    assert_eq!(got[3..], [0.0; 3]);
    // One sample alone has no unbiased deviation, and none that matters.
    assert_eq!(all(&dance, &batch(&[4.0], &[0])), [0.0]);
}

/// Two groups of one prompt are one past: DDPO draws a prompt as often as it comes.
#[test]
fn groups_of_one_prompt_are_pooled() {
    let prompt = Arc::new(Prompt::from("a cat"));
    let samples: Vec<Sample> = batch(&[1.0, 2.0, 3.0, 10.0], &[0, 0, 1, 1])
        .into_iter()
        .map(|sample| Sample { prompt: Arc::clone(&prompt), ..sample })
        .collect();
    let got = all(&PerPrompt { buffer: 4, min_count: 2 }, &samples);
    let deviation = ((9.0 + 4.0 + 1.0 + 36.0) / 4.0f64).sqrt();
    for (got, reward) in got.iter().zip([1.0, 2.0, 3.0, 10.0]) {
        assert!((got - (reward - 4.0) / (deviation + 1e-6)).abs() < 1e-12, "{got}");
    }
}

/// √G r / (Σ |r|^p)^{1/p}; p = 2 is the group's own deviation, and a group without variance has zeros.
#[test]
fn a_quasi_norm_in_closed_form() {
    let samples = batch(&[1.0, 2.0, 6.0, 5.0, 5.0], &[0, 0, 0, 1, 1]);
    let got = all(&QuasiNorm::default(), &samples);
    let norm = [2.0f64, 1.0, 3.0].map(|r| r.powf(0.8)).iter().sum::<f64>().powf(1.25);
    for (got, centered) in got.iter().zip([-2.0, -1.0, 3.0]) {
        assert!((got - 3f64.sqrt() * centered / norm).abs() < 1e-12, "{got}");
    }
    assert_eq!(got[3..], [0.0, 0.0]);
    let own = Standard { deviation: Deviation::Group, floor: 1e-300, ..Standard::default() };
    let (quadratic, standard) = (all(&QuasiNorm { power: 2.0 }, &samples), all(&own, &samples));
    assert!(quadratic.iter().zip(&standard).take(3).all(|(a, b)| (a - b).abs() < 1e-12), "{quadratic:?} {standard:?}");
    assert_eq!(QuasiNorm { power: 0.0 }.validate().len(), 1);
}
