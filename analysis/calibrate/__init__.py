"""Calibration of a board's constants to runs, and the same scenario on the calibrated emulator."""

from analysis.calibrate.calibration import Calibration, HeldOut, calibrate

__all__ = ["Calibration", "HeldOut", "calibrate"]
