"""The study of DRAEM, the ablation, the thesis's tables and the capacity plan; the product never imports it."""
