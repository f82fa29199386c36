//! A module uses those below it, and none above: no circle among the modules of a crate, and no arrow that
//! runs back up.
//!
//! What counts is what a file names by `crate::` and `super::`. That a part of a module names the module that
//! it is a part of is no circle: it is one thing in two files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{UseTree, visit::Visit};

/// Crates of the workspace whose modules are looked at.
const CRATES: [&str; 9] = [
    "format-guard",
    "format-guard-common",
    "format-guard-ebpf",
    "format-guard-preload",
    "model",
    "tests",
    "tests/etcd",
    "tests/kubernetes",
    "xtask",
];

/// The layers of `format-guard`, from the ground up; those of one line stand side by side and name nothing of
/// each other. A folder's own are stated after it.
const LAYERS: &[(&str, &[&[&str]])] = &[
    (
        "",
        &[
            &["cgroup", "fault", "mode", "policy", "process", "tier"],
            &["volume"],
            &["config"],
            &["record"],
            &["enforce"],
            &["api"],
            &["agent"],
            &["cli", "fuzzing"],
        ],
    ),
    (
        "volume",
        &[
            &["identities", "lvm", "provisioned", "sysfs"],
            &["identity", "marks", "topology"],
            &["copies", "device", "unwritten", "zoned"],
            &["graph", "probe"],
        ],
    ),
    (
        "record",
        &[&["attachment", "history"], &["shared"], &["transition"], &["merge"], &["store"], &["sqlite"]],
    ),
    ("enforce", &[&["canary", "report", "rule"], &["error", "programs"], &["bpf", "preload"]]),
    (
        "enforce::bpf",
        &[
            &["lines", "offsets", "pins", "syscall", "verifier_log"],
            &["hooks", "modify_return", "slots"],
            &["load", "self_protection"],
        ],
    ),
    (
        "agent",
        &[
            &[
                "container",
                "detach",
                "kernel_lines",
                "kernel_log",
                "kubernetes",
                "mappings",
                "message",
                "metrics",
            ],
            &[
                "closing",
                "desired_claims",
                "holding",
                "kernel_events",
                "kubernetes_events",
                "prober",
                "process_exit",
                "queue",
                "uevents",
            ],
            &["claims", "reconciler", "service_manager"],
            &["server"],
            &["tiers"],
        ],
    ),
];

/// A module by its path; the root of the crate is the empty one.
type Module = Vec<String>;
/// Which modules each one names.
type Graph = BTreeMap<Module, BTreeSet<Module>>;

fn name(module: &[String]) -> String {
    module.join("::")
}

/// The modules below a folder of sources, each with its file. Tests may name what they like.
fn modules(sources: &Path) -> BTreeMap<Module, PathBuf> {
    let mut found = BTreeMap::new();
    let mut folders = vec![(Module::new(), sources.to_owned())];
    while let Some((at, folder)) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let inner = || at.iter().cloned().chain([stem.clone()]).collect::<Module>();
            if path.is_dir() {
                if stem != "bin" && stem != "tests" {
                    folders.push((inner(), path));
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") && stem != "tests" {
                let is_root = at.is_empty() && matches!(stem.as_str(), "lib" | "main");
                found.insert(if stem == "mod" || is_root { at.clone() } else { inner() }, path);
            }
        }
    }
    found
}

/// Collects the paths that a file names.
#[derive(Default)]
struct Paths(Vec<Module>);

