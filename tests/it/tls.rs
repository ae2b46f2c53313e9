//! TLS in its usual setups: certificates of all kinds for `--tls-ca`, and whole cohorts over `wss://` and `https://`.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, thread};

use crate::support::{
    Program, Service, did_of, directory, identity, path, run,
    verify::{participant_result, service_result},
};
use btcr2_aggregation::actors::transport::tls::{self, Trust};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A certificate, and the key that belongs to it.
struct Certificate {
    pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

impl Certificate {
    fn secret(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    fn config(&self) -> ServerConfig {
        tls::server_config(self.chain.clone(), self.secret()).unwrap()
    }
}

fn names() -> CertificateParams {
    CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap()
}

fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> Certificate {
    let (mut params, key) = (names(), KeyPair::generate().unwrap());
    change(&mut params);
    let certificate = params.self_signed(&key).unwrap();
    Certificate { pem: certificate.pem(), chain: vec![certificate.der().clone()], key }
}

/// What `openssl req -x509` makes: its own authority.
fn by_hand(params: &mut CertificateParams) {
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
}

/// A certificate that is signed by the authority whose own certificate is in `pem`.
fn of_an_authority() -> Certificate {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = authority.self_signed(&authority_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let certificate = names().signed_by(&key, &Issuer::new(authority, authority_key)).unwrap();
    Certificate { pem, chain: vec![certificate.der().clone()], key }
}

/// A handshake with a server of this configuration: the client's result.
fn handshake(server: ServerConfig, trust: &Trust, name: &str) -> Result<(), String> {
    Runtime::new().unwrap().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = TlsAcceptor::from(Arc::new(server)).accept(stream).await;
        });
        let connector = TlsConnector::from(Arc::new(trust.client_config().unwrap()));
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let outcome = connector.connect(name, stream).await.map(drop).map_err(|error| error.to_string());
        serving.await.unwrap();
        outcome
    })
}

#[test]
fn a_given_certificate_is_trusted_whatever_kind_it_is() {
    for (kind, certificate) in [
        ("self-signed", self_signed(|_| {})),
        ("self-signed, its own authority", self_signed(by_hand)),
        ("of an authority", of_an_authority()),
    ] {
        let trust = Trust::only(certificate.pem.as_bytes()).unwrap();
        for name in ["localhost", "127.0.0.1"] {
            assert_eq!(handshake(certificate.config(), &trust, name), Ok(()), "{kind}, {name}");
        }
        let wrong = handshake(certificate.config(), &trust, "example.org").unwrap_err();
        assert!(wrong.contains("not valid for name"), "{kind}: {wrong}");
        let other = Trust::only(self_signed(by_hand).pem.as_bytes()).unwrap();
        assert!(handshake(certificate.config(), &other, "localhost").is_err(), "{kind}");
        assert!(handshake(certificate.config(), &Trust::system(), "localhost").is_err(), "{kind}");
        // Together with others in one file.
        let bundle = format!("{}\n# another\n{}", self_signed(by_hand).pem, certificate.pem);
        let trust = Trust::only(bundle.as_bytes()).unwrap();
        assert_eq!(handshake(certificate.config(), &trust, "localhost"), Ok(()), "{kind}, of several");
    }
}

#[test]
fn a_given_certificate_is_trusted_only_while_it_is_valid() {
    type Change = fn(&mut CertificateParams);
    let expired: Change = |params| {
        by_hand(params);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    };
    let early: Change = |params| {
        by_hand(params);
        (params.not_before, params.not_after) = (date_time_ymd(2100, 1, 1), date_time_ymd(2101, 1, 1));
    };
    for (change, word) in [(expired, "Expired"), (early, "NotValidYet")] {
        let certificate = self_signed(change);
        let trust = Trust::only(certificate.pem.as_bytes()).unwrap();
        let refused = handshake(certificate.config(), &trust, "localhost").unwrap_err();
        assert!(refused.contains(word), "{refused}");
    }
}

/// A server that presents the right certificate without its key.
#[derive(Debug)]
struct Thief(Arc<CertifiedKey>);

impl ResolvesServerCert for Thief {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[test]
fn a_server_without_the_key_of_its_certificate_is_refused() {
    let certificate = self_signed(by_hand);
    let other: PrivateKeyDer<'static> =
        PrivatePkcs8KeyDer::from(KeyPair::generate().unwrap().serialize_der()).into();
    let provider = tls::provider();
    let key = provider.key_provider.load_private_key(other).unwrap();
    let thief = Thief(Arc::new(CertifiedKey::new(certificate.chain.clone(), key)));
    let trust = Trust::only(certificate.pem.as_bytes()).unwrap();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Thief(Arc::clone(&thief.0))));
        let refused = handshake(config, &trust, "localhost").unwrap_err();
        assert!(refused.contains("BadSignature"), "{refused}");
    }
}

#[test]
fn a_file_that_is_not_a_certificate_is_named() {
    for (text, word) in [
        ("", "no PEM certificate"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no PEM certificate"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 1"),
    ] {
        let refused = Trust::only(text.as_bytes()).unwrap_err().to_string();
        assert!(refused.contains(word), "{text}: {refused}");
    }
}

