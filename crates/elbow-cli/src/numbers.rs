//! Numbers as a reader wants them.

/// A number of parameters in a unit that suits it.
pub fn count(parameters: usize) -> String {
    let n = parameters as f64;
    match parameters {
        0..1_000_000 => format!("{:.0} thousand", n / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} million", n / 1e6),
        _ => format!("{:.2} billion", n / 1e9),
    }
}

/// Seconds, beyond a minute as minutes and seconds, beyond an hour as hours and minutes.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

/// A number of a record in at most a few places.
pub fn short(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 { format!("{value:.1e}") } else { format!("{value:.3}") }
}

/// The value in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len().is_multiple_of(2) { f64::midpoint(values[half - 1], values[half]) } else { values[half] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
    }

    #[test]
    fn units_suit_their_numbers() {
        assert_eq!([3e5, 2.5e6, 8e9].map(|n| count(n as usize)), ["300 thousand", "2.5 million", "8.00 billion"]);
        assert_eq!([59.4, 61.0, 3599.6, 3e5].map(duration), ["59 s", "1 min 01 s", "1 h 00 min", "83 h 20 min"]);
    }
}
