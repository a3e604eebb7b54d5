//! Which instruction set the kernels use: chosen once, when the first of them runs.
//!
//! The choice is the best that the CPU has. [`VARIABLE`] in the environment takes another, which serves tests and
//! comparisons; the engine's own operations choose for themselves and are not affected.

use std::{fmt, sync::OnceLock};

/// The environment variable that takes another instruction set than the best: the name of an [`Isa`].
pub const VARIABLE: &str = "ELBOW_CPU";

/// An instruction set of the CPU (instruction set architecture), and with it the code that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// No kernel of this crate: the ordinary operations of [`composite`](crate::composite), with the instructions that the engine
    /// chooses.
    Composite,
    /// The kernels, with what every CPU of the architecture has: SSE2 on x86-64.
    Portable,
    /// The kernels, with AVX2 and FMA: vectors of 8 `f32` and fused multiply-add (x86-64 since 2013).
    Avx2,
    /// The kernels, with AVX-512 F, BW, CD, DQ and VL: vectors of 16 `f32` (x86-64 servers since 2017).
    Avx512,
    /// [`Avx512`](Self::Avx512), and AVX512-BF16 for products of bf16: two terms of each of 16 sums at once (since 2020).
    Avx512Bf16,
    /// [`Avx512Bf16`](Self::Avx512Bf16), and AMX for products of bf16: tiles of 16 × 32 numbers (Intel servers since 2023).
    Amx,
}

/// An instruction set that cannot be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsaError {
    /// What the variable says.
    name: String,
}

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        write!(f, "{VARIABLE}={}: this CPU can take {}", self.name, names.join(", "))
    }
}

impl std::error::Error for IsaError {}

impl Isa {
    /// Those this CPU can take, the best last.
    pub fn available() -> Vec<Self> {
        let mut sets = vec![Self::Composite, Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            macro_rules! has {
                ($($feature:tt)*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
            }
            if has!("avx2" "fma") {
                sets.push(Self::Avx2);
                if has!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl") {
                    sets.push(Self::Avx512);
                    if has!("avx512bf16") {
                        sets.push(Self::Avx512Bf16);
                        if amx() {
                            sets.push(Self::Amx);
                        }
                    }
                }
            }
        }
        sets
    }

    /// What [`VARIABLE`] calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Composite => "composite",
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Amx => "amx",
        }
    }

    /// Whether products of bf16 have instructions of their own; without them they are no faster than those of `f32`.
    pub fn multiplies_bf16(self) -> bool {
        matches!(self, Self::Avx512Bf16 | Self::Amx)
    }

    fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }
}

/// Whether the CPU multiplies tiles of bf16, and the system gives leave to use their registers, which this asks for.
#[cfg(target_arch = "x86_64")]
#[cfg_attr(target_os = "linux", expect(unsafe_code, reason = "a system call"))]
fn amx() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
        const TILE_DATA: i64 = 18;
        let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
        let [bf16, tiles] = [22, 24].map(|bit| features >> bit & 1 == 1);
        // SAFETY: the call changes nothing but which registers the system saves.
        bf16 && tiles && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) } == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// The instruction set of all kernels; an error if [`VARIABLE`] names none that this CPU has, and then the best is taken.
pub fn isa() -> Result<Isa, &'static IsaError> {
    static CHOSEN: OnceLock<Result<Isa, IsaError>> = OnceLock::new();
    let choose = || match std::env::var(VARIABLE) {
        Err(_) => Ok(Isa::best()),
        Ok(name) => Isa::available().into_iter().find(|p| p.name() == name).ok_or(IsaError { name }),
    };
    CHOSEN.get_or_init(choose).as_ref().copied()
}

/// The instruction set of a kernel.
pub(crate) fn chosen() -> Isa {
    isa().unwrap_or_else(|_| Isa::best())
}

/// Defines a function that is compiled for every instruction set; a call runs the chosen one.
macro_rules! kernel {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $output:ty)? $body:block) => {
        $(#[$meta])*
        #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "functions for one instruction set"))]
        $visibility fn $name($($arg: $type),*) $(-> $output)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) $(-> $output)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
            fn avx512($($arg: $type),*) $(-> $output)? $body
            fn portable($($arg: $type),*) $(-> $output)? $body
            match $crate::isa::chosen() {
                // SAFETY: a set is chosen only if the CPU has it.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx512 | $crate::isa::Isa::Avx512Bf16 | $crate::isa::Isa::Amx => unsafe {
                    avx512($($arg),*)
                },
                _ => portable($($arg),*),
            }
        }
    };
}
pub(crate) use kernel;
