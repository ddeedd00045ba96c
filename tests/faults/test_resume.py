"""A run that is killed, however often, ends as one that was not."""

import pytest
from harness import EVERY_STEP, SELDOM, STEPS, TINY, assert_same_end, assert_sound, before_call, noting_samples, samples
from harness import together
from src.models.classification import Classification

EARLY = ["--trainer.callbacks+", "lightning.pytorch.callbacks.EarlyStopping"]
KINDS = {
    "plain": [],
    "accumulation and validation in mid-epoch": ["--data.micro_batch_size", 16, "--trainer.limit_train_batches", 8]
    + ["--trainer.val_check_interval", 4],
}


@pytest.mark.parametrize("saving", [EVERY_STEP, SELDOM], ids=["every step", "seldom"])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_each_step_in_turn(start, run, tmp_path, kind, saving):
    args = [*TINY, *KINDS[kind], *saving]
    run([*args, "--run_dir", tmp_path / "whole"], first=noting_samples(tmp_path / "whole.txt"))
    # Each life is killed in the last step, or micro-batch, that the life before it had not begun.
    per_life, noting = 1 if saving is EVERY_STEP else 0, noting_samples(tmp_path / "killed.txt")
    args += ["--run_dir", tmp_path / "killed"]
    for step in range(STEPS):
        first = together(noting, at_step(step))
        assert start(args, first=first).wait() == -9
        assert_sound(tmp_path / "killed")
    run(args, first=noting)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
    assert samples(tmp_path / "killed.txt") == samples(tmp_path / "whole.txt")


def at_step(step):
    """A hook: die in the last micro-batch of an optimizer step."""

    def first():
        training_step = Classification.training_step

        def dying(self, batch, batch_idx):
            loss = training_step(self, batch, batch_idx)
            if self.trainer.global_step == step and not (batch_idx + 1) % self.trainer.accumulate_grad_batches:
                from harness import die

                die()
            return loss

        Classification.training_step = dying

    return first
