use super::*;
use proptest::prelude::*;

fn batch(rewards: &[f64], groups: &[usize]) -> Grouped {
    Grouped { rewards: rewards.iter().map(|&r| Some(r)).collect(), groups: groups.to_vec(), ..Grouped::default() }
}

const KINDS: [AdvantageKind; 4] = [
    AdvantageKind::Exact(Exact { eta: 1e-4, beta: 1e-3 }),
    AdvantageKind::Standard(Standard {
        scale: 1.0,
        deviation: Deviation::Batch,
        several: Several::Sum,
        soft_clip: None,
    }),
    AdvantageKind::Standard(Standard {
        scale: 1.0,
        deviation: Deviation::Group,
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
        for (a, sign) in kind.get().advantages(&two).into_iter().zip([-1.0, 1.0, -1.0, 1.0]) {
            assert!((a.expect("present") - neutral - sign * size).abs() < 1e-12, "{kind:?}: {a:?}");
        }
    }
}

#[test]
fn a_group_that_agrees_is_exactly_neutral() {
    let rewards = [0.1f32, 0.1, 0.1, 0.7, 0.2, 0.3].map(f64::from);
    for kind in KINDS {
        let neutral = if matches!(kind, AdvantageKind::Nft(_)) { 0.5 } else { 0.0 };
        let a = kind.get().advantages(&batch(&rewards, &[0, 0, 0, 1, 1, 1]));
        assert_eq!(a[..3], [Some(neutral); 3], "{kind:?}");
    }
}

#[test]
fn a_missing_reward_stays_missing_and_out_of_the_mean() {
    let some = Grouped { rewards: vec![Some(1.0), None, Some(3.0)], groups: vec![0, 0, 0], ..Grouped::default() };
    assert_eq!(KINDS[0].get().advantages(&some), [Some(-0.1), None, Some(0.1)]);
}

/// Advantages that must be there.
fn all(advantage: &dyn Advantage, batch: &Grouped) -> Vec<f64> {
    advantage.advantages(batch).into_iter().map(|a| a.expect("present")).collect()
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
    assert!(!Softmax { inverse_temperature: -1.0 }.problems().is_empty());
}

#[test]
fn the_top_is_counted_over_the_batch() {
    let rewards: Vec<f64> = (0..10).map(f64::from).collect();
    let one_group = batch(&rewards, &[0; 10]);
    let kept = |percentile| all(&Top { percentile }, &one_group).iter().filter(|w| **w > 0.0).count();
    assert_eq!([0.0, 0.5, 0.9, 0.99].map(kept), [10, 5, 1, 1]);
    assert!(all(&Top { percentile: 0.9 }, &one_group)[9] > 0.0);
    assert!(
        Top::default().advantages(&Grouped { rewards: vec![None], groups: vec![0], ..Grouped::default() })[0].is_none()
    );
}

#[test]
fn best_and_worst_of_each_group_make_a_pair() {
    let mut three = batch(&[1.0, 3.0, 3.0, 5.0, 5.0, 5.0, 2.0, 0.0, 0.0], &[0, 0, 0, 1, 1, 1, 2, 2, 2]);
    three.rewards[0] = None;
    // The first group's two rewards agree, and so does the second's all; the first of equals counts.
    let got = BestWorst {}.advantages(&three);
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
    let earlier = vec![history.of("a cat"), history.of("a dog")];
    let got = all(
        &per_prompt,
        &Grouped { rewards: vec![Some(5.0), Some(1.0)], groups: vec![0, 1], earlier, parts: Vec::new() },
    );
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
fn two_rewards() -> Grouped {
    let (first, second) = ([0.0, 1.0, 1.0, 0.0, 0.0, 0.0], [10.0, 0.0, 20.0, 5.0, 15.0, 10.0]);
    let sums: Vec<f64> = first.iter().zip(second).map(|(a, b)| 2.0 * a + 0.5 * b).collect();
    let part = |weight, rewards: [f64; 6]| Part { weight, rewards: rewards.map(Some).to_vec() };
    Grouped { parts: vec![part(2.0, first), part(0.5, second)], ..batch(&sums, &[0, 0, 0, 1, 1, 1]) }
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
    let column = |k: usize| two.parts[k].rewards.iter().flatten().copied().collect::<Vec<f64>>();
    let sums: Vec<f64> = two.rewards.iter().flatten().copied().collect();
    let normalized: Vec<f64> = (0..6).map(|i| 2.0 * z(&column(0), i) + 0.5 * z(&column(1), i)).collect();
    let all = Moments::of(&normalized);
    for (i, &one) in normalized.iter().enumerate() {
        for (several, expected) in [
            (Several::Sum, z(&sums, i)),
            (Several::Normalize, one),
            (Several::Decouple, (one - all.mean) / (all.std + 1e-4)),
        ] {
            let got = standard(several).advantages(&two)[i].expect("present");
            assert!((got - expected).abs() < 1e-12, "{several:?} {i}: {got} {expected}");
            // A single reward has nothing to be summed with.
            let single = standard(several).advantages(&batch(&sums, &two.groups))[i].expect("present");
            assert!((single - z(&sums, i)).abs() < 1e-12, "{several:?} {i}: {single}");
        }
    }
}

#[test]
fn sums_that_agree_say_something_where_their_parts_do_not() {
    let part = |rewards: [f64; 4]| Part { weight: 1.0, rewards: rewards.map(Some).to_vec() };
    // Equal sums of opposite parts in the first group; equal parts in the second.
    let parts = vec![part([0.0, 1.0, 3.0, 3.0]), part([1.0, 0.0, 2.0, 2.0])];
    let opposite = Grouped { parts, ..batch(&[1.0, 1.0, 5.0, 5.0], &[0, 0, 1, 1]) };
    assert_eq!(standard(Several::Sum).silent(&opposite), [true, true]);
    assert_eq!(standard(Several::Normalize).silent(&opposite), [false, true]);
    assert_eq!(Softmax::default().silent(&opposite), [false, false]);
    assert_eq!(LeaveOneOut::default().silent(&opposite), [true, true]);
}

#[test]
fn a_missing_sum_is_missing_from_every_part() {
    let mut two = two_rewards();
    two.rewards[1] = None;
    two.parts.iter_mut().for_each(|part| part.rewards[1] = None);
    for several in [Several::Sum, Several::Normalize, Several::Decouple] {
        let got = standard(several).advantages(&two);
        assert_eq!(got.iter().map(Option::is_none).collect::<Vec<_>>(), [false, true, false, false, false, false]);
    }
    // (0 + 1)/2 and (10 + 20)/2 are the means of what is left.
    let a = standard(Several::Normalize).advantages(&two)[2].expect("present");
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
    assert!(clipped.problems().is_empty());
    assert_eq!(Standard { soft_clip: Some(0.0), ..plain }.problems(), ["advantage.soft_clip = 0: must be above 0"]);
}

proptest! {
    #[test]
    fn centered_advantages_sum_to_zero_and_ignore_the_order_of_groups(
        rewards in proptest::collection::vec(-5f64..5.0, 12), shift in -3f64..3.0,
    ) {
        let groups: Vec<usize> = (0..12).map(|i| i / 4).collect();
        let swapped: Vec<usize> = groups.iter().map(|g| 2 - g).collect();
        for kind in &KINDS[..3] {
            let a = kind.get().advantages(&batch(&rewards, &groups));
            for g in 0..3 {
                prop_assert!(a[4 * g..4 * g + 4].iter().flatten().sum::<f64>().abs() < 1e-9);
            }
            prop_assert_eq!(&a, &kind.get().advantages(&batch(&rewards, &swapped)));
            let shifted: Vec<f64> = rewards.iter().map(|r| r + shift).collect();
            for (x, y) in a.iter().zip(kind.get().advantages(&batch(&shifted, &groups))) {
                prop_assert!((x.unwrap_or(0.0) - y.unwrap_or(0.0)).abs() < 1e-6);
            }
        }
    }
}
