import numpy as np
import pytest
import torch

from src.data.images import pictures
from src.run import figures


def drawn(figure):
    (axes,) = figure.axes
    return np.asarray(axes.images[0].get_array()), [text.get_text() for text in axes.texts]


def test_images_are_stretched_over_all():
    x = torch.stack([torch.full((1, 2, 2), 3.0), torch.full((1, 2, 2), 5.0)])
    canvas, titles = drawn(pictures.images(x, ["a", "b"]))
    assert titles == ["a", "b"]
    assert canvas.shape == (4, 7, 3)  # a pixel around each
    assert canvas[1:3, 1:3].max() == 0
    assert canvas[1:3, 4:6].min() == 1


@pytest.mark.parametrize(("count", "channels"), [(3, 1), (8, 3), (19, 3), (9, 5)])
def test_each_image_is_shown_whole_under_its_title(count, channels):
    x = torch.rand(count, channels, 12, 24, generator=torch.Generator().manual_seed(0))
    figure = pictures.images(x, [str(i) for i in range(count)])
    canvas, titles = drawn(figure)
    assert titles == [str(i) for i in range(count)]
    shown = x if channels != 5 else x.mean(1, keepdim=True)
    low, high = (f(shown, (0, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    for i, image in enumerate(((shown - low) / (high - low)).permute(0, 2, 3, 1)):
        y, left = 3 + i // 8 * 15, 3 + i % 8 * 27
        assert np.allclose(canvas[y : y + 12, left : left + 24], image)
        x_title, y_title = figure.axes[0].texts[i].get_position()
        assert left < x_title < left + 24
        assert y - 3 < y_title < y


def test_one_image_with_any_title(tmp_path):
    figures.save(pictures.images(torch.zeros(1, 1, 4, 4), ["$_$"]), tmp_path / "one.png")


def test_letters_that_the_font_lacks_are_no_warnings(tmp_path, recwarn):
    figures.save(pictures.images(torch.zeros(1, 1, 4, 4), ["猫"]), tmp_path / "a.png")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
