//! Draws from a source of uniform 64-bit numbers, `FnMut() -> u64`.

/// The `SplitMix64` generator (Steele, Lea, Flood, 2014): a counter with a mixing function, so seeds may be consecutive.
pub fn splitmix(seed: u64) -> impl FnMut() -> u64 {
    let mut counter = mix(seed);
    move || {
        counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(counter)
    }
}

/// The mixing function of `SplitMix64`: a bijection whose output bits each depend on all input bits.
pub(crate) const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Uniform in `0..n`, n > 0; the bias is below n / 2^64.
pub fn index(n: usize, rng: &mut impl FnMut() -> u64) -> usize {
    ((u128::from(rng()) * n as u128) >> 64) as usize
}

/// Uniform in [0, 1) with 53 bits.
pub fn unit(rng: &mut impl FnMut() -> u64) -> f64 {
    (rng() >> 11) as f64 / (1u64 << 53) as f64
}

/// A stable 64-bit hash of a text (FNV-1a, then mixed), the same on every machine and in every version.
pub(crate) fn text_hash(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}
