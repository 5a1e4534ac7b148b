"""The end of a run and its report: drift, gallery, checks, charts and pages."""
