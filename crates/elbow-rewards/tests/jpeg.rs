//! JPEG files, against those of Pillow.

use elbow::RgbImage;
use elbow_rewards::jpeg::{SizeError, encode, size};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// As `mixed` of `fixtures/make/jpeg.py`.
fn mixed(numbers: &[u32]) -> u32 {
    numbers.iter().fold(0, |state, number| {
        let state = (state ^ number).wrapping_mul(0x9e37_79b1).wrapping_add(0x7f4a_7c15);
        state ^ (state >> 15)
    })
}

/// As `pixel` of the same.
fn picture(kind: &str, width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let smooth = |c| {
            let (u, v) = (x % 16, y % 16);
            let corner = |i, j| mixed(&[x / 16 + i, y / 16 + j, c]) % 240;
            let (upper, lower) =
                (corner(0, 0) * (16 - u) + corner(1, 0) * u, corner(0, 1) * (16 - u) + corner(1, 1) * u);
            ((upper * (16 - v) + lower * v) / 256 + mixed(&[x, y, c]) % 8) as u8
        };
        let square = |z: u32, side: u32| (2 * i64::from(z) - i64::from(side)).pow(2);
        image::Rgb(match kind {
            "plain" => [200, 120, 40],
            "ramp" => [(x * 7) as u8, (y * 7) as u8, ((x + y) * 3) as u8],
            "disk" if square(x, width) + square(y, height) < i64::from(width * height / 2) => [250, 210, 20],
            "disk" => [20, 60, 160],
            "text" if y % 10 < 7 && mixed(&[x / 2, y / 2]).is_multiple_of(3) => [24, 20, 40],
            "text" => [250, 248, 240],
            "smooth" => [0, 1, 2].map(smooth),
            "noise" => [0, 1, 2].map(|c| mixed(&[x, y, c]) as u8),
            other => panic!("no picture of {other}"),
        })
    })
}

#[test]
fn files_are_those_of_pillow() {
    let golden: Value = serde_json::from_str(include_str!("../../../fixtures/rewards/jpeg_sizes.json")).expect("JSON");
    let files = golden["files"].as_array().expect("a list");
    assert_eq!(files.len(), 64 + 120 + 12 + 6);
    for golden in files {
        let number = |key: &str| golden[key].as_u64().expect("a number") as u32;
        let image = picture(golden["kind"].as_str().expect("a kind"), number("width"), number("height"));
        let file = encode(&image, number("quality") as u8).expect("encodes");
        assert_eq!(file.len(), number("bytes") as usize, "{golden}");
        assert_eq!(format!("{:x}", Sha256::digest(&file)), golden["sha256"].as_str().expect("text"), "{golden}");
    }
}

#[test]
fn the_reward_counts_the_bytes_at_quality_95() {
    let image = picture("smooth", 40, 33);
    assert_eq!(size(&image), Ok(encode(&image, 95).expect("encodes").len()));
    // Beyond the scale the nearest quality counts.
    assert_eq!(encode(&image, 0), encode(&image, 1));
    assert_eq!(encode(&image, 255), encode(&image, 100));
}

#[test]
fn a_picture_that_no_file_can_hold_is_an_error() {
    for (width, height) in [(0, 0), (0, 5), (70_000, 1), (1, 65_501)] {
        assert_eq!(encode(&RgbImage::new(width, height), 95), Err(SizeError { width, height }));
    }
    assert!(encode(&RgbImage::new(65_500, 1), 95).is_ok());
}
