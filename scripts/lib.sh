# Shared by the scripts beside it: where things are, how a step is run and reported. Sourced, never run.
# shellcheck shell=bash disable=SC2034

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
logs=$root/.cache/setup
venv=$root/.venv
started=$SECONDS

say() { printf '%s\n' "$*"; }

# On the way out: no background process stays, and setup never ends without a word of why.
beat='' explained=yes
leave() {
  local status=$?
  [[ -z $beat ]] || kill "$beat" 2>/dev/null || true
  if ((status != 0)) && [[ -z $explained ]]; then
    printf '%s: stopped with exit code %s before it was done\n' "${0##*/}" "$status" >&2
  fi
}
trap leave EXIT

# stop MESSAGE [REMEDY]: a wrong call or a missing piece; nothing was done.
stop() {
  explained=yes
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  if [[ -n ${2:-} ]]; then printf '  %s\n' "$2" >&2; fi
  exit 2
}

# need_value FLAG COUNT: a flag that takes a value was given one.
need_value() { (($2 > 1)) || stop "$1 needs a value" "See ${0##*/} --help"; }

# A sign of life for long steps: one line that is redrawn on a terminal, a line a minute elsewhere.
heartbeat() { # LOG
  trap - EXIT
  local begun=$SECONDS last width
  width=$(($(tput cols 2>/dev/null || echo 100) - 12))
  while sleep "$([[ -t 1 ]] && echo 1 || echo 60)"; do
    last=$(tail -n 1 -- "$1" 2>/dev/null | tr '\r\t' '  ' | cut -c "1-$width") || true
    if [[ -t 1 ]]; then
      printf '\r\033[K  %5d s  %s' $((SECONDS - begun)) "$last"
    else
      printf '  %5d s  %s\n' $((SECONDS - begun)) "$last"
    fi
  done
}

# The lines of a log that say why: compiler and package errors if there are any, else its end.
reason() { # LOG
  local errors
  errors=$({
    grep -m 1 -E 'CERTIFICATE_VERIFY_FAILED|NewConnectionError|ReadTimeoutError|Could not resolve' -- "$1"
    grep -m 6 -A 4 -E 'error:|^ERROR|^E: |CMake Error|No space left|Killed' -- "$1" | grep -v -E '^(FAILED: |/[^ ]*/(c\+\+|g\+\+|nvcc) |: && )'
  } | cut -c 1-400) || true
  if [[ -n $errors ]]; then
    printf '%s\n' "$errors" | head -n 24
  else
    tail -n 15 -- "$1" | cut -c 1-300
  fi | sed 's/^/    /'
}

# run_step NAME REMEDY COMMAND...: runs a command with its output in a log, and explains a failure.
run_step() {
  local name=$1 remedy=$2 begun=$SECONDS status=0 log
  shift 2
  log=$logs/$(tr 'A-Z /' 'a-z--' <<<"$name").log
  mkdir -p -- "$logs"
  : >"$log"
  heartbeat "$log" &
  beat=$!
  set +e
  (
    trap - EXIT
    set -e
    "$@"
  ) >"$log" 2>&1 </dev/null
  status=$?
  set -e
  kill "$beat" 2>/dev/null || true
  wait "$beat" 2>/dev/null || true
  beat=''
  if [[ -t 1 ]]; then printf '\r\033[K'; fi
  if ((status == 130)); then
    explained=yes
    say "Interrupted: $name. Running it again goes on from here." >&2
    exit 130
  fi
  if ((status != 0)); then
    explained=yes
    {
      say ""
      say "FAILED: $name, after $((SECONDS - begun)) s (exit code $status)"
      say "  Reason:"
      reason "$log"
      say "  Remedy: $remedy"
      say "  The whole log: ${log#"$root"/}"
    } >&2
    exit 1
  fi
  say "  done in $((SECONDS - begun)) s"
}

# new_folder DIR: makes way for a new set of results. What an earlier call left there is kept once, as DIR.previous; a
# folder that holds something else is left alone.
new_folder() {
  local folder=$1
  if [[ -e $folder ]]; then
    [[ -f $folder/report.json || -f $folder/records.jsonl || -z $(ls -A -- "$folder") ]] ||
      stop "$folder exists and holds no report" "Move it away, or choose another place."
    rm -rf -- "$folder.previous"
    mv -- "$folder" "$folder.previous"
    say "  the earlier results are now in $folder.previous"
  fi
  mkdir -p -- "$(dirname -- "$folder")"
}
