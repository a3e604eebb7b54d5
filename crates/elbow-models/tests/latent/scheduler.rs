//! Published `scheduler_config.json` files, and the levels and shifts that diffusers makes of them.

use super::text;
use elbow::{
    prediction::Prediction,
    schedule::{Schedule, grid, shift},
};
use elbow_models::scheduler::{Scheduler, Shift};
use serde::Deserialize;

const SD1: &str = r#"{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": false, "num_train_timesteps": 1000,
    "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null}"#;
const FLUX: &str = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.30.0.dev0",
    "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15,
    "num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": true}"#;

fn scheduler(json: &str) -> Scheduler {
    Scheduler::from_json(json).expect("a published configuration")
}

fn error(json: &str) -> String {
    Scheduler::from_json(json).expect_err("refused").to_string()
}

#[test]
fn published_files_are_read() {
    let schedule = Schedule::ScaledLinear { beta_start: 0.00085, beta_end: 0.012 };
    let noise = Scheduler { schedule, prediction: Prediction::Noise, shift: Shift::Fixed(1.0) };
    assert_eq!(scheduler(SD1), noise);
    let sd2 = SD1.replace("PNDM", "DDIM").replace("\"trained", "\"prediction_type\": \"v_prediction\", \"trained");
    assert_eq!(scheduler(&sd2), Scheduler { prediction: Prediction::VPrediction, ..noise });
    let sd3 = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}"#;
    let flow =
        Scheduler { schedule: Schedule::RectifiedFlow, prediction: Prediction::Velocity, shift: Shift::Fixed(3.0) };
    assert_eq!(scheduler(sd3), flow);
    assert!(matches!(scheduler(FLUX).shift, Shift::Dynamic { .. }));
}

