//! `leveret list`.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::Duration;

use clap::ValueEnum;
use serde_json::Value;

use super::filter::{Filter, Order, parse_filter, parse_order};
use super::table::{Format, write};
use super::{DataDir, Failure, encoded};

/// From so much on, of 1, two names are taken for one and a misspelling of it.
const SIMILARITY_MIN: f64 = 0.8;

const EXAMPLES: &str = "Examples:
  leveret list queues --filter 'messages>1000' --sort -messages
  leveret list connections --columns name,user,state --format csv
  leveret list queues --watch=5

A filter is a field, an operator and a value without spaces between them or with: messages>1000, name~orders. The operators
are = != < <= > >= and ~ (contains). Numbers are compared as numbers, anything else as text. Of several filters all must
hold. A field in a field is written with a dot: queue.name, arguments.x-max-length.";

/// List what is in a running broker.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct List {
    /// What.
    what: What,
    /// Only what is in this virtual host.
    #[arg(long, value_name = "NAME")]
    vhost: Option<String>,
    /// How it is printed.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Only what this holds for, such as messages>1000; may be given several times, and then all must hold.
    #[arg(long, value_name = "FIELD=VALUE", value_parser = parse_filter)]
    filter: Vec<Filter>,
    /// By this field, the least first; with a - before it, the greatest.
    #[arg(long, value_name = "FIELD", value_parser = parse_order, allow_hyphen_values = true)]
    sort: Option<Order>,
    /// These fields in this order, separated by commas.
    #[arg(long, value_name = "FIELD,...", value_delimiter = ',')]
    columns: Vec<String>,
    /// Again each so many seconds, until Ctrl-C.
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    watch: Option<u64>,
    #[command(flatten)]
    broker: DataDir,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Queues,
    Exchanges,
    Bindings,
    Connections,
    Channels,
    Consumers,
    Users,
    Vhosts,
    Permissions,
    TopicPermissions,
    Policies,
    OperatorPolicies,
    Parameters,
}

const POLICY_COLUMNS: &[&str] = &["vhost", "name", "pattern", "apply-to", "priority", "definition"];

/// How a list is had and shown.
struct Kind {
    /// All of them.
    path: &'static str,
    /// Those of one virtual host, whose name stands between the two; none: they are in no virtual host.
    path_in: Option<(&'static str, &'static str)>,
    /// What is shown unless columns are named.
    columns: &'static [&'static str],
    /// The other fields that there are.
    fields: &'static [&'static str],
}

impl What {
    fn kind(self) -> Kind {
        match self {
            What::Queues => Kind {
                path: "/api/queues",
                path_in: Some(("/api/queues/", "")),
                columns: &[
                    "vhost",
                    "name",
                    "type",
                    "messages",
                    "messages_ready",
                    "messages_unacknowledged",
                    "consumers",
                ],
                fields: &[
                    "durable",
                    "auto_delete",
                    "exclusive",
                    "arguments",
                    "policy",
                    "operator_policy",
                    "effective_policy_definition",
                    "state",
                    "owner_pid_details",
                ],
            },
            What::Exchanges => Kind {
                path: "/api/exchanges",
                path_in: Some(("/api/exchanges/", "")),
                columns: &["vhost", "name", "type", "durable", "auto_delete", "internal"],
                fields: &["arguments", "policy", "messages_delayed"],
            },
            What::Bindings => Kind {
                path: "/api/bindings",
                path_in: Some(("/api/bindings/", "")),
                columns: &["vhost", "source", "destination_type", "destination", "routing_key", "arguments"],
                fields: &[],
            },
            What::Connections => Kind {
                path: "/api/connections",
                path_in: Some(("/api/vhosts/", "/connections")),
                columns: &[
                    "name",
                    "user_provided_name",
                    "user",
                    "vhost",
                    "state",
                    "channels",
                    "recv_oct",
                    "send_oct",
                ],
                fields: &[
                    "protocol",
                    "auth_mechanism",
                    "ssl",
                    "peer_host",
                    "peer_port",
                    "host",
                    "port",
                    "connected_at",
                    "frame_max",
                    "channel_max",
                    "timeout",
                    "client_properties",
                ],
            },
            What::Channels => Kind {
                path: "/api/channels",
                path_in: Some(("/api/vhosts/", "/channels")),
                columns: &[
                    "name",
                    "user",
                    "vhost",
                    "consumer_count",
                    "messages_unacknowledged",
                    "prefetch_count",
                    "global_prefetch_count",
                    "transactional",
                ],
                fields: &["number", "state", "connection_details"],
            },
            What::Consumers => Kind {
                path: "/api/consumers",
                path_in: Some(("/api/consumers/", "")),
                columns: &[
                    "queue.vhost",
                    "queue.name",
                    "consumer_tag",
                    "channel_details.name",
                    "ack_required",
                    "prefetch_count",
                    "activity_status",
                ],
                fields: &["queue", "channel_details", "exclusive", "active", "arguments"],
            },
            What::Users => Kind {
                path: "/api/users",
                path_in: None,
                columns: &["name", "tags", "limits"],
                fields: &["password_hash", "hashing_algorithm"],
            },
            What::Vhosts => Kind {
                path: "/api/vhosts",
                path_in: None,
                columns: &[
                    "name",
                    "description",
                    "tags",
                    "default_queue_type",
                    "protected_from_deletion",
                    "limits",
                ],
                fields: &["metadata"],
            },
            What::Permissions => Kind {
                path: "/api/permissions",
                path_in: Some(("/api/vhosts/", "/permissions")),
                columns: &["vhost", "user", "configure", "write", "read"],
                fields: &[],
            },
            What::TopicPermissions => Kind {
                path: "/api/topic-permissions",
                path_in: None,
                columns: &["vhost", "user", "exchange", "write", "read"],
                fields: &[],
            },
            What::Policies => Kind {
                path: "/api/policies",
                path_in: Some(("/api/policies/", "")),
                columns: POLICY_COLUMNS,
                fields: &[],
            },
            What::OperatorPolicies => Kind {
                path: "/api/operator-policies",
                path_in: Some(("/api/operator-policies/", "")),
                columns: POLICY_COLUMNS,
                fields: &[],
            },
            What::Parameters => {
                Kind { path: "/api/global-parameters", path_in: None, columns: &["name", "value"], fields: &[] }
            }
        }
    }
}

