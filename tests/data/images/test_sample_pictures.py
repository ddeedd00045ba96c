import numpy as np
import pytest

from src.data.images import pictures
from src.run import figures


def drawn(figure):
    (axes,) = figure.axes
    canvas = np.asarray(axes.images[0].get_array())
    return canvas if canvas.ndim == 3 else canvas[:, :, None], [text.get_text() for text in axes.texts]


def test_images_are_stretched_over_all():
    x = np.stack([np.full((1, 2, 2), 3.0), np.full((1, 2, 2), 5.0)])
    canvas, titles = drawn(pictures.images(x, ["a", "b"]))
    assert titles == ["a", "b"]
    assert canvas.shape == (3, 6, 1)  # a line above for the titles, a column right of each
    assert canvas[1:, :2].max() == 0
    assert canvas[1:, 3:5].min() == 1


@pytest.mark.parametrize(("count", "channels"), [(3, 1), (8, 3), (19, 3), (9, 5)])
def test_each_image_is_shown_whole_under_its_title(count, channels):
    x = np.random.default_rng(0).random((count, channels, 12, 24))
    canvas, titles = drawn(pictures.images(x, [str(i) for i in range(count)]))
    assert titles == [str(i) for i in range(count)]
    shown = x if channels != 5 else x.mean(1, keepdims=True)
    low, high = (f(shown, axis=(0, 2, 3), keepdims=True) for f in (np.min, np.max))
    for i, image in enumerate(((shown - low) / (high - low)).transpose(0, 2, 3, 1)):
        y, left = i // 8 * 15 + 3, i % 8 * 26
        assert np.allclose(canvas[y : y + 12, left : left + 24], image)


def test_one_image_with_any_title(tmp_path):
    figures.save(pictures.images(np.zeros((1, 1, 4, 4)), ["$_$"]), tmp_path / "one.png")


def test_letters_that_the_font_lacks_are_no_warnings(tmp_path, recwarn):
    figures.save(pictures.images(np.zeros((1, 1, 4, 4)), ["猫"]), tmp_path / "a.png")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
