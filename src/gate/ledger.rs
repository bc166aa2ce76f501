//! Counting sessions: one way, whoever keeps the counts.

use super::Limits;
use crate::terms::client_key::ClientKey;
use crate::terms::endpoint::Endpoint;
use crate::terms::error::Error;
use crate::terms::reason::Reason;

/// A session that counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Seat {
    pub(super) service: String,
    pub(super) client: ClientKey,
}

/// Why a session may not begin.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The client has as many as `max-per-source` allows.
    TooMany,
    /// The client has begun more than `rate` allows.
    TooFast,
    /// There is no telling: the counts could not be read or kept.
    Unknown(Error),
}

impl Refusal {
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Refusal::TooMany => Reason::TooManyFromClient,
            Refusal::TooFast => Reason::TooFastFromClient,
            Refusal::Unknown(_) => Reason::InternalError,
        }
    }
}

/// Who keeps the counts of sessions by service and client: the server in its memory, or processes
/// that know nothing of one another in files.
pub(crate) trait Ledger {
    /// Counts a new session of this client at this service, or says why it may not begin. A session
    /// that may not costs no token, so that a client recovers while it is refused.
    fn begin(&self, service: &str, client: ClientKey, limits: &Limits) -> Result<Seat, Refusal>;

    /// Counts a session no more.
    fn end(&self, seat: &Seat);

    /// As [`Ledger::begin`], for a client that may have no address to be counted by.
    fn admit(
        &self,
        service: &str,
        client: &Endpoint,
        limits: &Limits,
    ) -> Result<Option<Seat>, Refusal> {
        let key = ClientKey::of(client);
        key.map(|client| self.begin(service, client, limits))
            .transpose()
    }
}
