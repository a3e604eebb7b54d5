//! Where samples branch (arXiv 2508.04324).

use super::*;

const STEPS: usize = 10;
const BRANCH: Branch = Branch { sde: Sde::FlowSde(FlowSde { noise_level: 0.7 }), points: 3, explorations: 2 };

fn drawn_in(epoch: u64) -> Vec<Key> {
    (0..12).map(|i| Key::new(7, Purpose::Step, epoch).sample(i)).collect()
}

fn branching() -> Sampling {
    SamplerConfig { rule: BRANCH.into(), steps: STEPS, shift: Some(1.0), guidance: 1.0, ..SamplerConfig::default() }
        .build()
}

/// The step at which each of the samples branches.
fn steps(epoch: u64) -> Vec<usize> {
    let noisy = |key| {
        let sampling = branching();
        let stochastic = stochastic(&sampling.rule.walk(&sampling.grid(FLOW), key));
        assert_eq!(stochastic, [BRANCH.step_of(STEPS, key)], "one step has noise");
        stochastic[0]
    };
    drawn_in(epoch).into_iter().map(noisy).collect()
}

#[test]
fn explorations_branch_together_and_points_apart() {
    let mut seen = std::collections::BTreeSet::new();
    for epoch in 0..60 {
        let steps = steps(epoch);
        assert!(steps.chunks(2).all(|pair| pair[0] == pair[1]), "{steps:?}");
        // Two groups of three points; 9 steps in three parts.
        assert_eq!(steps[..6], steps[6..], "all groups of an epoch branch alike");
        assert!((0..3).all(|p| steps[2 * p] / 3 == p), "{steps:?}");
        seen.extend(steps);
    }
    assert!(seen.into_iter().eq(0..9), "every step but the last has its turn");
    assert_ne!((0..9).map(steps).collect::<Vec<_>>(), vec![steps(0); 9]);
}

#[test]
fn rows_branch_where_they_should_whatever_is_drawn_with_them() {
    let field = GaussianData { mean: 0.5, std: 0.5, schedule: FLOW };
    let (keys, start) = (drawn_in(3), Tensor::<2>::full([12, 1], 0.8, &Device::flex()));
    let draw = |rows: std::ops::Range<usize>| {
        let start = start.clone().narrow(0, rows.start, rows.len());
        drawn(&branching(), &field, start, &keys[rows])
    };
    let all = draw(0..12);
    for (i, &at) in steps(3).iter().enumerate() {
        for (k, points) in all.iter().enumerate() {
            let value = |x: &Tensor<2>, i| x.clone().narrow(0, i, 1).into_scalar::<f32>().to_bits();
            assert_eq!(value(points, i), value(&draw(i..i + 1)[k], 0), "sample {i}, point {k}");
            // The two explorations of a point share the path up to their step.
            assert_eq!(value(points, i) == value(points, i ^ 1), k <= at, "sample {i}, point {k}");
        }
    }
}

/// A field that counts the rows it is asked for.
struct Counting<'a> {
    field: &'a GaussianData,
    rows: std::sync::Mutex<Vec<usize>>,
}

impl VelocityField for Counting<'_> {
    fn velocity(&self, x: Tensor<2>, t: Tensor<1>, cond: &Conditioning) -> Tensor<2> {
        self.rows.lock().expect("one thread").push(x.dims()[0]);
        self.field.velocity(x, t, cond)
    }
}

/// Twelve samples of two prompts, in three points of two explorations each: one walk a prompt until some branch.
#[test]
fn what_samples_share_is_walked_once() {
    let field = GaussianData { mean: 0.5, std: 0.5, schedule: FLOW };
    let (keys, start) = (drawn_in(3), Tensor::<2>::full([12, 1], 0.8, &Device::flex()));
    let (sampling, grid) = (branching(), branching().grid(FLOW));
    let steps_of: Vec<Vec<Step>> = keys.iter().map(|&key| sampling.rule.walk(&grid, key)).collect();
    let walks: Vec<(Key, &[Step])> = keys.iter().copied().zip(steps_of.iter().map(Vec::as_slice)).collect();
    let keep = Keep { points: true, velocities: true };
    let walked = |alike: Vec<usize>| {
        let counting = Counting { field: &field, rows: std::sync::Mutex::default() };
        let path = walk(&counting, &grid, start.clone(), &nothing(12), &walks, alike, keep);
        let bits = |all: &[Tensor<2>]| -> Vec<Vec<u32>> {
            all.iter().map(|x| x.clone().into_data().iter::<f32>().map(f32::to_bits).collect()).collect()
        };
        (bits(&path.points), bits(&path.velocities), counting.rows.into_inner().expect("one thread"))
    };
    let (points, velocities, rows) = walked((0..12).collect());
    let (shared_points, shared_velocities, shared_rows) = walked((0..12).map(|i| i / 6 * 6).collect());
    assert_eq!((points.len(), velocities.len()), (STEPS + 1, STEPS));
    assert_eq!((points, velocities), (shared_points, shared_velocities), "the same bits");
    assert_eq!(rows, [12; STEPS]);
    // A point's pair shares a row up to its step, that of later points with theirs.
    let at = steps(3);
    let expected: Vec<usize> = (0..STEPS)
        .map(|k| {
            let walking = (0..3).filter(|point| at[2 * point] < k).count();
            2 * (2 * walking + usize::from(walking < 3))
        })
        .collect();
    assert_eq!(shared_rows, expected);
}

#[test]
fn one_that_does_not_fit_is_refused() {
    let refusal = |branch: Branch, schedule| sampling(branch).validate("sampler", schedule).into_iter().next();
    assert_eq!(refusal(BRANCH, FLOW), None);
    assert_eq!(refusal(Branch { points: 9, ..BRANCH }, FLOW), None);
    for (branch, schedule, words) in [
        (Branch { points: 10, ..BRANCH }, FLOW, ["points = 10", "10 steps"]),
        (Branch { points: 0, ..BRANCH }, FLOW, ["points = 0", "at least 1"]),
        (Branch { explorations: 1, ..BRANCH }, FLOW, ["explorations = 1", "at least 2"]),
        (BRANCH, VP, ["flow-sde", "rectified flow"]),
    ] {
        let message = refusal(branch, schedule).expect("does not fit");
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}
