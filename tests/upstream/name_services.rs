//! Names come from where nsswitch.conf(5) says, however the program is linked: modules that it
//! cannot load itself are asked by getent(1).

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::process::Command;
use std::time::Instant;

use crate::harness::name_server::names;
use crate::harness::namespaces::{Replaced, add_address, privately, run};
use crate::harness::processes::children;
use crate::harness::{Scratch, Standalone, TCPPROXY, eventually, field, launched_by, read_all};

/// An upstream that says a word to whoever connects, on the address given; its port.
fn speaker(address: &str, word: &'static str) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            client.unwrap().write_all(word.as_bytes()).unwrap();
        }
    });
    port
}

/// The exit status of a check of these arguments, and what it says.
fn check(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(TCPPROXY);
    let output = command.arg("--check").args(arguments).output().unwrap();
    let says = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(says).unwrap())
}

#[test]
fn hosts_are_found_by_modules_of_every_kind() {
    for modules in [
        "files dns",
        "db files",
        "nosuch files",
        "files [NOTFOUND=return] db",
    ] {
        privately(|| {
            let scratch = Scratch::new();
            let hosts = "2001:db8::1 far.example\n127.0.0.2 far.example\n";
            let _names = names(&scratch, hosts);
            // The machine's one address that is not loopback's is of the other family.
            add_address("2001:db8::1/128");
            let lines = format!("hosts: {modules}\n");
            let _modules = Replaced::with(&scratch, "/etc/nsswitch.conf", &lines);
            let port = speaker("127.0.0.2", "far");
            let proxy = Standalone::start(&[&format!("far.example:{port}")]);
            assert_eq!(read_all(proxy.connect()), b"far", "{modules}");

            let proxy = Standalone::start(&[&format!("nosuch.example:{port}")]);
            assert_eq!(read_all(proxy.connect()), b"", "{modules}");
            let closed = proxy.closed();
            assert_eq!(field(&closed, "reason"), "name-not-found", "{modules}");
        });
    }
}

#[test]
fn programs_are_told_names_that_modules_of_every_kind_know() {
    for modules in ["files", "db files"] {
        privately(|| {
            let scratch = Scratch::new();
            let _names = names(&scratch, "127.0.0.1 client.example\n");
            let lines = format!("hosts: {modules}\n");
            let _modules = Replaced::with(&scratch, "/etc/nsswitch.conf", &lines);
            let proxy = Standalone::start(&["/bin/sh", "-c", "echo $PROXY_CLIENTNAME"]);
            assert_eq!(read_all(proxy.connect()), b"client.example\n", "{modules}");
        });
    }
}

#[test]
fn users_and_ports_are_found_by_modules_of_every_kind() {
    for (modules, getent) in [
        ("files", true),
        ("files", false),
        ("db files", true),
        ("nosuch files", true),
        // The file is all that is left to ask then.
        ("systemd files", false),
        ("files systemd", false),
    ] {
        privately(|| {
            let scratch = Scratch::new();
            let lines = format!("passwd: {modules}\ngroup: {modules}\nservices: {modules}\n");
            let _modules = Replaced::with(&scratch, "/etc/nsswitch.conf", &lines);
            let case = format!("{modules}, getent: {getent}");
            if !getent {
                Replaced::with(&scratch, "/usr/bin/getent", "not a program");
            }
            let (status, says) = check(&["-u", "daemon", "-g", "daemon", "host:http"]);
            assert_eq!((status, says.as_str()), (Some(0), "ok\n"), "{case}");
            for (arguments, expected) in [
                (["-u", "nosuch", "host"], 78),
                (["-g", "nosuch", "host"], 78),
                (["-t", "5", "host:nosuch"], 64),
            ] {
                let (status, says) = check(&arguments);
                assert_eq!(status, Some(expected), "{case}: {says}");
                assert!(says.contains("nosuch"), "{case}: {says}");
            }
        });
    }
}

