//! A line of the configuration file, as words.

/// A word, where it stands, and whether it was in quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    /// The character in the line, from 1.
    pub(super) column: usize,
    pub(super) quoted: bool,
}

/// A quote that opens here is not closed on its line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unclosed {
    pub(super) column: usize,
}

/// Splits a line at white space (U+00A0 included: pages on the web are full of it). `#` at the
/// start of a word, outside quotes, starts a comment. Quotes keep what is between them together;
/// in double quotes `\n` is a newline, `\t` a tab, and `\` before anything else that character.
pub(super) fn split(line: &str) -> Result<Vec<Word>, Unclosed> {
    let mut words = Vec::new();
    let mut characters = line.chars().zip(1..).peekable();
    while let Some(&(c, column)) = characters.peek() {
        if c.is_whitespace() {
            characters.next();
            continue;
        }
        if c == '#' {
            break;
        }
        let mut word = Word {
            text: String::new(),
            column,
            quoted: false,
        };
        while let Some((c, column)) = characters.next_if(|(c, _)| !c.is_whitespace()) {
            if c != '"' && c != '\'' {
                word.text.push(c);
                continue;
            }
            word.quoted = true;
            let unclosed = Unclosed { column };
            loop {
                match characters.next() {
                    None => return Err(unclosed),
                    Some((end, _)) if end == c => break,
                    Some(('\\', _)) if c == '"' => match characters.next() {
                        None => return Err(unclosed),
                        Some(('n', _)) => word.text.push('\n'),
                        Some(('t', _)) => word.text.push('\t'),
                        Some((escaped, _)) => word.text.push(escaped),
                    },
                    Some((inner, _)) => word.text.push(inner),
                }
            }
        }
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terms::value::quote;

    fn texts(line: &str) -> Vec<String> {
        split(line)
            .unwrap()
            .into_iter()
            .map(|word| word.text)
            .collect()
    }

    #[test]
    fn words_are_split_at_white_space_of_every_kind() {
        assert_eq!(texts("  port\t25 \u{a0}# comment"), ["port", "25"]);
        assert_eq!(texts("a#b c"), ["a#b", "c"]);
        assert_eq!(texts("   # all comment 'x"), Vec::<String>::new());
        assert_eq!(texts(""), Vec::<String>::new());
    }

    #[test]
    fn quotes_keep_words_together_and_escapes_are_read() {
        assert_eq!(texts(r#"a "b c" d' e'"f" '' "#), ["a", "b c", "d ef", ""]);
        assert_eq!(texts(r#""\"\\\#\n" '\n' "#), ["\"\\#\n", "\\n"]);
        assert_eq!(texts("\"# no comment\""), ["# no comment"]);
    }

    #[test]
    fn columns_count_characters() {
        let words = split("é  \"b c\" d").unwrap();
        assert_eq!(
            words.iter().map(|word| word.column).collect::<Vec<_>>(),
            [1, 4, 10]
        );
        assert_eq!(split("a 'b"), Err(Unclosed { column: 3 }));
        assert_eq!(split("\"\\"), Err(Unclosed { column: 1 }));
    }

    #[test]
    fn what_is_quoted_is_read_as_it_was() {
        for word in [
            "a", "", "a b", "#", "a#b", "it's", "\"", "\\", "a\nb\tc", "\u{a0}", "é",
        ] {
            let read = texts(&quote(word));
            assert_eq!(read, [word], "{}", quote(word));
        }
    }
}
