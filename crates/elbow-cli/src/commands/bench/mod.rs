//! `elbow bench`: how fast the two hot loops of training are on this machine.

mod args;
mod exchange;
mod operations;
mod workload;

pub use args::Args;

use crate::{device::DeviceName, failure, numbers::median, output};
use anyhow::Result;
use args::TuningName;
use elbow::policy::Policy;
use elbow_run::machine;
use operations::{Loop, Operations};
use serde_json::{Value, json};
use std::{io::BufRead, time::Instant};
use workload::Workload;

/// Runs that are not timed: they fill caches and the allocator's pages.
const WARM_UP: usize = 2;

/// Runs the command.
pub fn run(args: &Args, device: DeviceName) -> Result<()> {
    check(args)?;
    let device = device.open()?;
    let policy = workload::policy(args, &device)?;
    let mut workload = Workload::new(args, &policy, &device)?;
    if let Some(path) = &args.outputs {
        return exchange::write(path, args, &policy, &mut workload);
    }
    if args.serve {
        return serve(&mut workload);
    }
    for _ in 0..WARM_UP {
        Loop::ALL.into_iter().try_for_each(|which| workload.run(which))?;
    }
    let mut times = [vec![], vec![]];
    for _ in 0..args.rounds {
        for (which, times) in Loop::ALL.into_iter().zip(&mut times) {
            times.push(milliseconds(&mut workload, which)?);
        }
    }
    let memory = machine::peak_memory();
    let operations = Operations::of(&workload::network(args), &policy, workload.text_tokens());
    let report = report(args, &policy, &operations, times.map(median), memory);
    output::line(&if args.json { report.to_string() } else { table(&report) });
    Ok(())
}

fn check(args: &Args) -> Result<()> {
    let problem = if args.hidden == 0 || args.heads == 0 || !args.hidden.is_multiple_of(4 * args.heads) {
        "--hidden must be a multiple of four times --heads: for example --hidden 128 --heads 4"
    } else if args.layers == 0 {
        "--layers must be at least 1"
    } else if args.batch == 0 || !args.batch.is_multiple_of(2) {
        "--batch must be even: two images share a prompt"
    } else if args.rows == 0 || args.rounds == 0 {
        "--rows and --rounds must be at least 1"
    } else {
        return Ok(());
    };
    Err(failure::error(problem, "see `elbow bench --help`"))
}

fn milliseconds(workload: &mut Workload<'_>, which: Loop) -> Result<f64> {
    let start = Instant::now();
    workload.run(which)?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// One run for each line of standard input, so that two programs can take turns and both stay warm.
fn serve(workload: &mut Workload<'_>) -> Result<()> {
    output::line(&json!({"ready": true, "version": env!("CARGO_PKG_VERSION")}).to_string());
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let Some(which) = Loop::ALL.into_iter().find(|l| l.name() == line.trim()) else {
            return Err(failure::error(format!("no loop is called {line:?}"), "write `rollout` or `step`, one a line"));
        };
        let ms = milliseconds(workload, which)?;
        output::line(&json!({"loop": which.name(), "ms": ms}).to_string());
    }
    Ok(())
}

fn report(
    args: &Args,
    policy: &impl Policy,
    operations: &Operations,
    medians: [f64; 2],
    peak_memory: Option<f64>,
) -> Value {
    let peak = operations::gemm_peak();
    let entry = |which: Loop, ms: f64| {
        let gflop = operations.of_loop(which, args.tuning == TuningName::Lora) * args.batch as f64 / 1e9;
        let gflops = gflop / ms * 1e3;
        json!({"median_ms": ms, "samples_per_second": args.batch as f64 / ms * 1e3, "gflop": gflop,
            "gflops": gflops, "share_of_gemm_peak": gflops / peak})
    };
    let [rollout, step] = medians;
    json!({
        "machine": machine::facts(),
        "network": {"hidden": args.hidden, "heads": args.heads, "layers": args.layers,
            "trained_parameters": policy.initial().values().len()},
        "tuning": format!("{:?}", args.tuning).to_lowercase(),
        "precision": format!("{:?}", args.precision).to_lowercase(),
        "batch": args.batch,
        "rows": args.rows,
        "rounds": args.rounds,
        "rollout": entry(Loop::Rollout, rollout),
        "step": entry(Loop::Step, step),
        "gemm_peak_gflops": peak,
        "peak_memory_mib": peak_memory,
    })
}

fn table(report: &Value) -> String {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let row = |which: Loop| {
        let r = &report[which.name()];
        let [ms, rate, gflops, share] =
            ["median_ms", "samples_per_second", "gflops", "share_of_gemm_peak"].map(|name| number(&r[name]));
        format!("{:<8}  {ms:>9.1}  {rate:>9.1}  {gflops:>8.1}  {:>13.0}%", which.name(), 100.0 * share)
    };
    let network = &report["network"];
    format!(
        "width {}, {} heads, {} layers, {} trained parameters ({}, {}); batch {}, {} rows at a time, {} rounds\n\
         {:<8}  {:>9}  {:>9}  {:>8}  {:>14}\n{}\n{}\n\
         matrix product at its best: {:.1} GFLOP/s; peak memory {:.0} MiB; {}, {} threads",
        network["hidden"],
        network["heads"],
        network["layers"],
        network["trained_parameters"],
        report["tuning"].as_str().unwrap_or_default(),
        report["precision"].as_str().unwrap_or_default(),
        report["batch"],
        report["rows"],
        report["rounds"],
        "loop",
        "median ms",
        "samples/s",
        "GFLOP/s",
        "of GEMM's best",
        row(Loop::Rollout),
        row(Loop::Step),
        number(&report["gemm_peak_gflops"]),
        number(&report["peak_memory_mib"]),
        report["machine"]["cpu"].as_str().unwrap_or_default(),
        report["machine"]["threads"],
    )
}
