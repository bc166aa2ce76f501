//! Whom connections are forwarded to: from a name to a connected socket (RFC 8305).
//!
//! Names are looked up anew for every session. An upstream's addresses are tried a little apart,
//! the first to connect wins; when none does, the next upstream's turn comes. Where there is a proxy on
//! the way, it is that which is looked up and raced for, and it is given the upstream's name.

mod exchange;
mod failed;
mod forward_proxy;
mod introduction;
mod named;
mod own_address;
mod race;
mod through;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::source::Client;
use crate::sys::names::lookup;
use crate::sys::vigil::{Cut, Vigil};
use crate::terms::escape::escape_word;
use crate::terms::reason::Reason;
use failed::Failed;
use forward_proxy::NOT_THROUGH_PROXY;
pub(crate) use forward_proxy::{ForwardProxy, without_password};
pub(crate) use introduction::SendProxy;
pub(crate) use named::Upstream;
use named::at_port;
use own_address::Bound;
pub(crate) use own_address::OwnAddress;
use race::{Begin, Race, connect_unix, interleaved};
pub(crate) use race::{begin_connecting, outcome};

/// Before upstreams that refuse are tried again, where that was asked for.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// The way to an upstream.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    /// Whom to try, in order; at least one, unless an access program says [whom](Route::to).
    pub(crate) upstreams: Vec<Upstream>,
    /// How long each may take, name lookup included.
    pub(crate) connect_timeout: Duration,
    /// How long to go on trying when one refuses: its server may be about to start.
    pub(crate) connect_retry: Duration,
    /// The proxy that they are reached through.
    pub(crate) via: Option<Box<ForwardProxy>>,
    /// Our own address towards them.
    pub(crate) source: Option<OwnAddress>,
    /// What is sent to them first.
    pub(crate) send_proxy: SendProxy,
}

/// A connection to an upstream. The socket does not block.
pub(crate) struct Connected {
    pub(crate) socket: OwnedFd,
    /// Whom it leads to.
    pub(crate) name: String,
    /// Whether that is where a redirected client meant to go.
    pub(crate) is_original: bool,
}

/// What happens on the way to an upstream.
#[derive(Debug)]
pub(crate) enum News<'a> {
    /// Something has been asked for, and the answer is about to be waited for.
    Waiting,
    /// An upstream could not be reached, for a reason that is a sentence.
    Failed(&'a str),
}

/// No upstream could be reached.
#[derive(Debug)]
pub(crate) struct Unreachable {
    /// Why not the last one that was tried.
    pub(crate) reason: Reason,
    /// Its name.
    pub(crate) name: String,
}

/// How a round of attempts at every upstream has failed.
enum Round {
    /// For good.
    Over(Unreachable),
    /// In a way that another round may not.
    MaybeStarting(Unreachable),
}

impl Route {
    /// Whether it may lead to where a client meant to go before it was redirected.
    pub(crate) fn follows_redirection(&self) -> bool {
        let mut upstreams = self.upstreams.iter();
        upstreams.any(|upstream| matches!(upstream, Upstream::OriginalDestination { .. }))
    }

    /// Whether upstreams are to see the client's address, for which `CAP_NET_ADMIN` is needed.
    pub(crate) fn connects_as_client(&self) -> bool {
        self.source.is_some_and(OwnAddress::is_clients)
    }

