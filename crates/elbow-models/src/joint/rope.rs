//! Rotary position embeddings (arXiv 2104.09864) over three coordinates.

use burn::tensor::{Device, Tensor, TensorData};

/// Base of the wavelengths.
const THETA: f64 = 10_000.0;

/// Rotations of queries and keys by the positions of their tokens.
///
/// Pair i of the d channels that belong to a coordinate p turns by p · θ^(−2i/d), θ = 10000:
/// (a, b) → (a cos − b sin, b cos + a sin).
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    /// `[1, L, 1, d/2, 1]`
    cos: Tensor<5>,
    sin: Tensor<5>,
}

impl Rope {
    /// For an image of `rows × columns` tokens, at (0, row, column), followed by `text` tokens, which all are at (0, 0, 0).
    pub(crate) fn new(axes: &[usize], [rows, columns]: [usize; 2], text: usize, device: &Device) -> Self {
        let image = (0..rows).flat_map(|row| (0..columns).map(move |column| [0, row, column]));
        let ids = image.chain(std::iter::repeat_n([0; 3], text));
        let angles: Vec<f64> = ids
            .flat_map(|id| axes.iter().zip(id))
            .flat_map(|(&d, p)| (0..d / 2).map(move |i| p as f64 * THETA.powf(-((2 * i) as f64) / d as f64)))
            .collect();
        let shape = [1, rows * columns + text, 1, axes.iter().sum::<usize>() / 2, 1];
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|&a| f(a) as f32).collect();
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        Self { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// `[N, L, H] → [N, L, H]`, the same for each head.
    pub(crate) fn rotate(&self, x: Tensor<3>, heads: usize) -> Tensor<3> {
        let [n, l, h] = x.dims();
        let pairs: Tensor<5> = x.reshape([n, l, heads, h / heads / 2, 2]);
        let (a, b) = (pairs.clone().narrow(4, 0, 1), pairs.narrow(4, 1, 1));
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        let turned = a.clone() * cos.clone() - b.clone() * sin.clone();
        Tensor::cat(vec![turned, b * cos + a * sin], 4).reshape([n, l, h])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One pair for each coordinate, all of wavelength 2π: the token at (0, row, column) turns by 0, row and column.
    #[test]
    fn pairs_turn_by_the_coordinates_of_their_token() {
        let device = Device::flex();
        let rope = Rope::new(&[2, 2, 2], [2, 3], 1, &device);
        let unit = [1.0f32, 0.0].repeat(3 * 7);
        let x = Tensor::<3>::from_data(TensorData::new(unit, [1, 7, 6]), &device);
        let turned = rope.rotate(x, 1).into_data().try_to_vec::<f32>().expect("f32");
        let ids = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2], [0, 0, 0]];
        for (got, id) in turned.chunks(6).zip(ids) {
            for (pair, p) in got.chunks(2).zip(id) {
                let (sin, cos) = f64::from(p).sin_cos();
                assert!((f64::from(pair[0]) - cos).abs() < 1e-7 && (f64::from(pair[1]) - sin).abs() < 1e-7, "{id:?}");
            }
        }
    }
}
