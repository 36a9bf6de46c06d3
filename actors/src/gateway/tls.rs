//! TLS at the gateway: certificate and key from their files, judged before they are used, and read again when they change. The
//! only file of the gateway that names rustls.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use interlock_bus::keys::{KeyError, private_file};
use rustls::{
    CertificateError, Error as RustlsError, RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

/// Bytes of a file of certificates. A chain has a few kilobytes.
const CERTIFICATE_BYTES_MAX: u64 = 1 << 20;

/// How often the files are looked at, and whether their time is over.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where certificate and key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM, our own certificate first, then those between it and the root.
    pub certificate: PathBuf,
    /// PEM, private to its owner.
    pub key: PathBuf,
}

/// Why there is no TLS with these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The key's file.
    #[error("`gateway.tls_key`: {0}")]
    Key(#[from] KeyError),
    /// The key's file has no key.
    #[error("`gateway.tls_key`: `{}` holds no private key in PEM (PKCS#8, PKCS#1 or SEC1): {problem}", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, without a word of it.
        problem: String,
    },
    /// The certificate's file.
    #[error("`gateway.tls_certificate`: cannot read `{}`: {source}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// What is in it cannot be used.
    #[error("`gateway.tls_certificate`: `{}` {problem}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

/// Certificate and key that are in force.
pub struct Tls {
    files: TlsFiles,
    current: Arc<Current>,
    seen: Mutex<Stamps>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

/// What tells one content of both files from another.
type Stamps = [Option<(SystemTime, u64)>; 2];

/// What each new connection is answered with.
struct Current(RwLock<Arc<CertifiedKey>>);

impl fmt::Debug for Current {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Current")
    }
}

impl Current {
    fn get(&self) -> Arc<CertifiedKey> {
        // No code that can panic runs under this lock.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl Tls {
    /// Reads and judges both files.
    ///
    /// # Errors
    /// [`TlsError`], with the file and the reason.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let seen = Mutex::new(files.stamps());
        let current = Arc::new(Current(RwLock::new(Arc::new(read(&files)?))));
        Ok(Self { files, current, seen })
    }

    /// With what the server listens.
    pub(super) fn server_config(&self) -> Result<ServerConfig, RustlsError> {
        let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        Ok(config
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>))
    }

    /// Takes the files as they are now, if they have changed and can be used; what is wrong with what is in force, or with
    /// what should be. Blocks.
    pub(super) fn look(&self) -> Option<String> {
        let now = self.files.stamps();
        let mut seen = self.seen();
        if *seen != now {
            match read(&self.files) {
                Ok(key) => {
                    *seen = now;
                    *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
                    tracing::info!(certificate = %self.files.certificate.display(), "a new certificate is in force");
                }
                // Two files are never replaced at one moment: it is looked again until they fit.
                Err(error) => return Some(format!("{error}; the certificate before it stays in force")),
            }
        }
        let problem = validity(&self.current.get().cert, SystemTime::now())?;
        Some(format!("the certificate in `{}` {problem}", self.files.certificate.display()))
    }

    fn seen(&self) -> MutexGuard<'_, Stamps> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TlsFiles {
    fn stamps(&self) -> Stamps {
        [&self.certificate, &self.key].map(|path| {
            let about = std::fs::metadata(path).ok()?;
            Some((about.modified().ok()?, about.len()))
        })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn read(files: &TlsFiles) -> Result<CertifiedKey, TlsError> {
    let path = &files.certificate;
    let unusable = |problem: String| TlsError::Unusable { path: path.clone(), problem };
    let of_file = |source| TlsError::Certificate { path: path.clone(), source };
    if std::fs::metadata(path).map_err(of_file)?.len() > CERTIFICATE_BYTES_MAX {
        return Err(unusable(format!("has more than {CERTIFICATE_BYTES_MAX} bytes")));
    }
    let text = std::fs::read(path).map_err(of_file)?;
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| unusable(format!("is no PEM: {error}")))?;
    if chain.is_empty() {
        return Err(unusable("holds no certificate in PEM".to_owned()));
    }
    if let Some(problem) = validity(&chain, SystemTime::now()) {
        return Err(unusable(problem));
    }
    let key = read_key(&files.key)?;
    let key = provider()
        .key_provider
        .load_private_key(key)
        .map_err(|error| TlsError::NoKey { path: files.key.clone(), problem: error.to_string() })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(_) => Err(unusable(format!("is not for the key in `{}`", files.key.display()))),
    }
}

/// The key, of a file that nobody else can read. Tools that renew certificates have links to the latest.
fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let place = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let text = private_file::read(&place)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let problem = match error {
            rustls::pki_types::pem::Error::NoItemsFound => "there is none".to_owned(),
            _ => "it is damaged".to_owned(),
        };
        TlsError::NoKey { path: path.to_owned(), problem }
    })
}

/// What is wrong with the time of our own certificate, or with its form; `None` if nothing is.
fn validity(chain: &[CertificateDer<'static>], now: SystemTime) -> Option<String> {
    let own = chain.first()?;
    let mut roots = RootCertStore::empty();
    if let Err(error) = roots.add(own.clone()) {
        return Some(format!("holds no certificate that can be read: {error}"));
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    let verifier = match verifier {
        Ok(verifier) => verifier,
        Err(error) => return Some(format!("cannot be judged: {error}")),
    };
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Its time is looked at before anything that depends on who has signed it, which is the clients' affair.
    let name = ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into());
    match verifier.verify_server_cert(own, &[], &name, &[], UnixTime::since_unix_epoch(now)) {
        Err(RustlsError::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => Some("has expired".to_owned()),
        Err(RustlsError::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => Some("is not valid yet; look at the clock of this machine".to_owned()),
        _ => None,
    }
}
