//! The `DaemonSet` on a node. runc makes its container from what the chart says and nothing else, and
//! formatters in other containers meet what it left in the kernel.
//!
//! `cargo xtask test` lays out the image and renders the chart: `FORMAT_GUARD_IMAGE` is the image's
//! directory, `FORMAT_GUARD_CHART` the manifests as a JSON array.

use std::{
    env, fs,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use format_guard_tests::{
    device::{Device, Loop, sha256},
    tool::{Ran, module, must, run, run_command},
    wait_for,
};
use serde_json::{Value, json};

/// Holds an ext4 that was made before the guard started.
const VOLUME: &str = "/dev/vda";
/// Has never held anything.
const BLANK: &str = "/dev/vdb";
const ROOT: &str = "/run/fg-container";

/// The parts of a pod of the chart.
struct Chart {
    pod: Value,
    /// The pod's only container.
    agent: Value,
    manifests: Vec<Value>,
}

impl Chart {
    fn read() -> Result<Self> {
        let path = env::var("FORMAT_GUARD_CHART").context("FORMAT_GUARD_CHART names the manifests")?;
        let manifests: Vec<Value> = serde_json::from_str(&fs::read_to_string(path)?)?;
        let set = manifests
            .iter()
            .find(|manifest| manifest["kind"] == "DaemonSet")
            .context("there is no DaemonSet")?;
        let pod = set["spec"]["template"]["spec"].clone();
        let containers = pod["containers"].as_array().context("no containers")?;
        ensure!(containers.len() == 1, "{containers:?}");
        Ok(Self { agent: containers[0].clone(), pod, manifests })
    }

    /// The path on the node of a volume of the pod.
    fn source(&self, name: &str) -> Result<PathBuf> {
        let volume = self.pod["volumes"]
            .as_array()
            .and_then(|volumes| volumes.iter().find(|volume| volume["name"] == name))
            .with_context(|| format!("no volume {name}"))?;
        if let Some(path) = volume["hostPath"]["path"].as_str() {
            if volume["hostPath"]["type"] == "DirectoryOrCreate" {
                fs::create_dir_all(path)?;
            }
            return Ok(path.into());
        }
        let map = volume["configMap"]["name"].as_str().with_context(|| format!("{volume}"))?;
        let map = self
            .manifests
            .iter()
            .find(|manifest| manifest["kind"] == "ConfigMap" && manifest["metadata"]["name"] == map)
            .with_context(|| format!("no ConfigMap {map}"))?;
        let directory = Path::new(ROOT).join(name);
        fs::create_dir_all(&directory)?;
        for (file, text) in map["data"].as_object().context("no data")? {
            fs::write(directory.join(file), text.as_str().context("no text")?)?;
        }
        Ok(directory)
    }

    /// The container that a runtime makes of the pod.
    fn configuration(&self, image: &Path) -> Result<Value> {
        let mut mounts = vec![json!({"destination": "/proc", "type": "proc", "source": "proc"})];
        for mount in self.agent["volumeMounts"].as_array().context("no mounts")? {
            let name = mount["name"].as_str().context("no name")?;
            let mut options = vec!["rbind"];
            options.push(if mount["mountPropagation"] == "HostToContainer" { "rslave" } else { "rprivate" });
            options.push(if mount["readOnly"] == true { "ro" } else { "rw" });
            mounts.push(json!({
                "destination": mount["mountPath"], "type": "bind", "source": self.source(name)?, "options": options
            }));
        }
        let security = &self.agent["securityContext"];
        ensure!(security["privileged"] == true, "this makes privileged containers: {security}");
        let limit = self.agent["resources"]["limits"]["memory"].as_str().context("no limit of memory")?;
        let limit: u64 = limit.strip_suffix("Mi").with_context(|| limit.to_owned())?.parse()?;
        let mut words = vec!["/usr/bin/format-guard"];
        words.extend(self.agent["args"].as_array().context("no args")?.iter().filter_map(Value::as_str));
        let mut made = privileged(image, &words, &mounts, self.pod["hostPID"] == true);
        made["root"]["readonly"] = security["readOnlyRootFilesystem"].clone();
        made["linux"]["resources"]["memory"] = json!({"limit": limit << 20});
        Ok(made)
    }
}

/// A privileged container as containerd makes one: every capability, every device, nothing masked.
fn privileged(root: &Path, words: &[&str], mounts: &[Value], host_pid: bool) -> Value {
    let every = [
        "AUDIT_CONTROL",
        "AUDIT_READ",
        "AUDIT_WRITE",
        "BLOCK_SUSPEND",
        "BPF",
        "CHECKPOINT_RESTORE",
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "IPC_LOCK",
        "IPC_OWNER",
        "KILL",
        "LEASE",
        "LINUX_IMMUTABLE",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "MKNOD",
        "NET_ADMIN",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_RAW",
        "PERFMON",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYSLOG",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_CHROOT",
        "SYS_MODULE",
        "SYS_NICE",
        "SYS_PACCT",
        "SYS_PTRACE",
        "SYS_RAWIO",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "WAKE_ALARM",
    ]
    .map(|name| format!("CAP_{name}"))
    .to_vec();
    let kinds = ["mount", "uts", "ipc", "network", "cgroup"].into_iter().chain((!host_pid).then_some("pid"));
    let namespaces: Vec<Value> = kinds.map(|kind| json!({"type": kind})).collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": words,
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": every, "effective": every, "permitted": every}
        },
        "root": {"path": root, "readonly": true},
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "resources": {"devices": [{"allow": true, "access": "rwm"}]},
            "rootfsPropagation": "rslave"
        }
    })
}

