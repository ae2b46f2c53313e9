//! What an agent costs while nothing happens: its memory and processor time, and that it wakes for its looks at the chain only.
//!
//! The everyday form has 2 cohorts and 20 DIDs. The full form, with more open files than usual since the
//! proxies keep their sockets: `ulimit -n 65536; MEMBER_IDLE=20x1000 cargo test --release --test it member_idle -- --nocapture`.

use std::{
    env, fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bitcoin::Amount;
use serde_json::Value;

use crate::{
    bitcoind_support::{TestChain, faucet::Faucet},
    member_drills::world::script,
    resolve_cli::ran,
    support::{Program, Service, directory, identity, path, process::Usage, proxy::Proxy, verify::text},
};

/// How long something that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// How many looks at the chain each cohort has while it is measured.
const LOOKS: usize = 30;

/// The pause between two looks by default, in seconds.
const POLL: f64 = 30.0;

/// The processor time of a look at most: many times what it takes without optimizations.
const MOST_CPU: Duration = Duration::from_millis(25);

/// How often its threads wake for a look at most: a look is a few requests, each of which passes through several tasks.
const MOST_WAKES: usize = 100;

/// How many cohorts, and how many DIDs in all of them.
fn form() -> (usize, usize) {
    let Ok(form) = env::var("MEMBER_IDLE") else { return (2, 20) };
    let (cohorts, dids) = form.split_once('x').unwrap();
    (cohorts.parse().unwrap(), dids.parse().unwrap())
}

/// A look at the chain asks for the tip before and after it.
const OF_LOOK: (&[u8], usize) = (b"getblockchaininfo", 2);

/// A proxy that counts how often clients send something in which `text` is.
fn counting(to: SocketAddr, text: &'static [u8], count: &Arc<AtomicUsize>) -> Proxy {
    let count = Arc::clone(count);
    let counter = move |data: &[u8]| {
        count.fetch_add(data.windows(text.len()).filter(|part| *part == text).count(), Ordering::SeqCst);
        false
    };
    Proxy::cutting(to, Box::new(counter), Box::new(|_| false))
}

/// How often the threads of a process have waited for something.
fn wakes(pid: u32) -> usize {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // A thread may have ended.
    let statuses = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok());
    let waited = statuses.filter_map(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:").map(str::to_owned));
        line?.trim().parse::<usize>().ok()
    });
    waited.sum()
}

/// What an agent has done so far.
struct Measured {
    usage: Usage,
    wakes: usize,
    lines: usize,
    /// Looks at the chain, and requests to services.
    asked: [usize; 2],
}

struct Idle {
    program: Program,
    counts: [Arc<AtomicUsize>; 2],
}

impl Idle {
    fn measured(&mut self) -> Measured {
        self.program.read();
        let [tips, requests] = [0, 1].map(|of| self.counts[of].load(Ordering::SeqCst));
        let usage = self.program.usage().unwrap();
        Measured {
            usage,
            wakes: wakes(self.program.id()),
            lines: self.program.seen().len(),
            asked: [tips / OF_LOOK.1, requests],
        }
    }
}

