"""Backup and restore: from one real system to another, byte for byte; and what is refused, with the reason."""

import gzip
import io
import json
import os
import random
import re
import subprocess
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import asyncpg
import nats
import pytest

from services.cli import saved_rows
from services.cli.archive import Backup
from services.recorder.months import drop_before
from services.recorder.rollups import add_up
from shared import migrate, subjects
from shared.buckets import entries
from shared.database import Connection as Database
from shared.errors import ConfigurationError
from shared.provision import provision
from shared.schedules import Cron, Schedule
from tests.commands import REFRESHER, Refresher
from tests.integration.conftest import Bus, interval
from tests.integration.rows import insert, row
from tests.servers import Nats, Postgres

ODD_TEXTS = (
    "",
    "\\N",
    "\\.",
    "tab\tline\nreturn\rback\\slash",
    "'\"`$1;--",
    "Köln – 東京 🛰️",
    "\u2028\u200b\x01\x7f",
    " x ",
    "é" * 900,
    "NULL",
)
ODD_DETAILS: tuple[Any, ...] = (
    {},
    {"a": [1, 2.50, -0.0, 1e300, 12345678901234567890123456789, None, True]},
    {"\\N": "\\.\n\t", "ключ": {"deep": [[[["x"]]]]}, "": ""},
    {"text": 'say "it"\\', "pad": "y" * 5_000},
)
NUMBERS = (5e-324, 1.7976931348623157e308, 0.1, 1 / 3, 94_123_456.789)


def odd_rows(count: int) -> list[dict[str, Any]]:
    """Return rows of every status, with everything that text, numbers, JSON and time can be, over two years."""
    chance = random.Random(3)
    first = datetime(2024, 11, 30, 23, 59, 59, 999_999, tzinfo=UTC)
    rows = []
    for number in range(count):
        status = ("succeeded", "failed", "skipped", "missed")[number % 4]
        measured = {"download_bps": chance.choice(NUMBERS), "packet_loss": chance.random(), "upload_bytes": 2**63 - 1}
        rows.append(
            row(
                first + timedelta(hours=number * 7, microseconds=number),
                status=status,
                schedule=None if number % 5 == 0 else "hourly",
                trigger=chance.choice(("schedule", "catch_up", "manual")),
                started_at=None if status in {"missed", "skipped"} else first,
                server_name=chance.choice(ODD_TEXTS),
                client_isp=chance.choice([None, *ODD_TEXTS]),
                client_latitude=-0.0,
                details=json.dumps(chance.choice(ODD_DETAILS)),
                log=chance.choice(ODD_TEXTS),
                **(measured if status == "succeeded" else {"failure_message": chance.choice(ODD_TEXTS[1:])}),
            )
        )
    return rows


async def everything(database: Database) -> list[str]:
    """Return every row, all of it, as text."""
    return [each["whole"] for each in await database.fetch("SELECT results::text AS whole FROM results ORDER BY due_at, run_id")]


async def partitions(database: Database) -> list[str]:
    """Return the names of the partitions."""
    found = await database.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'results'::regclass ORDER BY 1"
    )
    return [each["name"] for each in found]


async def values(bus: Bus) -> dict[str, bytes | None]:
    """Return what is in the bucket of schedules."""
    return {entry.key: entry.value for entry in await entries(bus.js, subjects.SCHEDULES)}


class Elsewhere:
    """A second system: a NATS server and a database that nobody has used yet."""

    def __init__(self, nats_url: str, database_url: str, database: Database, bus: Bus) -> None:
        self.database, self.bus = database, bus
        self.refresher = Refresher(REFRESHER_NATS_URL=nats_url, REFRESHER_DATABASE_URL=database_url)

    async def is_untouched(self) -> bool:
        """Return whether there is no table in the database and no schedule on the bus."""
        tables = await self.database.fetchval("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace")
        streams = [each.config.name for each in await self.bus.js.streams_info()]
        return not tables and (f"KV_{subjects.SCHEDULES}" not in streams or not await values(self.bus))