/// A container of this name and configuration, which is removed with the value.
struct Container {
    name: String,
}

impl Container {
    /// Starts it, in the background.
    fn start(name: &str, configuration: &Value) -> Result<Self> {
        let bundle = bundle(name, configuration)?;
        let log = fs::File::create(bundle.join("log"))?;
        let status = Command::new("runc")
            .args(["run", "--detach", "--bundle"])
            .arg(&bundle)
            .arg(name)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()?;
        let container = Self { name: name.to_owned() };
        ensure!(status.success(), "{name} does not start: {}", container.log());
        Ok(container)
    }

    fn log(&self) -> String {
        fs::read_to_string(Path::new(ROOT).join(&self.name).join("log")).unwrap_or_default()
    }

    /// Runs a command in it.
    fn exec(&self, line: &str) -> Result<Ran> {
        run(&format!("runc exec {} {line}", self.name))
    }

    fn json(&self, line: &str) -> Result<Value> {
        let ran = self.exec(&format!("/usr/bin/format-guard {line} --json"))?;
        serde_json::from_str(&ran.text).with_context(|| ran.text.clone())
    }

    fn state(&self) -> Result<Value> {
        Ok(serde_json::from_str(&must(&format!("runc state {}", self.name))?)?)
    }

    /// The answer that a kubelet gets when it probes as the chart says.
    fn probe(&self, probe: &Value, ports: &Value) -> Result<bool> {
        if let Some(words) = probe["exec"]["command"].as_array() {
            let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
            return Ok(self.exec(&words.join(" "))?.status == 0);
        }
        let asked = &probe["httpGet"];
        let port = ports
            .as_array()
            .and_then(|ports| ports.iter().find(|port| port["name"] == asked["port"]))
            .with_context(|| format!("no port of {asked}"))?["containerPort"]
            .clone();
        let path = asked["path"].as_str().context("no path")?;
        let state = self.state()?;
        let get = format!(
            "nsenter --target {} --net busybox wget -q -O - http://127.0.0.1:{port}{path}",
            state["pid"]
        );
        Ok(run(&get)?.status == 0)
    }

