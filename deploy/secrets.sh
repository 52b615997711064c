#!/bin/sh
# Make the passwords and certificates of a Refresher system, once: what is there is never changed.
#
#   sh deploy/secrets.sh                 everything that `docker compose up` needs
#   sh deploy/secrets.sh runner office   besides, a user of the bus for the runners at the site `office`
#   sh deploy/secrets.sh name HOST       besides, let the server's certificate hold for HOST as well, a name or an address
#                                        under which runners elsewhere reach this machine
#
# After `runner` and `name`, NATS takes up the change with: docker compose -f deploy/compose.yml kill -s HUP nats
#
# REFRESHER_SECRETS_DIR is where they go, by default `secrets` beside this script. REFRESHER_SITE is the site of the runner on
# this machine, by default `home`. It needs sh and the usual small programs; openssl comes from a container of the image
# REFRESHER_IMAGE, by default `refresher`, where this machine has none.
#
# Why the files can be read by all: compose mounts them as they are into containers that run as other users, and does not
# change owner or mode. On this machine the directory keeps others out: only its owner may enter. The authority's own key
# is mounted nowhere, and its owner's alone.
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
directory=${REFRESHER_SECRETS_DIR:-$here/secrets}

fail() {
  echo "secrets.sh: $1" >&2
  exit 1
}

password() { # 256 bits as letters, digits, - and _: none of them means anything to a URL, to sed or to NATS
  [ -e "$1" ] && return
  head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n' >"$1.new"
  [ "$(wc -c <"$1.new")" -eq 43 ] || fail "no random bytes for $1"
  mv "$1.new" "$1"
}

remember() { # a line in a list, once
  touch "$2"
  grep -qxF -e "$1" "$2" || echo "$1" >>"$2"
}

# Into the same file, not over it: a container that has it mounted would go on with the old one.
replace() {
  cat "$1.new" >"$1"
  rm "$1.new"
}

accounts() {
  echo "# Made by deploy/secrets.sh from deploy/nats/accounts.conf.in: change that one."
  awk '
    function told(text,  name, secret) {
      while (match(text, /@password [a-z0-9_-]+@/)) {
        name = substr(text, RSTART + 10, RLENGTH - 11)
        getline secret <name
        close(name)
        text = substr(text, 1, RSTART - 1) secret substr(text, RSTART + RLENGTH)
      }
      return text
    }
    BEGIN { while ((getline site <"sites") > 0) sites[++number] = site }
    /^ *(#|$)/ { next }
    /^ *@each site$/ { each = 1; body = ""; next }
    /^ *@end$/ {
      for (i = 1; i <= number; i++) {
        text = body
        gsub(/@site@/, sites[i], text)
        printf "%s", told(text)
      }
      each = 0
      next
    }
    each { body = body $0 "\n"; next }
    { print told($0) }
  ' "$here/nats/accounts.conf.in"
}

certificates() {
  if command -v openssl >/dev/null; then
    sh "$here/certificates.sh"
    return
  fi
  command -v docker >/dev/null || fail "neither openssl nor docker is here: install one of them"
  # By tar there and back, not by a mount: it works whoever runs the engine, and wherever it is.
  find . -name 'ca.*' -o -name 'nats-server.*' | tar cf - -T - -C "$here" certificates.sh |
    docker run --rm --interactive --pull never --network none --entrypoint sh "${REFRESHER_IMAGE:-refresher}" -c \
      'mkdir /tmp/secrets && cd /tmp/secrets && tar xof - && sh certificates.sh >&2 && tar cf - ca.* nats-server.*' |
    tar xof - || fail "openssl did not run in the image ${REFRESHER_IMAGE:-refresher}: build it first, or install openssl"
}

site() {
  case $1 in
  '' | [_-]* | *[_-] | *[!a-z0-9_-]*) ;;
  *) [ ${#1} -gt 63 ] || return 0 ;;
  esac
  fail "$1 is no name of a site: those are lower case letters, digits, - and _, at most 63"
}

sites=${REFRESHER_SITE:-home}
names="nats localhost 127.0.0.1 ::1"
site "$sites"
case ${1:-}:$# in
:0) ;;
runner:2)
  site "$2"
  sites="$sites $2"
  ;;
name:2)
  case $2 in '' | *[!A-Za-z0-9.:-]*) fail "$2 is neither the name of a host nor an address" ;; esac
  names="$names $2"
  ;;
*) fail "it is used as: secrets.sh [runner SITE | name HOST]" ;;
esac

mkdir -p "$directory"
chmod 0700 "$directory"
cd "$directory"

for user in scheduler recorder api admin; do password "nats-$user"; done
for each in $sites; do
  password "nats-runner-$each"
  remember "$each" sites
done
for role in postgres refresher refresher_recorder refresher_api refresher_grafana refresher_exporter; do password "database-$role"; done
password grafana-admin

for each in $names; do remember "$each" nats-server.names; done
certificates
[ ! -e nats-server.crt.new ] || replace nats-server.crt

accounts >nats-accounts.conf.new
replace nats-accounts.conf
