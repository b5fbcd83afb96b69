//! Times in certificates: seconds since 1970.
#![forbid(unsafe_code)]

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, date_time_ymd};

/// One day.
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);
/// A certificate is valid from this time before it was made, because the clocks of hosts differ.
pub(super) const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// Seconds from 1970 to a time. A time before 1970 gives 0.
pub(super) fn since_1970(time: SystemTime) -> i64 {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// The time at this many seconds after 1970. A negative number gives 1970.
pub(super) fn from_1970(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0))
}

/// Makes a certificate valid from a little before now, for `validity` from now.
pub(super) fn set(params: &mut CertificateParams, validity: Duration) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    params.not_before = date_time_ymd(1970, 1, 1) + now.saturating_sub(CLOCK_SKEW);
    params.not_after = date_time_ymd(1970, 1, 1) + now + validity;
}
