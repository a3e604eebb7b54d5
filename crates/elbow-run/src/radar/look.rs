//! Numbers of pictures that show what a reward may not see: they turn dark, flat, gray or full of grids, or all alike.
//!
//! | number | of one picture | range |
//! |---|---|---|
//! | brightness | mean luma (ITU-R BT.601) | 0 to 1 |
//! | edges | mean of ∣Δ∣ of luma from each pixel to its right and lower neighbors, both added | 0 to 2 |
//! | entropy | of the histogram over 8 × 8 × 8 colors, in bits | 0 to 9 |
//! | grid | how much larger ∣Δ∣ is across the strongest line of a grid of 8 or 16 pixels than on average, as a share of that average | 0 to 15 |
//!
//! Latents stand for 8 × 8 pixels and tokens for 16 × 16 in the models of the field, whose seams are what a policy that cheats draws first
//! (github.com/yifan123/flow_grpo/issues/233).

use elbow::RgbImage;
use rayon::prelude::*;

/// What the numbers are called in a record.
pub const NAMES: [&str; 4] = ["brightness", "edges", "entropy", "grid"];

/// Cells of the color histogram along a channel.
const CELLS: usize = 8;

/// The numbers of one picture, in the order of [`NAMES`].
pub fn look(image: &RgbImage) -> [f64; 4] {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let luma: Vec<f64> = image.pixels().map(|p| luma(p.0)).collect();
    let pixels = luma.len().max(1) as f64;
    // By column and by row: the sum of steps into it from the one before.
    let (mut columns, mut rows) = (vec![0.0; width], vec![0.0; height]);
    for (y, row) in luma.chunks(width.max(1)).enumerate() {
        for x in 1..width {
            columns[x] += (row[x] - row[x - 1]).abs();
        }
        if y > 0 {
            let above = &luma[(y - 1) * width..y * width];
            rows[y] += row.iter().zip(above).map(|(a, b)| (a - b).abs()).sum::<f64>();
        }
    }
    let edges = (columns.iter().sum::<f64>() + rows.iter().sum::<f64>()) / pixels;
    let grid = [8, 16].map(|period| seam(&columns, period).max(seam(&rows, period)));
    [luma.iter().sum::<f64>() / pixels, edges, entropy(image), grid[0].max(grid[1])]
}

/// The mean and the deviation of each number over pictures; NaN of none.
pub fn summary(images: &[&RgbImage]) -> [(f64, f64); 4] {
    let all: Vec<[f64; 4]> = images.par_iter().map(|image| look(image)).collect();
    std::array::from_fn(|k| {
        let n = all.len() as f64;
        let mean = all.iter().map(|numbers| numbers[k]).sum::<f64>() / n;
        let variance = all.iter().map(|numbers| (numbers[k] - mean).powi(2)).sum::<f64>() / n;
        (mean, variance.sqrt())
    })
}

fn luma([r, g, b]: [u8; 3]) -> f64 {
    (0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b)) / 255.0
}

fn entropy(image: &RgbImage) -> f64 {
    let mut counts = [0_u32; CELLS * CELLS * CELLS];
    for pixel in image.pixels() {
        let [r, g, b] = pixel.0.map(|channel| usize::from(channel) * CELLS / 256);
        counts[(r * CELLS + g) * CELLS + b] += 1;
    }
    let total = f64::from(image.width()) * f64::from(image.height());
    let shares = counts.iter().filter(|&&count| count > 0).map(|&count| f64::from(count) / total);
    shares.fold(0.0, |sum, share| sum - share * share.log2())
}

/// Of the steps into lines `k`, `k + period`, …, how much larger their mean is than that of all lines, as a share of it, for the strongest
/// `k`. 0 of a picture that is too small for two periods, or flat.
fn seam(steps: &[f64], period: usize) -> f64 {
    if steps.len() < 2 * period {
        return 0.0;
    }
    // Nothing leads into the first line.
    let mean = steps.iter().sum::<f64>() / (steps.len() - 1) as f64;
    let of = |k: usize| {
        let lines = steps.iter().skip(k).step_by(period).skip(usize::from(k == 0));
        let (sum, count) = lines.fold((0.0, 0), |(sum, count), step| (sum + step, count + 1));
        sum / f64::from(count)
    };
    let strongest = (0..period).map(of).fold(0.0, f64::max);
    if mean > 0.0 { strongest / mean - 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn a_flat_picture_has_nothing_but_brightness() {
        let [brightness, edges, entropy, grid] = look(&RgbImage::from_pixel(32, 20, Rgb([51; 3])));
        assert!(near(brightness, 0.2) && edges == 0.0 && entropy == 0.0 && grid == 0.0);
        let [white, ..] = look(&RgbImage::from_pixel(1, 1, Rgb([255; 3])));
        assert!(near(white, 1.0));
    }

    #[test]
    fn edges_and_entropy_of_stripes() {
        // Black and white columns: 31 of 32 columns are entered by a step of 1, no row is; half the pixels each.
        let stripes = RgbImage::from_fn(32, 10, |x, _| Rgb([255 * (x % 2) as u8; 3]));
        let [brightness, edges, entropy, grid] = look(&stripes);
        assert!(near(brightness, 0.5) && near(edges, 31.0 / 32.0) && near(entropy, 1.0) && near(grid, 0.0), "{grid}");
        // Eight colors of one cell each, as often: 3 bits.
        let bands = RgbImage::from_fn(8, 4, |x, _| Rgb([32 * x as u8, 0, 0]));
        assert!(near(look(&bands)[2], 3.0));
    }

    #[test]
    fn a_grid_shows_and_noise_does_not() {
        // Every sixteenth column is entered and left by a step of 1, of which one phase sees half: 2 of 16 phases carry all, 8 times the mean.
        let lines = RgbImage::from_fn(65, 64, |x, _| Rgb([255 * u8::from(x % 16 == 8); 3]));
        let grid = look(&lines)[3];
        assert!((grid - 7.0).abs() < 0.1, "{grid}");
        // Fine noise from a hash of the place.
        let hash = |x: u32, y: u32| {
            (x.wrapping_mul(0x9e37_79b9) ^ y.wrapping_mul(0x85eb_ca6b)).wrapping_mul(0xc2b2_ae35) >> 24
        };
        let noise = RgbImage::from_fn(64, 64, |x, y| Rgb([hash(x, y) as u8; 3]));
        assert!(look(&noise)[3] < 0.3, "{}", look(&noise)[3]);
    }

    #[test]
    fn a_summary_is_mean_and_deviation_over_pictures() {
        let gray = |value| RgbImage::from_pixel(4, 4, Rgb([value; 3]));
        let (a, b) = (gray(0), gray(255));
        let [(mean, deviation), (edges, none), ..] = summary(&[&a, &b]);
        assert!(near(mean, 0.5) && near(deviation, 0.5) && edges == 0.0 && none == 0.0);
        assert!(summary(&[])[0].0.is_nan());
    }
}
