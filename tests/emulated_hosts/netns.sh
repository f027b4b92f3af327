#!/bin/bash
# Emulated hosts: N network namespaces on one switch, each port with a line rate, each path with a one-way delay.
#
#   netns.sh up N RATE [DELAY]     e.g.  netns.sh up 4 1gbit 0.5ms      netns.sh up 2 100mbit 20ms
#   netns.sh run I CMD...          run CMD in namespace I, with a host name of its own
#   netns.sh show | down
#
# Environment: PREFIX (default tfd) names the namespaces PREFIX0..PREFIX(N-1); MODE=tap (default) or tbf; CC_ALGO (default: the
# machine's own) is the TCP congestion control inside; QUEUE_MS (default 20) the queue behind each port of the switch.
# Interface eth0, addresses 10.77.0.1.., MTU 1500, all inside the namespaces: nothing is added to the machine's own network.
#   tap  a switch in user space (netsw.c, built with gcc on first use; needs /dev/net/tun): rate and delay, at any kernel
#   tbf  veth pairs on a bridge in namespace PREFIXsw, tc tbf both ways, and tc netem for the delay where the kernel has sch_netem
# Round-trip time is 2 x DELAY. Needs root and iproute2.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cmd=${1:-}; shift || true
PREFIX=${PREFIX:-tfd} MODE=${MODE:-tap} CC_ALGO=${CC_ALGO:-} QUEUE_MS=${QUEUE_MS:-20}
state=${TMPDIR:-/tmp}/netns-$PREFIX
die() { echo "$*" >&2; exit 2; }
spaces() { ip netns list | awk '{print $1}' | grep -E "^${PREFIX}([0-9]+|sw)$" || true; }

down() {
  if [ -f "$state/pid" ]; then
    local pid; pid=$(cat "$state/pid")
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = netsw ]; then
      kill "$pid" 2>/dev/null || true
      for _ in $(seq 40); do readlink "/proc/$pid/exe" >/dev/null 2>&1 || break; sleep 0.05; done
    fi
    rm -f "$state/pid"
  fi
  local ns; for ns in $(spaces); do ip netns del "$ns"; done
}

number() {  # "1gbit" -> bits per second; "0.5ms" -> microseconds
  python3 - "$1" <<'PY'
import re, sys
n, u = re.fullmatch(r"([\d.]+)([a-z]*)", sys.argv[1]).groups()
print(int(float(n) * {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "us": 1, "ms": 1e3, "s": 1e6, "": 1}[u]))
PY
}

case "$cmd" in
up)
  [ $# -ge 2 ] || die "usage: netns.sh up N RATE [DELAY]"
  n=$1 rate=$2 delay=${3:-0}
  bits=$(number "$rate") us=$(number "$delay")
  down
  mkdir -p "$state"
  for i in $(seq 0 $((n - 1))); do ip netns add "$PREFIX$i"; ip -n "$PREFIX$i" link set lo up; done
  if [ "$MODE" = tap ]; then
    if [ ! -x "$state/netsw" ] || [ "$here/netsw.c" -nt "$state/netsw" ]; then gcc -O2 -o "$state/netsw" "$here/netsw.c"; fi
    names=(); for i in $(seq 0 $((n - 1))); do names+=("$PREFIX$i"); done
    rm -f "$state/out"
    setsid "$state/netsw" "$bits" "$us" "$((QUEUE_MS * 1000))" "${names[@]}" >"$state/out" 2>"$state/err" </dev/null &
    echo $! >"$state/pid"
    for _ in $(seq 100); do grep -qs ready "$state/out" && break; sleep 0.05; done
    grep -qs ready "$state/out" || { cat "$state/err" >&2; die "the switch did not start"; }
    disown
  else
    sw=${PREFIX}sw
    ip netns add "$sw"; ip -n "$sw" link set lo up
    ip -n "$sw" link add br0 type bridge; ip -n "$sw" link set br0 up
    burst=$((bits / 8000)); [ $burst -ge 131072 ] || burst=131072   # 1 ms of the rate, at least two 64 KiB segments
    for i in $(seq 0 $((n - 1))); do
      ip -n "$sw" link add "p$i" type veth peer name eth0 netns "$PREFIX$i"
      ip -n "$sw" link set "p$i" master br0 up
      ip netns exec "$PREFIX$i" tc qdisc add dev eth0 root handle 1: tbf rate "$rate" burst $burst latency "${QUEUE_MS}ms"
      ip netns exec "$sw" tc qdisc add dev "p$i" root handle 1: tbf rate "$rate" burst $burst latency "${QUEUE_MS}ms"
      if [ "$us" -gt 0 ]; then
        ip netns exec "$PREFIX$i" tc qdisc add dev eth0 parent 1:1 handle 10: netem delay "$delay" limit 20000 ||
          { down; die "no sch_netem in this kernel: use MODE=tap"; }
      fi
    done
  fi
  for i in $(seq 0 $((n - 1))); do
    ip -n "$PREFIX$i" addr add "10.77.0.$((i + 1))/24" dev eth0
    ip -n "$PREFIX$i" link set eth0 mtu 1500 gso_max_size 16384 txqueuelen 1000 up
    # a namespace may use only what the machine allows everywhere (net.ipv4.tcp_allowed_congestion_control)
    [ -z "$CC_ALGO" ] || ip netns exec "$PREFIX$i" sysctl -qw net.ipv4.tcp_congestion_control="$CC_ALGO"
    ip netns exec "$PREFIX$i" sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1 2>/dev/null || true
  done
  ;;
run)
  [ $# -ge 2 ] || die "usage: netns.sh run I CMD..."
  i=$1; shift
  exec ip netns exec "$PREFIX$i" unshare --uts sh -c 'hostname "$0"; exec "$@"' "$PREFIX$i" "$@"
  ;;
show)
  for ns in $(spaces); do
    echo "== $ns"; ip -n "$ns" -br addr; ip netns exec "$ns" tc -s qdisc | grep -v noqueue || true
  done
  [ ! -f "$state/pid" ] || echo "switch: pid $(cat "$state/pid")"
  ;;
down) down ;;
*) sed -n '2,15p' "$0" | sed 's/^# \{0,1\}//'; exit 2 ;;
esac
