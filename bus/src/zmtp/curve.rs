//! The CURVE handshake: what both roles share. CurveZMQ RFC 26 has the layouts.
//!
//! | command | from | data behind the name |
//! |---|---|---|
//! | HELLO | client | version 2, zeros 72, client transient key 32, short nonce 8, box of 64 zeros |
//! | WELCOME | server | long nonce 16, box of (server transient key 32, cookie 96) |
//! | INITIATE | client | cookie 96, short nonce 8, box of (client key 32, long nonce 16, vouch 80, metadata) |
//! | READY | server | short nonce 8, box of metadata |
//! | MESSAGE | both | short nonce 8, box of (flags 1, body) |
//!
//! A nonce is a fixed text of the RFC followed by a counter (short) or by random bytes (long). Each
//! side has one counter for the whole connection.

pub(super) mod client;
pub(super) mod server;

use super::error::ZmtpError;
use super::frame::{FrameFlags, encode_header_onto};
use crate::crypto::{KEY_BYTES, MAC_BYTES, NONCE_BYTES, Nonce, PublicKey};

pub(super) const SHORT_NONCE_BYTES: usize = 8;
const LONG_NONCE_BYTES: usize = 16;
const HELLO_ZEROS_BYTES: usize = 64;
const HELLO_PADDING_BYTES: usize = 72;
/// Long nonce, then the box of the client's and the server's transient keys.
const COOKIE_BYTES: usize = LONG_NONCE_BYTES + MAC_BYTES + 2 * KEY_BYTES;
const VOUCH_BOX_BYTES: usize = MAC_BYTES + 2 * KEY_BYTES;
/// Everything in the box of INITIATE before the metadata.
const INITIATE_PROOF_BYTES: usize = KEY_BYTES + LONG_NONCE_BYTES + VOUCH_BOX_BYTES;

/// The whole body of INITIATE without its metadata.
pub(super) const INITIATE_BYTES: usize =
    1 + b"INITIATE".len() + COOKIE_BYTES + SHORT_NONCE_BYTES + MAC_BYTES + INITIATE_PROOF_BYTES;
/// The whole body of HELLO, and the longest of a command that a server must take before INITIATE.
pub(super) const HELLO_BYTES: usize = 200;
/// The longest body that a client must take in place of WELCOME: an ERROR.
pub(super) const WELCOME_OR_ERROR_BYTES_MAX: usize = 1 + b"ERROR".len() + 1 + 255;
/// The whole body of READY without its metadata.
pub(super) const READY_BYTES: usize = 1 + b"READY".len() + SHORT_NONCE_BYTES + MAC_BYTES;

/// The nonce of a counter.
pub(super) fn short_nonce(text: &[u8; 16], counter: u64) -> Nonce {
    let mut nonce = [0; NONCE_BYTES];
    nonce[..16].copy_from_slice(text);
    nonce[16..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

pub(super) fn long_nonce(text: &[u8; 8], random: &[u8; LONG_NONCE_BYTES]) -> Nonce {
    let mut nonce = [0; NONCE_BYTES];
    nonce[..8].copy_from_slice(text);
    nonce[8..].copy_from_slice(random);
    nonce
}

/// Counts our own nonces, from 1. One counter runs across the handshake and all messages.
#[derive(Debug, Default)]
pub(super) struct SendCounter(u64);

impl SendCounter {
    pub(super) fn next(&mut self) -> Result<u64, ZmtpError> {
        self.0 = self.0.checked_add(1).ok_or(ZmtpError::NoncesUsedUp)?;
        Ok(self.0)
    }

    #[cfg(test)]
    pub(super) fn at(last: u64) -> Self {
        Self(last)
    }
}

/// Remembers the greatest nonce of the peer.
#[derive(Debug, Default)]
pub(super) struct ReceiveCounter(u64);

impl ReceiveCounter {
    /// Refuses a nonce that is not greater than all before it. Zero is never valid.
    pub(super) fn check(&self, nonce: u64) -> Result<(), ZmtpError> {
        if nonce <= self.0 {
            return Err(ZmtpError::NonceNotIncreasing { nonce, last: self.0 });
        }
        Ok(())
    }

    /// [`ReceiveCounter::check`] for an open session, where every nonce is one more than the last: RFC 26
    /// lets it rise by more, but all that speak CURVE count by one, and a skipped nonce is a lost frame.
    pub(super) fn check_next(&self, nonce: u64) -> Result<(), ZmtpError> {
        self.check(nonce)?;
        if nonce - 1 != self.0 {
            return Err(ZmtpError::NonceSkipped { nonce, last: self.0 });
        }
        Ok(())
    }

    /// Remembers a checked nonce, after its box has opened.
    pub(super) fn advance(&mut self, nonce: u64) {
        self.0 = nonce;
    }
}

/// Takes `N` bytes off the front; the caller has checked the length of the whole.
fn take<'a, const N: usize>(data: &mut &'a mut [u8]) -> Option<&'a mut [u8; N]> {
    let (taken, rest) = std::mem::take(data).split_first_chunk_mut::<N>()?;
    *data = rest;
    Some(taken)
}

fn public_key(bytes: &[u8; KEY_BYTES]) -> PublicKey {
    PublicKey::from_bytes(*bytes)
}

/// Appends a whole command frame.
fn encode_command_onto(name: &[u8], data: &[&[u8]], output: &mut Vec<u8>) {
    let data_bytes: usize = data.iter().map(|part| part.len()).sum();
    encode_header_onto(FrameFlags::COMMAND, 1 + name.len() + data_bytes, output);
    output.push(u8::try_from(name.len()).expect("names of CURVE commands are short"));
    output.extend_from_slice(name);
    data.iter().for_each(|part| output.extend_from_slice(part));
}
