"""What saves memory or time leaves losses, weights and the names in checkpoints as they are."""

import json
import os
import signal
import sys
import time
from functools import partial
from importlib.machinery import PathFinder
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL
from processes import in_fork
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from src import evaluate, load_run, plan
from src.models.factory import forward_flops
from src.models.finetuning import freeze
from src.models.language import check_head, chunked_losses  # kind: text
from src.models.levers import compile_blocks, draw_anew, recompute_activations, swap_modules
from src.networks.gpt import GPT  # kind: text
from src.networks.mlp import MLP
from src.networks.text_rnn import TextRNN  # kind: text
from src.run import checkpoint as files
from src.run.errors import CheckpointError, ConfigError, EnvironmentFault

CPU = torch.device("cpu")


class Convolutions(nn.Module):
    """With batch norms, which count what passes."""

    def __init__(self, depth=4):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        layers = (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(depth))
        self.blocks = nn.ModuleList(nn.Sequential(*pair) for pair in zip(layers, layers, strict=True))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Keywords(nn.Module):
    """Blocks that take and give more than a tensor."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Pair(), Pair()])
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        state = None
        for block in self.blocks:
            x, state = block(x, block=state, use_reentrant=2.0)
        return self.head(x + state["sum"])


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, block, use_reentrant):  # names that others use, too
        y = torch.tanh(self.layer(x)) * use_reentrant
        return y, {"sum": y + (0 if block is None else block["sum"])}


IMAGES, TOKENS = torch.randn(6, 3, 8, 8), torch.randint(50, (6, 12))
MAKE = {
    "mlp with dropout": (lambda: MLP(widths=[16, 16], dropout=0.3, image_size=(8, 8), in_channels=3), IMAGES),
    "batch norm": (Convolutions, IMAGES),
    "frozen batch norm": (lambda: frozen(Convolutions()), IMAGES),
    "keywords and tuples": (Keywords, torch.randn(6, 8)),
    # kind: text
    "attention with dropout": (lambda: GPT(dim=16, depth=2, num_heads=2, dropout=0.2, vocab_size=50), TOKENS),
    "lstm": (lambda: TextRNN(dim=16, dropout=0.2, vocab_size=50), TOKENS),
    # end
}


def frozen(network):
    freeze(network, ["stem.*", "blocks.0.*"])
    return network


def trained(name, *pull, autocast=False, steps=3):
    """Losses and weights of a few steps."""
    make, x = MAKE[name]
    torch.manual_seed(0)
    network = make()
    for lever in pull:
        lever(network, list(network.blocks))
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = network(x).float().flatten(0, -2)
        loss = F.cross_entropy(logits, torch.arange(len(logits)) % 10)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, network.state_dict()


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16-mixed"])
@pytest.mark.parametrize("name", MAKE)
def test_recomputed_activations_change_no_bit(name, autocast):
    losses, weights = trained(name, autocast=autocast)
    again, same = trained(name, recompute_activations, autocast=autocast)
    assert again == losses
    assert list(same) == list(weights)
    assert all(torch.equal(same[key], weights[key]) for key in weights)


def test_without_care_batch_norm_would_count_twice():
    """The test above could not fail otherwise."""

    def careless(network, blocks):
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    _, weights = trained("batch norm")
    _, other = trained("batch norm", careless)
    assert other["blocks.0.0.1.num_batches_tracked"] == 2 * weights["blocks.0.0.1.num_batches_tracked"]


def saved_bytes(network, x) -> int:
    """Of all tensors that are kept for the backward pass."""
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    ours = {p.untyped_storage().data_ptr() for p in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        network(x)
    return sum(size for place, size in kept.items() if place not in ours)


def test_less_is_kept():
    torch.manual_seed(0)
    network, x = Convolutions(12), torch.randn(16, 3, 16, 16)
    before = saved_bytes(network, x)
    recompute_activations(network, list(network.blocks))
    assert saved_bytes(network, x) < 0.3 * before


def test_hooks_of_a_block_run_once_and_a_copy_is_a_network_of_its_own():
    import copy

    make, x = MAKE["batch norm"]
    network = make()
    recompute_activations(network, list(network.blocks))
    calls = []
    network.blocks[0].register_forward_hook(lambda *_: calls.append(0))
    network(x).sum().backward()
    assert len(calls) == 1
    other = copy.deepcopy(network)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert not torch.equal(other.eval()(x), network.eval()(x))
    assert other(x).abs().max() == 0


@pytest.mark.in_fork  # torch's compiler stays out of the process that runs are forked from
def test_flops_are_counted_as_before():
    network, x = Convolutions(), IMAGES
    before = forward_flops(network, x)[0]
    recompute_activations(network, list(network.blocks))
    compile_blocks(network, list(network.blocks), CPU)
    assert forward_flops(network, x)[0] == before > 0


# kind: text
class Untied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 50)

    def features(self, x):
        return torch.tanh(self.embedding(x))

    def forward(self, x):
        return self.head(self.features(x))


@pytest.mark.parametrize("chunks", [2, 5, 72])
@pytest.mark.parametrize("make", [Untied, lambda: GPT(dim=16, depth=1, num_heads=2, vocab_size=50)], ids=["", "tied"])
def test_losses_in_chunks_are_those_of_all_logits(make, chunks):
    torch.manual_seed(0)
    network, targets = make(), torch.randint(50, (TOKENS.numel(),))
    targets[3:20] = -100
    wanted = F.cross_entropy(network(TOKENS).flatten(0, 1), targets, reduction="none")
    wanted.sum().backward()
    grads = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    found = chunked_losses(network, TOKENS, targets, chunks)
    found.sum().backward()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close([p.grad for p in network.parameters()], grads, rtol=1e-5, atol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(chunked_losses(network, TOKENS, targets, chunks), wanted, rtol=1e-6, atol=1e-6)


def test_more_chunks_than_divide():
    network, targets = Untied(), torch.randint(50, (7,))
    for chunks in (3, 5, 6, 100):
        assert chunked_losses(network, TOKENS[:1, :7], targets, chunks).shape == (7,)


def test_logits_of_a_chunk_are_all_that_is_kept_of_logits():
    network, targets = Untied(), torch.randint(50, (TOKENS.numel(),))
    largest = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: largest.append(t.numel()) or t, lambda t: t):
        chunked_losses(network, TOKENS, targets, 8)
    assert max(largest) < TOKENS.numel() * 50 / 4


GPT_RUN = ["--config", "configs/experiment/text_gpt.yaml", "--data.seq_len", 16, "--data.tokenizer", "characters"]
GPT_RUN += ["--model.network.dim", 32, "--model.network.depth", 2, "--model.network.num_heads", 2]
GPT_RUN += ["--trainer.max_steps", 8, "--trainer.val_check_interval", 4, "--pictures.enabled", "false"]
GPT_RUN += ["--trainer.log_every_n_steps", 1, "--trainer.accelerator", "cpu"]


@pytest.fixture
def gpt(tmp_path):
    (tmp_path / "a.txt").write_text("In the beginning was the tensor, and the tensor was with the graph.\n" * 99)
    return [*GPT_RUN, "--data.files", f"[{tmp_path / 'a.txt'}]"]


@pytest.mark.parametrize("devices", [1, 2])
def test_a_language_model_trains_in_chunks(run, gpt, tmp_path, devices):
    how = ["--trainer.devices", devices] + (["--trainer.strategy", "ddp"] if devices > 1 else [])
    run([*gpt, *how, "--run_dir", tmp_path / "whole"], twins=devices - 1)
    more = ["--model.loss_chunks", 5, "--model.activation_checkpointing", "true"]
    run([*gpt, *how, *more, "--run_dir", tmp_path / "chunks"], twins=devices - 1)
    one, other = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "chunks"))
    assert other["test/loss"] == pytest.approx(one["test/loss"], rel=1e-5)
    evaluated = run(["--run_dir", tmp_path / "chunks"], command=evaluate.main, twins=devices - 1)
    assert f"test/loss {other['test/loss']:.4f}" in evaluated
    assert "levers" not in str(load_run(tmp_path / "chunks").network.blocks[0].forward)


def test_a_wrong_number_of_chunks_is_refused(run, gpt, tmp_path):
    output = run([*gpt, "--model.loss_chunks", 0, "--run_dir", tmp_path / "run"], code=2)
    assert output.splitlines()[-1].startswith("error: model.loss_chunks: 0 is less than 1")


def test_a_network_that_does_not_say_its_last_layer_is_refused():
    with pytest.raises(
        ConfigError, match=r"model.loss_chunks: Keywords does not say what its last layer is -> give it a"
    ):
        check_head(Keywords())


# end


def test_without_blocks_nothing_can_be_recomputed(run, tmp_path):
    args = [*SMALL, "--model.network.widths", "[]", "--run_dir", tmp_path / "run"]
    line = run([*args, "--model.activation_checkpointing", "true"], code=2).splitlines()[-1]
    assert line == "error: model.activation_checkpointing: MLP has no blocks -> name them in model.blocks"
    assert not (tmp_path / "run").exists()


def ending(folder):
    saved = files.read(folder / "checkpoints/last.ckpt")
    return json.loads((folder / "summary.json").read_text()), saved["state_dict"]


def assert_same(one, other):
    (a, weights), (b, others) = ending(one), ending(other)
    assert {k: v for k, v in a.items() if k.startswith("test/")} == {k: v for k, v in b.items() if "test/" in k}
    assert list(weights) == list(others)
    assert all(torch.equal(weights[key], others[key]) for key in weights)


def cut(start, folder, args):
    """A run that is killed in its second epoch."""
    child = start([*args, "--checkpoints.every_n_steps", 7, "--run_dir", folder])
    end = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step-*28.json")):
        assert child.group_is_there(), child.output
        assert time.monotonic() < end, child.output
        time.sleep(0.005)
    child.kill(signal.SIGKILL)
    child.wait()
    return [*args, "--checkpoints.every_n_steps", 7, "--run_dir", folder]


def test_a_run_may_go_on_with_recomputed_activations_to_the_same_bits(start, run, trained_once, tmp_path):
    whole = trained_once(SMALL)
    again = cut(start, tmp_path / "cut", SMALL)
    output = run([*again, "--model.activation_checkpointing", "true"])
    assert "going on after" in output
    assert_same(whole, tmp_path / "cut")


@pytest.mark.parametrize(("key", "value"), [("model.compile", "true"), ("model.optimizer", "torchao.optim.AdamW8bit")])
def test_without_a_compiler_the_run_says_so(run, tmp_path, key, value):
    args = [*SMALL, f"--{key}", value, "--run_dir", tmp_path / "run"]
    output = run(args, code=75, first=lambda: os.environ.update(PATH="/nowhere"))
    line = f"error: {key}: it compiles, but no compiler is found -> install a C++ compiler, such as g++"
    assert output.splitlines()[-1].startswith(line)
    assert "Traceback" not in output


def test_what_is_not_finite_is_named_within_a_block(run, tmp_path):
    args = [*SMALL, "--model.optimizer.lr", 1e30]
    wanted = run([*args, "--run_dir", tmp_path / "one"], code=5).splitlines()[-1]
    found = run([*args, "--model.activation_checkpointing", "true", "--run_dir", tmp_path / "two"], code=5)
    assert found.splitlines()[-1] == wanted
    assert "first in the output of network.blocks." in wanted


# Batches of 64 and, in measuring, smaller ones; a block of each width.
COMPILED = [*SMALL, "--model.network.dropout", 0, "--model.compile", "true", "--model.activation_checkpointing", "true"]


def test_a_compiled_run_gives_what_an_eager_one_gives(run, trained_once, tmp_path):
    output = run([*COMPILED, "--run_dir", tmp_path / "run"])
    assert "recompile_limit" not in output
    (one, weights), (other, others) = ending(trained_once(COMPILED[:4])), ending(tmp_path / "run")
    assert one["test/loss"] == pytest.approx(other["test/loss"], rel=1e-4)
    assert list(weights) == list(others)
    for key, t in weights.items():
        torch.testing.assert_close(others[key], t, rtol=1e-3, atol=1e-4)
    assert load_run(tmp_path / "run").network.blocks[0].forward.__func__ is type(MLP().blocks[0]).forward


@pytest.mark.long
def test_a_compiled_run_goes_on_is_evaluated_and_names_what_is_not_finite(start, run, tmp_path):
    run([*COMPILED, "--checkpoints.every_n_steps", 7, "--run_dir", tmp_path / "whole"])
    run(cut(start, tmp_path / "cut", COMPILED))
    assert_same(tmp_path / "whole", tmp_path / "cut")
    score = ending(tmp_path / "cut")[0]["test/loss"]
    assert f"test/loss {score:.4f}" in run(["--run_dir", tmp_path / "cut"], command=evaluate.main)
    output = run([*COMPILED, "--model.optimizer.lr", 1e30, "--run_dir", tmp_path / "bad"], code=5)
    assert "first in the output of network.blocks." in output.splitlines()[-1]


@pytest.mark.long
@pytest.mark.in_fork
def test_blocks_of_many_shapes_are_all_compiled():
    """torch gives up after 8 variants of a function, and these blocks share one."""
    blocks = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(range(4, 11))]
    network, before = nn.Sequential(*blocks), torch.compiler.config.recompile_limit
    compile_blocks(network, blocks, CPU)
    assert torch.compiler.config.recompile_limit > before
    with torch.compiler.config.patch(fail_on_recompile_limit_hit=True):
        for size in (4, 3, 2, 5):
            network.train()(torch.randn(size, 4)).sum().backward()
            with torch.inference_mode():
                network.eval()(torch.randn(size, 4))


def state_of_8_bits(folder):
    """A checkpoint as a run with torchao's optimizer writes it."""
    from torchao.optim.subclass_8bit import OptimState8bit

    torch.save({"state": OptimState8bit.zeros((64, 64))}, folder / "a.ckpt")


