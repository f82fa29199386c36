//! `cargo xtask cuts`: cuts the power of a guest again and again while volumes are formatted. qemu is killed,
//! so that writes which the guest had not flushed are lost.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    process::ExitCode,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};

use crate::{
    build::executable,
    command::workspace,
    guest::{self, Clock, Disk, End, Guest, sparse_image, with_guard},
    kernels::Kernel,
    setup,
};

/// The time after which a boot that shows no life is given up.
const TIMEOUT: Duration = Duration::from_mins(10);
/// What the guest prints before it starts the agent, and after it has checked everything from before the cut.
const SAID: [&str; 2] = ["starts", "found"];
/// The longest life after each of these lines.
const LIFE: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Kernel: 6.1, 6.12, 6.18 or 7
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Number of cuts
    #[arg(long, default_value_t = 10)]
    number: u32,
    /// Seed [default: the clock]
    #[arg(long)]
    seed: Option<u64>,
}

/// `cargo xtask cuts`
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::root("guests read this machine's root")?;
    setup::ready()?;
    let guard = executable("bin", "format-guard")?;
    let kernel = Kernel::get(&arguments.kernel)?;
    let reboot = executable("test", "reboot")?;
    let held = cut(&kernel, [&guard, &reboot], arguments.number, arguments.seed)?;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Cuts the power this many times, then boots once more to check: true if everything was kept.
pub(crate) fn cut(
    kernel: &Kernel,
    [guard, reboot]: [&Path; 2],
    number: u32,
    seed: Option<u64>,
) -> Result<bool> {
    let seed = match seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    println!("cuts: {number} on {} ({}), seed {seed}", kernel.key, kernel.release);
    // Several series run side by side, each on disks of its own.
    let series = u32::try_from(guest::at_a_time()?)?;
    thread::scope(|scope| {
        let all: Vec<_> = (0..series)
            .map(|i| {
                let number = number / series + u32::from(i < number % series);
                let seed = seed.wrapping_add(u64::from(i) << 32);
                scope.spawn(move || one_after_another(kernel, guard, reboot, number, seed))
            })
            .collect();
        let mut held = true;
        for one in all {
            held &= one.join().unwrap_or_else(|_| bail!("a series panicked"))?;
        }
        Ok(held)
    })
}

/// One series of cuts.
fn one_after_another(kernel: &Kernel, guard: &Path, reboot: &Path, number: u32, seed: u64) -> Result<bool> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let directory = tempfile::tempdir_in(workspace().join("target"))?;
    let image = |name: &str, size: u64| -> Result<Disk> {
        let path = directory.path().join(name);
        sparse_image(&path, size)?;
        Ok(Disk::virtio(path))
    };
    let disks = vec![image("state", 256 << 20)?, image("volumes", 4 << 30)?, image("ledgers", 1 << 20)?];
    let mut found = 0;
    for life in 0..=number {
        let last = life == number;
        let words = ["--ignored", "--exact", "--nocapture", "a_life_until_the_power_is_cut"];
        let mut command = with_guard(guard, reboot, words.map(Into::into));
        command.insert(1, format!("FORMAT_GUARD_LIFE={life}:{}:{last}", rng.u64(..)).into());
        let guest = Guest {
            kernel: kernel.clone(),
            command,
            disks: disks.clone(),
            timeout: TIMEOUT,
            clock: Clock::Host,
            parameters: String::new(),
            network: false,
        };
        // About every other life is cut while its agent starts and the state from before is checked.
        let (since, spared) = (rng.usize(..2), LIFE.mul_f64(rng.f64()));
        let mut output = Watched::default();
        let start = Instant::now();
        let (ended, console) = {
            let said = Arc::clone(&output.said);
            guest.run_until(&mut output, |_| {
                let cut = !last && said[since].get().is_some_and(|said| said.elapsed() >= spared);
                cut || start.elapsed() >= TIMEOUT
            })?
        };
        let text = String::from_utf8_lossy(&output.text);
        let held = match ended {
            End::With(status) => last && status == 0,
            End::Killed => !last && start.elapsed() < TIMEOUT,
            End::Died => false,
        };
        if !held {
            println!("{text}");
            io::copy(&mut File::open(&console)?, &mut io::stdout())?;
            let kept = directory.keep();
            println!(
                "cuts: seed {seed}, life {life} ended as {ended:?}; its disks are kept in {}",
                kept.display()
            );
            return Ok(false);
        }
        // Without the lines of libtest.
        let told = text.lines().skip_while(|line| *line != SAID[1]).skip(1);
        let told = told.filter(|line| !line.is_empty() && !line.starts_with("test "));
        found += u32::from(output.said[1].get().is_some());
        println!(
            "cuts: seed {seed}, life {life}, {:.1} s from {}: {}",
            spared.as_secs_f64(),
            SAID[since],
            told.collect::<Vec<_>>().join(", ")
        );
    }
    println!("cuts: seed {seed}: {found} of {} lives were long enough to look at everything", number + 1);
    Ok(true)
}

/// The output of a guest, and when it printed each line of `SAID`.
#[derive(Default)]
struct Watched {
    text: Vec<u8>,
    said: Arc<[OnceLock<Instant>; 2]>,
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        let text = String::from_utf8_lossy(&self.text);
        for (word, said) in SAID.iter().zip(&*self.said) {
            if said.get().is_none() && text.lines().any(|line| line == *word) {
                said.get_or_init(Instant::now);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
