import numpy as np

from src.data.images import pictures
from src.run import figures


def test_images_are_stretched_over_all():
    x = np.stack([np.full((1, 2, 2), 3.0), np.full((1, 2, 2), 5.0)])
    figure = pictures.images(x, ["a", "b"])
    assert [float(axes.images[0].get_array().max()) for axes in figure.axes[:2]] == [0, 1]


def test_one_image_with_any_title(tmp_path):
    figures.save(pictures.images(np.zeros((1, 1, 4, 4)), ["$_$"]), tmp_path / "one.png")


def test_letters_that_the_font_lacks_are_no_warnings(tmp_path, recwarn):
    figures.save(pictures.images(np.zeros((1, 1, 4, 4)), ["猫"]), tmp_path / "a.png")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
