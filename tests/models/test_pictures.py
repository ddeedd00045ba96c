import numpy as np

from src.models.classification import draw_confusion
from src.run import figures


def test_confusion_shows_every_count():
    counts = np.array([[5, 1], [0, 7]])
    (axes,) = draw_confusion(counts, ["cat", "dog"]).axes
    assert sorted(text.get_text() for text in axes.texts) == ["1", "5", "7"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert np.allclose(axes.images[0].get_array(), [[5 / 6, 1 / 6], [0, 1]])


def test_many_classes_are_drawn_without_numbers(tmp_path):
    figure = draw_confusion(np.eye(200, dtype=int), [str(i) for i in range(200)])
    figures.save(figure, tmp_path / "c.png")
    assert not list(figure.axes[0].texts)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_confusion_with_any_names(tmp_path):
    figures.save(draw_confusion(np.eye(2, dtype=int), ["$_$", "$^$"]), tmp_path / "two.png")
