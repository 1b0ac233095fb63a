//! One bad input, and the list of all.

use std::any::Any;
use std::fmt::Write as _;
use std::net::SocketAddr;

use leveret_amqp::Method;
use leveret_testkit::run_script;

use crate::wire::SocketWire;
use crate::{arguments, contents, crowds, frames, handshake, operations, times};

/// One bad input, and what should come of it.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) kind: u8,
    pub(crate) what: String,
    pub(crate) stage: Stage,
    steps: Steps,
}

/// Where a case is played: each of these is a broker of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// At one at which most are played, one after another.
    Common,
    /// At one whose memory is watched, one after another. It has never had to keep anything large.
    Watched,
    /// At one with short timeouts, for which it waits beside others.
    Impatient,
    /// The same at one with those that a broker has if nothing else is said.
    Patient,
}

#[derive(Debug)]
enum Steps {
    Script(String),
    Function(Play),
}

/// A case that no script can say.
pub(crate) type Play = fn(SocketAddr) -> Result<LeftOpen, String>;

/// The connections that a case leaves open, if any: they are closed when this is dropped.
pub(crate) type LeftOpen = Box<dyn Any>;

impl Case {
    pub(crate) fn play(&self, nth: usize, address: SocketAddr) -> Result<LeftOpen, String> {
        match &self.steps {
            Steps::Script(script) => {
                let mut wire = SocketWire::new(address);
                run_script(&mut wire, &script.replace('%', &nth.to_string()))?;
                Ok(Box::new(wire))
            }
            Steps::Function(play) => play(address),
        }
    }
}

/// All bad inputs. In their scripts `%` stands for a number that no other case has, as in `'q%'`.
#[derive(Debug, Default)]
pub(crate) struct Cases {
    kind: u8,
    list: Vec<Case>,
}

impl Cases {
    pub(crate) fn collect() -> Vec<Case> {
        let mut cases = Cases::default();
        handshake::list(&mut cases);
        frames::list(&mut cases);
        contents::list(&mut cases);
        arguments::list(&mut cases);
        operations::list(&mut cases);
        crowds::list(&mut cases);
        times::list(&mut cases);
        cases.list
    }

    /// What follows is of this kind.
    pub(crate) fn kind(&mut self, kind: u8) -> &mut Self {
        self.kind = kind;
        self
    }

    fn case(&mut self, stage: Stage, what: impl Into<String>, steps: Steps) -> &mut Self {
        self.list.push(Case { kind: self.kind, what: what.into(), stage, steps });
        self
    }

    pub(crate) fn script(&mut self, what: impl Into<String>, script: impl AsRef<str>) -> &mut Self {
        self.case(Stage::Common, what, Steps::Script(in_full(script.as_ref())))
    }

    pub(crate) fn function(&mut self, what: &str, play: Play) -> &mut Self {
        self.case(Stage::Common, what, Steps::Function(play))
    }

    pub(crate) fn waits(&mut self, what: &str, play: Play) -> &mut Self {
        self.case(Stage::Impatient, what, Steps::Function(play))
    }

    pub(crate) fn waits_long(&mut self, what: &str, play: Play) -> &mut Self {
        self.case(Stage::Patient, what, Steps::Function(play))
    }

    /// The broker takes no memory worth mentioning for what the case before this announces: neither meanwhile, nor as long as its
    /// connections are open, nor afterwards.
    pub(crate) fn takes_no_memory(&mut self) -> &mut Self {
        let case = self.list.last_mut().filter(|case| case.kind == self.kind).expect("a case stands before this");
        assert_eq!(
            case.stage,
            Stage::Common,
            "{}: only what is played in turn is watched, and said to be so once",
            case.what
        );
        case.stage = Stage::Watched;
        self
    }

    /// On an open connection with a channel, this input closes the connection.
    pub(crate) fn closes(&mut self, what: impl Into<String>, input: &str, reply: &str) -> &mut Self {
        self.script(
            what,
            format!(
                "
                C: basic.qos
                S: basic.qos-ok
                {input}
                S/0: connection.close {reply}
                C/0: connection.close-ok
                S/0: end
                "
            ),
        )
    }

    /// On an open channel, this input closes the channel, whose number can be used again.
    pub(crate) fn refuses(&mut self, what: impl Into<String>, input: &str, reply: &str) -> &mut Self {
        self.script(what, format!("{input}\nS: channel.close {reply}\n{REOPEN}"))
    }

    /// This is no fault: the channel goes on.
    pub(crate) fn tolerates(&mut self, what: impl Into<String>, conversation: &str) -> &mut Self {
        self.script(what, format!("{conversation}\n{GOES_ON}"))
    }
}

