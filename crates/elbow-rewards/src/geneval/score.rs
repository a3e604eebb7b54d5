//! GenEval's rules: from what a detector saw to a score.
//!
//! Benchmark rules after Ghosh et al. (arXiv 2310.11513), `evaluate.py`; dense and strict score after the training reward of
//! Flow-GRPO (arXiv 2505.05470). One departure: upstream's dense score adds 1 after a wrong position as well, see
//! [`Rules::upstream_position_quirk`].

use super::record::{Clause, Position, Record, Relation};
use super::{Detection, Mode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Part of the two boxes' summed dimensions by which an offset is reduced, per axis.
const OVERLAP: f32 = 0.1;
/// A reduced offset of more than this part of the distance is a relation.
const THRESHOLD: f32 = 0.5;

/// Choices where implementations of the rules differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// Upstream appends 0 *and then also 1* for a wrong position, so that such an image keeps half of the position's
    /// credit in the dense score. Off by default; on for parity with published rewards. Strict and lenient are unaffected.
    pub upstream_position_quirk: bool,
}

/// The relations of box `a` to box `b` (`[x0, y0, x1, y1]`): center offset, each axis reduced by 0.1 of the summed
/// dimensions but not below 0, divided by the norm of the *un-reduced* offset, beyond ±0.5. Up to two (diagonal) or none.
pub fn relations(a: [f32; 4], b: [f32; 4]) -> Vec<Relation> {
    let center = |v: [f32; 4], axis: usize| f32::midpoint(v[axis], v[axis + 2]);
    let side = |v: [f32; 4], axis: usize| (v[axis + 2] - v[axis]).abs();
    let offset = [0, 1].map(|axis| center(a, axis) - center(b, axis));
    let norm = offset[0].hypot(offset[1]);
    if norm == 0.0 {
        return Vec::new();
    }
    let [dx, dy] = [0, 1].map(|axis| {
        let reduced = (offset[axis].abs() - OVERLAP * (side(a, axis) + side(b, axis))).max(0.0);
        reduced.copysign(offset[axis]) / norm
    });
    let holds = [dx < -THRESHOLD, dx > THRESHOLD, dy < -THRESHOLD, dy > THRESHOLD];
    Relation::ALL.into_iter().zip(holds).filter_map(|(relation, h)| h.then_some(relation)).collect()
}

/// The score of one image under `mode`: 0 or 1 for [`Mode::Lenient`] and [`Mode::Strict`], at most 1 (and possibly negative)
/// for [`Mode::Dense`]. Detections may come in any order; `record` is valid.
pub fn score(record: &Record, detections: &[Detection], mode: Mode, rules: Rules) -> f32 {
    match mode {
        Mode::Dense => dense(record, detections, rules),
        Mode::Lenient => f32::from(u8::from(holds(record, detections, false))),
        Mode::Strict => f32::from(u8::from(holds(record, detections, true))),
    }
}

/// Whether an image passes. Lenient is the benchmark's rule: *at least* the asked-for count, of which the most confident
/// ones are looked at, and nothing excluded. Strict asks for the exact count of each class.
pub fn holds(record: &Record, detections: &[Detection], strict: bool) -> bool {
    let mut groups: Vec<Option<Vec<&Detection>>> = Vec::with_capacity(record.include.len());
    for clause in &record.include {
        let mut found = of_class(detections, &clause.class);
        let enough = if strict { found.len() == clause.count } else { found.len() >= clause.count };
        found.truncate(clause.count);
        let right = enough && right_colored(clause, &found) == clause.count && placed(clause, &found, &groups);
        groups.push(right.then_some(found));
    }
    let excluded = record.exclude.iter().any(|e| of_class(detections, &e.class).len() >= e.count);
    !excluded && groups.iter().all(Option::is_some)
}

