//! The load around a switch, drawn for a terminal: a row of cells for writes, one for reads, and the phases under them.
//!
//! ```text
//!     writes │▅▆▅▇▅▆▅▆▅▆▁   ▃█▇▆▅▆▅▆▅▆│  at most 24 in 10 ms
//!     reads  │▅▆▅▇▅▆▅▆▅▆▆▅▆▅▆▅▇▆▅▆▅▆▅▆│  at most 19 in 10 ms
//!             eventual ggsscc strong
//! ```
//!
//! Everything here is a function of times in microseconds, counted from the moment the switch was asked for.

/// Microseconds since the switch was asked for; less than 0 before.
pub(super) type Micros = i64;

/// Cells of a row: with its labels it fits into the 80 columns of a terminal.
const CELLS: usize = 56;
/// What is shown before the switch.
const LEAD: Micros = 120_000;
/// What is shown after it, at least.
const TAIL: Micros = 120_000;
/// The shortest cell.
const FINE: Micros = 10_000;
/// What a cell may stand for.
const SCALES: [Micros; 6] = [FINE, 20_000, 50_000, 100_000, 200_000, 500_000];

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Block elements.
    Blocks,
    /// ASCII alone.
    Plain,
}

impl Look {
    /// As the environment says; `var` looks a variable up.
    pub(super) fn of(var: impl Fn(&str) -> Option<String>) -> Look {
        let set = |name: &str| var(name).filter(|value| !value.is_empty());
        let locale =
            ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default().to_ascii_lowercase();
        let utf8 = locale.contains("utf-8") || locale.contains("utf8");
        let plain = set("NO_COLOR").is_some() || set("TERM").is_some_and(|term| term == "dumb");
        if utf8 && !plain { Look::Blocks } else { Look::Plain }
    }

    fn levels(self) -> [char; 8] {
        match self {
            Look::Blocks => ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
            Look::Plain => ['.', ':', '-', '=', '+', '*', '%', '#'],
        }
    }

    fn edge(self) -> char {
        if self == Look::Blocks { '│' } else { '|' }
    }
}

/// What part of time is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    from: Micros,
    cell: Micros,
}

impl Window {
    /// All of a switch that was over at `end`, in as fine cells as fit.
    pub(super) fn whole(end: Micros) -> Window {
        let lead = |cell: Micros| LEAD.max(10 * cell);
        let fits = |cell: &Micros| lead(*cell) + end + TAIL <= *cell * CELLS as Micros;
        let cell = SCALES.into_iter().find(fits).unwrap_or(2 * (end + TAIL) / CELLS as Micros);
        Window { from: -lead(cell), cell }
    }

    /// What is around a moment, in the finest cells.
    pub(super) fn near(at: Micros) -> Window {
        let from = at - FINE * CELLS as Micros / 2;
        Window { from: from - from.rem_euclid(FINE), cell: FINE }
    }

    /// Whether nothing finer can be drawn.
    pub(super) fn fine(self) -> bool {
        self.cell == FINE
    }

    /// Where it ends.
    pub(super) fn end(self) -> Micros {
        self.from + self.cell * CELLS as Micros
    }

    fn counts(self, times: &[Micros]) -> [u64; CELLS] {
        let mut counts = [0; CELLS];
        for at in times {
            let place = (at - self.from).div_euclid(self.cell);
            if let Some(count) = usize::try_from(place).ok().and_then(|place| counts.get_mut(place)) {
                *count += 1;
            }
        }
        counts
    }

    /// The cell border nearest to a moment, from 0 to the number of cells.
    fn border(self, at: Micros) -> usize {
        let place = (at - self.from + self.cell / 2).div_euclid(self.cell);
        usize::try_from(place.max(0)).unwrap_or_default().min(CELLS)
    }
}

/// What a switch did, as somebody saw it who kept asking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Course {
    /// The mode before it.
    pub(super) before: String,
    /// The mode after it.
    pub(super) after: String,
    /// When each phase began, and its letter.
    pub(super) phases: Vec<(Micros, char)>,
    /// When it was over.
    pub(super) end: Micros,
}

/// How often something happened in each cell; nothing where it did not.
pub(super) fn bars(look: Look, window: Window, label: &str, times: &[Micros]) -> String {
    let counts = window.counts(times);
    let most = counts.into_iter().max().unwrap_or_default();
    let (levels, edge) = (look.levels(), look.edge());
    let cells: String = counts.iter().map(|count| level(&levels, *count, most)).collect();
    let ms = window.cell / 1000;
    format!("{label:<7}{edge}{cells}{edge} {most} in {ms} ms")
}

/// Nothing is a blank, one of anything the lowest bar, and only the most is the highest.
fn level(levels: &[char; 8], count: u64, most: u64) -> char {
    if count == 0 {
        return ' ';
    }
    let top = levels.len() as u64 - 1;
    levels[usize::try_from(count * top / most.max(1)).unwrap_or_default().min(levels.len() - 1)]
}

/// The phases, each under the cells that it took, between the modes. A phase too short for a cell gets one nevertheless.
pub(super) fn phases(window: Window, course: &Course) -> String {
    let mut row = vec![' '; CELLS];
    let ends = course.phases.iter().skip(1).map(|(at, _)| *at).chain([course.end]);
    let begun = course.phases.first().map_or(course.end, |(at, _)| *at);
    let mut free = window.border(begun);
    let left = free;
    for ((begins, letter), ends) in course.phases.iter().zip(ends) {
        if ends <= window.from || *begins >= window.end() {
            continue;
        }
        let until = window.border(ends).max(free + 1).min(CELLS);
        row.get_mut(free..until).into_iter().flatten().for_each(|cell| *cell = *letter);
        free = until;
    }
    put(&mut row[..left], &course.before);
    // One cell apart from the last phase.
    if course.end < window.end() {
        put(row.get_mut(free + 1..).unwrap_or_default(), &course.after);
    }
    let row: String = row.into_iter().collect();
    format!("{:<8}{}", "", row.trim_end()).trim_end().to_owned()
}

