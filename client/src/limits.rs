//! The bounds of what a caller may pass, the same as the cluster's, so that a mistake is told before it travels.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::error::Error;
use crate::info::Mode;

/// Bytes of a lock's name.
pub(crate) const NAME_BYTES_MAX: usize = 512;
/// Bytes of an owner.
pub(crate) const OWNER_BYTES_MAX: usize = 256;
/// Bytes of all metadata keys and values of one lock.
pub(crate) const METADATA_BYTES_MAX: usize = 4096;
/// Locks in one request.
pub(crate) const NAMES_MAX: usize = 64;
pub(crate) const TTL_MIN: Duration = Duration::from_secs(1);
pub(crate) const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) fn names(names: &[String]) -> Result<(), Error> {
    if names.is_empty() || names.len() > NAMES_MAX {
        return Err(invalid(format!("one request names 1 to {NAMES_MAX} locks, not {}", names.len())));
    }
    for name in names {
        text("a lock's name", name, NAME_BYTES_MAX)?;
    }
    if names.len() > 1 && names.iter().collect::<BTreeSet<_>>().len() < names.len() {
        return Err(invalid("one request names the same lock twice".into()));
    }
    Ok(())
}

pub(crate) fn owner(owner: &str) -> Result<(), Error> {
    text("an owner", owner, OWNER_BYTES_MAX)
}

pub(crate) fn ttl(ttl: Duration) -> Result<(), Error> {
    if ttl < TTL_MIN || ttl > TTL_MAX {
        return Err(invalid(format!("a TTL is 1 s to 24 h, not {ttl:?}")));
    }
    Ok(())
}

pub(crate) fn mode(mode: Mode) -> Result<(), Error> {
    match mode {
        Mode::Permits { permits, capacity } if permits == 0 || permits > capacity => Err(invalid(format!(
            "{permits} permits of {capacity}: it must be at least 1 and at most the capacity"
        ))),
        _ => Ok(()),
    }
}

pub(crate) fn metadata(metadata: &BTreeMap<String, String>) -> Result<(), Error> {
    let bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > METADATA_BYTES_MAX {
        return Err(invalid(format!("metadata has {bytes} bytes, at most {METADATA_BYTES_MAX} are allowed")));
    }
    Ok(())
}

/// What the wire can say. Rounded down, so that the client never counts a longer lease than it asked for.
pub(crate) fn whole_millis(duration: Duration) -> Duration {
    Duration::from_secs(duration.as_secs()) + Duration::from_millis(u64::from(duration.subsec_millis()))
}

fn text(what: &str, text: &str, bytes_max: usize) -> Result<(), Error> {
    if text.is_empty() || text.len() > bytes_max {
        return Err(invalid(format!("{what} has 1 to {bytes_max} bytes, not {}", text.len())));
    }
    match text.chars().find(|&c| is_forbidden(c)) {
        Some(c) => Err(invalid(format!("{what} must not contain U+{:04X}", u32::from(c)))),
        None => Ok(()),
    }
}

/// Characters that could rewrite a log line or a terminal, and those that Unicode says are none.
fn is_forbidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}')
        || matches!(c, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
        || matches!(c, '\u{FDD0}'..='\u{FDEF}')
        || u32::from(c) & 0xFFFE == 0xFFFE
}

fn invalid(message: String) -> Error {
    Error::InvalidArgument(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_in_bytes_and_free_of_control_characters() {
        for good in ["a", "../x", "'; DROP", "%s", "zahlung:ü", &"x".repeat(512)] {
            assert!(names(&[good.to_owned()]).is_ok(), "{good:?}");
        }
        let long = "x".repeat(513);
        let wide = "ü".repeat(257);
        for bad in [
            "", "a\nb", "\0", "\u{7f}", "\u{85}", "\u{2028}", "\u{202e}", "\u{fffe}", "\u{fdd0}", &long,
            &wide,
        ] {
            assert!(names(&[bad.to_owned()]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_request_names_each_lock_once_and_at_most_64() {
        let many = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
        assert!(names(&many(64)).is_ok());
        assert!(names(&many(65)).is_err());
        assert!(names(&[]).is_err());
        assert!(names(&["a".into(), "a".into()]).is_err());
    }

    #[test]
    fn ttls_permits_and_metadata_have_bounds() {
        assert!(ttl(Duration::from_millis(999)).is_err());
        assert!(ttl(TTL_MIN).is_ok() && ttl(TTL_MAX).is_ok());
        assert!(ttl(TTL_MAX + Duration::from_millis(1)).is_err());
        assert!(mode(Mode::Permits { permits: 3, capacity: 3 }).is_ok());
        assert!(mode(Mode::Permits { permits: 0, capacity: 3 }).is_err());
        assert!(mode(Mode::Permits { permits: 4, capacity: 3 }).is_err());
        assert!(metadata(&BTreeMap::from([("k".into(), "x".repeat(4095))])).is_ok());
        assert!(metadata(&BTreeMap::from([("k".into(), "x".repeat(4096))])).is_err());
    }
}
