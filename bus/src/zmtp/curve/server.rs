//! The server's half of the handshake: each state holds what it needs and is consumed by its step.

use super::super::error::ZmtpError;
use super::super::message_box::{MessageBox, Side};
use super::super::metadata::Metadata;
use super::{
    COOKIE_BYTES, HELLO_PADDING_BYTES, HELLO_ZEROS_BYTES, INITIATE_PROOF_BYTES, LONG_NONCE_BYTES,
    ReceiveCounter, SHORT_NONCE_BYTES, SendCounter, VOUCH_BOX_BYTES, encode_command_onto, long_nonce,
    public_key, short_nonce, take,
};
use crate::crypto::{BoxKey, KEY_BYTES, KeyPair, MAC_BYTES, PublicKey, equal_in_constant_time, random};

/// What a server draws anew for each connection. Dropping it makes recorded traffic unreadable.
#[derive(Debug)]
pub(in super::super) struct Secrets {
    pub(in super::super) transient: KeyPair,
    pub(in super::super) cookie_key: BoxKey,
}

impl Secrets {
    pub(in super::super) fn generate() -> Self {
        Self { transient: KeyPair::generate(), cookie_key: BoxKey::generate() }
    }
}

/// WELCOME was sent; INITIATE must return its cookie.
#[derive(Debug)]
pub(in super::super) struct AwaitInitiate {
    secrets: Secrets,
    client_transient: PublicKey,
    /// The key pair that opened HELLO, by its place in the configuration.
    server_key_index: usize,
    server_key: PublicKey,
    received: ReceiveCounter,
}

/// The client has proven its key; the caller decides.
#[derive(Debug)]
pub(in super::super) struct AwaitDecision {
    session_key: BoxKey,
    received: ReceiveCounter,
}

/// What INITIATE proved.
#[derive(Debug)]
pub(in super::super) struct Proof {
    pub(in super::super) key: PublicKey,
    pub(in super::super) metadata: Metadata,
    pub(in super::super) server_key_index: usize,
    pub(in super::super) server_key: PublicKey,
}

/// Takes the data of HELLO, tries the server keys in order, and appends WELCOME.
pub(in super::super) fn on_hello(
    keys: &[KeyPair],
    secrets: Secrets,
    mut data: &mut [u8],
    output: &mut Vec<u8>,
) -> Result<AwaitInitiate, ZmtpError> {
    const EXPECTED: usize =
        2 + HELLO_PADDING_BYTES + KEY_BYTES + SHORT_NONCE_BYTES + MAC_BYTES + HELLO_ZEROS_BYTES;
    let malformed =
        ZmtpError::Malformed { name: "HELLO", bytes: data.len(), expected: "194 behind its name" };
    if data.len() != EXPECTED {
        return Err(malformed);
    }
    let fields = (|| {
        let version = take::<2>(&mut data)?;
        take::<HELLO_PADDING_BYTES>(&mut data)?;
        Some((version, take::<KEY_BYTES>(&mut data)?, take::<SHORT_NONCE_BYTES>(&mut data)?))
    })();
    let (version, client_transient, nonce) = fields.ok_or(malformed)?;
    if *version != [1, 0] {
        return Err(ZmtpError::CurveVersion { major: version[0], minor: version[1] });
    }
    let client_transient = public_key(client_transient);
    let counter = u64::from_be_bytes(*nonce);
    let mut received = ReceiveCounter::default();
    received.check(counter)?;

    let nonce = short_nonce(b"CurveZMQHELLO---", counter);
    let (server_key_index, hello_key) = open_with_any(keys, &client_transient, &nonce, data)?;
    received.advance(counter);
    encode_welcome_onto(&secrets, &client_transient, &hello_key, output);
    Ok(AwaitInitiate {
        secrets,
        client_transient,
        server_key_index,
        server_key: keys[server_key_index].public,
        received,
    })
}

/// The first of `keys` that opens the box of HELLO. The box's content must be zeros, but as the
/// authenticator proves the sender, other content would only be a client's own mistake.
fn open_with_any(
    keys: &[KeyPair],
    client_transient: &PublicKey,
    nonce: &crate::crypto::Nonce,
    sealed: &mut [u8],
) -> Result<(usize, BoxKey), ZmtpError> {
    for (index, pair) in keys.iter().enumerate() {
        let key = BoxKey::shared(client_transient, &pair.secret)?;
        if key.open(nonce, sealed).is_ok() {
            return Ok((index, key));
        }
    }
    Err(ZmtpError::ServerKeyUnknown { keys_tried: keys.len() })
}

fn encode_welcome_onto(
    secrets: &Secrets,
    client_transient: &PublicKey,
    hello_key: &BoxKey,
    output: &mut Vec<u8>,
) {
    let cookie_random: [u8; LONG_NONCE_BYTES] = random();
    let mut cookie = cookie_random.to_vec();
    secrets.cookie_key.seal_onto(
        &long_nonce(b"COOKIE--", &cookie_random),
        &[client_transient.as_bytes(), secrets.transient.public.as_bytes()],
        &mut cookie,
    );
    let welcome_random: [u8; LONG_NONCE_BYTES] = random();
    let mut sealed = Vec::new();
    hello_key.seal_onto(
        &long_nonce(b"WELCOME-", &welcome_random),
        &[secrets.transient.public.as_bytes(), &cookie],
        &mut sealed,
    );
    encode_command_onto(b"WELCOME", &[&welcome_random, &sealed], output);
}

