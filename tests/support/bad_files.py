"""Bad files: not images, truncated, or with impossible headers."""

from __future__ import annotations

import numpy as np

from medsam_app.io.loading import load_volume
from tests.support.bad_kit import case, damaged, itk, nifti, text, voxels

# not an image


@case("a path that does not exist")
def _(folder):
    load_volume(folder / "scan.nii.gz")


@case("an empty file")
def _(folder):
    load_volume(text(folder / "scan.nii.gz", ""))


@case("a text file renamed .nii.gz")
def _(folder):
    load_volume(text(folder / "scan.nii.gz", "hello " * 100))


@case("a text file renamed .nrrd")
def _(folder):
    load_volume(text(folder / "scan.nrrd", "hello " * 100))


@case("a text file renamed .mha")
def _(folder):
    load_volume(text(folder / "scan.mha", "hello " * 100))


@case("a format that is not supported")
def _(folder):
    load_volume(text(folder / "scan.png", "\x89PNG"))


@case("a NIfTI pair's .hdr renamed .nii")
def _(folder):
    load_volume(nifti(folder / "scan.nii", magic=b"ni1"))


# truncated or damaged


@case("a truncated .nii.gz")
def _(folder):
    noise = np.random.default_rng(0).integers(-1000, 1000, (40, 40, 20)).astype("int16")
    load_volume(damaged(nifti(folder / "scan.nii.gz", noise), 0.6))


@case("a .nii.gz truncated to a few bytes")
def _(folder):
    load_volume(damaged(nifti(folder / "scan.nii.gz"), 0.05))


@case("a .nii.gz with flipped bytes inside")
def _(folder):
    noise = np.random.default_rng(0).integers(-1000, 1000, (40, 40, 20)).astype("int16")
    path = nifti(folder / "scan.nii.gz", noise)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    load_volume(path)


@case("a truncated .nii")
def _(folder):
    load_volume(damaged(nifti(folder / "scan.nii"), 0.8))


@case("a truncated .nrrd")
def _(folder):
    load_volume(damaged(itk(folder / "scan.nrrd", voxels()), 0.8))


@case("a truncated compressed .nrrd")
def _(folder):
    noise = np.random.default_rng(0).integers(-1000, 1000, (20, 40, 40)).astype("int16")
    load_volume(damaged(itk(folder / "scan.nrrd", noise, compress=True), 0.6))


@case("a truncated .mha")
def _(folder):
    load_volume(damaged(itk(folder / "scan.mha", voxels()), 0.8))


@case("a truncated compressed .mha")
def _(folder):
    noise = np.random.default_rng(0).integers(-1000, 1000, (20, 40, 40)).astype("int16")
    load_volume(damaged(itk(folder / "scan.mha", noise, compress=True), 0.6))


@case("an .mhd without its data file")
def _(folder):
    path = itk(folder / "scan.mhd", voxels())
    (folder / "scan.raw").unlink()
    load_volume(path)


@case("an .mhd that refers to a file outside its folder")
def _(folder):
    path = itk(folder / "scan.mhd", voxels())
    load_volume(text(path, path.read_text().replace("scan.raw", "../secret.raw")))


# impossible headers


@case("a NIfTI header that promises terabytes")
def _(folder):
    load_volume(nifti(folder / "scan.nii", dim=[3, 30000, 30000, 3000, 1, 1, 1, 1]))


@case("a compressed NIfTI header that promises terabytes")
def _(folder):
    load_volume(nifti(folder / "scan.nii.gz", dim=[3, 30000, 30000, 3000, 1, 1, 1, 1]))


@case("an NRRD header that promises terabytes")
def _(folder):
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 30000 30000 3000\nencoding: {}\nendian: little\n\n"
    load_volume(text(folder / "scan.nrrd", header.format("gzip"), b"abc"))


@case("an .mhd header that promises terabytes")
def _(folder):
    path = itk(folder / "scan.mhd", voxels())
    load_volume(text(path, path.read_text().replace("DimSize = 5 7 6", "DimSize = 30000 30000 3000")))


@case("zero-sized dimensions")
def _(folder):
    load_volume(nifti(folder / "scan.nii", dim=[3, 6, 0, 5, 1, 1, 1, 1]))


@case("a header with ten dimensions")
def _(folder):
    load_volume(nifti(folder / "scan.nii", dim=[10, 6, 7, 5, 1, 1, 1, 1]))


@case("an unknown NIfTI datatype")
def _(folder):
    load_volume(nifti(folder / "scan.nii", datatype=1))


@case("a singular affine")
def _(folder):
    load_volume(nifti(folder / "scan.nii", srow_x=[1, 0, 1, 0], srow_z=[0, 0, 0, 0]))


@case("an affine with a zero axis")
def _(folder):
    load_volume(nifti(folder / "scan.nii", srow_z=[0, 0, 0, 0]))


@case("an affine with NaN")
def _(folder):
    load_volume(nifti(folder / "scan.nii", srow_z=[0, 0, np.nan, 0]))


@case("a .mha with zero spacing")
def _(folder):
    path = itk(folder / "scan.mha", voxels())
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 0 1"))
    load_volume(path)


@case("an NRRD with a zero space direction")
def _(folder):
    path = itk(folder / "scan.nrrd", voxels())
    path.write_bytes(path.read_bytes().replace(b"(0,0,1)", b"(0,0,0)"))
    load_volume(path)
