//! What is shown to those who look at a broker from outside, by the field names of RabbitMQ's HTTP API.
//!
//! Must not know: how it is written down; that is up to whoever serialises it.

mod fields;

pub use self::fields::Fields;
