# The first process of a node, in namespaces of its own (network, mounts, processes, host name, IPC): puts directories of its own where
# Kubernetes and its neighbours have what is one for a whole machine, says so, and waits for the end of its input. When it ends the
# kernel ends every process of the node and undoes the mounts. $1: its name, $2: its directory, $3: the lab's, which that is in, below
# /run, $4: the control group of its pods.
set -e
hostname "$1"
for part in run lib opt log etc etc.work cgroup; do mkdir -p "$2/$part"; done

# A new view of the devices is that of the node; the control groups stay the machine's, but for the hierarchy of version 2
# beside those of version 1: a runtime that sees both takes it for a third sort.
mount --rbind /sys/fs/cgroup "$2/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$2/cgroup" /sys/fs/cgroup
umount -l "$2/cgroup"
if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi
if [ -e /sys/fs/cgroup/cgroup.procs ]; then groups=/sys/fs/cgroup; else groups=$(echo /sys/fs/cgroup/*); fi
for top in $groups; do
    [ -e "$top/cgroup.procs" ] || continue
    mkdir -p "$top/$4"
    # Without them no process can be in the group.
    for part in cpus mems; do
        if [ -e "$top/$4/cpuset.$part" ] && [ -e "$top/cpuset.$part" ]; then cat "$top/cpuset.$part" >"$top/$4/cpuset.$part"; fi
    done
done

# Kubernetes asks it of every machine (kubeadm does not go on without).
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding

mount -t overlay -o "lowerdir=/etc,upperdir=$2/etc,workdir=$2/etc.work" etc /etc
mkdir -p /etc/cni/net.d /etc/kubernetes/manifests
mount -t tmpfs -o mode=0755 tmpfs "$2/run"
mkdir -p "$2/run/${3#/run/}" "$2/run/netns" "$2/run/containerd"
mount --rbind "$3" "$2/run/${3#/run/}"
mount --no-mtab --move "$2/run" /run
mount --bind "$2/lib" /var/lib
mount --bind "$2/log" /var/log
mount --bind "$2/opt" /opt
mkdir -p /opt/cni/bin
# Pods that mount a directory of the node's see what is mounted in it later.
mount --make-rshared /
echo ready
cat >/dev/null
:
