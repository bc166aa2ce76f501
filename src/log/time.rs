//! Moments in text.

use std::fmt::{self, Display};
use std::time::SystemTime;

use crate::sys::{self, LocalTime};

/// A moment as RFC 3339 has it, in local time with its offset, and so many digits (at most 6)
/// after the second's point.
pub(crate) fn timestamp(moment: SystemTime, digits: usize) -> impl Display {
    Timestamp {
        time: sys::local_time(moment),
        digits,
    }
}

struct Timestamp {
    time: LocalTime,
    digits: usize,
}

impl Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let LocalTime {
            year,
            month,
            day,
            hour,
            minute,
            second,
            microsecond,
            offset,
        } = self.time;
        let digits = self.digits;
        let fraction = (digits..6).fold(microsecond, |fraction, _| fraction / 10);
        let sign = if offset < 0 { '-' } else { '+' };
        let (hours, minutes) = (offset.abs() / 60, offset.abs() % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.\
             {fraction:0digits$}{sign}{hours:02}:{minutes:02}"
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timestamps_are_rfc_3339() {
        let moment = SystemTime::UNIX_EPOCH + Duration::from_micros(7_890);
        let stamp = timestamp(moment, 3).to_string();
        assert_eq!(
            stamp.len(),
            "1970-01-01T00:00:00.000+00:00".len(),
            "{stamp}"
        );
        assert_eq!(&stamp[10..11], "T");
        assert_eq!(&stamp[19..23], ".007");
        assert_eq!(&timestamp(moment, 6).to_string()[19..26], ".007890");
    }
}
