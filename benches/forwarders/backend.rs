//! The backend: what the forwarders lead to. It says on standard output on which port, and serves
//! until it is ended.
//!
//! One loop answers small requests, however many clients they are from. A connection that begins
//! with the order of a bulk transfer gets a thread.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::{io, thread};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{Backlog, listen};

use crate::Outcome;
use crate::load::{self, Transfer, Way};
use crate::pattern::Pattern;

pub(crate) fn serve() -> Outcome<()> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    // std asks for 128 waiting clients, which is little for forwarders that do not wait.
    listen(&listener, Backlog::new(4096)?)?;
    println!("{}", listener.local_addr()?.port());
    io::stdout().flush()?;
    answer(&listener)
}

/// Sends back what comes, to everybody, until they end.
fn answer(listener: &TcpListener) -> Outcome<()> {
    let pattern = Arc::new(Pattern::new());
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let key = |fd: i32| EpollEvent::new(EpollFlags::EPOLLIN, fd as u64);
    epoll.add(listener, key(listener.as_raw_fd()))?;
    // By descriptor, which is a small number.
    let mut clients: Vec<Option<TcpStream>> = Vec::new();
    let mut events = [EpollEvent::empty(); 64];
    let mut buffer = [0; 4096];
    loop {
        let ready = epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..ready] {
            let fd = event.data() as usize;
            if fd == listener.as_raw_fd() as usize {
                // A client that has gone again is none.
                let Ok((client, _)) = listener.accept() else {
                    continue;
                };
                let fd = client.as_raw_fd();
                epoll.add(&client, key(fd))?;
                clients.resize_with(clients.len().max(fd as usize + 1), || None);
                clients[fd as usize] = Some(client);
                continue;
            }
            let Some(mut client) = clients[fd].as_ref() else {
                continue;
            };
            // A reset ends it as an end of input does. Closing takes it out of the set.
            let length = client.read(&mut buffer).unwrap_or(0);
            let received = &buffer[..length];
            if Transfer::is_ordered_by(received) {
                epoll.delete(client)?;
                hand_over(clients[fd].take(), received, &pattern);
            } else if received.is_empty() || client.write_all(received).is_err() {
                clients[fd] = None;
            }
        }
    }
}

fn hand_over(client: Option<TcpStream>, received: &[u8], pattern: &Arc<Pattern>) {
    let (received, pattern) = (received.to_vec(), Arc::clone(pattern));
    // What goes wrong is seen by the client, who waits for the verdict or for bytes.
    thread::spawn(move || client.map(|client| transfer(client, &received, &pattern)));
}

/// One bulk transfer: the order, a byte that says it is understood, one that says go, the bytes,
/// and, where they came up, the verdict on them.
fn transfer(mut client: TcpStream, received: &[u8], pattern: &Pattern) -> io::Result<()> {
    client.set_nodelay(true)?;
    let order = Transfer::read(received.chain(&client))?;
    client.write_all(load::READY)?;
    client.read_exact(&mut [0; load::GO.len()])?;
    match order.way {
        Way::Down => load::send(&mut client, pattern, order.length)?,
        Way::Up => {
            let verdict = match load::receive(&mut client, pattern, order.length) {
                Ok(()) => load::INTACT,
                Err(_) => load::SPOILT,
            };
            client.write_all(verdict)?;
        }
    }
    // The client sends the rest of what is spoilt, and ends first, so that nobody's last bytes
    // depend on a half-closed connection.
    io::copy(&mut client, &mut io::sink()).map(drop)
}
