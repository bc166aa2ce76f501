//! The project's benchmark: tcpproxy beside the programs it replaces, in one run on one machine.
//!
//! `cargo bench` starts the driver. It enters namespaces of its own (`namespace`), looks for what is
//! installed (`contestants`, `commands`), and has everybody take turns at each measure (`measures`).
//! Client and backend are processes of their own, this binary started again in a role (`client`,
//! `backend`), so that a forwarder's processor time is its own (`processes`, `accounting`). What was
//! measured is collected in `results` and comes out as Markdown (`report`) and as a plot (`plot`).

mod accounting;
mod arguments;
mod backend;
mod client;
mod commands;
mod contestants;
mod load;
mod measures;
mod namespace;
mod pattern;
mod plot;
mod processes;
mod report;
mod results;
mod setting;

use std::env;
use std::error::Error;
use std::process::ExitCode;

use arguments::{Arguments, Request};

/// Most failures here are somebody else's words, passed on to whoever runs the benchmark.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// What this binary is started as, a second time, by itself: the first argument.
pub(crate) mod role {
    pub(crate) const INIT: &str = "@init";
    pub(crate) const DRIVER: &str = "@driver";
    pub(crate) const MORTAL: &str = "@mortal";
    pub(crate) const LAUNCHER: &str = "@launcher";
    pub(crate) const BACKEND: &str = "@backend";
    pub(crate) const CLIENT: &str = "@client";
}

/// The exit status for wrong arguments, as sysexits(3) has it.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let outcome = match words.first().map(String::as_str) {
        Some(role::DRIVER) => drive(&words[1..]),
        Some(role::INIT) => return namespace::init(&words[1..]),
        Some(role::MORTAL) => namespace::mortal(&words[1..]),
        Some(role::LAUNCHER) => processes::launch(&words[1..]),
        Some(role::BACKEND) => backend::serve(),
        Some(role::CLIENT) => client::run(&words[1..]),
        _ => return begin(&words),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&*error),
    }
}

/// Checks the arguments before anything is started, then goes on inside the namespaces.
fn begin(words: &[String]) -> ExitCode {
    match arguments::parse(words) {
        Err(problem) => {
            eprintln!("cargo bench: {problem}");
            ExitCode::from(USAGE)
        }
        Ok(Request::Help(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Request::Run(_)) => match namespace::run_inside(words) {
            Ok(status) if status.success() => ExitCode::SUCCESS,
            Ok(_) => ExitCode::FAILURE,
            Err(error) => failed(&*error),
        },
    }
}

fn failed(error: &dyn Error) -> ExitCode {
    eprintln!("cargo bench: {error}");
    ExitCode::FAILURE
}

/// The driver, inside the namespaces. Its first word names this run among others.
fn drive(words: &[String]) -> Outcome<()> {
    let (run, words) = words
        .split_first()
        .ok_or("the driver was started by hand")?;
    let Request::Run(arguments) = arguments::parse(words)? else {
        return Err("the driver was started by hand".into());
    };
    namespace::prepare()?;
    let results = measures::all(&arguments, run)?;
    publish(&arguments, words, &results)?;
    results.complain()
}

fn publish(arguments: &Arguments, words: &[String], results: &results::Results) -> Outcome<()> {
    let setting = setting::describe(words);
    let markdown = report::markdown(results, &setting);
    print!("{markdown}");
    for (file, text) in [
        (&arguments.markdown, markdown),
        (&arguments.svg, plot::svg(results, &setting)),
    ] {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))?;
        eprintln!("written: {}", file.display());
    }
    Ok(())
}
