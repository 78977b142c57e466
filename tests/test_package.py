"""The package as a whole: public names, imports, and the content of the wheel."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_public_names_are_exactly_those_of_the_stub() -> None:
    import medsam_app

    stub = ast.parse((ROOT / "medsam_app/__init__.pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names} - {"__version__"}
    (listed,) = [ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign)]
    assert listed == sorted(names)
    assert set(medsam_app.__all__) == names | {"__version__"}
    for name in names:
        value = getattr(medsam_app, name)
        assert getattr(value, "__name__", name) == name


def test_the_docs_import_only_public_names() -> None:
    import medsam_app

    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for module, names in re.findall(r"^from (medsam_app\S*) import (.*)$", page.read_text(), re.M):
            assert module == "medsam_app", f"{page.name} imports from {module}"
            assert {name.strip() for name in names.split(",")} <= set(medsam_app.__all__), page.name


def test_importing_the_package_is_light() -> None:
    script = "import sys, medsam_app; print([m for m in ('torch', 'monai', 'gradio') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["models", "adapters"])
def test_bare_names_are_refused(name: str) -> None:
    run = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert f"imported as 'medsam_app.{name}'" in run.stderr


def test_every_dependency_has_a_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = project["dependencies"], *project["optional-dependencies"].values()
    unbounded = [
        requirement
        for group in groups
        for requirement in group
        if requirement != "medsam-app[test]" and "==" not in requirement
    ]
    script = [sys.executable, ".ci/lowest.py"]
    lines = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.replace("==", ">=") for line in lines] == unbounded
    assert all(re.fullmatch(r"[\w-]+==\d[\d.]*", line) for line in lines)


@pytest.mark.slow
def test_the_wheel_contains_only_medsam_app(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), "."]
    run = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"medsam_app"}
    for needed in (
        "medsam_app/batch/index_page.css",
        "medsam_app/batch/index_page.js",
        "medsam_app/py.typed",
        "medsam_app/models/sam3d.py",
        "medsam_app/models/weights/sam3d_tiny.safetensors",
        "medsam_app/adapters/__init__.py",
    ):
        assert needed in names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "medsam_app").rglob("*.py")}
    assert modules <= set(names), "add the new package to [tool.setuptools] packages in pyproject.toml"
    scripts = {Path(name).name for name in names if name.startswith("medsam_app/browser/static/")}
    assert scripts == {path.name for path in (ROOT / "medsam_app/browser/static").iterdir() if path.is_file()}


def test_the_project_names_no_registry_and_no_local_path() -> None:
    hosts = ["files.python" + "hosted", "registry.npm" + "js", "py" + "pi.org", "deb.deb" + "ian"]
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in files:
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".js", ".css", ".txt", ".yaml", ".json"}:
            text = path.read_text()
            assert not [host for host in hosts if host in text], name
