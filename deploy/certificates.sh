# Part of secrets.sh, in the directory of the secrets, with openssl: an authority of this installation's own, and the
# certificate of its NATS server for the names in nats-server.names. A new one is left in nats-server.crt.new.
set -eu
days=3650 # one that runs out stops everything; for a new one delete nats-server.crt and run secrets.sh

key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

if [ ! -e ca.key ]; then
  (umask 077 && key ca.key.new)
  openssl req -x509 -new -key ca.key.new -days "$days" -subj "/CN=Refresher's own authority" \
    -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign" -out ca.crt
  mv ca.key.new ca.key
fi

if [ ! -e nats-server.key ]; then
  key nats-server.key.new
  chmod 0644 nats-server.key.new
  mv nats-server.key.new nats-server.key
fi

names=$(while read -r name; do
  case $name in
  *:*) echo "IP:$name" ;;
  *[!0-9.]*) echo "DNS:$name" ;;
  *) echo "IP:$name" ;;
  esac
done <nats-server.names | paste -sd, -)

if [ ! -e nats-server.crt ] || [ "$(cat nats-server.signed 2>/dev/null)" != "$names" ]; then
  openssl req -new -key nats-server.key -subj "/CN=nats" -out nats-server.csr
  cat >nats-server.ext <<EXTENSIONS
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = $names
EXTENSIONS
  openssl x509 -req -in nats-server.csr -CA ca.crt -CAkey ca.key -set_serial "0x$(openssl rand -hex 16)" -days "$days" \
    -extfile nats-server.ext -out nats-server.crt.new 2>/dev/null
  rm nats-server.csr nats-server.ext
  echo "$names" >nats-server.signed
fi
