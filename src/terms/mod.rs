//! The nouns that every room shares, and the text they are read from and written as. Nothing here
//! touches the outside.

pub(crate) mod client_key;
pub(crate) mod credentials;
pub(crate) mod endpoint;
pub(crate) mod error;
pub(crate) mod escape;
pub(crate) mod facts;
pub(crate) mod fields;
pub(crate) mod place;
pub(crate) mod progress;
pub(crate) mod reason;
pub(crate) mod value;
