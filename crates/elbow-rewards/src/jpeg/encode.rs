//! Baseline JPEG (ITU-T T.81) with 4:2:0 chroma: the same bytes as Pillow's default encoder, libjpeg-turbo.
//!
//! The standard leaves much to the encoder. Rounded as libjpeg does it are the conversion to YCbCr (16 fractional bits), the mean of
//! four chroma samples (ties up in every second column), the cosine transform (13 fractional bits: Loeffler, Ligtenberg and
//! Moschytz, 1989, as in `jfdctint.c`) and the division by the quantization tables. At edges that are no multiple of 16 it repeats
//! the last column of the picture and the last row of each component; a block of luma that lies wholly beyond the edge has the mean
//! of the block before it and nothing else.

use elbow::RgbImage;
use std::array::from_fn;

/// The largest width or height, in pixels, as libjpeg has it.
pub const MAX_SIDE: u32 = 65_500;

/// A picture that JPEG cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a JPEG is 1 to {MAX_SIDE} pixels wide and high; this picture is {width} × {height}")]
pub struct SizeError {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
}

/// The file. Quality is 1 to 100; beyond that the nearest counts. Pillow's own default is 75.
pub fn encode(image: &RgbImage, quality: u8) -> Result<Vec<u8>, SizeError> {
    let (width, height) = image.dimensions();
    if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
        return Err(SizeError { width, height });
    }
    let steps = [LUMA, CHROMA].map(|table| scaled(table, quality));
    let mut bits = Bits { out: vec![0xff, 0xd8], pending: 0, count: 0 };
    header(&steps, width as u16, height as u16, &mut bits.out);
    scan(&Planes::new(image), &steps.map(Divisors::new), &mut bits);
    let mut out = bits.finish();
    out.extend([0xff, 0xd9]);
    Ok(out)
}

