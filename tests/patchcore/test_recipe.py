"""Recipes: files that the jobs and Python read alike, and settings given beside them."""

from pathlib import Path

import pytest

from steelray.config import ConfigError, DatasetConfig
from steelray.evaluation.config import EvaluateConfig
from steelray.job import parse
from steelray.patchcore.config import DEFAULT_RECIPE, RECIPE_FOLDER, BuildMemoryBankConfig, EmbedderConfig
from steelray.patchcore.recipe import CANDIDATES, with_recipe
from steelray.research.ablation.settings import AblationConfig

NAMES = sorted(file.stem for file in RECIPE_FOLDER.glob("*.yaml"))


def build(*words: str) -> BuildMemoryBankConfig:
    return parse(BuildMemoryBankConfig, "", ["--nominal.uri", "n", "--bank_uri", "b", *words])


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_and_python_read_the_same_recipe(name: str) -> None:
    by_hand = build("--recipe", "custom")
    assert build("--recipe", name) == with_recipe(by_hand, name)
    evaluated = parse(EvaluateConfig, "", ["--data.kind", "mvtec", "--data.root", "r", "--recipe", name])
    assert evaluated == with_recipe(EvaluateConfig(DatasetConfig("mvtec", "r")), name)
    assert (evaluated.embedder, evaluated.scoring) == (
        build("--recipe", name).embedder,
        build("--recipe", name).scoring,
    )


def test_a_job_begins_with_the_default_recipe_and_settings_beside_a_recipe_count(tmp_path: Path) -> None:
    assert {DEFAULT_RECIPE, *CANDIDATES} <= set(NAMES)
    assert build() == build("--recipe", DEFAULT_RECIPE)
    mine = build("--scoring.image_score", "max", "--recipe", "surface")
    assert (mine.recipe, mine.scoring.image_score, mine.embedder.levels) == ("surface", "max", (3, 4))
    (tmp_path / "mine.yaml").write_text("embedder: {levels: [2]}\n")
    own = build("--recipe", str(tmp_path / "mine.yaml"))
    assert (own.embedder.levels, own.embedder.scale) == ((2,), 1.0)


def test_settings_by_hand_without_a_recipe_are_custom() -> None:
    custom = build("--embedder.levels", "2,3")
    assert (custom.recipe, custom.embedder) == ("custom", EmbedderConfig())
    assert build("--embedder.backbone", "resnet18").recipe == DEFAULT_RECIPE


def test_a_member_of_an_ablation_takes_a_recipe(tmp_path: Path) -> None:
    settings = tmp_path / "ablation.yaml"
    settings.write_text(
        "data: {kind: severstal, root: r, num_fit: 20}\noutput_dir: o\n"
        "settings: [{name: mine, members: [{recipe: object, scoring: {top_fraction: 0.2}}, {}]}]\n"
    )
    [setting] = parse(AblationConfig, "", ["--config", str(settings)]).settings
    recipe, custom = setting.members
    assert (recipe.recipe, recipe.embedder) == ("object", build("--recipe", "object").embedder)
    assert recipe.scoring.top_fraction == 0.2
    assert (custom.recipe, custom.embedder) == ("custom", EmbedderConfig())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "surfaec"], "recipe: no 'surfaec': take auto, custom, many_finishes, object, strip, surface"),
        (["--recipe", "gone.yaml"], "recipe: gone.yaml: no such file"),
        (["--recipe", "auto", "--embedder.levels", "4"], "recipe auto chooses embedder.levels: leave that out"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(*words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size_px", "scale"), [((900, 900), 0.5), ((256, 1600), 0.5), ((200, 1600), 0.64), ((64, 64), 1.0)]
)
def test_an_open_scale_halves_images_but_leaves_small_ones_as_they_are(size_px: tuple[int, int], scale: float) -> None:
    config = EmbedderConfig(scale=None)
    assert config.for_images(size_px).scale == scale
    assert EmbedderConfig(scale=None, resize_px=(256, 256)).for_images(size_px).scale == 1.0
    assert EmbedderConfig(scale=0.25).for_images(size_px).scale == 0.25
    with pytest.raises(ConfigError, match="exclude each other"):
        EmbedderConfig(scale=0.5, resize_px=(256, 256))
