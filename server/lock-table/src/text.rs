//! Names, owners and request ids: texts that are checked where they enter and cheap to share
//! afterwards.
//!
//! They are compared byte by byte; nothing here folds case or normalises Unicode, because two nodes
//! that did it differently would hold two locks for one name. What could disturb a log line or a
//! terminal is refused.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use crate::outcome::Rejection;

/// Longest name in bytes, whatever the limits of a cluster say: it bounds a record of a snapshot.
pub const NAME_BYTES_CEILING: usize = 512;
/// Longest owner in bytes, whatever the limits of a cluster say.
pub const OWNER_BYTES_CEILING: usize = 256;
/// Longest request id in bytes, whatever the limits of a cluster say.
pub const REQUEST_ID_BYTES_CEILING: usize = 256;

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $field:literal, $ceiling:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the text and takes it.
            ///
            /// Fails with [`Rejection::InvalidArgument`] if it is empty, too long, or holds a
            /// forbidden character.
            pub fn new(text: &str) -> Result<Self, Rejection> {
                check($field, text, $ceiling)?;
                Ok(Self(Arc::from(text)))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<&str> for $name {
            type Error = Rejection;

            fn try_from(text: &str) -> Result<Self, Rejection> {
                Self::new(text)
            }
        }

        // So that an ordered map keyed by it can be asked with a plain `&str`: both order by bytes.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

text! {
    /// The name of a lock.
    Name, "name", NAME_BYTES_CEILING
}
text! {
    /// Who holds or waits, as other people see it.
    Owner, "owner", OWNER_BYTES_CEILING
}
text! {
    /// Tells the attempts of one owner on one name apart, in unary calls.
    RequestId, "request_id", REQUEST_ID_BYTES_CEILING
}

fn check(field: &'static str, text: &str, bytes_max: usize) -> Result<(), Rejection> {
    if text.is_empty() {
        return Err(Rejection::invalid(field, "must not be empty"));
    }
    if text.len() > bytes_max {
        let problem = format!("is {} bytes long, at most {bytes_max} are allowed", text.len());
        return Err(Rejection::invalid(field, problem));
    }
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Ok(()); // as nearly all are
    }
    match text.chars().find(|c| is_forbidden(*c)) {
        Some(c) => {
            let problem = format!("holds the character U+{:04X}, which is not allowed", c as u32);
            Err(Rejection::invalid(field, problem))
        }
        None => Ok(()),
    }
}

fn is_forbidden(c: char) -> bool {
    match c {
        // Line and paragraph separators.
        '\u{2028}' | '\u{2029}' => true,
        // What turns the direction of writing.
        '\u{061C}' | '\u{200E}' | '\u{200F}' => true,
        '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => true,
        // Non-characters: these, and the last two of every plane.
        '\u{FDD0}'..='\u{FDEF}' => true,
        _ if c as u32 & 0xFFFE == 0xFFFE => true,
        // C0, DEL and C1.
        _ => c.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_unicode_is_accepted_as_it_is() {
        for text in ["k", "payment:42", "../x", "'; DROP TABLE", "%s", "Straße", "錠", "🔒", " a b "] {
            assert_eq!(Name::new(text).expect("accepted").as_str(), text);
        }
        assert_ne!(Name::new("é"), Name::new("e\u{301}"));
    }

    #[test]
    fn what_disturbs_a_terminal_is_refused_by_name() {
        let control = "\0\n\u{1b}\u{7f}\u{85}\u{9f}";
        let separators_and_direction = "\u{2028}\u{2029}\u{61c}\u{200e}\u{202e}\u{2066}";
        let no_characters = "\u{fdd0}\u{fffe}\u{10ffff}";
        for c in [control, separators_and_direction, no_characters].concat().chars() {
            let message = Owner::new(&format!("a{c}b")).expect_err("refused").to_string();
            assert!(message.starts_with("owner: holds the character U+"), "{message}");
        }
    }

    #[test]
    fn length_is_counted_in_bytes() {
        assert!(Name::new(&"a".repeat(512)).is_ok());
        assert_eq!(
            Name::new(&"é".repeat(257)).expect_err("refused").to_string(),
            "name: is 514 bytes long, at most 512 are allowed"
        );
        assert!(Owner::new(&"a".repeat(257)).is_err());
        assert_eq!(RequestId::new("").expect_err("refused").to_string(), "request_id: must not be empty");
    }
}
