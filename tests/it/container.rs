//! The container image without an engine: what can be tested of the Dockerfile is its health check and its settings.

use std::{fs, path::Path, process::Command};

use crate::support::{Service, directory};

fn dockerfile() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfile")).unwrap()
}

#[test]
fn the_health_check_of_the_image_asks_readyz() {
    let directory = directory("container-health");
    let text = dockerfile();
    let check = text.lines().find_map(|line| line.trim().strip_prefix("CMD [\"bash\"")).unwrap();
    let check: Vec<String> = serde_json::from_str(&format!("[\"bash\"{check}")).unwrap();
    // Without a relay it stops to be ready; with none configured it is ready at once.
    let mut service = Service::start(&directory, &["--metrics-listen", "127.0.0.1:0"]);
    let url = service.program.event("metrics")["url"].as_str().unwrap().to_owned();
    let port = url.rsplit_once(':').unwrap().1.to_owned();
    let healthy = || {
        let arguments = check[1..].iter().map(|argument| argument.replace("9100", &port));
        Command::new(&check[0]).args(arguments).output().unwrap().status.success()
    };
    assert!(healthy());
    service.program.kill();
    assert!(!healthy());
}

#[test]
fn the_image_sets_variables_that_the_program_reads() {
    let text = dockerfile();
    let help = crate::support::run(&["serve", "--help"]).stdout;
    let variables: Vec<_> = text
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("BTCR2_"))
        .collect();
    assert!(variables.len() > 3, "{variables:?}");
    for variable in variables {
        assert!(help.contains(variable), "{variable}");
    }
    let user = text.lines().rfind(|line| line.starts_with("USER ")).unwrap();
    assert!(!user.contains("root") && user != "USER 0", "{user}");
}
