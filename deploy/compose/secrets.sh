#!/bin/sh
# Make the secrets of compose.yaml as files in deploy/compose/secrets (or the folder given): sh deploy/compose/secrets.sh
# A file that is there stays as it is, so a second run adds only what a newer version needs.
#
# Each file may be read by everybody, because the users inside the containers have other numbers. The folder may be
# entered by its owner alone, so nobody else on this host reaches the files.
set -eu
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"

made() { # NAME TEXT
    [ -e "$1" ] && return
    printf '%s\n' "$2" >"$1.new"
    chmod 444 "$1.new"
    mv "$1.new" "$1"
}
word() { # NAME: 48 characters drawn at random
    made "$1" "$(head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n')"
}

for name in postgres_password database_owner_password database_api_password database_collector_password \
    database_alerts_password database_grafana_password webhook_key rabbitmq_password redis_password s3_access_key s3_secret_key api_key_secret cursor_secret \
    grafana_admin_password; do
    word "$name"
done
made database_owner_url "postgresql://spendstream:$(cat database_owner_password)@postgres:5432/spendstream"
made database_api_url "postgresql://spendstream_api:$(cat database_api_password)@postgres:5432/spendstream"
made database_collector_url \
    "postgresql://spendstream_collector_login:$(cat database_collector_password)@postgres:5432/spendstream"
made database_alerts_url \
    "postgresql://spendstream_alerts_login:$(cat database_alerts_password)@postgres:5432/spendstream"
made rabbitmq_url "rabbitmq-stream://spendstream:$(cat rabbitmq_password)@rabbitmq:5552/"
made rabbitmq_user "default_user = spendstream
default_pass = $(cat rabbitmq_password)"
made redis_url "redis://:$(cat redis_password)@redis:6379/0"
made redis_conf "requirepass $(cat redis_password)
save \"\"
appendonly no
maxmemory 256mb
maxmemory-policy allkeys-lru"
made s3_encryption_key "$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')"
made s3_identities "{\"identities\": [{\"name\": \"spendstream\", \"actions\": [\"Admin\", \"Read\", \"Write\", \"List\", \"Tagging\"],
 \"credentials\": [{\"accessKey\": \"$(cat s3_access_key)\", \"secretKey\": \"$(cat s3_secret_key)\"}]}]}"
