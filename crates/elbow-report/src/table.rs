//! Curves as a table for other programs, in the form that the field publishes them in.

use crate::{
    error::ReportError,
    run::Run,
    series::{X, curve, recorded, smooth},
};

/// A row an epoch and run: run, optimizer step, hours of drawing and training until then, the mean reward of the epoch's samples, and
/// its exponential moving average. What is missing is an empty field.
pub(crate) fn csv(runs: &[Run], names: &[String]) -> Result<String, ReportError> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["run", "step", "elapsed_hours", "reward", "reward_averaged"])?;
    for (run, name) in runs.iter().zip(names) {
        let key = run.reward.as_ref().map(|reward| format!("reward_{reward}")).unwrap_or_default();
        let raw = curve(run, &key, X::Epochs);
        let averaged = smooth(&raw);
        for ((epoch, raw), averaged) in recorded(run, &key).zip(&raw).zip(&averaged) {
            let text = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
            let hours = format!("{:.6}", epoch.seconds / 3600.0);
            writer.write_record([name, &epoch.step.to_string(), &hours, &text(raw.1), &text(averaged.1)])?;
        }
    }
    let bytes = writer.into_inner().map_err(|error| csv::Error::from(error.into_error()))?;
    Ok(String::from_utf8(bytes).expect("invariant: only text was written"))
}
