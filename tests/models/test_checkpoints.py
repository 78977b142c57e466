"""Checkpoint files: reading, refusals, and messages about weights that do not fit."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from torch import Tensor, nn

from medsam_app.errors import ModelError
from medsam_app.models.checkpoints import (
    UNKNOWN_NETWORK,
    describe_architecture,
    load_strictly,
    read_checkpoint,
    read_raw,
)
from medsam_app.models.sam3d import build_sam3d_tiny
from medsam_app.models.table import WEIGHTS_FOLDER

State = dict[str, Tensor]
VIT_B = "SAM ViT-B (12 blocks of width 768)"


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3), nn.Linear(5, 4))


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def save_zip(state: Any, path: Path) -> None:
    torch.save(state, path)


def save_legacy(state: Any, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


SAVERS = pytest.mark.parametrize("save", [save_zip, save_legacy, save_file])
TORCH_SAVERS = pytest.mark.parametrize("save", [save_zip, save_legacy])


@SAVERS
def test_weights_come_back(tmp_path: Path, save: Callable[[Any, Path], None]) -> None:
    state, path = network().state_dict(), tmp_path / "weights.bin"
    save(state, path)
    before = path.read_bytes()
    result = read_checkpoint(path)
    assert same(result, state)
    result["0.weight"].zero_()  # tensors are independent of the file, even if memory-mapped
    assert path.read_bytes() == before


@TORCH_SAVERS
@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_weights_beside_other_things(tmp_path: Path, save: Callable[[Any, Path], None], wrapper: str) -> None:
    """Training scripts save counters, NumPy numbers and the optimiser together with the weights."""
    module = network()
    optimiser = torch.optim.AdamW(module.parameters())
    module[2](torch.ones(5)).sum().backward()
    optimiser.step()
    path = tmp_path / "weights.pth"
    loss = np.mean(np.float32([1, 2]))
    held = {"epoch": 3, "loss": loss, "best": np.float64(0.5), "optimizer": optimiser, "seen": np.int64(7)}
    save({wrapper: module.state_dict(), **held}, path)
    assert same(read_checkpoint(path), module.state_dict())
    assert (read_raw(path)["loss"], read_raw(path)["seen"]) == (1.5, 7)
    assert not isinstance(read_raw(path)["optimizer"], torch.optim.Optimizer)


def test_weights_of_parallel_training(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "x.pth")
    assert same(read_checkpoint(tmp_path / "x.pth"), state)


def test_nested_weights_of_the_3dsam_adapter(tmp_path: Path) -> None:
    parts = [network(seed).state_dict() for seed in range(6)]
    held = {"encoder_dict": parts[0], "decoder_dict": parts[1], "feature_dict": parts[2:]}
    torch.save({"epoch": 1, "best_val_loss": np.float64(0.2), **held}, tmp_path / "best.pth.tar")
    result = read_raw(tmp_path / "best.pth.tar")
    assert same(result["encoder_dict"], parts[0]) and same(result["decoder_dict"], parts[1])
    assert all(same(a, b) for a, b in zip(result["feature_dict"], parts[2:], strict=True))
    with pytest.raises(ModelError, match="it holds: encoder_dict, decoder_dict, feature_dict"):
        torch.save(held, tmp_path / "held.pth")
        read_checkpoint(tmp_path / "held.pth")


def _zip_of_texts() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return file.getvalue()


NOT_WEIGHTS = {
    "empty": (b"", "is empty"),
    "page": (b"\n<!DOCTYPE html><html>sign in</html>", "is a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\nsize 3\n", "git lfs pull"),
    "text": (b"hello", "no file of PyTorch weights"),
    "zeros": (b"\0" * 5000, "no file of PyTorch weights"),
    "noise": (np.random.default_rng(0).bytes(5000), "no file of PyTorch weights"),
    "zip": (_zip_of_texts(), "no file of PyTorch weights"),
    "header": (b"\x08\0\0\0\0\0\0\0{broken}", "no file of PyTorch weights"),
    "huge header": (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "no file of PyTorch weights"),
}


@pytest.mark.parametrize(("content", "said"), NOT_WEIGHTS.values(), ids=NOT_WEIGHTS)
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=said) as caught:
        read_checkpoint(path)
    assert "'weights.pth'" in str(caught.value)


@SAVERS
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
def test_cut_short(tmp_path: Path, save: Callable[[Any, Path], None], share: float) -> None:
    path = tmp_path / "weights.pth"
    save(network().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match="cut short"):
        read_checkpoint(path)


def test_missing_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    "held", [torch.ones(3), [torch.ones(3)], {}, {"model": {"a": 1}}, {"a": [torch.ones(1)]}]
)
def test_without_weights_by_name(tmp_path: Path, held: Any) -> None:
    torch.save(held, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"holds (one|no weights)"):
        read_checkpoint(tmp_path / "weights.pth")


class Runs:
    """Object whose pickle calls a function with arguments when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def save_pickle(held: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(held, protocol=2))


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
@pytest.mark.parametrize("where", ["alone", "model", "optimizer", "argument"])
def test_code_in_a_checkpoint_does_not_run(
    tmp_path: Path, save: Callable[[Any, Path], None], where: str
) -> None:
    made = tmp_path / "made by the checkpoint"
    pickle.loads(pickle.dumps(Runs(os.mkdir, str(made))))
    made.rmdir()  # the code would run
    for code in (Runs(os.mkdir, str(made)), Runs(eval, f"open({str(made)!r}, 'w')"), Runs(exec, "1")):
        # Also inside a permitted call, the construction of a plain dictionary.
        held = {"alone": code, "argument": {"a": Runs(dict, code)}}.get(
            where, {"w": torch.ones(2), where: code}
        )
        path = tmp_path / "weights.pth"
        save(held, path)
        with pytest.raises(ModelError, match="was not opened, since that could run anything"):
            read_checkpoint(path)
        assert not made.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_whole_networks_and_settings_are_not_opened(tmp_path: Path) -> None:
    for held, name in ((network(), "torch.nn"), ({"args": io.StringIO("x")}, "StringIO")):
        torch.save(held, tmp_path / "weights.pth")
        with pytest.raises(ModelError, match=name):
            read_checkpoint(tmp_path / "weights.pth")


