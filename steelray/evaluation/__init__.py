"""Labelled datasets, detection metrics, and the evaluation of any model."""
