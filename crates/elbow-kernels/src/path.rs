//! Which instructions the kernels use: chosen once, when the first of them runs.
//!
//! The choice is the best that the CPU has. [`VARIABLE`] in the environment takes another, which serves tests and
//! comparisons; the engine's own operations choose for themselves and are not affected.

use std::{fmt, sync::OnceLock};

/// The environment variable that takes another path than the best: the name of a [`Path`].
pub const VARIABLE: &str = "ELBOW_CPU";

/// A set of instructions, and with it the code that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// No kernel of this crate: the ordinary operations of [`composite`](crate::composite) everywhere.
    Composite,
    /// What every CPU of the architecture has.
    Portable,
    /// 256-bit vectors and fused multiply-add (x86-64 since 2013).
    Avx2,
    /// 512-bit vectors (x86-64 servers since 2017).
    Avx512,
    /// The same, and sums of products of bf16 in them (since 2020).
    Avx512Bf16,
    /// The same, and products of bf16 in tiles (Intel servers since 2023).
    Amx,
}

/// A path that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathError {
    /// What the variable says.
    name: String,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Path::available().into_iter().map(Path::name).collect();
        write!(f, "{VARIABLE}={}: this CPU can take {}", self.name, names.join(", "))
    }
}

impl std::error::Error for PathError {}

impl Path {
    /// The paths this CPU can take, the best last.
    pub fn available() -> Vec<Self> {
        let mut paths = vec![Self::Composite, Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            macro_rules! has {
                ($($feature:tt)*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
            }
            if has!("avx2" "fma") {
                paths.push(Self::Avx2);
                if has!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl") {
                    paths.push(Self::Avx512);
                    if has!("avx512bf16") {
                        paths.push(Self::Avx512Bf16);
                        if amx() {
                            paths.push(Self::Amx);
                        }
                    }
                }
            }
        }
        paths
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

/// The path that all kernels take; an error if [`VARIABLE`] names none that this CPU has, and then the best is taken.
pub fn path() -> Result<Path, &'static PathError> {
    static CHOSEN: OnceLock<Result<Path, PathError>> = OnceLock::new();
    let choose = || match std::env::var(VARIABLE) {
        Err(_) => Ok(Path::best()),
        Ok(name) => Path::available().into_iter().find(|p| p.name() == name).ok_or(PathError { name }),
    };
    CHOSEN.get_or_init(choose).as_ref().copied()
}

/// The path that a kernel takes.
pub(crate) fn chosen() -> Path {
    path().unwrap_or_else(|_| Path::best())
}

/// Defines a function that is compiled for every path; a call runs the chosen one.
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
            match $crate::path::chosen() {
                // SAFETY: a path is chosen only if the CPU has its instructions.
                #[cfg(target_arch = "x86_64")]
                $crate::path::Path::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::path::Path::Avx512 | $crate::path::Path::Avx512Bf16 | $crate::path::Path::Amx => unsafe {
                    avx512($($arg),*)
                },
                _ => portable($($arg),*),
            }
        }
    };
}
pub(crate) use kernel;
