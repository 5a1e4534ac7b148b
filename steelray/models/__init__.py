"""Open a stored model of any kind; ensembles and calibration."""