    /// Waits until the pod is ready for its kubelet, and the guard is in force.
    fn is_in_force(&self, chart: &Chart) -> Result<()> {
        // The network namespace is new and its loopback is down, as a plugin of the cluster's network would
        // leave it.
        must(&format!("nsenter --target {} --net ip link set lo up", self.state()?["pid"]))?;
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            ensure!(chart.agent[probe].is_object(), "the chart has no {probe}");
            wait_for(probe, || {
                ensure!(self.state()?["status"] == "running", "it has ended");
                Ok(self.probe(&chart.agent[probe], &chart.agent["ports"])?.then_some(()))
            })
            .with_context(|| self.log())?;
        }
        let status = self.json("status")?;
        ensure!(
            status["tier"] == "lsm" && status["proven"] == true && status["mode"] == "enforce",
            "{status}"
        );
        Ok(())
    }

    /// Ends the container as its kubelet does.
    fn stop(self) -> Result<()> {
        must(&format!("runc kill {} TERM", self.name))?;
        wait_for("the container to end", || Ok((self.state()?["status"] == "stopped").then_some(())))
            .with_context(|| self.log())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = run(&format!("runc delete --force {}", self.name));
    }
}

fn bundle(name: &str, configuration: &Value) -> Result<PathBuf> {
    let bundle = Path::new(ROOT).join(name);
    fs::create_dir_all(&bundle)?;
    fs::write(bundle.join("config.json"), configuration.to_string())?;
    Ok(bundle)
}

/// Runs a line in a container like a CSI driver's: privileged, with the node's devices, and programs of its
/// own.
fn in_a_driver(line: &str, change: impl FnOnce(&mut Value)) -> Result<Ran> {
    let root = Path::new(ROOT).join("driver-root");
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind", "rslave", "rw"]}),
        json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}),
    ];
    for name in ["bin", "sbin", "lib", "lib64", "usr", "etc"] {
        let from = fs::canonicalize(Path::new("/").join(name))?;
        fs::create_dir_all(root.join(name))?;
        mounts.push(json!({
            "destination": format!("/{name}"), "type": "bind", "source": from, "options": ["rbind", "ro"]
        }));
    }
    for name in ["proc", "dev", "tmp"] {
        fs::create_dir_all(root.join(name))?;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut configuration = privileged(&root, &words, &mounts, false);
    change(&mut configuration);
    let bundle = bundle("driver", &configuration)?;
    let mut runc = Command::new("runc");
    runc.args(["run", "--bundle"]).arg(bundle).arg("driver");
    run_command(runc, line, "")
}

/// A volume that kubelet had mounted before the agent's pod began.
struct Staged(Loop);

impl Staged {
    const POINT: &str = "/var/lib/kubelet/plugins/kubernetes.io/csi/driver/globalmount";

    fn new() -> Result<Self> {
        // systemd leaves a node's root shared; a guest's first process does not.
        must("mount --make-rshared /")?;
        fs::create_dir_all(Self::POINT)?;
        let device = Loop::new(16)?;
        must(&format!("mkfs.ext4 -F -q {}", device.path().display()))?;
        must(&format!("mount {} {}", device.path().display(), Self::POINT))?;
        Ok(Self(device))
    }

    /// Unmounts the volume as a node does before it detaches it, so that nothing holds it.
    fn unstage(self) -> Result<()> {
        must(&format!("umount {}", Self::POINT))?;
        let exclusive = fs::File::options().read(true).custom_flags(libc::O_EXCL).open(self.0.path());
        exclusive.map(drop).context("a volume that the node has unmounted is mounted in the agent's pod")
    }
}

/// Checks that the driver's formatter is refused, and that no byte has changed.
fn is_kept(known: &str, when: &str) -> Result<()> {
    for line in
        [format!("mkfs.ext4 -F {VOLUME}"), format!("dd if=/dev/zero of={VOLUME} bs=4k count=1 conv=fsync")]
    {
        let ran = in_a_driver(&line, |_| {})?;
        ensure!(ran.status != 0 && ran.text.contains("Operation not permitted"), "{when}: {ran:?}");
    }
    ensure!(sha256(Path::new(VOLUME))? == known, "{when}: bytes have changed");
    Ok(())
}

