//! The nouns that every room shares, and the text they are read from and written as. Nothing here
//! touches the outside.

pub mod endpoint;
pub mod error;
pub mod escape;
pub mod facts;
pub mod place;
pub mod reason;
pub mod value;
