//! Real servers (vsftpd, proftpd, pure-ftpd) and real clients (curl, lftp, tnftp), in namespaces of their
//! own: in which there is a user `ftp`, and two addresses of each family.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::harness::namespaces::{Replaced, add_address, privately, run};
use crate::harness::noise::Noise;
use crate::harness::super_server::unpacked;
use crate::harness::{Running, Said, Scratch, eventually, field, launched_by, tool};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Vsftpd,
    Proftpd,
    PureFtpd,
}

const SERVERS: [Server; 3] = [Server::Vsftpd, Server::Proftpd, Server::PureFtpd];

/// Nobody's ids, which the servers serve as.
const NOBODY: u32 = 65534;

/// As much as there is time for in every combination.
const SOME: usize = 3_000_000;

/// A directory that a server offers: `big` and `small` to read, `up` to write to.
struct Offered {
    scratch: Scratch,
    big: Vec<u8>,
}

impl Offered {
    fn new(size: usize) -> Offered {
        let scratch = Scratch::new();
        let root = scratch.join("root");
        for directory in [&root, &root.join("up"), &scratch.join("private")] {
            fs::create_dir(directory).unwrap();
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        }
        chown(root.join("up"), Some(NOBODY), Some(NOBODY)).unwrap();
        let big = Noise::new(7).take(size);
        for (name, content) in [("big", &big[..]), ("small", b"a small file\n")] {
            fs::write(root.join(name), content).unwrap();
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o644)).unwrap();
        }
        Offered { scratch, big }
    }

    fn root(&self) -> PathBuf {
        self.scratch.join("root")
    }

    fn uploaded(&self, name: &str) -> PathBuf {
        self.root().join("up").join(name)
    }

    /// A server of it, once it listens.
    fn serve(&self, server: Server, at: SocketAddr) -> Running {
        let place = self.scratch.path().display().to_string();
        let (ip, port) = (at.ip(), at.port());
        let write = |name: &str, text: String, mode: u32| {
            let file = self.scratch.join(name);
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            file
        };
        let mut command = match server {
            Server::Vsftpd => {
                let listen = if ip.is_ipv4() {
                    format!("listen=YES\nlisten_address={ip}\n")
                } else {
                    format!("listen=NO\nlisten_ipv6=YES\nlisten_address6={ip}\n")
                };
                let text = format!(
                    "{listen}listen_port={port}\nbackground=NO\nanonymous_enable=YES\n\
                     no_anon_password=YES\nanon_root={place}/root\nwrite_enable=YES\n\
                     anon_upload_enable=YES\nanon_other_write_enable=YES\nanon_umask=022\n\
                     ftp_username=ftp\nsecure_chroot_dir={place}/private\nseccomp_sandbox=NO\n\
                     connect_from_port_20=NO\nasync_abor_enable=YES\nssl_enable=YES\n\
                     allow_anon_ssl=YES\nforce_local_logins_ssl=NO\nforce_local_data_ssl=NO\n\
                     require_ssl_reuse=NO\nrsa_cert_file={place}/tls.pem\n"
                );
                let mut command = Command::new(unpacked("vsftpd/usr/sbin/vsftpd"));
                command.arg(write("vsftpd.conf", text, 0o600));
                command
            }
            Server::Proftpd => {
                let hash = Said::by(Command::new(tool("openssl")).args(["passwd", "-1", "x"])).ok();
                let user = format!("ftp:{}:65534:65534::{place}/root:/bin/false\n", hash.trim());
                let users = write("private/proftpd.users", user, 0o600);
                let text = format!(
                    "ServerType standalone\nServerName test\nUseIPv6 on\nDefaultAddress {ip}\nPort {port}\n\
                     User nobody\nGroup nogroup\nUseReverseDNS off\nScoreboardFile {place}/private/scoreboard\n\
                     PidFile {place}/proftpd.pid\nDelayTable none\nDelayEngine off\nWtmpLog off\n\
                     TransferLog none\nSystemLog none\nRequireValidShell off\nAuthUserFile {}\n\
                     AuthOrder mod_auth_file.c\nAllowOverwrite on\nAllowRetrieveRestart on\n\
                     AllowStoreRestart on\n",
                    users.display()
                );
                let mut command = Command::new(unpacked("proftpd-core/usr/sbin/proftpd"));
                command
                    .arg("-n")
                    .arg("-c")
                    .arg(write("proftpd.conf", text, 0o600));
                command
            }
            Server::PureFtpd => {
                let mut command = Command::new(unpacked("pure-ftpd/usr/sbin/pure-ftpd"));
                command.args(["-e", "-M", "-H", "-A", "-S", &format!("{ip},{port}")]);
                command.args(["-Y", "1", "-2", &format!("{place}/tls.pem")]);
                command.arg("-g").arg(self.scratch.join("pure-ftpd.pid"));
                command
            }
        };
        let running = Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()));
        eventually(
            &format!(
                "{server:?} to listen, which has said {:?}",
                running.log.all()
            ),
            || TcpStream::connect(at).ok(),
        );
        running
    }
}

