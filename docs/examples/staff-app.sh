#!/usr/bin/env bash
# A staff app with curl alone: `staff-app.sh` shows its office's tasks as they move, `staff-app.sh accept TASK MEMBER` takes one.
set -euo pipefail
seen=${SEEN:-seen.txt}   # a line per event, its sequence first: what we did with it and how far we are, in one write
auth="Authorization: Bearer $TOKEN"

accept() {  # the key makes a repeat harmless
  local answer
  answer=$(curl -sS --retry 5 --retry-connrefused "$DISPATCH/v1/tasks/$1/accept?district=$DISTRICT" -H "$auth" \
    -H "Idempotency-Key: accept-$1-$2" -H 'Content-Type: application/json' -d "{\"member\": \"$2\"}")
  case $answer in
    *'"ok":true'*) echo "已接单 $1" ;;
    *) sed -E 's/.*"title":"([^"]*)".*"detail":"([^"]*)".*/未办理:\1。\2/' <<<"$answer" >&2; return 1 ;;
  esac
}

show() { printf '%s %s\n' "$1" "$2" | tee -a "$seen"; }

watch() {
  local line id='' data='' from
  while true; do
    from=$( [ -s "$seen" ] && tail -n 1 "$seen" | cut -d' ' -f1 || true)
    curl -sSfN "$DISPATCH/v1/stream?district=$DISTRICT&types=task." -H "$auth" ${from:+-H "Last-Event-ID: $from"} |
      while IFS= read -r line; do
        case $line in
          ': paidan '*) [ -n "$from" ] || show "${line#: paidan }" 'caught up' ;;  # the first time: from here on
          'id: '*) id=${line#id: } ;;
          'data: '*) data=${line#data: } ;;
          '') [ -z "$data" ] || show "$id" "$data"; data='' ;;
        esac
      done || true
    sleep 1  # the connection was lost, or the service starts anew: go on behind what was seen
  done
}

if [ "${1:-watch}" = accept ]; then accept "$2" "$3"; else watch; fi
