"""The study of why DRAEM does not converge on steel: trials, criteria, verdicts and report."""
