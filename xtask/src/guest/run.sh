#!/bin/sh
# Process 1 of the guest: runs the command, writes its output to the port "out" and its status beside the command. Where
# the boot parameters say guest.init=systemd the command is run to prepare, then systemd is process 1, and a unit of its
# runs the command again.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb

# Runs the command with its output to the port, and ends the guest.
command_and_end() {
    exec 3>/run/output
    # The fifo stayed open between two who write to it.
    kill "$(cat /run/holder)"
    setsid sh /run/guest/command </dev/null >&3 2>&3
    echo $? >/run/guest/status.new
    exec 3>&-
    # A daemon that the command left may hold the output open.
    tries=0
    while kill -0 "$(cat /run/reader)" 2>/dev/null && [ "$tries" -lt 40 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
    sync
    mv /run/guest/status.new /run/guest/status
    busybox reboot -f
}
# shellcheck disable=SC3045 # dash and busybox have both
limits() {
    ulimit -l unlimited
    ulimit -n 65536
}

if [ "$1" = unit ]; then
    limits
    command_and_end
fi
ip link set lo up 2>/dev/null || busybox ifconfig lo 127.0.0.1 up
hostname guest 2>/dev/null
limits
for port in /sys/class/virtio-ports/*; do
    if [ "$(cat "$port/name")" = out ]; then
        out=/dev/${port##*/}
    fi
done
mkfifo /run/output
sleep 100000 >/run/output &
echo $! >/run/holder
cat </run/output >"$out" &
echo $! >/run/reader
if ! grep -q 'guest.init=systemd' /proc/cmdline; then
    command_and_end
fi
# Nothing of the host's own services, and its temporary files stay.
rm -rf /etc/systemd/system/*.wants /etc/fstab /usr/lib/tmpfiles.d/tmp.conf
: >/etc/fstab
if ! GUEST_PHASE=prepare sh /run/guest/command </dev/null >/run/output 2>&1; then
    echo 1 >/run/guest/status.new
    sleep 1
    mv /run/guest/status.new /run/guest/status
    busybox reboot -f
fi
mkdir -p /run/systemd/system
cat >/run/systemd/system/guest.service <<EOF
[Unit]
After=multi-user.target
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/bin/sh /run/run.sh unit
EOF
cat >/run/systemd/system/guest.target <<EOF
[Unit]
Requires=multi-user.target guest.service
After=multi-user.target
EOF
exec /lib/systemd/systemd --unit=guest.target
