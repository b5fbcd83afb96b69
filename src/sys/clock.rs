//! The monotonic clock that also counts while the machine is suspended (CLOCK_BOOTTIME of
//! clock_gettime(2)): keys of sealed packets grow old in that time too.
//!
//! It does not follow changes of the wall clock. Invariant: the time never goes back.

use crate::time::Nanos;

/// Reads the monotonic clock.
#[must_use]
pub fn now() -> Nanos {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the kernel to fill; CLOCK_BOOTTIME exists since Linux
    // 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    Nanos(u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::now;

    const VARIABLE: &str = "HOPSACK_TEST_PRINTS_THE_TIME";

    /// In a time namespace the clock of the boot can be later than the one that stops while the
    /// machine is suspended, as after a suspend.
    #[test]
    fn time_counts_while_the_machine_is_suspended() {
        if std::env::var_os(VARIABLE).is_some() {
            println!("now={}", now().0);
            return;
        }
        let test = std::env::current_exe().expect("a path");
        let name = "sys::clock::tests::time_counts_while_the_machine_is_suspended";
        let arguments = ["--time", "--fork", "--boottime", "1000000", "--"];
        let output = Command::new("unshare")
            .args(arguments)
            .arg(test)
            .args(["--exact", name, "--nocapture"])
            .env(VARIABLE, "1")
            .output()
            .expect("unshare is installed");
        let text = String::from_utf8_lossy(&output.stdout);
        let then = text.lines().find_map(|line| line.split_once("now=")?.1.parse::<u64>().ok());
        let then = then.unwrap_or_else(|| panic!("{text} {}", String::from_utf8_lossy(&output.stderr)));
        let ahead = then.saturating_sub(now().0) / 1_000_000_000;
        assert!((999_000..=1_000_000).contains(&ahead), "{ahead} s");
    }
}
