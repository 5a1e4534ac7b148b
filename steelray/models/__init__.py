"""Opening a stored model of any kind, ensembles, and calibration."""