/// A script in which each exception says its code, and which method is at fault. That is the last one of a client, unless the
/// script says something else, as `505 0 0`, with or without a text between. One without a code is a mistake in the script.
fn in_full(script: &str) -> String {
    let mut last = "";
    let mut out = String::new();
    for line in script.lines().map(str::trim) {
        match line.split_once(": ") {
            Some((who, said)) if who.starts_with('C') => last = said,
            Some((who, said)) if who.starts_with('S') => {
                let (name, reply) = said.split_once(' ').unwrap_or((said, ""));
                if matches!(name, "connection.close" | "channel.close") {
                    let code = reply.split(' ').next().and_then(|code| code.parse::<u16>().ok());
                    assert!(code.is_some(), "{line}: with which code?");
                    let _ = writeln!(out, "{who}: {name} {}", attributed(reply, last));
                    continue;
                }
            }
            _ => {}
        }
        let _ = writeln!(out, "{line}");
    }
    out
}

/// A reply, and class and method at fault: those that it names, or else those of what was said last.
fn attributed(reply: &str, said: &str) -> String {
    let (reply, (class, method)) = named(reply).unwrap_or_else(|| {
        (reply, spoken(said).unwrap_or_else(|| panic!("{reply}: for which method? {said} is none")))
    });
    format!("{reply} class-id={class} method-id={method}")
}

/// Class and method of what a client says, if it is a method.
fn spoken(said: &str) -> Option<(u16, u16)> {
    let Some(bytes) = said.strip_prefix("raw 01 ") else {
        let name = said.split(' ').next()?;
        return Method::ALL.iter().find(|method| method.name == name).map(|method| (method.class, method.method));
    };
    // Behind the number of the channel and the length of the payload.
    let mut ids = bytes.split(' ').skip(6).map(|byte| u16::from_str_radix(byte, 16).ok());
    let mut id = || Some(ids.next()?? << 8 | ids.next()??);
    Some((id()?, id()?))
}

/// The two numbers at the end of a reply, and what stands before them.
fn named(reply: &str) -> Option<(&str, (u16, u16))> {
    let (rest, method) = reply.rsplit_once(' ')?;
    let (rest, class) = rest.rsplit_once(' ')?;
    Some((rest, (class.parse().ok()?, method.parse().ok()?)))
}

/// After a channel exception.
pub(crate) const REOPEN: &str = "
    C: channel.close-ok
    C: channel.open
    S: channel.open-ok
    ";

pub(crate) const GOES_ON: &str = "
    C: basic.qos
    S: basic.qos-ok
    ";

/// The lines with which a connection logs in by itself, as a user whose password is their name.
pub(crate) fn login(connection: &str, user: &str) -> String {
    format!(
        "
        C{connection}/0: protocol-header
        S{connection}/0: connection.start
        C{connection}/0: connection.start-ok mechanism='PLAIN' response='\\0{user}\\0{user}'
        S{connection}/0: connection.tune
        C{connection}/0: connection.tune-ok
        C{connection}/0: connection.open virtual-host='/'
        S{connection}/0: connection.open-ok
        C{connection}: channel.open
        S{connection}: channel.open-ok
        "
    )
}

/// A line of the client with these bytes.
pub(crate) fn raw(bytes: &[u8]) -> String {
    bytes.iter().fold("C: raw".to_owned(), |mut line, byte| {
        let _ = write!(line, " {byte:02x}");
        line
    })
}

/// A line with a whole frame, whatever it says.
pub(crate) fn frame(kind: u8, channel: u16, payload: &[u8]) -> String {
    let mut bytes = vec![kind];
    bytes.extend(channel.to_be_bytes());
    bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend(payload);
    bytes.push(leveret_amqp::frame::FRAME_END);
    raw(&bytes)
}

/// A line with a method frame.
pub(crate) fn method(channel: u16, class: u16, method: u16, arguments: &[u8]) -> String {
    frame(1, channel, &[&class.to_be_bytes(), &method.to_be_bytes(), arguments].concat())
}

/// Bytes behind their length.
pub(crate) fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// A field of type `F` or `A` with so many levels below it.
pub(crate) fn nested(letter: u8, levels: usize) -> Vec<u8> {
    // From the inside: what a level takes before its content.
    let name: &[u8] = if letter == b'F' { b"\x01k" } else { b"" };
    let level_bytes = name.len() + 5;
    let mut field = Vec::with_capacity(level_bytes * levels + 7);
    field.extend(b"\x01k");
    for level in (0..levels).rev() {
        if level + 1 < levels {
            field.extend(name);
        }
        field.push(letter);
        field.extend(u32::try_from(level_bytes * level).unwrap().to_be_bytes());
    }
    field
}
