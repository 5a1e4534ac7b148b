"""The ablation: many settings of PatchCore side by side on one labelled dataset."""
