//! The words of a line.

use lock_table::*;

/// Those behind the verb and the subject.
pub(super) struct Words<'a>(pub(super) Vec<&'a str>);

impl<'a> Words<'a> {
    pub(super) fn flag(&self, flag: &str) -> bool {
        self.0.contains(&flag)
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.text(key).map(|text| text.parse().unwrap_or_else(|_| panic!("{key}={text} is no number")))
    }

    pub(super) fn ms(&self, key: &str) -> Option<u64> {
        self.text(key).map(ms)
    }

    pub(super) fn mode(&self) -> Mode {
        match self.text("permits").and_then(|text| text.split_once('/')) {
            Some((permits, capacity)) => Mode::Permits {
                permits: permits.parse().expect("a number of permits"),
                capacity: capacity.parse().expect("a capacity"),
            },
            None if self.flag("shared") => Mode::Shared,
            None => Mode::Exclusive,
        }
    }

    pub(super) fn metadata(&self) -> Metadata {
        Metadata::new(self.text("meta").map(|text| ("note".to_owned(), repeated(text))).into_iter().collect())
    }
}

pub(super) fn ms(seconds: &str) -> u64 {
    let seconds: f64 = seconds.parse().unwrap_or_else(|_| panic!("{seconds} are no seconds"));
    (seconds * 1000.0).round() as u64
}

/// `x*600` as 600 x.
pub(super) fn repeated(text: &str) -> String {
    match text.rsplit_once('*').and_then(|(text, count)| Some(text.repeat(count.parse().ok()?))) {
        Some(repeated) => repeated,
        None => text.to_owned(),
    }
}
