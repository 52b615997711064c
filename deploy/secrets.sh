#!/bin/sh
# Make the passwords and certificates of a Refresher system, once: what is there is never changed. `docker compose up` runs
# it by itself (deploy/prepare.sh); for the rest put its words after `docker compose -f deploy/compose.yml run --rm prepare`,
# or run it on a machine with openssl:
#
#   sh deploy/secrets.sh                 everything that `docker compose up` needs
#   sh deploy/secrets.sh runner office   besides, a user of the bus for the runners at the site `office`
#   sh deploy/secrets.sh runner office+fibre   the same for the line `fibre` of that site, where it has several
#   sh deploy/secrets.sh leaf office     a user for the server of a site that has one of its own
#   sh deploy/secrets.sh forget office   take these users away again
#   sh deploy/secrets.sh name HOST       let the server's certificate hold for HOST as well, a name or an address under which
#                                        runners elsewhere reach this machine
#
# After each of the last five, NATS takes up the change with: docker compose -f deploy/compose.yml kill -s HUP nats
# (twice after the first three of them: an account that is new has no imports before the second time).
#
# REFRESHER_SECRETS_DIR is where they go, by default `secrets` beside this script. REFRESHER_SITE is the site of the runner on
# this machine, by default `home`.
#
# At the top of that directory is everything; each of its directories holds what one container may see, and is all that is
# mounted there. Why the files can be read by all: they are mounted as they are into containers that run as other users. On
# this machine the directory keeps others out: only its owner may enter. The authority's own key is handed to nobody.
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

hand() { # DIRECTORY FILE…, a file perhaps under another name: NAME=FILE
  mkdir -p "$1"
  for each in $(shift && echo "$@"); do
    cp "${each#*=}" "$1/.new"
    mv "$1/.new" "$1/${each%%=*}"
  done
}

accounts() {
  echo "# Made by deploy/secrets.sh from deploy/nats/accounts.conf.in: change that one."
  awk '
    function told(text,  name, secret) {
      while (match(text, /@password [a-z0-9_+-]+@/)) {
        name = substr(text, RSTART + 10, RLENGTH - 11)
        getline secret <name
        close(name)
        text = substr(text, 1, RSTART - 1) secret substr(text, RSTART + RLENGTH)
      }
      return text
    }
    function repeated(list, word,  line, text, all) {
      while ((getline line <list) > 0) {
        text = body
        gsub("@" word "@", line, text)
        gsub(/@site@/, substr(line, 1, index(line "+", "+") - 1), text)
        all = all told(text)
      }
      close(list)
      return all
    }
    /^ *(#|$)/ { next }
    /^ *@each (line|leaf)$/ { each = $2; body = ""; next }
    /^ *@end$/ {
      printf "%s", each == "line" ? repeated("sites", "line") : repeated("leaves", "leaf")
      each = ""
      next
    }
    each != "" { body = body $0 "\n"; next }
    { print told($0) }
  ' "$here/nats/accounts.conf.in"
}

site() { # or a line of one: office+fibre
  for each in "${1%%+*}" "${1#*+}"; do
    case $each in
    '' | [_-]* | *[_-] | *[!a-z0-9_-]*) ;;
    *) [ ${#each} -gt 63 ] || continue ;;
    esac
    fail "$1 is no name of a site, or of a site and a line (office+fibre): those are lower case letters, digits, - and _, at most 63"
  done
}

sites=${REFRESHER_SITE:-home}
names="nats localhost 127.0.0.1 ::1"
site "$sites"
case ${1:-}:$# in
:0) ;;
runner:2)
  site "$2"
  case $2 in *+any) fail "no line can be called any, which stands for whichever line of a site is free: give it another name" ;; esac
  sites="$sites $2"
  ;;
leaf:2)
  site "$2"
  case $2 in *+*) fail "a site has one server for all of its lines: name the site" ;; hub) fail "hub is what the center's own server is called: give the site another name" ;; esac
  leaf=$2
  ;;
forget:2)
  site "$2"
  [ "$2" != "$sites" ] || fail "$2 is the site of this machine: set REFRESHER_SITE to another one first"
  grep -qxsF -e "$2" "$directory/sites" "$directory/leaves" >/dev/null || fail "there is no site $2: $directory/sites has those that there are"
  forgotten=$2
  ;;
name:2)
  case $2 in '' | *[!A-Za-z0-9.:-]*) fail "$2 is neither the name of a host nor an address" ;; esac
  names="$names $2"
  ;;
*) fail "it is used as: secrets.sh [runner SITE | leaf SITE | forget SITE | name HOST]" ;;
esac

mkdir -p "$directory"
chmod 0700 "$directory" 2>/dev/null && [ -w "$directory" ] ||
  fail "$directory belongs to somebody else: run it as they, or by docker compose -f deploy/compose.yml run --rm prepare"
cd "$directory"

for user in scheduler recorder api admin; do password "nats-$user"; done
for each in $sites; do
  password "nats-runner-$each"
  remember "$each" sites
done
touch leaves
if [ -n "${leaf:-}" ]; then
  password "nats-leaf-$leaf"
  remember "$leaf" leaves
fi
roles="postgres refresher refresher_recorder refresher_api refresher_grafana refresher_exporter"
for role in $roles; do password "database-$role"; done
password grafana-admin
if [ -n "${forgotten:-}" ]; then
  grep -vxF -e "$forgotten" sites >sites.new || true
  mv sites.new sites
  grep -vxF -e "$forgotten" leaves >leaves.new || true
  mv leaves.new leaves
  rm -rf "nats-runner-$forgotten" "runner-$forgotten" "nats-leaf-$forgotten" "leaf-$forgotten"
fi

for each in $names; do remember "$each" nats-server.names; done
command -v openssl >/dev/null || fail "openssl is not here: install it, or run it by docker compose -f deploy/compose.yml run --rm prepare"
sh "$here/certificates.sh"
[ ! -e nats-server.crt.new ] || mv nats-server.crt.new nats-server.crt

accounts >nats-accounts.conf.new
mv nats-accounts.conf.new nats-accounts.conf

# Who sees what: a directory for each container.
hand nats nats-accounts.conf nats-server.crt nats-server.key
hand postgres $(for role in $roles; do echo "database-$role"; done)
hand migrate database-refresher
hand scheduler ca.crt nats-scheduler
while read -r each; do hand "runner-$each" ca.crt "nats-runner=nats-runner-$each"; done <sites
while read -r each; do hand "leaf-$each" ca.crt "nats-leaf=nats-leaf-$each"; done <leaves
hand recorder ca.crt nats-recorder database-refresher_recorder
hand api ca.crt nats-api database-refresher_api
hand tools ca.crt nats-admin database-refresher
hand grafana grafana-admin database-refresher_grafana
hand postgres-exporter database-refresher_exporter
mkdir -p alertmanager # for what its receivers ask for: see alertmanager/alertmanager.example.yml
