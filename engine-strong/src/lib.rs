//! engine-strong
