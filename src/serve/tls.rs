//! Certificate and key for https, read at the start and again on SIGHUP.

use std::{
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::admission::AdmissionRules;
use crate::{
    actors::transport::tls::{ServerCertificate, TlsError},
    error::ProgramError,
    events::Printer,
    inputs,
    systemd::Unit,
    telemetry::Hangups,
};

/// The files of the certificate and the key.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The PEM file of the certificate chain, the service's own first.
    pub certificate: PathBuf,
    /// The PEM file of its private key.
    pub key: PathBuf,
}

impl Tls {
    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), ProgramError> {
        let certificate = inputs::pem(&self.certificate, "a certificate")?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| refuse(&self.certificate, error.to_string()))?;
        if chain.is_empty() {
            return Err(refuse(&self.certificate, "no PEM certificate (BEGIN CERTIFICATE) in it".to_owned()));
        }
        // The error of a key names the kind of problem, not the content of the file.
        let key = PrivateKeyDer::from_pem_slice(inputs::pem(&self.key, "a private key")?.as_bytes())
            .map_err(|error| refuse(&self.key, error.to_string()))?;
        Ok((chain, key))
    }

    fn mismatch(&self, error: &TlsError) -> ProgramError {
        refuse(&self.certificate, format!("{error} (with the key of {})", self.key.display()))
    }
}

fn refuse(what: &Path, error: String) -> ProgramError {
    ProgramError::Io { what: what.display().to_string(), error: io::Error::new(io::ErrorKind::InvalidData, error) }
}

/// The certificate and key in use, and the files they came from.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    files: Tls,
    certificate: Arc<ServerCertificate>,
}

impl Loaded {
    pub(crate) fn new(files: &Tls) -> Result<Self, ProgramError> {
        let (chain, key) = files.read()?;
        let certificate = ServerCertificate::new(chain, key).map_err(|error| files.mismatch(&error))?;
        Ok(Self { files: files.clone(), certificate: Arc::new(certificate) })
    }

    pub(super) fn config(&self) -> Result<ServerConfig, ProgramError> {
        let config = Arc::clone(&self.certificate).config();
        config.map_err(|error| ProgramError::Internal(error.to_string()))
    }

    /// Reads the files again. If they cannot be used, the current certificate and key stay in use.
    fn reload(&self) -> Result<(), ProgramError> {
        let (chain, key) = self.files.read()?;
        self.certificate.replace(chain, key).map_err(|error| self.files.mismatch(&error))
    }
}

/// Reloads the certificate and the list on each SIGHUP, for as long as the program runs.
pub(super) async fn reload(
    loaded: Option<Loaded>,
    admission: AdmissionRules,
    mut hangups: Hangups,
    printer: Printer,
    unit: Option<Unit>,
) -> Infallible {
    loop {
        hangups.next().await;
        let _reloading = unit.as_ref().map(Unit::reload);
        let listed = admission.reload();
        let has_list = listed.is_some();
        match listed {
            Some(Ok(file)) => printer.reloaded_list(&file),
            Some(Err(problem)) => {
                printer
                    .warn(&format!("not reloaded, the list of DIDs that are admitted stays as it was: {problem}"));
            }
            None => {}
        }
        let Some(loaded) = loaded.clone() else {
            if !has_list {
                printer.nothing_reloaded(
                    "there is no TLS certificate (--tls-cert) and no list of DIDs (--allow-list)",
                );
            }
            continue;
        };
        reload_certificate(loaded, &printer).await;
    }
}

/// Reads certificate and key again, and reports what became of it.
pub(crate) async fn reload_certificate(loaded: Loaded, printer: &Printer) {
    let files = [loaded.files.certificate.clone(), loaded.files.key.clone()];
    // A file system may be slow, and every connection would wait for it.
    match actix_rt::task::spawn_blocking(move || loaded.reload()).await {
        Ok(Ok(())) => printer.reloaded(&files),
        Ok(Err(error)) => printer.warn(&format!("not reloaded, the old TLS certificate stays: {error}")),
        Err(error) => printer.warn(&format!("not reloaded, the old TLS certificate stays: {error}")),
    }
}
