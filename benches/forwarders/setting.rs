//! When, on what and by which command a run was made, in words.

use std::fs;

use crate::contestants::first_line;

pub(crate) struct Setting {
    pub(crate) date: String,
    pub(crate) command: String,
    pub(crate) hardware: String,
    pub(crate) system: String,
}

/// `words` are what the command line had.
pub(crate) fn describe(words: &[String]) -> Setting {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let count = processors
        .lines()
        .filter(|line| line.starts_with("processor"));
    let model = value(&processors, "model name").unwrap_or("unknown processor");
    let place = match value(&processors, "flags") {
        Some(flags) if flags.split(' ').any(|flag| flag == "hypervisor") => ", virtual machine",
        _ => "",
    };
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = value(&memory, "MemTotal").and_then(|size| size.split(' ').next());
    let memory: f64 = memory.and_then(|size| size.parse().ok()).unwrap_or(0.0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let release = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    // cargo adds this one by itself.
    let options = words.iter().map(|word| &**word);
    let options: Vec<&str> = options.filter(|&word| word != "--bench").collect();
    Setting {
        command: match &*options.join(" ") {
            "" => "cargo bench".to_owned(),
            options => format!("cargo bench -- {options}"),
        },
        date: first_line("date", &["-u", "+%Y-%m-%d"]).unwrap_or_default(),
        hardware: format!(
            "{model}, {} cores, {:.0} GiB{place}",
            count.count(),
            memory / f64::from(1 << 20)
        ),
        system: format!(
            "{}, Linux {}",
            release.unwrap_or("unknown system").trim_matches('"'),
            kernel.trim()
        ),
    }
}

/// The value of the first `name : value` line.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}
