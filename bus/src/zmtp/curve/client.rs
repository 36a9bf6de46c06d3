//! The client's half of the handshake: each state holds what it needs and is consumed by its step.

use super::super::error::ZmtpError;
use super::super::message_box::{MessageBox, Side};
use super::super::metadata::Metadata;
use super::{
    COOKIE_BYTES, HELLO_PADDING_BYTES, HELLO_ZEROS_BYTES, LONG_NONCE_BYTES, ReceiveCounter,
    SHORT_NONCE_BYTES, SendCounter, encode_command_onto, long_nonce, public_key, short_nonce, take,
};
use crate::crypto::{BoxKey, KEY_BYTES, KeyPair, MAC_BYTES, PublicKey, random};

/// HELLO was sent.
#[derive(Debug)]
pub(in super::super) struct AwaitWelcome {
    transient: KeyPair,
    hello_key: BoxKey,
    sent: SendCounter,
}

/// INITIATE was sent.
#[derive(Debug)]
pub(in super::super) struct AwaitReady {
    session_key: BoxKey,
    sent: SendCounter,
}

/// Appends HELLO, sealed for the server's long-term key.
pub(in super::super) fn start(
    transient: KeyPair,
    server: &PublicKey,
    output: &mut Vec<u8>,
) -> Result<AwaitWelcome, ZmtpError> {
    let hello_key = BoxKey::shared(server, &transient.secret)?;
    let mut sent = SendCounter::default();
    let counter = sent.next()?;
    let mut sealed = Vec::new();
    let nonce = short_nonce(b"CurveZMQHELLO---", counter);
    hello_key.seal_onto(&nonce, &[&[0; HELLO_ZEROS_BYTES]], &mut sealed);
    let key = transient.public.as_bytes();
    encode_command_onto(
        b"HELLO",
        &[&[1, 0], &[0; HELLO_PADDING_BYTES], key, &counter.to_be_bytes(), &sealed],
        output,
    );
    Ok(AwaitWelcome { transient, hello_key, sent })
}

impl AwaitWelcome {
    /// Takes the data of WELCOME and appends INITIATE.
    pub(in super::super) fn on_welcome(
        mut self,
        mut data: &mut [u8],
        keys: &KeyPair,
        server: &PublicKey,
        metadata: &Metadata,
        output: &mut Vec<u8>,
    ) -> Result<AwaitReady, ZmtpError> {
        const EXPECTED: usize = LONG_NONCE_BYTES + MAC_BYTES + KEY_BYTES + COOKIE_BYTES;
        let malformed =
            ZmtpError::Malformed { name: "WELCOME", bytes: data.len(), expected: "160 behind its name" };
        if data.len() != EXPECTED {
            return Err(malformed);
        }
        let welcome_random = take::<LONG_NONCE_BYTES>(&mut data).ok_or(malformed)?;
        let content = self
            .hello_key
            .open(&long_nonce(b"WELCOME-", welcome_random), data)
            .map_err(|_| ZmtpError::BoxRefused { name: "WELCOME" })?;
        let (server_transient, cookie) =
            content.split_first_chunk::<KEY_BYTES>().expect("the length was checked with the box's");
        let server_transient = public_key(server_transient);

        let vouch_random: [u8; LONG_NONCE_BYTES] = random();
        let mut vouch = vouch_random.to_vec();
        BoxKey::shared(&server_transient, &keys.secret)?.seal_onto(
            &long_nonce(b"VOUCH---", &vouch_random),
            &[self.transient.public.as_bytes(), server.as_bytes()],
            &mut vouch,
        );
        let mut properties = Vec::new();
        metadata.encode_onto(&mut properties);

        let session_key = BoxKey::shared(&server_transient, &self.transient.secret)?;
        let counter = self.sent.next()?;
        let mut sealed = Vec::new();
        session_key.seal_onto(
            &short_nonce(b"CurveZMQINITIATE", counter),
            &[keys.public.as_bytes(), &vouch, &properties],
            &mut sealed,
        );
        encode_command_onto(b"INITIATE", &[cookie, &counter.to_be_bytes(), &sealed], output);
        Ok(AwaitReady { session_key, sent: self.sent })
    }
}

impl AwaitReady {
    /// Takes the data of READY; from here on messages travel.
    pub(in super::super) fn on_ready(
        self,
        mut data: &mut [u8],
        metadata_bytes_max: usize,
    ) -> Result<(MessageBox, Metadata), ZmtpError> {
        let malformed = ZmtpError::Malformed {
            name: "READY",
            bytes: data.len(),
            expected: "at least 24 behind its name",
        };
        let nonce = take::<SHORT_NONCE_BYTES>(&mut data).ok_or(malformed)?;
        let counter = u64::from_be_bytes(*nonce);
        let mut received = ReceiveCounter::default();
        received.check(counter)?;
        let content = self
            .session_key
            .open(&short_nonce(b"CurveZMQREADY---", counter), data)
            .map_err(|_| ZmtpError::BoxRefused { name: "READY" })?;
        received.advance(counter);
        let metadata = Metadata::parse(content, metadata_bytes_max)?;
        Ok((MessageBox::new(self.session_key, Side::Client, self.sent, received), metadata))
    }
}
