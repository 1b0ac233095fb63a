//! The commands of the development loop.
fn main() {}
