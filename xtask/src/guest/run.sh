#!/bin/sh
# Process 1 of the guest: runs the command, writes its output to the port "out" and its status beside the command. Where
# the boot parameters say guest.init=systemd the command is run to prepare, then systemd is process 1, and a unit of its
# runs the command again.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb

# Ends the guest with this status, once all of the output is written.
end() {
    echo "$1" >/run/guest/status.new
    exec 3>&-
    # A daemon that the command left may hold the output open.
    tries=0
    while kill -0 "$(cat /run/reader)" 2>/dev/null && [ "$tries" -lt 40 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
    sync
    mv /run/guest/status.new /run/guest/status
    /run/busybox reboot -f
}
command_and_end() {
    setsid sh /run/guest/command </dev/null >&3 2>&3
    end $?
}
# shellcheck disable=SC3045 # dash and busybox have both
limits() {
    ulimit -l unlimited
    ulimit -n 65536
}

if [ "$1" = unit ]; then
    limits
    exec 3>/run/output
    kill "$(cat /run/holder)"
    command_and_end
fi
ip link set lo up 2>/dev/null || /run/busybox ifconfig lo 127.0.0.1 up
hostname guest 2>/dev/null
limits
for port in /sys/class/virtio-ports/*; do
    if [ "$(cat "$port/name")" = out ]; then
        out=/dev/${port##*/}
    fi
done
mkfifo /run/output
cat </run/output >"$out" &
echo $! >/run/reader
exec 3>/run/output
if ! grep -q 'guest.init=systemd' /proc/cmdline; then
    command_and_end
fi
# Nothing of the host's own services, and its temporary files stay.
rm -rf /etc/systemd/system/*.wants /etc/fstab /usr/lib/tmpfiles.d/tmp.conf
: >/etc/fstab
GUEST_PHASE=prepare sh /run/guest/command </dev/null >&3 2>&3 || end 1
# systemd closes what it inherits: until the unit writes, somebody else keeps the output open.
sleep 100000 >&3 &
echo $! >/run/holder
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
