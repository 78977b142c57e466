"""Hashes of all outputs of a checkout, to compare two checkouts byte by byte.

    python scripts/same_bytes.py TREE DATA OUT.json [--only SECTION] [--keep FOLDER]
    python scripts/same_bytes.py --compare OLD.json NEW.json

TREE is the root of a checkout, DATA a folder of labelled volumes with a manifest.json. The script uses only
interfaces that do not depend on module paths: the command line, the routes of the server, and the public
names of `medsam_app`. Run both checkouts on the same machine in the same environment, since the last bits of
sums depend on them.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import difflib
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
from scipy.ndimage import distance_transform_edt

#: Number of cases to segment, number of them also segmented by the command line, and largest file in bytes.
CASES, BY_COMMAND, MOST_BYTES = 20, 4, 6_000_000
#: Fields of JSON and columns of CSV that differ from run to run.
VARIES = {"seconds", "minutes", "peak_memory", "token", "upload", "stamp", "machine"}
#: Settings of short training runs.
PLAN = ("batch=2", "window=[16,16,16]", "spacing=2", "validate_steps=15")
RECIPE = {
    "steps": 30, "shares": {"real": 1, "pseudo": 0.5, "heads": 0.5, "synthetic": 1}, "windows": [[16, 2]],
    "rounds": [2, 2], "learning_rate": 1e-3, "warmup_steps": 2, "validate_steps": 15,
    "validation_windows": 2,
}  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n and so on"
CPU = ("--device", "cpu")
#: Patterns of texts that differ from run to run, with their replacements.
_TEXTS = (
    (r"(?m)^\d+ %:.*\n", ""),  # progress, which depends on the clock
    (r"http://(localhost|127\.0\.0\.1):\d+", "SERVER"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?", "TIME"),
    (r"\b\d+(\.\d+)? ?(s|ms|min|seconds|minutes)\b|\b\d+:\d\d(:\d\d)?\b", "DURATION"),
    (r"\b\d+\.\d\d a volume", "DURATION"),
    (r"(?m)(%(?: +|</td>\s*<td>))\d+\.\d\d(?= *$|</td>\s*</tr>)", r"\1DURATION"),  # seconds per click
    (r"\btmp[a-z0-9_]{8}\b", "TEMPORARY"),
    (r'(data-(values|far)=")[^ "]+', r"\1DURATION"),  # in the page of a batch, seconds come first
)


class Run:
    """One checkout under test and its outputs.

    Args:
        tree: root of the checkout.
        data: folder of labelled volumes.
        work: temporary folder of all inputs and outputs, so that relative paths are the same in every run.
        keep: folder for everything that is hashed, normalised, to look into a difference; or None.

    Attributes:
        found: by name the SHA-256 of a file or an answer, or a text that was printed.
        cases: those of the data, the smallest first.
    """

    def __init__(self, tree: Path, data: Path, work: Path, keep: Path | None) -> None:
        self.tree, self.data, self.work, self.keep = tree, data, work, keep
        self.found: dict[str, str] = {}
        self.cases: list[dict[str, Any]] = json.loads((data / "manifest.json").read_text())["cases"]
        self.cases.sort(key=lambda case: (case["bytes"], case["id"]))
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {
            "PYTHONPATH": str(tree), "PYTHONPYCACHEPREFIX": str(work / "pycache"), "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "160", "TERM": "dumb", "NO_COLOR": "1", "TZ": "UTC",
            "MEDSAM_APP_HOME": str(work / "home"), "TMPDIR": str(self.folder("tmp")),
            "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip

    def text(self, text: str) -> str:
        """Return a text without paths of this machine, times, durations and progress."""
        text = re.sub(rf"{re.escape(str(self.work))}/tmp/[\w.-]+", "TEMPORARY", text)
        text = text.replace(str(self.work), "WORK").replace(str(self.tree), "TREE")
        for pattern, place in _TEXTS:
            text = re.sub(pattern, place, text)
        return text

    def value(self, value: Any) -> Any:
        """Return a JSON value with normalised texts and without fields that vary."""
        if isinstance(value, dict):
            hidden = {key for key in VARIES & value.keys() if value[key] is not None}
            kept = {key: "VARIES" if key in hidden else self.value(each) for key, each in value.items()}
            # Hashes of files that contain times; the files are hashed separately.
            return kept | {"files": sorted(kept["files"])} if isinstance(kept.get("files"), dict) else kept
        if isinstance(value, list | tuple):
            return [self.value(each) for each in value]
        if isinstance(value, str) and value[:1] in ("{", "["):  # as in the header of a safetensors file
            with contextlib.suppress(ValueError):
                return self.value(json.loads(value))
        return self.text(value) if isinstance(value, str) else value

    def json(self, value: Any) -> bytes:
        """Return a value as JSON, normalised."""
        return (json.dumps(self.value(value), indent=1) + "\n").encode()

    def plain(self, name: str, body: bytes) -> bytes:
        """Return the bytes of a file without compression and variable parts, according to its suffix."""
        ending = name.rsplit(".", 1)[-1]
        if ending == "gz":
            return gzip.decompress(body)
        if ending == "zip":
            with zipfile.ZipFile(io.BytesIO(body)) as archive:
                members = [(each, self.plain(each, archive.read(each))) for each in archive.namelist()]
            return self.json([(each, sha256(member)) for each, member in members])
        if ending == "safetensors":
            return self.headed(body, 8)
        if ending == "dcm":
            return segmentation(body)
        if ending in ("json", "jsonl"):
            lines = body.splitlines() if ending == "jsonl" else [body]
            return b"".join(self.json(json.loads(line)) for line in lines)
        if ending == "csv":
            return self.json(list(csv.DictReader(io.StringIO(body.decode()))))
        return self.text(body.decode()).encode() if ending == "html" else body

    def headed(self, body: bytes, size: int) -> bytes:
        """Return bytes whose JSON header is normalised; its length is in the first `size` bytes."""
        end = size + int.from_bytes(body[:size], "little")
        with contextlib.suppress(ValueError):
            return self.json(json.loads(body[size:end])) + body[end:]
        return body

    def hash(self, name: str, body: bytes) -> None:
        """Store the hash of a normalised output."""
        self.found[name] = sha256(body)
        if self.keep is not None:
            path = self.keep / name.replace(" ", "_")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)

    def files(self, name: str, folder: Path, *, without: str = "$^") -> None:
        """Store the hash of each file in a folder; for NIfTI files also that of voxels and affine.

        Args:
            without: pattern of the names that are left out.
        """
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            inner = path.relative_to(folder).as_posix()
            if re.search(without, inner):
                continue
            self.hash(f"{name}/{inner}", self.plain(inner, path.read_bytes()))
            if inner.endswith((".nii", ".nii.gz")):
                image: Any = nib.load(path)
                voxels = np.asarray(image.dataobj).tobytes("F")
                self.hash(f"{name}/{inner} voxels", voxels + image.affine.tobytes())

    def child(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run Python in the checkout with empty standard input."""
        return subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=self.tree, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip

    def command(self, name: str, *arguments: object) -> None:
        """Run `medsam-app` and store its exit status and output as text."""
        done = self.child("-m", "medsam_app", *arguments)
        said = f"status {done.returncode}\n{done.stdout}-- errors\n{done.stderr}"
        self.found[f"{name} text"] = self.text(said)

    def folder(self, name: str) -> Path:
        """Return a folder within the work folder; create it if necessary."""
        place = self.work / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def copies(self, folder: str, cases: Iterable[dict[str, Any]], *, labels: bool = False) -> list[Path]:
        """Copy the images and label maps of cases into a folder; return the paths of the images."""
        place, images = self.folder(folder), []
        for case in cases:
            images.append(Path(shutil.copy(self.data / case["image"], place)))
            if labels:
                shutil.copy(self.data / case["label"], place)
        return images

    def some(self, split: str, dataset: str | None = None) -> list[dict[str, Any]]:
        """Return small cases of a split, smallest first; without a dataset, cycle through all datasets."""
        turns, before = [], dict[str, int]()
        for case in self.cases:
            if case["split"] == split and case["bytes"] < MOST_BYTES and dataset in (None, case["dataset"]):
                before[case["dataset"]] = turn = before.get(case["dataset"], -1) + 1
                turns.append((turn, case["dataset"], case))
        return [case for _, _, case in sorted(turns, key=lambda each: each[:2])]

    def asked(self, case: dict[str, Any]) -> dict[str, Any]:
        """Return prompts for the largest label of a case, in voxel indices (i, j, k).

        The first point is the deepest voxel, the second one deep and far from it, the negative one the voxel
        of the box that is farthest from the object.
        """
        image: Any = nib.load(self.data / case["label"])
        array, spacing = np.asarray(image.dataobj), image.header.get_zooms()[:3]
        values, counts = np.unique(array[array > 0], return_counts=True)
        value = int(values[counts.argmax()])
        voxels = np.argwhere(array == value)
        lower, upper = voxels.min(axis=0), voxels.max(axis=0)
        inside = array[tuple(slice(a, b + 1) for a, b in zip(lower, upper, strict=True))] == value
        depth = distance_transform_edt(np.pad(inside, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
        first = np.unravel_index(depth.argmax(), inside.shape)
        far = np.linalg.norm(np.moveaxis(np.indices(inside.shape), 0, -1) - first, axis=-1)
        scores = (depth, depth * far, distance_transform_edt(~inside, sampling=spacing))
        places = [(lower + np.unravel_index(each.argmax(), inside.shape)).tolist() for each in scores]
        box = [lower.tolist(), upper.tolist()]
        return {"label": value, "points": places[:2], "negative": places[2], "box": box}


def sha256(body: bytes) -> str:
    """Return the hash in hexadecimal."""
    return hashlib.sha256(body).hexdigest()


def segmentation(body: bytes) -> bytes:
    """Return a DICOM file as text and voxels, without dates, times and new UIDs."""
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(body))
    for element in dataset.iterall():
        if element.VR in ("DA", "TM", "DT"):
            element.value = None
    uid = r"\b(2\.25|1\.2\.826\.0\.1\.3680043[\d.]*)\.\d+"
    return re.sub(uid, "UID", str(dataset)).encode() + dataset.PixelData


def joined(numbers: Iterable[int]) -> str:
    """Return '1,2,3'."""
    return ",".join(map(str, numbers))


def predict(work: Path) -> None:
    """Segment cases with the public names of `medsam_app`; runs in a process of the checkout."""
    import medsam_app as app

    predictor = app.VolumePredictor(device="cpu")
    for name, asked in json.loads((work / "cases.json").read_text()).items():
        out = work / "masks" / name
        out.mkdir(parents=True)
        volume = app.load_volume(work / "images" / name)
        predictor.set_volume(volume)
        (lower, upper), points = asked["box"], [*asked["points"], asked["negative"]]
        made = {"clicks": predictor.predict(points=points, point_labels=[1, 1, 0])}
        made["box"] = predictor.predict(boxes=[[lower, upper]], refine=False)
        made["mask"] = predictor.predict(mask_input=made["box"].mask, points=points[:1], refine=False)
        for method, each in made.items():
            app.save_mask(each.mask, volume, out / f"{method}.nii.gz", label_names={1: method})
        session = app.Session(volume, predictor, refine=False)
        whole, part = session.add_object("whole", label=3).id, session.add_object("slice").id
        session.add_prompt(whole, app.Box(lower=lower, upper=upper))
        session.add_prompt(whole, app.Point(coordinates=points[2], positive=False))
        session.add_prompt(part, app.Box(lower=[*lower[:2], points[0][2]], upper=[*upper[:2], points[0][2]]))
        session.save_prompts(out / "saved.prompts.json")
        again = app.Session(volume, predictor)
        notes = again.load_prompts(out / "saved.prompts.json")
        app.save_mask(again.label_map(), volume, out / "prompts.nii.gz", label_names=again.label_names)
        facts = {method: [each.score, each.volume_ml, len(each.unmet)] for method, each in made.items()}
        shared = [count for _, _, count in again.overlaps()]
        (out / "facts.json").write_text(json.dumps({**facts, "notes": notes, "shared": shared}))


def masks(run: Run) -> None:
    """Segment by clicks, a box, a mask and a prompt file: all cases in Python, some by commands."""
    cases, out = run.some("dev")[:CASES], run.folder("commands")
    images = run.copies("images", cases)
    asked = {image.name: run.asked(case) for image, case in zip(images, cases, strict=True)}
    (run.work / "cases.json").write_text(json.dumps(asked))
    done = run.child(Path(__file__).resolve(), "--predict", run.work)
    run.found["masks text"] = run.text(f"status {done.returncode}\n{done.stdout}{done.stderr}")
    run.files("masks", run.work / "masks")
    endings = (".nii.gz", ".nrrd", ".mha", ".nii")
    for (image, each), ending in zip(list(asked.items())[:BY_COMMAND], endings, strict=False):
        name, segment = image.split(".")[0], ("segment", run.work / "images" / image, *CPU, "-o")
        box, saved = joined([*each["box"][0], *each["box"][1]]), out / f"{name}.prompts.json"
        clicks = [part for point in each["points"] for part in ("--point", joined(point))]
        clicks += ["--negative", joined(each["negative"]), "--label", "4", "--name", "organ"]
        made = [out / f"{name}_{how}{ending}" for how in ("clicks", "box", "prompts")]
        run.command(f"commands/{name} clicks", *segment, made[0], *clicks, "--save-prompts", saved)
        run.command(f"commands/{name} box", *segment, made[1], "--box", box, "--no-refine")
        run.command(f"commands/{name} prompts", *segment, made[2], "--prompts", saved)
    run.files("commands", out)


def folder(run: Run) -> None:
    """Segment a folder that contains a broken file, by points in a table and by coarse masks."""
    cases, place, out = run.some("dev", "msd_hippocampus")[:5], run.folder("batch"), run.folder("done")
    lines = ["image,label,i,j,k,sign", "broken.nii.gz,1,3,3,3,+"]
    for image, case in zip(run.copies("batch", cases), cases, strict=True):
        asked = run.asked(case)
        shutil.copy(run.data / case["label"], run.folder("coarse") / image.name)
        rows = [*((point, "+") for point in asked["points"]), (asked["negative"], "-")]
        lines += [f"{image.name},{asked['label']},{joined(point)},{sign}" for point, sign in rows]
    (place / "broken.nii.gz").write_bytes(image.read_bytes()[:2000])
    table = run.work / "clicks.csv"
    table.write_text("\n".join(lines) + "\n")
    for name in ("clicks", "clicks again"):
        run.command(f"folder/{name}", "segment", place, out / "1", "--prompts", table, *CPU)
    run.command(
        "folder/masks", "segment", place, out / "2", "--masks", run.work / "coarse", "--from-masks", "both",
        "--jitter", 0.1, "--seed", 3, "--format", "nrrd", "--separate", "--probabilities", *CPU,
    )  # fmt: skip
    run.files("folder", out, without="journal|lock")


def finetune(run: Run) -> None:
    """Train an adapter for 30 steps and use it."""
    images = run.copies("teach", run.some("train", "msd_hippocampus")[:6], labels=True)
    adapter = run.folder("taught") / "mine.safetensors"
    items = [part for item in PLAN for part in ("--set", item)]
    how = ("--steps", 30, "--no-preflight", "--processes", 1, *items, *CPU)
    run.command("finetune/run", "finetune", run.work / "teach", "-o", adapter, *how)
    found = ("segment", images[0], "--adapter", adapter, "--automatic", *CPU)
    run.command("finetune/automatic", *found, "-o", adapter.with_name("found.nii.gz"))
    run.files("finetune", adapter.parent, without="lock")


def labelled(run: Run, name: str) -> Path:
    """Create a folder with a manifest: small cases of both splits, and one label map of a head."""
    place, cases = run.folder(name), run.some("train")[:5] + run.some("dev")[:4]
    heads = (run.data / "head_label_maps").glob("*.nii.gz")
    head = min(heads, key=lambda path: (path.stat().st_size, path.name)).relative_to(run.data)
    for file in (str(head), *(case[kind] for case in cases for kind in ("image", "label"))):
        shutil.copy(run.data / file, run.folder(f"{name}/{Path(file).parent}"))
    (place / "manifest.json").write_text(json.dumps({"cases": cases}))
    return place


def pretrain(run: Run) -> None:
    """Train the embedded model for 30 steps on windows of every source."""
    recipe, out = run.work / "recipe.json", run.work / "pretrained"
    recipe.write_text(json.dumps(RECIPE))
    run.command("pretrain/run", "pretrain", recipe, "--out", out, "--data", labelled(run, "pretrain"), *CPU)
    run.files("pretrain", out)


def evaluate(run: Run) -> None:
    """Evaluate the model and other methods, and inspect a labelled folder."""
    place, out = labelled(run, "evaluate"), run.folder("scores")
    asked, csvs = ("evaluate", place, "--split", "dev", *CPU), [out / "scores.csv", out / "box.csv"]
    more = ("--baseline", "confidence", "--baseline", "prior", "--json", out / "scores.json")
    page = ("--report", out / "report.html", "--csv", csvs[0])
    run.command("evaluate/clicks", *asked, "--clicks", "1,3", *more, *page)
    run.command("evaluate/box", *asked, "--first", "box", "--clicks", 2, "--csv", csvs[1])
    run.command("evaluate/inspect", "dataset", "inspect", place, "--json", out / "inspected.json")
    run.files("evaluate", out)


class Page:
    """Session with the server like that of a page; every answer is stored under its number.

    Args:
        who: name of the person.
        url: of the server.
    """

    def __init__(self, run: Run, who: str, url: str) -> None:
        self.run, self.who, self.count = run, who, 0
        self.client = httpx.Client(base_url=f"{url}medsam/api/", timeout=600, headers={"X-Medsam-Who": who})
        self.client.headers["X-Medsam-Session"] = self("session", method="POST").json()["token"]

    def __call__(self, path: str, *, method: str = "", **options: Any) -> httpx.Response:
        """Send a request (POST with a body, else GET) and store its answer: errors as text, else a hash."""
        method = method or ("POST" if options.keys() & {"json", "content"} else "GET")
        answer = self.client.request(method, path, **options)
        self.count += 1
        name = f"page/{self.who} {self.count:03} {path.split('?')[0].replace('/', ' ')}"
        if path == "act":
            name += f" {options['json']['action']['do']}"
        said = answer.headers.get("content-disposition", "")
        kinds = [answer.headers.get(each, "") for each in ("content-type", "x-medsam-dtype")]
        head = " ".join([str(answer.status_code), said, *kinds])
        if answer.status_code >= 400:
            self.run.found[f"{name} text"] = self.run.text(f"{head}\n{answer.text}")
        elif "json" in kinds[0]:
            self.run.hash(name, head.encode() + self.run.json(answer.json()))
        else:
            body = self.run.plain(said, answer.content) if said else self.run.headed(answer.content, 4)
            self.run.hash(name, head.encode() + body)
        return answer

    def get(self, *paths: str) -> None:
        """Fetch several paths in order."""
        for path in paths:
            self(path)

    def act(self, *actions: dict[str, Any]) -> None:
        """Apply actions to the session in order."""
        for action in actions:
            self("act", json={"action": action, "have": []})

    def open(self, **source: Any) -> None:
        """Open a volume and fetch its voxels."""
        self("open", json=source)
        self("volume")

    def upload(self, path: str, name: str, content: bytes) -> None:
        """Send a file, or the files of a folder, and open it."""
        answer = self(f"{path}?name={name}", content=content)
        self.open(source="upload", upload=answer.json().get("upload", ""))


@contextlib.contextmanager
def serving(run: Run, *arguments: object) -> Iterator[str]:
    """Run `medsam-app serve` during a `with` block and yield its address."""
    command = [sys.executable, "-m", "medsam_app", "serve", "--port", "0", "--no-open", *map(str, arguments)]
    errors = run.work / "server.log"
    with errors.open("w") as log:
        server = subprocess.Popen(
            command, cwd=run.tree, env=run.environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert server.stdout is not None
        try:
            first = server.stdout.readline()
            yield first.split()[3]
        finally:
            server.terminate()
            said = first + server.communicate()[0]
    run.found["page/server text"] = run.text(f"{said}status {server.returncode}\n{errors.read_text()}")


def edits(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Return actions of a user: clicks, drawing, manual changes of masks, undo."""
    (first, second), out, (lower, upper) = asked["points"], asked["negative"], asked["box"]
    (a, b), (c, d), k = lower[:2], upper[:2], first[2]
    one, two = {"object": "o1"}, {"object": "o2"}

    def click(place: Sequence[int], positive: bool = True) -> dict[str, Any]:
        return {"kind": "point", "coordinates": place, "positive": positive}

    def add(prompt: dict[str, Any]) -> dict[str, Any]:
        return {"do": "add_prompt", "prompt": prompt}

    def tool(name: str, mm: float = 1.0, **where: int) -> dict[str, Any]:
        return {"do": "tool", **one, "tool": name, "mm": mm, **where}

    def lock(index: int, locked: bool = True) -> dict[str, Any]:
        return {"do": "lock", **one, "axis": 2, "index": index, "locked": locked}

    def change(**what: Any) -> dict[str, Any]:
        return {"do": "change_object", **one, **what}

    return [
        add(click(first)), add(click(out, False)), {"do": "undo"}, {"do": "undo"}, {"do": "redo"},
        {"do": "redo"}, add({"kind": "scribble", "coordinates": [first, second]}),
        {"do": "replace_prompt", **one, "index": 0, "prompt": click(second)},
        {"do": "delete_prompt", **one, "index": 1}, change(name="organ", label=5, colour="#123456"),
        {"do": "add_object", "name": "boxed", "label": 7}, {"do": "refine", "on": True},
        add({"kind": "box", "lower": lower, "upper": upper}), {"do": "refine", "on": False},
        add({"kind": "box", "lower": [a, b, k], "upper": [c, d, k]}), add(click(first)),
        {"do": "combine", **one, "other": "o2", "how": "subtract"}, {"do": "undo"},
        {"do": "select", **one},
        {"do": "paint", "points": [first, second], "radius": 6},
        {"do": "paint", "points": [first], "radius": 2, "positive": False}, tool("fill holes"),
        {"do": "paint", "points": [second], "radius": 2, "positive": False, "axis": 2},
        {"do": "lasso", "points": [[a, b, k], [c, b, k], [c, d, k], [a, d, k]], "axis": 2},
        {"do": "lasso", "points": [[a, b, k], [c, b, k], [a, d, k]], "axis": 2, "positive": False},
        lock(k), tool("keep largest"), tool("smooth"), tool("grow", 2), tool("shrink"),
        tool("smooth", axis=0, index=first[0]), lock(k + 4), tool("interpolate", axis=2), lock(k, False),
        change(may_overlap=False), {**change(may_overlap=False), **two},
        {"do": "go_back", **one, "step": 4}, {"do": "look"},
        # Invalid actions, which change nothing.
        add(click([999, 0, 0])), add({"kind": "spell"}), {"do": "format_disk"},
        {"do": "select", "object": "o9"}, {"do": "delete_prompt", **one, "index": 99}, change(label=-3),
        change(colour="red"), change(name="boxed"), tool("shrink", 50), tool("melt"), lock(-1),
        {"do": "paint", "points": [first], "radius": 0}, {"do": "go_back", **one, "step": -1},
        {"do": "combine", **one, "other": "o1", "how": "merge"}, {"do": "look"},
    ]  # fmt: skip


def page(run: Run) -> None:
    """Use the server as a page, as a second page at the same time, and as a script."""
    case, listed, shown = run.some("dev")[0], run.some("dev", "msd_hippocampus")[:3], run.folder("shown")
    asked, [image] = run.asked(case), run.copies("shown", [case], labels=True)
    run.copies("shown/list", listed)
    small: Any = nib.load(image)
    frames = np.stack([np.asarray(small.dataobj), np.asarray(small.dataobj)[::-1]], -1)
    nib.save(nib.Nifti1Image(frames, small.affine), shown / "frames.nii.gz")
    (shown / "broken.nii.gz").write_bytes(image.read_bytes()[:2000])
    for slice_file in (run.data / "dicom" / "dcmqi_ct3_seg").glob("CT_*.dcm"):
        shutil.copy(slice_file, run.folder("shown/slices"))
    with serving(run, image, "--root", shown, *CPU) as url:
        me, other = Page(run, "ann", url), Page(run, "bob", url)
        me.get("files", "files?path=list", "files?root=4", "files?path=../..", "nowhere")
        me.open(source="sample")
        me.act({"do": "add_prompt", "prompt": {"kind": "point", "coordinates": [40, 40, 30]}})
        for path in ("broken.nii.gz", "../secret", "frames.nii.gz", "slices"):
            me.open(source="folder", path=path)
        me.open(source="folder", path="frames.nii.gz", frame=1)
        me.get("frame?number=0", "frame?number=7")
        me.open(source="start")
        me.act(*edits(asked))
        looked(me, Path(case["label"]).name)
        me.upload("upload", "my case.nii.gz", image.read_bytes())
        me.upload("upload", "cut.nii", b"no image")
        me.upload("upload", "a.exe", b"x")
        slices(me, sorted((shown / "slices").iterdir()))
        worklist(me, other, [Path(each["image"]).name.split(".")[0] for each in listed], run.asked(listed[0]))
        me("progress")
        for name, value in (("Session", "forged"), ("Volume", "1")):
            me("progress", headers={f"X-Medsam-{name}": value})
        me("progress", headers={"Host": "evil.example"})
        me("session", method="POST", headers={"Origin": "http://evil.example"})
        statics(me)
        script(run, url, image, asked)
    run.files("page/left", shown / "list", without=r"^[^/]*$|lock")


def looked(me: Page, label: str) -> None:
    """Fetch everything derived from objects: measurements, surfaces, comparisons, files."""
    for what in ("doubt", "history", "measurements", "surface"):
        me.get(*(f"{what}?object={owner}" for owner in ("o1", "o2", "o9")))
    for ending in ("nifti", "nrrd", "mha", "dicom-seg", "gif"):
        me(f"mask?format={ending}")
        me(f"case?format={ending}", content=PNG)
    me.get("measurements.csv", "measurements.csv?what=areas", "segmentation")
    me("case", content=b"no picture")
    for path in (label, "x"):
        me("compare", json={"other": {"source": "folder", "path": path}})
    for tolerance in (2, -1):
        me("compare", json={"tolerance_mm": tolerance})
    me("compare", method="DELETE")
    me("compare", json={})
    saved = me("prompts").content
    me.act({"do": "combine", "object": "o1", "other": "o2", "how": "merge"}, {"do": "clear", "object": "o1"})
    me.act({"do": "delete_object", "object": "o1"})
    for body in (saved, b"{}", b"\0"):
        me("prompts", content=body)
    for name, body in (("a.csv", b"name,label\nliver,4\n"), ("a.csv", b"title\n"), ("a.json", b"{")):
        me(f"labels?name={name}", content=body)
    me("session", method="POST")


def slices(me: Page, paths: Sequence[Path]) -> None:
    """Send a series of DICOM slices and save a segmentation of it."""
    names = json.dumps([{"name": path.name, "size": path.stat().st_size} for path in paths]).encode()
    contents = b"".join(path.read_bytes() for path in paths)
    me.upload("upload-folder", "study", struct.pack("<I", len(names)) + names + contents)
    me.act({"do": "add_prompt", "prompt": {"kind": "box", "lower": [200, 200, 0], "upper": [300, 290, 2]}})
    me.get("segmentation", "mask?format=dicom-seg")
    me("case?format=dicom-seg", content=b"")


def worklist(me: Page, other: Page, names: Sequence[str], asked: dict[str, Any]) -> None:
    """Work through a worklist while two users have the same case open."""
    where = {"root": 0, "path": "list"}
    case = {**where, "name": names[0]}
    for path in ("x", "list"):
        me("worklist", json={"root": 0, "path": path})
    me("worklist/case", json={**where, "name": "nobody"})
    for each in (me, other):
        each("worklist/case", json=case)
    me("worklist/state", json={**case, "state": "accepted", "version": 0})
    for each in (me, other):
        prompt = {"kind": "point", "coordinates": asked["points"][0]}
        each.act({"do": "add_prompt", "prompt": prompt})
    other("worklist/resolve", json={"keep": "theirs"})
    other.act({"do": "look"}, {"do": "change_object", "object": "o1", "name": "left"})
    me.act({"do": "paint", "points": asked["points"], "radius": 2})
    me("worklist/resolve", json={"keep": "mine"})
    me.act({"do": "look"})
    states = ((0, "accepted", 3), (1, "skipped", 0), (2, "to review", 0), (1, "done", 9), (2, "skipped", 9))
    for number, state, version in states:
        me("worklist/state", json={**where, "name": names[number], "state": state, "version": version})
    me("worklist?refresh=true", json=where)
    me("worklist/teaching?log=true", json=where)
    for what in ("start", "resume", "cancel", "use", "drop"):
        me("worklist/teach", json={**where, "what": what})


def statics(me: Page) -> None:
    """Fetch the scripts and style sheets of the page, and those that they import."""
    wanted = re.findall(r"medsam/static/([\w.]+)", me.client.get("../../").text)
    for name in wanted:  # the list grows during the loop
        content = me.client.get(f"../static/{name}").content
        me.run.hash(f"static/{name}", content)
        found = re.findall(r"[\"']\./([\w.]+)[\"']", content.decode())
        wanted += [each for each in dict.fromkeys(found) if each not in wanted]


def script(run: Run, url: str, image: Path, asked: dict[str, Any]) -> None:
    """Call the endpoints for scripts."""
    from gradio_client import Client, handle_file

    client = Client(url, verbose=False, download_files=run.folder("tmp/downloads"))
    run.hash("script/endpoints", run.json(client.view_api(return_format="dict", print_info=False)))
    click, out = (dict(zip("ijk", place, strict=True)) for place in (asked["points"][0], asked["negative"]))
    box = dict(zip(("lower", "upper"), asked["box"], strict=True))
    calls: list[tuple[str, dict[str, Any]]] = [
        ("click", click), ("open", {"path": "../secret.nii"}), ("list_files", {}),
        ("open", {"path": image.name}), ("click", click), ("click", {**click, "i": 999}),
        ("click", {**out, "positive": False}), ("new_object", {"name": "box", "label": 7}), ("box", box),
        ("box", {"lower": [1], "upper": [2]}), ("undo", {}), ("state", {}), ("save_mask", {}),
        ("open", {"upload": handle_file(image)}), ("close", {}),
    ]  # fmt: skip
    for number, (endpoint, given) in enumerate(calls):
        name = f"script/{number:02} {endpoint}"
        try:
            made = client.predict(api_name=f"/{endpoint}", **given)
        except Exception as error:  # any error of the client for a refused request
            made = f"{type(error).__name__}: {error}"
        if endpoint == "save_mask":
            run.hash(name, run.plain(made, Path(made).read_bytes()))
        else:
            run.found[f"{name} text"] = run.json(made).decode()


def texts(run: Run) -> None:
    """Print help, tables and error messages."""
    cases, out, empty = run.some("dev")[:2], run.folder("printed"), run.folder("printed/empty")
    image, another = run.copies("printed", cases, labels=True)
    names = ("broken.nii.gz", "frames.nii.gz", "note.txt", "recipe.json", "mask.nii.gz", "nowhere")
    broken, frames, note, recipe, mask, nowhere = (out / name for name in names)
    other_grid, point = out / Path(cases[1]["label"]).name, ("--point", "15,72,35")
    broken.write_bytes(image.read_bytes()[:2000])
    note.write_text("hello")
    recipe.write_text(json.dumps(RECIPE | {"stepps": 3}))
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), np.eye(4)), frames)
    commands = ("", "serve", "segment", "info", "evaluate", "finetune", "pretrain", "models", "dataset")
    on = ("segment", image, "-o")
    segment, clicked = (*on, mask), (*on, mask, *point)
    printed: list[tuple[object, ...]] = [
        *((*command.split(), "--help") for command in commands), ("--version",), ("models",),
        ("models", "show", "sam3d_tiny"), ("info", image), ("info", another), ("info", frames, "--frame", 1),
        # User errors.
        ("models", "show", "sam3d_tinny"), ("models", "download", "sam3d_tinny"), ("infos", image),
        ("info", nowhere), ("info", broken), ("info", note), ("info", frames), ("info", empty),
        ("segment", nowhere, "-o", mask, *point), ("segment", image), segment, (*segment, "--point", "1,2"),
        (*segment, "--point", "999,0,0"), (*segment, "--pont", "1,2,3"), (*on, out / "mask.jpg", *point),
        (*on, image, *point), (*on, image, "--overwrite", *point), (*on, nowhere / mask.name, *point),
        (*clicked, "--model", "sam3d_tinny"), (*clicked, "--device", "cuda:9"),
        (*clicked, "--adapter", nowhere), (*clicked, "--adapter", note), (*clicked, "--weights", note),
        (*segment, "--automatic"), (*clicked, "--format", "nrrd"), (*segment, "--mask", other_grid),
        (*segment, "--prompts", note), (*clicked, "--series", "1.2.3"), ("segment", out, empty, *point),
        ("segment", empty, out, "--automatic"), ("segment", out, empty, "--shard", "9/2", "--prompts", note),
        ("evaluate", empty), ("evaluate", out, "--clicks", "few"), ("evaluate", out, "--baseline", "wolker"),
        ("finetune", out, "-o", mask, "--set", "rotatoin=3"), ("finetune", out, "-o", mask, "--labels", "x"),
        ("pretrain", recipe, "--out", empty), ("dataset", "inspect", empty), ("serve", "--root", nowhere),
        ("serve", nowhere), ("serve", "--port", "99999"), ("serve", image, "--labels", note),
    ]  # fmt: skip
    for number, arguments in enumerate(printed):
        words = " ".join(Path(str(each)).name for each in arguments)
        run.command(f"texts/{number:02} {words}", *arguments)


SECTIONS: dict[str, Callable[[Run], None]] = {
    each.__name__: each for each in (masks, folder, finetune, pretrain, evaluate, page, texts)
}


def compare(old: Path, new: Path) -> int:
    """Print the differences between two files of hashes; return 1 if there are any."""
    one, two = (json.loads(path.read_text()) for path in (old, new))
    names = [name for name in sorted(one.keys() | two.keys()) if one.get(name) != two.get(name)]
    for name in names:
        print(f"== {name}")
        before, after = (each.get(name, "(not there)").splitlines() for each in (one, two))
        print("\n".join(difflib.unified_diff(before, after, str(old), str(new), lineterm="", n=1)))
    print(f"{len(names)} of {len(one.keys() | two.keys())} differ.")
    return int(bool(names))


def main() -> int:
    """Hash a checkout, or compare two files of hashes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="TREE DATA OUT.json")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD.json", "NEW.json"))
    parser.add_argument("--only", action="append", choices=SECTIONS, help="this section alone; repeatable")
    parser.add_argument("--keep", type=Path, help="folder for everything that is hashed, normalised")
    parser.add_argument("--predict", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.predict:
        predict(given.predict)
        return 0
    if given.compare:
        return compare(*given.compare)
    if len(given.paths) != 3:
        parser.error("give TREE, DATA and OUT.json, or --compare with two files")
    tree, data, out = (path.resolve() for path in given.paths)
    with tempfile.TemporaryDirectory(prefix="same-bytes-") as work:
        run = Run(tree, data, Path(work).resolve(), given.keep)
        where = run.child("-c", "import medsam_app; print(medsam_app.__file__)").stdout
        if not where.startswith(str(tree)):
            parser.error(f"medsam_app is imported from '{where.strip()}', not from {tree}")
        for name in given.only or SECTIONS:
            began = time.monotonic()
            SECTIONS[name](run)
            print(f"{name}: {time.monotonic() - began:.0f} s, {len(run.found)} entries so far", flush=True)
    out.write_text(json.dumps(dict(sorted(run.found.items())), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