@pytest.fixture
async def elsewhere(postgres_server: Postgres, tmp_path: Path) -> AsyncIterator[Elsewhere]:
    """Give a second, empty system."""
    (tmp_path / "elsewhere").mkdir()
    server = Nats(tmp_path / "elsewhere")
    admin = await asyncpg.connect(postgres_server.url)
    await admin.execute("CREATE DATABASE elsewhere")
    url = postgres_server.database("elsewhere")
    database = await asyncpg.connect(url)
    try:
        async with _client(server.url) as bus:
            yield Elsewhere(server.url, url, database, bus)
    finally:
        await database.close()
        await admin.execute("DROP DATABASE elsewhere WITH (FORCE)")
        await admin.close()
        server.stop()


@asynccontextmanager
async def _client(url: str) -> AsyncIterator[Bus]:
    client = await nats.connect(url)
    try:
        yield Bus(client)
    finally:
        await client.close()


@pytest.fixture
def refresher(nats_server: Nats, database_url: str) -> Refresher:
    """Give the command line of the first system."""
    return Refresher(REFRESHER_NATS_URL=nats_server.url, REFRESHER_DATABASE_URL=database_url)


@pytest.fixture
async def saved(bus: Bus, database: Database, refresher: Refresher, tmp_path: Path) -> Path:
    """Give a small backup: four rows, one schedule."""
    await insert(database, *odd_rows(4))
    await bus.put(interval("hourly", 3600))
    path = tmp_path / "small.tar.gz"
    refresher("backup", str(path))
    return path


