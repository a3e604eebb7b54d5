//! Every prompt of the six tasks, with GenEval's templates, and which of them training may see.
//!
//! The base model is pre-trained on all of them ([`pretrain_caption`]); reinforcement learning sees only [`train_records`], and
//! [`test_records`] are held out by what they combine: a pair of objects, a count of an object, a color of an object, a
//! relation of two objects (`A left of B` and `B right of A` together), a single object. A color-attribution prompt is held out
//! if either of its colored objects is. A combination is held out by a hash of its name, so the split never changes.

use crate::draw::{self, text_hash};
use crate::object::{Color, Object};
use elbow_rewards::geneval::{Clause, Exclusion, Position, Record, Relation, Task};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::sync::LazyLock;

/// One combination in this many is held out.
const HELD_OUT_ONE_IN: u64 = 5;
/// Of the first thirty salts, the one that holds out every number and every color about equally often.
const SALT: &str = "split 10: ";
const NUMBERS: [(usize, &str); 3] = [(2, "two"), (3, "three"), (4, "four")];

/// All records by task, in `Task::ALL` order.
static ALL: LazyLock<[Vec<Record>; 6]> =
    LazyLock::new(|| [single_object(), two_object(), counting(), colors(), position(), color_attr()]);

/// Relative frequency of the tasks among training prompts; need not sum to 1. The default is that of Flow-GRPO's GenEval
/// training set, but with a few single objects.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TaskWeights {
    /// One object.
    pub single_object: f64,
    /// Two objects.
    pub two_object: f64,
    /// Two to four of one object.
    pub counting: f64,
    /// One object in a color.
    pub colors: f64,
    /// Two objects, one left of, right of, above or below the other.
    pub position: f64,
    /// Two objects, each in a color.
    pub color_attr: f64,
}

impl Default for TaskWeights {
    fn default() -> Self {
        Self { single_object: 1.0, two_object: 1.0, counting: 5.0, colors: 1.0, position: 7.0, color_attr: 3.0 }
    }
}

impl TaskWeights {
    /// A task, with probability proportional to its weight; negative weights count as 0. If no weight is positive, uniform.
    pub fn sample(&self, rng: &mut impl FnMut() -> u64) -> Task {
        let of = [self.single_object, self.two_object, self.counting, self.colors, self.position, self.color_attr];
        let of = of.map(|w| w.max(0.0));
        let mut left = draw::unit(rng) * of.iter().sum::<f64>();
        if left == 0.0 && of.iter().all(|&w| w == 0.0) {
            return Task::ALL[draw::index(Task::ALL.len(), rng)];
        }
        for (task, weight) in Task::ALL.into_iter().zip(of) {
            if left < weight {
                return task;
            }
            left -= weight;
        }
        // Rounding can leave a sliver past the last weight.
        let last = of.iter().rposition(|&w| w > 0.0);
        Task::ALL[last.unwrap_or(0)]
    }
}

/// The training prompts, ready to be drawn from.
#[derive(Clone, Debug)]
pub struct TrainPrompts {
    weights: TaskWeights,
    by_task: [Vec<&'static Record>; 6],
}

impl TrainPrompts {
    /// Training prompts with these task weights.
    pub fn new(weights: TaskWeights) -> Self {
        let train = |task: Task| records_of(task).iter().filter(|r| !is_held_out(r)).collect();
        Self { weights, by_task: Task::ALL.map(train) }
    }

    /// A task by weight, then one of its training prompts, uniformly.
    pub fn sample(&self, rng: &mut impl FnMut() -> u64) -> &'static Record {
        let records = &self.by_task[self.weights.sample(rng) as usize];
        records[draw::index(records.len(), rng)]
    }
}

/// All records of one task, in a fixed order.
pub fn records_of(task: Task) -> &'static [Record] {
    &ALL[task as usize]
}

/// All records, task by task.
pub fn all_records() -> Vec<Record> {
    ALL.concat()
}

/// The records that reinforcement learning may see, task by task.
pub fn train_records() -> Vec<Record> {
    ALL.iter().flatten().filter(|r| !is_held_out(r)).cloned().collect()
}

/// The held-out records, task by task.
pub fn test_records() -> Vec<Record> {
    ALL.iter().flatten().filter(|r| is_held_out(r)).cloned().collect()
}

/// What the base model is pre-trained on: a task, uniformly, then any record of it, uniformly.
pub fn pretrain_caption(rng: &mut impl FnMut() -> u64) -> &'static Record {
    let records = records_of(Task::ALL[draw::index(Task::ALL.len(), rng)]);
    &records[draw::index(records.len(), rng)]
}

/// A fixed, balanced list of held-out records: `n_per_task` of each task, task by task, in an order that mixes classes. A task
/// with fewer held-out records (single objects, counting, colors) repeats them.
pub fn benchmark(n_per_task: usize) -> Vec<Record> {
    let of = |task: Task| {
        let mut held_out: Vec<&Record> = records_of(task).iter().filter(|r| is_held_out(r)).collect();
        held_out.sort_by_key(|r| text_hash(&r.prompt));
        held_out.into_iter().cycle().take(n_per_task).cloned()
    };
    Task::ALL.into_iter().flat_map(of).collect()
}

