"""The README says what is true: its tables are the registry, its commands exist."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from maskbridge import plugins

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def table(header: str) -> dict[str, list[str]]:
    """First column -> the other cells, of the table with this first header cell."""
    lines = README[README.index(f"| {header} |") :].split("\n\n", 1)[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in rows}


def make(*words: str) -> list[str]:
    """The lines that make prints; the same where the tests are run by make themselves."""
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    done = subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.splitlines()


def test_the_table_of_approaches_is_the_registry() -> None:
    assert sorted(table("approach")) == plugins.names("approach")


def test_the_table_of_formats_is_the_registry_with_its_directions() -> None:
    formats = table("format")
    assert sorted(formats) == plugins.names("format")
    for name, (reads, writes, _) in formats.items():
        functions = plugins.functions("format", name)
        assert (reads == "yes", writes == "yes") == ("read" in functions, "export" in functions)


def test_every_maskbridge_command_named_in_the_readme_exists() -> None:
    named = set(re.findall(r"\bmaskbridge ([a-z-]+)\b", " ".join(re.findall(r"`[^`]+`|```.*?```", README, re.S))))
    assert named
    assert named - {"--help"} <= set(plugins.names("command"))


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_every_make_target_named_in_the_readme_is_listed_by_make() -> None:
    targets = {line.split()[0] for line in make() if line[:1].isalpha()}
    named = set(re.findall(r"^make ([a-z-]+)", README, re.M))
    assert {"demo", "test", "convert", "finetune-yolo", "finetune-sam", "baselines", "evaluate"} <= named
    assert named <= targets


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize("target", ["evaluate", "report"])
def test_runs_without_predictions_are_named_and_left_out_by_make(target: str, tmp_path: Path) -> None:
    for run in ("plate-knn-all", "plate-pca-all", "plate-sam-all"):
        (tmp_path / run / "predictions" / "val").mkdir(parents=True)
        (tmp_path / run / "run.json").touch()
    for run in ("plate-knn-all", "plate-sam-all"):
        (tmp_path / run / "predictions" / "crossval").mkdir()
    left_out, command = make("-n", target, "NAME=plate", f"RUNS={tmp_path}")[-2:]
    assert left_out.split('"')[1] == f"left out for want of predictions: {tmp_path}/plate-pca-all"
    assert f" {target} {tmp_path}/plate-knn-all {tmp_path}/plate-sam-all --out " in command


def test_every_file_linked_from_the_readme_exists() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target
