#!/bin/sh
# Print the secrets that these manifests need, from the files that deploy/secrets.sh made:
#   sh deploy/secrets.sh && sh deploy/kubernetes/secrets.sh | kubectl apply -n refresher -f -
# REFRESHER_SECRETS_DIR is where those are, by default deploy/secrets.
set -eu
cd "${REFRESHER_SECRETS_DIR:-$(dirname "$0")/../secrets}"

secret() { # NAME TYPE KEY=FILE…
  printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  labels:\n    app.kubernetes.io/part-of: refresher\ntype: %s\ndata:\n' "$1" "$2"
  shift 2
  for each; do
    [ -s "${each#*=}" ] || { echo "secrets.sh: there is no $PWD/${each#*=}: run deploy/secrets.sh first" >&2; exit 1; }
    printf '  %s: %s\n' "${each%%=*}" "$(base64 <"${each#*=}" | tr -d '\n')"
  done
}

secret nats-ca Opaque ca.crt=ca.crt
secret nats-server kubernetes.io/tls tls.crt=nats-server.crt tls.key=nats-server.key
secret nats-accounts Opaque nats-accounts.conf=nats-accounts.conf
for user in scheduler recorder api admin $(sed 's/^/runner-/' sites); do secret "nats-$user" Opaque "password=nats-$user"; done
for role in refresher refresher_recorder refresher_api refresher_grafana refresher_exporter; do
  secret "database-$(echo "$role" | tr _ -)" kubernetes.io/basic-auth "password=database-$role"
  printf 'stringData:\n  username: %s\n' "$role"
done
