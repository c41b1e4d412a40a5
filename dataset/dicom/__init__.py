"""Reading DICOM: series, segmentations and contours."""
