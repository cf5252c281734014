//! Explores every setting exhaustively (`make model`), or those that are named (`late retry`), at the bounds of
//! continuous integration if `small` is among the names; or tells what happens without each rule (`timelines`).

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Instant;

use duet_model::explore::Verdict;
use duet_model::rules::Rules;
use duet_model::settings::{COUNTEREXAMPLES, Setting, Size};

fn main() -> io::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let names: Vec<String> = std::env::args().skip(1).map(|name| name.to_lowercase()).collect();
    let named = |name: &str| names.iter().any(|other| *other == name.to_lowercase());
    if named("timelines") {
        timelines(&mut out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let size = if named("small") { Size::Small } else { Size::Whole };
    let all = names.iter().all(|name| name == "small");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut broken = false;
    for setting in Setting::ALL.iter().filter(|setting| all || named(&format!("{setting:?}"))) {
        let started = Instant::now();
        let verdict = setting.check(size, Rules::all(), threads);
        let seconds = started.elapsed().as_secs_f32();
        match verdict {
            Verdict::Holds { states } => {
                writeln!(out, "{setting:?}: every property holds in {states} states ({seconds:.1} s)")?
            }
            Verdict::Broken { property, timeline } => {
                broken = true;
                writeln!(out, "{setting:?}: broken: {property}")?;
                timeline.iter().try_for_each(|line| writeln!(out, "    {line}"))?;
            }
        }
        out.flush()?;
    }
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The counterexample of each rule, as `specs/switch.md` shows them.
fn timelines(out: &mut impl io::Write) -> io::Result<()> {
    for (rule, setting, property) in COUNTEREXAMPLES {
        writeln!(out, "{}. {} (`{rule:?}`)\n", rule.number(), rule.text())?;
        let told = setting.timeline(*rule, property).unwrap_or_else(|| "not found\n".to_owned());
        writeln!(out, "{told}")?;
        out.flush()?;
    }
    Ok(())
}
