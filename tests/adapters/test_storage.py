"""Adapter files: content, and messages about files that are not valid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from torch import nn

from medsam_app.adapters import storage
from medsam_app.adapters.adapter import Adapter
from medsam_app.adapters.header import AdapterCard, read_header
from medsam_app.errors import AdapterError, MedsamError, SaveError
from tests.support.adapter_backbones import CUBE, SAM

CARD = {
    "spacing": (1.5, 1.5, 2.0),
    "intensity": {"method": "percentiles", "low": 0.5, "high": 99.5},
    "labels": {1: "liver", 2: "tumour"},
    "licence": "CC-BY-4.0",
    "training": {"steps": 300, "data": ["a", "b"], "dice": None},
}


@pytest.fixture
def model() -> nn.Module:
    return CUBE.make()


@pytest.fixture
def saved(model: nn.Module, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    adapter = Adapter.create("lora", model, rank=2, also=["norm"])
    return adapter.save(tmp_path / "liver.safetensors", CARD)


def strings(path: Path) -> dict[str, str]:
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]


def rewrite(path: Path, *, arrays: dict[str, Any] | None = None, **fields: Any) -> None:
    """Write the same file with other tensors or other fields; None removes a field."""
    held = strings(path) | {name: json.dumps(value) for name, value in fields.items()}
    held = {name: text for name, text in held.items() if fields.get(name, 0) is not None}
    save_arrays(load_arrays(path) if arrays is None else arrays, path, metadata=held)


def test_the_file_says_what_it_is(model: nn.Module, saved: Path) -> None:
    header = read_header(saved)
    assert header.card == AdapterCard(**CARD)
    assert (header.format, header.version, header.kind) == ("medsam_app adapter", 1, "lora")
    assert header.settings == {"rank": 2, "alpha": 16.0, "projections": ["q", "v"], "train": "ab"}
    assert header.also == ("norm.weight", "norm.bias")
    assert header.base.id == "CubeVit"
    assert header.base.sha256 == storage.tensors_sha256(model.state_dict())
    loaded = Adapter.load(saved, model)
    assert loaded.sha256 == header.sha256
    assert (loaded.card, loaded.base) == (header.card, header.base)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert all(p.requires_grad for p in Adapter.load(saved, model, trainable=True).parameters())
    assert [path.name for path in saved.parent.iterdir()] == ["liver.safetensors"]


def test_saving_again_without_a_card_keeps_the_one_it_came_with(model: nn.Module, saved: Path) -> None:
    again = Adapter.load(saved, model).save(saved.with_name("again.safetensors"))
    assert read_header(again) == read_header(saved)


def test_names_and_hash_of_the_model_where_it_has_them(tmp_path: Path) -> None:
    model = CUBE.make()
    model.model_id, model.weights_sha256 = "cube", "ab" * 32
    path = Adapter.create("ssf", model).save(tmp_path / "a.safetensors")
    other = CUBE.make(seed=1)
    other.model_id, other.weights_sha256 = "cuboid", "cd" * 32
    with pytest.raises(AdapterError) as caught:
        Adapter.load(path, other)
    for part in ("'a.safetensors' was made for the model 'cube'", "ab" * 32, "'cuboid'", "cd" * 32):
        assert part in str(caught.value)


def test_another_model_made_of_the_same_weights_is_refused_by_its_name(tmp_path: Path) -> None:
    model, other = CUBE.make(), CUBE.make()
    for each, name in ((model, "sam_vit_b"), (other, "sam3d_vit_b")):
        each.model_id, each.weights_sha256 = name, "ab" * 32
    path = Adapter.create("ssf", model).save(tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=r"was made for the model 'sam_vit_b'.*this is 'sam3d_vit_b'"):
        Adapter.load(path, other)


def test_another_base_is_refused_by_its_tensors(saved: Path) -> None:
    with pytest.raises(
        AdapterError, match=r"sha256 [0-9a-f]{64}, but this is 'CubeVit' with sha256 [0-9a-f]{64}"
    ):
        Adapter.load(saved, CUBE.make(seed=1))
    with pytest.raises(AdapterError, match="this is 'Sam'"):
        Adapter.load(saved, SAM.make())


def test_the_hash_follows_names_types_shapes_values_and_settings() -> None:
    x = torch.arange(6.0)
    seen = [
        storage.adapter_sha256(kind, settings, tensors)
        for kind, settings, tensors in [
            ("lora", {"rank": 2}, {"a": x}),
            ("ssf", {"rank": 2}, {"a": x}),
            ("lora", {"rank": 3}, {"a": x}),
            ("lora", {"rank": 2}, {"b": x}),
            ("lora", {"rank": 2}, {"a": x.view(2, 3)}),
            ("lora", {"rank": 2}, {"a": x.view(torch.int32)}),
            ("lora", {"rank": 2}, {"a": -x}),
        ]
    ]
    assert len(set(seen)) == len(seen)
    assert storage.tensors_sha256({"a": x, "b": -x}) == storage.tensors_sha256({"b": -x, "a": x})
    assert storage.tensors_sha256({"a": x.view(2, 3).T}) == storage.tensors_sha256(
        {"a": x.view(2, 3).T.contiguous()}
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 16
    path.write_bytes(raw)


def without(path: Path) -> None:
    rewrite(path, arrays=dict(list(load_arrays(path).items())[1:]))


def with_more(path: Path) -> None:
    rewrite(path, arrays=load_arrays(path) | {"part.more": np.zeros(3, np.float32)})


def reshaped(path: Path) -> None:
    arrays = load_arrays(path)
    rewrite(path, arrays=arrays | {"also.tensors.norm/bias": np.zeros((4, 4), np.float32)})


def narrowed(path: Path) -> None:
    rewrite(path, arrays={name: array.astype(np.float16) for name, array in load_arrays(path).items()})


def not_finite(path: Path) -> None:
    arrays = load_arrays(path) | {"also.tensors.norm/bias": np.full(16, np.nan, np.float32)}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    settings = json.loads(strings(path)["settings"])
    rewrite(path, arrays=arrays, sha256=storage.adapter_sha256("lora", settings, tensors))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, r"There is no adapter file '.*liver.safetensors'; check the path"),
        (lambda path: path.write_bytes(b""), "is not a safetensors file, or it is cut short or damaged"),
        (lambda path: path.write_text("A text."), "is not a safetensors file, or it is cut short or damaged"),
        (cut, "is not a safetensors file, or it is cut short or damaged"),
        (flip, r"is damaged: its tensors and settings have sha256 [0-9a-f]{12}… instead of [0-9a-f]{12}…"),
        (
            lambda path: save_arrays({"w": np.zeros(2)}, path),
            "holds tensors, but not an adapter of medsam_app",
        ),
        (lambda path: rewrite(path, format="another"), "holds tensors, but not an adapter of medsam_app"),
        (
            lambda path: rewrite(path, version=2),
            "is an adapter file of version 2, but version 1 is read here",
        ),
        (
            lambda path: rewrite(path, kind="lorra"),
            "There is no kind of adapter 'lorra'. Did you mean 'lora'",
        ),
        (
            lambda path: rewrite(path, settings={"rank": 0}),
            "'rank' input should be greater than or equal to 1",
        ),
        (
            lambda path: rewrite(path, settings={"rank": 2, "alpha": 3.0}),
            "is damaged: its tensors and settings",
        ),
        (lambda path: rewrite(path, settings={"rank": 3}), r"'part.layers.*' is \(.*\) float32 instead of"),
        (
            lambda path: rewrite(path, base=None),
            r"The header of 'liver.safetensors' is wrong: 'base' is missing",
        ),
        (lambda path: rewrite(path, extra=1), "is wrong: 'extra' is not a field of an adapter"),
        (lambda path: rewrite(path, spacing=[1, 0, 1]), "'spacing.1' input should be greater than 0"),
        (lambda path: rewrite(path, also=["nom.bias"]), "called 'nom.bias'; did you mean norm.bias"),
        (without, r"its header promises: it lacks 1 of them, first 'also.tensors.norm/bias'"),
        (with_more, r"its header promises: it holds also 1 of them, first 'part.more'"),
        (reshaped, r"'also.tensors.norm/bias' is \(4, 4\) float32 instead of \(16,\) float32"),
        (narrowed, "float16 instead of .* float32"),
        (not_finite, "has values that are not finite, in 'also.tensors.norm/bias'"),
    ],
)
def test_a_file_that_is_not_right(
    spoil: Callable[[Path], Any], message: str, model: nn.Module, saved: Path
) -> None:
    spoil(saved)
    with pytest.raises(AdapterError, match=message) as caught:
        Adapter.load(saved, model)
    assert str(caught.value).endswith((".", "?"))


def test_a_header_that_is_not_json(model: nn.Module, saved: Path) -> None:
    save_arrays(load_arrays(saved), saved, metadata=strings(saved) | {"labels": "{"})
    with pytest.raises(AdapterError, match=r"header of 'liver.safetensors' is damaged: 'labels' is not JSON"):
        Adapter.load(saved, model)


def test_a_card_that_is_not_right(model: nn.Module, tmp_path: Path) -> None:
    adapter = Adapter.create("ssf", model)
    for card, message in [
        ({"license": "MIT"}, "'license' is not a field of an adapter"),
        ({"labels": {"liver": 1}}, "labels.liver"),
        ({"spacing": (1, 1)}, "'spacing.2' is missing"),
        ({"training": {"loss": float("nan")}}, "'training.loss.float' input should be a finite number"),
        ({"training": {"model": model}}, "training.model"),
    ]:
        with pytest.raises(AdapterError, match=f"The adapter cannot be described so: .*{message}"):
            adapter.save(tmp_path / "a.safetensors", card)
    assert list(tmp_path.iterdir()) == []


def test_places_where_nothing_can_be_saved(model: nn.Module, tmp_path: Path) -> None:
    adapter = Adapter.create("ssf", model)
    (tmp_path / "b.safetensors").mkdir()
    for name, message in [
        ("a.pt", r"cannot be saved as 'a.pt'; let its name end in \.safetensors"),
        ("nowhere/a.safetensors", "does not exist; make it first"),
        ("b.safetensors", "is a folder"),
    ]:
        with pytest.raises(SaveError, match=message):
            adapter.save(tmp_path / name)


def test_what_was_there_stays_when_saving_fails(
    model: nn.Module, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()
    adapter = Adapter.create("ssf", model)
    with torch.no_grad():
        next(adapter.parameters()).fill_(float("inf"))
    with pytest.raises(AdapterError, match="not finite"):
        adapter.save(saved)
    with torch.no_grad():
        next(adapter.parameters()).fill_(1)
    write = storage.save_file

    def on_a_bad_disk(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        first = min(tensors)
        write(tensors | {first: tensors[first] + 1}, path, metadata=metadata)

    monkeypatch.setattr(storage, "save_file", on_a_bad_disk)
    with pytest.raises(SaveError, match="did not read back as written"):
        adapter.save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_every_error_is_one_of_ours() -> None:
    assert issubclass(AdapterError, MedsamError)
