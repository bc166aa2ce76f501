//! A user and a password, which nobody is shown.

use std::fmt;

use crate::terms::value::Complaint;

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    user: Vec<u8>,
    password: Vec<u8>,
}

/// What is shown for a password, whatever it is.
pub(crate) const HIDDEN: &str = "***";

impl Credentials {
    /// Any bytes but control characters, which no protocol has a place for (RFC 7617, section 2). The
    /// complaint does not have them.
    pub(crate) fn new(
        user: impl Into<Vec<u8>>,
        password: impl Into<Vec<u8>>,
    ) -> Result<Credentials, Complaint> {
        let (user, password) = (user.into(), password.into());
        let mut bytes = user.iter().chain(&password);
        if bytes.any(u8::is_ascii_control) {
            return Err("user or password has a control character: write them without".to_owned());
        }
        Ok(Credentials { user, password })
    }

    /// `user:password`, of which the user has no colon.
    pub fn parse(text: &[u8]) -> Result<Credentials, Complaint> {
        let Some(colon) = text.iter().position(|&byte| byte == b':') else {
            return Err("is not user:password: it has no colon".to_owned());
        };
        Credentials::new(&text[..colon], &text[colon + 1..])
    }

    pub(crate) fn user(&self) -> &[u8] {
        &self.user
    }

    pub(crate) fn password(&self) -> &[u8] {
        &self.password
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{HIDDEN}", self.user.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_colon_ends_the_user() {
        let read = Credentials::parse(b"us er:pass:word ").unwrap();
        assert_eq!(
            (read.user(), read.password()),
            (&b"us er"[..], &b"pass:word "[..])
        );
        let read = Credentials::parse(b":").unwrap();
        assert_eq!((read.user(), read.password()), (&b""[..], &b""[..]));
        assert!(Credentials::parse(b"").is_err());
    }

    #[test]
    fn nobody_is_shown_a_password() {
        let complaint = Credentials::parse(b"user:sec\nret").unwrap_err();
        assert!(!complaint.contains("sec"), "{complaint}");
        let complaint = Credentials::parse(b"secret").unwrap_err();
        assert!(!complaint.contains("secret"), "{complaint}");
        let read = Credentials::parse("us\u{e9}r:secret".as_bytes()).unwrap();
        assert_eq!(format!("{read:?}"), "us\\xc3\\xa9r:***");
    }
}
