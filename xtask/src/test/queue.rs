//! One queue for all jobs: the longest begins first, and a job whose cost does not fit waits.

use std::{
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use super::job::{Cost, Job, Lock, Outcome};
use crate::guest;

/// Cores, memory and locks that are free.
struct Resources {
    cores: usize,
    memory: u64,
    taken: Vec<Lock>,
}

impl Resources {
    fn has(&self, cost: &Cost) -> bool {
        cost.cores <= self.cores
            && cost.memory <= self.memory
            && !cost.locks.iter().any(|lock| self.taken.contains(lock))
    }

    fn take(&mut self, cost: &Cost) {
        self.cores -= cost.cores;
        self.memory -= cost.memory;
        self.taken.extend(cost.locks);
    }

    fn release(&mut self, cost: &Cost) {
        self.cores += cost.cores;
        self.memory += cost.memory;
        self.taken.retain(|lock| !cost.locks.contains(lock));
    }
}

/// A job that has ended.
pub(crate) struct Finished {
    pub(crate) name: String,
    pub(crate) log: PathBuf,
    pub(crate) outcome: Outcome,
}

/// Jobs in the order in which they begin if everything fits. Jobs of one lock run one after another and take
/// as long as their sum: the first of them begins as early as one job of that length would.
fn in_order(jobs: &mut [Job<'_>]) {
    jobs.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let mut keys = vec![0.0; jobs.len()];
    for i in (0..jobs.len()).rev() {
        let after = (i + 1..jobs.len())
            .find(|&later| jobs[later].cost.locks.iter().any(|lock| jobs[i].cost.locks.contains(lock)));
        keys[i] = jobs[i].seconds + after.map_or(0.0, |later| keys[later]);
    }
    let mut by_name: Vec<(f64, String)> =
        keys.into_iter().zip(jobs.iter().map(|job| job.name.clone())).collect();
    by_name.sort_by(|a, b| b.0.total_cmp(&a.0));
    let place = |name: &str| by_name.iter().position(|(_, other)| other == name);
    jobs.sort_by_key(|job| (job.is_spare, place(&job.name)));
}

/// Runs all jobs, each with a log of its own in this folder, and passes each to `ended` when it ends. This
/// machine's cores and memory limit how many run side by side; a job that wants more than there is runs
/// alone. A spare job that would not be over at `until` does not begin: the names of those come second.
pub(crate) fn run(
    mut jobs: Vec<Job<'_>>,
    logs: &Path,
    until: Option<Instant>,
    ended: impl Fn(&Finished) + Sync,
) -> Result<(Vec<Finished>, Vec<String>)> {
    let cores = thread::available_parallelism()?.get();
    let memory = guest::available_memory()?;
    for job in &mut jobs {
        job.cost.cores = job.cost.cores.clamp(1, cores);
        job.cost.memory = job.cost.memory.min(memory);
    }
    in_order(&mut jobs);
    let free = Mutex::new(Resources { cores, memory, taken: Vec::new() });
    let (changed, done, ended) = (Condvar::new(), Mutex::new(Vec::new()), &ended);
    let mut left = Vec::new();
    thread::scope(|scope| {
        let (free, changed, done) = (&free, &changed, &done);
        while !jobs.is_empty() {
            let mut now = free.lock().unwrap_or_else(PoisonError::into_inner);
            let next = loop {
                if let Some(next) = jobs.iter().position(|job| now.has(&job.cost)) {
                    break next;
                }
                now = changed.wait(now).unwrap_or_else(PoisonError::into_inner);
            };
            let job = jobs.remove(next);
            let end = Instant::now() + Duration::from_secs_f64(job.seconds);
            if job.is_spare && until.is_some_and(|until| end > until) {
                left.push(job.name);
                continue;
            }
            now.take(&job.cost);
            drop(now);
            scope.spawn(move || {
                let cost = job.cost;
                let one = run_job(job, logs);
                free.lock().unwrap_or_else(PoisonError::into_inner).release(&cost);
                changed.notify_all();
                ended(&one);
                done.lock().unwrap_or_else(PoisonError::into_inner).push(one);
            });
        }
    });
    Ok((done.into_inner().unwrap_or_else(PoisonError::into_inner), left))
}

/// Runs one job. A job that cannot run, that panics, or that ran no test has failed.
fn run_job(job: Job<'_>, logs: &Path) -> Finished {
    println!("test: {} begins", job.name);
    let log = logs.join(format!("{}.log", job.name.replace(['/', ':'], "-").replace(' ', "_")));
    let start = Instant::now();
    let run = job.run;
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&log)));
    let result = result.unwrap_or_else(|_| Err(anyhow!("this job panicked: the message is printed above")));
    let mut outcome = result.unwrap_or_else(|error| {
        println!("test: {}: {error:#}", job.name);
        Outcome::of(false)
    });
    if outcome.passed + outcome.failed == 0 {
        println!("test: {} ran nothing", job.name);
        outcome.failed = 1;
    }
    outcome.seconds = start.elapsed().as_secs_f64();
    Finished { name: job.name, log, outcome }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;

    fn job<'a>(name: &str, seconds: f64, cost: Cost, run: impl FnOnce() -> Outcome + Send + 'a) -> Job<'a> {
        Job { name: name.to_owned(), seconds, cost, is_spare: false, run: Box::new(move |_| Ok(run())) }
    }

    fn outcomes(jobs: Vec<Job<'_>>) -> Vec<Finished> {
        let logs = tempfile::tempdir().expect("a folder");
        run(jobs, logs.path(), None, |_| ()).expect("run").0
    }

    #[test]
    fn a_chain_of_one_lock_begins_before_a_longer_single_job() {
        let cargo = Cost { locks: &[Lock::Cargo], ..Cost::CORE };
        let mut jobs = vec![
            job("guest", 50.0, Cost::GUEST, Outcome::default),
            job("clippy", 30.0, cargo, Outcome::default),
            job("doc", 25.0, cargo, Outcome::default),
            job("short", 1.0, Cost::CORE, Outcome::default),
        ];
        in_order(&mut jobs);
        let names: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
        assert_eq!(names, ["clippy", "guest", "doc", "short"]);
    }

    #[test]
    fn a_spare_job_begins_last_and_not_where_it_would_end_too_late() {
        let logs = tempfile::tempdir().expect("a folder");
        let spare = |name: &str, seconds: f64| Job {
            is_spare: true,
            ..job(name, seconds, Cost::CORE, || Outcome::of(true))
        };
        let jobs = || {
            let all = Cost { cores: usize::MAX, ..Cost::CORE };
            vec![spare("long", 100.0), spare("short", 1.0), job("other", 0.1, all, || Outcome::of(true))]
        };
        let until = Instant::now() + Duration::from_secs(50);
        let (done, left) = run(jobs(), logs.path(), Some(until), |_| ()).expect("run");
        let names: Vec<&str> = done.iter().map(|done| done.name.as_str()).collect();
        assert_eq!((names, left), (vec!["other", "short"], vec!["long".to_owned()]));
        let (done, left) = run(jobs(), logs.path(), None, |_| ()).expect("run");
        assert_eq!((done.len(), left.len()), (3, 0));
    }

    #[test]
    fn what_shares_a_lock_never_runs_at_the_same_time() {
        let running = AtomicUsize::new(0);
        let cost = Cost { locks: &[Lock::Devices], ..Cost::CORE };
        let jobs = (0..8)
            .map(|number| {
                job(&number.to_string(), 1.0, cost, || {
                    let before = running.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(2));
                    running.fetch_sub(1, Ordering::SeqCst);
                    Outcome::of(before == 0)
                })
            })
            .collect();
        assert!(outcomes(jobs).iter().all(|done| done.outcome.failed == 0));
    }

    #[test]
    fn a_job_that_ran_nothing_or_broke_has_failed() {
        let jobs = vec![
            job("nothing", 1.0, Cost::CORE, Outcome::default),
            job("broken", 1.0, Cost::CORE, || panic!("on purpose")),
            job("well", 1.0, Cost { cores: 1000, memory: u64::MAX, locks: &[] }, || Outcome::of(true)),
        ];
        for done in outcomes(jobs) {
            assert_eq!(done.outcome.failed, u64::from(done.name != "well"), "{}", done.name);
        }
    }
}
