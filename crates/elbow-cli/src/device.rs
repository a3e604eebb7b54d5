//! `--device`: where tensors live.

use crate::failure;
use anyhow::Result;
use burn::tensor::{Device, Tensor};
use std::{fmt, panic, str::FromStr};

/// How devices are reached; each but the CPU is a Cargo feature of that name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Cpu,
    Cuda,
    Wgpu,
    Vulkan,
    Metal,
    Rocm,
}

const KINDS: [(&str, Kind); 6] = [
    ("cpu", Kind::Cpu),
    ("cuda", Kind::Cuda),
    ("wgpu", Kind::Wgpu),
    ("vulkan", Kind::Vulkan),
    ("metal", Kind::Metal),
    ("rocm", Kind::Rocm),
];

/// A device by its name: `cpu`, or one of the others with or without a number, as in `cuda:1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceName {
    kind: Kind,
    number: Option<usize>,
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = text.split_once(':').map_or((text, None), |(name, number)| (name, Some(number)));
        let known = || KINDS.map(|(name, _)| name).join(", ");
        let (_, kind) = *KINDS.iter().find(|(known, _)| *known == name).ok_or_else(|| {
            format!("no device is called {name:?}; there are {}, all but the first with a number as in cuda:1", known())
        })?;
        let number =
            number.map(|n| n.parse().map_err(|_| format!("{n:?} is not the number of a device: 0 is the first")));
        match (kind, number.transpose()?) {
            (Kind::Cpu, Some(_)) => Err("the CPU has no number: say cpu".to_owned()),
            (kind, number) => Ok(Self { kind, number }),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        self.number.map_or(Ok(()), |number| write!(f, ":{number}"))
    }
}

impl DeviceName {
    /// The device, once it has answered; an error if this build cannot reach it or nothing is there.
    pub fn open(self) -> Result<Device> {
        let Some(device) = self.reach() else {
            return Err(failure::error(
                format!("--device {self}: this build reaches {} only", reachable().join(", ")),
                format!("build it with `cargo build --release --features {}`, or use --device cpu", self.name()),
            ));
        };
        // The engine panics where nothing answers, and says so on its own.
        let answer = panic::catch_unwind(|| Tensor::<1>::ones([2], &device).sum().into_scalar::<f32>());
        match answer {
            Ok(sum) if sum.to_bits() == 2f32.to_bits() => Ok(device),
            _ => Err(failure::error(
                format!("--device {self}: no such device answers"),
                "check its driver and its number, or use --device cpu",
            )),
        }
    }

    /// The name without the number, which is the feature's too.
    fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self.kind).expect("invariant: every kind has a name").0
    }

    fn reach(self) -> Option<Device> {
        match self.kind {
            Kind::Cpu => Some(Device::flex()),
            #[cfg(feature = "cuda")]
            Kind::Cuda => Some(Device::cuda(self.number.unwrap_or(0))),
            #[cfg(feature = "rocm")]
            Kind::Rocm => Some(Device::rocm(self.number.unwrap_or(0))),
            #[cfg(feature = "wgpu")]
            Kind::Wgpu => Some(Device::wgpu(self.graphics())),
            #[cfg(feature = "vulkan")]
            Kind::Vulkan => Some(Device::vulkan(self.graphics())),
            #[cfg(feature = "metal")]
            Kind::Metal => Some(Device::metal(self.graphics())),
            #[allow(unreachable_patterns, reason = "a build with every feature reaches all")]
            _ => None,
        }
    }

    /// Graphics interfaces number discrete cards; without a number they choose.
    #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
    fn graphics(self) -> burn::tensor::DeviceKind {
        use burn::tensor::DeviceKind;
        self.number.map_or(DeviceKind::DefaultDevice, DeviceKind::DiscreteGpu)
    }
}

/// The devices that this build can reach, by name.
pub fn reachable() -> Vec<&'static str> {
    KINDS
        .iter()
        .filter(|(_, kind)| DeviceName { kind: *kind, number: None }.reach().is_some())
        .map(|(n, _)| *n)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for text in ["cpu", "cuda", "cuda:1", "wgpu:0", "metal", "rocm:3", "vulkan"] {
            assert_eq!(text.parse::<DeviceName>().expect("a device").to_string(), text);
        }
        for (text, word) in [("gpu", "cpu, cuda"), ("cuda:x", "\"x\""), ("cpu:0", "say cpu"), ("", "no device")] {
            let error = text.parse::<DeviceName>().expect_err("no device");
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_cpu_answers_and_what_is_not_built_in_says_how_to_build_it() {
        assert_eq!(DeviceName::default().open().expect("the CPU"), Device::flex());
        assert_eq!(reachable()[0], "cpu");
        for (name, kind) in KINDS {
            if !reachable().contains(&name) {
                let error = DeviceName { kind, number: None }.open().expect_err("not built in");
                assert!(error.to_string().contains("this build reaches cpu"), "{error}");
            }
        }
    }
}