/// A word where it fits with a blank behind it, or its first letters; nothing where not even these do.
fn put(cells: &mut [char], word: &str) {
    if cells.len() > word.len() {
        cells.iter_mut().zip(word.chars()).for_each(|(cell, letter)| *cell = letter);
    }
}

/// The longest time within a range in which nothing happened.
pub(super) fn longest_gap(times: &[Micros], from: Micros, to: Micros) -> Micros {
    let mut within: Vec<Micros> = times.iter().copied().filter(|at| (from..=to).contains(at)).collect();
    within.extend([from, to]);
    within.sort_unstable();
    within.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(step: Micros, from: Micros, to: Micros) -> Vec<Micros> {
        (0..).map(|n| from + n * step).take_while(|at| *at < to).collect()
    }

    fn course(phases: &[(Micros, char)], end: Micros) -> Course {
        Course { before: "eventual".into(), after: "strong".into(), phases: phases.to_vec(), end }
    }

    #[test]
    fn a_stall_is_a_gap_and_the_phases_are_under_it() {
        let window = Window::whole(70_000);
        let mut times = every(2_000, -200_000, 20_000);
        times.extend(every(1_000, 70_000, 120_000));
        times.extend(every(2_000, 120_000, 500_000));
        let writes = bars(Look::Blocks, window, "writes", &times);
        let expected = format!("writes │{}     █████{}│ 10 in 10 ms", "▄".repeat(14), "▄".repeat(32));
        assert_eq!(writes, expected);
        let marks = phases(window, &course(&[(0, 'g'), (20_000, 's'), (41_000, 'c')], 70_000));
        assert_eq!(marks, "        eventual    ggssccc strong");
    }

    #[test]
    fn plain_terminals_get_ascii() {
        let window = Window::whole(0);
        let writes = bars(Look::Plain, window, "writes", &[-1, 0, 10_000, 10_001]);
        assert_eq!(writes, format!("writes |{}==#{}| 2 in 10 ms", " ".repeat(11), " ".repeat(42)));
        assert!(writes.is_ascii());
    }

    #[test]
    fn the_most_is_the_highest_and_one_is_seen() {
        let levels = Look::Blocks.levels();
        assert_eq!([0, 1, 50, 99, 100].map(|count| level(&levels, count, 100)), [' ', '▁', '▄', '▇', '█']);
        assert_eq!(level(&levels, 1, 1), '█');
    }

    #[test]
    fn a_long_switch_gets_longer_cells() {
        assert!(Window::whole(300_000).fine());
        for (end, cell) in [(500_000, 20_000), (1_100_000, 50_000), (2_500_000, 100_000)] {
            let window = Window::whole(end);
            assert_eq!(window.cell, cell);
            assert!(window.from <= -LEAD && window.from % cell == 0 && window.end() >= end + TAIL, "{window:?}");
        }
        let hour = Window::whole(3_600_000_000);
        assert!(hour.end() >= 3_600_000_000, "{hour:?}");
    }

    #[test]
    fn a_phase_too_short_for_a_cell_is_seen() {
        let window = Window::whole(30_000);
        let marks = phases(window, &course(&[(0, 'g'), (20_000, 's'), (20_500, 'c')], 21_000));
        assert_eq!(marks, "        eventual    ggsc strong");
        assert_eq!(phases(window, &course(&[], 0)), "        eventual     strong");
    }

    #[test]
    fn what_is_outside_of_the_window_is_left_out() {
        let window = Window::near(2_000_000);
        assert_eq!((window.from, window.cell), (1_720_000, FINE));
        let marks = phases(window, &course(&[(1_000, 'g'), (1_990_000, 's'), (2_010_000, 'c')], 2_030_000));
        assert_eq!(marks, format!("        {}sscc strong", "g".repeat(27)));
        let before = phases(window, &course(&[(1_000, 'g')], 9_000_000));
        assert_eq!(before, format!("        {}", "g".repeat(CELLS)));
        assert!(bars(Look::Plain, window, "", &[0, 9_000_000]).ends_with("| 0 in 10 ms"));
    }

    #[test]
    fn gaps_are_found() {
        assert_eq!(longest_gap(&[10, 20, 70, 80], 0, 100), 50);
        assert_eq!(longest_gap(&[80, 10, 20, 70], 0, 100), 50, "in whatever order");
        assert_eq!(longest_gap(&[10], 0, 100), 90, "up to the end");
        assert_eq!(longest_gap(&[], 5, 9), 4);
        assert_eq!(longest_gap(&[-50, 200], 0, 100), 100, "nothing within");
    }

    #[test]
    fn the_environment_says_what_can_be_shown() {
        let of = |vars: &[(&str, &str)]| {
            Look::of(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(of(&[("LANG", "C.UTF-8")]), Look::Blocks);
        assert_eq!(of(&[("LC_ALL", "de_DE.utf8"), ("LANG", "C")]), Look::Blocks);
        assert_eq!(of(&[("LC_ALL", "C"), ("LANG", "C.UTF-8")]), Look::Plain, "the first that is set counts");
        assert_eq!(of(&[("LC_ALL", ""), ("LANG", "C.UTF-8")]), Look::Blocks, "empty is not set");
        assert_eq!(of(&[]), Look::Plain);
        assert_eq!(of(&[("LANG", "C.UTF-8"), ("TERM", "dumb")]), Look::Plain);
        assert_eq!(of(&[("LANG", "C.UTF-8"), ("NO_COLOR", "1")]), Look::Plain);
    }
}