async def test_everything_comes_back_byte_for_byte(
    bus: Bus, database: Database, refresher: Refresher, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    """Thousands of rows of every kind over years, and every schedule, are on a system that had nothing before."""
    await insert(database, *odd_rows(3_000))
    for number in range(40):
        await bus.put(interval(f"every-{number}", 60 + number, options={"note": ODD_TEXTS[number % 9]}))
    await bus.put(interval("every-0", 7, enabled=False))
    zoned = Schedule(name="zoned", timing=Cron(expression="0 3 * * 1-5", zone="Asia/Tokyo"), active_since=datetime.now(UTC))
    await bus.put(zoned)
    store = await bus.js.key_value(subjects.SCHEDULES)
    await store.delete("every-1")
    await bus.client.publish(f"$KV.{subjects.SCHEDULES}.not.a/schedule", b"\xff\x00 nonsense")
    await bus.client.flush()
    path = tmp_path / "all.tar.gz"

    assert "3,000 results and 41 schedules" in refresher("backup", str(path)).stderr
    assert path.stat().st_mode & 0o777 == 0o600
    assert "3,000 results and 41 schedules" in elsewhere.refresher("restore", str(path)).stderr

    assert await everything(elsewhere.database) == await everything(database)
    assert await partitions(elsewhere.database) == await partitions(database)
    assert await values(elsewhere.bus) == await values(bus)
    assert not elsewhere.refresher("migrate", "--check").stdout, "the schema is up to date"


async def test_the_revisions_of_a_schedule_are_in_the_file_but_not_played_back(
    bus: Bus, refresher: Refresher, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    """A running scheduler would run what was long changed or removed."""
    versions = [interval("changed", every_s) for every_s in (1, 2, 3600)]
    for version in versions:
        await bus.put(version)
    refresher("backup", str(tmp_path / "file"))
    elsewhere.refresher("restore", str(tmp_path / "file"))
    with tarfile.open(tmp_path / "file") as archive:
        found = archive.extractfile("schedules/000001")
        assert found
        revisions = [json.loads(json.loads(line)["value"])["timing"]["every_s"] for line in found]
    assert revisions == [1, 2, 3600]
    (only,) = await elsewhere.bus.messages(f"KV_{subjects.SCHEDULES}")
    assert Schedule.model_validate_json(only.data or b"") == versions[-1]


async def test_a_backup_can_pass_through_a_pipe(saved: Path, refresher: Refresher, elsewhere: Elsewhere, database: Database) -> None:
    """Standard output holds the file and nothing else, and standard input is read like a file."""
    written = _piped(refresher, "backup", b"")
    (saved.parent / "written").write_bytes(written)
    names = ["backup.json", "schedules/000001", "results/000001", "ledger_state/000001", "stale_rollups/000001", "manifest.json"]
    for path in (saved, saved.parent / "written"):
        with tarfile.open(path) as archive:
            assert archive.getnames() == names
    _piped(elsewhere.refresher, "restore", written)
    assert await everything(elsewhere.database) == await everything(database)


def _piped(refresher: Refresher, command: str, data: bytes) -> bytes:
    done = subprocess.run(
        [str(REFRESHER), command, "-"], input=data, env=refresher.environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_system_that_holds_something_is_left_alone_unless_told(
    saved: Path, elsewhere: Elsewhere, database: Database, bus: Bus
) -> None:
    """With --replace it holds afterwards what the file holds, and nothing else."""
    assert elsewhere.refresher("migrate").stdout
    (kept,) = await insert(elsewhere.database, row(datetime(2020, 1, 1, tzinfo=UTC)))
    assert "--replace" in elsewhere.refresher("restore", str(saved), code=1).stderr
    await elsewhere.database.execute("DELETE FROM results")
    await provision(elsewhere.bus.js)
    await elsewhere.bus.put(interval("theirs", 60))
    assert "--replace" in elsewhere.refresher("restore", str(saved), code=1).stderr
    assert list(await values(elsewhere.bus)) == ["theirs"]

    await insert(elsewhere.database, row(datetime(2020, 1, 1, tzinfo=UTC), run_id=kept))
    elsewhere.refresher("restore", "--replace", str(saved))
    assert await everything(elsewhere.database) == await everything(database)
    assert await values(elsewhere.bus) == await values(bus)


def rewritten(path: Path, change: dict[str, bytes]) -> Path:
    """Return a copy of a backup with other pieces under these names."""
    changed = path.with_name("changed.tar.gz")
    with tarfile.open(path) as old, tarfile.open(changed, "w:gz") as new:
        for entry in old:
            file = old.extractfile(entry)
            assert file
            data = change.get(entry.name, file.read())
            entry.size = len(data)
            new.addfile(entry, io.BytesIO(data))
    return changed


def piece(path: Path, name: str) -> bytes:
    """Return a piece of a backup."""
    with tarfile.open(path) as archive:
        file = archive.extractfile(name)
        assert file
        return file.read()


async def test_a_broken_file_changes_nothing_and_the_reason_is_told(saved: Path, elsewhere: Elsewhere, tmp_path: Path) -> None:
    """Cut short at any place, a bit turned over, a piece changed or missing, a newer version, something else altogether."""
    whole = saved.read_bytes()  # noqa: ASYNC240 - nothing else is to go on meanwhile
    head, manifest, rows = (piece(saved, name) for name in ("backup.json", "manifest.json", "results/000001"))
    middle = len(whole) // 2
    broken = {
        "empty": (b"", "no backup of Refresher"),
        "text": (b"hello\n", "no backup of Refresher"),
        "zipped": (gzip.compress(b"hello"), "no backup of Refresher"),
        "another-archive": (_archive("etc/passwd"), "no backup of Refresher"),
        "half": (whole[:middle], "cut short or damaged"),
        "but-the-end": (whole[:-4], "cut short or damaged"),
        "turned": (whole[:middle] + bytes([whole[middle] ^ 0x10]) + whole[middle + 1 :], "damaged"),
        "no-manifest": (rewritten(saved, {"manifest.json": b"{}"}).read_bytes(), "checksums"),
        "changed-row": (rewritten(saved, {"results/000001": rows.replace(b"home", b"hole")}).read_bytes(), "checksums"),
        "newer": (rewritten(saved, {"backup.json": head.replace(b'"version": 1', b'"version": 2')}).read_bytes(), "newer version"),
        "newer-schema": (rewritten(saved, {"manifest.json": manifest.replace(b"0001_", b"0999_")}).read_bytes(), "does not know"),
    }
    for name, (data, reason) in broken.items():
        path = tmp_path / name
        path.write_bytes(data)
        told = elsewhere.refresher("restore", str(path), code=1).stderr
        assert reason in told, f"{name}: {told}"
        assert await elsewhere.is_untouched(), name


def test_no_byte_can_change_or_be_missing_unseen(saved: Path) -> None:
    """Each end and each flipped bit is refused with a sentence, or makes no difference to what is read."""
    whole = saved.read_bytes()
    intact = Backup(io.BytesIO(whole), "the file").holds
    for place in range(len(whole)):
        with pytest.raises(ConfigurationError):
            Backup(io.BytesIO(whole[:place]), "the file")
        flipped = whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        with suppress(ConfigurationError):
            assert Backup(io.BytesIO(flipped), "the file").holds == intact


def _archive(name: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return made.getvalue()


async def test_one_row_that_is_refused_takes_all_back(saved: Path, elsewhere: Elsewhere) -> None:
    """Neither a row, nor a table, nor a schedule is there when the database refuses the last row."""
    rows = piece(saved, "results/000001").replace(b"\tmissed\t", b"\tlost\t")
    holds = json.loads(piece(saved, "manifest.json"))
    holds["pieces"]["results/000001"] = sha256(rows).hexdigest()
    changed = rewritten(saved, {"results/000001": rows, "manifest.json": json.dumps(holds).encode()})
    assert "results_status_check" in elsewhere.refresher("restore", str(changed), code=1).stderr
    assert await elsewhere.is_untouched()


async def test_schedules_that_are_refused_take_the_rows_back(saved: Path, elsewhere: Elsewhere) -> None:
    """A system with its results and without its schedules would look whole."""
    await provision(elsewhere.bus.js)
    found = (await elsewhere.bus.js.stream_info(f"KV_{subjects.SCHEDULES}")).config
    await elsewhere.bus.js.update_stream(found.evolve(max_msg_size=16))
    told = elsewhere.refresher("restore", str(saved), code=1).stderr
    assert re.search(r"NATS at 127.0.0.1:\d+ refuses: message size exceeds maximum allowed", told)
    assert await elsewhere.is_untouched()


async def test_an_old_backup_is_brought_up_to_date_and_a_newer_schema_is_refused(
    saved: Path, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that changes rows changes those of a backup, too; it cannot where it was applied before they came."""
    later = ("9999_later", "ALTER TABLE results ADD COLUMN note text; UPDATE results SET note = 'was ' || site")
    both = [*migrate.available(), later]
    for module in (migrate, saved_rows):
        monkeypatch.setattr(module, "available", lambda: both)
    with saved.open("rb") as file:
        whole = Backup(file, "the file")
        async with saved_rows.loaded(elsewhere.database, whole, replace=False):
            assert not await migrate.pending(elsewhere.database)
        assert await elsewhere.database.fetch("SELECT DISTINCT note FROM results") == [("was home",)]
        with pytest.raises(ConfigurationError, match="older than this database, which has migration 9999_later"):
            async with saved_rows.loaded(elsewhere.database, whole, replace=True):
                raise AssertionError("it was loaded")
    assert len(await everything(elsewhere.database)) == 4


def test_a_backup_is_never_overwritten_and_never_half(saved: Path, refresher: Refresher, tmp_path: Path) -> None:
    """A name that is taken is refused; where it cannot be made, no file is left behind."""
    before = saved.read_bytes()
    assert "is there already" in refresher("backup", str(saved), code=1).stderr
    assert saved.read_bytes() == before
    assert "cannot be written" in refresher("backup", str(tmp_path / "nowhere" / "file"), code=1).stderr
    refresher.environment["REFRESHER_DATABASE_URL"] = "postgresql://nobody@127.0.0.1:9/nothing"
    assert "does not answer" in refresher("backup", str(tmp_path / "half"), code=1).stderr
    assert not [each for each in tmp_path.iterdir() if "half" in each.name or "partial" in each.name]


def test_what_is_not_there_is_told(saved: Path, refresher: Refresher, elsewhere: Elsewhere, tmp_path: Path) -> None:
    """A server that was never used has nothing to save; a file that is not there cannot be restored."""
    assert "no schedules" in elsewhere.refresher("backup", str(tmp_path / "new"), code=1).stderr
    assert "cannot be read" in refresher("restore", str(tmp_path / "none"), code=1).stderr
    assert saved.exists()


async def test_sums_come_back(bus: Bus, database: Database, refresher: Refresher, elsewhere: Elsewhere, tmp_path: Path) -> None:
    """Those of a month that was dropped, too; and what is still to be added up is marked there as it was here."""
    await provision(bus.js)
    first = datetime(2025, 3, 1, tzinfo=UTC)
    await insert(database, row(first - timedelta(hours=5)), row(first + timedelta(days=2)))
    await add_up(database, first + timedelta(days=9))
    assert await drop_before(database, first) == 1
    await insert(database, row(first + timedelta(days=3)))
    refresher("backup", str(tmp_path / "file"))
    elsewhere.refresher("restore", str(tmp_path / "file"))
    for table, count in (("result_rollups", 8), ("stale_rollups", 2), ("ledger_state", 1)):
        rows = f"SELECT {table}::text FROM {table} ORDER BY 1"
        there = await elsewhere.database.fetch(rows)
        assert len(there) == count
        assert there == await database.fetch(rows)


async def test_the_backup_knows_every_table(database: Database) -> None:
    """Who adds a table, a sequence or a foreign key looks after them in services/cli/saved_rows.py."""
    found = await database.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace "
        "AND relkind IN ('r', 'p', 'S', 'm') AND NOT relispartition"
    )
    assert {each["relname"] for each in found} == {*saved_rows.TABLES, "refresher_migrations"}
    assert not await database.fetchval("SELECT count(*) FROM pg_constraint WHERE contype = 'f'")


async def test_memory_does_not_grow_with_the_rows(
    bus: Bus, database: Database, refresher: Refresher, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    """80 MB of rows pass through either side, and neither ever holds more than a few."""
    await bus.put(interval("hourly", 3600))
    await insert(database, row(datetime(2026, 1, 1, tzinfo=UTC)))
    idle = {"backup": _peak(refresher, "backup", str(tmp_path / "one"))}
    idle["restore"] = _peak(elsewhere.refresher, "restore", str(tmp_path / "one"))
    await database.execute("""
        INSERT INTO results (run_id, due_at, site, trigger, engine, status, attempt, finished_at, log)
        SELECT gen_random_uuid(), '2026-01-01Z'::timestamptz + n * interval '1 minute', 'home', 'schedule', 'noop', 'succeeded', 1, now(),
          repeat(md5(n::text), 256)
        FROM generate_series(1, 10000) n
    """)
    assert _peak(refresher, "backup", str(tmp_path / "many")) < idle["backup"] + 32 * 2**20
    assert _peak(elsewhere.refresher, "restore", "--replace", str(tmp_path / "many")) < idle["restore"] + 32 * 2**20
    assert await elsewhere.database.fetchval("SELECT count(*) FROM results") == 10_001


def _peak(refresher: Refresher, *arguments: str) -> int:
    """Run a command to its end and return the most memory that it ever had, in bytes (Linux counts in KiB)."""
    process = subprocess.Popen([str(REFRESHER), *arguments], env=refresher.environment, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024
