#!/bin/sh
# Runs a command in a built image's root as a container runtime would: enter.sh ROOT USER:GROUP TMPFS COMMAND...
# Read-only root, a /tmp with the options TMPFS, /dev/shm, /proc, no privilege to gain; in namespaces of its own.
set -eu
root=$1 user=$2 tmpfs=$3
shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o size=512m shm "$root/dev/shm"
mount -t tmpfs -o "size=2g,$tmpfs" tmp "$root/tmp"
exec setpriv --no-new-privs chroot --userspec="$user" --groups="${user#*:}" "$root" "$@"
