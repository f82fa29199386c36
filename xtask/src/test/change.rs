//! What has changed, by git.

use anyhow::{Result, bail};

use crate::command::{command, output, workspace};

/// The output of git, if it succeeds.
fn git(words: &[&str], variables: &[(&str, &str)]) -> Option<String> {
    let mut git = command("git", words);
    git.current_dir(workspace()).envs(variables.iter().copied());
    let said = output(&mut git).ok()?;
    said.status.success().then(|| String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// The commit that a change is counted from: the named one, else the last one that passed here, else the
/// parent of HEAD. `None` if there is none of these: then everything counts as changed.
pub(crate) fn base(named: Option<&str>, good: Option<&str>) -> Result<Option<String>> {
    let commit = |name: &str| git(&["rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")], &[]);
    if let Some(named) = named {
        return match commit(named) {
            Some(commit) => Ok(Some(commit)),
            None => bail!("git knows no commit {named}"),
        };
    }
    let is_before = |good: &&str| git(&["merge-base", "--is-ancestor", good, "HEAD"], &[]).is_some();
    Ok(good.filter(is_before).and_then(commit).or_else(|| commit("HEAD^")))
}

/// Paths that differ from that commit, including uncommitted changes.
pub(crate) fn since(base: &str) -> Option<Vec<String>> {
    let differ = git(&["diff", "--name-only", base], &[])?;
    let new = git(&["ls-files", "--others", "--exclude-standard"], &[])?;
    Some(differ.lines().chain(new.lines()).map(str::to_owned).collect())
}

/// The commit of HEAD, if the work tree is clean.
pub(crate) fn clean_head() -> Option<String> {
    let status = git(&["status", "--porcelain"], &[])?;
    if status.is_empty() { git(&["rev-parse", "HEAD"], &[]) } else { None }
}

/// A name for the work tree as it is, committed or not: equal trees have equal names.
pub(crate) fn tree() -> Option<String> {
    let directory = tempfile::tempdir().ok()?;
    let index = directory.path().join("index");
    let index = [("GIT_INDEX_FILE", index.to_str()?)];
    git(&["add", "--all"], &index)?;
    git(&["write-tree"], &index)
}
