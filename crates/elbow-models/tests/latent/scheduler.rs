//! Published `scheduler_config.json` files, and the levels and shifts that diffusers makes of them.

use super::text;
use elbow::{
    prediction::Prediction,
    schedule::{Schedule, shift},
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
    assert!(error(&SD1.replace("PNDM", "Heun")).starts_with("_class_name = \"HeunScheduler\": only FlowMatch"));
    let message = error(&SD1.replace("scaled_linear", "squaredcos_cap_v2"));
    assert!(message.starts_with("beta_schedule: unknown variant `squaredcos_cap_v2`"), "{message}");
    let message = error(&SD1.replace("1000", "500").replace("\"clip_sample\": false", "\"clip_sample\": true"));
    for part in ["num_train_timesteps = 500: only 1000", "clip_sample = true: only false"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(error(&SD1.replace("0.012", "1.2")).contains("beta_end = 1.2"));
    assert!(error(&FLUX.replace("\"shift\": 3.0", "\"use_karras_sigmas\": true")).contains("use_karras_sigmas = true"));
    assert!(error("{}").contains("_class_name"));
    // A field that is not written has the value that diffusers gives it.
    assert!(error(&SD1.replace("\"beta_schedule\": \"scaled_linear\",", "")).contains("`linear`"));
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
