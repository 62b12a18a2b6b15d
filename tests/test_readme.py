"""What the README says holds: its commands parse, what it names exists, its map is complete."""

import re
import shlex

import pytest

from capjax import cli
from capjax.config import load_config
from tests.test_architecture import ALLOWED, BETWEEN, JOBS, PACKAGE

ROOT = PACKAGE.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
# `srun … capjax train` and the set-up's `&& .venv/bin/capjax demo` among them.
COMMANDS = [found for block in BLOCKS for found in re.findall(r"(?:^|[ /])capjax (.*)$", block, flags=re.MULTILINE)]


def test_the_commands_are_found():
    assert {command.split()[0] for command in COMMANDS} == set(cli.COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse_and_configurations_have_what_they_set(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = cli._parse(shlex.split(command, comments=True))
    if "config" in args:
        assert load_config(args.config, args.overrides).recipe


def test_recipes_exist():
    recipes = set(re.findall(r"configs/(\w+)\.py", README))
    table = README.split("| recipes |")[1].split("\n\n")[0]
    recipes |= {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[-2])}
    assert len(recipes) > 12
    assert recipes <= {path.stem for path in (ROOT / "configs").glob("*.py")}


def test_the_map_shows_every_room():
    rows = README.split("## The map of the code")[1].split("\n## ")[0].splitlines()
    named = {name for row in rows if row.startswith("|") for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    rooms = {name.removeprefix("capjax/").removesuffix("/").removesuffix(".py") for name in named}
    assert {*ALLOWED, *BETWEEN, *JOBS, "api"} - rooms == set()
    assert rooms - {*ALLOWED, *BETWEEN, *JOBS, "api"} == {"configs", "experiments"}


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []
