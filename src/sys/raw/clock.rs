//! The time in the local zone.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment in the local time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LocalTime {
    /// Year of the Common Era.
    pub(crate) year: i32,
    /// 1 to 12.
    pub(crate) month: u8,
    /// 1 to 31.
    pub(crate) day: u8,
    /// 0 to 23.
    pub(crate) hour: u8,
    /// 0 to 59.
    pub(crate) minute: u8,
    /// 0 to 60.
    pub(crate) second: u8,
    /// 0 to 999,999.
    pub(crate) microsecond: u32,
    /// Minutes east of UTC.
    pub(crate) offset: i32,
}

impl LocalTime {
    /// The month's name in three letters, as logs have it.
    pub(crate) fn month_name(&self) -> &'static str {
        const NAMES: [&str; 12] = [
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
        ];
        NAMES[usize::from(self.month - 1)]
    }
}

/// Zones change their offset at full quarters of an hour.
const QUARTER: i64 = 15 * 60;

/// The quarter of an hour since 1970 whose offset is known, or one that is not.
static KNOWN_QUARTER: AtomicI64 = AtomicI64::new(i64::MIN);

/// Its offset, in seconds.
static KNOWN_OFFSET: AtomicI64 = AtomicI64::new(0);

/// Asks the C library for the offset of local time if it is time to: what a process knows when it
/// forks, its child need not ask for.
pub(crate) fn learn_utc_offset() {
    local_time(SystemTime::now());
}

/// The local time of a moment, as TZ or /etc/localtime has it.
///
/// The C library is asked once in a quarter of an hour: its answer costs a session that was forked
/// four pages, two of them copied, for each of which there is arithmetic.
pub(crate) fn local_time(moment: SystemTime) -> LocalTime {
    let since_epoch = moment.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since_epoch.as_secs() as i64;
    let quarter = seconds / QUARTER;
    if KNOWN_QUARTER.load(Ordering::Relaxed) == quarter {
        let offset = KNOWN_OFFSET.load(Ordering::Relaxed);
        return reckoned(seconds, since_epoch.subsec_micros(), offset);
    }
    let (asked, offset) = asked(seconds, since_epoch.subsec_micros());
    // Not so in the zones that count leap seconds ("right/UTC").
    if asked == reckoned(seconds, since_epoch.subsec_micros(), offset) {
        KNOWN_OFFSET.store(offset, Ordering::Relaxed);
        KNOWN_QUARTER.store(quarter, Ordering::Relaxed);
    }
    asked
}

/// A moment's fields, as the C library knows them, and the seconds east of UTC.
fn asked(seconds: i64, microsecond: u32) -> (LocalTime, i64) {
    // libc would rather not name the type.
    let seconds = seconds as _;
    let mut fields = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid, and all-zero bytes are a valid `tm`, so it is initialised
    // whether the call succeeds or not. Reading TZ is sound as no other thread changes it.
    let fields = unsafe {
        libc::localtime_r(&raw const seconds, fields.as_mut_ptr());
        fields.assume_init()
    };
    let time = LocalTime {
        year: fields.tm_year + 1900,
        month: fields.tm_mon as u8 + 1,
        day: fields.tm_mday as u8,
        hour: fields.tm_hour as u8,
        minute: fields.tm_min as u8,
        second: fields.tm_sec as u8,
        microsecond,
        offset: (fields.tm_gmtoff / 60) as i32,
    };
    (time, fields.tm_gmtoff as i64)
}

/// The same for an offset that is known.
fn reckoned(seconds: i64, microsecond: u32, offset: i64) -> LocalTime {
    let local = seconds + offset;
    let (days, of_day) = (local.div_euclid(86_400), local.rem_euclid(86_400));
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days: years begin in
    // March, so that the leap day is the last, and 400 of them are an era.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    LocalTime {
        year: (year + era * 400 + next) as i32,
        month: month as u8,
        day: day as u8,
        hour: (of_day / 3_600) as u8,
        minute: (of_day / 60 % 60) as u8,
        second: (of_day % 60) as u8,
        microsecond,
        offset: (offset / 60) as i32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reckoned_is_what_the_c_library_says() {
        // Two and a half centuries, in steps of somewhat more than a day.
        for seconds in (0..).step_by(90_061).take(90_000) {
            let (asked, offset) = asked(seconds, 7);
            assert_eq!(reckoned(seconds, 7, offset), asked, "{seconds}");
        }
    }

    #[test]
    fn an_offset_moves_the_date() {
        let time = reckoned(951_782_400 - 1, 0, 3_600);
        let date = (time.year, time.month, time.day, time.hour, time.minute);
        assert_eq!((date, time.offset), ((2000, 2, 29, 0, 59), 60));
        let time = reckoned(951_782_400, 0, -5 * 3_600 - 1_800);
        let date = (time.year, time.month, time.day, time.hour, time.minute);
        assert_eq!((date, time.offset), ((2000, 2, 28, 18, 30), -330));
    }

    #[test]
    fn the_same_moment_is_the_same_time_when_its_offset_is_known() {
        let moment = UNIX_EPOCH + Duration::from_micros(1_800_000_000_123_456);
        assert_eq!(local_time(moment), local_time(moment));
        assert_eq!(local_time(moment).microsecond, 123_456);
    }
}
