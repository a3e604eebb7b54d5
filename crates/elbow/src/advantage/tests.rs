use super::*;
use proptest::prelude::*;

fn batch(rewards: &[f64], groups: &[usize]) -> Grouped {
    Grouped { rewards: rewards.iter().map(|&r| Some(r)).collect(), groups: groups.to_vec() }
}

const KINDS: [AdvantageKind; 4] = [
    AdvantageKind::Exact(Exact { eta: 1e-4, beta: 1e-3 }),
    AdvantageKind::Standard(Standard { scale: 1.0, deviation: Deviation::Batch }),
    AdvantageKind::Standard(Standard { scale: 1.0, deviation: Deviation::Group }),
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
    let some = Grouped { rewards: vec![Some(1.0), None, Some(3.0)], groups: vec![0, 0, 0] };
    assert_eq!(KINDS[0].get().advantages(&some), [Some(-0.1), None, Some(0.1)]);
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
