"""What each role of the shipped database may do, and what it is refused."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from services.recorder import store
from shared.errors import Unavailable
from shared.events import Failure, Measurement, Result, Status
from shared.migrate import migrate, migrate_if_allowed
from tests.commands import Refresher
from tests.deployed import Database, make_secrets
from tests.integration.rows import insert, row

Connection = Any
"""An asyncpg connection."""
READERS = ("refresher_api", "refresher_grafana", "refresher_exporter")
ROLES = ("refresher_recorder", *READERS)
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the secrets of an installation."""
    directory = tmp_path_factory.mktemp("roles") / "secrets"
    assert make_secrets(directory).returncode == 0
    return directory


@pytest.fixture(scope="module")
def empty(secrets: Path) -> Iterator[Database]:
    """Start a PostgreSQL with the roles that are shipped, and an empty database."""
    path = Path(tempfile.mkdtemp(prefix="refresher-roles-"))
    path.chmod(0o711)
    server = Database(path, secrets)
    asyncio.run(server.make_roles())
    yield server
    server.stop()
    shutil.rmtree(path)


@pytest.fixture
async def database(empty: Database) -> Database:
    """Give that database with its schema up to date, which its owner sees to, and a row."""
    owner = await empty.connect("refresher")
    await migrate(owner)
    await insert(owner, row(NOW))
    await owner.close()
    return empty


@pytest.fixture(params=ROLES)
async def role(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[tuple[str, Connection]]:
    """Give each role and its connection."""
    connection = await database.connect(request.param)
    yield request.param, connection
    await connection.close()


async def test_without_the_right_to_migrate_one_waits_for_the_owner(empty: Database) -> None:
    """The recorder's user changes nothing and says who must; once the owner has, it goes on."""
    owner, recorder = await empty.connect("refresher"), await empty.connect("refresher_recorder")
    await owner.execute("DROP OWNED BY refresher; GRANT ALL ON SCHEMA public TO refresher")
    with pytest.raises(Unavailable, match="refresher migrate"):
        await migrate_if_allowed(recorder)
    await migrate(owner)
    await migrate_if_allowed(recorder)
    await owner.execute("DELETE FROM refresher_migrations WHERE name LIKE '0002%'; DROP FUNCTION grant_to_roles")
    with pytest.raises(Unavailable, match="refresher migrate"):
        await migrate_if_allowed(recorder)
    await migrate_if_allowed(owner)
    await migrate_if_allowed(recorder)
    await owner.close()
    await recorder.close()


async def test_the_recorder_stores(database: Database) -> None:
    """A result of a month that has no partition yet, and the same once more; and many at once."""
    recorder = await database.connect("refresher_recorder")
    due_at = datetime(2001, 2, 3, tzinfo=UTC)
    fields = row(due_at)
    result = Result(
        **{name: fields[name] for name in ("run_id", "due_at", "site", "schedule", "trigger", "engine", "finished_at")},
        status=Status.SUCCEEDED,
        measurement=Measurement(latency_s=0.01),
    )
    assert await store.insert(recorder, [result]) == 1
    assert await store.insert(recorder, [result]) == 0
    many = [result.model_copy(update={"run_id": uuid4()}) for _ in range(store.COPIED_FROM)]
    assert await store.record(recorder, many) == len(many)
    await recorder.close()


async def test_the_recorder_replaces_a_guess_and_nothing_else(database: Database) -> None:
    """A result takes the place of a run that never started; what was measured stays, whatever statement the recorder is made to run."""
    owner, recorder = await database.connect("refresher"), await database.connect("refresher_recorder")
    due_at = datetime(2001, 2, 4, tzinfo=UTC)
    fields = row(due_at)
    (run_id,) = await insert(owner, {**row(due_at, status="missed", started_at=None), "run_id": fields["run_id"]})
    result = Result(
        **{name: fields[name] for name in ("run_id", "due_at", "site", "schedule", "trigger", "engine", "started_at", "finished_at")},
        status=Status.SUCCEEDED,
        measurement=Measurement(latency_s=0.01),
    )
    assert await store.insert(recorder, [result]) == 1
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="knows more"):
        await recorder.execute("UPDATE results SET latency_s = 1 WHERE run_id = $1", run_id)
    await owner.execute("UPDATE results SET latency_s = 2 WHERE run_id = $1", run_id)
    assert await owner.fetchval("SELECT (status, latency_s) = ('succeeded', 2) FROM results WHERE run_id = $1", run_id)
    await owner.close()
    await recorder.close()


