//! Names and numbers of hosts, services, users and groups, as the system's name services have them.

pub mod accounts;
pub mod lookup;
pub mod nss;