/// Runs a test with a network of its own, and a user `ftp`.
fn with_user(offered: &Offered, test: impl FnOnce() + Send) {
    privately(|| {
        add_address("192.0.2.1/32");
        add_address("192.0.2.2/32");
        add_address("2001:db8::1/128");
        add_address("2001:db8::2/128");
        let users = fs::read_to_string("/etc/passwd").unwrap();
        let root = offered.root();
        let user = format!("ftp:x:{NOBODY}:{NOBODY}::{}:/bin/false\n", root.display());
        let _users = Replaced::with(&offered.scratch, "/etc/passwd", &(users + &user));
        test();
    });
}

const V4: (&str, &str) = ("192.0.2.1", "192.0.2.2");
const V6: (&str, &str) = ("2001:db8::1", "2001:db8::2");

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// A tcpproxy with the helper, and where it listens.
fn proxy(ip: &str, server: SocketAddr, options: &[&str]) -> (Running, SocketAddr) {
    let (bind, server) = (at(ip, 0).to_string(), server.to_string());
    let arguments = ["-b", &bind, "--log", "stderr", "--helper", "ftp", &server];
    let mut command = launched_by(&[], &[&arguments[..], options].concat());
    let proxy = Running::start(command.stdin(Stdio::null()));
    let line = proxy.log.wait_for("listening on ");
    let address = line.rsplit(' ').next().unwrap().parse().unwrap();
    (proxy, address)
}

/// curl without its surroundings' settings, quiet but for errors.
fn curl(arguments: &[&str]) -> Said {
    let fixed = ["-q", "-sS", "--max-time", "60", "-u", "ftp:x"];
    Said::by(Command::new(tool("curl")).args(fixed).args(arguments))
}

/// Everything that curl can be asked for in this way of having data connections.
fn use_curl(offered: &Offered, front: SocketAddr, way: &[&str], what: &str) {
    let url = format!("ftp://{front}");
    let listing = curl(&[way, &[&format!("{url}/")]].concat()).ok();
    assert!(
        listing.contains("big") && listing.contains("small"),
        "{what}: {listing}"
    );
    let (mine, got) = (offered.scratch.join("mine"), offered.scratch.join("got"));
    // Several transfers by one control connection.
    let (mine_name, got_name) = (mine.to_str().unwrap(), got.to_str().unwrap());
    let [big, small] = ["big", "small"].map(|name| format!("{url}/{name}"));
    let said = curl(&[way, &["-o", got_name, &big, "-o", mine_name, &small]].concat());
    assert_eq!(said.ok(), "", "{what}");
    assert!(fs::read(&got).unwrap() == offered.big, "{what}");
    assert_eq!(fs::read(&mine).unwrap(), b"a small file\n", "{what}");
    // The rest of a transfer that was cut short.
    fs::write(&got, &offered.big[..1_000_000]).unwrap();
    curl(&[way, &["-C", "-", "-o", got_name, &big]].concat()).ok();
    assert!(fs::read(&got).unwrap() == offered.big, "{what}: resumed");
    let name = format!("up-{}", got.metadata().unwrap().len());
    let to = format!("{url}/up/{name}");
    curl(&[way, &["-T", got_name, &to]].concat()).ok();
    let uploaded = offered.uploaded(&name);
    eventually("the whole upload", || {
        (fs::read(&uploaded).ok()? == offered.big).then_some(())
    });
    fs::remove_file(uploaded).unwrap();
}

#[test]
fn curl_and_every_server_understand_each_other_in_every_way_and_family() {
    let offered = Offered::new(SOME);
    with_user(&offered, || {
        make_certificate(&offered.scratch);
        for (number, server) in (0..).zip(SERVERS) {
            for (family, serves) in (0..).zip([V4, V6]) {
                let behind = at(serves.1, 2100 + number * 10 + family);
                let _server = offered.serve(server, behind);
                for fronts in [V4, V6] {
                    let (proxy, front) = proxy(fronts.0, behind, &[]);
                    // The client comes from the address that it connects to: the only one there.
                    let active = ["--ftp-port", "-"];
                    let by_port = ["--ftp-port", "-", "--disable-eprt"];
                    let by_pasv = ["--disable-epsv"];
                    let is_v4 = front.is_ipv4();
                    let ways = [
                        (true, &[][..]),
                        (true, &active),
                        (is_v4, &by_port),
                        (is_v4, &by_pasv),
                    ];
                    for (_, way) in ways.into_iter().filter(|(possible, _)| *possible) {
                        let what = format!("{server:?} at {behind} through {front} {way:?}");
                        use_curl(&offered, front, way, &what);
                    }
                    let lines = proxy.log.all();
                    let refused = lines.iter().find(|line| line.contains("refused"));
                    assert_eq!(refused, None, "{server:?} {behind} {front}");
                }
            }
        }
    });
}

