"""docs/ci.md says what the commands do: its statuses are theirs, and every command in it can be given."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from caq.cli.app import app
from caq.report.types import EXIT

GUIDE = (Path(__file__).parents[2] / "docs" / "ci.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


def workflow() -> dict[str, object]:
    (text,) = blocks("yaml")
    loaded = yaml.load(text, yaml.BaseLoader)  # as GitHub: `on` is a word
    assert isinstance(loaded, dict)
    return loaded


def scripts() -> list[str]:
    steps = [step for job in workflow()["jobs"].values() for step in job["steps"]]  # type: ignore[attr-defined]
    return [*blocks("bash"), *(step["run"] for step in steps if "run" in step)]


def commands() -> list[list[str]]:
    lines = [line for script in scripts() for line in script.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line.strip().startswith("caq ")]


def test_the_workflow_has_what_github_asks_of_one() -> None:
    parsed = workflow()
    assert {"name", "on", "jobs"} <= parsed.keys()
    for job in parsed["jobs"].values():  # type: ignore[attr-defined]
        assert job["runs-on"]
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


@pytest.mark.parametrize("script", scripts())
def test_every_script_is_bash(script: str) -> None:
    checked = subprocess.run(
        ["bash", "-n"], input=re.sub(r"\$\{\{.*?\}\}", "x", script), text=True, capture_output=True
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_has_the_options_that_it_is_given(words: list[str]) -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    options = {name for parameter in known[words[1]].params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_the_statuses_are_the_commands() -> None:
    told = {int(status): text for status, text in re.findall(r"^\| (\d) \| (\w+)", GUIDE, re.MULTILINE)}
    assert told.keys() == {*EXIT.values(), 1, 2}
    assert (told[EXIT["pass"]], told[EXIT["regression"]], told[EXIT["undecided"]]) == (
        "pass",
        "regression",
        "undecided",
    )
