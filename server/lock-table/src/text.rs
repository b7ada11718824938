//! Names, owners and request ids: texts that are checked where they enter and cheap to share
//! afterwards.
//!
//! They are compared byte by byte; nothing here folds case or normalises Unicode, because two nodes
//! that did it differently would hold two locks for one name. What could disturb a log line or a
//! terminal is refused.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
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
        pub struct $name(Text);

        impl $name {
            /// Checks the text and takes it.
            ///
            /// Fails with [`Rejection::InvalidArgument`] if it is empty, too long, or holds a
            /// forbidden character.
            pub fn new(text: &str) -> Result<Self, Rejection> {
                check($field, text, $ceiling)?;
                Ok(Self(Text::new(text)))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// The text's bytes, which cost less to get at.
            pub(crate) fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
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
                self.as_str()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
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

/// Bytes of a text that lie inline: what three words leave beside the tag and the length.
const INLINE_BYTES: usize = 22;

/// A text in three words. A short one lies inline, so that a map compares its keys where they are, a few words at a
/// time, instead of following a pointer for each. A longer one is in memory once, however many share it.
#[derive(Clone)]
enum Text {
    /// Zeros follow the text.
    Short {
        len: u8,
        bytes: [u8; INLINE_BYTES],
    },
    Long(Arc<str>),
}

impl Text {
    fn new(text: &str) -> Self {
        if text.len() > INLINE_BYTES {
            return Self::Long(Arc::from(text));
        }
        let mut bytes = [0; INLINE_BYTES];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Self::Short { len: text.len() as u8, bytes }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(text) => text.as_bytes(),
        }
    }

    fn as_str(&self) -> &str {
        match self {
            Self::Short { .. } => std::str::from_utf8(self.as_bytes()).expect("it was a text when it came"),
            Self::Long(text) => text,
        }
    }
}

impl Ord for Text {
    /// By bytes. Zeros behind two short texts change nothing: where one is the beginning of the other, zeros are not
    /// above what the longer one has there, and the lengths decide if they are equal to it.
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Short { len, bytes }, Self::Short { len: other_len, bytes: other }) => {
                let by_word = |at| word(bytes, at).cmp(&word(other, at));
                by_word(0).then_with(|| by_word(8)).then_with(|| by_word(LAST_WORD)).then(len.cmp(other_len))
            }
            (_, _) => self.as_bytes().cmp(other.as_bytes()),
        }
    }
}

/// The last word of a short text begins within the one before, which changes nothing: it is looked at only if that is
/// equal.
const LAST_WORD: usize = INLINE_BYTES - 8;

/// Eight bytes as a number that orders as they do. Comparing those takes less time than calling a function for it.
#[inline]
fn word(bytes: &[u8; INLINE_BYTES], at: usize) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|next| bytes[at + next]))
}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Text {}

/// As a `&str` does.
impl Hash for Text {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.as_str().hash(hasher);
    }
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
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn texts_compare_as_their_bytes_do(a in "[\0-b]{0,24}", b in "[\0-b]{0,24}", rest in "[\0a]{0,3}") {
            let longer = format!("{a}{rest}");
            for (one, other) in [(&a, &b), (&a, &longer), (&longer, &a)] {
                let texts = [one, other].map(|text| Text::new(text));
                prop_assert_eq!(texts[0].cmp(&texts[1]), one.cmp(other));
                prop_assert_eq!(texts[0] == texts[1], one == other);
                prop_assert_eq!(texts[0].as_str(), one);
            }
        }
    }

    #[test]
    fn a_text_is_three_words_even_where_it_may_be_absent() {
        assert_eq!([size_of::<Text>(), size_of::<Option<Name>>()], [24, 24]);
    }

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
