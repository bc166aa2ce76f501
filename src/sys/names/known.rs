//! What the name services have said, for whoever asks again: what a configuration names is looked up
//! once, however often it is named, and by a process that may be waited for or not.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::mem;

use crate::terms::fields;

/// Answers, by what was asked and of which database; `None` where there is no such name.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answers(BTreeMap<(String, String), Option<String>>);

struct Known {
    answers: Answers,
    /// Nothing else is to be asked.
    is_all: bool,
}

thread_local! {
    // The program has one thread; the tests have more, and each is to know its own.
    static KNOWN: RefCell<Known> = const {
        RefCell::new(Known {
            answers: Answers(BTreeMap::new()),
            is_all: false,
        })
    };
}

/// The answer to a question; asked only if it is not known.
pub(crate) fn answer(
    database: &str,
    name: &str,
    ask: impl FnOnce() -> Option<String>,
) -> Option<String> {
    let question = (database.to_owned(), name.to_owned());
    let known = KNOWN.with_borrow(|known| match known.answers.0.get(&question) {
        Some(answer) => Some(answer.clone()),
        None => known.is_all.then_some(None),
    });
    known.unwrap_or_else(|| {
        let answer = ask();
        KNOWN.with_borrow_mut(|known| known.answers.0.insert(question, answer.clone()));
        answer
    })
}

/// Has everything asked anew, and returns what was known.
pub(crate) fn forget() -> Answers {
    let fresh = Known {
        answers: Answers::default(),
        is_all: false,
    };
    KNOWN.with_borrow_mut(|known| mem::replace(known, fresh).answers)
}

/// Takes these for all that is known, and has nothing else asked.
pub(crate) fn take_over(answers: Answers) {
    let is_all = true;
    KNOWN.with_borrow_mut(|known| *known = Known { answers, is_all });
}

impl Answers {
    /// As another process can read them.
    pub(crate) fn write(&self, to: &mut Vec<u8>) {
        fields::push_count(to, self.0.len());
        for ((database, name), answer) in &self.0 {
            fields::push(to, database.as_bytes());
            fields::push(to, name.as_bytes());
            fields::push_count(to, usize::from(answer.is_some()));
            fields::push(to, answer.as_deref().unwrap_or_default().as_bytes());
        }
    }

    /// What [`Answers::write`] has written; `None` if it is something else.
    pub(crate) fn read(from: &mut &[u8]) -> Option<Answers> {
        let mut answers = BTreeMap::new();
        for _ in 0..fields::take_count(from)? {
            let question = (fields::take_text(from)?, fields::take_text(from)?);
            let is_there = fields::take_count(from)? != 0;
            let answer = fields::take_text(from)?;
            answers.insert(question, is_there.then_some(answer));
        }
        Some(Answers(answers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_asked_for_once_until_all_is_forgotten_and_never_when_all_is_known() {
        let ask = |name: &str, says: Option<&str>| {
            let mut asked = false;
            let answer = answer("x", name, || {
                asked = true;
                says.map(str::to_owned)
            });
            (answer, asked)
        };
        let one = Some("1".to_owned());
        assert_eq!(ask("one", Some("1")), (one.clone(), true));
        assert_eq!(ask("one", Some("2")), (one.clone(), false));
        assert_eq!(ask("none", None), (None, true));
        assert_eq!(ask("none", Some("2")), (None, false));
        let known = forget();
        assert_eq!(ask("one", Some("2")), (Some("2".to_owned()), true));

        let mut written = Vec::new();
        known.write(&mut written);
        let mut from = &written[..];
        let read = Answers::read(&mut from).unwrap();
        assert_eq!((&read, from.len()), (&known, 0));
        for length in 0..written.len() {
            assert_eq!(Answers::read(&mut &written[..length]), None);
        }
        take_over(read);
        assert_eq!(ask("one", Some("2")), (one, false));
        assert_eq!(ask("another", Some("3")), (None, false));
    }
}
