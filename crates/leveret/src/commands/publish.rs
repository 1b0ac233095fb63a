//! `leveret publish`.

use std::io::{self, IsTerminal, Read};

use leveret_client::{BasicProperties, Channel, Confirm, FieldTable, PublishTo, Verdict};

use super::arguments::{Pair, Property, parse_pair, parse_property, table};
use super::{BrokerUrl, Failure, one_line};

/// How many publishes may await their confirm.
const WINDOW: usize = 1000;

/// Publish a message to a queue, or to an exchange.
///
/// Without BODY the body is what standard input has, to the last byte. A message that reaches no queue is an error.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "leveret publish [OPTIONS] <QUEUE> [BODY]\n       leveret publish [OPTIONS] --exchange <EXCHANGE> [[QUEUE] BODY]",
    after_help = "Examples:\n  \
        leveret publish tasks 'hello'\n  \
        leveret publish tasks --persistent --confirm < body.json\n  \
        leveret publish --exchange logs --routing-key disk.error 'disk is full'"
)]
pub(crate) struct Publish {
    /// The queue. With --exchange it may be left out; if it is there, it is the routing key unless --routing-key
    /// says another.
    #[arg(value_name = "QUEUE", required_unless_present = "exchange")]
    queue_or_body: Option<String>,
    /// The body. With --exchange, a lone argument is the body.
    #[arg(allow_negative_numbers = true)]
    body: Option<String>,
    /// Publish to this exchange instead of straight to a queue.
    #[arg(long)]
    exchange: Option<String>,
    /// The routing key for the exchange. Without it the key is empty.
    #[arg(long, requires = "exchange")]
    routing_key: Option<String>,
    /// A header of the message. Integers, true and false get their type, anything else is text. May be repeated.
    #[arg(long = "header", value_name = "K=V", value_parser = parse_pair)]
    headers: Vec<Pair>,
    /// A property of the message: content-type, content-encoding, delivery-mode, priority, correlation-id, reply-to,
    /// expiration, message-id, timestamp, type, user-id or app-id. May be repeated.
    #[arg(long = "property", value_name = "K=V", value_parser = parse_property)]
    properties: Vec<Property>,
    /// Ask for a message that survives a restart in a durable queue: delivery-mode=2.
    #[arg(long)]
    persistent: bool,
    /// Wait until the broker confirms that it has the message.
    #[arg(long)]
    confirm: bool,
    /// How many times to publish the message.
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true)]
    count: u64,
    #[command(flatten)]
    broker: BrokerUrl,
}

/// Where the message goes and what it says, once the arguments are told apart.
#[derive(Debug, PartialEq, Eq)]
struct Parts {
    exchange: String,
    routing_key: String,
    body: Option<String>,
}

impl Publish {
    pub(super) fn run(mut self) -> Result<(), Failure> {
        let Parts { exchange, routing_key, body } = self.take_parts();
        for (what, text) in [("the exchange", &exchange), ("the queue or routing key", &routing_key)] {
            if text.len() > 255 {
                return Err(Failure::Usage(format!("{what} has more than 255 bytes")));
            }
        }
        let body = body.map_or_else(read_standard_input, |body| Ok(body.into_bytes()))?;
        let mut connection = self.broker.connect()?;
        connection.on_blocked(|reason| eprintln!("the broker takes no messages: {}; waiting", one_line(reason)));
        let mut channel = connection.open_channel()?;
        let to = PublishTo { exchange: &exchange, routing_key: &routing_key, mandatory: true };
        let headers = table(&self.headers);
        self.publish_all(&mut channel, to, self.properties(&headers), &body)?;
        Ok(connection.close()?)
    }

    fn take_parts(&mut self) -> Parts {
        let (first, second) = (self.queue_or_body.take(), self.body.take());
        let routing_key = self.routing_key.take();
        let Some(exchange) = self.exchange.take() else {
            let exchange = String::new();
            return Parts { exchange, routing_key: first.unwrap_or_default(), body: second };
        };
        let (queue, body) = if second.is_some() { (first, second) } else { (None, first) };
        Parts { exchange, routing_key: routing_key.or(queue).unwrap_or_default(), body }
    }

