//! `elbow bench`, tiny: what it prints, answers and writes. How fast it is, no test asks.

mod common;

use common::{elbow, succeed, text};
use serde_json::Value;
use std::{fs, io::Write, process::Stdio};

#[test]
fn bench_measures_both_loops_and_both_tunings() {
    let tiny =
        ["bench", "--hidden", "16", "--heads", "2", "--layers", "2", "--batch", "4", "--rows", "2", "--rounds", "1"];
    for tuning in ["full", "lora"] {
        let printed = succeed(elbow(tiny).args(["--tuning", tuning, "--json"]));
        let report: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(report["tuning"], tuning);
        for number in ["/rollout/median_ms", "/rollout/samples_per_second", "/step/gflop", "/step/share_of_gemm_peak"]
            .into_iter()
            .chain(["/gemm_peak_gflops", "/peak_memory_mib", "/network/trained_parameters"])
        {
            assert!(report.pointer(number).and_then(Value::as_f64).is_some_and(|v| v > 0.0), "{number}: {report}");
        }
    }
    let table = succeed(&mut elbow(tiny));
    assert!(table.contains("\nrollout ") && table.contains("\nstep ") && table.contains("peak memory"), "{table}");
    let refused = elbow(["bench", "--batch", "3"]).output().unwrap();
    assert!(text(&refused).contains("--batch must be even"), "{}", text(&refused));
}

#[test]
fn bench_takes_turns_and_writes_what_it_computed() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("outputs.safetensors");
    let tiny = ["bench", "--hidden", "16", "--heads", "2", "--layers", "2", "--batch", "4", "--tuning", "lora"];
    succeed(elbow(tiny).arg("--outputs").arg(&path));
    let bytes = fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: std::collections::BTreeMap<_, _> = file.iter().collect();
    for (name, expected) in [
        ("base.proj_out.weight", &[48, 16][..]),
        ("output.rollout.images", &[4, 3, 32, 32]),
        ("output.step.losses", &[4]),
        ("gradient.transformer_blocks.0.attn.to_q.lora_A.weight", &[32, 16]),
    ] {
        assert_eq!(tensors[name].shape(), expected, "{name}");
        assert!(tensors[name].data().iter().any(|&b| b != 0), "{name} is zero");
    }

    let mut process = elbow(tiny).arg("--serve").stdin(Stdio::piped()).spawn().unwrap();
    process.stdin.take().unwrap().write_all(b"rollout\nstep\nrollout\n").unwrap();
    let output = process.wait_with_output().unwrap();
    let lines: Vec<Value> = text(&output).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines[0]["ready"], true);
    assert_eq!(lines[1..].iter().map(|l| &l["loop"]).collect::<Vec<_>>(), ["rollout", "step", "rollout"]);
    assert!(lines[1..].iter().all(|l| l["ms"].as_f64().unwrap() > 0.0), "{lines:?}");
}
