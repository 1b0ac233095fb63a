//! `leveret consume`.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use leveret_client::{AckMode, CancelledBy, Channel, ConsumeOptions, ConsumerEvent, ShortString};

use super::interrupt::stop_at_ctrl_c;
use super::output::{Format, is_output_closed, write_delivery};
use super::{BrokerUrl, Failure};

/// How often a wait looks up to see whether Ctrl-C was pressed.
const LOOK_UP: Duration = Duration::from_millis(100);

/// Most messages that are on their way to us at once when they are acked.
const PREFETCH_MAX: u64 = 100;

/// Print the messages of a queue as they arrive, and remove them from it.
///
/// Runs until Ctrl-C, or until --count messages were printed. With --ack or --count a message leaves the queue only
/// after it was printed; without them, as soon as the broker has sent it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret consume tasks --ack --format json")]
pub(crate) struct Consume {
    /// The queue.
    queue: String,
    /// Ack each message after it was printed, so that none is lost when this command is stopped.
    #[arg(long)]
    ack: bool,
    /// End after this many messages, and take no more than these from the queue.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// How messages are printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    broker: BrokerUrl,
}

/// How many messages the broker may send, and which of them are acked when.
///
/// To take exactly `count` messages, the broker must never be allowed to send more: it sends what was acked plus
/// the prefetch. So the last ones are acked only when the consumer is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// Settled by sending, without end.
    AutoAck,
    /// Acked one by one, without end.
    Ack,
    /// Acked one by one up to number `ack_each_max`, the rest at the end.
    Exactly { count: u64, prefetch_count: u16, ack_each_max: u64 },
}

impl Plan {
    fn new(count: Option<u64>, ack: bool) -> Self {
        match count {
            None if ack => Plan::Ack,
            None => Plan::AutoAck,
            Some(count) => {
                // A tenth, so that only few are printed and not yet acked.
                let prefetch = (count / 10).clamp(1, PREFETCH_MAX);
                let prefetch_count = u16::try_from(prefetch).unwrap_or(u16::MAX);
                Plan::Exactly { count, prefetch_count, ack_each_max: count.saturating_sub(prefetch) }
            }
        }
    }

    fn prefetch_count(self) -> u16 {
        match self {
            Plan::AutoAck => 0,
            Plan::Ack => u16::try_from(PREFETCH_MAX).unwrap_or(u16::MAX),
            Plan::Exactly { prefetch_count, .. } => prefetch_count,
        }
    }

    fn ack_mode(self) -> AckMode {
        match self {
            Plan::AutoAck => AckMode::Auto,
            Plan::Ack | Plan::Exactly { .. } => AckMode::Manual,
        }
    }

    /// Whether the message printed as number `printed` is acked now.
    fn acks_now(self, printed: u64) -> bool {
        match self {
            Plan::AutoAck => false,
            Plan::Ack => true,
            Plan::Exactly { ack_each_max, .. } => printed <= ack_each_max,
        }
    }

    fn is_complete(self, printed: u64) -> bool {
        match self {
            Plan::AutoAck | Plan::Ack => false,
            Plan::Exactly { count, .. } => printed >= count,
        }
    }
}

impl Consume {
    pub(super) fn run(self) -> Result<(), Failure> {
        let stop = stop_at_ctrl_c().map_err(Failure::Signals)?;
        let mut connection = self.broker.connect()?;
        let mut channel = connection.open_channel()?;
        let result = self.consume(&mut channel, &stop, &mut io::stdout().lock());
        // The goodbye also makes sure that the acks arrived. A failure before it is the better reason.
        let closed = connection.close();
        result?;
        Ok(closed?)
    }

    fn consume(&self, channel: &mut Channel<'_>, stop: &AtomicBool, out: &mut impl Write) -> Result<(), Failure> {
        let plan = Plan::new(self.count, self.ack);
        if plan.is_complete(0) {
            channel.check_queue(&self.queue)?;
            return Ok(());
        }
        channel.qos(plan.prefetch_count())?;
        let options = ConsumeOptions { ack_mode: plan.ack_mode(), ..ConsumeOptions::default() };
        let consumer_tag = channel.consume(&self.queue, &options)?;
        let mut printed = Printed::default();
        let result = self.print_all(channel, plan, stop, out, &consumer_tag, &mut printed);
        // Whatever ended it: what was printed is acked.
        if let Some(delivery_tag) = printed.not_acked {
            channel.ack_up_to(delivery_tag)?;
        }
        result
    }

    fn print_all(
        &self,
        channel: &mut Channel<'_>,
        plan: Plan,
        stop: &AtomicBool,
        out: &mut impl Write,
        consumer_tag: &ShortString,
        printed: &mut Printed,
    ) -> Result<(), Failure> {
        let mut is_ending = false;
        loop {
            if !is_ending && (stop.load(Ordering::Relaxed) || plan.is_complete(printed.count)) {
                channel.start_cancel(consumer_tag)?;
                is_ending = true;
            }
            match channel.next_event(LOOK_UP)? {
                None if is_output_closed() => return Err(Failure::Output(io::ErrorKind::BrokenPipe.into())),
                None => {}
                // Not printed, not acked: it goes back to the queue.
                Some(ConsumerEvent::Delivery(_)) if is_ending && plan.ack_mode() == AckMode::Manual => {}
                // Settled by sending: printed also after Ctrl-C, or it would be lost.
                Some(ConsumerEvent::Delivery(delivery)) => {
                    write_delivery(out, self.format, &delivery).map_err(Failure::Output)?;
                    printed.count += 1;
                    if plan.acks_now(printed.count) {
                        channel.ack(delivery.delivery_tag)?;
                        channel.flush()?;
                    } else if plan.ack_mode() == AckMode::Manual {
                        printed.not_acked = Some(delivery.delivery_tag);
                    }
                }
                Some(ConsumerEvent::Cancelled { by: CancelledBy::Client, .. }) => return Ok(()),
                Some(ConsumerEvent::Cancelled { by: CancelledBy::Broker, .. }) => {
                    return Err(Failure::Cancelled { queue: self.queue.clone() });
                }
            }
        }
    }
}

/// How far printing came.
#[derive(Debug, Default)]
struct Printed {
    count: u64,
    /// The last message that was printed and not acked.
    not_acked: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The broker sends up to what was acked plus the prefetch: never more than `count`, and `count` in the end.
    #[test]
    fn exactly_count_messages_are_ever_sent() {
        for count in (1..=300).chain([5000, u64::MAX]) {
            for ack in [false, true] {
                let plan = Plan::new(Some(count), ack);
                let Plan::Exactly { prefetch_count, ack_each_max, .. } = plan else { panic!("{plan:?}") };
                assert_eq!(ack_each_max + u64::from(prefetch_count), count);
                assert!(plan.acks_now(ack_each_max) && !plan.acks_now(ack_each_max + 1));
                assert!(plan.is_complete(count) && !plan.is_complete(count - 1));
            }
        }
        assert!(Plan::new(Some(0), false).is_complete(0));
    }

    #[test]
    fn without_a_count_ack_is_what_the_option_says() {
        assert_eq!(Plan::new(None, false).ack_mode(), AckMode::Auto);
        assert_eq!(Plan::new(None, true).ack_mode(), AckMode::Manual);
        assert!(Plan::new(None, true).acks_now(1_000_000));
        assert!(!Plan::new(None, true).is_complete(u64::MAX));
    }
}