    fn properties<'p>(&'p self, headers: &'p FieldTable) -> BasicProperties<'p> {
        let mut properties = BasicProperties::default();
        if self.persistent {
            properties.delivery_mode = Some(2);
        }
        if !self.headers.is_empty() {
            properties.headers = Some(headers.as_table());
        }
        for property in &self.properties {
            property.set(&mut properties);
        }
        properties
    }

    /// Without confirms a last round trip makes sure that the broker has handled every publish: what it could not
    /// route came back before its answer.
    fn publish_all(
        &self,
        channel: &mut Channel<'_>,
        to: PublishTo<'_>,
        properties: BasicProperties<'_>,
        body: &[u8],
    ) -> Result<(), Failure> {
        let mut refused_count = 0;
        let count_refused = |confirms: Vec<Confirm>| -> u64 {
            let nacked = confirms.iter().filter(|confirm| confirm.verdict == Verdict::Nacked);
            nacked.map(|confirm| confirm.last - confirm.first + 1).sum()
        };
        if self.confirm {
            channel.confirm_select()?;
        }
        for _ in 0..self.count {
            if self.confirm {
                refused_count += count_refused(channel.wait_confirms(WINDOW - 1)?);
            }
            channel.publish(to, &properties, body)?;
            check_returned(channel)?;
        }
        if self.confirm {
            refused_count += count_refused(channel.wait_confirms(0)?);
        } else {
            channel.sync()?;
        }
        check_returned(channel)?;
        if refused_count > 0 { Err(Failure::Refused { count: refused_count }) } else { Ok(()) }
    }
}

fn check_returned(channel: &mut Channel<'_>) -> Result<(), Failure> {
    let Some(returned) = channel.take_returned() else {
        return Ok(());
    };
    let (exchange, routing_key) = (returned.exchange.to_string(), returned.routing_key.to_string());
    Err(if exchange.is_empty() {
        Failure::NoQueue { queue: routing_key }
    } else {
        Failure::Unroutable { exchange, routing_key }
    })
}

fn read_standard_input() -> Result<Vec<u8>, Failure> {
    if io::stdin().is_terminal() {
        eprintln!("Type the body; Ctrl-D on a line of its own ends it.");
    }
    let mut body = Vec::new();
    io::stdin().lock().read_to_end(&mut body).map_err(Failure::Input)?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use leveret_client::Value;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        publish: Publish,
    }

    fn parse(arguments: &[&str]) -> Publish {
        Cli::try_parse_from(std::iter::once(&"publish").chain(arguments)).unwrap().publish
    }

    #[test]
    fn arguments_are_told_apart() {
        type Case<'a> = (&'a [&'a str], (&'a str, &'a str, Option<&'a str>));
        let table: [Case<'_>; 7] = [
            (&["q", "hello"], ("", "q", Some("hello"))),
            (&["q"], ("", "q", None)),
            (&["--exchange", "e"], ("e", "", None)),
            (&["--exchange", "e", "hello"], ("e", "", Some("hello"))),
            (&["--exchange", "e", "--routing-key", "k", "hello"], ("e", "k", Some("hello"))),
            (&["q", "hello", "--exchange", "e"], ("e", "q", Some("hello"))),
            (&["q", "hello", "--exchange", "e", "--routing-key", "k"], ("e", "k", Some("hello"))),
        ];
        for (arguments, (exchange, routing_key, body)) in table {
            let (exchange, routing_key) = (exchange.to_owned(), routing_key.to_owned());
            let expected = Parts { exchange, routing_key, body: body.map(str::to_owned) };
            assert_eq!(parse(arguments).take_parts(), expected, "{arguments:?}");
        }
        assert!(Cli::try_parse_from(["publish"]).is_err());
        assert!(Cli::try_parse_from(["publish", "q", "b", "--routing-key", "k"]).is_err());
    }

    #[test]
    fn persistent_gives_way_to_an_explicit_delivery_mode() {
        let publish = parse(&["q", "b", "--persistent", "--header", "n=1"]);
        let headers = table(&publish.headers);
        let properties = publish.properties(&headers);
        assert_eq!(properties.delivery_mode, Some(2));
        assert_eq!(properties.headers.and_then(|headers| headers.get("n")), Some(Value::I32(1)));
        let publish = parse(&["q", "b", "--persistent", "--property", "delivery_mode=1"]);
        let headers = table(&publish.headers);
        assert_eq!(publish.properties(&headers).delivery_mode, Some(1));
        assert_eq!(publish.properties(&headers).headers, None);
    }
}
