//! What an adapter adds to a weight, row by row, and what becomes of the weight.
//!
//! | kind | ΔW | from |
//! |---|---|---|
//! | LoRA | B A | arXiv 2106.09685 |
//! | LoHa | (B₁ A₁) ∘ (B₂ A₂) | arXiv 2108.06098 |
//! | LoKr | L ⊗ R | arXiv 2309.14859 |
//! | difference | ΔW itself | |
//!
//! W' = W + s ΔW, and of a DoRA (arXiv 2402.09353) W' = m (W + s ΔW) / ‖W + s ΔW‖, with the norm of each row as `peft` takes
//! it, or of each input channel as LyCORIS may. Kernels of convolutions are matrices `[out, in · k · k]` here.

use std::ops::Range;

/// A matrix, row by row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) values: Vec<f32>,
}

impl Matrix {
    fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.columns..][..self.columns]
    }

    /// Some of its rows.
    fn select(&self, rows: &[Range<usize>]) -> Self {
        let values: Vec<f32> = rows.iter().cloned().flatten().flat_map(|i| self.row(i)).copied().collect();
        Self { rows: values.len() / self.columns.max(1), columns: self.columns, values }
    }

    pub(super) fn transposed(&self) -> Self {
        let value = |i| self.values[i % self.rows * self.columns + i / self.rows];
        Self { rows: self.columns, columns: self.rows, values: (0..self.values.len()).map(value).collect() }
    }
}

/// B A, B `[out, rank]`, A `[rank, in]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Product {
    pub(super) b: Matrix,
    pub(super) a: Matrix,
}

impl Product {
    /// The factors of a kernel in Tucker form: `core` `[rank, rank, k · k]` between B and A. It is B A', where A' `[rank, in ·
    /// k · k]` is the core times A.
    pub(super) fn tucker(b: Matrix, core: &Matrix, a: &Matrix) -> Self {
        let kernel = core.columns / a.rows;
        let mut values = vec![0.0; core.rows * a.columns * kernel];
        for (row, core) in values.chunks_mut(a.columns * kernel).zip(core.values.chunks(core.columns)) {
            for (n, core) in core.chunks(kernel).enumerate() {
                for (cell, factor) in row.chunks_mut(kernel).zip(a.row(n)) {
                    for (value, core) in cell.iter_mut().zip(core) {
                        *value += core * factor;
                    }
                }
            }
        }
        let a = Matrix { rows: core.rows, columns: a.columns * kernel, values };
        Self { b, a }
    }

    /// All of it.
    pub(super) fn matrix(&self) -> Matrix {
        let mut values = vec![0.0; self.b.rows * self.a.columns];
        for (i, row) in values.chunks_mut(self.a.columns.max(1)).enumerate() {
            self.add_row(i, row);
        }
        Matrix { rows: self.b.rows, columns: self.a.columns, values }
    }

    fn add_row(&self, i: usize, sum: &mut [f32]) {
        for (factor, line) in self.b.row(i).iter().zip(self.a.values.chunks(self.a.columns)) {
            for (s, v) in sum.iter_mut().zip(line) {
                *s += factor * v;
            }
        }
    }
}

/// ΔW.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Delta {
    /// LoRA.
    Product(Product),
    /// LoHa.
    Hadamard(Product, Product),
    /// LoKr, and which rows of it.
    Kronecker { left: Matrix, right: Matrix, rows: Vec<usize> },
    /// The difference itself.
    Whole(Matrix),
}

impl Delta {
    /// Rows and columns.
    pub(super) fn shape(&self) -> [usize; 2] {
        match self {
            Self::Product(product) | Self::Hadamard(product, _) => [product.b.rows, product.a.columns],
            Self::Kronecker { left, right, rows } => [rows.len(), left.columns * right.columns],
            Self::Whole(matrix) => [matrix.rows, matrix.columns],
        }
    }

    /// The rank, where there is one.
    pub(super) fn rank(&self) -> Option<usize> {
        match self {
            Self::Product(product) | Self::Hadamard(product, _) => Some(product.a.rows),
            Self::Kronecker { .. } | Self::Whole(_) => None,
        }
    }

