#!/usr/bin/env bash
# A throw-away Slurm cluster of virtual nodes on loopback, as root, without systemd and cgroups.
#   tests/slurm.sh up N DIR [LINE...]   brings it up in a second; each LINE is added to slurm.conf
#   tests/slurm.sh node NAME DIR        starts the slurmd of a node again
#   tests/slurm.sh control DIR          starts slurmctld again
#   tests/slurm.sh down DIR             stops its jobs, their steps and its daemons
# It needs the packages slurm-wlm and munge.  SLURM_CONF=DIR/slurm.conf is for the commands.
# With the LINE AccountingStorageType=accounting_storage/slurmdbd it has accounting, as the account `all` of root: that takes some
# 5 s more, and the packages slurmdbd and mariadb-server.
set -euo pipefail

munge_up() {
    mkdir -p /run/munge /var/log/munge /var/lib/munge /etc/munge
    [ -s /etc/munge/munge.key ] || head -c 1024 /dev/urandom > /etc/munge/munge.key
    chown -R munge:munge /etc/munge /run/munge /var/log/munge /var/lib/munge
    chmod 400 /etc/munge/munge.key; chmod 755 /run/munge
    munge -n >/dev/null 2>&1 && return
    touch "$dir/munged"  # it is ours to stop
    setpriv --reuid munge --regid munge --clear-groups "$(command -v munged || echo /usr/sbin/munged)"
    for _ in $(seq 50); do munge -n >/dev/null 2>&1 && return; sleep 0.1; done
    echo "munged does not answer" >&2; return 1
}

configuration() { # configuration N LINE...
    local nodes=$1 host; host=$(hostname -s); shift
    cat <<C
ClusterName=loop
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
SlurmctldPort=16817
AccountingStorageHost=localhost
AccountingStoragePort=16819
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=5
KillWait=2
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=1
SlurmdParameters=config_overrides
C
    for i in $(seq "$nodes"); do
        echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((17000 + i)) CPUs=8 RealMemory=8000 State=UNKNOWN"
    done
    echo "PartitionName=main Nodes=n[1-$nodes] Default=YES MaxTime=INFINITE State=UP"
    printf '%s\n' "$@"
}

accounting() { # brings up a database and slurmdbd
    mariadb-install-db --no-defaults --user=root --datadir="$dir/db" --auth-root-authentication-method=normal --skip-test-db >/dev/null
    setsid mariadbd --no-defaults --user=root --datadir="$dir/db" --socket="$dir/db.sock" --bind-address=127.0.0.1 --port=16833 \
        --pid-file="$dir/mariadbd.pid" --innodb-buffer-pool-size=64M >"$dir/log/mariadbd.log" 2>&1 </dev/null &
    for _ in $(seq 100); do mariadb-admin --no-defaults -S "$dir/db.sock" ping >/dev/null 2>&1 && break; sleep 0.1; done
    mariadb --no-defaults -S "$dir/db.sock" -e "CREATE USER slurm@'%' IDENTIFIED BY 'slurm'; GRANT ALL ON *.* TO slurm@'%'"
    (umask 077; cat > "$dir/slurmdbd.conf") <<C
AuthType=auth/munge
DbdHost=localhost
DbdPort=16819
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=16833
StorageUser=slurm
StoragePass=slurm
PidFile=$dir/slurmdbd.pid
LogFile=$dir/log/slurmdbd.log
C
    slurmdbd
    for _ in $(seq 100); do sacctmgr -n show cluster >/dev/null 2>&1 && break; sleep 0.1; done
    sacctmgr -i -Q add cluster loop; sacctmgr -i -Q add account all; sacctmgr -i -Q add user root account=all
}

steps() { # the slurmstepd of this cluster: their environment tells
    local pid
    for pid in $(ps -eo pid=,comm= | awk '$2 == "slurmstepd" {print $1}'); do
        tr '\0' '\n' 2>/dev/null < "/proc/$pid/environ" | grep -qxF "SLURM_CONF=$SLURM_CONF" && echo "$pid"
    done
    return 0
}

running() { # running NAME PID...: those of the pids that are alive and have that name, since a pid file may be stale
    local name=$1 pid; shift
    for pid in "$@"; do
        case $(ps -o stat=,comm= -p "$pid") in Z*) ;; *" $name") echo "$pid" ;; esac
    done
}

stop() { # stop NAME PID...: TERM, and KILL after 2 s
    local i name=$1; shift
    for i in $(seq 30); do
        set -- $(running "$name" "$@"); [ $# -eq 0 ] && return
        [ "$i" = 1 ] && kill "$@" 2>/dev/null || true
        [ "$i" = 20 ] && kill -9 "$@" 2>/dev/null || true
        sleep 0.1
    done
}

verb=$1; shift
[ "$verb" = up ] || [ "$verb" = node ] && { first=$1; shift; }
mkdir -p "$1"; dir=$(cd "$1" && pwd); shift
export SLURM_CONF=$dir/slurm.conf
case $verb in
up)
    mkdir -p "$dir"/state "$dir"/spool "$dir"/log
    munge_up
    host=$(hostname -s)
    grep -q "[[:space:]]$host\$" /etc/hosts || echo "127.0.0.1 $host" >> /etc/hosts
    configuration "$first" "$@" > "$SLURM_CONF"
    printf '%s\n' CgroupPlugin=cgroup/v1 ConstrainRAMSpace=yes > "$dir/cgroup.conf"  # for TaskPlugin=task/cgroup
    case "$*" in *storage/slurmdbd*) accounting ;; esac
    slurmctld -f "$SLURM_CONF"
    for i in $(seq "$first"); do slurmd -N "n$i" -f "$SLURM_CONF"; done
    for _ in $(seq 100); do
        [ "$(sinfo -h -o %T 2>/dev/null | sort -u)" = idle ] && exit 0
        sleep 0.1
    done
    echo "the nodes did not become idle: see $dir/log" >&2; exit 1 ;;
node)
    slurmd -N "$first" -f "$SLURM_CONF" ;;
control)
    slurmctld -f "$SLURM_CONF" ;;
down)
    set +e
    for pid in $(steps); do
        own=$(ps -o pgid= -p "$pid")
        kill -9 "$pid" $(ps -o pgid= --ppid "$pid" | awk -v own="$own" '$1 != own + 0 {print "-" $1}') 2>/dev/null
    done
    stop slurmctld $(cat "$dir/slurmctld.pid" 2>/dev/null)
    stop slurmd $(cat "$dir"/slurmd-*.pid 2>/dev/null)
    stop slurmdbd $(cat "$dir/slurmdbd.pid" 2>/dev/null)
    stop mariadbd $(cat "$dir/mariadbd.pid" 2>/dev/null)
    grep -q ^TaskPlugin=task/cgroup "$SLURM_CONF" && find /sys/fs/cgroup/*/slurm_n* -depth -type d -exec rmdir {} +
    [ -e "$dir/munged" ] && stop munged $(cat /run/munge/munged.pid 2>/dev/null)
    exit 0 ;;
esac
