//! What `scheduler/scheduler_config.json` says about a model: the path it was trained on, what it predicts, and how its
//! times are shifted. How it is sampled is the recipe's choice, so that any class of scheduler will do, and its fields about that are
//! not used.

use crate::config_json::{self, ConfigError, Others, Told};
use elbow::{prediction::Prediction, schedule::Schedule};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

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

/// The schedulers of flow matching, with `diffusers`' defaults: `FlowMatchEulerDiscreteScheduler` and those beside it.
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

const FLOW: Others = Others {
    only: r#"{"invert_sigmas": false, "num_train_timesteps": 1000}"#,
    ignored: &[&[
        "scale_factors",
        "shift_terminal",
        "stochastic_sampling",
        "upscale_mode",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_karras_sigmas",
    ]],
};

/// Schedulers of a thousand β, which differ in how they sample and are alike in what they say about training. Multistep ones serve
/// flows too, and say so by `use_flow_sigmas`.
#[derive(Debug, Serialize, Deserialize)]
struct Discrete {
    beta_start: f64,
    beta_end: f64,
    beta_schedule: Betas,
    #[serde(default)]
    prediction_type: PredictionType,
    #[serde(default)]
    trained_betas: Option<Vec<f64>>,
    #[serde(default)]
    clip_sample: Option<bool>,
    #[serde(default)]
    thresholding: Option<bool>,
    #[serde(default)]
    use_flow_sigmas: Option<bool>,
    #[serde(default)]
    flow_shift: Option<f64>,
    #[serde(default)]
    use_dynamic_shifting: Option<bool>,
    #[serde(default)]
    time_shift_type: Option<TimeShift>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Betas {
    ScaledLinear,
    Linear,
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosine,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PredictionType {
    #[default]
    Epsilon,
    Sample,
    VPrediction,
    FlowPrediction,
}

const DISCRETE: Others = Others {
    only: r#"{"num_train_timesteps": 1000, "rescale_betas_zero_snr": false, "timestep_type": "discrete"}"#,
    ignored: &[&[
        "algorithm_type",
        "clip_sample_range",
        "corrector_order",
        "disable_corrector",
        "dynamic_thresholding_ratio",
        "eta",
        "euler_at_final",
        "final_sigmas_type",
        "interpolation_type",
        "lambda_min_clipped",
        "lower_order_final",
        "noise_sampler_seed",
        "original_inference_steps",
        "predict_x0",
        "predictor_order",
        "sample_max_value",
        "set_alpha_to_one",
        "shift_terminal",
        "sigma_max",
        "sigma_min",
        "skip_prk_steps",
        "solver_order",
        "solver_p",
        "solver_type",
        "steps_offset",
        "tau_func",
        "timestep_scaling",
        "timestep_spacing",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
        "variance_type",
    ]],
};

/// What a class of `diffusers` does where its file does not say: β of the first and of the last step, and how it grows; whether it clips.
/// `None` of a class that is not known here, whose file must say it.
fn defaults(class: &str) -> Option<([f64; 2], &'static str, bool)> {
    let (published, stable) = ([0.0001, 0.02], [0.00085, 0.012]);
    Some(match class {
        "DDIMScheduler"
        | "DDIMParallelScheduler"
        | "DDIMInverseScheduler"
        | "DDPMScheduler"
        | "DDPMParallelScheduler" => (published, "linear", true),
        "PNDMScheduler"
        | "DEISMultistepScheduler"
        | "DPMSolverMultistepScheduler"
        | "DPMSolverMultistepInverseScheduler"
        | "DPMSolverSinglestepScheduler"
        | "EulerAncestralDiscreteScheduler"
        | "EulerDiscreteScheduler"
        | "LMSDiscreteScheduler"
        | "SASolverScheduler"
        | "UniPCMultistepScheduler" => (published, "linear", false),
        "DPMSolverSDEScheduler"
        | "HeunDiscreteScheduler"
        | "KDPM2AncestralDiscreteScheduler"
        | "KDPM2DiscreteScheduler" => (stable, "linear", false),
        "LCMScheduler" | "TCDScheduler" => (stable, "scaled_linear", false),
        _ => return None,
    })
}

impl Scheduler {
    /// Reads `scheduler/scheduler_config.json`.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        Ok(Self::read(json)?.0)
    }

    /// The same, with what is worth a warning.
    pub(crate) fn read(json: &str) -> Result<Told<Self>, ConfigError> {
        let fields = config_json::fields(json)?;
        let Some(class) = fields.get("_class_name").and_then(Value::as_str) else {
            return Err(unsupported("_class_name is absent: it says which scheduler this is".into()));
        };
        if class.starts_with("FlowMatch") {
            let (config, warnings) = config_json::read_fields(fields, FLOW)?;
            return Ok((Self::flow(&config)?, warnings));
        }
        let class = class.to_owned();
        if defaults(&class).is_none() && !fields.contains_key("beta_schedule") {
            return Err(unsupported(format!(
                "_class_name = \"{class}\": it is none of the schedulers of flow matching, and has no beta_schedule"
            )));
        }
        Self::discrete(fields, &class)
    }

    fn flow(config: &FlowMatch) -> Result<Self, ConfigError> {
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

    fn discrete(mut fields: Map<String, Value>, class: &str) -> Result<Told<Self>, ConfigError> {
        if let Some(([start, end], growth, clips)) = defaults(class) {
            fields.entry("beta_start").or_insert_with(|| start.into());
            fields.entry("beta_end").or_insert_with(|| end.into());
            fields.entry("beta_schedule").or_insert_with(|| growth.into());
            fields.entry("clip_sample").or_insert_with(|| clips.into());
        }
        let (config, mut warnings): Told<Discrete> = config_json::read_fields(fields, DISCRETE)?;
        for (name, value) in [("clip_sample", config.clip_sample), ("thresholding", config.thresholding)] {
            if value == Some(true) {
                warnings.push(format!(
                    "{name} = true: samplers of diffusers clip what the network predicts, and those here do not"
                ));
            }
        }
        let prediction = match (config.prediction_type, config.use_flow_sigmas == Some(true)) {
            (PredictionType::FlowPrediction, true) => return Ok((Self::flow(&config.as_flow())?, warnings)),
            (PredictionType::FlowPrediction, false) => {
                return Err(unsupported("prediction_type = \"flow_prediction\" without use_flow_sigmas = true".into()));
            }
            (_, true) => {
                return Err(unsupported("use_flow_sigmas = true without prediction_type = \"flow_prediction\"".into()));
            }
            (PredictionType::Epsilon, false) => Prediction::Noise,
            (PredictionType::Sample, false) => Prediction::Clean,
            (PredictionType::VPrediction, false) => Prediction::VPrediction,
        };
        Ok((Self { schedule: config.schedule()?, prediction, shift: Shift::Fixed(1.0) }, warnings))
    }
}

impl Discrete {
    /// As a scheduler of flow matching says the same.
    fn as_flow(&self) -> FlowMatch {
        FlowMatch {
            shift: self.flow_shift.unwrap_or(1.0),
            use_dynamic_shifting: self.use_dynamic_shifting == Some(true),
            time_shift_type: self.time_shift_type.unwrap_or(TimeShift::Exponential),
            ..FlowMatch::default()
        }
    }

    fn schedule(&self) -> Result<Schedule, ConfigError> {
        if let Some(betas) = &self.trained_betas {
            let unknown = || {
                let count = betas.len();
                unsupported(format!(
                    "trained_betas has {count} values: they must be 1000, and those of scaled_linear, linear or squaredcos_cap_v2"
                ))
            };
            return Schedule::of_betas(betas).ok_or_else(unknown);
        }
        let (beta_start, beta_end) = (self.beta_start, self.beta_end);
        let schedule = match self.beta_schedule {
            Betas::ScaledLinear => Schedule::ScaledLinear { beta_start, beta_end },
            Betas::Linear => Schedule::Linear { beta_start, beta_end },
            Betas::SquaredCosine => return Ok(Schedule::SquaredCosine),
        };
        if 0.0 < beta_start && beta_start <= beta_end && beta_end < 1.0 {
            return Ok(schedule);
        }
        Err(unsupported(format!("beta_start = {beta_start}, beta_end = {beta_end}: must grow and lie between 0 and 1")))
    }
}

fn unsupported(problem: String) -> ConfigError {
    ConfigError::Unsupported { problems: vec![problem] }
}
