//! A DNS of the test's own, for tests in namespaces of their own.

use std::net::UdpSocket;
use std::thread;

use super::Scratch;
use super::namespaces::Replaced;

/// Has names looked up in this hosts file, and then in the DNS at 127.0.0.1.
pub fn names<'a>(scratch: &Scratch, hosts: &str) -> Replaced<'a> {
    Replaced::with(scratch, "/etc/nsswitch.conf", "hosts: files dns\n");
    Replaced::with(
        scratch,
        "/etc/resolv.conf",
        "nameserver 127.0.0.1\noptions timeout:5 attempts:3\n",
    );
    Replaced::with(scratch, "/etc/hosts", hosts)
}

/// What the test's name server says to a question.
pub enum Answer {
    /// An IPv4 address.
    Address([u8; 4]),
    /// The name of an address: its labels, of any bytes.
    Name(Vec<Vec<u8>>),
    /// There is no such name.
    Unknown,
    /// Nothing, ever.
    Silence,
}

/// A name server at 127.0.0.1:53, as [`names`] has it asked. It is asked for a name and the type
/// of the record (A is 1, PTR is 12; RFC 1035 §3.2.2).
pub fn name_server(answer: impl Fn(&str, u16) -> Answer + Send + 'static) {
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let question = &packet[..length];
            let (name, kind, end) = read_question(question);
            let data = match answer(&name, kind) {
                Answer::Address(address) if kind == 1 => Some(address.to_vec()),
                Answer::Name(labels) if kind == 12 => Some(encode_name(&labels)),
                Answer::Silence => continue,
                // The name exists, but not with such a record.
                Answer::Address(_) | Answer::Name(_) => None,
                Answer::Unknown => {
                    let mut reply = question[..end].to_vec();
                    // A response, recursion available, no such name.
                    reply[2..4].copy_from_slice(&[0x81, 0x83]);
                    reply[6..12].fill(0);
                    let _ = socket.send_to(&reply, from);
                    continue;
                }
            };
            let mut reply = question[..end].to_vec();
            reply[2..4].copy_from_slice(&[0x81, 0x80]);
            reply[6..12].copy_from_slice(&[0, u8::from(data.is_some()), 0, 0, 0, 0]);
            if let Some(data) = data {
                // The name of the question, by reference; class IN; for a minute.
                reply.extend_from_slice(&[0xc0, 12, 0, kind as u8, 0, 1, 0, 0, 0, 60]);
                reply.extend_from_slice(&(data.len() as u16).to_be_bytes());
                reply.extend_from_slice(&data);
            }
            let _ = socket.send_to(&reply, from);
        }
    });
}

/// The name and type that a packet asks for, and where the question ends.
fn read_question(packet: &[u8]) -> (String, u16, usize) {
    let mut labels = Vec::new();
    let mut at = 12;
    while packet[at] != 0 {
        let length = usize::from(packet[at]);
        labels.push(String::from_utf8_lossy(&packet[at + 1..=at + length]).into_owned());
        at += length + 1;
    }
    let kind = u16::from_be_bytes([packet[at + 1], packet[at + 2]]);
    (labels.join("."), kind, at + 5)
}

fn encode_name(labels: &[Vec<u8>]) -> Vec<u8> {
    let mut encoded = Vec::new();
    for label in labels {
        encoded.push(label.len() as u8);
        encoded.extend_from_slice(label);
    }
    encoded.push(0);
    encoded
}
