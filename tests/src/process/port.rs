//! Ports that nobody else takes between their choice and their use, nor while a node is down.
//!
//! A port that was free a moment ago need not be free now: the kernel hands it to whoever asks for any port, and to
//! every connection that goes out. These lie below what it hands out, and a listener on an address of its own holds
//! each, so that tests that run side by side do not meet.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    process,
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

use anyhow::{Result, bail};

/// Below Linux's 32,768 to 60,999 for outgoing connections, above the well-known.
const FIRST: u16 = 12_000;
/// How many there are.
const COUNT: u16 = 20_000;
/// Where claims are held: on loopback, and nothing else listens there.
const CLAIMS: Ipv4Addr = Ipv4Addr::new(127, 68, 84, 67);

/// A port of loopback that is claimed until this is dropped.
pub struct Port {
    number: u16,
    _claim: TcpListener,
}

impl Port {
    /// Claims a port that is free for UDP and TCP.
    ///
    /// # Errors
    /// If there is none.
    pub fn claim() -> Result<Port> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        // Processes begin at different places, so that they seldom try what another one holds.
        let begin = (process::id() as u16).wrapping_mul(97);
        for _ in 0..COUNT {
            let number = FIRST + begin.wrapping_add(NEXT.fetch_add(1, Relaxed)) % COUNT;
            let Ok(claim) = TcpListener::bind((CLAIMS, number)) else { continue };
            let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)).is_ok()
                && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok();
            if free {
                return Ok(Port { number, _claim: claim });
            }
        }
        bail!("no port of {FIRST} to {} is free", FIRST + COUNT)
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_port_is_given_to_nobody_else() {
        let ports: Vec<Port> = (0..50).map(|_| Port::claim().unwrap()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 50);
        assert!(TcpListener::bind((CLAIMS, numbers[0])).is_err());
    }
}
