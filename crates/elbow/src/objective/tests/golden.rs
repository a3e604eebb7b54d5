//! Losses and gradients of TRL, for log-probabilities of completions of three tokens (`fixtures/make/losses.py`). A completion is a
//! sample here, and a token a draw.

use super::*;
use std::{fs, path::Path};

const TOKENS: usize = 3;

/// Numbers of every completion's tokens.
type Tokens = [[f64; TOKENS]; B];

#[derive(Deserialize)]
struct Fixture {
    current: Tokens,
    behavior: Tokens,
    reference: Tokens,
    advantages: [f64; B],
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    options: Options,
    loss: f64,
    gradient: Tokens,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    loss_type: Option<String>,
    importance_sampling_level: Option<String>,
    epsilon_low: f64,
    epsilon_high: f64,
    beta: f64,
    use_bias_correction_kl: bool,
    sapo_temperature_pos: f64,
    sapo_temperature_neg: f64,
}

impl Options {
    fn objective(&self) -> ObjectiveKind {
        match self.loss_type.as_deref() {
            // TRL's bound is absolute, and there is none below.
            Some("cispo") => ObjectiveKind::Cispo(Cispo { low: 1.0, high: self.epsilon_high - 1.0 }),
            Some("sapo") => sapo(self.sapo_temperature_pos, self.sapo_temperature_neg),
            // Completions are equally long, so that all ways to average over tokens are one.
            None | Some("bnpo" | "dr_grpo" | "dapo") => ObjectiveKind::Grpo(Grpo {
                clip: self.epsilon_low,
                clip_high: Some(self.epsilon_high),
                max_advantage: f64::INFINITY,
            }),
            Some(other) => panic!("{other}"),
        }
    }

    fn ratio(&self) -> Ratio {
        match self.importance_sampling_level.as_deref() {
            None => Ratio::PerDraw,
            Some("sequence") => Ratio::PerSampleMean,
            Some(other) => panic!("{other}"),
        }
    }

    fn kl(&self) -> Kl {
        let (kind, reference) = (KlKind::K3, Anchor::Base);
        Kl { kind, weight: self.beta, importance: self.use_bias_correction_kl, reference, guidance: None }
    }
}

/// The tokens that a query looks at, draw after draw.
fn rows(tokens: &Tokens, query: usize, draws: usize) -> Vec<f64> {
    (query..query + draws).flat_map(|t| tokens.iter().map(move |sample| sample[t])).collect()
}

/// The mean loss, and its gradient with respect to the log-probabilities as far as the velocities tell.
fn check(fixture: &Fixture, case: &Case) {
    let queries = queries(TOKENS, Timesteps::All, case.options.ratio());
    let (count, draws, mut total) = (queries.len(), TOKENS / queries.len(), 0.0);
    for (i, query) in queries.iter().enumerate() {
        let [current, behavior, reference] = [
            (&fixture.current, Device::flex().autodiff()),
            (&fixture.behavior, Device::flex()),
            (&fixture.reference, Device::flex()),
        ]
        .map(|(tokens, device)| table(query, &rows(tokens, i, draws), &device));
        let fields = Fields {
            behavior: Some(&behavior),
            lagged: None,
            reference: &reference,
            guided_reference: None,
            teachers: &[],
        };
        let e = Evaluation::new(query, &current, &fields);
        let kl = case.options.kl();
        let mut loss = losses(case.options.objective().get(), fixture.advantages, &e);
        if let Some(value) = kl.value(&e) {
            loss = loss + value * kl.weight;
        }
        let loss = loss.sum() / (B * count) as f64;
        total += numbers(loss.clone())[0];
        let got = numbers(current.0.grad(&loss.backward()).expect("depends on the weights"));
        let (v, u) = (numbers(current.0.clone()), numbers(query.target.clone().expect("an ELBO")));
        let expected = rows(&case.gradient, i, draws);
        let expected: Vec<f64> =
            (0..got.len()).map(|p| expected[p / DIMS] * -2.0 * (v[p] - u[p]) / DIMS as f64).collect();
        let off = relative(&got, &expected);
        assert!(off < 1e-5, "{}: gradient off by {off}", case.name);
    }
    assert!((total - case.loss).abs() < 1e-6, "{}: {total} {}", case.name, case.loss);
}

#[test]
fn losses_and_gradients_are_those_of_trl() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/method/losses.json");
    let fixture: Fixture = serde_json::from_str(&fs::read_to_string(path).expect("a fixture")).expect("its fields");
    assert_eq!(fixture.cases.len(), 10);
    for case in &fixture.cases {
        check(&fixture, case);
    }
}
