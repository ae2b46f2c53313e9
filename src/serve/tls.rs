//! Certificate and key for https.

use std::{io, path::PathBuf};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::{actors::transport::tls::server_config, error::ProgramError};

/// Where certificate and key are.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The PEM file of the certificate chain, the service's own first.
    pub certificate: PathBuf,
    /// The PEM file of its private key.
    pub key: PathBuf,
}

impl Tls {
    pub(super) fn load(&self) -> Result<ServerConfig, ProgramError> {
        let refuse = |what: &PathBuf, error: String| ProgramError::Io {
            what: what.display().to_string(),
            error: io::Error::new(io::ErrorKind::InvalidData, error),
        };
        let chain: Vec<_> = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect)
            .map_err(|error| refuse(&self.certificate, error.to_string()))?;
        // The error of a key says what kind of thing is wrong, not what stands in the file.
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| refuse(&self.key, error.to_string()))?;
        server_config(chain, key).map_err(|error| refuse(&self.certificate, error.to_string()))
    }
}
