"""Continue a text with a trained language model.

    python -m src.generate --run_dir logs/text_gpt/first --prompt "The " --max_tokens 300
    python -m src.generate --run_dir logs/text_gpt/first --temperature 0.8 --top_k 50 --seed 1

At temperature 0 the likeliest token is taken each time. The text that the model was trained on is not needed.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from src.config.request import command_parser
from src.config.trained import load_model, run_request
from src.data.text.tokens import decode, encode
from src.run.command import command
from src.run.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@command
def main(args: Sequence[str]) -> int:
    parser = command_parser("generate", __doc__)
    parser.add_argument("--checkpoint", choices=["best", "last"], default="best", help="the checkpoint to take")
    parser.add_argument("--prompt", help="the text to continue; by default it begins a line, or anywhere")
    parser.add_argument("--max_tokens", type=int, default=200, help="tokens to add")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the softmax; smaller is more of the same")
    parser.add_argument("--top_k", type=int, default=50, help="choose among so many tokens only")
    parser.add_argument("--seed", type=int, default=0, help="of the choices")
    request = run_request(parser, args)
    options = request.options
    for name, least in (("max_tokens", 1), ("temperature", 0), ("top_k", 1)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name}: {getattr(options, name)} is less than {least}")
    experiment, model = load_model(request)
    tokenizer = experiment.datamodule.statistics.get("tokenizer")
    if tokenizer is None:
        raise ConfigError(f"{options.run_dir}: its model was not trained on text -> name a run of a language model")
    import torch

    known = not tokenizer.startswith("characters:") or "\n" in tokenizer  # not in a text of one line
    prompt = options.prompt or ("\n" if known else decode(tokenizer, [0]))
    tokens = torch.from_numpy(encode(tokenizer, prompt))[None]  # [1, T]
    torch.manual_seed(options.seed)
    with torch.inference_mode():
        for _step in range(options.max_tokens):
            logits = model(tokens[:, -experiment.datamodule.facts["seq_len"] :])[:, -1].float()  # [1, vocab_size]
            tokens = torch.cat([tokens, choose(logits, options.temperature, options.top_k)], 1)
    print(decode(tokenizer, tokens[0].tolist()))
    return 0


def choose(logits: "Tensor", temperature: float, top_k: int) -> "Tensor":
    """logits [N, vocab_size] -> tokens [N, 1]"""
    best, ids = logits.topk(min(top_k, logits.shape[1]))
    if temperature == 0:
        return ids[:, :1]
    return ids.gather(1, (best / temperature).softmax(1).multinomial(1))


if __name__ == "__main__":
    sys.exit(main())
