"""Bad images: unsupported kinds, and DICOM files that do not form a volume."""

from __future__ import annotations

import os
import re
import zipfile

import numpy as np

from medsam_app.errors import SeriesChoice
from medsam_app.io.loading import load_volume
from tests.support.bad_kit import SHAPE, case, damaged, itk, nifti, slices, text, voxels
from tests.support.dicom_enhanced import write_enhanced
from tests.support.dicom_files import AXIAL, write_series, write_slice

# the wrong kind of image


@case("a 2D image")
def _(folder):
    load_volume(nifti(folder / "slice.nii.gz", voxels((6, 7))))


@case("a 2D image stored as one slice")
def _(folder):
    load_volume(nifti(folder / "slice.nii.gz", voxels((6, 7, 1))))


@case("a 2D .mha")
def _(folder):
    load_volume(itk(folder / "slice.mha", voxels((6, 7))))


@case("a NIfTI in colours (RGB24)")
def _(folder):
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    load_volume(nifti(folder / "colour.nii.gz", rgb))


@case("an NRRD in colours (RGB)")
def _(folder):
    load_volume(itk(folder / "colour.nrrd", voxels((5, 7, 6, 3), "uint8"), vector=True))


@case("complex values")
def _(folder):
    load_volume(nifti(folder / "kspace.nii.gz", voxels(dtype="complex64")))


@case("only NaN")
def _(folder):
    load_volume(nifti(folder / "scan.nii.gz", np.full(SHAPE, np.nan, "float32")))


@case("only infinite values")
def _(folder):
    load_volume(nifti(folder / "scan.nii.gz", np.full(SHAPE, np.inf, "float32")))


@case("4D without a choice of frame", SeriesChoice)
def _(folder):
    load_volume(nifti(folder / "cine.nii.gz", voxels((*SHAPE, 3))))


@case("a frame that does not exist")
def _(folder):
    load_volume(nifti(folder / "cine.nii.gz", voxels((*SHAPE, 3))), frame=3)


@case("several channels without a choice", SeriesChoice)
def _(folder):
    load_volume(nifti(folder / "vector.nii.gz", voxels((*SHAPE, 1, 2), "float32")))


@case("a channel that does not exist")
def _(folder):
    load_volume(nifti(folder / "scan.nii.gz"), channel=1)


@case("a series of a file that is not DICOM")
def _(folder):
    load_volume(nifti(folder / "scan.nii.gz"), series="1")


@case("six dimensions")
def _(folder):
    load_volume(nifti(folder / "scan.nii", voxels((*SHAPE, 1, 1, 2))))


# DICOM


@case("a folder without DICOM")
def _(folder):
    nifti(folder / "scan.nii.gz")
    text(folder / "readme.txt", "hello")
    load_volume(folder)


@case("several series without a choice", SeriesChoice)
def _(folder):
    write_series(folder, slices(), series="1.2.3.4")
    write_series(folder, slices(), series="1.2.3.5", first=10)
    load_volume(folder)


@case("a series that does not exist", SeriesChoice)
def _(folder):
    load_volume(write_series(folder, slices()), series="7")


@case("missing slices")
def _(folder):
    load_volume(write_series(folder, slices(), distances=[0, 2, 4, 10, 12, 14]))


@case("slices that are not evenly spaced")
def _(folder):
    load_volume(write_series(folder, slices(), distances=[0, 2, 4, 6.5, 9, 11.5]))


@case("slices of mixed orientation (a scout among them)")
def _(folder):
    write_series(folder, slices())
    write_series(folder, slices(1), orientation=(0, 1, 0, 0, 0, -1), first=6)
    load_volume(folder)


@case("slices of mixed size")
def _(folder):
    write_series(folder, slices())
    write_series(folder, voxels((8, 8, 2), "uint16"), distances=[12, 14], first=6)
    load_volume(folder)


@case("slices of mixed voxel spacing")
def _(folder):
    write_series(folder, slices())
    write_series(folder, slices(2), distances=[12, 14], spacing=(0.9, 0.9), first=6)
    load_volume(folder)


@case("slice positions that repeat unevenly (two series mixed)")
def _(folder):
    write_series(folder, slices())
    write_series(folder, slices(2), distances=[2, 4], first=6)
    load_volume(folder)


@case("several time points in a DICOM series", SeriesChoice)
def _(folder):
    write_series(folder, slices())
    write_series(folder, slices(), first=6)
    load_volume(folder)


@case("a single DICOM slice")
def _(folder):
    load_volume(write_series(folder, slices(1)) / "000.dcm")


@case("a truncated DICOM slice")
def _(folder):
    damaged(write_series(folder, slices()) / "003.dcm", 0.5)
    load_volume(folder)


@case("DICOM without positions")
def _(folder):
    write_series(folder, slices(), ImagePositionPatient=None)
    load_volume(folder)


@case("DICOM in colours (RGB)")
def _(folder):
    for k in range(3):
        write_slice(folder / f"{k}.dcm", voxels((8, 9, 3), "uint8"), position=(0, 0, k), series="1.2")
    load_volume(folder)


@case("a multi-frame film")
def _(folder):
    film = voxels((8, 9), "uint16")
    film_class = "1.2.840.10008.5.1.4.1.1.3.1"
    path = write_slice(folder / "film.dcm", film, position=(0, 0, 0), series="1.2", sop_class=film_class)
    import pydicom

    data = pydicom.dcmread(path)
    data.NumberOfFrames, data.PixelData, data.Modality = 4, film.tobytes() * 4, "US"
    data.save_as(path)
    load_volume(path)


@case("a multi-frame file with a missing frame")
def _(folder):
    load_volume(write_enhanced(folder / "scan.dcm", slices(), places=[0, 2, 4, 8, 10, 12]))


@case("a multi-frame file with mixed frame orientations")
def _(folder):
    load_volume(
        write_enhanced(folder / "scan.dcm", slices(3), orientations=[AXIAL, AXIAL, (0, 1, 0, 0, 0, -1)])
    )


@case("a DICOM slice whose name is not UTF-8")
def _(folder):
    first = write_series(folder / "scan", slices()) / "000.dcm"
    first.rename(first.with_name(os.fsdecode(b"bild_\xfc.dcm")))
    load_volume(folder / "scan")


@case("a .zip whose names are damaged")
def _(folder):
    path = folder / "scan.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ü.dcm", b"\0" * 1000)
    path.write_bytes(path.read_bytes().replace("ü".encode(), b"\xfc\xfc"))
    load_volume(path)


@case("a damaged .zip")
def _(folder):
    load_volume(text(folder / "scan.zip", "PK hello"))


@case("a .zip that unpacks to terabytes")
def _(folder):
    path = folder / "bomb.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.dcm", b"\0" * 1000)
    # sizes in the central directory: 4 GB, three times
    content = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(3):
            archive.writestr(f"{number}.dcm", b"\0" * 1000)
    content = bytearray(path.read_bytes())
    for match in re.finditer(rb"PK\x01\x02", bytes(content)):
        content[match.start() + 24 : match.start() + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    load_volume(path)


@case("a .zip that would write outside its folder")
def _(folder):
    with zipfile.ZipFile(folder / "scan.zip", "w") as archive:
        archive.writestr("../../evil.dcm", b"\0" * 128 + b"DICM")
    load_volume(folder / "scan.zip")
