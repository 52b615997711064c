#!/bin/sh
# What must be there before the first container starts; compose runs it at every `up`, as root and without network, in a
# container that sees deploy/, and the volume of NATS. With words it hands them to secrets.sh: run --rm prepare runner office
set -eu
cd "$(dirname "$0")"

# Docker makes volumes for root, and NATS runs as 10002
chown 10002:10002 /nats-data

sh secrets.sh "$@"

# they are the checkout's owner's, who can then read Grafana's password, and remove them
chown -R "$(stat -c %u:%g .)" secrets
