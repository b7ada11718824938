//! How people write durations, sizes and the like on a command line or in a file.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};

/// A bare number is seconds (`30`, `1.5`), else as `300ms`, `30s`, `1h 30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let read = match text.trim().parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => humantime::parse_duration(text.trim()).ok(),
    };
    read.ok_or_else(|| "write 30s, 300ms, 1h, or a number of seconds".to_owned())
}

/// A duration in a flag or a TOML file, where it may be a number as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        duration(text).map(Span)
    }
}

/// A number of bytes: `67108864`, `64KiB`, `64MiB`, `1GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        let unit: u64 = match unit.trim() {
            "" | "B" => 1,
            "KiB" | "K" => 1 << 10,
            "MiB" | "M" => 1 << 20,
            "GiB" | "G" => 1 << 30,
            _ => return Err("write a number of bytes, or 64KiB, 64MiB, 1GiB".to_owned()),
        };
        let count: u64 = digits.parse().map_err(|_| "write a number of bytes, or 64MiB".to_owned())?;
        count.checked_mul(unit).map(Bytes).ok_or_else(|| "too large".to_owned())
    }
}

/// Reads a flag's value from TOML, where whoever writes `30` instead of `"30"` means the same.
struct AsText<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = String>> Visitor<'_> for AsText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a number")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

impl<'de> de::Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Span, D::Error> {
        from.deserialize_any(AsText(std::marker::PhantomData))
    }
}

impl<'de> de::Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        from.deserialize_any(AsText(std::marker::PhantomData))
    }
}

/// `key=value`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write key=value".to_owned()),
    }
}

/// `n/c`: so many permits of so many.
pub fn permits(text: &str) -> Result<(u32, u32), String> {
    let numbers = text.split_once('/').and_then(|(n, c)| Some((n.parse().ok()?, c.parse().ok()?)));
    match numbers {
        Some((permits, capacity)) if 0 < permits && permits <= capacity => Ok((permits, capacity)),
        _ => Err("write PERMITS/CAPACITY, such as 2/10".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_number_is_seconds() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        for wrong in ["", "-1", "soon", "30 parsecs", "inf", "NaN", "1e300"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!("0".parse(), Ok(Bytes(0)));
        assert_eq!("64MiB".parse(), Ok(Bytes(64 << 20)));
        assert_eq!("2 GiB".parse(), Ok(Bytes(2 << 30)));
        for wrong in ["", "MiB", "-1", "64MB", "99999999999999999999", "17179869184GiB"] {
            assert!(wrong.parse::<Bytes>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn pairs_and_permits() {
        assert_eq!(key_value("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(key_value("a").is_err() && key_value("=b").is_err());
        assert_eq!(permits("2/10"), Ok((2, 10)));
        assert!(permits("0/10").is_err() && permits("3/2").is_err() && permits("2").is_err());
    }
}
