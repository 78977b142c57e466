"""The command line, on the phantom written to a file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from medsam_app.adapters.adapter import Adapter
from medsam_app.cli.app import main
from medsam_app.commands import models as models_command
from medsam_app.grid.patch import box_slices
from medsam_app.models.sam3d import build_sam3d_tiny
from medsam_app.models.table import MODELS
from medsam_app.synthetic.torso import torso_phantom


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """Path of the phantom as NIfTI, and its label map by name."""
    volume, labels, names = torso_phantom()
    path = tmp_path_factory.mktemp("phantom") / "torso.nii.gz"
    image = nib.Nifti1Image(volume.array, volume.grid.affine)
    image.header["qform_code"], image.header["sform_code"] = 1, 2
    nib.save(image, path)
    return path, {name: labels == value for value, name in names.items()}


def middle(mask) -> tuple[int, ...]:
    """Return the deepest voxel of an object."""
    depth = ndimage.distance_transform_edt(mask, sampling=(1.5, 1.5, 3.0))
    return tuple(int(v) for v in np.unravel_index(depth.argmax(), depth.shape))


def box_of(mask) -> str:
    where = np.argwhere(mask)
    return ",".join(str(v) for v in (*where.min(axis=0), *where.max(axis=0)))


def text(numbers) -> str:
    return ",".join(str(n) for n in numbers)


def dice(a, b) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["segment", "--help"], ["serve", "--help"], ["--version"]),
        *(
            ["pretrain", "--help"],
            ["models"],
            ["models", "--help"],
            ["models", "download", "--help"],
            ["models", "show", "sam_vit_b"],
        ),
    ],
)
def test_help_and_tables_load_nothing_heavy(arguments):
    code = (
        "import sys; from medsam_app.cli.app import main; status = main(sys.argv[1:]); "
        "heavy = {'torch', 'gradio', 'monai', 'SimpleITK'} & set(sys.modules); "
        "sys.exit(f'{status} {heavy}' if status or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and not done.stderr


@pytest.mark.slow
def test_the_module_runs_as_the_program_and_logs_have_no_colour():
    for extra in ({}, {"GITHUB_ACTIONS": "true"}):
        for arguments in (["models"], ["--help"], ["segment", "--nonsense"]):
            done = subprocess.run(
                [sys.executable, "-m", "medsam_app", *arguments],
                capture_output=True,
                text=True,
                env={**os.environ, **extra},
            )
            assert "\x1b" not in done.stdout + done.stderr
            assert done.returncode == (2 if "--nonsense" in arguments else 0)


def test_the_models_table_is_complete(capsys):
    assert run("models") == 0
    shown = capsys.readouterr().out
    for entry in MODELS.values():
        line = next(line for line in shown.splitlines() if line.split()[:1] == [entry.name])
        assert entry.summary in line and entry.checkpoint.licence in line


@pytest.mark.slow
def test_segment_then_replay(phantom, tmp_path, capsys):
    """Check that the mask matches the image, and that the prompt file reproduces it bit for bit."""
    path, masks = phantom
    truth = masks["gallbladder"]
    where = np.argwhere(truth)
    boxed = np.zeros_like(truth)
    boxed[box_slices(where.min(axis=0), where.max(axis=0) + 1)] = True
    background = text(middle(boxed & ~truth))
    output, prompts = tmp_path / "gallbladder.nii.gz", tmp_path / "gallbladder.prompts.json"
    status = run(
        *("segment", path, "--negative", background, "--box", box_of(truth), "-o", output),
        *("--save-prompts", prompts, "--name", "gallbladder", "--label", 300, "--device", "cpu"),
    )
    shown = capsys.readouterr()
    assert status == 0, shown.err
    saved, image = nib.load(output), nib.load(path)
    label_map = np.asarray(saved.dataobj)
    np.testing.assert_array_equal(saved.affine, image.affine)
    assert saved.shape == image.shape
    assert (saved.header["qform_code"], saved.header["sform_code"]) == (1, 2)
    assert saved.get_data_dtype() == np.uint16 and set(np.unique(label_map)) == {0, 300}
    assert dice(label_map == 300, truth) > 0.8
    ml = (label_map == 300).sum() * 6.75 / 1000
    assert f"gallbladder (label 300): {ml:.2f} ml" in shown.out and "all 2 prompts honoured" in shown.out
    assert "checked by reading it back" in shown.out and str(prompts) in shown.out
    assert "as asked" in shown.err

    again = tmp_path / "again.nii.gz"
    assert run("segment", path, "--prompts", prompts, "-o", again, "--device", "cpu") == 0
    np.testing.assert_array_equal(np.asarray(nib.load(again).dataobj), label_map)
    assert "Warning" not in capsys.readouterr().err


@pytest.mark.slow
def test_another_mask_by_its_number(phantom, tmp_path, capsys):
    """The masks are listed with their numbers; each number gives the listed volume, also when replayed."""
    path, masks = phantom
    point = ("--point", text(middle(masks["right kidney"])), "--device", "cpu", "--no-refine")
    assert run("segment", path, *point, "-o", tmp_path / "shown.nii.gz") == 0
    shown = capsys.readouterr()
    listed = re.findall(r"(\d): ([\d.]+) ml \(quality ([\d.]+)(?:, this one)?\)", shown.err)
    (saved,) = re.findall(r"([\d.]+) ml \(quality [\d.]+, this one\)", shown.err)
    assert f"{saved} ml, predicted quality" in shown.out
    assert [number for number, _, _ in listed] == [str(n) for n in range(1, len(listed) + 1)]
    assert len(listed) > 1 and "--alternative N" in shown.err
    for number, ml, quality in (listed[0], listed[-1]):
        output, prompts = tmp_path / f"{number}.nii.gz", tmp_path / f"{number}.prompts.json"
        chosen = ("--alternative", number, "--save-prompts", prompts)
        assert run("segment", path, *point, *chosen, "-o", output) == 0
        told = capsys.readouterr().out
        assert f"{ml} ml, predicted quality {quality}" in told
        assert f"{np.count_nonzero(nib.load(output).dataobj) * 6.75 / 1000:.2f}" == ml
    again = tmp_path / "again.nii.gz"
    assert run("segment", path, "--prompts", prompts, "-o", again, "--device", "cpu") == 0
    np.testing.assert_array_equal(np.asarray(nib.load(again).dataobj), np.asarray(nib.load(output).dataobj))
    assert run("segment", path, *point, "--alternative", 5, "-o", tmp_path / "x.nii.gz") == 2
    assert "numbered by size from 1; got 5" in capsys.readouterr().err
    assert not (tmp_path / "x.nii.gz").exists()


@pytest.mark.slow
def test_world_points_are_the_same_voxels(phantom, tmp_path):
    path, masks = phantom
    affine = nib.load(path).affine
    at = middle(masks["gallbladder"])
    neighbour = (at[0] + 22, at[1], at[2])
    inside, outside = (nib.affines.apply_affine(affine, each).tolist() for each in (at, neighbour))
    files = [tmp_path / "voxel.nii.gz", tmp_path / "world.nii.gz"]
    assert run("segment", path, "--point", text(at), "--negative", text(neighbour), "-o", files[0]) == 0
    assert (
        run(
            *("segment", path, "--world", "--point", text(inside), "--negative", text(outside)),
            "-o",
            files[1],
        )
        == 0
    )
    first, second = (np.asarray(nib.load(each).dataobj) for each in files)
    np.testing.assert_array_equal(first, second)
    assert first[at] == 1 and first[neighbour] == 0


def test_negative_numbers_are_values_not_options(phantom, tmp_path, capsys):
    path, _ = phantom
    assert run("segment", path, "--point", "-12,3,4", "-o", tmp_path / "x.nii.gz") == 2
    assert "(-12, 3, 4), lies outside the image" in capsys.readouterr().err


def test_mask_to_refine(phantom, tmp_path, capsys):
    path, masks = phantom
    start = tmp_path / "start.nii.gz"
    nib.save(nib.Nifti1Image(masks["spleen"].astype(np.uint8), nib.load(path).affine), start)
    output = tmp_path / "out.nrrd"
    assert run("segment", path, "--mask", start, "-o", output, "--save-prompts", tmp_path / "p.json") == 0
    assert output.stat().st_size > 0
    data = json.loads((tmp_path / "p.json").read_text())
    assert [each["kind"] for each in data["objects"][0]["prompts"]] == ["mask"]


def test_info(phantom, capsys):
    path, _ = phantom
    assert run("info", path) == 0
    shown = capsys.readouterr().out
    for expected in ("224  160  80", "1.5  1.5  3", "LPS", "median"):
        assert expected in shown


BAD = [
    (["--point", "1,2"], "--point takes 3 numbers with commas between them, such as 120,88,40; got '1,2'"),
    (["--point", "a,b,c"], "--point takes 3 numbers"),
    (["--point", "1,2,nan"], "--point takes 3 numbers"),
    (["--point", "1 2 3"], "--point takes 3 numbers"),
    (["--negative", ""], "say only where the object is not"),
    (["--box", "1,2,3"], "--box takes 6 numbers"),
    (["--point", "1,2,300"], "lies outside the image, whose voxels run from (0, 0, 0) to (223, 159, 79)"),
    (["--negative", "1,2,3"], "add --point, --box or --mask"),
    ([], "give --point, --box, --mask or --prompts"),
    (["--point", "1,2,3", "--label", "0"], "from 1 to 65535; got 0"),
    (["--point", "1,2,3", "--label", "x"], "--label"),
    (
        ["--point", "1,2,3", "--model", "sam3d_tinny"],
        "There is no model 'sam3d_tinny'. Did you mean 'sam3d_tiny'?",
    ),
    (["--point", "1,2,3", "--device", "abacus"], "There is no device 'abacus'"),
    (["--point", "1,2,3", "--frame", "7"], "7"),
    (["--prompts", "none.json"], "none.json cannot be read"),
    (["--prompts", "none.json", "--point", "1,2,3"], "--prompts brings objects"),
    (["--prompts", "none.json", "--alternative", "2"], "--prompts brings objects"),
    (["--point", "1,2,3", "--mask", "none.nii"], "none.nii"),
    (["--point", "1,2,3", "--save-prompts", "x.txt"], "end it in .prompts.json"),
    (["--pointt", "1,2,3"], "No such option"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_errors_are_one_sentence(phantom, tmp_path, capsys, arguments, message):
    path, _ = phantom
    assert run("segment", path, *arguments, "-o", tmp_path / "x.nii.gz") == 2
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and message in errors[0], shown.err
    assert shown.err.splitlines()[-1] == errors[0] and "Traceback" not in shown.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.png", "end its name in .nii.gz, .nii, .nrrd, .mha, .mhd"),
        ("x", "end its name in"),
        ("nowhere/x.nii", "There is no folder"),
    ],
)
def test_outputs_are_checked_before_any_work(phantom, tmp_path, capsys, name, message):
    path, _ = phantom
    assert run("segment", path, "--point", "1,2,3", "-o", tmp_path / name) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Reading" not in shown


@pytest.mark.slow
def test_nothing_is_overwritten_without_the_option(phantom, tmp_path, capsys):
    path, masks = phantom
    image = tmp_path / "image.nii.gz"
    image.write_bytes(path.read_bytes())
    point = ("--point", text(middle(masks["gallbladder"])))
    for target in (image, tmp_path / "." / "image.nii.gz"):
        assert run("segment", image, *point, "-o", target, "--overwrite") == 2
        assert "is what is read here" in capsys.readouterr().err
    assert image.read_bytes() == path.read_bytes()
    output = tmp_path / "mask.nii.gz"
    output.write_bytes(b"precious")
    assert run("segment", image, *point, "-o", output) == 2
    assert "--overwrite to replace it" in capsys.readouterr().err and output.read_bytes() == b"precious"
    assert run("segment", image, *point, "-o", output, "--overwrite") == 0
    assert nib.load(output).shape == (224, 160, 80)


def test_choices_are_offered(phantom, tmp_path, capsys):
    path, _ = phantom
    frames = np.stack([np.asarray(nib.load(path).dataobj)[:16, :16, :16]] * 3, axis=-1)
    nib.save(nib.Nifti1Image(frames, nib.load(path).affine), tmp_path / "4d.nii.gz")
    assert run("segment", tmp_path / "4d.nii.gz", "--point", "1,2,3", "-o", tmp_path / "x.nii") == 2
    shown = capsys.readouterr().err
    assert [line.split()[:2] for line in shown.splitlines()[-3:]] == [["--frame", str(n)] for n in range(3)]
    assert run("info", tmp_path / "4d.nii.gz") == 0
    assert "3" in capsys.readouterr().out


@pytest.mark.slow
def test_other_images_need_an_option(phantom, tmp_path, capsys):
    path, masks = phantom
    prompts, other_image = tmp_path / "p.prompts.json", tmp_path / "other.nii.gz"
    point = ("--point", text(middle(masks["gallbladder"])))
    assert run("segment", path, *point, "-o", tmp_path / "a.nii", "--save-prompts", prompts) == 0
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + np.int16(1), image.affine), other_image)
    assert run("segment", other_image, "--prompts", prompts, "-o", tmp_path / "b.nii") == 2
    assert "other voxels" in capsys.readouterr().err
    assert run("segment", other_image, "--prompts", prompts, "-o", tmp_path / "b.nii", "--other-image") == 0
    assert "Warning: p.prompts.json was made on another image" in capsys.readouterr().err


@pytest.mark.slow
def test_contradictory_clicks_are_reported_but_no_failure(phantom, tmp_path, capsys):
    path, masks = phantom
    at = text(middle(masks["gallbladder"]))
    assert run("segment", path, "--point", at, "--negative", at, "-o", tmp_path / "x.nii.gz") == 0
    shown = capsys.readouterr()
    assert "1 of 2 prompts honoured" in shown.out
    assert "does not honour prompt 1, the positive click" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.nii"], "There is no file or folder nothing.nii"),
        (["--root", "nowhere"], "--root nowhere is not a folder"),
        (["--auth", "me"], "USER:PASSWORD"),
        (["--port", "70000"], "65535"),
        (["--model", "none"], "There is no model 'none'"),
    ],
)
def test_serve_refuses_before_it_starts(capsys, arguments, message):
    assert run("serve", *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["info", "nothing.nii"], ["info"], ["nonsense"]])
def test_other_errors(capsys, arguments):
    assert run(*arguments) == 2
    assert capsys.readouterr().err.count("Error: ") == 1


def test_interrupt_is_130_and_no_traceback(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(models_command, "models", interrupted)
    assert run("models") == 130
    assert "Traceback" not in capsys.readouterr().err


def test_no_command_prints_help(capsys):
    assert run() == 0
    assert "segment" in capsys.readouterr().out


def test_models_that_do_not_fit_are_refused_before_anything_is_read(phantom, tmp_path, capsys):
    model = build_sam3d_tiny()
    model.model_id, model.weights_sha256 = "sam3d_vit_b", "0" * 64
    adapter = Adapter.create("lora", model).save(tmp_path / "mine.safetensors")
    image = tmp_path / "image.nii.gz"
    image.write_bytes(b"never read")
    for command in (["segment", image, "--point", "1,1,1", "-o", tmp_path / "out.nii.gz"], ["serve"]):
        assert run(*command, "--adapter", adapter) == 2
        assert "'mine.safetensors' was made for the model 'sam3d_vit_b'" in capsys.readouterr().err
        assert run(*command, "--weights", tmp_path / "none.pth") == 2
        assert "There is no file of weights" in capsys.readouterr().err