def test_a_checkpoint_of_torchao_is_read_where_nothing_has_loaded_it(tmp_path):
    in_fork(lambda: state_of_8_bits(tmp_path))

    def read():
        assert "torchao" not in sys.modules
        assert files.read(tmp_path / "a.ckpt")["state"].shape == (64, 64)

    in_fork(read)


class WithoutTorchao(PathFinder):
    @classmethod
    def find_spec(cls, name, *args):
        return None if name.partition(".")[0] == "torchao" else super().find_spec(name, *args)


def no_torchao():
    """It is not installed, as far as Python can see."""
    sys.meta_path[:] = [WithoutTorchao if finder is PathFinder else finder for finder in sys.meta_path]


@pytest.mark.in_fork
def test_without_torchao_its_checkpoint_is_refused(tmp_path):
    in_fork(lambda: state_of_8_bits(tmp_path))
    no_torchao()
    with pytest.raises(EnvironmentFault, match="its optimizer is of torchao -> pip install torchao"):
        files.read(tmp_path / "a.ckpt")


def test_other_classes_in_a_checkpoint_are_refused_as_before(tmp_path):
    torch.save({"state": SimpleNamespace()}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="not a file that can be read safely"):
        files.read(tmp_path / "a.ckpt")


def test_without_torchao_its_optimizer_is_refused(run, tmp_path):
    args = [*SMALL, "--model.optimizer", "torchao.optim.AdamW8bit", "--run_dir", tmp_path / "run"]
    line = run(args, code=2, first=no_torchao).splitlines()[-1]
    assert line.startswith("error: --model.optimizer: ")
    assert line.endswith(" -> pip install torchao")


