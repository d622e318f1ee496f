import json
import sys
from pathlib import Path

import pytest

from maskbridge import plugins
from maskbridge.cli import main
from maskbridge.errors import OptionError

ROOT = Path(plugins.__file__).parents[1]


@pytest.fixture
def extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of formats beside the shipped one."""
    package = tmp_path / "more_converters"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(plugins.PACKAGES, "format", ("converters", "more_converters"))
    yield package
    for name in [name for name in sys.modules if name.startswith("more_converters")]:
        del sys.modules[name]


@pytest.mark.parametrize("kind", ["format", "approach", "command"])
def test_every_public_module_is_listed_under_its_name_and_nothing_else(kind: plugins.Kind) -> None:
    files = [path for package in plugins.PACKAGES[kind] for path in (ROOT / package.replace(".", "/")).glob("[!_]*.py")]
    assert plugins.names(kind) == sorted(path.stem.replace("_", "-") for path in files)


def test_the_names_of_the_architecture_are_there() -> None:
    assert {"mvtec", "magnetic-tile", "coco", "yolo", "yolo-seg"} <= set(plugins.names("format"))
    assert {"yolo-world", "sam", "deep-svdd", "autoencoder", "knn"} <= set(plugins.names("approach"))


@pytest.mark.parametrize("kind", ["format", "approach", "command"])
def test_every_module_has_a_summary_of_one_line(kind: plugins.Kind) -> None:
    for name in plugins.names(kind):
        assert 10 < len(plugins.summary(kind, name)) < 120


def test_an_unknown_name_is_refused_with_all_names_and_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"no approach of this name; found deepsvdd; .*knn.*did you mean deep-svdd\?"):
        plugins.load("approach", "deepsvdd")
    with pytest.raises(OptionError, match=r"no format of this name; found \?\?; expected [^?]*$"):
        plugins.load("format", "??")


def test_a_helper_module_cannot_be_loaded_as_a_plugin() -> None:
    with pytest.raises(OptionError):
        plugins.load("approach", "-sam-model")


def test_one_new_file_is_a_new_format(extra: Path, tmp_path: Path, capsys, zoo_source: Path) -> None:
    (extra / "wood_planks.py").write_text(
        '"""Planks, as the mill delivers them."""\nfrom converters.mvtec import read\n'
        "def export(dataset, out, options): pass\n"
    )
    assert "wood-planks" in plugins.names("format")
    assert plugins.summary("format", "wood-planks") == "Planks, as the mill delivers them."
    assert plugins.functions("format", "wood-planks") == {"export"}
    assert main(["convert", "wood-planks", str(zoo_source), str(tmp_path / "out"), "--link", "copy"]) == 0
    assert (tmp_path / "out" / "dataset.json").is_file()
    capsys.readouterr()
    assert main(["list", "formats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["wood-planks"] == "Planks, as the mill delivers them."


def test_looking_a_summary_up_imports_nothing(extra: Path) -> None:
    (extra / "broken.py").write_text('"""Broken."""\nraise RuntimeError\n')
    assert plugins.summary("format", "broken") == "Broken."
    assert plugins.functions("format", "broken") == set()
    assert "broken" in plugins.names("format")
    with pytest.raises(RuntimeError):
        plugins.load("format", "broken")