impl Paths {
    fn import(&mut self, before: &[String], tree: &UseTree) {
        let with = |name: String| before.iter().cloned().chain([name]).collect::<Module>();
        match tree {
            UseTree::Path(path) => self.import(&with(path.ident.to_string()), &path.tree),
            UseTree::Name(last) => self.0.push(with(last.ident.to_string())),
            UseTree::Rename(last) => self.0.push(with(last.ident.to_string())),
            UseTree::Glob(_) => self.0.push(before.to_vec()),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.import(before, tree)),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.import(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        syn::visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let is_test = |attribute: &syn::Attribute| {
            attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
        };
        if !item.attrs.iter().any(is_test) {
            syn::visit::visit_item_mod(self, item);
        }
    }
}

/// The module of the crate that a path in `at` leads into; none where it leads out of the crate.
fn resolve(at: &[String], path: &[String], modules: &BTreeMap<Module, PathBuf>) -> Option<Module> {
    let first = path.first()?;
    let mut full: Module = match first.as_str() {
        "crate" => path[1..].to_vec(),
        "self" => at.iter().chain(&path[1..]).cloned().collect(),
        "super" => {
            let ups = path.iter().take_while(|word| *word == "super").count();
            let base = at.len().checked_sub(ups)?;
            at[..base].iter().chain(&path[ups..]).cloned().collect()
        }
        _ => at.iter().chain(path).cloned().collect(),
    };
    let outside = !matches!(first.as_str(), "crate" | "self" | "super");
    while !modules.contains_key(&full) {
        full.pop()?;
    }
    // A word that is no module of this one is another crate's, or a name that was imported.
    (!outside || full.len() > at.len()).then_some(full)
}

fn graph(sources: &Path) -> Graph {
    let modules = modules(sources);
    let of = |(module, file): (&Module, &PathBuf)| {
        let text = fs::read_to_string(file).expect("a source");
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut paths = Paths::default();
        paths.visit_file(&parsed);
        let named = paths.0.iter().filter_map(|path| resolve(module, path, &modules));
        (module.clone(), named.filter(|other| !module.starts_with(other)).collect())
    };
    modules.iter().map(of).collect()
}

/// Modules that can be reached from this one.
fn reached<'a>(graph: &'a Graph, from: &'a Module) -> BTreeSet<&'a Module> {
    let mut seen = BTreeSet::new();
    let mut next: Vec<&Module> = graph[from].iter().collect();
    while let Some(module) = next.pop() {
        if seen.insert(module) {
            next.extend(&graph[module]);
        }
    }
    seen
}

/// Sets of modules each of which leads to each other one.
fn circles(graph: &Graph) -> BTreeSet<BTreeSet<String>> {
    let reached: BTreeMap<&Module, BTreeSet<&Module>> =
        graph.keys().map(|module| (module, reached(graph, module))).collect();
    let with = |module: &Module| {
        let leads_back = reached[module].iter().filter(|other| reached[*other].contains(module));
        leads_back.map(|other| name(other)).collect::<BTreeSet<String>>()
    };
    graph.keys().map(with).filter(|circle| !circle.is_empty()).collect()
}

/// Modules of each folder, and which of its neighbours each one names in whatever file of its own.
fn neighbours(graph: &Graph, folder: &[String]) -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let child = |module: &Module| module.strip_prefix(folder)?.first().cloned();
    let mut all: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for (module, named) in graph {
        let Some(own) = child(module) else { continue };
        let arrows = all.entry(own.clone()).or_default();
        for other in named {
            if let Some(theirs) = child(other).filter(|theirs| *theirs != own) {
                arrows.entry(theirs).or_default().insert(format!("{} -> {}", name(module), name(other)));
            }
        }
    }
    all
}

fn sources(package: &str) -> PathBuf {
    // Another tree, to count what an older one has.
    let root = std::env::var_os("FORMAT_GUARD_TREE");
    let root = root.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), PathBuf::from);
    root.join(package).join("src")
}

#[test]
fn no_modules_name_each_other_in_a_circle() {
    let mut found = Vec::new();
    for package in CRATES {
        for circle in circles(&graph(&sources(package))) {
            found.push(format!("{package}: {}", circle.into_iter().collect::<Vec<_>>().join(", ")));
        }
    }
    assert!(found.is_empty(), "{} circles:\n{}", found.len(), found.join("\n"));
}

#[test]
fn no_arrow_runs_back_up() {
    let graph = graph(&sources("format-guard"));
    let mut found = BTreeSet::new();
    for (folder, layers) in LAYERS {
        let folder: Module = folder.split("::").filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let layer = |module: &str| layers.iter().position(|layer| layer.contains(&module));
        for (module, named) in neighbours(&graph, &folder) {
            let Some(own) = layer(&module) else {
                found.insert(format!("{}::{module} stands in no layer", name(&folder)));
                continue;
            };
            for (other, arrows) in named {
                if layer(&other).is_none_or(|theirs| theirs >= own) {
                    found.extend(arrows);
                }
            }
        }
    }
    assert!(
        found.is_empty(),
        "{} arrows:\n{}",
        found.len(),
        found.into_iter().collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn a_circle_and_an_arrow_up_are_seen() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
    write("lib.rs", "mod a; mod b; mod c;");
    write("a.rs", "use crate::b::{self, B};");
    write("b.rs", "fn f() { super::c::g(); }");
    write("c.rs", "#[cfg(test)] mod tests { use crate::b; }");
    assert!(circles(&graph(folder.path())).is_empty());
    write("c.rs", "use super::{a::A, b};");
    let all: BTreeSet<String> = ["a", "b", "c"].map(str::to_owned).into();
    assert_eq!(circles(&graph(folder.path())), BTreeSet::from([all]));
    let arrows = neighbours(&graph(folder.path()), &[]);
    assert_eq!(arrows["c"].keys().collect::<Vec<_>>(), ["a", "b"]);
}