def test_what_is_let_through_is_not_let_through_elsewhere(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "loss": np.float64(1)}, tmp_path / "weights.pth")
    read_checkpoint(tmp_path / "weights.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "weights.pth", weights_only=True)


def test_fitting_weights_are_loaded_in_the_type_of_the_network() -> None:
    state = {key: v.half() if v.is_floating_point() else v for key, v in network(1).state_dict().items()}
    module = network(2)
    load_strictly(module, state, what="the test")
    for key, value in module.state_dict().items():
        assert value.dtype == network().state_dict()[key].dtype
        assert torch.equal(value, state[key].to(value.dtype))


def test_what_differs_is_counted_and_named() -> None:
    module = network()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = network(1).state_dict()
    del state["0.bias"], state["1.weight"]
    state["2.weight"], state["extra"] = torch.ones(4, 6), torch.ones(1)
    with pytest.raises(ModelError) as caught:
        load_strictly(module, state, what="the test", source="x.pth")
    assert str(caught.value) == (
        "x.pth does not fit the test with its 9 weights: 2 missing (first 0.bias), 1 not known "
        "(first extra), 1 of another shape (first 2.weight: 4 x 6 instead of 4 x 5); "
        "give the whole checkpoint of that model."
    )
    assert same(module.state_dict(), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(bad: float) -> None:
    module, state = network(), network(1).state_dict()
    state["2.weight"][1, 1] = bad
    with pytest.raises(ModelError, match=r"not finite \(first in 2\.weight\)"):
        load_strictly(module, state, what="the test")
    assert same(module.state_dict(), network().state_dict())


def sam(size: str) -> nn.Module:
    """Return SAM in its published size, shapes only."""
    with torch.device("meta"):
        return sam_model_registry[size]()


@pytest.fixture(scope="module")
def vit_b() -> nn.Module:
    return sam("vit_b")


@pytest.mark.parametrize(
    "odd",
    [
        torch.eye(2).to_sparse(),
        torch.eye(2).to_sparse_csr(),
        torch.eye(2, device="meta"),
        torch.eye(2).cfloat(),
        torch.full((2, 2), 1e300, dtype=torch.float64),
    ],
    ids=["sparse", "rows", "meta", "complex", "large"],
)
def test_tensors_that_are_no_plain_numbers(tmp_path: Path, odd: Tensor) -> None:
    layer = nn.Linear(2, 2, bias=False)
    torch.save({"weight": odd}, tmp_path / "odd.pth")
    with pytest.raises(ModelError, match="weight"):
        load_strictly(layer, read_checkpoint(tmp_path / "odd.pth"), what="a layer")


def test_names_and_shapes_that_make_no_sense(tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    torch.save({0: torch.zeros(2)}, path)
    with pytest.raises(ModelError, match="holds no weights by name"):
        read_checkpoint(path)
    torch.save({"encoder_dict": {0: 1, "blocks.0.attn.qkv.weight": torch.zeros(9, 3)}}, path)
    with pytest.raises(ModelError, match=r"a checkpoint of 3DSAM-adapter ViT \(1 blocks of width 3\)"):
        read_checkpoint(path)
    number = torch.tensor(1.0)
    names = ("neck.0.weight", "pos_embed", "blocks.0.attn.qkv.weight")
    with pytest.raises(ModelError, match="is a checkpoint of SAM ViT"):
        load_strictly(build_sam3d_tiny(), dict.fromkeys(names, number), what="sam3d_tiny")


def test_another_size_of_sam_is_named(vit_b: nn.Module) -> None:
    with pytest.raises(ModelError) as caught:
        load_strictly(vit_b, sam("vit_h").state_dict(), what="sam_vit_b", source="sam_vit_h_4b8939.pth")
    assert str(caught.value) == (
        "sam_vit_h_4b8939.pth is a checkpoint of SAM ViT-H (32 blocks of width 1280), but sam_vit_b needs "
        f"{VIT_B}; give such a file, or choose the model that this one belongs to."
    )


def test_published_networks_are_recognised(vit_b: nn.Module) -> None:
    state = vit_b.state_dict()
    assert describe_architecture(state) == VIT_B
    assert describe_architecture(sam("vit_l").state_dict()) == "SAM ViT-L (24 blocks of width 1024)"
    encoder = vit_b.image_encoder.state_dict()
    assert describe_architecture(encoder) == VIT_B

    key = "image_encoder.pos_embed"
    assert (
        describe_architecture({**state, key: torch.ones(1, 16, 16, 768)})
        == f"{VIT_B} for slices of 256 pixels"
    )
    assert describe_architecture({**state, key: torch.ones(1, 8, 8, 8, 768)}) == "SAM-Med3D"
    adapted = {**state, "image_encoder.blocks.0.Adapter.channel.0.weight": torch.ones(192, 768)}
    assert describe_architecture(adapted) == "SAM-Med2D ViT-B (12 blocks of width 768)"

    volumes = "3DSAM-adapter ViT-B (12 blocks of width 768)"
    flat = {**encoder, "depth_embed": torch.ones(1, 1)}
    assert describe_architecture({"encoder_dict": flat, "decoder_dict": {}, "feature_dict": []}) == volumes
    assert describe_architecture(flat) == volumes

    renamed = {f"vision_encoder.layers.{n}.attn.qkv.weight": torch.ones(9, 3) for n in range(2)}
    renamed["vision_encoder.neck.conv1.weight"] = torch.ones(1)
    said = "SAM ViT (2 blocks of width 3) in the layout of the transformers package"
    assert describe_architecture(renamed) == said
    assert describe_architecture({"image_encoder.trunk.pos_embed": torch.ones(1)}) == "SAM 2"


def test_own_and_unknown_networks() -> None:
    own = read_checkpoint(WEIGHTS_FOLDER / "sam3d_tiny.safetensors")
    assert (
        describe_architecture(own) == "sam3d_tiny" == describe_architecture(build_sam3d_tiny().state_dict())
    )
    for state in (network().state_dict(), {}, {"encoder_dict": torch.ones(1)}):
        assert describe_architecture(state) == UNKNOWN_NETWORK
