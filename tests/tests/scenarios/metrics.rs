//! What a scraper and a kubelet get over TCP.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::refused,
    device::{Device, Loop},
    guard::{Guard, tier},
    wait_for,
};

use crate::make_ext4;

/// The status line and the body of the answer to a request.
fn get(address: &str, path: &str) -> Result<(String, String)> {
    let mut stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: guard\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}

#[test]
fn refusals_are_counted_and_readiness_names_the_tier() -> Result<()> {
    let mut guard = Guard::unstarted(None)?;
    // The address is in use: the guard starts all the same.
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    guard.replace("metrics_listen", &format!("'{address}'"))?;
    guard.start_agent()?;
    wait_for("the agent to say so", || Ok(guard.log().contains("cannot listen on").then_some(())))?;
    drop(taken);
    wait_for("metrics to be served", || Ok(guard.log().contains("metrics are served").then_some(())))?;
    let address = address.as_str();
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    refused(&guard, &format!("mkfs.ext4 -F -q {}", device.path().display()), "")?;
    let tier = tier();
    let counted =
        format!("format_guard_denials_total{{reason=\"formatter\",operation=\"open\",tier=\"{tier}\"}} ");
    let text = wait_for("the refusal to be counted", || {
        let (status, text) = get(address, "/metrics")?;
        ensure!(status.contains(" 200 "), "{status}");
        Ok(text.contains(&counted).then_some(text))
    })?;
    for told in [
        "format_guard_volumes{state=\"formatted\"} ",
        "format_guard_probes_total{result=\"blank\"} ",
        "format_guard_attach_to_rule_seconds_count ",
        "format_guard_canary_proven 1",
        "\n# EOF",
    ] {
        ensure!(text.contains(told), "{told} is not in\n{text}");
    }
    ensure!(text.contains(&format!("format_guard_in_force{{tier=\"{tier}\",mode=\"enforce\"}} 1")), "{text}");
    let (status, text) = get(address, "/readyz")?;
    ensure!(
        status.contains(" 200 ") && text.starts_with(&format!("mode enforce, tier {tier}\n")),
        "{status}{text}"
    );
    ensure!(get(address, "/healthz")?.0.contains(" 200 "));
    // The port serves nothing else, and changes nothing.
    for path in ["/v1/status", "/v1/volume/permit", "/"] {
        ensure!(get(address, path)?.0.contains(" 404 "), "{path}");
    }
    // Clients that send nothing delay neither a scraper nor an operator for long.
    let silent: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(address)).collect::<Result<_, _>>()?;
    ensure!(guard.json("status")?["proven"] == true);
    ensure!(get(address, "/healthz")?.0.contains(" 200 "), "a scraper is kept waiting");
    drop(silent);
    // Root gets the metrics on the control socket, too.
    ensure!(guard.get("/metrics")?.contains(&counted));
    Ok(())
}
