//! The targets.

mod client;
mod codec;
mod journal;
mod matching;
mod records;
mod text;

use crate::Target;

/// All of them.
pub const TARGETS: [Target; 14] = [
    Target { name: "frames", run: codec::frames },
    Target { name: "methods", run: codec::methods },
    Target { name: "tables", run: codec::tables },
    Target { name: "content", run: codec::content },
    Target { name: "assembly", run: client::assembly },
    Target { name: "connection", run: client::connection },
    Target { name: "batch", run: journal::batch },
    Target { name: "recovery", run: journal::recovery },
    Target { name: "checkpoint", run: records::checkpoint },
    Target { name: "definitions", run: text::definitions },
    Target { name: "uri", run: text::uri },
    Target { name: "configuration", run: text::configuration },
    Target { name: "topic", run: matching::topic },
    Target { name: "headers", run: matching::headers },
];
