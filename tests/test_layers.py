"""How the house is built: what may import what, and what a wheel holds."""

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

#: Floors of the house, lowest first; a module imports from its own floor and those below.
FLOORS = [
    {"errors", "geometry", "prompts"},
    {"models"},
    {"adapters"},
    {
        "archive",
        "canvas",
        "cases",
        "csv_table",
        "describe",
        "dicom",
        "dicom_frames",
        "dicom_seg",
        "dicom_seg_reader",
        "dicom_seg_source",
        "dicom_stack",
        "headers",
        "headers_text",
        "intensity",
        "machine",
        "mask_files",
        "memory",
        "nifti_header",
        "readers",
        "saving",
        "volume",
        "whole_file",
    },
    {
        "automatic",
        "cache",
        "clicks",
        "compliance",
        "engine",
        "framing",
        "local_edit",
        "phantom",
        "prediction",
        "predictor",
        "propagation",
        "roi",
        "roi_prompts",
        "diameters",
        "doubt",
        "measurements",
        "slice_engine",
        "slice_prompts",
        "slice_stack",
        "slice_walk",
        "surface",
        "tiles",
        "touch_up",
        "windows",
    },
    {
        "objects",
        "history",
        "label_set",
        "mask_tools",
        "object_history",
        "retouch",
        "strokes",
        "interaction",
        "editing",
        "session",
        "prompt_file",
        "prompt_schema",
        "anatomy",
        "draws",
        "painting",
        "shapes",
        "orthogonal",
        "pseudo_objects",
        "training_data",
    },
    {
        "batch",
        "batch_case",
        "batch_folder",
        "worklist",
        "worklist_folder",
        "worklist_rows",
        "casework",
        "taught",
        "teach_job",
        "batch_index",
        "batch_job",
        "batch_output",
        "batch_prompts",
        "batch_ray",
        "batch_record",
        "batch_report",
        "batch_settings",
        "case_file",
        "html_page",
        "thumbnails",
        "recipe",
        "training_loss",
        "training_state",
        "exam",
        "teaching_data",
        "rival_net",
        "finetune",
        "game",
        "validation",
        "plan",
        "plan_cases",
        "plan_labels",
        "plan_windows",
        "planning",
        "preflight",
        "pretrain",
        "training_run",
        "trial",
        "export_weights",
        "classical",
        "dataset_files",
        "dataset_folders",
        "dataset_parts",
        "datasets",
        "fingerprint",
        "fingerprint_case",
        "fingerprint_file",
        "fingerprint_labels",
        "measuring",
        "scores",
        "summary",
        "comparison",
        "distances",
        "evaluate",
        "evaluated_cases",
        "gallery",
        "methods",
        "plots",
        "report",
        "resampling",
        "segmenters",
        "sheets",
        "evaluation_files",
    },
    {"browser"},
    {
        "batch_command",
        "cli",
        "tied",
        "cli_dataset",
        "cli_evaluate",
        "cli_options",
        "cli_pretrain",
        "cli_segment",
        "commands",
        "dataset_command",
        "evaluate_command",
        "models_command",
        "plan_table",
        "cli_finetune",
        "finetune_command",
        "teach_job",
        "finetune_report",
        "finetune_setup",
        "pretrain_command",
        "processes",
        "reporting",
        "segment_command",
        "training_watch",
        "__main__",
    },
]


def _modules() -> dict[str, list[Path]]:
    parts: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "medsam_app").rglob("*.py")):
        relative = path.relative_to(ROOT / "medsam_app")
        name = relative.parts[0].removesuffix(".py")
        if name != "__init__":
            parts.setdefault(name, []).append(path)
    for folder in ("models", "adapters"):
        parts[folder] = sorted((ROOT / folder).rglob("*.py"))
    return parts


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _floor(name: str) -> int:
    floors = [n for n, names in enumerate(FLOORS) if name in names]
    assert floors, f"module {name} stands on no floor of FLOORS"
    return floors[0]


def test_imports_go_one_way() -> None:
    for name, paths in _modules().items():
        for path in paths:
            for target in _imports(path):
                if target.startswith("medsam_app."):
                    used = target.split(".")[1]
                    if any(used in names for names in FLOORS):
                        assert _floor(used) <= _floor(name), f"{path.name} ({name}) imports {target}"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("gradio", {"browser"}),
        ("highdicom", {"dicom_seg"}),
        ("matplotlib", {"plots"}),
        ("monai", {"automatic", "distances", "readers", "rival_net", "teaching_data"}),
    ],
)
def test_only_one_place_imports(library: str, allowed: set[str]) -> None:
    users = {
        name
        for name, paths in _modules().items()
        for path in paths
        if any(target.split(".")[0] == library for target in _imports(path))
    }
    assert users <= allowed


def test_public_names_are_sorted_and_there() -> None:
    import medsam_app

    assert medsam_app.__all__ == sorted(medsam_app.__all__)
    for name in medsam_app.__all__:
        assert getattr(medsam_app, name).__name__ == name


def test_importing_the_package_is_light() -> None:
    script = "import sys, medsam_app; print([m for m in ('torch', 'monai', 'gradio') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["models", "adapters"])
def test_bare_names_are_refused(name: str) -> None:
    run = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert f"imported as 'medsam_app.{name}'" in run.stderr


def test_every_dependency_can_be_tried_at_its_lowest() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = project["dependencies"], *project["optional-dependencies"].values()
    wanted = [each for group in groups for each in group if each != "medsam-app[test]"]
    script = [sys.executable, ".ci/lowest.py"]
    lines = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.replace("==", ">=") for line in lines] == wanted
    assert all(re.fullmatch(r"[\w-]+==\d[\d.]*", line) for line in lines)


def test_wheel_holds_medsam_app_alone(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), "."]
    run = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"medsam_app"}
    for needed in (
        "medsam_app/batch_index.css",
        "medsam_app/batch_index.js",
        "medsam_app/py.typed",
        "medsam_app/models/sam3d.py",
        "medsam_app/models/weights/sam3d_tiny.safetensors",
        "medsam_app/adapters/__init__.py",
    ):
        assert needed in names
    scripts = {Path(name).name for name in names if name.startswith("medsam_app/browser/static/")}
    assert scripts == {path.name for path in (ROOT / "medsam_app/browser/static").iterdir() if path.is_file()}


def test_the_project_names_no_registry_and_no_path_of_a_machine() -> None:
    hosts = ["files.python" + "hosted", "registry.npm" + "js", "py" + "pi.org", "deb.deb" + "ian"]
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in files:
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".js", ".css", ".txt", ".yaml", ".json"}:
            text = path.read_text()
            assert not [host for host in hosts if host in text], name
