//! Frames: how messages lie on a stream.
//!
//! A frame is a length (4 bytes, little-endian, of what follows) and a body. The protocol version is agreed on once per
//! connection, in [`Hello`]; bodies are postcard. The decoder is incremental and bounds what it will buffer.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Error, Request, Resource, Response};

/// The version of the client and peer protocols that this build speaks.
pub const VERSION: u32 = 1;
/// ALPN of connections from clients.
pub const ALPN_CLIENT: &[u8] = b"duet-client/1";
/// ALPN of connections between nodes.
pub const ALPN_PEER: &[u8] = b"duet-peer/1";
/// Bytes before a body.
pub const HEADER: usize = 4;

/// The first frame of a stream, each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The sender's [`VERSION`].
    pub version: u32,
}

/// A request on its way to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFrame {
    /// Names the request on its connection; the answer repeats it.
    pub id: u64,
    /// How long the client will wait, in milliseconds, from the arrival of the frame.
    pub timeout_ms: u32,
    /// What is asked.
    pub request: Request,
}

/// An answer on its way to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseFrame {
    /// The request's.
    pub id: u64,
    /// The answer.
    pub response: Response,
}

/// The body of a frame that holds `message`.
///
/// # Panics
/// Never: the types of this crate all serialize, and the buffer grows.
#[must_use]
pub fn encode<T: Serialize>(message: &T) -> Bytes {
    // The usual message grows no buffer.
    postcard::to_extend(message, Vec::with_capacity(512)).expect("plain data serializes into memory").into()
}

/// Reads a body.
///
/// # Errors
/// [`Error::Malformed`] if it is not exactly one `T`.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(Error::Malformed { why: format!("{} bytes after the message", rest.len()) }),
        Err(error) => Err(Error::Malformed { why: error.to_string() }),
    }
}

/// The id of a request whose rest cannot be read, so that its refusal finds the way back.
#[must_use]
pub fn id_of(body: &[u8]) -> Option<u64> {
    postcard::take_from_bytes(body).ok().map(|(id, _)| id)
}

/// Puts a frame around a body.
///
/// # Panics
/// If the body is 4 GiB or more; every limit is far below.
pub fn put(body: &[u8], into: &mut BytesMut) {
    into.reserve(HEADER + body.len());
    into.put_u32_le(u32::try_from(body.len()).expect("bodies are bounded far below 4 GiB"));
    into.put_slice(body);
}

/// Takes the next whole body out of `from`, if it has arrived.
///
/// # Errors
/// [`Error::TooLarge`] as soon as a length above `limit` is seen; the stream is then of no more use.
pub fn take(from: &mut BytesMut, limit: usize) -> Result<Option<Bytes>, Error> {
    let Some(header) = from.first_chunk::<HEADER>() else { return Ok(None) };
    let length = u32::from_le_bytes(*header) as usize;
    if length > limit {
        return Err(Error::TooLarge { what: Resource::Frame, size: length as u64, limit: limit as u64 });
    }
    if from.len() < HEADER + length {
        from.reserve(HEADER + length - from.len());
        return Ok(None);
    }
    from.advance(HEADER);
    Ok(Some(from.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_survive_any_split(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..10),
            cut in 1usize..50,
        ) {
            let mut wire = BytesMut::new();
            for body in &bodies {
                put(body, &mut wire);
            }
            let mut buffer = BytesMut::new();
            let mut found = Vec::new();
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(body) = take(&mut buffer, 1000).unwrap() {
                    found.push(body.to_vec());
                }
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(found, bodies);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<RequestFrame>(&bytes);
            let _ = decode::<ResponseFrame>(&bytes);
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take(&mut buffer, 1 << 16) {}
        }
    }

    #[test]
    fn a_long_frame_is_refused_from_its_header() {
        let mut buffer = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert!(matches!(take(&mut buffer, 1000), Err(Error::TooLarge { what: Resource::Frame, .. })));
    }

    #[test]
    fn what_follows_a_message_is_an_error() {
        let mut body = encode(&Hello { version: 1 }).to_vec();
        body.push(0);
        assert!(matches!(decode::<Hello>(&body), Err(Error::Malformed { .. })));
    }
}