    /// Its name in the field.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Product(_) => "LoRA",
            Self::Hadamard(..) => "LoHa",
            Self::Kronecker { .. } => "LoKr",
            Self::Whole(_) => "differences",
        }
    }

    /// Some of its rows.
    pub(super) fn select(&self, rows: &[Range<usize>]) -> Self {
        let some = |p: &Product| Product { b: p.b.select(rows), a: p.a.clone() };
        match self {
            Self::Product(product) => Self::Product(some(product)),
            Self::Hadamard(one, other) => Self::Hadamard(some(one), some(other)),
            Self::Whole(matrix) => Self::Whole(matrix.select(rows)),
            Self::Kronecker { left, right, rows: all } => Self::Kronecker {
                left: left.clone(),
                right: right.clone(),
                rows: rows.iter().cloned().flatten().map(|i| all[i]).collect(),
            },
        }
    }

    /// Writes row `i` to `row`; `room` is as long.
    fn write_row(&self, i: usize, row: &mut [f32], room: &mut [f32]) {
        row.fill(0.0);
        match self {
            Self::Product(product) => product.add_row(i, row),
            Self::Whole(matrix) => row.copy_from_slice(matrix.row(i)),
            Self::Hadamard(one, other) => {
                room.fill(0.0);
                one.add_row(i, row);
                other.add_row(i, room);
                row.iter_mut().zip(room).for_each(|(a, b)| *a *= *b);
            }
            Self::Kronecker { left, right, rows } => {
                let (outer, inner) = (rows[i] / right.rows, rows[i] % right.rows);
                for (block, factor) in row.chunks_mut(right.columns).zip(left.row(outer)) {
                    block.iter_mut().zip(right.row(inner)).for_each(|(v, r)| *v = factor * r);
                }
            }
        }
    }
}

/// The lengths that a DoRA gives to the rows or the input channels of a weight.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Magnitude {
    /// One a row.
    Rows(Vec<f32>),
    /// One an input channel.
    Channels(Vec<f32>),
}

/// What an adapter does to one tensor: W' of the top of this file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Update {
    pub(super) delta: Delta,
    /// s
    pub(super) scale: f64,
    pub(super) magnitude: Option<Magnitude>,
}

impl Update {
    /// The update of some of the rows.
    pub(super) fn select(&self, rows: &[Range<usize>]) -> Self {
        let magnitude = self.magnitude.as_ref().map(|magnitude| match magnitude {
            Magnitude::Rows(all) => Magnitude::Rows(rows.iter().cloned().flatten().map(|i| all[i]).collect()),
            Magnitude::Channels(all) => Magnitude::Channels(all.clone()),
        });
        Self { delta: self.delta.select(rows), scale: self.scale, magnitude }
    }

    /// Its name in the field.
    pub(super) fn kind(&self) -> &'static str {
        if self.magnitude.is_some() { "DoRA" } else { self.delta.kind() }
    }

    /// W becomes W'.
    pub(super) fn apply(&self, weight: &mut [f32]) {
        let [_, columns] = self.delta.shape();
        let (mut row, mut room) = (vec![0.0; columns], vec![0.0; columns]);
        for (i, values) in weight.chunks_mut(columns.max(1)).enumerate() {
            self.delta.write_row(i, &mut row, &mut room);
            // Each row's sum is formed before it is scaled and added.
            values.iter_mut().zip(&row).for_each(|(w, s)| *w += self.scale as f32 * s);
        }
        match &self.magnitude {
            None => {}
            Some(Magnitude::Rows(lengths)) => {
                for (values, length) in weight.chunks_mut(columns.max(1)).zip(lengths) {
                    let square: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
                    scale(values.iter_mut(), *length, square);
                }
            }
            Some(Magnitude::Channels(lengths)) => {
                let kernel = columns / lengths.len();
                let mut squares = vec![0.0; lengths.len()];
                for (i, value) in weight.iter().enumerate() {
                    squares[i % columns / kernel] += f64::from(*value).powi(2);
                }
                for values in weight.chunks_mut(columns) {
                    for ((values, length), square) in values.chunks_mut(kernel).zip(lengths).zip(&squares) {
                        scale(values.iter_mut(), *length, *square);
                    }
                }
            }
        }
    }
}

/// Values of length √`square` get the given length; zeros stay zeros.
fn scale<'a>(values: impl Iterator<Item = &'a mut f32>, length: f32, square: f64) {
    let factor = if square == 0.0 { 0.0 } else { f64::from(length) / square.sqrt() };
    values.for_each(|value| *value = (f64::from(*value) * factor) as f32);
}