#[test]
fn lftp_mirrors_and_resumes_through_it() {
    let offered = Offered::new(SOME);
    with_user(&offered, || {
        make_certificate(&offered.scratch);
        let mine = offered.scratch.join("mine");
        for (number, server) in (0..).zip(SERVERS) {
            let behind = at(V4.1, 2100 + number);
            let _server = offered.serve(server, behind);
            for (fronts, passive) in [(V4, "yes"), (V4, "no"), (V6, "yes")] {
                let what = format!("{server:?} {fronts:?} {passive}");
                let (_proxy, front) = proxy(fronts.0, behind, &[]);
                let name = format!("again-{}", front.port());
                let script = format!(
                    "set ftp:passive-mode {passive}; set ftp:ssl-allow no; set net:timeout 20; \
                     set net:max-retries 2; open -u ftp,x -p {} {}; mirror --parallel=2 . {}; \
                     cd up; put {}/big -o {name}; cls -1; bye",
                    front.port(),
                    front.ip(),
                    mine.display(),
                    mine.display(),
                );
                let said = Said::by(
                    Command::new(tool("lftp"))
                        .env("HOME", offered.scratch.path())
                        .args(["--norc", "-c", &script]),
                );
                assert_eq!((said.status, said.err.as_str()), (0, ""), "{what}");
                assert!(said.out.contains(&name), "{what}: {}", said.out);
                assert!(fs::read(mine.join("big")).unwrap() == offered.big, "{what}");
                assert!(
                    fs::read(offered.uploaded(&name)).unwrap() == offered.big,
                    "{what}"
                );
                fs::remove_file(offered.uploaded(&name)).unwrap();
                fs::remove_dir_all(&mine).unwrap();
            }
        }
    });
}

#[test]
fn tnftp_gets_puts_and_lists_through_it() {
    let offered = Offered::new(SOME);
    with_user(&offered, || {
        make_certificate(&offered.scratch);
        let behind = at(V4.1, 2100);
        let _server = offered.serve(Server::Proftpd, behind);
        for (fronts, passive) in [(V4, "-p"), (V4, "-A"), (V6, "-p"), (V6, "-A")] {
            let what = format!("{fronts:?} {passive}");
            let (_proxy, front) = proxy(fronts.0, behind, &[]);
            let got = offered.scratch.join("got");
            let script = format!(
                "user ftp x\nbinary\nget big {got}\nput {got} up/mine\nls\nbye\n",
                got = got.display()
            );
            let commands = offered.scratch.join("commands");
            fs::write(&commands, script).unwrap();
            let output = Command::new(unpacked("tnftp/usr/bin/tnftp"))
                .args([passive, "-n", "-v", "-i", &front.ip().to_string()])
                .arg(front.port().to_string())
                .env("HOME", offered.scratch.path())
                .stdin(fs::File::open(&commands).unwrap())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains("small"), "{what}: {said}");
            assert!(fs::read(&got).unwrap() == offered.big, "{what}: {said}");
            assert!(
                fs::read(offered.uploaded("mine")).unwrap() == offered.big,
                "{what}"
            );
            fs::remove_file(offered.uploaded("mine")).unwrap();
        }
    });
}

#[test]
fn a_transfer_that_the_client_gives_up_is_aborted_and_the_next_works() {
    let offered = Offered::new(40 * SOME);
    with_user(&offered, || {
        make_certificate(&offered.scratch);
        for (number, server) in (0..).zip(SERVERS) {
            let behind = at(V4.1, 2100 + number);
            let _server = offered.serve(server, behind);
            let (proxy, front) = proxy(V4.0, behind, &[]);
            let mut client = crate::session::Talk::new(crate::harness::patient(
                TcpStream::connect(front).unwrap(),
            ));
            reply(&mut client, "220");
            for (command, code) in [("USER ftp", "331"), ("PASS x", "230"), ("TYPE I", "200")] {
                client.says(format!("{command}\r\n"));
                // Who needs no password says so at once.
                let got = any_reply(&mut client);
                assert!(
                    got == code || got == "230" || got == "202",
                    "{server:?} {command}: {got}"
                );
            }
            let open = |client: &mut crate::session::Talk| {
                client.says("EPSV\r\n");
                let line = client.hears_start("229 ");
                TcpStream::connect((front.ip(), crate::session::port_in(&line))).unwrap()
            };
            let data = open(&mut client);
            client.says("RETR big\r\n");
            reply(&mut client, "150");
            data.peek(&mut [0]).unwrap();
            crate::harness::peers::send_urgent(client.stream(), b"\xff\xf4\xff");
            client.says(b"\xf2ABOR\r\n");
            drop(data);
            // 426 for the transfer, 225 or 226 for ABOR; or 226 for both; or, by pure-ftpd, neither. What is
            // refused by us is answered behind all of it.
            client.says("NOOP\r\n");
            while any_reply(&mut client) != "200" {}
            client.says("PORT 127,0,0,1,4,1\r\n");
            reply(&mut client, "501");
            let data = open(&mut client);
            client.says("RETR small\r\n");
            reply(&mut client, "150");
            assert_eq!(
                crate::harness::read_all(data),
                b"a small file\n",
                "{server:?}"
            );
            reply(&mut client, "226");
            client.says("QUIT\r\n");
            reply(&mut client, "221");
            proxy.log.wait_for_count(" data: mode=passive", 2);
        }
    });
}

