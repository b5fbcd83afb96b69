//! The pause after a failed attempt to connect.
#![forbid(unsafe_code)]

use std::time::Duration;

/// Pause after the first failure. Each further failure doubles it.
const FIRST: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(5);

/// The pause after this many failures in a row. Half of it is random, so that two peers that
/// failed at the same moment do not try again at the same moment.
pub(super) fn pause(failures: u32) -> Duration {
    let longest = FIRST.saturating_mul(1 << failures.min(10).saturating_sub(1)).min(LONGEST);
    let mut random = [0; 1];
    // If there is no randomness, the byte stays 0 and the pause is the shortest one.
    let _ = aws_lc_rs::rand::fill(&mut random);
    longest.mul_f64(0.5 + f64::from(random[0]) / 512.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        for failures in 1..40 {
            let pause = pause(failures);
            assert!(pause >= FIRST / 2 && pause <= LONGEST, "{pause:?}");
        }
        assert!(pause(30) >= LONGEST / 2);
    }
}