#[test]
#[ignore = "it needs a node, an image and a rendered chart: cargo xtask test runs it"]
fn the_daemonset_guards_its_node() -> Result<()> {
    module("virtio_blk")?;
    must(&format!("mkfs.ext4 -F -q {VOLUME}"))?;
    let known = sha256(Path::new(VOLUME))?;
    let chart = Chart::read()?;
    let image = PathBuf::from(env::var("FORMAT_GUARD_IMAGE").context("FORMAT_GUARD_IMAGE names the image")?);
    // Before a guard runs, the same driver can format.
    let ran = in_a_driver("dd if=/dev/vdb of=/dev/vdb bs=4k count=1 conv=fsync", |_| {})?;
    ensure!(ran.status == 0, "{ran:?}");
    // Why the chart's container is privileged: with every capability, but only the devices of an ordinary
    // pod, it could read no volume.
    let ran = in_a_driver(&format!("dd if={VOLUME} of=/dev/null count=1"), |made| {
        made["linux"]["resources"]["devices"] = json!([{"allow": false, "access": "rwm"}]);
    })?;
    ensure!(ran.status != 0 && ran.text.contains("Operation not permitted"), "{ran:?}");

    let staged = Staged::new()?;
    let agent = Container::start("agent", &chart.configuration(&image)?)?;
    agent.is_in_force(&chart)?;
    staged.unstage()?;
    is_kept(&known, "with the agent")?;
    let events = agent.json("events")?;
    let told = events["events"].as_array().is_some_and(|events| {
        events.iter().any(|event| event["kind"] == "denied" && event.to_string().contains("mke2fs"))
            || events.iter().any(|event| event["kind"] == "denied" && event.to_string().contains("mkfs.ext4"))
    });
    ensure!(told, "the formatter is not named: {events}");
    wait_for("the blank volume to be armed", || {
        let volume = agent.json(&format!("volume show {BLANK}"))?;
        Ok((volume["state"] == "blank").then_some(()))
    })
    .with_context(|| agent.log())?;
    let first = in_a_driver(&format!("mkfs.ext4 {BLANK}"), |_| {})?;
    ensure!(first.status == 0, "{first:?}");
    let formatted = sha256(Path::new(BLANK))?;
    let second = in_a_driver(&format!("mkfs.ext4 -F {BLANK}"), |_| {})?;
    ensure!(second.status != 0 && sha256(Path::new(BLANK))? == formatted, "{second:?}");

    // An update: the old pod goes, the new one, of another image, comes.
    agent.stop()?;
    is_kept(&known, "between two pods")?;
    let newer = Path::new(ROOT).join("newer");
    must(&format!("cp -a {} {}", image.display(), newer.display()))?;
    let agent = Container::start("agent-of-the-update", &chart.configuration(&newer)?)?;
    agent.is_in_force(&chart)?;
    is_kept(&known, "with the new pod")?;
    // The new pod knows what the node had recorded.
    let volume = agent.json(&format!("volume show {BLANK}"))?;
    ensure!(volume["state"] == "formatted", "{volume}");
    ensure!(sha256(Path::new(BLANK))? == formatted, "bytes have changed");

    // The pod is killed, as for want of memory, and restarted.
    must(&format!("runc kill {} KILL", agent.name))?;
    wait_for("the container to be dead", || Ok((agent.state()?["status"] == "stopped").then_some(())))?;
    is_kept(&known, "after the death of the agent")?;
    drop(agent);
    let agent = Container::start("agent-again", &chart.configuration(&newer)?)?;
    agent.is_in_force(&chart)?;
    is_kept(&known, "at the end")?;
    if agent.log().contains("panicked") {
        bail!("{}", agent.log());
    }
    Ok(())
}
