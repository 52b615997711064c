"""The README is true: its engine runs, and its table is what the settings say."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from services.cli.settings import as_markdown

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
REFRESHER = Path(sys.executable).parent / "refresher"


def test_the_example_engine_runs_from_another_package(tmp_path: Path, unused_port: int, listening_port: int) -> None:
    """The code of the README, installed as somebody else's package, measures and fails as it says, in under 20 lines."""
    found = re.search(r"<!-- engine example.*?-->\n```python\n(.*?)```", README, re.DOTALL)
    assert found
    code = found[1]
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]) < 20
    (tmp_path / "my_package.py").write_text(code)
    metadata = tmp_path / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    entry_point = re.search(r'\[project.entry-points."refresher.probes"\]\nconnect = "(.*?)"', README)
    assert entry_point
    (metadata / "entry_points.txt").write_text(f"[refresher.probes]\nconnect = {entry_point[1]}\n")

    def probe(*options: str) -> "subprocess.CompletedProcess[str]":
        command = [REFRESHER, "probe", "connect", "--json", *(word for option in options for word in ("--option", option))]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)

    done = probe("host=127.0.0.1", f"port={listening_port}")
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["latency_s"] < 10
    failed = probe("host=127.0.0.1", f"port={unused_port}")
    assert failed.returncode == 1
    assert f"127.0.0.1:{unused_port} does not answer" in failed.stderr
    wrong = probe("hots=127.0.0.1")
    assert wrong.returncode == 1
    assert "host: Field required" in wrong.stderr


def test_the_table_of_settings_is_what_the_settings_say() -> None:
    """A setting that is added, renamed or explained anew is in the README: `refresher settings --markdown` prints the table."""
    found = re.search(r"<!-- settings: .*?-->\n(.*?)\n<!-- end of settings -->", README, re.DOTALL)
    assert found
    assert found[1].strip() == as_markdown()


def test_every_setting_is_explained() -> None:
    """No row of the table is without its meaning."""
    assert all(line.rsplit("|", 2)[1].strip() for line in as_markdown().splitlines())


def test_the_settings_command_shows_what_is_set_but_no_password() -> None:
    """What is in force here is in the table; an address that may hold a password is only said to be set."""
    environment = {**os.environ, "REFRESHER_SITE": "office", "REFRESHER_NATS_URL": "nats://user:secret@example.org"}
    shown = subprocess.run([REFRESHER, "settings"], env=environment, capture_output=True, text=True, timeout=30, check=True).stdout
    rows = {line.split("\t")[0]: line.split("\t")[3] for line in shown.splitlines()}
    assert rows["REFRESHER_SITE"] == "office"
    assert rows["REFRESHER_NATS_URL"] == "set"
    assert "secret" not in shown


def test_links_lead_somewhere() -> None:
    """Every relative link of the README and of CONTRIBUTING is a file or folder here."""
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text()):
            assert (ROOT / target).exists(), f"{page}: {target}"
