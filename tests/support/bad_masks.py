"""Bad masks for reading and for saving."""

from __future__ import annotations

import os

import numpy as np

from medsam_app.errors import GridMismatch, SaveError
from medsam_app.grid.geometry import Grid
from medsam_app.io.dicom.seg_writer import read_dicom_seg, save_dicom_seg
from medsam_app.io.loading import load_mask, load_volume
from medsam_app.io.volume import Volume
from medsam_app.io.writing import save_mask
from tests.support.bad_kit import AFFINE, SHAPE, case, nifti, slices, voxels
from tests.support.dicom_files import write_series

# masks


@case("a mask on a grid of another shape", GridMismatch)
def _(folder):
    load_mask(nifti(folder / "mask.nii.gz"), Grid((6, 7, 6), AFFINE))


@case("a mask of another voxel size", GridMismatch)
def _(folder):
    load_mask(nifti(folder / "mask.nii.gz"), Grid(SHAPE, np.diag([1.0, 1.0, 3.0, 1.0])))


@case("a mask of another orientation", GridMismatch)
def _(folder):
    load_mask(nifti(folder / "mask.nii.gz"), Grid(SHAPE, AFFINE * [[-1], [1], [1], [1]]))


@case("a mask at another position", GridMismatch)
def _(folder):
    load_mask(nifti(folder / "mask.nii.gz"), Grid(SHAPE, AFFINE + 12 * np.eye(4, k=3)))


@case("a mask of probabilities")
def _(folder):
    load_mask(nifti(folder / "mask.nii.gz", voxels(dtype="float32") / 7), Grid(SHAPE, AFFINE))


@case("a mask with negative values")
def _(folder):
    load_mask(nifti(folder / "mask.nii.gz", voxels() - 9), Grid(SHAPE, AFFINE))


# saving


def image() -> Volume:
    return Volume.from_array(voxels(), AFFINE)


@case("saving over the image itself", SaveError)
def _(folder):
    path = nifti(folder / "scan.nii.gz")
    save_mask(np.ones(SHAPE, bool), load_volume(path), path)


@case("saving in a format that is not supported", SaveError)
def _(folder):
    save_mask(np.ones(SHAPE, bool), image(), folder / "mask.png")


@case("saving as .nrrd under a name that is not UTF-8", SaveError)
def _(folder):
    save_mask(np.ones(SHAPE, bool), image(), folder / os.fsdecode(b"m\xfc.nrrd"))


@case("saving into a folder that does not exist", SaveError)
def _(folder):
    save_mask(np.ones(SHAPE, bool), image(), folder / "nowhere" / "mask.nii.gz")


@case("saving a mask of another shape", SaveError)
def _(folder):
    save_mask(np.ones((6, 7, 6), bool), image(), folder / "mask.nii.gz")


@case("saving negative labels", SaveError)
def _(folder):
    save_mask(voxels() - 4, image(), folder / "mask.nii.gz")


@case("saving labels that are not whole numbers", SaveError)
def _(folder):
    save_mask(voxels() / 3, image(), folder / "mask.nii.gz")


@case("saving labels that are too large", SaveError)
def _(folder):
    save_mask(np.full(SHAPE, 2**40), image(), folder / "mask.nii.gz")


# DICOM segmentations


def scan(folder, **tags: object) -> Volume:
    return load_volume(write_series(folder / "series", slices(), **{"FrameOfReferenceUID": "1.2.7", **tags}))


@case("a DICOM segmentation of an image that is not DICOM", SaveError)
def _(folder):
    volume = load_volume(nifti(folder / "scan.nii.gz"))
    save_dicom_seg(np.ones(SHAPE, bool), volume, folder / "mask.dcm")


@case("a DICOM segmentation with another file extension", SaveError)
def _(folder):
    save_dicom_seg(np.ones((8, 9, 6), bool), scan(folder), folder / "mask.seg")


@case("a DICOM segmentation over a slice of its series", SaveError)
def _(folder):
    save_dicom_seg(np.ones((8, 9, 6), bool), scan(folder), folder / "series" / "002.dcm")


@case("a DICOM segmentation of an empty mask without names", SaveError)
def _(folder):
    save_dicom_seg(np.zeros((8, 9, 6), bool), scan(folder), folder / "mask.dcm")


@case("a DICOM segmentation on a series without a frame of reference", SaveError)
def _(folder):
    save_dicom_seg(np.ones((8, 9, 6), bool), scan(folder, FrameOfReferenceUID=""), folder / "mask.dcm")


@case("a DICOM segmentation on a series that has changed since", SaveError)
def _(folder):
    volume = scan(folder)
    (folder / "series" / "005.dcm").unlink()
    save_dicom_seg(np.ones((8, 9, 6), bool), volume, folder / "mask.dcm")


@case("a DICOM segmentation with an invalid colour", SaveError)
def _(folder):
    save_dicom_seg(np.ones((8, 9, 6), bool), scan(folder), folder / "mask.dcm", colours={1: "reddish"})


@case("a DICOM segmentation of another grid", GridMismatch)
def _(folder):
    path = save_dicom_seg(np.ones((8, 9, 6), bool), scan(folder), folder / "mask.dcm")
    read_dicom_seg(path, Grid((8, 9, 6), AFFINE))


@case("a slice in place of a DICOM segmentation")
def _(folder):
    read_dicom_seg(write_series(folder, slices()) / "000.dcm", Grid((8, 9, 6), AFFINE))
