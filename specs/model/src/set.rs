//! Small sets of small numbers: members, writes.

use std::fmt;

/// A set of numbers below eight.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Set(u8);

impl Set {
    /// The set that holds nothing.
    pub const EMPTY: Set = Set(0);

    /// The set of `item` alone.
    #[must_use]
    pub const fn of(item: u8) -> Set {
        Set(1 << item)
    }

    /// The numbers below `count`.
    #[must_use]
    pub const fn below(count: u8) -> Set {
        Set((1 << count) - 1)
    }

    /// Whether it holds `item`.
    #[must_use]
    pub const fn has(self, item: u8) -> bool {
        self.0 & (1 << item) != 0
    }

    /// What is in either.
    #[must_use]
    pub const fn or(self, other: Set) -> Set {
        Set(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Set) -> Set {
        Set(self.0 & other.0)
    }

    /// What is here and not in `other`.
    #[must_use]
    pub const fn minus(self, other: Set) -> Set {
        Set(self.0 & !other.0)
    }

    /// Whether everything in `other` is here.
    #[must_use]
    pub const fn covers(self, other: Set) -> bool {
        other.0 & !self.0 == 0
    }

    /// How many it holds.
    #[must_use]
    pub fn len(self) -> u8 {
        u8::try_from(self.0.count_ones()).unwrap_or(u8::MAX)
    }

    /// Whether it holds nothing.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its items, rising.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..8).filter(move |item| self.has(*item))
    }

    /// Its items by name, as a timeline shows them: `{A, C}`, `{}`.
    #[must_use]
    pub fn named(self, name: fn(u8) -> char) -> String {
        let names: Vec<String> = self.iter().map(|item| name(item).to_string()).collect();
        format!("{{{}}}", names.join(", "))
    }
}

impl FromIterator<u8> for Set {
    fn from_iter<I: IntoIterator<Item = u8>>(items: I) -> Set {
        items.into_iter().fold(Set::EMPTY, |set, item| set.or(Set::of(item)))
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The name of a member: A, B, C.
#[must_use]
pub fn node(item: u8) -> char {
    char::from(b'A' + item)
}

/// The name of a write: x, y, z.
#[must_use]
pub fn write(item: u8) -> char {
    char::from(b'x' + item)
}
