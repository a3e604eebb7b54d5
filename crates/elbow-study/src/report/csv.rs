//! The tables for other programs.

use super::{Arm, Report, Spent};
use std::fmt::Write;

impl Report {
    /// A row a seed.
    pub fn seeds_csv(&self) -> String {
        let mut text = String::from("method,stage,seed,stopped,hacked,value");
        let axes = self.arms.iter().find(|arm| !arm.arrivals.is_empty()).map(|arm| &arm.arrivals);
        for arrivals in axes.into_iter().flatten() {
            let _ = write!(text, ",{0}_to_threshold,{0}_arrived", arrivals.axis.name());
        }
        text.push('\n');
        for arm in &self.arms {
            for (i, seed) in arm.seeds.iter().enumerate() {
                let value = arm.values[i].map_or_else(String::new, |value| value.to_string());
                let (stopped, hacked) = (arm.stopped.contains(seed), arm.hacked.contains(seed));
                let _ = write!(text, "{},{seed},{stopped},{hacked},{value}", name(arm));
                for arrivals in &arm.arrivals {
                    let time = arrivals.times[i];
                    let _ = write!(text, ",{},{}", time.time, time.arrived);
                }
                text.push('\n');
            }
        }
        text
    }

    /// A row a point of a curve.
    pub fn curves_csv(&self) -> String {
        let mut text = String::from("method,stage,epoch,images,forward,backward,seconds,mean,low,high,seeds\n");
        for arm in &self.arms {
            for band in &arm.curve {
                let Spent { images, forward, backward, seconds } = band.spent;
                let seconds = seconds.map_or_else(String::new, |seconds| seconds.to_string());
                let value = band.measure;
                let _ = writeln!(
                    text,
                    "{},{},{images},{forward},{backward},{seconds},{},{},{},{}",
                    name(arm),
                    band.epoch,
                    value.value,
                    value.low,
                    value.high,
                    arm.seeds.len()
                );
            }
        }
        text
    }
}

/// Method and stage, quoted: a name may have commas.
fn name(arm: &Arm) -> String {
    format!("\"{}\",\"{}\"", arm.name.replace('"', "\"\""), arm.stage.name())
}
