//! An administrator in a virtual host, without a socket: declares what definitions and management ask for, by the same commands
//! as clients.
//!
//! Owns: one command after the other, and what became of it.
//! Must not know: where the commands come from.
//!
//! A rehearsal does the same with a virtual host of its own, of which nobody knows, so a fault shows before anything is changed.

use std::sync::Arc;

use leveret_broker::connection::reply::Exception;
use leveret_broker::moment::Moment;
use leveret_broker::names::{ChannelId, VhostName};
use leveret_broker::node::Vhost;
use leveret_broker::vhost::Progress;
use leveret_broker::vhost::command::Wait;
use leveret_broker::vhost::policy::{InvalidPolicy, Policy};
use leveret_broker::{Command, Commands, ConnectionId, Effects, Output, VirtualHost};

use crate::hub::{Attached, Hub};
use crate::outbox::Outbox;

/// An administrator in one virtual host.
#[derive(Debug)]
pub struct Operator {
    place: Place,
    channel: ChannelId,
    /// Whether the channel has to be opened, as it is new or something was refused on it.
    is_closed: bool,
}

enum Place {
    Running { hub: Arc<Hub>, attached: Attached, outbox: Arc<Outbox> },
    Rehearsal { vhost: Box<VirtualHost>, id: ConnectionId, effects: Effects, now: Moment },
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Place::Running { .. } => "Running",
            Place::Rehearsal { .. } => "Rehearsal",
        })
    }
}

/// What was asked for was refused, and changed nothing: what a client would be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It exists, with other properties.
    #[error("{0}")]
    Inequivalent(String),
    /// For any other reason.
    #[error("{0}")]
    Other(String),
}

impl From<Exception> for Refused {
    fn from(exception: Exception) -> Self {
        if exception.is_inequivalent() {
            Refused::Inequivalent(exception.text)
        } else {
            Refused::Other(exception.text)
        }
    }
}

impl Operator {
    pub(crate) fn new(hub: &Arc<Hub>) -> Self {
        let outbox = Arc::default();
        let (hub, attached) = (Arc::clone(hub), hub.connect_administrator(&outbox));
        Operator::at(Place::Running { hub, attached, outbox })
    }

    /// In a virtual host of its own, which begins empty and is otherwise as the node says.
    pub fn rehearsal(name: &VhostName, like: &Vhost) -> Self {
        let mut vhost = Box::new(VirtualHost::new(name.clone(), rand::random()));
        vhost.follow(like);
        let id = vhost.connect_administrator();
        let now = Moment { monotonic: std::time::Duration::ZERO, wall: std::time::Duration::ZERO };
        Operator::at(Place::Rehearsal { vhost, id, effects: Effects::default(), now })
    }

    fn at(place: Place) -> Self {
        Operator { place, channel: ChannelId::FIRST, is_closed: true }
    }

    /// Executes a command that is made for a channel. Waits for the lock of the virtual host, and for nothing else.
    ///
    /// # Errors
    /// If it is refused, as a client would be told.
    pub fn execute(&mut self, command: impl FnOnce(ChannelId) -> Command) -> Result<(), Refused> {
        let mut commands = Commands::default();
        if std::mem::take(&mut self.is_closed) {
            commands.push(Command::OpenChannel(self.channel));
        }
        commands.push(command(self.channel));
        let mut refused = None;
        for output in self.place.run(&mut commands) {
            if let Output::CloseChannel(_, exception) = output {
                refused = Some(Refused::from(exception));
            }
        }
        match refused {
            None => Ok(()),
            Some(refused) => {
                self.is_closed = true;
                commands.push(Command::CloseChannel(self.channel, Wait::NoWait));
                self.place.run(&mut commands);
                Err(refused)
            }
        }
    }

    /// Sets a policy; it takes effect in steps.
    ///
    /// # Errors
    /// If the virtual host can have no more.
    pub fn set_policy(&mut self, policy: Policy) -> Result<(), InvalidPolicy> {
        match &mut self.place {
            Place::Running { hub, .. } => hub.set_policy(policy),
            Place::Rehearsal { vhost, effects, now, .. } => vhost.set_policy(*now, policy, effects).map(drop),
        }
    }

    /// Returns once everything is durable that was asked for.
    pub async fn finish(self) {
        if let Place::Running { hub, .. } = self.place {
            hub.durable().await;
        }
    }
}

impl Place {
    /// Executes commands to their end, and says what follows for who gave them.
    fn run(&mut self, commands: &mut Commands) -> Vec<Output> {
        let mut outputs = Vec::new();
        match self {
            Place::Running { attached, outbox, .. } => {
                while attached.execute(commands).progress == Progress::More {}
                attached.journal().have_written();
                outbox.take(&mut outputs);
            }
            Place::Rehearsal { vhost, id, effects, now } => {
                while vhost.handle_batch(*now, *id, commands, effects) == Progress::More {}
                effects.take_outputs(|to, said, _| {
                    if to == *id {
                        outputs.append(said);
                    }
                });
                effects.changes.clear();
            }
        }
        outputs
    }
}
