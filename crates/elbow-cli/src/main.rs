//! .
use elbow::{noise::*, pretrain::*, schedule::Schedule};
use elbow_models::{mmdit::MmditConfig, policy::{MmditPolicy, Tuning}};
fn main() {
    let device = burn::tensor::Device::flex();
    let config = MmditConfig::default();
    let base = config.initial(Key::new(0, Purpose::Initialization, 0));
    let text = Box::new(elbow_world::encoder::WordCodes { device: device.clone() });
    let policy = MmditPolicy::new(config, base, Tuning::Full, text, 0, &device);
    let data = elbow_world::data::SceneData { device: device.clone() };
    let c = PretrainConfig { steps: 6000, ..PretrainConfig::default() };
    let mut p = Pretraining::new(&policy);
    let (start, mut sum) = (std::time::Instant::now(), 0.0);
    for i in 1..=c.steps {
        sum += p.step(&policy, &data, &c, Schedule::RectifiedFlow, 0, &device);
        if i % 50 == 0 { println!("{i} {} {:.0}s", sum / 50.0, start.elapsed().as_secs_f64()); sum = 0.0; }
        if i % 500 == 0 {
            for (n, q) in [("ema", &policy.merged(&p.ema)), ("params", &p.params), ("m", &p.optimizer.first), ("v", &p.optimizer.second)] {
                std::fs::write(format!("/tmp/pre/{n}.safetensors"), q.to_safetensors(None)).unwrap();
            }
            std::fs::write("/tmp/pre/step", i.to_string()).unwrap();
        }
    }
}
