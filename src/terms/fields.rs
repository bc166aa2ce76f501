//! Byte strings in a row, as one process of ours tells them to another.

pub(crate) fn push(fields: &mut Vec<u8>, field: &[u8]) {
    fields.extend_from_slice(&(field.len() as u64).to_ne_bytes());
    fields.extend_from_slice(field);
}

/// Takes the first byte string away; `None` if there is none, or not all of it.
pub(crate) fn take<'a>(fields: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = fields.split_first_chunk()?;
    let length = usize::try_from(u64::from_ne_bytes(*length)).ok()?;
    let (field, rest) = rest.split_at_checked(length)?;
    *fields = rest;
    Some(field)
}

/// The same, as text.
pub(crate) fn take_text(fields: &mut &[u8]) -> Option<String> {
    String::from_utf8(take(fields)?.to_vec()).ok()
}

pub(crate) fn push_count(fields: &mut Vec<u8>, count: usize) {
    push(fields, &(count as u64).to_ne_bytes());
}

pub(crate) fn take_count(fields: &mut &[u8]) -> Option<usize> {
    let count = take(fields)?.try_into().ok()?;
    usize::try_from(u64::from_ne_bytes(count)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_is_taken_and_what_was_cut_off_is_nothing() {
        let mut fields = Vec::new();
        push(&mut fields, b"one");
        push(&mut fields, b"");
        push_count(&mut fields, 7);
        let mut rest = &fields[..];
        assert_eq!(take(&mut rest), Some(&b"one"[..]));
        assert_eq!(take_text(&mut rest).as_deref(), Some(""));
        assert_eq!(take_count(&mut rest), Some(7));
        assert_eq!((take(&mut rest), rest.len()), (None, 0));
        for length in 0..11 {
            assert_eq!(take(&mut &fields[..length]), None, "{length}");
        }
        assert_eq!(take(&mut &[0xff; 20][..]), None);
    }
}