    /// What is wrong with an upstream on this way, if something is.
    pub(crate) fn objection(&self, upstream: &Upstream) -> Option<&'static str> {
        self.via
            .as_ref()
            .and_then(|_| ForwardProxy::objection(upstream))
    }

    /// The same way to other upstreams.
    pub(crate) fn to(&self, upstreams: Vec<Upstream>) -> Route {
        Route {
            upstreams,
            ..self.clone()
        }
    }

    /// Connects to the first upstream that can be reached, for a client. What happens meanwhile is
    /// told to `news`. It all has to be done before the vigil's end: when the client breaks off, there
    /// is nobody left to connect for.
    pub(crate) fn connect(
        &self,
        client: &Client,
        mut vigil: Vigil,
        mut news: impl FnMut(News),
    ) -> Result<Connected, Unreachable> {
        let retry_until = Instant::now() + self.connect_retry;
        let mut round = self.try_each(client, &vigil, &mut news);
        loop {
            let last = match round {
                Ok(connected) => return Ok(connected),
                Err(Round::Over(last)) => return Err(last),
                Err(Round::MaybeStarting(last)) if Instant::now() >= retry_until => {
                    return Err(last);
                }
                Err(Round::MaybeStarting(last)) => last,
            };
            let next_round = retry_until.min(Instant::now() + RETRY_DELAY);
            if let Err(cut) = vigil.pause(next_round) {
                return Err(Unreachable {
                    reason: cut.reason(),
                    ..last
                });
            }
            // That the same goes on happening is told by the end.
            round = self.try_each(client, &vigil, &mut |_: News| {});
        }
    }

    /// Tries every upstream once, until one connects.
    fn try_each(
        &self,
        client: &Client,
        vigil: &Vigil,
        news: &mut dyn FnMut(News),
    ) -> Result<Connected, Round> {
        let mut maybe_starting = false;
        let mut last = Unreachable {
            reason: Reason::ConnectFailed,
            name: "-".to_owned(),
        };
        for upstream in &self.upstreams {
            let attempt = vigil.within(Instant::now() + self.connect_timeout);
            let waiting = &mut || news(News::Waiting);
            let reached = self
                .reach(upstream, client, attempt.clone(), waiting)
                .and_then(|socket| self.send_proxy.introduce(client, socket, attempt));
            let name = upstream.name_for(client);
            let failed = match reached {
                Ok(socket) => {
                    let is_original = matches!(upstream, Upstream::OriginalDestination { .. });
                    return Ok(Connected {
                        socket,
                        name,
                        is_original,
                    });
                }
                Err(failed) => failed,
            };
            let failure = format!("{}: {}", escape_word(&name), failed.detail);
            news(News::Failed(&failure));
            maybe_starting |= failed.may_be_starting(upstream);
            let is_over = failed.is_final();
            last = Unreachable {
                reason: failed.reason,
                name,
            };
            if is_over {
                return Err(Round::Over(last));
            }
            if vigil.is_over() {
                last.reason = Cut::TimeOver.reason();
                return Err(Round::Over(last));
            }
        }
        Err(if maybe_starting {
            Round::MaybeStarting(last)
        } else {
            Round::Over(last)
        })
    }

    fn reach(
        &self,
        upstream: &Upstream,
        client: &Client,
        mut vigil: Vigil,
        waiting: &mut dyn FnMut(),
    ) -> Result<OwnedFd, Failed> {
        if let Some(proxy) = &self.via {
            let (host, port) = asked_for(upstream, client)?;
            let hops_left = self.hops_left(upstream, client);
            return addresses(&proxy.host, Some(proxy.port), client, &mut vigil, waiting)
                .and_then(|addresses| {
                    self.race(addresses, hops_left, client, vigil.clone(), waiting)
                })
                .and_then(|socket| {
                    waiting();
                    proxy.lead(socket, &host, port, vigil)
                })
                .map_err(|failed| failed.of(proxy));
        }
        let addresses = match upstream {
            Upstream::Unix(path) if client.came_through_unix(path) => return Err(oneself()),
            Upstream::Unix(path) => return connect_unix(path, vigil, waiting),
            Upstream::Host { host, port } => addresses(host, *port, client, &mut vigil, waiting)?,
            Upstream::OriginalDestination { port } => {
                vec![at_port(client.original_destination()?, *port)]
            }
        };
        let hops_left = self.hops_left(upstream, client);
        self.race(addresses, hops_left, client, vigil, waiting)
    }

    /// How many more times a connection for a client may be passed on, where that is counted.
    fn hops_left(&self, upstream: &Upstream, client: &Client) -> Option<u8> {
        match upstream {
            // Where our own connections come back, they seem to be the client's.
            Upstream::Host { .. } if self.connects_as_client() => client.hops_left_as_routed(),
            Upstream::Host { .. } | Upstream::Unix(_) => client.hops_left(),
            // Where rules redirect our own connections, too, they come back.
            Upstream::OriginalDestination { .. } => client.hops_left_as_routed(),
        }
    }

    /// Connects to the first of these addresses that can be reached: an upstream's, or those of the proxy
    /// on the way to one.
    fn race(
        &self,
        mut addresses: Vec<SocketAddr>,
        hops_left: Option<u8>,
        client: &Client,
        vigil: Vigil,
        waiting: &mut dyn FnMut(),
    ) -> Result<OwnedFd, Failed> {
        let source = match self.source {
            Some(source) => Some(source.towards(&addresses, client)?),
            None => None,
        };
        if let Some(source) = source {
            addresses.retain(|address| address.is_ipv4() == source.is_ipv4());
            if addresses.is_empty() {
                let detail = match source {
                    Bound::Own(_) => "it has no address of the source address's family",
                    Bound::Foreign(_) => "it has no address of the client's family",
                };
                return Err(Failed::new(Reason::ConnectFailed, detail));
            }
        }
        addresses.retain(|address| !client.came_through(*address));
        if addresses.is_empty() {
            return Err(oneself());
        }
        let hop_limit = match hops_left {
            Some(0 | 1) => {
                let detail = "the connection has been passed on too often on this machine: \
                              it goes round in a loop, or had a low hop limit from the start";
                return Err(Failed::new(Reason::ConnectFailed, detail));
            }
            hops => hops.map(|hops| hops - 1),
        };
        let begin = Begin { source, hop_limit };
        Race::new(interleaved(addresses), begin).run(vigil, waiting)
    }
}

/// What a proxy is to be asked for: a host as it is written, and its port.
fn asked_for(upstream: &Upstream, client: &Client) -> Result<(String, u16), Failed> {
    match upstream {
        Upstream::Host { host, port } => Ok((host.clone(), port_or_clients(*port, client)?)),
        Upstream::OriginalDestination { port } => {
            let original = at_port(client.original_destination()?, *port);
            Ok((original.ip().to_string(), original.port()))
        }
        Upstream::Unix(_) => Err(Failed::new(Reason::ConnectFailed, NOT_THROUGH_PROXY)),
    }
}

/// The addresses of a host, at this port or the one that the client connected to.
fn addresses(
    host: &str,
    port: Option<u16>,
    client: &Client,
    vigil: &mut Vigil,
    waiting: &mut dyn FnMut(),
) -> Result<Vec<SocketAddr>, Failed> {
    let port = port_or_clients(port, client)?;
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    waiting();
    Ok(lookup::addresses(host, port, vigil)?)
}

fn port_or_clients(port: Option<u16>, client: &Client) -> Result<u16, Failed> {
    port.or(client.local.port()).ok_or_else(|| {
        let detail = "no port is given, and the client's connection has none";
        Failed::new(Reason::ConnectFailed, detail)
    })
}

/// An upstream that is where the client came from.
fn oneself() -> Failed {
    let detail = "it is the very listener that the client came through: \
                  connecting to it would go on for ever";
    Failed::new(Reason::ConnectFailed, detail)
}
