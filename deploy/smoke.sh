#!/bin/sh
# Asks a deployment one question of each kind, and says which step fails. It needs a POSIX shell and curl.
#
#   SMOKE_KEY=sk_… deploy/smoke.sh https://spendstream.example.com 5b0f2a34-0c51-4f0e-9d57-0a7b7f1c2d3e
#
# The arguments are the address of the API, and the org to ask about. Without an org it is the first one that
# the caller sees, which needs the role analytics:admin. The environment has the rest, because everybody on a
# host can read a command line:
#
#   SMOKE_KEY          an API key of the org, with the roles analytics:usage:read, analytics:reliability:read,
#                      analytics:exports:create, analytics:exports:read and analytics:exports:download
#   SMOKE_TOKEN        a bearer token, in the place of a key
#   SMOKE_OPEN=1       the API asks for no credentials (AUTH_MODE=none), so nothing must refuse us
#   SMOKE_METRICS_URL  where metrics are, if that is not /metrics of the same address; none: leave them out
#   SMOKE_TIMEOUT      seconds until the export must be made; 60 if not given
#
# Each step prints a line. The exit code is 0 if all steps are right, 1 at the first one that is not, and 2 if
# the arguments are wrong. Each run orders one export of the last 24 hours, which is kept for EXPORT_RETENTION.
set -eu
umask 077
LC_ALL=C
export LC_ALL

wrong() {
    echo "smoke.sh: $1" >&2
    exit 2
}

[ $# -ge 1 ] && [ $# -le 2 ] || wrong 'expected the address of the API, and perhaps an org: see the top of this file'
command -v curl > /dev/null || wrong 'curl is not installed'
root=${1%/}
root=${root%/analytics/v1}
case $root in
    http://* | https://*) ;;
    *) wrong "expected an address such as https://spendstream.example.com, not $1" ;;
esac
org=${2-}
case $org in *[!0-9A-Fa-f-]*) wrong "expected the UUID of an org, not $org" ;; esac
open=${SMOKE_OPEN-}
timeout=${SMOKE_TIMEOUT:-60}
case $timeout in *[!0-9]*) wrong 'SMOKE_TIMEOUT must be a number of seconds' ;; esac
metrics=${SMOKE_METRICS_URL:-$root/metrics}

# No program that we start finds the secret in its environment; curl reads it from its standard input.
secret=${SMOKE_KEY:-${SMOKE_TOKEN-}}
header='X-API-Key: '
[ -n "${SMOKE_KEY-}" ] || header='Authorization: Bearer '
unset SMOKE_KEY SMOKE_TOKEN
case $secret in *[!0-9A-Za-z._~+/=-]*) wrong 'SMOKE_KEY or SMOKE_TOKEN has a character that no key has' ;; esac
[ -n "$secret" ] || [ -n "$open" ] || wrong 'set SMOKE_KEY or SMOKE_TOKEN, or SMOKE_OPEN=1 if none is needed'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
body=$folder/body
head=$folder/head
step=

ok() {
    printf 'ok    %-11s %s\n' "$step" "${1-}"
}

failed() {
    printf 'FAIL  %-11s %s\n' "$step" "$1"
    exit 1
}

credentials() {
    [ -z "$secret" ] || printf 'header = "%s%s"\n' "$header" "$secret"
}

# ask CREDENTIALS STATUS URL [options of curl]: the step fails if the answer has another status.
ask() {
    as=$1 wanted=$2 url=$3
    shift 3
    : > "$body"
    : > "$head"
    if ! status=$("$as" | curl -K - -sS --connect-timeout 5 --max-time 60 -o "$body" -D "$head" \
        -w '%{http_code}' "$@" "$url" 2> "$folder/error"); then
        failed "$url does not answer: $(head -n 1 "$folder/error")"
    fi
    [ "$status" = "$wanted" ] || failed "expected $wanted from $url, got $status: $(shown)"
}

# has TEXT: the answer must have it.
has() {
    grep -qF -- "$1" "$body" || failed "the answer of $url has no $1: $(shown)"
}