impl AwaitInitiate {
    /// Takes the data of INITIATE: cookie, box, vouch and metadata, in this order.
    pub(in super::super) fn on_initiate(
        mut self,
        mut data: &mut [u8],
        metadata_bytes_max: usize,
    ) -> Result<(AwaitDecision, Proof), ZmtpError> {
        let malformed = ZmtpError::Malformed {
            name: "INITIATE",
            bytes: data.len(),
            expected: "at least 248 behind its name",
        };
        if data.len() < COOKIE_BYTES + SHORT_NONCE_BYTES + MAC_BYTES + INITIATE_PROOF_BYTES {
            return Err(malformed);
        }
        let fields = (|| Some((take::<COOKIE_BYTES>(&mut data)?, take::<SHORT_NONCE_BYTES>(&mut data)?)))();
        let (cookie, nonce) = fields.ok_or(malformed)?;
        self.check_cookie(cookie)?;
        let counter = u64::from_be_bytes(*nonce);
        self.received.check(counter)?;

        let session_key = BoxKey::shared(&self.client_transient, &self.secrets.transient.secret)?;
        let content = session_key
            .open(&short_nonce(b"CurveZMQINITIATE", counter), data)
            .map_err(|_| ZmtpError::BoxRefused { name: "INITIATE" })?;
        self.received.advance(counter);

        let (proof, metadata) = content
            .split_first_chunk_mut::<INITIATE_PROOF_BYTES>()
            .expect("the length was checked with the box's");
        let key = self.check_vouch(proof)?;
        let metadata = Metadata::parse(metadata, metadata_bytes_max)?;
        let (server_key_index, server_key) = (self.server_key_index, self.server_key);
        let decision = AwaitDecision { session_key, received: self.received };
        Ok((decision, Proof { key, metadata, server_key_index, server_key }))
    }

    /// The cookie must be the one that this connection was given.
    fn check_cookie(&self, cookie: &mut [u8; COOKIE_BYTES]) -> Result<(), ZmtpError> {
        let (cookie_random, sealed) =
            cookie.split_first_chunk_mut::<LONG_NONCE_BYTES>().expect("a cookie is longer than its nonce");
        let nonce = long_nonce(b"COOKIE--", cookie_random);
        let opened = self.secrets.cookie_key.open(&nonce, sealed).map_err(|_| ZmtpError::CookieRefused)?;
        let client = self.client_transient.as_bytes();
        let server = self.secrets.transient.public.as_bytes();
        if equal_in_constant_time(&opened[..KEY_BYTES], client)
            && equal_in_constant_time(&opened[KEY_BYTES..], server)
        {
            Ok(())
        } else {
            Err(ZmtpError::CookieRefused)
        }
    }

    /// The vouch, sealed with the client's long-term key, must name the client's transient key and
    /// the very server key that HELLO was sealed for: else another server could pass it on.
    fn check_vouch(&self, proof: &mut [u8; INITIATE_PROOF_BYTES]) -> Result<PublicKey, ZmtpError> {
        let mut rest = &mut proof[..];
        let fields = (|| {
            let key = public_key(take::<KEY_BYTES>(&mut rest)?);
            Some((key, take::<LONG_NONCE_BYTES>(&mut rest)?, take::<VOUCH_BOX_BYTES>(&mut rest)?))
        })();
        let (key, vouch_random, vouch) = fields.expect("a proof is made of these three");
        let vouch_key = BoxKey::shared(&key, &self.secrets.transient.secret)?;
        let opened = vouch_key
            .open(&long_nonce(b"VOUCH---", vouch_random), vouch)
            .map_err(|_| ZmtpError::VouchRefused { key })?;
        if equal_in_constant_time(&opened[..KEY_BYTES], self.client_transient.as_bytes())
            && equal_in_constant_time(&opened[KEY_BYTES..], self.server_key.as_bytes())
        {
            Ok(key)
        } else {
            Err(ZmtpError::VouchRefused { key })
        }
    }
}

impl AwaitDecision {
    /// Appends READY; from here on messages travel.
    pub(in super::super) fn accept(self, metadata: &Metadata, output: &mut Vec<u8>) -> MessageBox {
        let mut sent = SendCounter::default();
        let counter = sent.next().expect("the first of 2^64 nonces is free");
        let mut properties = Vec::new();
        metadata.encode_onto(&mut properties);
        let nonce = short_nonce(b"CurveZMQREADY---", counter);
        let mut sealed = Vec::new();
        self.session_key.seal_onto(&nonce, &[&properties], &mut sealed);
        encode_command_onto(b"READY", &[&counter.to_be_bytes(), &sealed], output);
        MessageBox::new(self.session_key, Side::Server, sent, self.received)
    }
}

#[cfg(test)]
impl Secrets {
    /// Secrets of a recorded connection, so that its bytes can be replayed.
    pub(in super::super) fn recorded(
        transient: crate::crypto::SecretKey,
        cookie_key: [u8; KEY_BYTES],
    ) -> Self {
        let transient = KeyPair::from_secret(transient);
        Self { transient, cookie_key: BoxKey::from_bytes(cookie_key) }
    }
}
