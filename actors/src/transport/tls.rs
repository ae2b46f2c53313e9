//! TLS, for every connection of this program: client and server, HTTP and relays. Only this module chooses the provider
//! of cryptography (ring) and the certificates that a client trusts.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};
use x509_cert::der::Decode;

/// The provider of cryptography. It is also made the process's default, for libraries that use the default: rustls
/// panics if two providers are compiled in and none is chosen.
pub fn provider() -> Arc<CryptoProvider> {
    if let Some(provider) = CryptoProvider::get_default() {
        return Arc::clone(provider);
    }
    // Another thread may have installed the same one first.
    let _ = ring::default_provider().install_default();
    CryptoProvider::get_default().map_or_else(|| Arc::new(ring::default_provider()), Arc::clone)
}

/// Why TLS cannot be set up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The text does not contain a certificate.
    #[error("no PEM certificate (BEGIN CERTIFICATE) to trust a server by")]
    NoCertificate,
    /// A certificate cannot be read.
    #[error("certificate {position}: {problem}")]
    Certificate {
        /// Its position among those given, from 1.
        position: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The library refuses the settings.
    #[error("{0}")]
    Setup(String),
}

/// The certificates that a client trusts.
#[derive(Clone, Default)]
pub struct Trust(Option<Arc<[CertificateDer<'static>]>>);

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("Trust(system)"),
            Some(certificates) => write!(f, "Trust({} certificates)", certificates.len()),
        }
    }
}

impl Trust {
    /// The authorities that the operating system trusts.
    pub fn system() -> Self {
        Self(None)
    }

    /// Only the certificates in `pem`: those that an authority among them has signed, and each of them itself, also a
    /// plain self-signed one.
    ///
    /// # Errors
    /// [`TlsError`] when there is none, or one cannot be read.
    pub fn only(pem: &[u8]) -> Result<Self, TlsError> {
        let mut certificates = Vec::new();
        for (position, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
            let refuse = |problem: String| TlsError::Certificate { position: position + 1, problem };
            let certificate = certificate.map_err(|error| refuse(error.to_string()))?;
            x509_cert::Certificate::from_der(&certificate).map_err(|error| refuse(error.to_string()))?;
            certificates.push(certificate);
        }
        if certificates.is_empty() { Err(TlsError::NoCertificate) } else { Ok(Self(Some(certificates.into()))) }
    }

    /// The configuration of a client.
    ///
    /// # Errors
    /// [`TlsError::Setup`], e.g. when the system has no authorities.
    pub fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let provider = provider();
        let setup = |error: &dyn fmt::Display| TlsError::Setup(error.to_string());
        let verifier: Arc<dyn ServerCertVerifier> = match &self.0 {
            None => Arc::new(
                rustls_platform_verifier::Verifier::new(Arc::clone(&provider)).map_err(|error| setup(&error))?,
            ),
            Some(certificates) => Arc::new(Pinned::new(certificates, &provider)),
        };
        Ok(ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| setup(&error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth())
    }

    /// A builder of HTTP clients with this trust. Every HTTP client of this program is created here.
    ///
    /// # Errors
    /// Those of [`client_config`](Self::client_config).
    pub fn http_client(&self) -> Result<reqwest::ClientBuilder, TlsError> {
        Ok(reqwest::Client::builder().tls_backend_preconfigured(self.client_config()?))
    }
}

/// The configuration of a server with this certificate chain, its own certificate first, and private key.
///
/// # Errors
/// [`TlsError::Setup`] when they do not belong together.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, TlsError> {
    Arc::new(ServerCertificate::new(chain, key)?).config()
}

/// A server's certificate chain and private key, which can be replaced while the server runs.
#[derive(Debug)]
pub struct ServerCertificate(RwLock<Arc<CertifiedKey>>);

impl ServerCertificate {
    /// This certificate chain, the server's own certificate first, and its private key.
    ///
    /// # Errors
    /// [`TlsError::Setup`] when they do not belong together.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, TlsError> {
        Ok(Self(RwLock::new(certified(chain, key)?)))
    }

    /// Replaces it, for every handshake from now on.
    ///
    /// # Errors
    /// [`TlsError::Setup`] when they do not belong together; nothing is replaced then.
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), TlsError> {
        let certified = certified(chain, key)?;
        // The value is one pointer: a thread that panicked cannot have written half of it.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }

    /// The configuration of a server that uses the current certificate at each handshake.
    ///
    /// # Errors
    /// [`TlsError::Setup`] when the provider does not offer the protocol's versions.
    pub fn config(self: Arc<Self>) -> Result<ServerConfig, TlsError> {
        Ok(ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Setup(error.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(self))
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let certified = CertifiedKey::from_der(chain, key, &provider());
    certified.map(Arc::new).map_err(|error| TlsError::Setup(error.to_string()))
}

/// Verifies a server by the given certificates, which may be authorities, or the server's own.
///
/// The library's verifier only accepts authorities: it refuses a self-signed certificate that is marked as one, as
/// those made by hand are. Such a certificate is accepted if it is, byte for byte, one of those given. Its name, its
/// validity and the handshake's signature are verified nevertheless.
#[derive(Debug)]
struct Pinned {
    certificates: Arc<[CertificateDer<'static>]>,
    by_authority: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn new(certificates: &Arc<[CertificateDer<'static>]>, provider: &Arc<CryptoProvider>) -> Self {
        let mut roots = RootCertStore::empty();
        // A certificate that is not an authority can still be the server's own.
        roots.add_parsable_certificates(certificates.iter().cloned());
        let builder = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(provider));
        Self {
            certificates: Arc::clone(certificates),
            by_authority: builder.build().ok(),
            algorithms: provider.signature_verification_algorithms,
        }
    }

    fn verify_itself(
        &self,
        certificate: &CertificateDer<'_>,
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.certificates.iter().any(|given| given.as_ref() == certificate.as_ref()) {
            return Err(CertificateError::UnknownIssuer.into());
        }
        verify_server_name(&ParsedCertificate::try_from(certificate)?, server_name)?;
        let parsed = x509_cert::Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
        let validity = parsed.tbs_certificate.validity;
        let now = Duration::from_secs(now.as_secs());
        if now < validity.not_before.to_unix_duration() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > validity.not_after.to_unix_duration() {
            return Err(CertificateError::Expired.into());
        }
        Ok(ServerCertVerified::assertion())
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let by_authority = self.by_authority.as_ref().map(|verifier| {
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        });
        match by_authority {
            Some(Ok(verified)) => Ok(verified),
            // The authorities' error is more specific, unless the certificate itself was given.
            Some(Err(reason)) => match self.verify_itself(end_entity, server_name, now) {
                Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => Err(reason),
                other => other,
            },
            None => self.verify_itself(end_entity, server_name, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
