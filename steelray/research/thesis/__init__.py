"""Both result tables of the thesis, reproduced."""