@pytest.mark.long
def test_8_bit_states_with_recomputed_activations_go_on_bit_for_bit(start, run, tmp_path):
    """A matrix of 4,096 weights and more is kept in 8 bits; what is smaller is not."""
    args = [*SMALL, "--model.optimizer", "torchao.optim.AdamW8bit", "--model.network.widths", "[64,64]"]
    args += ["--model.activation_checkpointing", "true", "--trainer.gradient_clip_val", 0.5]
    run([*args, "--checkpoints.every_n_steps", 7, "--run_dir", tmp_path / "whole"])
    run(cut(start, tmp_path / "cut", args))
    assert_same(tmp_path / "whole", tmp_path / "cut")
    groups = files.read(tmp_path / "cut/checkpoints/last.ckpt")["optimizer_states"][0]
    assert {type(state["exp_avg"]).__name__ for state in groups["state"].values()} == {"OptimState8bit", "Tensor"}
    assert [group.get("weight_decay") for group in groups["param_groups"]].count(0.0) == 1
    assert load_run(tmp_path / "cut").network is not None
    output = run([*args, "--model.optimizer.lr", 1e30, "--run_dir", tmp_path / "bad"], code=5)
    assert "loss or gradient is not finite" in output.splitlines()[-1]


def test_modules_are_swapped_by_their_names_each_for_a_new_one():
    network, shared = Convolutions(), nn.ReLU()
    network.blocks[0][0][2] = network.blocks[1][0][2] = shared
    swap_modules(network, {"blocks.*.0.2": nn.GELU, "stem": partial(nn.Conv2d, 3, 8, 3, padding=1)})
    kinds = {type(network.blocks[i][0][2]) for i in range(2)}, {type(block[1][2]) for block in network.blocks}
    assert kinds == ({nn.GELU}, {nn.ReLU})
    assert network.blocks[0][0][2] is not network.blocks[1][0][2]
    assert network(IMAGES).shape == (6, 10)
    assert network.stem.kernel_size == (3, 3)


