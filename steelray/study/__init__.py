"""Why DRAEM does not converge on steel: diagnosis before training, controlled trials, verdicts by stated rules."""
