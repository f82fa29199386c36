#!/bin/busybox sh
# shellcheck shell=dash
# The guest's init: reaches the host's root over 9p, puts memory over it, and goes on there with run.sh.
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin:/sbin:/usr/sbin
die() {
    echo "init: $*" >/dev/kmsg
    reboot -f
}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
    insmod "$module" || die "insmod $module"
done
options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "$options,ro,cache=loose" root /lower || die "root"
mount -t tmpfs -o size=85%,mode=755 tmpfs /upper
mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /new || die "overlay"
cd /new || die "new root"
mkdir -p proc sys dev run mnt lib/modules
mount --move /proc proc
mount --move /sys sys
mount --move /dev dev
mkdir -p dev/pts dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -sf /proc/self/fd dev/fd
for stream in 0:stdin 1:stdout 2:stderr; do
    ln -sf "fd/${stream%:*}" "dev/${stream#*:}"
done
mount -t tmpfs -o mode=755 tmpfs run
mkdir -p run/guest run/lock run/udev
mount -t 9p -o "$options,cache=none" control run/guest || die "control"
mount -t 9p -o "$options,ro,cache=loose" modules lib/modules || die "modules"
mount -t securityfs securityfs sys/kernel/security
mount -t bpf bpf sys/fs/bpf
mount -t cgroup2 cgroup2 sys/fs/cgroup
cp /run.sh run/run.sh
cp /bin/busybox run/busybox
exec switch_root /new /bin/sh /run/run.sh
