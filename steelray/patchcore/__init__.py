"""PatchCore: embedder, coreset, memory bank and its file format, index, growth, fitting and scoring."""
