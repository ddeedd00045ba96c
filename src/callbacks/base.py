from typing import Any

from lightning.pytorch import Callback


class QuietCallback(Callback):
    """Base of our callbacks: has no hooks of a step but those that a callback makes.

    Lightning calls all hooks of all callbacks at each step, most of which do nothing; one that is None it leaves out.
    """

    on_train_batch_start: Any = None
    on_before_zero_grad: Any = None
    on_before_backward: Any = None
    on_after_backward: Any = None
    on_before_optimizer_step: Any = None
    on_train_batch_end: Any = None
