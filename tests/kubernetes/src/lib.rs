//! An API server of Kubernetes on this host's loopback, over an etcd of its own, which ends with the value. A
//! test may kill, stop and cut it off. Only the API runs: no kubelet, no controller, no scheduler.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use format_guard_tests_etcd::{Members, Plan, server::Server};
use serde_json::{Value, json};

/// How long the server may take to come up, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(3);
/// How long an answer may take.
const ANSWER: &str = "20";
/// Names the directory with `kube-apiserver` and `kubectl`: `cargo xtask api-server` builds them.
pub const PROGRAMS: &str = "FORMAT_GUARD_KUBERNETES";
/// Names a file with the chart's manifests for nodes that share through the API, as a JSON array.
pub const MANIFESTS: &str = "FORMAT_GUARD_STORE_MANIFESTS";
/// The name of the API server, by which the network knows it.
pub const NAME: &str = "api";
/// The namespace and the account of the agents, as the chart renders them.
pub const NAMESPACE: &str = "kube-system";
/// The account.
pub const ACCOUNT: &str = "format-guard";

/// The API server.
pub struct ApiServer {
    /// The server's etcd, and the network in which links to the server are made.
    pub etcd: Members,
    /// Its process.
    pub process: Server,
    asker: Asker,
    directory: tempfile::TempDir,
}

/// Sends requests to the API server by curl, with a token.
#[derive(Clone)]
pub struct Asker {
    port: u16,
    token: String,
    authority: PathBuf,
}

impl Asker {
    /// The answer, if it is one.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        self.ask_for(method, path, "application/json", body.map(|body| (kind, body)))
    }

    /// An answer of this kind.
    pub fn ask_for(
        &self,
        method: &str,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Value> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", ANSWER, "--request", method]);
        // Everybody may read the arguments of a process: the token goes by standard input.
        curl.args([
            "--config",
            "-",
            "--write-out",
            "\n%{http_code}",
            "--header",
            &format!("Accept: {accept}"),
        ]);
        curl.arg("--cacert").arg(&self.authority);
        let mut file = None;
        if let Some((kind, body)) = body {
            let mut written = tempfile::NamedTempFile::new()?;
            write!(written, "{body}")?;
            curl.args(["--header", &format!("Content-Type: {kind}")]);
            curl.arg("--data-binary").arg(format!("@{}", written.path().display()));
            file = Some(written);
        }
        curl.arg(format!("https://127.0.0.1:{}{path}", self.port));
        let mut asked = curl
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("curl: cargo xtask setup")?;
        let mut input = asked.stdin.take().context("it is piped")?;
        writeln!(input, "header = \"Authorization: Bearer {}\"", self.token)?;
        drop(input);
        let answer = asked.wait_with_output()?;
        drop(file);
        ensure!(
            answer.status.success(),
            "{method} {path}: {}",
            String::from_utf8_lossy(&answer.stderr).trim()
        );
        let text = String::from_utf8_lossy(&answer.stdout);
        let (text, code) = text.rsplit_once('\n').context("curl tells no code")?;
        let value: Value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
        ensure!(
            code.starts_with('2'),
            "{method} {path}: {code} {}",
            value["message"].as_str().unwrap_or(text)
        );
        Ok(value)
    }
}

/// The directory of the programs.
pub fn programs() -> Result<PathBuf> {
    std::env::var_os(PROGRAMS).map(PathBuf::from).with_context(|| {
        format!("{PROGRAMS} names no directory: cargo xtask test --part \"API server\" builds what is tested against, and sets it")
    })
}

fn run(program: &str, words: &[&str]) -> Result<()> {
    let ran = Command::new(program).args(words).stdin(Stdio::null()).output();
    let ran = ran.with_context(|| format!("{program}: cargo xtask setup"))?;
    ensure!(ran.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&ran.stderr).trim());
    Ok(())
}

impl ApiServer {
    /// Starts one of these programs, and waits until it is up.
    pub fn start(programs: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let etcd = Members::start(&Plan::default())?;
        etcd.wait_until_healthy()?;
        let path = |name: &str| directory.path().join(name).display().to_string();
        let key = path("accounts.key");
        run("openssl", &["genrsa", "-out", &key, "2048"])?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        // Only this process knows the token.
        let token = fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
        let tokens = path("tokens");
        fs::write(&tokens, format!("{token},admin,admin,system:masters\n"))?;
        let arguments = [
            format!("--etcd-servers={}", etcd.endpoints().join(",")),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", path("certificates")),
            format!("--token-auth-file={tokens}"),
            "--authorization-mode=RBAC".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={key}"),
            format!("--service-account-signing-key-file={key}"),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            // A busy test sends two hundred requests at once; the server's limit on their number is not
            // tested here.
            "--enable-priority-and-fairness=false".to_owned(),
            "--profiling=false".to_owned(),
        ];
        let program = programs.join("kube-apiserver").display().to_string();
        let words = [program].into_iter().chain(arguments).collect();
        let process = Server::start(words, directory.path().join("log"))?;
        let authority = directory.path().join("certificates/apiserver.crt");
        let asker = Asker { port, token, authority };
        let api = Self { etcd, process, asker, directory };
        api.wait_until_ready()?;
        Ok(api)
    }