def test_weights_drawn_anew_are_those_of_a_new_module():
    network = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.MultiheadAttention(64, 4))
    wanted = [p.std().item() for p in network.parameters()]
    for p in network.parameters():
        nn.init.constant_(p, 7.0)
    draw_anew(network)
    assert [p.std().item() for p in network.parameters()] == pytest.approx(wanted, rel=0.2, abs=1e-6)
    assert network[2].out_proj.bias.abs().max() == 0  # as attention itself sets it, after its parts
    with pytest.raises(ConfigError, match=r"model.reset: no module of ReLU has reset_parameters -> leave it out"):
        draw_anew(nn.ReLU())


SWAPPED = ["--model.swap", "{blocks.*.1: {class_path: torch.nn.GELU}}", "--model.reset", "true"]


def test_a_run_with_swapped_modules_is_loaded_evaluated_and_planned(run, trained_once, tmp_path):
    folder = trained_once([*SMALL, *SWAPPED])
    network, score = load_run(folder).network, ending(folder)[0]["test/loss"]
    assert {type(block[1]) for block in network.blocks} == {nn.GELU}
    assert f"test/loss {score:.4f}" in run(["--run_dir", folder], command=evaluate.main)
    assert score != ending(trained_once(SMALL))[0]["test/loss"]
    assert "memory" in run([*SMALL, *SWAPPED], command=plan.main).lower()


def test_a_divided_network_is_swapped_too(run, trained_once, tmp_path):
    fsdp = ["--config", "configs/trainer/fsdp.yaml", "--trainer.accelerator", "cpu", "--trainer.devices", 2]
    flags = [*SMALL, *SWAPPED, "--model.network.dropout", 0]
    run([*flags, *fsdp, "--run_dir", tmp_path / "two"], twins=1)
    one, two = (ending(folder)[0]["test/loss"] for folder in (trained_once(flags), tmp_path / "two"))
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("{heed: {class_path: torch.nn.Identity}}", "error: model.swap: no module heed in MLP; did you mean head?"),
        ("{head: {class_path: torch.nn.Linear}}", "error: model.swap.head: "),
        ("{head: {class_path: torch.optim.SGD}}", "torch.optim.SGD is not derived from torch.nn.modules.module.Module"),
        ("{head: {class_path: torch.nn.Flatten}}", "MLP gives [2, 16] for x [2, 64], where logits [2, 10] are wanted"),
    ],
)
def test_a_wrong_swap_is_refused_in_a_line(run, tmp_path, flags, line):
    output = run([*SMALL, "--model.swap", flags, "--run_dir", tmp_path / "run"], code=2)
    assert line in output.splitlines()[-1]
    assert "Traceback" not in output


def test_probabilities_are_trained_measured_and_predicted_as_logits_would_be(run, trained_once, tmp_path):
    """With a softmax at the end and its logarithm taken, all is as without both."""

    def softmax():
        plain = MLP.forward
        MLP.forward = lambda self, x: plain(self, x).softmax(1)

    run([*SMALL, "--run_dir", tmp_path / "wrong"], first=softmax)
    run([*SMALL, "--model.outputs", "probabilities", "--run_dir", tmp_path / "run"], first=softmax)
    wanted, found, wrong = (
        ending(f)[0]["test/loss"] for f in (trained_once(SMALL), tmp_path / "run", tmp_path / "wrong")
    )
    assert found == pytest.approx(wanted, rel=1e-3)
    assert wrong > 1.5 * wanted

    def predicted():
        softmax()
        model = load_run(tmp_path / "run")
        x = torch.randn(5, 64)
        probabilities = model.classify(x).softmax(1)
        torch.testing.assert_close(probabilities, model.network(x))
        assert model(1e4 * x).isfinite().all()

    in_fork(predicted)
