"""Bad models, weights and adapters."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medsam_app.adapters.adapter import Adapter
from medsam_app.adapters.header import AdapterCard
from medsam_app.adapters.label_card import chosen_labels, spacing_of
from medsam_app.errors import AdapterError, ModelError
from medsam_app.io.volume import Volume
from medsam_app.models import download, fetch
from medsam_app.models.load import load_model, prepare
from medsam_app.models.sam3d import Sam3D
from medsam_app.models.sam3d_vit import VIT_SHAPES
from medsam_app.models.table import MODELS, WEIGHTS_FOLDER
from medsam_app.models.vit3d import Vit3d
from medsam_app.predict.predictor import VolumePredictor
from tests.support.adapter_backbones import build_sam3d
from tests.support.bad_kit import case, damaged, text

# names


@case("a model that does not exist", ModelError)
def _(folder):
    load_model("sam3d_tinny")


# weights that are not here


def without_weights(folder: Path) -> patch.dict:
    """Set an empty folder of downloads and no proxy."""
    return patch.dict(os.environ, MEDSAM_APP_HOME=str(folder / "home"), NO_PROXY="*", no_proxy="*")


@case("a model whose weights were not downloaded", ModelError)
def _(folder):
    with without_weights(folder):
        load_model("sam_vit_b")


@case("a model whose download is damaged", ModelError)
def _(folder):
    with without_weights(folder):
        path = download.checkpoint_path(MODELS["sam_vit_b"])
        path.parent.mkdir(parents=True)
        text(path, "PK")
        load_model("sam_vit_b")


@case("a model whose weights are in a package that is not installed", ModelError)
def _(folder):
    absent = patch.object(metadata, "distribution", side_effect=metadata.PackageNotFoundError)
    with without_weights(folder), absent:
        load_model("lite_medsam")


@case("a model whose weights cannot be downloaded", ModelError)
def _(folder):
    load_model("sam_med2d_b")


@case("a download without a connection", ModelError)
def _(folder):
    offline = patch.object(socket, "getaddrinfo", side_effect=socket.gaierror(-3, "no name server"))
    with without_weights(folder), offline, patch.object(fetch, "RETRY_DELAYS", (0.0, 0.0)):
        download.download(MODELS["sam_vit_b"])


@case("a file for an installation that does not exist", ModelError)
def _(folder):
    download.install(MODELS["sam_vit_b"], folder / "sam_vit_b_01ec64.pth")


@case("a file for an installation that is truncated", ModelError)
def _(folder):
    download.install(MODELS["sam_vit_b"], text(folder / "sam_vit_b_01ec64.pth", "PK"))


@case("a file for an installation that belongs to another model", ModelError)
def _(folder):
    other = folder / "sam.pth"
    with other.open("wb") as file:
        file.truncate(MODELS["sam_vit_l"].checkpoint.size)  # sparse file
    download.install(MODELS["sam_vit_b"], other)


@case("a file for an installation with the right size and other contents", ModelError)
def _(folder):
    entry = replace(MODELS["sam_vit_b"], checkpoint=replace(MODELS["sam_vit_b"].checkpoint, size=100))
    with without_weights(folder):
        download.install(entry, text(folder / "sam_vit_b_01ec64.pth", "hello" * 20))


@case("a file for an installation of the embedded weights", ModelError)
def _(folder):
    download.install(MODELS["sam3d_tiny"], folder / "mine.safetensors")


# --weights


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def sam_vit_l(folder: Path) -> Path:
    """Write a checkpoint with the names and shapes of SAM's ViT-L that takes almost no space."""
    with torch.device("meta"):
        state = Vit3d(**asdict(VIT_SHAPES["vit_l"])).state_dict()
    tensors = {f"image_encoder.{key}": torch.zeros(()).expand(value.shape) for key, value in state.items()}
    tensors = {key: value for key, value in tensors.items() if "depth_embed" not in key}
    return saved(folder / "sam_vit_l.pth", tensors | {"image_encoder.neck.0.weight": torch.zeros(())})


@case("--weights that do not exist", ModelError)
def _(folder):
    load_model(weights=folder / "mine.pth")


@case("--weights of another architecture", ModelError)
def _(folder):
    load_model(weights=sam_vit_l(folder))


@case("--weights of SAM for the published 3DSAM-adapter", ModelError)
def _(folder):
    load_model("3dsam_adapter_vit_b", weights=sam_vit_l(folder))


@case("--weights with entries missing", ModelError)
def _(folder):
    state = load_file(WEIGHTS_FOLDER / "sam3d_tiny.safetensors")
    del state["decoder.walker_weight"]
    load_model(weights=saved(folder / "mine.pth", state))


@case("--weights that are not finite", ModelError)
def _(folder):
    state = load_file(WEIGHTS_FOLDER / "sam3d_tiny.safetensors")
    state["decoder.walker_weight"] *= float("nan")
    load_model(weights=saved(folder / "mine.pth", state))