/// The code of the next reply, with all its lines.
fn any_reply(client: &mut crate::session::Talk) -> String {
    let first = String::from_utf8(client.line()).unwrap();
    let code = first.get(..3).unwrap_or_default().to_owned();
    let mut line = first;
    while !line.starts_with(&format!("{code} ")) {
        line = String::from_utf8(client.line()).unwrap();
        assert!(!line.is_empty(), "the connection has ended");
    }
    code
}

#[track_caller]
fn reply(client: &mut crate::session::Talk, code: &str) {
    assert_eq!(any_reply(client), code);
}

#[test]
fn tls_passes_and_its_data_is_not_followed() {
    let offered = Offered::new(SOME);
    with_user(&offered, || {
        make_certificate(&offered.scratch);
        for (number, server) in (0..).zip([Server::Vsftpd, Server::PureFtpd]) {
            let behind = at(V4.1, 2100 + number);
            let _server = offered.serve(server, behind);
            let (proxy, front) = proxy(V4.0, behind, &[]);
            // Commands pass; where the server listens, nobody but the client can know.
            let url = format!("ftp://{front}/");
            let options = ["--ssl-reqd", "-k", "-I", "-Q", "PWD", "-v"];
            let said = curl(&[&options[..], &[&url]].concat());
            assert!(said.err.contains("234 "), "{said:?}");
            assert!(said.err.contains("< 257 "), "{said:?}");
            proxy.log.wait_for("AUTH was accepted: ");
            // Who goes where the server says that it is gets there by itself.
            let options = [
                "--ssl-reqd",
                "-k",
                "--disable-epsv",
                "--no-ftp-skip-pasv-ip",
            ];
            let small = format!("{url}small");
            let said = curl(&[&options[..], &[&small]].concat());
            assert_eq!(said.ok(), "a small file\n");
            let lines = proxy.log.all();
            assert!(
                !lines.iter().any(|line| line.contains(" data: ")),
                "{lines:#?}"
            );
        }
    });
}

/// A certificate and its key in `tls.pem`.
fn make_certificate(scratch: &Scratch) {
    let file = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
    let (key, certificate) = (file("key.pem"), file("certificate.pem"));
    let subject = ["-subj", "/CN=ftp.example", "-days", "2"];
    let kind = ["req", "-x509", "-newkey", "rsa:2048", "-nodes"];
    let files = ["-keyout", &key, "-out", &certificate];
    run("openssl", &[&kind[..], &subject, &files].concat());
    let both = [fs::read(key).unwrap(), fs::read(certificate).unwrap()].concat();
    let pem = scratch.join("tls.pem");
    fs::write(&pem, both).unwrap();
    fs::set_permissions(&pem, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_file_of_200_megabytes_arrives_whole_both_ways() {
    let offered = Offered::new(200 << 20);
    with_user(&offered, || {
        make_certificate(&offered.scratch);
        let behind = at(V4.1, 2100);
        let _server = offered.serve(Server::Vsftpd, behind);
        let (proxy, front) = proxy(V4.0, behind, &["--ftp-ports", "50000-50009"]);
        let got = offered.scratch.join("got");
        let name = got.to_str().unwrap();
        for way in [&[][..], &["--ftp-port", "-"]] {
            curl(&[way, &["-o", name, &format!("ftp://{front}/big")]].concat()).ok();
            assert!(fs::read(&got).unwrap() == offered.big, "{way:?}");
            curl(
                &[
                    way,
                    &["-T", name, &format!("ftp://{front}/up/{}", way.len())],
                ]
                .concat(),
            )
            .ok();
            let uploaded = offered.uploaded(&way.len().to_string());
            assert!(fs::read(uploaded).unwrap() == offered.big, "{way:?}");
        }
        let lines = proxy.log.wait_for_count(" data: mode=", 4);
        let size = offered.big.len().to_string();
        let moved = |line: &String| field(line, "sent") == size || field(line, "received") == size;
        assert!(lines.iter().all(moved), "{lines:#?}");
    });
}
