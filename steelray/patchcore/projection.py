"""Johnson-Lindenstrauss projection: an optional, approximate space in which the coreset is selected.

Shapes: N points, D dimensions.
"""

import math

import numpy as np
import torch


def projection_matrix(dim: int, projection_dim: int, seed: int) -> torch.Tensor:
    """A Gaussian projection (dim, projection_dim), float32, the same for the same seed anywhere."""
    if not 1 <= projection_dim <= dim:
        raise ValueError(f"projection_dim is {projection_dim} but the embeddings have {dim} dimensions")
    values = np.random.Generator(np.random.PCG64(seed)).standard_normal((dim, projection_dim))
    return torch.from_numpy((values / math.sqrt(projection_dim)).astype(np.float32))


def project(embeddings_ND: torch.Tensor, projection_dim: int, seed: int) -> torch.Tensor:
    """The embeddings in a random subspace that keeps distances approximately."""
    matrix = projection_matrix(embeddings_ND.shape[1], projection_dim, seed)
    return embeddings_ND @ matrix.to(embeddings_ND)
