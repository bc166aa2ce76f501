//! Relay cases.
