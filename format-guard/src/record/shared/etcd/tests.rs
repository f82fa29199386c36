use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use super::*;

#[test]
fn a_key_is_readable_and_one_volumes_own() {
    for (id, key) in [
        ("iscsi:iqn.2020-01.org:t,lun=1", "iscsi:iqn.2020-01.org:t,lun=1"),
        ("rbd:pool/image", "rbd:pool%2Fimage"),
        ("scsi:t10.ATA disk 100%", "scsi:t10.ATA%20disk%20100%25"),
    ] {
        assert_eq!(in_key(&id.into()), key);
        assert_eq!(of_key(key), Some(id.into()));
    }
    assert_eq!([of_key("%"), of_key("%2"), of_key("%zz"), of_key("%FF")], [None, None, None, None]);
}

/// A member of its own.
struct Server {
    process: Child,
    port: u16,
    directory: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start(scheme: &str, files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let free =
            || TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a port").port();
        let (port, peer) = (free(), free());
        let mut etcd = Command::new("etcd");
        let data = directory.path().join("data").display().to_string();
        let (client, peer) = (format!("{scheme}://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        for (name, value) in [
            ("data-dir", data.as_str()),
            ("listen-client-urls", &client),
            ("advertise-client-urls", &client),
            ("listen-peer-urls", &peer),
            ("initial-advertise-peer-urls", &peer),
            ("initial-cluster", &format!("default={peer}")),
        ] {
            etcd.arg(format!("--{name}={value}"));
        }
        for (name, file) in files {
            etcd.arg(format!("--{name}={file}"));
        }
        etcd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = etcd.spawn().expect("etcd, of the package etcd-server");
        Self { process, port, directory }
    }

    fn settings(&self, scheme: &str) -> Settings {
        let endpoints = vec![format!("{scheme}://127.0.0.1:{}", self.port)];
        Settings { endpoints, timeout: 5, ..Settings::default() }
    }

    fn etcdctl(&self, words: &[&str]) {
        let mut etcdctl = Command::new("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").args(words);
        etcdctl.arg(format!("--endpoints=http://127.0.0.1:{}", self.port));
        let ran = etcdctl.output().expect("etcdctl, of the package etcd-client");
        assert!(ran.status.success(), "{words:?}: {}", String::from_utf8_lossy(&ran.stderr));
    }
}

fn run(program: &str, words: &str, directory: &Path) {
    let ran = Command::new(program).args(words.split(' ')).current_dir(directory).output().expect(program);
    assert!(ran.status.success(), "{program} {words}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// Asks one question, as an agent does.
async fn ask(settings: &Settings) -> Result<Seen, SharedError> {
    let member = Etcd::new(settings.clone()).connect().await?;
    let mut seen = member.look(&["iscsi:t,lun=1".into()]).await?;
    Ok(seen.pop().expect("one answer").expect("understood"))
}

/// Asks until the member is up.
async fn answers(settings: &Settings) -> Seen {
    let start = Instant::now();
    loop {
        match ask(settings).await {
            Ok(seen) => return seen,
            Err(error) if start.elapsed() > Duration::from_secs(30) => panic!("it never answers: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn refusal(settings: &Settings) -> String {
    ask(settings).await.expect_err("refused").to_string()
}

#[tokio::test]
async fn members_are_known_by_their_certificates_and_know_this_node_by_its_own() {
    let files = tempfile::tempdir().expect("directory");
    let key = "req -newkey rsa:2048 -nodes -subj /CN=";
    run("openssl", &format!("{key}authority -x509 -days 2 -keyout ca.key -out ca.pem"), files.path());
    run("openssl", &format!("{key}other -x509 -days 2 -keyout other.key -out other.pem"), files.path());
    fs::write(files.path().join("names"), "subjectAltName=IP:127.0.0.1\n").expect("written");
    for name in ["member", "node"] {
        run("openssl", &format!("{key}{name} -keyout {name}.key -out {name}.csr"), files.path());
        let signed = "x509 -req -days 2 -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names";
        run("openssl", &format!("{signed} -in {name}.csr -out {name}.pem"), files.path());
    }
    let file = |name: &str| files.path().join(name);
    let text = |name: &str| file(name).display().to_string();
    let server = Server::start(
        "https",
        &[
            ("cert-file", &text("member.pem")),
            ("key-file", &text("member.key")),
            ("trusted-ca-file", &text("ca.pem")),
            ("client-cert-auth", "true"),
        ],
    );
    let settings = Settings {
        ca_file: file("ca.pem"),
        cert_file: file("node.pem"),
        key_file: file("node.key"),
        ..server.settings("https")
    };
    assert_eq!(answers(&settings).await, Seen::default());
    for (wrong, word) in [
        (Settings { ca_file: file("other.pem"), ..settings.clone() }, "certificate"),
        (Settings { cert_file: "".into(), key_file: "".into(), ..settings.clone() }, ""),
        (Settings { ca_file: file("none.pem"), ..settings.clone() }, "store.ca_file: cannot read"),
    ] {
        let said = refusal(&wrong).await;
        assert!(said.contains(word) && !said.contains('\n'), "{said}");
    }
}

#[tokio::test]
async fn a_user_is_known_by_the_password_in_a_file() {
    let server = Server::start("http", &[]);
    let open = server.settings("http");
    answers(&open).await;
    server.etcdctl(&["user", "add", "root:secret"]);
    server.etcdctl(&["auth", "enable"]);
    let password = server.directory.path().join("password");
    fs::write(&password, "secret\n").expect("written");
    let settings = Settings { user: "root".to_owned(), password_file: password.clone(), ..open.clone() };
    assert_eq!(answers(&settings).await, Seen::default());
    assert!(refusal(&open).await.contains("user name is empty"));
    fs::write(&password, "other").expect("written");
    let said = refusal(&settings).await;
    assert!(said.contains("authentication failed") && !said.contains("other"), "{said}");
}
