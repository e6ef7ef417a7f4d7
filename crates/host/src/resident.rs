//! How much memory this process has had in use, by the system's count.

use std::fs;

/// The most bytes that were resident at a time, since the start or the last [`forget_peak_resident`]; nothing where
/// the system does not tell.
///
/// Source: `VmHWM` of proc_pid_status(5).
pub fn peak_resident() -> Option<u64> {
    peak(&fs::read_to_string("/proc/self/status").ok()?)
}

/// Lets the peak begin anew at what is resident now; `false` where the system does not allow that.
///
/// Source: the value 5 of clear_refs in proc_pid_clear_refs(5).
pub fn forget_peak_resident() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

fn peak(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_follows_what_is_used_and_can_be_forgotten() {
        let Some(before) = peak_resident() else {
            eprintln!("skipped: this system does not tell");
            return;
        };
        let used = vec![1_u8; 64 << 20];
        let during = peak_resident().unwrap();
        assert!(
            during >= before + (50 << 20),
            "{before} {during} {}",
            used[7]
        );
        drop(used);
        // The system counts pages by processor and sums up now and then.
        let later = peak_resident().unwrap();
        assert!(later + (16 << 20) > during, "{during} {later}");
        if forget_peak_resident() {
            let anew = peak_resident().unwrap();
            assert!(anew + (32 << 20) < during, "{during} {anew}");
        }
    }

    #[test]
    fn what_is_no_status_has_no_peak() {
        assert_eq!(peak("VmPeak: 1 kB\nVmHWM:\t  12 kB\n"), Some(12 << 10));
        for status in [
            "",
            "VmHWM: 12",
            "VmHWM: x kB",
            "VmHWM: 18446744073709551615 kB",
        ] {
            assert_eq!(peak(status), None);
        }
    }
}
