//! `make bench-floor`: what the messages and syncs of one client's request take on this machine if nothing else is done.
//!
//! Threads with a socket each send what a client, a leader and two followers would, 400 bytes over UDP, and sync on threads of
//! their own, as the nodes do. No request of so many hops can be faster here. What a hop takes depends on whether it wakes a
//! core: each request is measured with all of it on one core, and with the leader apart from the others.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use duet_bench::side::tell;
use hdrhistogram::Histogram;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// Bytes of a message.
const MESSAGE: usize = 400;
/// Bytes written for a sync, and of the file that they go round in.
const WRITE: u64 = 800;
const FILE: u64 = 64 << 20;
/// A message that does not arrive ends the measurement.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures what the hops and syncs of a request take alone.
#[derive(Parser)]
struct Args {
    /// Where files are written and synced.
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Requests of each kind.
    #[arg(long, default_value_t = 3000)]
    requests: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Request {
    LinearizableGet,
    StrongPut,
    EventualPut,
}

impl Request {
    const ALL: [(&str, Request); 3] = [
        ("linearizable get", Request::LinearizableGet),
        ("strong put", Request::StrongPut),
        ("eventual put", Request::EventualPut),
    ];

    /// Who has to say yes, the node that is asked included.
    fn votes(self) -> u32 {
        if self == Request::EventualPut { 1 } else { 2 }
    }

    /// The followers that are told: what is written goes to all, a read asks no more than have to say yes.
    fn told(self) -> &'static [usize] {
        match self {
            Request::LinearizableGet => &FOLLOWERS[..1],
            Request::StrongPut => &FOLLOWERS,
            Request::EventualPut => &[],
        }
    }

    fn syncs(self) -> bool {
        self != Request::LinearizableGet
    }
}

/// What a message says; its round follows.
const ASK: u8 = 0;
const APPEND: u8 = 1;
const ACCEPTED: u8 = 2;
const SYNCED: u8 = 3;
const DONE: u8 = 4;
const STOP: u8 = 5;

/// The places of all in the list of addresses.
const LEADER: usize = 0;
const FOLLOWERS: [usize; 2] = [1, 2];
const CLIENT: usize = 3;

struct Peer {
    socket: UdpSocket,
    all: Vec<SocketAddr>,
}

impl Peer {
    fn tell(&self, to: usize, what: u8, round: u64) -> io::Result<()> {
        let mut message = [0; MESSAGE];
        message[0] = what;
        message[1..9].copy_from_slice(&round.to_le_bytes());
        self.socket.send_to(&message, self.all[to]).map(drop)
    }

    fn hear(&self) -> io::Result<(u8, u64)> {
        let mut message = [0; MESSAGE];
        self.socket.recv(&mut message)?;
        Ok((message[0], message[1..].first_chunk().map_or(0, |round| u64::from_le_bytes(*round))))
    }
}

/// Writes and syncs whenever it is told to, and tells the node by a message, which is what wakes it.
fn committer(file: &File, rounds: &mpsc::Receiver<u64>, told: &Peer, me: usize) -> io::Result<()> {
    let mut at = 0;
    while let Ok(round) = rounds.recv() {
        file.write_all_at(&[1; WRITE as usize], at)?;
        at = (at + WRITE) % (FILE - WRITE);
        file.sync_data()?;
        told.tell(me, SYNCED, round)?;
    }
    Ok(())
}

fn node(me: usize, peer: &Peer, request: Request, commit: &mpsc::Sender<u64>) -> io::Result<()> {
    let (mut asked, mut votes) = (0, 0);
    let sync = |round| commit.send(round).map_err(io::Error::other);
    loop {
        let (what, round) = peer.hear()?;
        let mut vote = false;
        match what {
            ASK => {
                (asked, votes) = (round, 0);
                vote = !request.syncs();
                if request.syncs() {
                    sync(round)?;
                }
                request.told().iter().try_for_each(|follower| peer.tell(*follower, APPEND, round))?;
            }
            APPEND if request.syncs() => sync(round)?,
            APPEND => peer.tell(LEADER, ACCEPTED, round)?,
            SYNCED if me != LEADER => peer.tell(LEADER, ACCEPTED, round)?,
            SYNCED | ACCEPTED => vote = round == asked,
            _ => return Ok(()),
        }
        if vote {
            votes += 1;
            if votes == request.votes() {
                peer.tell(CLIENT, DONE, round)?;
            }
        }
    }
}

/// Keeps this thread, and those that it starts, on a core.
fn pin(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores).context("choosing a core")
}

fn start(
    me: usize,
    core: usize,
    [peer, told]: [Peer; 2],
    request: Request,
    folder: &Path,
) -> Result<Vec<JoinHandle<Result<()>>>> {
    let file = tempfile::tempfile_in(folder)?;
    let piece = vec![0; 1 << 20];
    (0..FILE).step_by(piece.len()).try_for_each(|at| file.write_all_at(&piece, at))?;
    file.sync_all()?;
    let (commit, rounds) = mpsc::channel();
    let syncs = thread::spawn(move || pin(core).and_then(|()| Ok(committer(&file, &rounds, &told, me)?)));
    let serves = thread::spawn(move || pin(core).and_then(|()| Ok(node(me, &peer, request, &commit)?)));
    Ok(vec![syncs, serves])
}

fn socket() -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Times in microseconds. The leader is on the core 0, all others on `other`.
fn measure(request: Request, other: usize, args: &Args) -> Result<Histogram<u64>> {
    let sockets = (0..4).map(|_| socket()).collect::<Result<Vec<_>>>()?;
    let all = sockets.iter().map(UdpSocket::local_addr).collect::<io::Result<Vec<_>>>()?;
    let mut threads = Vec::new();
    let mut sockets = sockets.into_iter();
    for me in [LEADER, FOLLOWERS[0], FOLLOWERS[1]] {
        let own = sockets.next().context("a socket for each")?;
        let peers = [own, socket()?].map(|socket| Peer { socket, all: all.clone() });
        threads.extend(start(me, if me == LEADER { 0 } else { other }, peers, request, &args.folder)?);
    }
    let client = Peer { socket: sockets.next().context("a socket for each")?, all };
    pin(other)?;
    let mut times = Histogram::new(3)?;
    for round in 1..=u64::from(args.requests) {
        let asked = Instant::now();
        client.tell(LEADER, ASK, round)?;
        while client.hear()? != (DONE, round) {}
        times.record(asked.elapsed().as_micros() as u64)?;
    }
    [LEADER, FOLLOWERS[0], FOLLOWERS[1]].iter().try_for_each(|node| client.tell(*node, STOP, 0))?;
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    }
    Ok(times)
}

fn main() -> Result<()> {
    let args = Args::parse();
    fs::create_dir_all(&args.folder)?;
    let last = thread::available_parallelism()?.get() - 1;
    for (name, request) in Request::ALL {
        for (place, other) in [("one core", 0), ("two cores", last)] {
            let times = measure(request, other, &args)?;
            let at = |quantile| times.value_at_quantile(quantile);
            let [p50, p90, p99] = [0.5, 0.9, 0.99].map(at);
            tell(&format!("{name:17} {place:9}  p50 {p50:>5} µs  p90 {p90:>5} µs  p99 {p99:>5} µs"));
        }
    }
    Ok(())
}