/// The mean over all clause terms, n found for n* wanted. Count: 1 - |n - n*| / n*. If n = n*, color: 1 - |n* - m| / n* with m of that color,
/// and, if the color is right, position: 0 or 1; if n ≠ n* and a color or position is asked for: one 0.
fn dense(record: &Record, detections: &[Detection], rules: Rules) -> f32 {
    let mut terms = Vec::new();
    let mut groups: Vec<Option<Vec<&Detection>>> = Vec::with_capacity(record.include.len());
    for clause in &record.include {
        let found = of_class(detections, &clause.class);
        let closeness = |n: usize| 1.0 - n.abs_diff(clause.count) as f32 / clause.count as f32;
        terms.push(closeness(found.len()));
        let mut right = found.len() == clause.count;
        if right {
            if clause.color.is_some() {
                let colored = right_colored(clause, &found);
                terms.push(closeness(colored));
                right = colored == clause.count;
            }
            if let Some(Position(_, target)) = clause.position
                && right
            {
                right = placed(clause, &found, &groups);
                terms.push(f32::from(u8::from(right)));
                if !right && groups[target].is_some() && rules.upstream_position_quirk {
                    terms.push(1.0);
                }
            }
        } else if clause.color.is_some() || clause.position.is_some() {
            terms.push(0.0);
        }
        groups.push(right.then_some(found));
    }
    terms.iter().sum::<f32>() / terms.len() as f32
}

/// Detections of one class, most confident first.
fn of_class<'a>(detections: &'a [Detection], class: &str) -> Vec<&'a Detection> {
    let mut found: Vec<_> = detections.iter().filter(|d| d.class == class).collect();
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    found
}

/// How many have the clause's color; all of them if it names none.
fn right_colored(clause: &Clause, found: &[&Detection]) -> usize {
    let fits = |d: &&&Detection| clause.color.is_none() || d.color == clause.color;
    found.iter().filter(fits).count()
}

/// Whether each of `found` has the clause's relation to each object of the target group; false if that group is itself wrong.
fn placed(clause: &Clause, found: &[&Detection], groups: &[Option<Vec<&Detection>>]) -> bool {
    let Some(Position(relation, target)) = clause.position else { return true };
    let Some(Some(others)) = groups.get(target) else { return false };
    found.iter().all(|a| others.iter().all(|b| relations(a.bbox, b.bbox).contains(&relation)))
}

#[cfg(test)]
mod tests {
    use super::super::record::{Exclusion, Task};
    use super::*;

    fn seen(class: &str, x: f32, y: f32, color: &str) -> Detection {
        let color = (!color.is_empty()).then(|| color.to_owned());
        Detection { class: class.into(), score: 0.9, bbox: [x, y, x + 10.0, y + 10.0], color }
    }

    fn record(include: Vec<Clause>) -> Record {
        Record { tag: Task::Counting, include, exclude: Vec::new(), prompt: String::new() }
    }

    fn all(record: &Record, detections: &[Detection]) -> [f32; 3] {
        [Mode::Dense, Mode::Lenient, Mode::Strict].map(|mode| score(record, detections, mode, Rules::default()))
    }

