//! Connections and listeners that somebody else hands over (inetd, xinetd, tcpserver,
//! systemd-socket-activate), and starts that come to nothing. Listeners of our own are in
//! `server`, units of a real systemd in `examples`.

#[path = "../harness/mod.rs"]
mod harness;

mod start_up;
mod super_servers;
mod with_configuration;
