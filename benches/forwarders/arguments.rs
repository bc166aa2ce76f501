//! The command line.

use std::path::PathBuf;

use getopts::Options;

use crate::contestants::Contestant;
use crate::measures::Measure;

/// How much is measured. More takes longer and is steadier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Everything once, with next to no load: shows that the benchmark works.
    Smoke,
    /// Less than five minutes.
    Quick,
    Full,
}

impl Effort {
    /// The one of three numbers that goes with it.
    pub(crate) fn of<T>(self, smoke: T, quick: T, full: T) -> T {
        match self {
            Effort::Smoke => smoke,
            Effort::Quick => quick,
            Effort::Full => full,
        }
    }
}

pub(crate) struct Arguments {
    pub(crate) effort: Effort,
    pub(crate) measures: Vec<Measure>,
    /// Who takes part, if installed.
    pub(crate) contestants: Vec<Contestant>,
    pub(crate) svg: PathBuf,
    pub(crate) markdown: PathBuf,
}

pub(crate) enum Request {
    Run(Arguments),
    Help(String),
}

fn options() -> Options {
    let mut options = Options::new();
    options
        .optflag("", "quick", "take less than five minutes")
        .optflag("", "smoke", "take seconds: shows that the benchmark works")
        .optopt("", "only", "measure these alone", "A,B")
        .optopt("", "peers", "compare with these alone; may be empty", "A,B")
        .optopt("", "svg", "where the plot goes", "FILE")
        .optopt("", "markdown", "where the tables go", "FILE")
        .optflag(
            "",
            "publish",
            "write benches/results.svg and benches/results.md",
        )
        .optflag("h", "help", "show the options")
        // cargo itself adds it.
        .optflag("", "bench", "ignored");
    options
}

pub(crate) fn parse(words: &[String]) -> Result<Request, String> {
    let options = options();
    let given = options
        .parse(words)
        .map_err(|problem| problem.to_string())?;
    if given.opt_present("help") {
        return Ok(Request::Help(help(&options)));
    }
    if let Some(word) = given.free.first() {
        return Err(format!(
            "unexpected argument '{word}' (see cargo bench -- --help)"
        ));
    }
    let effort = match (given.opt_present("smoke"), given.opt_present("quick")) {
        // Without a word it is cargo test --all-targets: cargo bench adds one of its own.
        (false, false) if words.is_empty() => Effort::Smoke,
        (false, false) => Effort::Full,
        (false, true) => Effort::Quick,
        (true, false) => Effort::Smoke,
        (true, true) => return Err("--smoke and --quick exclude each other".into()),
    };
    let measures = match given.opt_str("only") {
        None => Measure::ALL.to_vec(),
        Some(list) => chosen(&list, &Measure::ALL, Measure::name)?,
    };
    let mut contestants = match given.opt_str("peers") {
        None => Contestant::ALL.to_vec(),
        Some(list) => chosen(&list, &Contestant::ALL, Contestant::name)?,
    };
    // These two are never left out: the one is what this is about, the other the yardstick.
    contestants.retain(|contestant| !Contestant::ALWAYS.contains(contestant));
    contestants.splice(0..0, Contestant::ALWAYS);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let stem = match (given.opt_present("publish"), effort) {
        (true, Effort::Smoke) => {
            return Err("what --smoke measures is not worth to --publish".into());
        }
        (true, _) => "benches/results",
        (false, Effort::Smoke) => "target/bench/smoke",
        (false, _) => "target/bench/results",
    };
    let file = |option, extension| match given.opt_str(option) {
        Some(file) => PathBuf::from(file),
        None => root.join(stem).with_extension(extension),
    };
    Ok(Request::Run(Arguments {
        effort,
        measures,
        contestants,
        svg: file("svg", "svg"),
        markdown: file("markdown", "md"),
    }))
}

fn chosen<T: Copy>(list: &str, all: &[T], name: fn(T) -> &'static str) -> Result<Vec<T>, String> {
    list.split(',')
        .filter(|word| !word.is_empty())
        .map(|word| {
            let found = all.iter().copied().find(|&one| name(one) == word);
            found.ok_or_else(|| format!("unknown: '{word}' (known: {})", names(all, name)))
        })
        .collect()
}

fn names<T: Copy>(all: &[T], name: fn(T) -> &'static str) -> String {
    let names: Vec<&str> = all.iter().map(|&one| name(one)).collect();
    names.join(", ")
}

fn help(options: &Options) -> String {
    format!(
        "{}\nMeasures: {}.\nPeers: {}.\n",
        options.usage("usage: cargo bench [-- OPTION ...]"),
        names(&Measure::ALL, Measure::name),
        names(&Contestant::PEERS, Contestant::name),
    )
}
