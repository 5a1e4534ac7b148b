"""`Embedder`, ready to run, and `PortableEmbedder`, an OpenVINO graph that CPU actors load without torch.

Shapes: B images, H height, W width, C channels; h, w the patch grid, D dimensions of an embedding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steelray.imaging.decode import resize
from steelray.patchcore.config import EmbedderConfig

EmbedFunction = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Takes images_BHWC uint8 (C = 1 or 3); returns embeddings_BhwD float32."""


@dataclass(frozen=True)
class Embedder:
    """An embedder that is ready to run in this process.

    Attributes:
        embed: takes images of the configured size; cuts them into tiles itself.
        stride_px: pixels per cell of the coarsest level used; no smaller image can be embedded.
        weights_digest: SHA-256 of the backbone's weights.
        nominal_px: height and width of all images of a bank; None if they differ or are resized.
    """

    config: EmbedderConfig
    embed: EmbedFunction
    stride_px: int
    weights_digest: str
    nominal_px: tuple[int, int] | None = None

    def embed_image(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the patch embeddings hwD of an image, resized or mirrored at its end as `resized` does."""
        embeddings_hwD: NDArray[np.float32] = self.embed(self.resized(image_HWC)[None])[0]
        return embeddings_hwD

    @property
    def min_size_px(self) -> int:
        """Return the least height and width of an image that can be embedded, before it is resized."""
        return math.ceil(self.stride_px / self.scale)

    @property
    def scale(self) -> float:
        """Return the factor on height and width, which is known once there is a nominal image."""
        assert self.config.scale is not None
        return self.config.scale

    def seen_px(self, size_px: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width that `resized` gives an image of this height and width."""
        return self.config.resize_px or self._lengthened(self._scaled(size_px))

    def covered_px(self, size_px: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width that the embeddings cover, in pixels of the image; beyond it, it is mirrored."""
        if self.config.resize_px is not None:
            return size_px
        rows, columns = self.seen_px(size_px)
        return math.ceil(rows / self.scale), math.ceil(columns / self.scale)

    def resized(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the image at the configured size, or at its own, lengthened until its cells lie as in the bank.

        The padding inside many backbones depends on the size modulo the stride. A strip one pixel taller than all
        nominal ones would be anomalous everywhere, so less than a stride of it is mirrored at its lower and right end.
        """
        size_px = (image_HWC.shape[0], image_HWC.shape[1])
        scaled_px = self.config.resize_px or self._scaled(size_px)
        if scaled_px != size_px:
            image_HWC = resize(image_HWC, scaled_px)
        padding = [(0, seen - own) for seen, own in zip(self.seen_px(size_px), scaled_px, strict=True)]
        return np.pad(image_HWC, [*padding, (0, 0)], "reflect") if any(map(any, padding)) else image_HWC

    def _scaled(self, size_px: tuple[int, int]) -> tuple[int, int]:
        return math.ceil(size_px[0] * self.scale), math.ceil(size_px[1] * self.scale)  # the map must not be shorter

    def _lengthened(self, size_px: tuple[int, int]) -> tuple[int, int]:
        """Return the size with which cells lie as in whole images, or as in nominal ones."""
        whole_px = (0, 0) if self.config.whole_cells else self._scaled(self.nominal_px) if self.nominal_px else size_px
        height_px, width_px = (own + (of - own) % self.stride_px for own, of in zip(size_px, whole_px, strict=True))
        return height_px, width_px


MAX_SIZES = 4
"""Image sizes for which a process keeps a compiled graph. Fixed sizes run faster, and an archive has one or two."""


@dataclass(frozen=True)
class PortableEmbedder:
    """An embedder made by `steelray.patchcore.embedder.export_openvino`.

    Attributes:
        graph, weights: an OpenVINO model, images_BCHW uint8 (C = 1 or 3) to embeddings_BhwD.
        precision: arithmetic of the backbone.
        stride_px: pixels per cell of the coarsest level used; no smaller image can be embedded.
    """

    graph: bytes = field(repr=False)
    weights: bytes = field(repr=False)
    precision: Literal["fp32", "bf16"]
    stride_px: int

    def compile(self, num_threads: int) -> EmbedFunction:
        """Return the embedder as a function on NumPy arrays. It takes images whole; `tiled_embedding` cuts them."""
        import openvino

        core = openvino.Core()
        model = core.read_model(model=self.graph, weights=self.weights)
        options = {
            "INFERENCE_NUM_THREADS": num_threads,
            # always set: by default OpenVINO uses bf16 on CPUs that have it
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
        }
        requests: dict[tuple[int, ...], Any] = {}

        def embed(images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
            request = request_for((images_BHWC.shape[3], *images_BHWC.shape[1:3]))
            embeddings_BhwD: NDArray[np.float32] | None = None
            # image by image: on a CPU one strip fills the cores, and an embedding never depends on its batch
            for place, image_HWC in enumerate(images_BHWC):
                image_CHW = np.ascontiguousarray(image_HWC.transpose(2, 0, 1))
                [answer] = request.infer([image_CHW[None]], share_outputs=True).values()
                if embeddings_BhwD is None:
                    embeddings_BhwD = np.empty((len(images_BHWC), *answer.shape[1:]), dtype=np.float32)
                embeddings_BhwD[place] = answer[0]  # the one copy: the next image overwrites the answer
            assert embeddings_BhwD is not None
            return embeddings_BhwD

        def request_for(shape_CHW: tuple[int, ...]) -> Any:
            if shape_CHW not in requests:
                if len(requests) >= MAX_SIZES:
                    requests.clear()
                model.reshape([1, *shape_CHW])
                requests[shape_CHW] = core.compile_model(model, "CPU", options).create_infer_request()
            return requests[shape_CHW]

        return embed
