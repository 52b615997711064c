#!/bin/bash
# Make the roles of Refresher with the passwords from the secrets files. The official image runs it when it makes the
# database, as a file of /docker-entrypoint-initdb.d; for another server an administrator runs it with psql's variables
# (PGHOST, PGUSER, PGPASSWORD, PGDATABASE) and REFRESHER_SECRETS_DIR.
#
#   refresher            owns the database and changes its schema (`refresher migrate`); no superuser
#   refresher_recorder   inserts results, and keeps the ledger
#   refresher_api        reads
#   refresher_grafana    reads
#   refresher_exporter   reads the server's statistics
#
# What they may do with tables is in shared/migrations/0007_rollups.sql: the owner grants it.
set -euo pipefail
export SECRETS=${REFRESHER_SECRETS_DIR:-/run/secrets}
export PGUSER=${POSTGRES_USER:-${PGUSER:-postgres}} PGDATABASE=${POSTGRES_DB:-${PGDATABASE:-refresher}}
for role in refresher refresher_recorder refresher_api refresher_grafana refresher_exporter; do
  [[ -s $SECRETS/database-$role ]] || {
    echo "10-roles.sh: there is no password in $SECRETS/database-$role" >&2
    exit 1
  }
done

# psql reads the passwords itself: among its arguments they would show in the list of processes. One transaction: a start
# that is cut short leaves nothing half done.
psql --quiet --no-psqlrc --no-password --set ON_ERROR_STOP=1 --single-transaction <<'SQL'
\set owner `cat "$SECRETS/database-refresher"`
\set recorder `cat "$SECRETS/database-refresher_recorder"`
\set api `cat "$SECRETS/database-refresher_api"`
\set grafana `cat "$SECRETS/database-refresher_grafana"`
\set exporter `cat "$SECRETS/database-refresher_exporter"`
CREATE ROLE refresher LOGIN PASSWORD :'owner';
CREATE ROLE refresher_recorder LOGIN PASSWORD :'recorder';
CREATE ROLE refresher_api LOGIN PASSWORD :'api';
CREATE ROLE refresher_grafana LOGIN PASSWORD :'grafana';
CREATE ROLE refresher_exporter LOGIN PASSWORD :'exporter';
GRANT pg_monitor TO refresher_exporter;

-- Nobody else comes in, or makes temporary tables; whoever owns the database owns its schema `public`.
ALTER DATABASE :"DBNAME" OWNER TO refresher;
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO refresher_recorder, refresher_api, refresher_grafana, refresher_exporter;

-- A reader's mistake must not hold up the recorder. An export reads in pieces, each a statement of its own.
ALTER ROLE refresher_api SET statement_timeout = '30s';
ALTER ROLE refresher_grafana SET statement_timeout = '30s';
ALTER ROLE refresher_exporter SET statement_timeout = '10s';
ALTER ROLE refresher_api SET default_transaction_read_only = on;
ALTER ROLE refresher_grafana SET default_transaction_read_only = on;
ALTER ROLE refresher_exporter SET default_transaction_read_only = on;
SQL