#[actix_rt::test]
async fn an_idle_agent_wakes_for_the_chain_only() {
    let (cohorts, dids) = form();
    let Some(blocks) = TestChain::core("member-idle").await else { return };
    let mut faucet = Faucet::new(&blocks, u32::try_from(cohorts).unwrap()).await;
    let directory = directory("member-idle");
    let node = blocks.node();
    let source = |url: &str| format!("core={url}?cookie={}", node.cookie_file().display());
    let direct = source(&node.url());
    let chain = ["--chain", &direct, "--chain-poll", "500ms", "--confirmations", "2"];
    let terms = ["--standing", "--absent", "wait", "--min-interval", "1s", "--respond-time", "60s"];
    let size = ["--min-participants", "1", "--max-participants", "1"];
    let mut services: Vec<Service> = (0..cohorts)
        .map(|number| {
            let place = directory.join(format!("service-{number}"));
            fs::create_dir_all(&place).unwrap();
            let state = path(&place, "state");
            Service::start(&place, &[&chain[..], &terms, &size, &["--state", &state]].concat())
        })
        .collect();
    let counts = [Arc::default(), Arc::default()];
    let of_node = counting(node.url().trim_start_matches("http://").parse().unwrap(), OF_LOOK.0, &counts[0]);
    let proxies: Vec<Proxy> =
        services.iter().map(|service| counting(service.address(), b" HTTP/1.1\r\n", &counts[1])).collect();
    let listed = proxies.iter().enumerate().map(|(number, proxy)| {
        let url = proxy.url();
        format!("[[service]]\nname = \"service-{number}\"\nurl = \"{url}\"\n")
    });
    let poll = if cohorts > 2 { "1s" } else { "200ms" };
    let config = format!(
        "network = \"regtest\"\nchain = \"{}\"\nchain-poll = \"{poll}\"\nconfirmations = 2\n{}\
         [[seat]]\nname = \"home\"\nseed = \"seat.id\"\n[policy]\nleast-answer-time = \"1s\"\n",
        source(&of_node.url()),
        listed.collect::<String>()
    );
    fs::write(directory.join("member.toml"), config).unwrap();
    identity(&directory, "seat.id");
    let (file, state) = (path(&directory, "member.toml"), path(&directory, "state"));
    let program = Program::start(&["member", "--config", &file, "--state", &state, "--json"]);
    let mut idle = Idle { program, counts };
    idle.program.event("member-ready");
    let empty = idle.measured().usage;

    let mut formed = Vec::new();
    for service in &mut services {
        let cohort = service.program.event("standing-formed");
        faucet.pay(&blocks, &script(text(&cohort["beaconAddress"])), Amount::from_sat(50_000)).await;
        formed.push(text(&cohort["cohortId"]).to_owned());
    }
    blocks.mine(2).await;
    let count = (dids / cohorts).to_string();
    for (service, cohort) in services.iter_mut().zip(&formed) {
        service.program.event("coin-arrived");
        let mint = ["member", "mint", "--cohort", cohort, "--count", &count, "--state", &state];
        ran(&mint).await.succeeded();
    }
    let shown = ran(&["member", "dids", "--json", "--state", &state]).await.succeeded().stdout;
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap().as_array().unwrap().len(), dids);

    // What is still under way, e.g. the end of the last number, comes to its end; from then on nothing happens.
    let until = Instant::now() + PATIENCE;
    let (before, after, took) = loop {
        let (before, began) = (idle.measured(), Instant::now());
        while idle.counts[0].load(Ordering::SeqCst) / OF_LOOK.1 < before.asked[0] + LOOKS * cohorts {
            assert!(Instant::now() < until, "it does not look at the chain");
            actix_rt::time::sleep(Duration::from_millis(20)).await;
        }
        let after = idle.measured();
        if (after.asked[1], after.lines) == (before.asked[1], before.lines) {
            break (before, after, began.elapsed());
        }
        let (news, requests) = (&idle.program.seen()[before.lines..], after.asked[1] - before.asked[1]);
        assert!(Instant::now() < until, "{requests} requests to services, and {news:#?}");
    };
    let looks = after.asked[0] - before.asked[0];
    let (cpu, wakes) = (after.usage.cpu - before.usage.cpu, after.wakes - before.wakes);
    let hour = cpu.as_secs_f64() / looks as f64 * cohorts as f64 * 3_600.0 / POLL;
    println!(
        "member-idle: {cohorts} cohorts, {dids} DIDs: {} kB resident, {} kB before it had a seat; in {took:?} {looks} looks, {cpu:?} of \
         processor time, {wakes} wakes; with a look each {POLL} s: {hour:.2} s of processor time an hour",
        after.usage.resident, empty.resident,
    );
    let many = u32::try_from(looks).unwrap();
    assert!(cpu < MOST_CPU * many, "{cpu:?} for {looks} looks");
    assert!(wakes < MOST_WAKES * looks, "{wakes} wakes for {looks} looks");
    idle.program.signal("-TERM");
    assert!(idle.program.ends_well());
}