async def test_a_runners_word_takes_the_place_of_a_guess_and_not_of_another_word(database: Database) -> None:
    """That it skipped a run, which has no start, is more than that nobody took it; only a run that started is more than that."""
    owner, recorder = await database.connect("refresher"), await database.connect("refresher_recorder")
    fields = row(datetime(2001, 2, 5, tzinfo=UTC))
    known = {name: fields[name] for name in ("run_id", "due_at", "site", "schedule", "trigger", "engine", "finished_at")}
    guess = Result(**known, status=Status.MISSED, failure=Failure(kind="no_runner", message="there has never been one"))
    word = Result(**known, status=Status.SKIPPED, runner="office-1", failure=Failure(kind="line_busy", message="the line was busy"))
    other = word.model_copy(update={"runner": "office-2"})
    started = other.model_copy(update={"status": Status.SUCCEEDED, "started_at": word.finished_at, "failure": None})
    told = "SELECT (status, runner, failure_kind) FROM results WHERE run_id = $1"
    assert await store.insert(recorder, [guess]) == 1
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="knows more"):
        await recorder.execute("UPDATE results SET failure_kind = 'lost' WHERE run_id = $1", guess.run_id)
    assert await store.insert(recorder, [guess, word, other]) == 1
    assert await owner.fetchval(told, guess.run_id) == ("skipped", "office-1", "line_busy")
    assert await store.insert(recorder, [other]) == await store.insert(recorder, [guess]) == 0
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="knows more"):
        await recorder.execute("UPDATE results SET runner = 'office-2' WHERE run_id = $1", guess.run_id)
    assert await store.insert(recorder, [guess, started]) == 1
    assert await owner.fetchval(told, guess.run_id) == ("succeeded", "office-2", None)
    await owner.close()
    await recorder.close()


async def test_readers_read(database: Database) -> None:
    """The API and Grafana see the rows, the exporter the server's statistics and everybody's sessions."""
    for name in ("refresher_api", "refresher_grafana"):
        reader = await database.connect(name)
        assert await reader.fetchval("SELECT count(*) FROM results WHERE due_at = $1", NOW) >= 1
        await reader.close()
    api = await database.connect("refresher_api")
    assert await api.fetchval("SELECT count(*) FROM refresher_migrations") >= 2
    await api.close()
    exporter, owner = await database.connect("refresher_exporter"), await database.connect("refresher")
    assert (
        await exporter.fetchval("SELECT query FROM pg_stat_activity WHERE pid = $1", owner.get_server_pid()) != "<insufficient privilege>"
    )
    assert await exporter.fetchval("SELECT sum(size) > 0 FROM pg_ls_waldir()")
    await owner.close()
    await exporter.close()


