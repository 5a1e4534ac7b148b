"""Loss curves as a picture."""

import io

from PIL import Image

from steelray.reconstruction.curves import loss_curves_png


def opened(body: bytes) -> Image.Image:
    assert len(body) < 300_000
    return Image.open(io.BytesIO(body)).convert("RGB")


def test_a_curve_per_term_in_epochs() -> None:
    rows = [
        {"step": s, "epoch": s / 10, "total": 1 / s, "l2": 0.1 / s, "ssim": 0.8 / s, "focal": 0.1} for s in range(1, 60)
    ]
    whole, alone = opened(loss_curves_png(rows, "draem")), opened(loss_curves_png(rows[:1], "one row"))
    assert whole.size == alone.size
    colours = {colour for _, colour in whole.getcolors(1 << 20) or []}
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)} <= colours  # total, l2, ssim, focal


def test_the_autoencoder_has_one_curve() -> None:
    rows = [{"step": s, "epoch": float(s), "total": 1 / s, "l2": 1 / s} for s in range(1, 20)]
    colours = {colour for _, colour in opened(loss_curves_png(rows, "conv_ae")).getcolors(1 << 20) or []}
    assert (31, 119, 180) in colours
    assert (255, 127, 14) not in colours
