# shellcheck shell=bash
# Named steps: skip what is done, time what is not, show that it moves, and on failure show why.

say() { printf '%s\n' "$*"; }

# die MESSAGE [REMEDY]
die() {
    printf 'setup: %s\n' "$1" >&2
    [[ -z ${2-} ]] || printf '  fix: %s\n' "$2" >&2
    exit 1
}

wait_for_another_setup() {
    mkdir -p "$(dirname "$LOG")"
    exec 9>"$LOG.lock"
    flock --nonblock 9 && return
    say "another setup is at work in this checkout; waiting for it"
    flock 9
}

begin_log() { : >"$LOG"; }

# step NAME IS_DONE WORK: IS_DONE may print a remark; WORK's output goes to the log.
step() {
    local name=$1 is_done=$2 work=$3 begin=$SECONDS remark status ticker
    if remark=$("$is_done"); then
        printf '  %-24s there already%s\n' "$name" "${remark:+: $remark}"
        return
    fi
    [[ -t 1 ]] || printf '  %-24s ...\n' "$name"
    show_progress "$name" &
    ticker=$!
    set +e # in a condition, bash would ignore set -e inside WORK as well
    (
        set -e
        "$work"
    ) >>"$LOG" 2>&1 9>&-
    status=$?
    set -e
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    [[ ! -t 1 ]] || printf '\r\033[K'
    [[ $status -eq 0 ]] || explain_failure "$name" "$status"
    remark=$("$is_done") || explain_failure "$name, which did not bring what it should" 1
    printf '  %-24s done in %d s%s\n' "$name" $((SECONDS - begin)) "${remark:+: $remark}"
}

# On a terminal one line that changes every second, elsewhere a line every 20 seconds.
show_progress() {
    local name=$1 second
    exec 9>&-
    # The last sleep outlives this loop: it must not keep a reader of our output waiting.
    for ((second = 1; ; second++)); do
        sleep 1 >/dev/null 2>&1
        kill -0 $$ 2>/dev/null || return
        if [[ -t 1 ]]; then
            printf '\r\033[K  %-24s %d s  %.60s' "$name" "$second" "$(last_log_line)"
        elif ((second % 20 == 0)); then
            printf '  %-24s %d s  %.80s\n' "$name" "$second" "$(last_log_line)"
        fi
    done
}

last_log_line() { tail -n 20 "$LOG" | without_noise | tail -n 1 | tr -cd '[:print:]'; }

# pip warns of every package that a local index lacks; that is no trouble and hides what is.
without_noise() { grep -v -e 'is ignored: it is neither' -e '^[[:space:]]*$' || true; }

explain_failure() {
    local name=$1 status=$2
    printf '\nsetup: failed at: %s (status %d)\n' "$name" "$status" >&2
    without_noise <"$LOG" | tail -n 15 | sed 's/^/  | /' >&2
    printf '  log: %s\n' "$LOG" >&2
    exit 1
}

# A stamp says with which inputs a step was last done.
stamp_is() { [[ -f $VENV/.setup/$1 && $(<"$VENV/.setup/$1") == "$2" ]]; }

put_stamp() {
    mkdir -p "$VENV/.setup"
    printf '%s\n' "$2" >"$VENV/.setup/$1"
}
