# shellcheck shell=bash disable=SC2154
# Runs in namespaces of its own, after lines that set what is in capitals: makes the root, and types the line in it.
set -euo pipefail
mkdir "$WORK/changes" "$WORK/state" "$WORK/root"
mount -t overlay -o "lowerdir=$BASE,upperdir=$WORK/changes,workdir=$WORK/state" overlay "$WORK/root"
root=$WORK/root
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
cp /etc/resolv.conf /etc/hosts "$root/etc/"
# Where a proxy's certificate is this machine's, the newcomer's machine has it, too.
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
# cargo and rustup as they are when they are new: no tool beside them, no sources of core, nothing downloaded.
mkdir -p "$root/root/.cargo/bin" "$root/root/.rustup"
for program in cargo cargo-clippy cargo-fmt clippy-driver rustc rustdoc rustfmt rustup; do
    if [ -e "$CARGO/$program" ]; then cp -a "$CARGO/$program" "$root/root/.cargo/bin/"; fi
done
mkdir "$WORK/rustup-changes" "$WORK/rustup-state"
mount -t overlay -o "lowerdir=$RUSTUP,upperdir=$WORK/rustup-changes,workdir=$WORK/rustup-state" overlay "$root/root/.rustup"
rm -rf "$root"/root/.rustup/toolchains/*/lib/rustlib/src
git clone --quiet --no-hardlinks "$TREE" "$root$SOURCES"
exec chroot "$root" env -i HOME=/root USER=root TERM="${TERM:-dumb}" LANG=C.UTF-8 RUSTUP_AUTO_INSTALL=0 \
    PATH=/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    bash -c "cd $SOURCES && $LINE"
