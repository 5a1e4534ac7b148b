"""Settings that make no sense are refused where they are made, in one line that names them."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from steelray.config import ArchiveConfig, CalibrationConfig, ComputeConfig, ConfigError, DatasetConfig, DecodeConfig
from steelray.patchcore.config import CoresetConfig, EmbedderConfig, GrowthConfig, IndexConfig, ScoringConfig, identity

NO_INDEX = ["", "nonsense", "Flat", "IVF0,Flat", "HNSW16", "PQ12", "SQ8", "IVF8,PQ12x6", "IVF8,SQ8", "PCA12,Flat"]


@pytest.mark.parametrize(
    "section",
    [
        CalibrationConfig,
        ComputeConfig,
        CoresetConfig,
        DecodeConfig,
        EmbedderConfig,
        GrowthConfig,
        IndexConfig,
        ScoringConfig,
    ],
)
def test_defaults_are_valid_and_frozen(section: Callable[[], object]) -> None:
    config = section()
    assert config == section()
    with pytest.raises(AttributeError):
        config.anything = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("section", "settings", "name"),
    [
        (ArchiveConfig, {"uri": ""}, "uri"),
        (ArchiveConfig, {"uri": "x", "limit": 0}, "limit"),
        (DecodeConfig, {"max_bytes": 0}, "max_bytes"),
        (DecodeConfig, {"max_seconds": 0.0}, "max_seconds"),
        (DecodeConfig, {"max_pixels": -1}, "max_pixels"),
        (DecodeConfig, {"white_level": 0}, "white_level"),
        (DecodeConfig, {"white_level": 65536}, "white_level"),
        (EmbedderConfig, {"levels": ()}, "levels"),
        (EmbedderConfig, {"levels": (3, 2)}, "levels"),
        (EmbedderConfig, {"levels": (2, 2)}, "levels"),
        (EmbedderConfig, {"levels": (-1, 2)}, "levels"),
        (EmbedderConfig, {"neighborhood": 2}, "neighborhood"),
        (EmbedderConfig, {"neighborhood": -1}, "neighborhood"),
        (EmbedderConfig, {"resize_px": (31, 256)}, "resize_px"),
        (EmbedderConfig, {"tile_px": (64, 512)}, "tile_overlap_px must lie in 0..63"),
        (EmbedderConfig, {"tile_px": (256, 256), "tile_overlap_px": -32}, "tile_overlap_px"),
        (EmbedderConfig, {"tile_px": (0, 256), "tile_overlap_px": 0}, "tile_px"),
        (CoresetConfig, {"ratio": 0.0}, "ratio"),
        (CoresetConfig, {"ratio": 1.1}, "ratio"),
        (CoresetConfig, {"ratio": float("nan")}, "ratio"),
        (CoresetConfig, {"max_centers": 0}, "max_centers"),
        (CoresetConfig, {"cover_radius": -0.1}, "cover_radius"),
        (GrowthConfig, {"ratio": 0.0}, "ratio"),
        (GrowthConfig, {"max_centers": 0}, "max_centers"),
        (GrowthConfig, {"cover_radius": -1.0}, "cover_radius"),
        *((IndexConfig, {"factory": factory}, "factory must be like IVF256,Flat") for factory in NO_INDEX),
        (IndexConfig, {"num_probes": 0}, "num_probes"),
        (ScoringConfig, {"num_neighbors": 0}, "num_neighbors"),
        (ScoringConfig, {"sigma_px": -1.0}, "sigma_px"),
        (ScoringConfig, {"sigma_px": float("nan")}, "sigma_px"),
        (ScoringConfig, {"top_fraction": 0.0}, "top_fraction"),
        (ScoringConfig, {"own_strip_fraction": 1.0}, "own_strip_fraction"),
        (CalibrationConfig, {"held_out_fraction": 1.0}, "held_out_fraction"),
        (CalibrationConfig, {"false_alarm_rate": 0.0}, "false_alarm_rate"),
        (CalibrationConfig, {"reject_rate": 0.5}, "reject_rate"),
        (CalibrationConfig, {"group_pattern": "("}, "group_pattern"),
        (ComputeConfig, {"num_scorers": 0}, "num_scorers"),
        (ComputeConfig, {"cpus_per_scorer": 0.0}, "cpus_per_scorer"),
        (ComputeConfig, {"gpus_per_scorer": -1.0}, "gpus_per_scorer"),
        (ComputeConfig, {"batch_size": 0}, "batch_size"),
        (ComputeConfig, {"bank_shards": 0}, "bank_shards"),
        (DatasetConfig, {"kind": "folder", "root": "x", "num_fit": 0}, "num_fit"),
        (DatasetConfig, {"kind": "mvtec", "root": "x", "tiling": "256x256"}, "tiling"),
    ],
)
def test_a_setting_out_of_range_is_named(
    section: Callable[..., object], settings: dict[str, object], name: str
) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        section(**settings)
    assert "\n" not in str(caught.value)


def test_later_options_are_part_of_an_identity_only_where_they_are_on() -> None:
    plain = identity(EmbedderConfig())
    assert not {"tile_px", "tile_overlap_px"} & set(plain)
    assert identity(EmbedderConfig(tile_overlap_px=32)) == plain
    tiled = identity(EmbedderConfig(tile_px=(256, 512)))
    assert (tiled["tile_px"], tiled["tile_overlap_px"]) == ([256, 512], 64)
    assert {name: value for name, value in tiled.items() if not name.startswith("tile_")} == plain


def test_an_option_is_left_out_of_an_identity_in_its_own_section_only() -> None:
    @dataclass(frozen=True)
    class Other:
        tile_px: None = None
        normalization: str = "none"
        sections: tuple[EmbedderConfig, ...] = (EmbedderConfig(),)

    found = identity(Other())
    assert found == {"tile_px": None, "normalization": "none", "sections": [identity(EmbedderConfig())]}
