//! Finding addresses to listen on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

use crate::limits::FREE_PORT_TRIES;

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there already.
    #[error(
        "port {0} is already in use on {1}: stop what listens there (another broker?), or choose another port with --amqp-port N"
    )]
    InUse(u16, IpAddr),
    /// The address is not this machine's, or not ours to use.
    #[error(
        "cannot listen on {0}: {1}; choose another address with --bind ADDR or another port with --amqp-port N"
    )]
    Refused(SocketAddr, io::Error),
    /// One of the addresses stands for another, too.
    #[error("the addresses {0} and {1} overlap; leave one of them out of --bind")]
    Overlap(IpAddr, IpAddr),
    /// No port is free on all addresses at once.
    #[error("found no port that is free on all of the addresses; name one with --amqp-port N")]
    NoFreePort,
}

/// What to listen on unless told otherwise: both loopback addresses, since clients resolve `localhost` to either.
pub(crate) const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Listens on the same port of all addresses. Port 0 stands for one that is free on all of them.
///
/// Without addresses it listens on loopback; there, a machine without IPv6 is no error.
pub(crate) fn bind(addresses: &[IpAddr], port: u16, backlog: u32) -> Result<Vec<TcpListener>, BindError> {
    check_overlap(addresses)?;
    let tries = if port == 0 { FREE_PORT_TRIES } else { 1 };
    for _ in 0..tries {
        match bind_once(addresses, port, backlog) {
            Err(BindError::InUse(..)) if port == 0 => {}
            other => return other,
        }
    }
    Err(BindError::NoFreePort)
}

/// The second of two addresses that overlap would find the port in use, by ourselves.
fn check_overlap(addresses: &[IpAddr]) -> Result<(), BindError> {
    for (at, &first) in addresses.iter().enumerate() {
        let covers = |a: IpAddr, b: IpAddr| a == b || (a.is_unspecified() && a.is_ipv4() == b.is_ipv4());
        if let Some(&second) =
            addresses[at + 1..].iter().find(|&&second| covers(first, second) || covers(second, first))
        {
            return Err(BindError::Overlap(first, second));
        }
    }
    Ok(())
}

fn bind_once(addresses: &[IpAddr], port: u16, backlog: u32) -> Result<Vec<TcpListener>, BindError> {
    let (addresses, is_default) = if addresses.is_empty() { (&LOOPBACK[..], true) } else { (addresses, false) };
    let mut listeners: Vec<TcpListener> = Vec::new();
    for &ip in addresses {
        let port = listeners.first().and_then(|first| first.local_addr().ok()).map_or(port, |first| first.port());
        let address = SocketAddr::new(ip, port);
        match listen(address, backlog) {
            Ok(listener) => listeners.push(listener),
            Err(error) if is_default && ip.is_ipv6() && is_missing(&error) => {
                tracing::info!("no IPv6 on this machine: listening on 127.0.0.1 only");
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(BindError::InUse(port, ip)),
            Err(error) => return Err(BindError::Refused(address, error)),
        }
    }
    Ok(listeners)
}

fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    socket.bind(address)?;
    socket.listen(backlog)
}

fn is_missing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT))
}