/// TLS in front of a plain server, as a proxy does it.
struct Terminator {
    address: SocketAddr,
    _runtime: Runtime,
}

impl Terminator {
    fn start(certificate: &Certificate, behind: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(certificate.config()));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let Ok(mut server) = TcpStream::connect(behind).await else { return };
                    let _ = copy_bidirectional(&mut stream, &mut server).await;
                });
            }
        });
        Self { address, _runtime: runtime }
    }
}

/// A relay behind TLS, for as long as the test lasts.
fn relay(certificate: &Certificate) -> (Terminator, String) {
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        actix_rt::System::new().block_on(async {
            use btcr2_aggregation::actors::transport::nostr::embedded::EmbeddedRelay;
            let relay = EmbeddedRelay::start(([127, 0, 0, 1], 0).into()).await.unwrap();
            sender.send(relay.url().trim_start_matches("ws://").parse::<SocketAddr>().unwrap()).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let terminator = Terminator::start(certificate, receiver.recv().unwrap());
    let url = format!("wss://localhost:{}", terminator.address.port());
    (terminator, url)
}

fn write(directory: &Path, name: &str, pem: &str) -> String {
    let file = path(directory, name);
    fs::write(&file, pem).unwrap();
    file
}

#[test]
fn a_whole_cohort_completes_over_wss() {
    let directory = directory("wss");
    let certificate = self_signed(by_hand);
    let ca = write(&directory, "ca.pem", &certificate.pem);
    let (_relay, url) = relay(&certificate);

    let checked = run(&["relay", "check", &url, "--tls-ca", &ca]).succeeded();
    assert!(checked.stdout.contains("fit for cohorts"), "{}", checked.stdout);
    let refused = run(&["relay", "check", &url, "--timeout", "2s"]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(refused.stdout.contains("NOT connected") && refused.stdout.contains("certificate"), "{refused:?}");

    let (service, member) = (identity(&directory, "service"), identity(&directory, "member"));
    let serve = Program::start(&[
        "serve",
        "--identity",
        &service,
        "--chain",
        "offline",
        "--events",
        "json",
        "--relay",
        &url,
        "--tls-ca",
        &ca,
        "--min-participants",
        "1",
        "--cohorts",
        "1",
        "--exit-when-done",
    ]);
    let join = Program::start(&[
        "join",
        "--relay",
        &url,
        "--tls-ca",
        &ca,
        "--identity",
        &member,
        "--add-beacon",
        "--events",
        "json",
        "--exit-when-done",
    ]);
    let result = serve.result();
    service_result(&result, "key-path");
    participant_result(&join.result(), &did_of(&member), &result);
}

#[test]
fn a_whole_cohort_completes_over_https() {
    let directory = directory("https");
    let certificate = self_signed(by_hand);
    let ca = write(&directory, "ca.pem", &certificate.pem);
    let key = write(&directory, "key.pem", &certificate.key.serialize_pem());
    let service = Service::once(&directory, 1, &["--tls-cert", &ca, "--tls-key", &key]);
    let member = identity(&directory, "member");
    let joined = service.join(&member, &["--add-beacon", "--tls-ca", &ca]);
    let result = service.program.result();
    service_result(&result, "key-path");
    participant_result(&joined.result(), &did_of(&member), &result);
}

/// `serve` does not report that it serves over a relay that it cannot reach, and no member waits silently for one.
#[test]
fn an_unreachable_peer_is_reported_with_the_reason() {
    let directory = directory("unreachable");
    let certificate = self_signed(by_hand);
    let (_relay, wss) = relay(&certificate);
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = format!("ws://{unused}");
    let (service, member) = (identity(&directory, "service"), identity(&directory, "member"));
    for (url, word) in [(&wss, "certificate"), (&refused, "refused")] {
        let mut serve = Program::start(&[
            "serve",
            "--identity",
            &service,
            "--chain",
            "offline",
            "--events",
            "json",
            "--relay",
            url,
        ]);
        let mut join = Program::start(&[
            "join",
            "--relay",
            url,
            "--identity",
            &member,
            "--add-beacon",
            "--events",
            "json",
            "--exit-when-done",
        ]);
        for program in [&mut serve, &mut join] {
            let event = program.event("unreachable");
            let problem = event["problem"].as_str().unwrap();
            assert!(problem.contains(word), "{event}");
            assert!(event["advice"].is_string(), "{event}");
            assert!(event["peer"].as_str().unwrap().starts_with(url.as_str()), "{event}");
        }
    }
    let wrong_scheme = Service::start(&directory, &[]);
    for (url, word) in [
        (format!("http://{unused}"), "refused"),
        (wrong_scheme.url.replace("http", "https"), "InvalidContentType"),
        ("http://nowhere.invalid".to_owned(), "dns"),
    ] {
        let mut join = crate::support::join(&url, &member, &["--add-beacon"]);
        let event = join.event("unreachable");
        assert!(event["problem"].as_str().unwrap().contains(word), "{event}");
        assert!(event["advice"].is_string(), "{event}");
    }
}
