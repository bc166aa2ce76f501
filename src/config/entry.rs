//! What was written: the services of a configuration, with their places, before defaults are filled
//! in. Every front end, be it the command line or a file of another program's, comes to this.

use super::settings::Written;
use crate::source::Interface;
use crate::sys::program::Program;
use crate::terms::place::Place;
use crate::upstream::Upstream;

/// A configuration, as it was written.
#[derive(Debug, Default, PartialEq)]
pub struct Config {
    /// What holds for the server, and for every service that does not say otherwise.
    pub(crate) defaults: Written,
    /// The services, in the order of the file.
    pub(crate) services: Vec<Entry>,
}

/// A service, as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    /// Where it was opened.
    pub(crate) place: Place,
    /// The local side it is for.
    pub(crate) interface: Interface,
    /// The local port it is for.
    pub(crate) port: u16,
    /// Its own settings, with what it inherits from its port.
    pub(crate) written: Written,
    /// What serves its clients.
    pub(crate) destination: Destination,
    /// Where that is said first.
    pub(crate) destination_place: Place,
}

/// What serves a connection.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Destination {
    /// It is forwarded to the first of these that can be reached; there is at least one, unless an
    /// access program names it.
    Upstreams(Vec<Upstream>),
    /// This program is started for it.
    Handler(Program),
}
