"""Why an AP is what it is: errors, confusions, thresholds, calibration, differences of two models."""
