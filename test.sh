#!/bin/sh
# Tries the whole life of a job with the real program, in a directory of its own:
#   sh test.sh            (PYTHON=python3.8 sh test.sh for another Python)
# Plain POSIX sh: it runs under dash, bash 3.2 and busybox alike. test.ps1 is its twin.
set -u

here=$(cd "$(dirname "$0")" && pwd) || exit 1
PYTHON=${PYTHON:-python3}
case $PYTHON in
    */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;;
esac
dir=$(mktemp -d "${TMPDIR:-/tmp}/queuectl test.XXXXXX") || exit 1
unset QUEUECTL_DB
unset QUEUECTL_JOB_ID

queuectl() {
    "$PYTHON" "$here/queuectl.py" --db "$dir/queue.db" "$@"
}

finish() {
    queuectl worker stop --now >/dev/null 2>&1
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
    echo "test.sh: FAILED: $1" >&2
    queuectl list >&2
    exit 1
}

# wait_for STATE ID SECONDS: polls until the job is in that state.
wait_for() {
    tries=$(($3 * 5))
    while [ "$tries" -gt 0 ]; do
        state=$(state_of "$2") || fail "job $2 cannot be shown"
        [ "$state" = "$1" ] && return 0
        sleep 0.2 2>/dev/null || sleep 1
        tries=$((tries - 1))
    done
    fail "job $2 is '$state' after $3 s, not '$1'"
}

# The state of a job, read from the JSON that scripts rely on.
state_of() {
    queuectl show "$1" --json | "$PYTHON" -c 'import json, sys; print(json.load(sys.stdin)["state"])'
}

echo "1. workers start"
queuectl worker start --count 2 >"$dir/start.txt" || fail "worker start: exit status $?"
workers=$(queuectl worker list --json | "$PYTHON" -c 'import json, sys; print(len(json.load(sys.stdin)))')
[ "$workers" = 2 ] || fail "worker list knows of '$workers' workers, not of 2"

echo "2. a good job completes, with its output logged"
good=$(queuectl enqueue --name good echo "Hello   Queue") || fail "enqueue of the good job: exit status $?"
wait_for completed "$good" 10
[ "$(queuectl logs good)" = "Hello   Queue" ] || fail "the log of the good job is '$(queuectl logs good)'"
[ "$(queuectl list --state completed --json | grep -c Hello)" = 1 ] || fail "list --state completed does not show it"

echo "3. a failing job is tried again, after growing delays"
bad=$(queuectl enqueue --max-retries 2 --backoff-base 1.5 "exit 3") || fail "enqueue of the failing job: exit status $?"
wait_for dead "$bad" 20
queuectl show "$bad" --json >"$dir/bad.json" || fail "show: exit status $?"
"$PYTHON" - "$dir/bad.json" <<'PYTHON' || fail "the attempts of the failing job are not as they must be"
import datetime, json, sys

job = json.load(open(sys.argv[1]))
seconds = lambda text: datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
history = job["history"]
delays = [seconds(b["started_at"]) - seconds(a["finished_at"]) for a, b in zip(history, history[1:])]
print("   exit status %s, delays %s" % (job["exit_code"], ", ".join("%.2f s" % d for d in delays)))
assert [attempt["exit_code"] for attempt in history] == [3, 3, 3], history
assert len(delays) == 2 and 1.4 <= delays[0] < delays[1] and delays[1] >= 2.1, delays
PYTHON

echo "4. it is in the dead letter queue, and comes back from it"
queuectl dlq list | grep -q "exit 3" || fail "dlq list does not show the dead job"
queuectl dlq list | grep -q "Hello" && fail "dlq list shows a completed job"
queuectl worker stop >/dev/null || fail "worker stop: exit status $?"
queuectl dlq retry "$bad" >/dev/null || fail "dlq retry: exit status $?"
[ "$(state_of "$bad")" = pending ] || fail "after dlq retry the job is '$(state_of "$bad")', not pending"
[ "$(queuectl dlq list --json)" = "[]" ] || fail "dlq list still shows the job after dlq retry"

echo "5. the workers are gone"
[ "$(queuectl worker list --json)" = "[]" ] || fail "worker list still shows workers after worker stop"

echo "test.sh: all checks passed"