# of FIELD [AFTER]: the first value of a field of the answer, or the first one behind another field. The answer
# is JSON without blanks.
of() {
    awk -v field="\"$1\":" -v after="${2+\"$2\":}" '{
        rest = $0
        if (after != "") rest = substr(rest, index(rest, after) + length(after))
        at = index(rest, field)
        if (!at) exit
        value = substr(rest, at + length(field))
        if (value ~ /^"/) { value = substr(value, 2); sub(/".*/, "", value) } else sub(/[,}].*/, "", value)
        print value
        exit
    }' "$body"
}

# The beginning of the answer, for a line about what is wrong with it.
shown() {
    tr -cd '[:print:]' < "$body" | cut -c 1-300
}

sha256() {
    if command -v sha256sum > /dev/null; then
        sha256sum "$1"
    elif command -v shasum > /dev/null; then
        shasum -a 256 "$1"
    else
        openssl dgst -sha256 -r "$1"
    fi | cut -d ' ' -f 1
}

step=health
ask : 200 "$root/analytics/v1/status/healthz"
[ "$(cat "$body")" = OK ] || failed "expected OK, got $(shown)"
ok

step=ready
ask : 200 "$root/analytics/v1/status/readyz"
[ "$(of status)" = ready ] || failed "expected ready, got $(shown)"
ok

step=metrics
if [ "$metrics" = none ]; then
    ok 'left out'
else
    ask : 200 "$metrics"
    has http_requests_total
    ok
fi

if [ -z "$org" ]; then
    step=org
    ask credentials 200 "$root/analytics/v1/orgs?last=24h&limit=1"
    org=$(of orgId)
    [ -n "$org" ] || failed 'the caller sees no org: name one'
    ok "$org"
fi
base=$root/analytics/v1/orgs/$org

step=refused
if [ -n "$open" ]; then
    ok 'left out: SMOKE_OPEN'
else
    ask : 401 "$base/usage?last=24h"
    ok 'without credentials'
fi

step=usage
ask credentials 200 "$base/usage?last=24h&groupBy=none"
has '"totals":{'
start=$(of start) end=$(of end)
ok "$(of invocations totals) calls from $start to $end, $(of status freshness)"

step=reliability
ask credentials 200 "$base/reliability?last=24h&groupBy=none&percentile=p95"
has '"totals":{'
ok "error rate $(of errorRate totals), p95 $(of p95 totals) ms"

step=order
order='{"timeRange":{"start":"'$start'","end":"'$end'"},"granularity":"daily","groupBy":"model"}'
ask credentials 202 "$base/exports" -H 'Content-Type: application/json' -d "$order"
job=$(of jobId)
[ -n "$job" ] || failed "the answer has no job: $(shown)"
ok "$job"

step='export'
waited=0
while :; do
    ask credentials 200 "$base/exports/$job"
    status=$(of status)
    case $status in
        succeeded) break ;;
        pending | running) ;;
        *) failed "the export is $status: $(of error)" ;;
    esac
    [ "$waited" -lt "$timeout" ] || failed "the export is still $status after $timeout s: does an exporter run?"
    sleep 1
    waited=$((waited + 1))
done
checksum=$(of checksum)
ok "$(of rowCount) rows"

step=download
ask credentials 302 "$base/exports/$job/download"
link=$(tr -d '\r' < "$head" | sed -n 's/^[Ll]ocation: //p')
case $link in
    http://* | https://*) ;;
    /*) link=$(printf '%s\n' "$root" | sed 's|^\([a-z]*://[^/]*\).*|\1|')$link ;;
    *) failed "the answer leads nowhere: $link" ;;
esac
# The link has its own signature. It may lead to another server, which must not get our credentials.
ask : 200 "$link"
[ "$(sha256 "$body")" = "$checksum" ] || failed "the file is not the one that the job says: SHA-256 $checksum"
ok "$(wc -c < "$body" | tr -d ' ') bytes, SHA-256 as the job says"
