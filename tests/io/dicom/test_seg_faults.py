"""Refused DICOM segmentations: faults found on reading back, unsuitable series."""

from __future__ import annotations

import sys

import numpy as np
import pydicom
import pytest

from medsam_app.errors import SaveError, VolumeError
from medsam_app.io.dicom import seg_writer
from medsam_app.io.dicom.seg_source import Source
from medsam_app.io.dicom.seg_writer import save_dicom_seg
from medsam_app.io.volume import Volume
from tests.support.dicom_seg_series import labels_for, series


def shifted_voxels(monkeypatch):
    original = seg_writer._segment_numbers
    monkeypatch.setattr(
        seg_writer, "_segment_numbers", lambda *arguments: np.roll(original(*arguments), 1, axis=2)
    )


def stand_ins_changed(monkeypatch, change):
    """Change the headers that are passed to highdicom, in place."""
    original = Source.stand_ins

    def changed(self):
        headers = original(self)
        change(headers)
        return headers

    monkeypatch.setattr(Source, "stand_ins", changed)


def shifted_slices(monkeypatch):
    def shift(headers):
        positions = [header.ImagePositionPatient for header in headers]
        for header, position in zip(headers, positions[1:] + positions[:1], strict=True):
            header.ImagePositionPatient = position

    stand_ins_changed(monkeypatch, shift)


def shifted_positions(monkeypatch):
    def shift(headers):
        for header in headers:
            header.ImagePositionPatient[0] += 0.02

    stand_ins_changed(monkeypatch, shift)


def swapped_spacing(monkeypatch):
    def swap(headers):
        for header in headers:
            header.PixelSpacing = list(header.PixelSpacing)[::-1]

    stand_ins_changed(monkeypatch, swap)


def other_references(monkeypatch):
    original = Source.refer

    def refer(self, data):
        original(self, data)
        groups = data.PerFrameFunctionalGroupsSequence
        groups[0].DerivationImageSequence = groups[1].DerivationImageSequence

    monkeypatch.setattr(Source, "refer", refer)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (shifted_voxels, "has other voxels in slice 0"),
        (shifted_slices, "has other voxels in slice"),
        (shifted_positions, "refers to another slice"),
        (swapped_spacing, "turned or scaled"),
        (other_references, "refers to another slice"),
    ],
)
def test_a_file_that_differs_from_the_mask_is_not_saved(tmp_path, monkeypatch, fault, sentence):
    volume = series(tmp_path / "series")
    path = save_dicom_seg(labels_for(volume.shape), volume, tmp_path / "m.dcm")
    before = path.read_bytes()
    fault(monkeypatch)
    with pytest.raises(SaveError, match=sentence):
        save_dicom_seg(labels_for(volume.shape, seed=5), volume, path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.dcm", "series"]


def test_series_that_cannot_be_referred_to(tmp_path):
    volume = series(tmp_path / "series")
    labels = labels_for(volume.shape)

    def change(name: str, *values: str | None) -> None:
        for number, file in enumerate(sorted((tmp_path / "series").iterdir())):
            data = pydicom.dcmread(file)
            value = values[number % len(values)]
            if value is None:
                del data[name]
            else:
                setattr(data, name, value)
            data.save_as(file)

    def check_refused(sentence: str) -> None:
        with pytest.raises(SaveError, match=sentence):
            save_dicom_seg(labels, volume, tmp_path / "m.dcm")
        assert not (tmp_path / "m.dcm").exists()

    change("FrameOfReferenceUID", "1.2.7", "1.2.8")
    check_refused("name 2 frames of reference")
    change("FrameOfReferenceUID", None)
    check_refused("names no frame of reference")
    change("FrameOfReferenceUID", "1.2.7")
    change("StudyInstanceUID", None)
    check_refused("names no study UID")
    change("StudyInstanceUID", "1.2.3")
    change("PixelSpacing", ["0.9", "0.5"])  # type: ignore[arg-type]
    check_refused("is not the one that was loaded")
    (tmp_path / "series" / "004.dcm").unlink()
    check_refused("is not the one that was loaded")
    with pytest.raises(VolumeError, match="There is no file or folder"):
        for file in (tmp_path / "series").iterdir():
            file.unlink()
        (tmp_path / "series").rmdir()
        save_dicom_seg(labels, volume, tmp_path / "m.dcm")


def test_without_highdicom_the_message_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(SaveError, match=r'pip install "medsam-app\[dicom\]"'):
        save_dicom_seg(
            np.ones((2, 2, 2)), Volume.from_array(np.ones((2, 2, 2)), np.eye(4)), tmp_path / "m.dcm"
        )
