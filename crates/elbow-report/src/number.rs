//! Numbers as a reader wants them.

/// A score: three decimals, more digits if it is small.
pub fn score(value: f64) -> String {
    let size = value.abs();
    if size > 0.0 && size < 1e-3 {
        return format!("{value:.1e}").replace('-', "−");
    }
    let decimals = match size {
        0.0..10.0 => 3,
        10.0..1000.0 => 1,
        _ => 0,
    };
    minus(format!("{value:.decimals$}"))
}

/// A whole number with thin spaces between thousands.
pub fn count(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    if value < 0.0 && digits != "0" { format!("−{text}") } else { text }
}

/// Seconds in two units that suit them.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 0.05 => "under 0.1 s".into(),
        _ if seconds < 9.95 => format!("{seconds:.1} s"),
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// `count` of a thing, with its plural.
pub fn plural(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{} {one}s", self::count(count as f64)) }
}

/// With a capital at its beginning.
pub fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().collect::<String>() + characters.as_str()).unwrap_or_default()
}

/// With a minus sign in place of a hyphen, and none before a zero.
pub fn minus(text: String) -> String {
    match text.strip_prefix('-') {
        Some(digits) if digits.chars().all(|c| c == '0' || c == '.') => digits.to_owned(),
        Some(digits) => format!("−{digits}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_tell_them_apart() {
        assert_eq!(
            [0.0, 0.31049, -1.1442, 12.345, 12345.6, 2.5e-5].map(score),
            ["0.000", "0.310", "−1.144", "12.3", "12346", "2.5e−5"]
        );
        assert_eq!(
            [0.0, 999.0, 23040.0, 1_234_567.0].map(count),
            ["0", "999", "23\u{202f}040", "1\u{202f}234\u{202f}567"]
        );
        assert_eq!(
            [0.01, 4.21, 59.2, 451.0, 7322.0].map(duration),
            ["under 0.1 s", "4.2 s", "59 s", "7 min 31 s", "2 h 02 min"]
        );
        assert_eq!([1, 2].map(|n| plural(n, "epoch")), ["1 epoch", "2 epochs"]);
        assert_eq!(score(-0.0001).as_str(), "−1.0e−4");
    }
}
