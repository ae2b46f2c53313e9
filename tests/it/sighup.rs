//! SIGHUP: a new TLS certificate is read, and programs without anything to reload continue.

use std::{fs, sync::Arc};

use crate::support::{Service, did_of, directory, identity, inputs::certificate, path};
use btcr2_aggregation::actors::transport::tls::Trust;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Whether the service presents this certificate on a new connection.
fn is_served(service: &Service, certificate: &str) -> bool {
    let trust = Trust::only(certificate.as_bytes()).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let connector = TlsConnector::from(Arc::new(trust.client_config().unwrap()));
        let stream = TcpStream::connect(service.address()).await.unwrap();
        connector.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await.is_ok()
    })
}

#[test]
fn a_new_certificate_is_served_after_sighup() {
    let directory = directory("sighup");
    let (certificate_file, key_file) = (path(&directory, "cert.pem"), path(&directory, "key.pem"));
    let write = |certificate: &str, key: &str| {
        fs::write(&certificate_file, certificate).unwrap();
        fs::write(&key_file, key).unwrap();
    };
    let (first, second, third) = (certificate(), certificate(), certificate());
    write(&first.0, &first.1);
    let mut service = Service::start(&directory, &["--tls-cert", &certificate_file, "--tls-key", &key_file]);
    assert!(is_served(&service, &first.0) && !is_served(&service, &second.0));

    write(&second.0, &second.1);
    service.program.signal("-HUP");
    let reloaded = service.program.event("reloaded");
    assert_eq!(reloaded["files"], json!([certificate_file, key_file]));
    assert!(is_served(&service, &second.0) && !is_served(&service, &first.0));

    // Not a certificate; one of another key; no file at all.
    for (certificate, key, problem) in [
        ("no certificate", &third.1, "a certificate in PEM expected"),
        (third.0.as_str(), &second.1, "KeyMismatch"),
        (third.0.as_str(), &"".to_owned(), "is empty"),
    ] {
        write(certificate, key);
        service.program.signal("-HUP");
        let stays = |event: &Value| {
            let text = event["message"].as_str().unwrap();
            text.contains("the old TLS certificate stays") && text.contains(problem)
        };
        service.program.event_where("warning", stays);
        assert!(is_served(&service, &second.0), "{problem}");
    }
    fs::remove_file(&key_file).unwrap();
    service.program.signal("-HUP");
    service.program.event_where("warning", |event| event["message"].as_str().unwrap().contains("No such file"));
    assert!(is_served(&service, &second.0));
}

#[test]
fn sighup_with_nothing_to_reload_is_a_warning() {
    let directory = directory("hangup");
    let nothing = |event: &Value| event["message"].as_str().unwrap().contains("SIGHUP: nothing to reload");
    let mut service = Service::once(&directory, 1, &[]);
    service.program.signal("-HUP");
    service.program.event_where("warning", nothing);
    // The member waits for a service of another DID, so it has not joined when the signal comes.
    let member = identity(&directory, "alice");
    let mut join = service.join(&member, &["--add-beacon", "--service-did", &did_of(&member)]);
    join.event("terms");
    join.signal("-HUP");
    join.event_where("warning", nothing);
    drop(join);
    service.join(&member, &["--add-beacon"]).result();
    service.program.result();
}