impl Kind {
    /// The names that a column, a filter or an order can begin with.
    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.columns.iter().chain(self.fields).copied().filter(|name| !name.contains('.'))
    }

    fn check(&self, field: &str) -> Result<(), Failure> {
        let first = field.split('.').next().unwrap_or(field);
        if self.names().any(|name| name == first) {
            return Ok(());
        }
        let similar = self.names().map(|name| (strsim::jaro_winkler(name, first), name));
        let nearest = similar.filter(|(similarity, _)| *similarity >= SIMILARITY_MIN);
        Err(Failure::Usage(match nearest.max_by(|a, b| a.0.total_cmp(&b.0)) {
            Some((_, nearest)) => format!("no field '{first}'; the nearest is '{nearest}'"),
            None => format!("no field '{first}'; there are {}", self.names().collect::<Vec<_>>().join(", ")),
        }))
    }
}

/// Whoever wants to see the hash of a password names it.
fn hide_passwords(elements: &mut [Value]) {
    for object in elements.iter_mut().filter_map(Value::as_object_mut) {
        object.remove("password_hash");
        object.remove("hashing_algorithm");
    }
}

impl List {
    pub(super) fn run(self) -> Result<(), Failure> {
        let kind = self.what.kind();
        let named = self.columns.iter().map(String::as_str);
        let filtered = self.filter.iter().map(|filter| filter.field.as_str());
        let sorted = self.sort.iter().map(|order| order.field.as_str());
        named.clone().chain(filtered).chain(sorted).try_for_each(|field| kind.check(field))?;
        let columns: Vec<_> = match self.format {
            Format::Table | Format::Csv if self.columns.is_empty() => kind.columns.to_vec(),
            Format::Table | Format::Csv | Format::Json => named.collect(),
        };
        let path = match (&self.vhost, kind.path_in) {
            (Some(vhost), Some((before, behind))) => format!("{before}{}{behind}", encoded(vhost)),
            (Some(_), None) => {
                return Err(Failure::Usage("--vhost is for what is in a virtual host; use --filter".into()));
            }
            (None, _) => kind.path.to_owned(),
        };
        let broker = self.broker.client()?;
        let stdout = io::stdout();
        let clears = self.watch.is_some() && self.format == Format::Table && stdout.is_terminal();
        let mut out = BufWriter::new(stdout.lock());
        loop {
            let list = broker.get(&path)?.ok_or_else(|| match &self.vhost {
                Some(vhost) => Failure::NoVhost(vhost.clone()),
                None => Failure::NoSuchList,
            })?;
            let Value::Array(mut elements) = list else { return Err(Failure::NoSuchList) };
            if self.columns.is_empty() {
                hide_passwords(&mut elements);
            }
            elements.retain(|element| self.filter.iter().all(|filter| filter.takes(element)));
            if let Some(order) = &self.sort {
                order.sort(&mut elements);
            }
            if clears {
                // To the upper left, and nothing below.
                out.write_all(b"\x1b[H\x1b[2J")?;
            }
            write(&mut out, self.format, &columns, &elements)?;
            out.flush()?;
            let Some(seconds) = self.watch else { return Ok(()) };
            std::thread::sleep(Duration::from_secs(seconds));
            if !clears && self.format == Format::Table {
                out.write_all(b"\n")?;
            }
        }
    }
}