@case("--weights that are empty", ModelError)
def _(folder):
    load_model(weights=text(folder / "mine.pth", ""))


@case("--weights that are truncated", ModelError)
def _(folder):
    load_model(weights=damaged(saved(folder / "mine.pth", {"a": torch.zeros(1000)}), 0.5))


@case("--weights as truncated safetensors", ModelError)
def _(folder):
    path = folder / "mine.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    load_model(weights=damaged(path, 0.5))


@case("--weights that are a text file", ModelError)
def _(folder):
    load_model(weights=text(folder / "mine.pth", "hello " * 100))


@case("--weights that are a web page", ModelError)
def _(folder):
    load_model(weights=text(folder / "mine.pth", "<!DOCTYPE html><html>Sign in</html>"))


@case("--weights that are a pointer of Git LFS", ModelError)
def _(folder):
    load_model(weights=text(folder / "mine.pth", "version https://git-lfs.github.com/spec/v1\n"))


@case("--weights with additional Python objects", ModelError)
def _(folder):
    load_model(weights=saved(folder / "mine.pth", {"a": torch.zeros(1), "path": Path("here")}))


@case("--weights without weights", ModelError)
def _(folder):
    load_model(weights=saved(folder / "mine.pth", {"epoch": 3, "loss": 0.5}))


@case("--weights that are one tensor", ModelError)
def _(folder):
    load_model(weights=saved(folder / "mine.pth", torch.zeros(3)))


# --adapter


def small_model(name: str) -> Sam3D:
    """Return a small network with a name and a hash derived from it."""
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return prepare(build_sam3d(), name=name, sha256=sha256, device=torch.device("cpu"))


def adapter_file(folder: Path) -> Path:
    """Save an adapter of `small_model('sam3d_tiny')` with all tensors filled with 0.5."""
    adapter = Adapter.create("lora", small_model("sam3d_tiny"), rank=2)
    for parameter in adapter.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    return adapter.save(folder / "liver.safetensors")


def rewritten(folder: Path, **header: object) -> Path:
    """Save that file with changed fields in its header."""
    path = adapter_file(folder)
    with safe_open(path, framework="pt") as file:
        strings = file.metadata()
    save_file(load_file(path), path, strings | {name: json.dumps(value) for name, value in header.items()})
    return path


@case("an adapter that does not exist", AdapterError)
def _(folder):
    Adapter.load(folder / "liver.safetensors", small_model("sam3d_tiny"))


@case("an adapter of another model", AdapterError)
def _(folder):
    Adapter.load(adapter_file(folder), small_model("sam3d_vit_b"))


@case("a truncated adapter", AdapterError)
def _(folder):
    Adapter.load(damaged(adapter_file(folder), 0.6), small_model("sam3d_tiny"))


@case("an adapter with a flipped byte", AdapterError)
def _(folder):
    path = adapter_file(folder)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    Adapter.load(path, small_model("sam3d_tiny"))


@case("a text file as an adapter", AdapterError)
def _(folder):
    Adapter.load(text(folder / "liver.safetensors", "hello " * 100), small_model("sam3d_tiny"))


@case("a model's weights as an adapter", AdapterError)
def _(folder):
    Adapter.load(WEIGHTS_FOLDER / "sam3d_tiny.safetensors", small_model("sam3d_tiny"))


@case("an adapter of a later version", AdapterError)
def _(folder):
    Adapter.load(rewritten(folder, version=2), small_model("sam3d_tiny"))


@case("an adapter of an unknown kind", AdapterError)
def _(folder):
    Adapter.load(rewritten(folder, kind="lorra"), small_model("sam3d_tiny"))


@case("an adapter with an unknown field in its header", AdapterError)
def _(folder):
    Adapter.load(rewritten(folder, colour="red"), small_model("sam3d_tiny"))


@case("an adapter whose settings do not fit its tensors", AdapterError)
def _(folder):
    Adapter.load(rewritten(folder, settings={"rank": 3}), small_model("sam3d_tiny"))


# labels without a click


@case("automatic mode without an adapter", AdapterError)
def _(folder):
    predictor = VolumePredictor(small_model("sam3d_tiny"))
    predictor.set_volume(Volume.from_array(np.zeros((4, 4, 4)), np.eye(4)))
    predictor.predict_labels()


@case("automatic mode with an adapter without learned labels", AdapterError)
def _(folder):
    chosen_labels("liver", AdapterCard(), ())


@case("automatic mode with a label that the adapter has not learned", AdapterError)
def _(folder):
    chosen_labels("organs", AdapterCard(labels={1: "liver", 2: "spleen"}), (1, 2), ["splen"])


@case("automatic mode with an adapter without a spacing", AdapterError)
def _(folder):
    spacing_of("liver", AdapterCard())