#[test]
fn a_getent_that_knows_no_options_is_understood() {
    privately(|| {
        let scratch = Scratch::new();
        let lines = "passwd: far files\nservices: far files\n";
        let _modules = Replaced::with(&scratch, "/etc/nsswitch.conf", lines);
        // As Alpine's, which takes its first argument for the database.
        let getent = "#!/bin/sh\ncase \"$1 $2\" in\n\
                      'passwd far') echo far:x:4711:4711::/:/bin/sh;;\n\
                      'services far/tcp') echo 'far  7/tcp';;\n\
                      *) exit 2;;\nesac\n";
        let _getent = Replaced::with(&scratch, "/usr/bin/getent", getent).executable();
        let (status, says) = check(&["-u", "far", "host:far"]);
        assert_eq!((status, says.as_str()), (Some(0), "ok\n"));
    });
}

#[test]
fn a_module_that_has_no_file_is_not_asked_for_what_is_in_files() {
    privately(|| {
        let scratch = Scratch::new();
        // As Debian has it.
        let lines = "services: db files\n";
        let _modules = Replaced::with(&scratch, "/etc/nsswitch.conf", lines);
        let getent = "#!/bin/sh\necho 'http  7/tcp'\n";
        let _getent = Replaced::with(&scratch, "/usr/bin/getent", getent).executable();
        let place = "/var/lib/misc";
        run("mount", &["-t", "tmpfs", "none", place]);
        let listed = || {
            let mut command = Command::new(TCPPROXY);
            let output = command.args(["-z", "-b", "127.0.0.1:http", "host"]);
            String::from_utf8(output.output().unwrap().stdout).unwrap()
        };
        assert_eq!(listed(), "127.0.0.1:80\n");
        fs::write(format!("{place}/services.db"), "").unwrap();
        assert_eq!(listed(), "127.0.0.1:7\n");
    });
}

#[test]
fn users_are_found_though_nobody_is_told_of_ended_children() {
    privately(|| {
        let scratch = Scratch::new();
        let _modules = Replaced::with(&scratch, "/etc/nsswitch.conf", "passwd: far files\n");
        let getent = "#!/bin/sh\necho far:x:4711:4711::/:/bin/sh\n";
        let _getent = Replaced::with(&scratch, "/usr/bin/getent", getent).executable();
        // As a super-server may start it.
        let launcher = ["env", "--ignore-signal=CHLD"];
        let arguments = ["--check", "-u", "far", "host:7"];
        let output = launched_by(&launcher, &arguments).output().unwrap();
        let says = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{says}");
    });
}

#[test]
fn a_name_is_never_taken_for_a_number_or_an_option() {
    // getent(1) would say that +1 is daemon, and so is 2^32 + 1.
    for name in ["+1", " 1", "+4294967297", "--help"] {
        for option in ["-u", "-g"] {
            let (status, says) = check(&[option, name, "host:7"]);
            assert_eq!(status, Some(78), "{option} {name}: {says}");
            assert!(says.contains("there is no"), "{option} {name}: {says}");
        }
    }
}

#[test]
fn a_module_that_does_not_answer_is_not_waited_for_longer_than_an_upstream() {
    privately(|| {
        let scratch = Scratch::new();
        let _names = names(&scratch, "");
        let _modules = Replaced::with(&scratch, "/etc/nsswitch.conf", "hosts: nosuch files\n");
        let hanging = "#!/bin/sh\nexec sleep 1000\n";
        let _getent = Replaced::with(&scratch, "/usr/bin/getent", hanging).executable();
        let arguments = ["--connect-timeout", "300ms", "far.example:1"];
        let proxy = Standalone::start(&arguments);
        let start = Instant::now();
        assert_eq!(read_all(proxy.connect()), b"");
        let took = start.elapsed().as_millis();
        assert!((300..3_000).contains(&took), "{took} ms");
        assert_eq!(field(&proxy.closed(), "reason"), "connect-timeout");
        eventually("the session and its question to be gone", || {
            children(proxy.process.pid()).is_empty().then_some(())
        });
    });
}