/// Whether a record belongs to the test set.
pub fn is_held_out(record: &Record) -> bool {
    let mut parts: Vec<String> = record.include.iter().map(|c| combination(record.tag, c)).collect();
    match record.tag {
        Task::ColorAttr => parts.iter().any(|part| held_out(part)),
        Task::Position => held_out(&relation_key(record)),
        _ => {
            parts.sort();
            held_out(&parts.join("+"))
        }
    }
}

/// Writes records as JSONL, the format of GenEval's metadata files.
pub fn write_jsonl<'a>(records: impl IntoIterator<Item = &'a Record>, out: &mut impl Write) -> io::Result<()> {
    for record in records {
        serde_json::to_writer(&mut *out, record)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

fn held_out(combination: &str) -> bool {
    text_hash(&format!("{SALT}{combination}")).is_multiple_of(HELD_OUT_ONE_IN)
}

/// What a clause combines, as named in the split.
fn combination(tag: Task, clause: &Clause) -> String {
    match (tag, &clause.color) {
        (Task::SingleObject, _) => format!("single {}", clause.class),
        (Task::Counting, _) => format!("{} {}", clause.count, clause.class),
        (_, Some(color)) => format!("{color} {}", clause.class),
        (_, None) => clause.class.clone(),
    }
}

/// The same for `A left of B` and `B right of A`.
fn relation_key(record: &Record) -> String {
    let [target, placed] = record.include.as_slice() else { return record.prompt.clone() };
    match placed.position {
        Some(Position(Relation::RightOf, _)) => format!("{} left of {}", target.class, placed.class),
        Some(Position(Relation::Below, _)) => format!("{} above {}", target.class, placed.class),
        Some(Position(relation, _)) => format!("{} {} {}", placed.class, relation.words(), target.class),
        None => record.prompt.clone(),
    }
}

fn record(tag: Task, include: Vec<Clause>, what: &str) -> Record {
    Record { tag, include, exclude: Vec::new(), prompt: format!("a photo of {what}") }
}

/// The words with their indefinite article.
fn with_article(words: &str) -> String {
    let article = if words.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {words}")
}

fn name(object: Object) -> String {
    with_article(object.name())
}

fn colored(color: Color, object: Object) -> (Clause, String) {
    let clause = Clause { color: Some(color.name().into()), ..Clause::new(object.name(), 1) };
    (clause, with_article(&format!("{} {}", color.name(), object.name())))
}

/// Ordered pairs of different objects.
fn pairs() -> impl Iterator<Item = (Object, Object)> {
    Object::ALL.into_iter().flat_map(|a| Object::ALL.into_iter().filter(move |&b| b != a).map(move |b| (a, b)))
}

/// Every color with every object.
fn colorings() -> impl Iterator<Item = (Color, Object)> {
    Object::ALL.into_iter().flat_map(|object| Color::ALL.into_iter().map(move |color| (color, object)))
}

fn single_object() -> Vec<Record> {
    let one = |o: Object| record(Task::SingleObject, vec![Clause::new(o.name(), 1)], &name(o));
    Object::ALL.into_iter().map(one).collect()
}

fn two_object() -> Vec<Record> {
    let both = |(a, b): (Object, Object)| {
        let include = vec![Clause::new(a.name(), 1), Clause::new(b.name(), 1)];
        record(Task::TwoObject, include, &format!("{} and {}", name(a), name(b)))
    };
    pairs().map(both).collect()
}

fn counting() -> Vec<Record> {
    let several = |object: Object| {
        NUMBERS.map(|(count, number)| {
            let include = vec![Clause::new(object.name(), count)];
            let exclude = vec![Exclusion { class: object.name().into(), count: count + 1 }];
            Record { exclude, ..record(Task::Counting, include, &format!("{number} {}", object.plural())) }
        })
    };
    Object::ALL.into_iter().flat_map(several).collect()
}

fn colors() -> Vec<Record> {
    let one = |(color, object): (Color, Object)| {
        let (clause, words) = colored(color, object);
        record(Task::Colors, vec![clause], &words)
    };
    colorings().map(one).collect()
}

fn position() -> Vec<Record> {
    let placed = |(a, b): (Object, Object)| {
        Relation::ALL.map(|relation| {
            let a_clause = Clause { position: Some(Position(relation, 0)), ..Clause::new(a.name(), 1) };
            let include = vec![Clause::new(b.name(), 1), a_clause];
            record(Task::Position, include, &format!("{} {} {}", name(a), relation.words(), name(b)))
        })
    };
    pairs().flat_map(placed).collect()
}

fn color_attr() -> Vec<Record> {
    let both = |(c1, a): (Color, Object)| {
        colorings().filter(move |&(c2, b)| c1 != c2 && a != b).map(move |(c2, b)| {
            let ((a, a_words), (b, b_words)) = (colored(c1, a), colored(c2, b));
            record(Task::ColorAttr, vec![a, b], &format!("{a_words} and {b_words}"))
        })
    };
    colorings().flat_map(both).collect()
}
