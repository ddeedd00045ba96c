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
from src.run.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor, nn


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
    cli, model = load_model(request)
    tokenizer = cli.datamodule.statistics.get("tokenizer")
    if tokenizer is None:
        raise ConfigError(f"{options.run_dir}: its model was not trained on text -> name a run of a language model")
    import torch

    prompt = torch.from_numpy(encode(tokenizer, options.prompt or beginning(tokenizer)))[None]
    torch.manual_seed(options.seed)
    seq_len = cli.datamodule.facts["seq_len"]
    tokens = extend(model, prompt, seq_len, options.max_tokens, options.temperature, options.top_k)
    print(decode(tokenizer, tokens[0].tolist()))
    return 0


def beginning(tokenizer: str) -> str:
    try:
        encode(tokenizer, "\n")
    except DataError:  # a text of one line
        return decode(tokenizer, [0])
    return "\n"


def extend(
    model: "nn.Module", tokens: "Tensor", seq_len: int, max_tokens: int, temperature: float, top_k: int
) -> "Tensor":
    """tokens [N, T] -> [N, T + max_tokens]; the model sees the last `seq_len` of them."""
    import torch

    with torch.inference_mode():
        for _step in range(max_tokens):
            logits = model(tokens[:, -seq_len:])[:, -1].float()  # [N, vocab_size]
            best, ids = logits.topk(min(top_k, logits.shape[1]))
            chosen = torch.multinomial((best / temperature).softmax(1), 1) if temperature else best.argmax(1)[:, None]
            tokens = torch.cat([tokens, ids.gather(1, chosen)], 1)
    return tokens


if __name__ == "__main__":
    sys.exit(main())
