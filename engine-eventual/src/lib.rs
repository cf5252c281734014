//! engine-eventual
