//! The house itself: its rooms, as the map at the top of `src/lib.rs` has them, and the one way
//! through it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn source(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rooms of the map, the uppermost first.
fn rooms() -> Vec<String> {
    let map = source("lib.rs");
    let rows = map.lines().filter_map(|line| line.strip_prefix("//! | `"));
    rows.map(|row| row.split_once('`').unwrap().0.to_owned())
        .collect()
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// The rooms that a room's files name.
fn named_by(room: &str) -> BTreeSet<String> {
    let mut files = Vec::new();
    files_below(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(room),
        &mut files,
    );
    let texts = files.iter().map(|file| fs::read_to_string(file).unwrap());
    let name = |rest: &str| -> String {
        rest.chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect()
    };
    texts
        .flat_map(|text| text.split("crate::").skip(1).map(name).collect::<Vec<_>>())
        .filter(|named| named != room)
        .collect()
}

#[test]
fn every_room_is_on_the_map_and_nothing_else_lies_beside_it() {
    let mut listed: Vec<String> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    listed.retain(|name| name != "lib.rs" && name != "main.rs");
    listed.sort();
    let mut rooms = rooms();
    rooms.sort();
    assert_eq!(listed, rooms);
}

#[test]
fn no_room_needs_one_that_is_above_it() {
    let rooms = rooms();
    assert!(rooms.len() >= 10, "{rooms:?}");
    for (level, room) in rooms.iter().enumerate() {
        for named in named_by(room) {
            let below = rooms.iter().position(|room| *room == named);
            assert!(
                below.is_some_and(|below| below > level),
                "{room} names crate::{named}, which is not below it"
            );
        }
    }
}

#[test]
fn rooms_that_stand_side_by_side_do_not_know_each_other() {
    for (one, other) in [("gate", "upstream"), ("source", "relay")] {
        assert!(!named_by(one).contains(other), "{one} names {other}");
        assert!(!named_by(other).contains(one), "{other} names {one}");
    }
}

#[test]
fn unsafe_code_is_in_sys_raw_alone() {
    assert!(source("lib.rs").contains("#![deny(unsafe_code)]"));
    for room in rooms() {
        let mut files = Vec::new();
        files_below(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(room),
            &mut files,
        );
        for file in files {
            let in_raw = file.iter().any(|step| step == "raw");
            let text = fs::read_to_string(&file).unwrap();
            // Comments and attributes may speak of it.
            let is_code = |line: &&str| !line.trim_start().starts_with(['/', '#']);
            let lines = text.lines().filter(is_code);
            let mut words =
                lines.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'));
            assert!(
                in_raw || !words.any(|word| word == "unsafe"),
                "{}",
                file.display()
            );
        }
    }
}
