//! The time of day, as people here say it. For a start at a time that several terminals agree on; no lease has to do
//! with it.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};

/// A time that passed less than this ago still means today: whoever comes a little late joins in.
const LATE_LIMIT: Duration = Duration::from_secs(60);

const DAY: i64 = 24 * 60 * 60;

/// `HH:MM` or `HH:MM:SS`, local.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeOfDay {
    hour: u8,
    minute: u8,
    second: u8,
}

impl FromStr for TimeOfDay {
    type Err = Error;

    fn from_str(text: &str) -> Result<TimeOfDay> {
        let parts: Vec<u8> =
            text.split(':').map(str::parse).collect::<Result<_, _>>().context("write HH:MM")?;
        let (hour, minute, second) = match parts[..] {
            [hour, minute] => (hour, minute, 0),
            [hour, minute, second] => (hour, minute, second),
            _ => anyhow::bail!("write HH:MM or HH:MM:SS"),
        };
        ensure!(hour < 24 && minute < 60 && second < 60, "there is no such time of day");
        Ok(TimeOfDay { hour, minute, second })
    }
}

impl std::fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02}:{:02}:{:02}", self.hour, self.minute, self.second)
    }
}

impl TimeOfDay {
    /// What a clock on the wall shows in so many seconds.
    ///
    /// # Errors
    ///
    /// If the operating system does not say.
    pub fn seconds_from_now(seconds: u32) -> Result<TimeOfDay> {
        let at = broken_down(unix_time() + i64::from(seconds))?;
        let part = |number| u8::try_from(number).context("a part of a time");
        Ok(TimeOfDay { hour: part(at.tm_hour)?, minute: part(at.tm_min)?, second: part(at.tm_sec.min(59))? })
    }

    /// How long until then: nothing if it has just passed, until tomorrow if it passed before.
    ///
    /// # Errors
    ///
    /// If the operating system does not say.
    pub fn wait(self) -> Result<Duration> {
        let now = unix_time();
        // Today, tomorrow, or, shortly after midnight, a late yesterday.
        for day in [-1, 0, 1, 2] {
            let mut at = broken_down(now + day * DAY)?;
            (at.tm_hour, at.tm_min, at.tm_sec) = (self.hour.into(), self.minute.into(), self.second.into());
            // Whether summer time holds then is for the system to find out.
            at.tm_isdst = -1;
            // SAFETY: `at` is a valid `tm` that outlives the call.
            let at = unsafe { libc::mktime(&mut at) };
            ensure!(at != -1, "the operating system knows no such time");
            if at + LATE_LIMIT.as_secs() as i64 > now {
                return Ok(Duration::from_secs(u64::try_from(at - now).unwrap_or(0)));
            }
        }
        anyhow::bail!("the operating system knows no such time")
    }
}

fn unix_time() -> i64 {
    // SAFETY: a null pointer asks for the returned value alone.
    unsafe { libc::time(std::ptr::null_mut()) }
}

fn broken_down(at: i64) -> Result<libc::tm> {
    // SAFETY: all-zero bytes are a valid `tm`, and the pointers are to values that outlive the call.
    let (parts, answer) = unsafe {
        let mut parts: libc::tm = std::mem::zeroed();
        let answer = libc::localtime_r(&at, &mut parts);
        (parts, answer)
    };
    ensure!(!answer.is_null(), "the operating system does not know the local time");
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_hours_minutes_and_perhaps_seconds() {
        let time = |text: &str| text.parse::<TimeOfDay>().ok();
        assert_eq!(time("12:00"), Some(TimeOfDay { hour: 12, minute: 0, second: 0 }));
        assert_eq!(time("23:59:58"), Some(TimeOfDay { hour: 23, minute: 59, second: 58 }));
        for wrong in ["", "12", "24:00", "12:60", "12:00:60", "12:00:00:00", "noon", "-1:00", "12:"] {
            assert_eq!(time(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_wait_is_until_the_next_such_time() {
        let wait = |time: TimeOfDay| time.wait().unwrap().as_secs();
        // A second may pass between two looks at the clock.
        let soon = wait(TimeOfDay::seconds_from_now(90).unwrap());
        assert!((85..=90).contains(&soon), "{soon}");
        assert_eq!(wait(TimeOfDay::seconds_from_now(0).unwrap()), 0, "just now is now");
        // Almost a day ago is tomorrow, and not yesterday. Summer time may come or go in between.
        let tomorrow = wait(TimeOfDay::seconds_from_now(DAY as u32 - 300).unwrap());
        assert!((22 * 3600..=25 * 3600).contains(&tomorrow), "{tomorrow}");
    }
}
