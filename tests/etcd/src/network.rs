//! The network between members, and between members and clients: any member can be cut off. Data under way
//! then arrives late, when the member is connected again.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Result;

/// The limit for the head of a peer's first request, which is shorter.
const HEAD: usize = 8192;
/// The limit for waiting: a connection without a head is no peer's.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct State {
    cut_off: BTreeSet<String>,
    /// Members whose answers are lost, with the connection.
    unheard: BTreeSet<String>,
    /// Names of the members, by the ids that members send.
    names: BTreeMap<String, String>,
    ports: Vec<u16>,
    over: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while a member is cut off; false if the network is gone after that.
    fn pass(&self, parties: &[String; 2]) -> bool {
        let mut state = self.state();
        while !state.over && parties.iter().any(|party| state.cut_off.contains(party)) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.over
    }

    /// Whether an answer of one of these members is lost.
    fn loses(&self, parties: &[String; 2]) -> bool {
        let state = self.state();
        parties.iter().any(|party| state.unheard.contains(party))
    }
}

/// Links that can be cut.
#[derive(Default)]
pub struct Network(Arc<Shared>);

impl Network {
    /// A port that leads to this port of a member, for the member's client of this name.
    pub fn link(&self, from: &str, to: &str, port: u16) -> Result<u16> {
        self.listen(Some(from.to_owned()), to, port)
    }

    pub(crate) fn link_of_peer(&self, to: &str, port: u16) -> Result<u16> {
        self.listen(None, to, port)
    }

    fn listen(&self, from: Option<String>, to: &str, port: u16) -> Result<u16> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let own = listener.local_addr()?.port();
        self.0.state().ports.push(own);
        let (shared, to) = (self.0.clone(), to.to_owned());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.state().over {
                    return;
                }
                let (shared, from, to) = (shared.clone(), from.clone(), to.clone());
                // A connection that breaks is no fault of the network.
                thread::spawn(move || drop(connect(&shared, stream, from, to, port)));
            }
        });
        Ok(own)
    }

    /// Registers the id of a member, in hexadecimal: a peer names itself by it.
    pub(crate) fn name(&self, id: &str, name: &str) {
        self.0.state().names.insert(id.to_owned(), name.to_owned());
    }

    /// Cuts a member off: nothing comes from it or reaches it any more.
    pub fn cut_off(&self, name: &str) {
        self.0.state().cut_off.insert(name.to_owned());
    }

    /// Lets requests reach a member, but loses every answer: the connection breaks.
    pub fn lose_answers(&self, name: &str) {
        self.0.state().unheard.insert(name.to_owned());
    }

    /// Connects every member again.
    pub fn heal(&self) {
        let mut state = self.0.state();
        state.cut_off.clear();
        state.unheard.clear();
        drop(state);
        self.0.changed.notify_all();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let ports = {
            let mut state = self.0.state();
            state.over = true;
            std::mem::take(&mut state.ports)
        };
        self.0.changed.notify_all();
        // Wakes the listener.
        for port in ports {
            let _ = TcpStream::connect(("127.0.0.1", port));
        }
    }
}

fn connect(
    shared: &Arc<Shared>,
    mut stream: TcpStream,
    from: Option<String>,
    to: String,
    port: u16,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    let from = if let Some(from) = from {
        from
    } else {
        head = read_head(&mut stream)?;
        let id = sender(&head);
        id.and_then(|id| shared.state().names.get(&id).cloned()).unwrap_or_default()
    };
    let parties = [from, to];
    if !shared.pass(&parties) {
        return Ok(());
    }
    let mut onward = TcpStream::connect(("127.0.0.1", port))?;
    onward.write_all(&head)?;
    let (back, stream_back, shared_back, parties_back) =
        (onward.try_clone()?, stream.try_clone()?, shared.clone(), parties.clone());
    thread::spawn(move || carry(&shared_back, &parties_back, back, stream_back, true));
    carry(shared, &parties, stream, onward, false);
    Ok(())
}

fn carry(shared: &Shared, parties: &[String; 2], mut from: TcpStream, mut to: TcpStream, answers: bool) {
    let mut bytes = [0; 16384];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        if !shared.pass(parties)
            || answers && shared.loses(parties)
            || to.write_all(&bytes[..length]).is_err()
        {
            break;
        }
    }
    // The other direction ends with this one; either may be closed already.
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// The head of a peer's first request.
fn read_head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head = Vec::new();
    let mut bytes = [0; 1024];
    while head.len() < HEAD && !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let length = stream.read(&mut bytes)?;
        if length == 0 {
            break;
        }
        head.extend_from_slice(&bytes[..length]);
    }
    stream.set_read_timeout(None)?;
    Ok(head)
}

/// Which member asks: rafthttp names it in every request of its streams and its pipeline (etcd 3.4,
/// etcdserver/api/rafthttp/http.go, `X-Server-From`).
fn sender(head: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(head);
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let mut named = lines.filter(|(name, _)| name.eq_ignore_ascii_case("x-server-from"));
    named.next().map(|(_, id)| id.trim().to_owned())
}
