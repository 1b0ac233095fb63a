//! How busy the machine is with what is neither this program nor its broker.
//!
//! Owns: the account of the processors, since a moment.
//! Must not know: what is slowed by that.

use std::fs;

use anyhow::{Context, Result};

/// Others explain at most so much.
pub(super) const CROWDING_MAX: u32 = 4;

/// All processors' time, in ticks since the machine was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    all: u64,
    /// In processes of anybody, and of other machines on the same processors.
    used: u64,
}

impl Ticks {
    /// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal. Interrupts are nobody's.
    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks = line.split_whitespace().take(8).map(|number| number.parse().ok());
        let ticks: [u64; 8] = ticks.collect::<Option<Vec<_>>>()?.try_into().ok()?;
        let [user, nice, system, .., steal] = ticks;
        Some(Ticks { all: ticks.iter().sum(), used: user + nice + system + steal })
    }
}

/// What a process has used, its threads that have ended, too; `/proc/ID/stat`, fields 14 and 15.
fn used_by(stat: &str) -> Option<u64> {
    // The name before it may contain anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// A moment from which on it is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crowding {
    machine: Ticks,
    /// What this program had used.
    own: u64,
}

impl Crowding {
    pub(super) fn since_now() -> Result<Self> {
        let machine =
            Ticks::parse(&fs::read_to_string("/proc/stat")?).context("/proc says nothing of processors")?;
        Ok(Crowding { machine, own: used_by_process("self")? })
    }

    /// How many times as long as alone something takes since then that needs all processors, where the broker was started afterwards.
    pub(super) fn with_broker(self, broker: u32) -> Result<f64> {
        let now = Crowding::since_now()?;
        let ours = now.own - self.own + used_by_process(&broker.to_string())?;
        Ok(times_as_long(self.machine, now.machine, ours))
    }
}

fn used_by_process(process: &str) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    used_by(&stat).context("/proc says nothing of what a process has used")
}

/// By what others have left of the processors.
fn times_as_long(before: Ticks, now: Ticks, ours: u64) -> f64 {
    let all = now.all.saturating_sub(before.all);
    let others = now.used.saturating_sub(before.used).saturating_sub(ours).min(all);
    let [all, left] = [all, all - others].map(|ticks| f64::from(u32::try_from(ticks).unwrap_or(u32::MAX)));
    if all > 0.0 { (all / left).min(f64::from(CROWDING_MAX)) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_of_the_machine_and_of_a_process_is_read() {
        let ticks = Ticks::parse("cpu  10 20 30 400 50 6 7 8 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n");
        assert_eq!(ticks, Some(Ticks { all: 531, used: 68 }));
        let process = "12 (a ) b) S 1 12 12 0 -1 4194560 1 0 0 0 70 5 0 0 20 0 3 0 99 1 1";
        assert_eq!(used_by(process), Some(75));
    }

    #[test]
    fn only_what_others_use_counts() {
        let before = Ticks { all: 1000, used: 500 };
        let after = |used: u64| Ticks { all: 1200, used: 500 + used };
        let about = |used, ours| times_as_long(before, after(used), ours).to_string();
        assert_eq!(about(200, 200), "1");
        assert_eq!(about(150, 50), "2");
        assert_eq!(about(200, 0), "4");
        assert_eq!(times_as_long(before, before, 0).to_string(), "1");
    }
}
