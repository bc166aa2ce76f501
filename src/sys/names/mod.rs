//! Names and numbers of hosts, services, users and groups, as the system's name services have them.

pub(crate) mod accounts;
pub(crate) mod known;
pub(crate) mod lookup;
pub(crate) mod nss;
