//! `duet`: see the library beside this file.

fn main() {}