    /// The server's port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.asker.port
    }

    /// The token of an administrator.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.asker.token
    }

    /// The server's certificates.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.asker.authority.clone()
    }

    /// A port that leads to the server, for the client of this name.
    pub fn link(&self, from: &str) -> Result<u16> {
        self.etcd.network.link(from, NAME, self.asker.port)
    }

    /// A kubeconfig for the server.
    #[must_use]
    pub fn kubeconfig(&self, port: u16, token: &str) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{port}"),
                "certificate-authority": self.authority(),
            }}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": NAMESPACE}}],
            "current-context": "test",
        })
    }

    /// A file with the kubeconfig.
    pub fn kubeconfig_file(&self, name: &str, port: u16, token: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(format!("{name}.kubeconfig"));
        fs::write(&path, self.kubeconfig(port, token).to_string())?;
        Ok(path)
    }

    /// Waits until the server answers.
    pub fn wait_until_ready(&self) -> Result<()> {
        let start = Instant::now();
        while let Err(error) = self.asker.ask("GET", "/readyz", None) {
            if start.elapsed() > PATIENCE {
                let log = fs::read_to_string(self.process.log()).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(20).collect();
                bail!("the API server never comes up: {error}\n{}", last.join("\n"));
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// A client with the rights of an administrator.
    #[must_use]
    pub fn asker(&self) -> &Asker {
        &self.asker
    }

    /// A client with another token.
    #[must_use]
    pub fn asker_with(&self, token: &str) -> Asker {
        Asker { token: token.to_owned(), ..self.asker.clone() }
    }

    /// Makes these objects; existing ones stay.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        for object in objects {
            let (path, name) = collection(object)?;
            match self.asker.ask("POST", &path, Some(object)) {
                Err(error) if !error.to_string().contains("409") => return Err(error.context(name)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the kind of volumes, the agents' account with its rights, and the rules of admission, from the
    /// manifests in this file, and waits until the rules are in force.
    pub fn install(&self, manifests: &Path) -> Result<()> {
        let text = fs::read_to_string(manifests).with_context(|| manifests.display().to_string())?;
        let objects: Vec<Value> = serde_json::from_str(&text)?;
        let needed =
            |object: &&Value| !matches!(object["kind"].as_str(), None | Some("DaemonSet" | "ConfigMap"));
        let objects: Vec<Value> = objects.iter().filter(needed).cloned().collect();
        self.apply(&objects)?;
        let asker = self.asker_with(&self.node_token("probe")?);
        let start = Instant::now();
        // Each of these requests is refused by a rule of its own.
        let tries = [
            (
                "/apis/format-guard.io/v1alpha1/guardedvolumes?dryRun=All",
                volume("probe", &json!({"id": "probe"})),
            ),
            (
                "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases?dryRun=All",
                json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "another"}}),
            ),
        ];
        for (path, object) in tries {
            loop {
                match asker.ask("POST", path, Some(&object)) {
                    Err(error) if error.to_string().contains(" 422 ") => break,
                    other => {
                        ensure!(start.elapsed() < PATIENCE, "no rule of admission refuses {path}: {other:?}");
                    }
                }
                thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(())
    }

    /// The token of the agent on a node, as its pod has it.
    pub fn node_token(&self, node: &str) -> Result<String> {
        self.apply(&[json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})])?;
        let uid = self.asker.ask("GET", &format!("/api/v1/nodes/{node}"), None)?["metadata"]["uid"].clone();
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "expirationSeconds": 86400,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid},
            },
        });
        self.account_token(&request)
    }

    /// A token of the agents' account that names no node.
    pub fn token_of_no_node(&self) -> Result<String> {
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 86400},
        });
        self.account_token(&request)
    }

    fn account_token(&self, request: &Value) -> Result<String> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{ACCOUNT}/token");
        let answer = self.asker.ask("POST", &path, Some(request))?;
        Ok(answer["status"]["token"].as_str().context("no token")?.to_owned())
    }

    /// The sum of the server's metrics whose name and labels contain these words.
    pub fn metric(&self, words: &[&str]) -> Result<f64> {
        let text = self.asker.ask("GET", "/metrics", None)?;
        let text = text.as_str().context("metrics are text")?;
        let lines = text.lines().filter(|line| words.iter().all(|word| line.contains(word)));
        Ok(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
    }
}

/// The object of a volume.
#[must_use]
pub fn volume(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "format-guard.io/v1alpha1",
        "kind": "GuardedVolume",
        "metadata": {"name": name},
        "spec": spec,
    })
}

/// The paths of the kinds of objects that tests make.
fn collection(object: &Value) -> Result<(String, String)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let version = text(&object["apiVersion"]).context("no apiVersion")?;
    let kind = text(&object["kind"]).context("no kind")?;
    let plural = match kind.as_str() {
        "ValidatingAdmissionPolicy" => "validatingadmissionpolicies".to_owned(),
        "NetworkPolicy" => "networkpolicies".to_owned(),
        kind => format!("{}s", kind.to_lowercase()),
    };
    let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let namespace =
        text(&object["metadata"]["namespace"]).map_or_else(String::new, |name| format!("/namespaces/{name}"));
    let name = format!("{kind} {}", object["metadata"]["name"].as_str().unwrap_or_default());
    Ok((format!("{root}{namespace}/{plural}"), name))
}