#[test]
fn what_is_not_implemented_is_named_with_its_value() {
    for class in ["KarrasVeScheduler", "EDMEulerScheduler", "CMStochasticIterativeScheduler"] {
        let message =
            error(&format!(r#"{{"_class_name": "{class}", "num_train_timesteps": 1000, "sigma_min": 0.002}}"#));
        assert!(message.starts_with(&format!("_class_name = \"{class}\": it is none of")), "{message}");
    }
    let message = error(&SD1.replace("scaled_linear", "sigmoid"));
    assert!(message.starts_with("beta_schedule: unknown variant `sigmoid`"), "{message}");
    let message = error(&SD1.replace("1000", "500").replace("\"clip", "\"rescale_betas_zero_snr\": true, \"clip"));
    for part in ["num_train_timesteps = 500: only 1000", "rescale_betas_zero_snr = true: only false"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(error(&SD1.replace("0.012", "1.2")).contains("beta_end = 1.2"));
    assert!(error("{}").contains("_class_name"));
    let prediction = |kind: &str| SD1.replace("\"clip", &format!("\"prediction_type\": \"{kind}\", \"clip"));
    assert!(error(&prediction("score")).starts_with("prediction_type: unknown variant `score`"));
    assert!(error(&prediction("flow_prediction")).contains("without use_flow_sigmas"));
    let message = error(&SD1.replace("\"clip", "\"use_flow_sigmas\": true, \"clip"));
    assert!(message.contains("without prediction_type = \"flow_prediction\""), "{message}");
    // CogVideoX changes its β by a field that no other scheduler has.
    let message = error(&SD1.replace("PNDM", "CogVideoXDDIM").replace("\"clip", "\"snr_shift_scale\": 3.0, \"clip"));
    assert!(message.contains("snr_shift_scale = 3.0"), "{message}");
    assert!(error(&FLUX.replace("\"shift\"", "\"invert_sigmas\": true, \"shift\"")).contains("invert_sigmas = true"));
}

/// A field that is not written has the value that diffusers gives it.
#[test]
fn fields_that_are_not_written_have_the_values_of_the_class() {
    let bare = |class: &str| scheduler(&format!(r#"{{"_class_name": "{class}"}}"#)).schedule;
    assert_eq!(bare("DDIMScheduler"), Schedule::Linear { beta_start: 0.0001, beta_end: 0.02 });
    assert_eq!(bare("HeunDiscreteScheduler"), Schedule::Linear { beta_start: 0.00085, beta_end: 0.012 });
    assert_eq!(bare("LCMScheduler"), Schedule::ScaledLinear { beta_start: 0.00085, beta_end: 0.012 });
}

#[derive(Deserialize)]
struct Written {
    text: String,
    #[serde(default)]
    steps: Vec<usize>,
    #[serde(default)]
    alphas_bar: Vec<f64>,
    #[serde(default)]
    sigmas: Vec<f64>,
}

/// Every scheduler of the newest diffusers that has betas, as it writes itself: `fixtures/make/newest.py`.
#[test]
fn schedulers_of_all_classes_have_the_levels_of_their_betas() {
    let all: Vec<Written> = serde_json::from_str(&text("newest/schedulers.json")).expect("its fields");
    assert!(all.len() > 20 && all.iter().any(|written| written.text.contains("-Infinity")));
    for Written { text, steps, alphas_bar, .. } in all {
        let read = scheduler(&text);
        let expected = match () {
            () if text.contains("\"v_prediction\"") => Prediction::VPrediction,
            () if text.contains("\"sample\"") => Prediction::Clean,
            () => Prediction::Noise,
        };
        assert_eq!((read.prediction, read.shift), (expected, Shift::Fixed(1.0)), "{text}");
        for (step, expected) in steps.into_iter().zip(alphas_bar) {
            let got = read.schedule.level((step + 1) as f64 / 1000.0).alpha.powi(2);
            // The last of the squared cosine is 2e-9, of a thousand products in float32.
            assert!(
                (got / expected - 1.0).abs() < 2e-5 || (got - expected).abs() < 1e-11,
                "step {step}: {got} {expected}: {text}"
            );
        }
    }
}

/// What case files of other packages say: `LMSDiscreteScheduler` needs scipy, and is not among those above.
#[test]
fn a_folder_saved_after_a_swap_of_schedulers_is_the_same_model() {
    for class in ["LMSDiscreteScheduler", "DPMSolverSDEScheduler", "AScheduler"] {
        assert_eq!(scheduler(&SD1.replace("PNDMScheduler", class)), scheduler(SD1), "{class}");
    }
    let warned = |json: &str| scheduler(json).schedule;
    assert_eq!(warned(&SD1.replace("\"clip_sample\": false", "\"clip_sample\": true")), scheduler(SD1).schedule);
}

#[test]
fn flows_of_all_classes_have_their_shift() {
    let all: Vec<Written> = serde_json::from_str(&text("newest/flows.json")).expect("its fields");
    assert!(all.len() >= 5);
    for Written { text, sigmas, .. } in all {
        let read = scheduler(&text);
        let flow = (Schedule::RectifiedFlow, Prediction::Velocity);
        assert_eq!((read.schedule, read.prediction), flow, "{text}");
        // Each samples on a grid of its own, all of which bend even times in the same way.
        let by = read.shift.by(1024);
        assert!((by - 3.0).abs() < 1e-12, "{text}");
        if text.contains("FlowMatchEuler") || text.contains("FlowMatchLCM") {
            let off = grid(4, by).into_iter().zip(&sigmas).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(sigmas.len() == 5 && off < 1e-6, "{sigmas:?}");
        }
    }
    let karras = FLUX.replace("\"shift\"", "\"use_karras_sigmas\": true, \"shift\"");
    assert_eq!(scheduler(&karras), scheduler(FLUX));
}

#[test]
fn trained_betas_are_read_where_a_formula_gives_them() {
    let beta = |i: i32| (0.00085f64.sqrt() + (0.012f64.sqrt() - 0.00085f64.sqrt()) * f64::from(i) / 999.0).powi(2);
    let with = |betas: &[f64]| SD1.replace("\"trained_betas\": null", &format!("\"trained_betas\": {betas:?}"));
    let mut betas: Vec<f64> = (0..1000).map(beta).collect();
    let read = scheduler(&with(&betas).replace("scaled_linear", "linear")).schedule;
    let same = |t: f64| (read.level(t).alpha - scheduler(SD1).schedule.level(t).alpha).abs() < 1e-9;
    assert!(same(0.1) && same(0.5) && same(1.0), "{read:?}");
    betas[300] = 0.1;
    assert!(error(&with(&betas)).starts_with("trained_betas has 1000 values: they must be"));
    assert!(error(&with(&betas[..10])).starts_with("trained_betas has 10 values"));
}

/// The reference multiplies a thousand numbers in float32.
#[test]
fn levels_are_those_of_the_reference() {
    #[derive(Deserialize)]
    struct Levels {
        steps: Vec<usize>,
        alphas_bar: Vec<f64>,
    }
    let Levels { steps, alphas_bar } = serde_json::from_str(&text("method/scaled_linear.json")).expect("its fields");
    let schedule = scheduler(SD1).schedule;
    for (step, expected) in steps.into_iter().zip(alphas_bar) {
        let got = schedule.level((step + 1) as f64 / 1000.0).alpha.powi(2);
        assert!((got / expected - 1.0).abs() < 2e-5, "step {step}: {got} {expected}");
    }
}

#[test]
fn shifts_grow_with_the_image_as_those_of_the_reference() {
    #[derive(Deserialize)]
    struct Case {
        tokens: usize,
        time_shift_type: String,
        sigmas: Vec<f64>,
    }
    for case in serde_json::from_str::<Vec<Case>>(&text("method/dynamic_shift.json")).expect("its fields") {
        let json = FLUX.replace("\"shift\"", &format!("\"time_shift_type\": \"{}\", \"shift\"", case.time_shift_type));
        let by = scheduler(&json).shift.by(case.tokens);
        for (even, expected) in [1.0, 0.75, 0.5, 0.25, 0.0].into_iter().zip(case.sigmas) {
            assert!((shift(even, by) - expected).abs() < 1e-6, "{} tokens", case.tokens);
        }
    }
}
