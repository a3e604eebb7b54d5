//! What `scheduler/scheduler_config.json` says about a model: the path it was trained on, what it predicts, and how its
//! times are shifted. How it is sampled is the recipe's choice, so fields about that are read and not used.

use crate::config_json::{self, ConfigError};
use elbow::{prediction::Prediction, schedule::Schedule};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A model's path, prediction and shift.
#[derive(Clone, Debug, PartialEq)]
pub struct Scheduler {
    /// From data to noise.
    pub schedule: Schedule,
    /// What the network's output means.
    pub prediction: Prediction,
    /// Of the grid of times.
    pub shift: Shift,
}

/// How many of a grid's times are near noise: the `by` of [`elbow::schedule::shift`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shift {
    /// The same for every size (SD3); 1 is none.
    Fixed(f64),
    /// Larger for larger images (FLUX): e^μ, or μ itself if `exponential` is false, with μ linear in the number of tokens.
    Dynamic {
        /// μ at the first number of tokens, and at the second.
        mu: [f64; 2],
        /// Two numbers of tokens.
        tokens: [f64; 2],
        /// Whether the shift is e^μ.
        exponential: bool,
    },
}

impl Shift {
    /// The shift for images of so many tokens (FLUX: a quarter of the latent's pixels).
    pub fn by(&self, tokens: usize) -> f64 {
        match *self {
            Self::Fixed(by) => by,
            Self::Dynamic { mu: [low, high], tokens: [few, many], exponential } => {
                let mu = low + (high - low) * (tokens as f64 - few) / (many - few);
                if exponential { mu.exp() } else { mu }
            }
        }
    }
}

/// `FlowMatchEulerDiscreteScheduler`, with `diffusers`' defaults.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct FlowMatch {
    shift: f64,
    use_dynamic_shifting: bool,
    base_shift: f64,
    max_shift: f64,
    base_image_seq_len: usize,
    max_image_seq_len: usize,
    time_shift_type: TimeShift,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TimeShift {
    Exponential,
    Linear,
}

impl Default for FlowMatch {
    fn default() -> Self {
        Self {
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            time_shift_type: TimeShift::Exponential,
        }
    }
}

/// Fields of flow matching of which one value is implemented.
const FLOW_ONLY: &str = r#"{
    "invert_sigmas": false, "num_train_timesteps": 1000, "shift_terminal": null, "stochastic_sampling": false,
    "use_beta_sigmas": false, "use_exponential_sigmas": false, "use_karras_sigmas": false
}"#;

/// The variance-preserving schedulers, which differ in how they sample and are alike in what they say about training.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct VariancePreserving {
    beta_start: f64,
    beta_end: f64,
    beta_schedule: Betas,
    prediction_type: PredictionType,
    // About sampling: read and not used.
    steps_offset: Value,
    timestep_spacing: Value,
    set_alpha_to_one: Value,
    skip_prk_steps: Value,
    variance_type: Value,
    clip_sample_range: Value,
    dynamic_thresholding_ratio: Value,
    sample_max_value: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Betas {
    ScaledLinear,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PredictionType {
    Epsilon,
    Sample,
    VPrediction,
}

impl Default for VariancePreserving {
    fn default() -> Self {
        Self {
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: Betas::ScaledLinear,
            prediction_type: PredictionType::Epsilon,
            steps_offset: Value::Null,
            timestep_spacing: Value::Null,
            set_alpha_to_one: Value::Null,
            skip_prk_steps: Value::Null,
            variance_type: Value::Null,
            clip_sample_range: Value::Null,
            dynamic_thresholding_ratio: Value::Null,
            sample_max_value: Value::Null,
        }
    }
}

/// Fields of variance-preserving schedulers of which one value is implemented. `clip_sample` would change what is sampled.
const VARIANCE_PRESERVING_ONLY: &str = r#"{
    "clip_sample": false, "num_train_timesteps": 1000, "rescale_betas_zero_snr": false, "thresholding": false,
    "trained_betas": null
}"#;

/// Schedulers that can be read.
const CLASSES: [&str; 4] = ["FlowMatchEulerDiscreteScheduler", "DDIMScheduler", "DDPMScheduler", "PNDMScheduler"];

impl Scheduler {
    /// Reads `scheduler/scheduler_config.json`, whose `_class_name` decides what it means.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct Class {
            #[serde(rename = "_class_name")]
            name: String,
        }
        let Class { name } = serde_json::from_str(json)?;
        match CLASSES.into_iter().find(|class| *class == name) {
            Some(class) if class == CLASSES[0] => Self::flow_match(config_json::read_only(json, class, FLOW_ONLY)?),
            Some(class) => Self::variance_preserving(json, class),
            None => {
                let problem = format!("_class_name = \"{name}\": only {} are implemented here", CLASSES.join(", "));
                Err(ConfigError::Unsupported { problems: vec![problem] })
            }
        }
    }

    fn flow_match(config: FlowMatch) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        if !(config.shift > 0.0 && config.shift.is_finite()) {
            problems.push(format!("shift = {}: must be positive", config.shift));
        }
        let tokens = [config.base_image_seq_len, config.max_image_seq_len];
        if tokens[0] >= tokens[1] {
            problems
                .push(format!("base_image_seq_len = {}: must be below max_image_seq_len = {}", tokens[0], tokens[1]));
        }
        let dynamic = Shift::Dynamic {
            mu: [config.base_shift, config.max_shift],
            tokens: tokens.map(|n| n as f64),
            exponential: config.time_shift_type == TimeShift::Exponential,
        };
        let shift = if config.use_dynamic_shifting { dynamic } else { Shift::Fixed(config.shift) };
        let scheduler = Self { schedule: Schedule::RectifiedFlow, prediction: Prediction::Velocity, shift };
        config_json::checked(scheduler, problems)
    }

    fn variance_preserving(json: &str, class: &'static str) -> Result<Self, ConfigError> {
        let mut fields: serde_json::Map<String, Value> = serde_json::from_str(json)?;
        // What a scheduler of `diffusers` does if its file does not say.
        fields.entry("beta_schedule").or_insert_with(|| "linear".into());
        let clips = class == "DDIMScheduler" || class == "DDPMScheduler";
        fields.entry("clip_sample").or_insert(clips.into());
        let config: VariancePreserving =
            config_json::read_only(&Value::Object(fields).to_string(), class, VARIANCE_PRESERVING_ONLY)?;
        let (beta_start, beta_end) = (config.beta_start, config.beta_end);
        let good = 0.0 < beta_start && beta_start <= beta_end && beta_end < 1.0;
        let problem = format!("beta_start = {beta_start}, beta_end = {beta_end}: must grow and lie between 0 and 1");
        let prediction = match config.prediction_type {
            PredictionType::Epsilon => Prediction::Noise,
            PredictionType::Sample => Prediction::Clean,
            PredictionType::VPrediction => Prediction::VPrediction,
        };
        let schedule = Schedule::ScaledLinear { beta_start, beta_end };
        let problems = if good { Vec::new() } else { vec![problem] };
        config_json::checked(Self { schedule, prediction, shift: Shift::Fixed(1.0) }, problems)
    }
}
