//! How much of the variance two factors explain, alone and together: two-way analysis of variance of a balanced grid (Fisher 1925).
//!
//! Only a balanced grid splits its variance into shares that add up, whichever factor comes first: others are refused.

use super::{Estimate, bootstrap, mean};
use elbow::noise::Key;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, FisherSnedecor};

/// What one factor, or both together, explain.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Sum of squares.
    pub squares: f64,
    /// Degrees of freedom.
    pub freedom: f64,
    /// Its mean square over the residual one.
    pub f: f64,
    /// Of the test that it explains nothing.
    pub p: f64,
    /// η² = its squares over all squares.
    pub eta: f64,
    /// ω², the same with what chance alone explains taken off.
    pub omega: f64,
}

/// The parts of the variance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TwoWay {
    /// The first factor.
    pub first: Share,
    /// The second.
    pub second: Share,
    /// What both together add.
    pub interaction: Share,
    /// Squares within cells.
    pub residual: f64,
    /// Their degrees of freedom.
    pub residual_freedom: f64,
    /// All squares.
    pub total: f64,
}

/// Why a grid has no shares of variance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnovaError {
    /// A factor has a single level.
    #[error("both factors need two levels at least; there are {0} and {1}")]
    Levels(usize, usize),
    /// Cells of different sizes.
    #[error("the grid is not balanced: a cell has {least} values, another {most}")]
    Unbalanced {
        /// The smallest cell.
        least: usize,
        /// The largest.
        most: usize,
    },
    /// Nothing to tell chance by.
    #[error("every cell needs two values at least, and some cell values that differ")]
    NoResidual,
}

/// Splits the variance of `grid[i][j]`, the values at level i of the first factor and j of the second.
pub fn two_way(grid: &[Vec<Vec<f64>>]) -> Result<TwoWay, AnovaError> {
    let (a, b) = (grid.len(), grid.first().map_or(0, Vec::len));
    if a < 2 || b < 2 || grid.iter().any(|row| row.len() != b) {
        return Err(AnovaError::Levels(a, b));
    }
    let sizes: Vec<usize> = grid.iter().flatten().map(Vec::len).collect();
    let (least, most) = (*sizes.iter().min().unwrap_or(&0), *sizes.iter().max().unwrap_or(&0));
    if least != most {
        return Err(AnovaError::Unbalanced { least, most });
    }
    if least < 2 {
        return Err(AnovaError::NoResidual);
    }
    let (rows, columns, n) = (a as f64, b as f64, least as f64);
    let cells: Vec<Vec<f64>> = grid.iter().map(|row| row.iter().map(|cell| mean(cell)).collect()).collect();
    let of_row: Vec<f64> = cells.iter().map(|row| mean(row)).collect();
    let of_column: Vec<f64> = (0..b).map(|j| mean(&cells.iter().map(|row| row[j]).collect::<Vec<_>>())).collect();
    let all = mean(&of_row);
    let squares = |values: &[f64]| values.iter().map(|value| (value - all).powi(2)).sum::<f64>();
    let (mut together, mut residual) = (0.0, 0.0);
    for (i, row) in grid.iter().enumerate() {
        for (j, cell) in row.iter().enumerate() {
            together += n * (cells[i][j] - of_row[i] - of_column[j] + all).powi(2);
            residual += cell.iter().map(|value| (value - cells[i][j]).powi(2)).sum::<f64>();
        }
    }
    let (first, second) = (columns * n * squares(&of_row), rows * n * squares(&of_column));
    let residual_freedom = rows * columns * (n - 1.0);
    let chance = residual / residual_freedom;
    if chance <= 0.0 {
        return Err(AnovaError::NoResidual);
    }
    let total = first + second + together + residual;
    let share = |squares: f64, freedom: f64| {
        let f = squares / freedom / chance;
        let distribution = FisherSnedecor::new(freedom, residual_freedom).expect("invariant: positive degrees");
        let omega = (squares - freedom * chance) / (total + chance);
        Share { squares, freedom, f, p: distribution.sf(f), eta: squares / total, omega }
    };
    Ok(TwoWay {
        first: share(first, rows - 1.0),
        second: share(second, columns - 1.0),
        interaction: share(together, (rows - 1.0) * (columns - 1.0)),
        residual,
        residual_freedom,
        total,
    })
}

/// η² of the first factor, the second and their interaction with percentile intervals: values are drawn again within each cell.
pub fn eta_intervals(
    grid: &[Vec<Vec<f64>>],
    key: Key,
    resamples: usize,
    level: f64,
) -> Result<[Estimate; 3], AnovaError> {
    let etas = |parts: &TwoWay| [parts.first.eta, parts.second.eta, parts.interaction.eta];
    let seen = etas(&two_way(grid)?);
    let mut replicates: [Vec<f64>; 3] = Default::default();
    let width = grid[0].len();
    for r in 0..resamples {
        let again = |i: usize, j: usize, cell: &Vec<f64>| {
            let uniforms = key.sample(r as u64).draw((i * width + j) as u32).uniforms();
            uniforms.take(cell.len()).map(|u| cell[(u * cell.len() as f64) as usize]).collect()
        };
        let drawn: Vec<Vec<Vec<f64>>> =
            (0..grid.len()).map(|i| (0..width).map(|j| again(i, j, &grid[i][j])).collect()).collect();
        // A resample may repeat one value in every cell: it tells nothing of chance.
        let Ok(parts) = two_way(&drawn) else { continue };
        replicates.iter_mut().zip(etas(&parts)).for_each(|(list, eta)| list.push(eta));
    }
    let mut intervals = seen.map(|value| Estimate { value, low: f64::NAN, high: f64::NAN });
    for (interval, values) in intervals.iter_mut().zip(&mut replicates) {
        [interval.low, interval.high] = bootstrap::quantiles(values, [0.5 - level / 2.0, 0.5 + level / 2.0]);
    }
    Ok(intervals)
}
