//! Sizes as people write them, and as people read them.

/// Units of 1000 and of 1024.
const UNITS: [(&str, u64); 8] = [
    ("kb", 1000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("b", 1),
];

/// A number of bytes, with a unit or without: `500MB`, `2GiB`, `1048576`.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_lowercase();
    let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    number
        .parse::<u64>()
        .ok()
        .zip(factor.or(unit.is_empty().then_some(1)))
        .and_then(|(number, factor)| number.checked_mul(factor))
        .ok_or_else(|| format!("`{}` is no size; write for example `500MB` or `2GiB`", text.escape_debug()))
}

/// For whoever reads a table.
pub(super) fn text(bytes: u64) -> String {
    match [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
        .into_iter()
        .find(|(_, size)| bytes >= *size)
    {
        Some((unit, size)) => format!("{:.1} {unit}", bytes as f64 / size as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_with_and_without_unit() {
        for (text, bytes) in [("0", 0), ("12", 12), ("500MB", 500_000_000), ("2GiB", 2 << 30), ("3 kb", 3000)]
        {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "MB", "1.5GB", "-1", "9999999999TiB", "5 apples"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(
            (text(12), text(1536), text(3 << 30)),
            ("12 B".into(), "1.5 KiB".into(), "3.0 GiB".into())
        );
    }
}
