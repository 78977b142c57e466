"""DICOM: series, stacks of slices, multi-frame files and segmentations."""
