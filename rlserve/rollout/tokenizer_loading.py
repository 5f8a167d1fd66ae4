"""Loading a tokenizer without importing torch, so that the driver process stays small and starts quickly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlserve.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder or hub name.

    ``transformers.AutoTokenizer`` imports torch to map a model's type to a class. A folder with a ``tokenizer.json``
    needs no such map; only one without it (an old SentencePiece model) or a hub name takes that way.

    Raises:
        ModelError: there is no tokenizer at ``path``.
    """
    folder = Path(path)
    if (folder / "tokenizer.json").is_file():
        from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast as Loader
    else:
        from transformers import AutoTokenizer as Loader
    try:
        return Loader.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        what = " ".join(str(error).split())
        raise ModelError(
            f"{path}: no tokenizer can be loaded from it ({what}); set model.tokenizer_path to one that fits the model"
        ) from error
