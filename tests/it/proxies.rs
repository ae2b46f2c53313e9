//! `serve` behind reverse proxies in their usual configurations: whole cohorts through nginx, with the block of `docs/http.md`,
//! through HAProxy, and through Caddy with the block of that page. A proxy that is not installed is named, and its tests are skipped.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use crate::support::{
    PATIENCE, Service, did_of, directory, external_identity, identity, join, path,
    verify::{participant_result, service_result},
};

/// A proxy's process, ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(name: &str) -> Option<String> {
    let beside = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
    let found = beside.split(':').map(|place| format!("{place}/{name}")).find(|file| Path::new(file).is_file());
    if found.is_none() {
        eprintln!("{}: skipped, there is no {name}", std::thread::current().name().unwrap_or_default());
    }
    found
}

/// Starts a proxy with the command that `command` makes for a port. Another process may take the port before the proxy does;
/// then the next one is tried.
fn start(directory: &Path, command: impl Fn(u16) -> Command) -> (Running, u16) {
    let log = path(directory, "proxy.log");
    for _ in 0..10 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let output = fs::File::create(&log).unwrap();
        let mut command = command(port);
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let mut running = Running(command.spawn().unwrap());
        let began = Instant::now();
        while running.0.try_wait().unwrap().is_none() {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return (running, port);
            }
            assert!(began.elapsed() < PATIENCE, "{}", fs::read_to_string(&log).unwrap());
            std::thread::yield_now();
        }
    }
    panic!("{}", fs::read_to_string(&log).unwrap());
}

/// nginx with this block in its server.
fn nginx(program: &str, directory: &Path, block: &str) -> (Running, u16) {
    let place = path(directory, "nginx");
    for folder in ["body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        fs::create_dir_all(format!("{place}/{folder}")).unwrap();
    }
    let temporary: String =
        [("client_body", "body"), ("proxy", "proxy"), ("fastcgi", "fastcgi"), ("uwsgi", "uwsgi"), ("scgi", "scgi")]
            .map(|(name, folder)| format!("{name}_temp_path {place}/{folder};\n"))
            .concat();
    start(directory, |port| {
        let configuration = format!(
            "daemon off;\nmaster_process off;\npid {place}/pid;\nerror_log stderr;\nevents {{}}\n\
             http {{\naccess_log off;\n{temporary}server {{\nlisten 127.0.0.1:{port};\n{block}\n}}\n}}\n"
        );
        let file = format!("{place}/nginx.conf");
        fs::write(&file, configuration).unwrap();
        let mut command = Command::new(program);
        command.args(["-p", &place, "-e", "stderr", "-c", &file]);
        command
    })
}

fn haproxy(program: &str, directory: &Path, frontend: &str, service: SocketAddr) -> (Running, u16) {
    start(directory, |port| {
        let configuration = format!(
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  option forwardfor\n\
             frontend web\n  bind 127.0.0.1:{port}\n{frontend}  default_backend service\n\
             backend service\n  server one {service}\n"
        );
        let file = path(directory, "haproxy.cfg");
        fs::write(&file, configuration).unwrap();
        let mut command = Command::new(program);
        command.args(["-db", "-f", &file]);
        command
    })
}

/// Caddy with this block in its site.
fn caddy(program: &str, directory: &Path, block: &str) -> (Running, u16) {
    start(directory, |port| {
        let configuration =
            format!("{{\nadmin off\nauto_https off\n}}\nhttp://127.0.0.1:{port} {{\nbind 127.0.0.1\n{block}\n}}\n");
        let file = path(directory, "Caddyfile");
        fs::write(&file, configuration).unwrap();
        let mut command = Command::new(program);
        command.args(["run", "--adapter", "caddyfile", "--config", &file]);
        // It stores files there.
        command.env("HOME", directory).env("XDG_DATA_HOME", directory).env("XDG_CONFIG_HOME", directory);
        command
    })
}

/// The block that the documentation recommends for `proxy`, for a service at `address`.
fn documented_block(proxy: &str, address: SocketAddr) -> String {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/http.md")).unwrap();
    let block = text.split_once(&format!("```{proxy}\n")).unwrap().1.split_once("```").unwrap().0;
    assert_eq!(block.matches("127.0.0.1:8080").count(), 1, "{block}");
    block.replace("127.0.0.1:8080", &address.to_string())
}

/// A cohort of a KEY and an EXTERNAL member, each connected through a proxy that `proxy` puts before the service.
fn a_cohort_behind(
    name: &str,
    arguments: &[&str],
    prefix: &str,
    proxy: impl FnOnce(&Path, SocketAddr) -> (Running, u16),
) {
    let directory = directory(name);
    let service = Service::once(&directory, 2, arguments);
    let (_proxy, port) = proxy(&directory, service.address());
    let url = format!("http://127.0.0.1:{port}{prefix}");
    let files = [identity(&directory, "key"), external_identity(&directory, "external")];
    let members: Vec<_> = files.iter().map(|file| join(&url, file, &["--add-beacon", "--linger", "2s"])).collect();
    let result = service.program.result();
    service_result(&result, "key-path");
    for (member, file) in members.into_iter().zip(&files) {
        participant_result(&member.result(), &did_of(file), &result);
    }
}

const BEHIND: [&str; 3] = ["--trust-forwarded", "--stripped-prefix", "/agg"];

#[test]
fn a_cohort_forms_behind_the_documented_nginx_block() {
    let Some(nginx_program) = program("nginx") else { return };
    a_cohort_behind("nginx-documented", &BEHIND, "/agg", |directory, address| {
        nginx(&nginx_program, directory, &documented_block("nginx", address))
    });
}

#[test]
fn a_cohort_forms_behind_nginx_that_rewrites_the_root() {
    let Some(nginx_program) = program("nginx") else { return };
    // With a path behind the address nginx forwards the path as it has decoded it; without one, as it came.
    for (name, slash) in [("nginx-decoding", "/"), ("nginx-as-it-comes", "")] {
        a_cohort_behind(name, &["--trust-forwarded"], "", |directory, address| {
            let block = format!(
                "location / {{\nproxy_pass http://{address}{slash};\nproxy_set_header X-Forwarded-For $remote_addr;\n}}"
            );
            nginx(&nginx_program, directory, &block)
        });
    }
}

#[test]
fn a_cohort_forms_behind_haproxy() {
    let Some(haproxy_program) = program("haproxy") else { return };
    a_cohort_behind("haproxy", &["--trust-forwarded"], "", |directory, address| {
        haproxy(&haproxy_program, directory, "", address)
    });
}

#[test]
fn a_cohort_forms_behind_haproxy_that_strips_a_prefix() {
    let Some(haproxy_program) = program("haproxy") else { return };
    a_cohort_behind("haproxy-prefix", &BEHIND, "/agg", |directory, address| {
        let strip = "  http-request replace-path /agg(/)?(.*) /\\2\n";
        haproxy(&haproxy_program, directory, strip, address)
    });
}

#[test]
fn a_cohort_forms_behind_the_documented_caddy_block() {
    let Some(caddy_program) = program("caddy") else { return };
    a_cohort_behind("caddy-documented", &BEHIND, "/agg", |directory, address| {
        caddy(&caddy_program, directory, &documented_block("caddyfile", address))
    });
}