async def test_the_owner_is_no_superuser(database: Database) -> None:
    """It can do nothing to the server or to other roles, only to its own database."""
    owner = await database.connect("refresher")
    rights = await owner.fetchrow(
        "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = user"
    )
    assert rights
    assert not any(rights.values())
    for forbidden in ("CREATE ROLE another", "ALTER ROLE refresher_api SUPERUSER", "COPY results TO PROGRAM 'true'"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await owner.execute(forbidden)
    await owner.close()


REFUSED = {
    # statement: who may nevertheless
    "UPDATE results SET status = 'missed' WHERE started_at IS NOT NULL": (),
    "DELETE FROM results": (),
    "TRUNCATE results": (),
    "DROP TABLE results": (),
    "ALTER TABLE results ADD COLUMN mine integer": (),
    "INSERT INTO results SELECT * FROM results": (),
    "SELECT * FROM results": ("refresher_api", "refresher_grafana"),
    "SELECT download_bps FROM results": ("refresher_api", "refresher_grafana"),
    "UPDATE results SET due_at = now() WHERE started_at IS NULL": (),
    "SELECT runner FROM results": ("refresher_api", "refresher_grafana", "refresher_recorder"),
    "SELECT started_at FROM results": ("refresher_api", "refresher_grafana", "refresher_recorder"),
    "SELECT * FROM schedule_versions": ("refresher_api", "refresher_recorder"),
    "UPDATE schedule_versions SET spec = null": (),
    "DELETE FROM schedule_versions": (),
    "SELECT * FROM asked_runs": ("refresher_api", "refresher_recorder"),
    "DELETE FROM asked_runs": (),
    "DELETE FROM open_runs": ("refresher_recorder",),
    "SELECT * FROM ledger_state": ("refresher_api", "refresher_recorder"),
    "UPDATE ledger_state SET settled_until = now()": ("refresher_recorder",),
    "DELETE FROM ledger_state": (),
    "INSERT INTO ledger_state (one, began_at, settled_until) VALUES (true, now(), now())": (),
    "SELECT run_id FROM results": ("refresher_api", "refresher_grafana", "refresher_recorder"),
    "SELECT * FROM refresher_migrations": ("refresher_api", "refresher_recorder"),
    "DELETE FROM refresher_migrations": (),
    "INSERT INTO refresher_migrations (name, sha256) VALUES ('9999', '')": (),
    "SELECT results_partition('2002-02-01')": ("refresher_recorder",),
    "SELECT results_drop(now() - interval '400 days')": ("refresher_recorder",),
    "SELECT * FROM result_rollups": ("refresher_api",),
    "SELECT * FROM stale_rollups": ("refresher_api",),
    "UPDATE result_rollups SET summary = ''": (),
    "DELETE FROM stale_rollups": (),
    "SELECT results_fold(now(), 1)": ("refresher_recorder",),
    "SELECT results_add_up(1::smallint, now())": (),
    "SELECT grant_to_roles()": (),
    "CREATE TABLE mine ()": (),
    "CREATE TEMPORARY TABLE mine ()": (),
    "CREATE FUNCTION mine() RETURNS void LANGUAGE sql AS ''": (),
    "CREATE SCHEMA mine": (),
    "CREATE DATABASE mine": (),
    "CREATE ROLE mine": (),
    "ALTER TABLE results OWNER TO refresher_api": (),
    "ALTER ROLE refresher PASSWORD 'mine'": (),
    "ALTER SYSTEM SET log_statement = 'all'": (),
    "SET ROLE refresher": (),
    "SET ROLE postgres": (),
    "SELECT rolpassword FROM pg_authid": (),
    "SELECT pg_read_file('/etc/passwd')": (),
    "COPY (SELECT 1) TO PROGRAM 'true'": (),
}


@pytest.mark.parametrize("statement", REFUSED)
async def test_what_a_role_may_not_do(statement: str, role: tuple[str, Connection], database: Database) -> None:
    """Each statement is refused to each role, also where it takes the read-only default off, save those that need it."""
    name, connection = role
    await connection.execute("SET default_transaction_read_only = off")
    if name not in REFUSED[statement]:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
        return
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(statement)
    await transaction.rollback()


async def test_readers_do_not_write_and_do_not_stay(database: Database) -> None:
    """A session of a reader is read-only, and a statement that takes too long ends."""
    for name in READERS:
        reader = await database.connect(name)
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await reader.execute("CREATE TABLE mine ()")
        limit_ms = int(await reader.fetchval("SELECT setting FROM pg_settings WHERE name = 'statement_timeout'"))
        assert 1_000 <= limit_ms <= 30_000
        await reader.close()


async def test_nobody_else_comes_in(database: Database) -> None:
    """Not a role that the server happens to have, not without the password, not into the database of another."""
    superuser = await database.connect("postgres")
    await superuser.execute("CREATE ROLE stranger LOGIN PASSWORD 'known'")
    await superuser.close()
    url = database.settings("stranger")["REFRESHER_DATABASE_URL"]
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied for database"):
        await asyncpg.connect(url, password="known")
    for name in ("refresher", *ROLES):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(database.settings(name)["REFRESHER_DATABASE_URL"], password="guessed")


async def test_roles_that_come_later_get_their_rights(postgres_server: Any) -> None:
    """On a server that had none of them when it was migrated: `refresher migrate` grants again, and the schema stays."""
    first = await asyncpg.connect(postgres_server.url)
    await first.execute("CREATE DATABASE later")
    try:
        command = Refresher(REFRESHER_DATABASE_URL=postgres_server.database("later"))
        command("migrate")
        await first.execute("CREATE ROLE refresher_grafana LOGIN PASSWORD 'later'")
        try:
            assert not command("migrate").stdout
            inside = await asyncpg.connect(postgres_server.database("later"), user="refresher_grafana", password="later")
            assert await inside.fetchval("SELECT count(*) FROM results") == 0
            await inside.close()
        finally:
            await first.execute("DROP DATABASE later WITH (FORCE)")
            await first.execute("DROP OWNED BY refresher_grafana; DROP ROLE refresher_grafana")
    finally:
        await first.execute("DROP DATABASE IF EXISTS later WITH (FORCE)")
        await first.close()


async def test_the_script_refuses_to_make_roles_without_passwords(empty: Database, secrets: Path, tmp_path: Path) -> None:
    """A missing secret stops it before anything is made, and is named."""
    incomplete = shutil.copytree(secrets, tmp_path / "incomplete")
    (incomplete / "database-refresher_grafana").unlink()
    done = await asyncio.to_thread(empty.run_script, incomplete)
    assert done.returncode == 1
    assert "database-refresher_grafana" in done.stderr