/// Everything between the start of the file and the scan's bits, in libjpeg's order.
fn header(steps: &[[u8; 64]; 2], width: u16, height: u16, out: &mut Vec<u8>) {
    let mut segment = |marker: u8, data: &[u8]| {
        out.extend([0xff, marker]);
        out.extend((data.len() as u16 + 2).to_be_bytes());
        out.extend(data);
    };
    // Version 1.1, pixels that are square, no thumbnail.
    segment(0xe0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0");
    for (number, steps) in steps.iter().enumerate() {
        let in_order = ZIGZAG.map(|place| steps[usize::from(place)]);
        segment(0xdb, &[&[number as u8], in_order.as_slice()].concat());
    }
    let ([h1, h0], [w1, w0]) = (height.to_be_bytes(), width.to_be_bytes());
    // 8 bits, three components: luma 2 × 2 with table 0, chroma 1 × 1 with table 1.
    segment(0xc0, &[8, h1, h0, w1, w0, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1]);
    for (number, table) in [(0x00, &DC_LUMA), (0x10, &AC_LUMA), (0x01, &DC_CHROMA), (0x11, &AC_CHROMA)] {
        segment(0xc4, &[&[number], table.lengths.as_slice(), table.symbols].concat());
    }
    segment(0xda, &[3, 1, 0x00, 2, 0x11, 3, 0x11, 0, 63, 0]);
}

/// A table at another quality than 50, by libjpeg's rule.
fn scaled(table: [u8; 64], quality: u8) -> [u8; 64] {
    let quality = u32::from(quality.clamp(1, 100));
    let percent = if quality < 50 { 5000 / quality } else { 200 - 2 * quality };
    table.map(|step| ((u32::from(step) * percent + 50) / 100).clamp(1, 255) as u8)
}

/// Samples of the three components, up to the next multiple of 16 pixels.
struct Planes {
    /// Blocks of luma that hold pixels, in each direction.
    blocks: [usize; 2],
    /// Units of 2 × 2 blocks of luma, in each direction.
    units: [usize; 2],
    /// Rows of 16 samples for each unit.
    luma: Vec<u8>,
    /// Cb and Cr, rows of 8 samples for each unit.
    chroma: [Vec<u8>; 2],
}

impl Planes {
    fn new(image: &RgbImage) -> Self {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let units = [width.div_ceil(16), height.div_ceil(16)];
        let stride = 16 * units[0];
        let mut luma = Vec::with_capacity(stride * 16 * units[1]);
        let mut chroma = [0, 1].map(|_| Vec::with_capacity(stride / 2 * 8 * units[1]));
        // Cb and Cr of two rows, before their means are taken.
        let mut full = [0, 1].map(|_| [0, 1].map(|_| Vec::with_capacity(stride)));
        let rows: Vec<&[u8]> = image.as_raw().chunks_exact(3 * width).collect();
        for y in (0..height).step_by(2) {
            for (k, row) in [rows[y], rows[(y + 1).min(height - 1)]].into_iter().enumerate() {
                let [cb, cr] = &mut full;
                let (cb, cr, end) = (&mut cb[k], &mut cr[k], luma.len() + stride);
                cb.clear();
                cr.clear();
                for &[r, g, b] in row.as_chunks::<3>().0 {
                    let [r, g, b] = [r, g, b].map(i32::from);
                    // Rounded to nearest, luma's ties up, chroma's down.
                    luma.push(((19_595 * r + 38_470 * g + 7_471 * b + 0x8000) >> 16) as u8);
                    cb.push(((-11_059 * r - 21_709 * g + 32_768 * b + 0x80_7fff) >> 16) as u8);
                    cr.push(((32_768 * r - 27_439 * g - 5_329 * b + 0x80_7fff) >> 16) as u8);
                }
                luma.resize(end, luma[luma.len() - 1]);
                cb.resize(stride, cb[width - 1]);
                cr.resize(stride, cr[width - 1]);
            }
            for (plane, [upper, lower]) in chroma.iter_mut().zip(&full) {
                let pairs = upper.as_chunks::<2>().0.iter().zip(lower.as_chunks::<2>().0);
                plane.extend(pairs.enumerate().map(|(x, (upper, lower))| {
                    let sum: u16 = upper.iter().chain(lower).map(|&sample| u16::from(sample)).sum();
                    ((sum + 1 + (x as u16 & 1)) >> 2) as u8
                }));
            }
        }
        repeat_last_row(&mut luma, stride, 16 * units[1]);
        for plane in &mut chroma {
            repeat_last_row(plane, stride / 2, 8 * units[1]);
        }
        Self { blocks: [width.div_ceil(8), height.div_ceil(8)], units, luma, chroma }
    }
}

fn repeat_last_row(plane: &mut Vec<u8>, stride: usize, rows: usize) {
    while plane.len() < stride * rows {
        plane.extend_from_within(plane.len() - stride..);
    }
}

/// Codes all units, row by row.
fn scan(planes: &Planes, divisors: &[Divisors; 2], bits: &mut Bits) {
    let stride = 16 * planes.units[0];
    // The means of the last blocks of Y, Cb and Cr: only differences are coded.
    let mut before = [0; 3];
    for v in 0..planes.units[1] {
        for u in 0..planes.units[0] {
            for (x, y) in [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(x, y)| (2 * u + x, 2 * v + y)) {
                let [width, height] = planes.blocks;
                if x < width && y < height {
                    let block = quantized(&planes.luma[8 * (y * stride + x)..], stride, &divisors[0]);
                    code(&block, &mut before[0], &DC_LUMA, &AC_LUMA, bits);
                } else {
                    bits.number(&DC_LUMA, 0, 0);
                    bits.symbol(&AC_LUMA, END_OF_BLOCK);
                }
            }
            for (plane, before) in planes.chroma.iter().zip(&mut before[1..]) {
                let block = quantized(&plane[8 * (v * stride / 2 + u)..], stride / 2, &divisors[1]);
                code(&block, before, &DC_CHROMA, &AC_CHROMA, bits);
            }
        }
    }
}

/// Quantized coefficients in zigzag order.
struct Block {
    coefficients: [i32; 64],
    /// A bit for each that is not zero.
    nonzero: u64,
}

/// What the transform's results, which are eight times too large, are divided by.
struct Divisors {
    /// Half of each, in zigzag order.
    half: [u32; 64],
    /// ⌊2³² / divisor⌋ + 1: for dividends below 2¹⁶ and divisors below 2¹² the product's upper half is the exact quotient.
    inverse: [u64; 64],
}

impl Divisors {
    fn new(steps: [u8; 64]) -> Self {
        let divisors = ZIGZAG.map(|place| 8 * u32::from(steps[usize::from(place)]));
        Self { half: divisors.map(|d| d / 2), inverse: divisors.map(|d| (1 << 32) / u64::from(d) + 1) }
    }
}

/// The block whose first sample comes first.
fn quantized(samples: &[u8], stride: usize, divisors: &Divisors) -> Block {
    // Indices are [x][y], so that the first pass goes along rows of the picture.
    let columns = from_fn(|x| from_fn(|y| i32::from(samples[y * stride + x]) - 128));
    let transformed = cosines::<11>(&columns);
    let transformed = cosines::<15>(&from_fn(|v| from_fn(|u| transformed[u][v])));
    let (mut coefficients, mut nonzero) = ([0; 64], 0);
    for (k, place) in ZIGZAG.into_iter().enumerate() {
        let value = transformed[usize::from(place / 8)][usize::from(place % 8)];
        let magnitude = ((u64::from(value.unsigned_abs() + divisors.half[k]) * divisors.inverse[k]) >> 32) as i32;
        coefficients[k] = if value < 0 { -magnitude } else { magnitude };
        nonzero |= u64::from(magnitude != 0) << k;
    }
    Block { coefficients, nonzero }
}

/// Rows 0, 2, 4 and 6 of the transform: the factors of x₀ + x₇, x₁ + x₆, x₂ + x₅ and x₃ + x₄, with 13 fractional bits.
const EVEN: [[i32; 4]; 4] = [
    [8192, 8192, 8192, 8192],
    [10_703, 4433, -4433, -10_703],
    [8192, -8192, -8192, 8192],
    [4433, -10_704, 10_704, -4433],
];

/// Rows 1, 3, 5 and 7: the factors of x₀ − x₇, x₁ − x₆, x₂ − x₅ and x₃ − x₄. They are √2 cos(kπ/16) up to the last digit, which is
/// that of sums of libjpeg's rounded factors.
const ODD: [[i32; 4]; 4] = [
    [11_363, 9633, 6437, 2260],
    [9633, -2259, -11_362, -6436],
    [6437, -11_362, 2261, 9633],
    [2260, -6436, 9633, -11_363],
];

/// The cosine transform along the first index, without its last `SHIFT` bits.
fn cosines<const SHIFT: u32>(x: &[[i32; 8]; 8]) -> [[i32; 8]; 8] {
    let mut out = [[0; 8]; 8];
    for c in 0..8 {
        let sums: [i32; 4] = from_fn(|k| x[k][c] + x[7 - k][c]);
        let differences: [i32; 4] = from_fn(|k| x[k][c] - x[7 - k][c]);
        for k in 0..4 {
            let dot = |row: &[i32; 4], x: &[i32; 4]| row[0] * x[0] + row[1] * x[1] + row[2] * x[2] + row[3] * x[3];
            let round = |value: i32| (value + (1 << (SHIFT - 1))) >> SHIFT;
            out[2 * k][c] = round(dot(&EVEN[k], &sums));
            out[2 * k + 1][c] = round(dot(&ODD[k], &differences));
        }
    }
    out
}

/// Writes a block; `before` is the mean of the one before it.
fn code(block: &Block, before: &mut i32, dc: &Huffman, ac: &Huffman, bits: &mut Bits) {
    bits.number(dc, 0, block.coefficients[0] - *before);
    *before = block.coefficients[0];
    let (mut rest, mut last) = (block.nonzero & !1, 0);
    while rest != 0 {
        let k = rest.trailing_zeros();
        let zeros = k - last - 1;
        for _ in 0..zeros / 16 {
            bits.symbol(ac, SIXTEEN_ZEROS);
        }
        bits.number(ac, zeros % 16, block.coefficients[k as usize]);
        last = k;
        rest &= rest - 1;
    }
    if last < 63 {
        bits.symbol(ac, END_OF_BLOCK);
    }
}

const SIXTEEN_ZEROS: u8 = 0xf0;
const END_OF_BLOCK: u8 = 0;

/// Bits on their way into bytes.
struct Bits {
    out: Vec<u8>,
    /// Those that fill no four bytes yet, in the lowest places.
    pending: u64,
    /// How many are pending, at most 31 between calls.
    count: u32,
}

impl Bits {
    fn put(&mut self, value: u32, count: u32) {
        self.pending = self.pending << count | u64::from(value);
        self.count += count;
        if self.count >= 32 {
            self.count -= 32;
            let word = ((self.pending >> self.count) as u32).to_be_bytes();
            if word.contains(&0xff) {
                for byte in word {
                    self.byte(byte);
                }
            } else {
                self.out.extend(word);
            }
        }
    }

    /// A byte of all ones would start a marker: a zero says that it does not.
    fn byte(&mut self, byte: u8) {
        self.out.push(byte);
        if byte == 0xff {
            self.out.push(0);
        }
    }

    fn symbol(&mut self, table: &Huffman, symbol: u8) {
        self.put(table.codes[usize::from(symbol)], table.counts[usize::from(symbol)]);
    }

    /// The symbol of a number's length, with the zeros before it, and the number itself: if negative, less one.
    fn number(&mut self, table: &Huffman, zeros: u32, number: i32) {
        let length = 32 - number.unsigned_abs().leading_zeros();
        let symbol = (zeros << 4 | length) as usize;
        let digits = (number + (number >> 31)) as u32 & ((1 << length) - 1);
        self.put(table.codes[symbol] << length | digits, table.counts[symbol] + length);
    }

    /// Fills up the last byte with ones.
    fn finish(mut self) -> Vec<u8> {
        let missing = (8 - self.count % 8) % 8;
        self.put((1 << missing) - 1, missing);
        for k in (0..self.count / 8).rev() {
            self.byte((self.pending >> (8 * k)) as u8);
        }
        self.out
    }
}

/// A Huffman code.
struct Huffman {
    /// How many symbols have codes of 1, 2, … 16 bits.
    lengths: [u8; 16],
    /// The symbols, by their codes.
    symbols: &'static [u8],
    /// The code of each symbol.
    codes: [u32; 256],
    /// Bits of each code.
    counts: [u32; 256],
}

impl Huffman {
    /// Codes of one length follow each other; the first of the next length is the next with a zero behind it (T.81, annex C).
    const fn new(lengths: [u8; 16], symbols: &'static [u8]) -> Self {
        let (mut codes, mut counts) = ([0; 256], [0; 256]);
        let (mut code, mut next, mut length) = (0, 0, 0);
        while length < 16 {
            let end = next + lengths[length] as usize;
            while next < end {
                codes[symbols[next] as usize] = code;
                counts[symbols[next] as usize] = length as u32 + 1;
                code += 1;
                next += 1;
            }
            code <<= 1;
            length += 1;
        }
        Self { lengths, symbols, codes, counts }
    }
}

/// Places of coefficients, row by row, in the order in which they are coded (T.81, figure A.6).
#[rustfmt::skip]
const ZIGZAG: [u8; 64] = [
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// T.81, table K.1, row by row: steps of luma at quality 50.
#[rustfmt::skip]
const LUMA: [u8; 64] = [
     16,  11,  10,  16,  24,  40,  51,  61,  12,  12,  14,  19,  26,  58,  60,  55,
     14,  13,  16,  24,  40,  57,  69,  56,  14,  17,  22,  29,  51,  87,  80,  62,
     18,  22,  37,  56,  68, 109, 103,  77,  24,  35,  55,  64,  81, 104, 113,  92,
     49,  64,  78,  87, 103, 121, 120, 101,  72,  92,  95,  98, 112, 100, 103,  99,
];

/// T.81, table K.2: steps of chroma at quality 50.
#[rustfmt::skip]
const CHROMA: [u8; 64] = [
     17,  18,  24,  47,  99,  99,  99,  99,  18,  21,  26,  66,  99,  99,  99,  99,
     24,  26,  56,  99,  99,  99,  99,  99,  47,  66,  99,  99,  99,  99,  99,  99,
     99,  99,  99,  99,  99,  99,  99,  99,  99,  99,  99,  99,  99,  99,  99,  99,
     99,  99,  99,  99,  99,  99,  99,  99,  99,  99,  99,  99,  99,  99,  99,  99,
];

/// T.81, table K.3.
#[rustfmt::skip]
static DC_LUMA: Huffman = Huffman::new([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], &[
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b,
]);

/// T.81, table K.5.
#[rustfmt::skip]
static AC_LUMA: Huffman = Huffman::new([0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125], &[
    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71,
    0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72,
    0x82, 0x09, 0x0a, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x34, 0x35, 0x36, 0x37,
    0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59,
    0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x83,
    0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3,
    0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3,
    0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe1, 0xe2,
    0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
]);

/// T.81, table K.4.
#[rustfmt::skip]
static DC_CHROMA: Huffman = Huffman::new([0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], &[
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b,
]);

/// T.81, table K.6.
#[rustfmt::skip]
static AC_CHROMA: Huffman = Huffman::new([0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119], &[
    0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22,
    0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0, 0x15, 0x62, 0x72, 0xd1,
    0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x35, 0x36,
    0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58,
    0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a,
    0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a,
    0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba,
    0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda,
    0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
]);