    fn close(a: [f32; 3], b: [f32; 3]) {
        assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-6), "{a:?} != {b:?}");
    }

    fn cats(n: usize) -> Vec<Detection> {
        (0..n).map(|i| seen("cat", 20.0 * i as f32, 0.0, "red")).collect()
    }

    #[test]
    fn offsets_are_reduced_and_compared_with_the_whole_distance() {
        let at = |x: f32, y: f32| [x, y, x + 10.0, y + 10.0];
        assert_eq!(relations(at(0.0, 0.0), at(20.0, 0.0)), [Relation::LeftOf]);
        assert_eq!(relations(at(0.0, 20.0), at(0.0, 0.0)), [Relation::Below]);
        // (20, 20) reduced by 0.1 * 20 = 2 on each axis: 18 / 28.3 = 0.64 on both.
        assert_eq!(relations(at(20.0, 20.0), at(0.0, 0.0)), [Relation::RightOf, Relation::Below]);
        // (4, 0): (4 - 2) / 4 = 0.5 is not more than 0.5; (4.1, 0) is.
        assert!(relations(at(4.0, 0.0), at(0.0, 0.0)).is_empty());
        assert_eq!(relations(at(4.1, 0.0), at(0.0, 0.0)), [Relation::RightOf]);
        assert!(relations(at(1.0, 1.0), at(0.0, 0.0)).is_empty());
        assert!(relations(at(0.0, 0.0), at(0.0, 0.0)).is_empty());
    }

    #[test]
    fn counting() {
        let mut three = record(vec![Clause::new("cat", 3)]);
        three.exclude = vec![Exclusion { class: "cat".into(), count: 4 }];
        close(all(&three, &cats(3)), [1.0, 1.0, 1.0]);
        close(all(&three, &cats(2)), [2.0 / 3.0, 0.0, 0.0]);
        close(all(&three, &cats(4)), [2.0 / 3.0, 0.0, 0.0]);
        close(all(&three, &[]), [0.0, 0.0, 0.0]);
        close(all(&three, &cats(9)), [-1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_surplus_passes_the_benchmark_but_is_not_strict_and_can_cost_more_than_everything() {
        let one = record(vec![Clause::new("cat", 1)]);
        close(all(&one, &cats(2)), [0.0, 1.0, 0.0]);
        close(all(&one, &cats(5)), [-3.0, 1.0, 0.0]);
    }

    #[test]
    fn colors() {
        let red = record(vec![Clause { color: Some("red".into()), ..Clause::new("cat", 2) }]);
        close(all(&red, &cats(2)), [1.0, 1.0, 1.0]);
        close(all(&red, &[seen("cat", 0.0, 0.0, "red"), seen("cat", 20.0, 0.0, "blue")]), [0.75, 0.0, 0.0]);
        close(all(&red, &[seen("cat", 0.0, 0.0, ""), seen("cat", 20.0, 0.0, "blue")]), [0.5, 0.0, 0.0]);
        // A wrong count has an extra 0 for the color: (1/2 + 0) / 2.
        close(all(&red, &cats(1)), [0.25, 0.0, 0.0]);
        let mut surplus = cats(3);
        close(all(&red, &surplus), [0.25, 1.0, 0.0]);
        // The benchmark looks at the two most confident.
        surplus[2].color = None;
        surplus[2].score = 0.5;
        close(all(&red, &surplus), [0.25, 1.0, 0.0]);
        surplus[2].score = 1.0;
        close(all(&red, &surplus), [0.25, 0.0, 0.0]);
    }

    #[test]
    fn position_and_upstreams_quirk() {
        let cat = Clause { position: Some(Position(Relation::LeftOf, 0)), ..Clause::new("cat", 1) };
        let left = record(vec![Clause::new("dog", 1), cat]);
        let (dog, before, after) = (seen("dog", 30.0, 0.0, ""), seen("cat", 0.0, 0.0, ""), seen("cat", 60.0, 0.0, ""));
        close(all(&left, &[dog.clone(), before.clone()]), [1.0, 1.0, 1.0]);
        close(all(&left, &[dog.clone(), after.clone()]), [2.0 / 3.0, 0.0, 0.0]);
        let quirk = Rules { upstream_position_quirk: true };
        assert!((score(&left, &[dog.clone(), after], Mode::Dense, quirk) - 0.75).abs() < 1e-6);
        // No dog: count 0, cat count 1, position 0 (upstream adds no 1 here).
        close(all(&left, std::slice::from_ref(&before)), [1.0 / 3.0, 0.0, 0.0]);
        assert!((score(&left, &[before], Mode::Dense, quirk) - 1.0 / 3.0).abs() < 1e-6);
        // No cat: dog count 1, cat count 0, position 0.
        close(all(&left, &[dog]), [1.0 / 3.0, 0.0, 0.0]);
    }
}
