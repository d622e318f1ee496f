"""The rules of the layout, read from the sources."""

import ast
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from maskbridge import plugins
from maskbridge.options import field_docs

ROOT = Path(__file__).parents[1]
WAIST = "maskbridge"
PACKAGES = (WAIST, "converters", "finetune", "baselines", "evaluation")
HEAVY = ("torch", "torchvision", "ultralytics", "segment_anything", "timm", "safetensors")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in MODULES]


def imported(node: ast.AST) -> set[str]:
    """Full names of every module imported anywhere below a node, also by importlib and by plain string."""
    names: set[str] = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            names.update(alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            names.add("." * child.level + (child.module or ""))
        elif isinstance(child, ast.Call) and child.args and isinstance(child.args[0], ast.Constant):
            called = ast.unparse(child.func)
            if called.endswith(("import_module", "__import__", "find_spec", "resolve_name")):
                names.add(str(child.args[0].value))
    return names


def at_import(tree: ast.Module) -> set[str]:
    """Modules imported when the module itself is, not those in functions or for type checkers."""
    body = [
        node
        for node in tree.body
        if not isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    return imported(ast.Module(body=body, type_ignores=[]))


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_a_package_imports_the_waist_and_itself_alone(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    found = roots(imported(ast.parse(path.read_text(encoding="utf-8"))))
    assert "" not in found, "a relative import"
    siblings = (found & set(PACKAGES)) - {WAIST, package}
    assert not siblings


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_the_waist_the_converters_and_evaluation_never_import_torch(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] in (WAIST, "converters", "evaluation"):
        found = roots(imported(ast.parse(path.read_text(encoding="utf-8"))))
        assert not found & set(HEAVY)


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_ultralytics_is_imported_by_yolo_world_and_its_helpers_alone(path: Path) -> None:
    if "ultralytics" in roots(imported(ast.parse(path.read_text(encoding="utf-8")))):
        assert path.parent == ROOT / "finetune"
        assert path.name == "yolo_world.py" or path.name.startswith("_yolo_world_")


@pytest.mark.parametrize("kind", ["format", "approach"])
def test_public_plugins_import_nothing_heavy_when_they_are_imported(kind: plugins.Kind) -> None:
    for package in plugins.PACKAGES[kind]:
        for path in (ROOT / package).glob("[!_]*.py"):
            assert not roots(at_import(ast.parse(path.read_text(encoding="utf-8")))) & set(HEAVY), path


def test_help_imports_nothing_heavy() -> None:
    """Of the program and of every approach, in a process of their own."""
    script = """
import contextlib, io, sys
from maskbridge import plugins
from maskbridge.cli import main
calls = [["--help"], *([name, "--help"] for name in plugins.names("command"))]
calls += [[command, name, "--help"] for command in ("train", "crossval") for name in plugins.names("approach")]
for call in calls:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main(call)
    assert "usage: maskbridge" in printed.getvalue(), call
    loaded = sorted({name.split(".")[0] for name in sys.modules} & set(sys.argv[1:]))
    assert not loaded, (call, loaded)
"""
    done = subprocess.run([sys.executable, "-c", script, *HEAVY], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_a_module_begins_with_what_it_is(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert len(text) > 10


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_no_module_has_a_name_that_says_nothing(path: Path) -> None:
    words = set(path.stem.strip("_").split("_"))
    assert not words & {"utils", "util", "common", "helpers", "helper", "manager", "misc"}


def test_the_data_home_is_no_package_and_holds_one_tracked_file() -> None:
    """A package of this name would shadow Hugging Face `datasets`."""
    assert not list((ROOT / "datasets").rglob("*.py"))
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert lines.index("/datasets/*") < lines.index("!/datasets/README.md")
    assert (ROOT / "datasets" / "README.md").is_file()


FORMATS = plugins.names("format")
APPROACHES = plugins.names("approach")


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_reads_or_exports(name: str) -> None:
    module = plugins.load("format", name)
    given = {what for what in ("read", "export") if callable(getattr(module, what, None))}
    assert given
    assert given <= plugins.functions("format", name), "the command line looks for `def`"
    if "read" in given:
        assert list(inspect.signature(module.read).parameters) == ["source", "reading"]
    if "export" in given:
        assert list(inspect.signature(module.export).parameters) == ["dataset", "out", "options"]


@pytest.mark.parametrize("name", APPROACHES)
def test_an_approach_has_the_four_names(name: str) -> None:
    module = plugins.load("approach", name)
    assert isinstance(module.SUPERVISED, bool)
    for what in ("train", "predict"):
        assert list(inspect.signature(getattr(module, what)).parameters) == ["data", "config", "weights", "context"]
        assert inspect.getdoc(getattr(module, what))


@pytest.mark.parametrize("name", APPROACHES)
def test_the_options_of_an_approach_are_frozen_named_and_documented(name: str) -> None:
    module = plugins.load("approach", name)
    config = module.Config()
    fields = dataclasses.fields(config)
    assert all(field.kw_only for field in fields)
    texts = field_docs(module.Config)
    assert [field.name for field in fields if not texts.get(field.name)] == []
    if fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, fields[0].name, None)
    names = {field.name for field in fields}
    assert set(getattr(module, "PREDICT_OPTIONS", ())) <= names
    for preset, options in getattr(module, "PRESETS", {}).items():
        assert set(options) <= names, preset
        module.Config(**options)
    settings = {"fold", "device", "seed", "resume", "overwrite", "preset", "part", "quiet"}
    assert not names & settings, "an option of this name belongs to the command"
