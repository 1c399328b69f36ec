"""Truncation: the smallest length that positions, tokenizer and sentence-transformers allow."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coda_compile.errors import CompileError
from coda_compile.sources.plain import only
from coda_models.errors import UnsupportedModelError
from coda_ops.errors import shown
from coda_ops.foreign_json import read_json
from coda_targets.signature import Signature

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from coda_models.model import CodaModel

_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
_HARMLESS = {  # arguments that change no embedding beyond rounding
    *("attn_implementation", "add_pooling_layer", "torch_dtype", "dtype", "device_map", "cache_dir"),
    *("trust_remote_code", "local_files_only", "low_cpu_mem_usage", "use_safetensors"),
}


def _expected(task: str, gives: str, output: str) -> dict[str, Any]:
    text = {"method": "forward", "method_output_name": gives}
    return {"transformer_task": task, "module_output_name": output, "modality_config": {"text": text}}


_EXPECTED = {
    "feature-extraction": _expected("feature-extraction", "last_hidden_state", "token_embeddings"),
    "sequence-classification": _expected("sequence-classification", "logits", "scores"),
}


@dataclass(frozen=True)
class Truncation:
    """What ``sentence_bert_config.json`` says.

    Attributes:
        max_tokens: what texts are cut to; ``None`` where it says nothing.
        stands: whether that holds whatever the tokenizer says, as sentence-transformers has it in its own folders.
        lower_case: whether texts are lowered before the tokenizer sees them.
    """

    max_tokens: int | None = None
    stands: bool = False
    lower_case: bool = False

    def apply(self, model: "CodaModel", tokenizer: "PreTrainedTokenizerBase | None") -> None:
        """Have a model and its tokenizer cut texts so, in place."""
        model.signature = self.shortened(model.signature, tokenizer)

    def shortened(self, signature: Signature, tokenizer: "PreTrainedTokenizerBase | None") -> Signature:
        """What a model takes of texts that are cut so, by its tokenizer, which is changed in place."""
        if tokenizer is not None and self.lower_case:
            _lower(tokenizer)
        if self.max_tokens is None:
            return signature
        if tokenizer is not None:
            own = self.max_tokens if self.stands else tokenizer.model_max_length
            tokenizer.model_max_length = min(self.max_tokens, own)
        return signature.shortened(self.max_tokens)


def longest(signature: Signature, tokenizer: "PreTrainedTokenizerBase | None") -> Signature:
    """What a model takes, as long as its tokenizer gives it.

    Raises:
        CompileError: the tokenizer's own limit is no number.
    """
    if tokenizer is None:
        return signature
    allowed = tokenizer.model_max_length
    if isinstance(allowed, bool) or not isinstance(allowed, int | float) or not allowed >= 1:
        raise CompileError(
            f"the tokenizer's model_max_length is {shown(allowed)}, which is no number of tokens: set it"
        )
    return signature.shortened(int(min(signature.max_length, allowed)))


def read_truncation(folder: Path, task: str, *, stands: bool = False) -> Truncation:
    """What lies in a transformer's folder, in whatever file sentence-transformers has ever written it to.

    Raises:
        UnsupportedModelError: a setting that has no compiled form, by its name.
        CompileError: a damaged file.
    """
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None or task not in _EXPECTED:
        return Truncation()
    plain = read_json(path, dict, "it should say how texts are cut", CompileError)
    expected = _EXPECTED[task]
    said = {key: value for key, value in plain.items() if value not in (None, {})}
    only(path, said, "max_seq_length", "do_lower_case", "unpad_inputs", *expected, *_ARGUMENTS)
    for key in _ARGUMENTS:
        arguments = plain.get(key) or {}
        if not isinstance(arguments, dict) or (strange := sorted(set(arguments) - _HARMLESS)):
            what = strange[0] if isinstance(arguments, dict) else arguments
            raise UnsupportedModelError(f"{path} sets {shown(what)} in {key}, which has no compiled form: do without")
    for key, value in expected.items():
        if plain.get(key) not in (None, value):
            raise UnsupportedModelError(
                f"{path} has {key} {shown(plain[key])}, which has no compiled form: {value!r} has"
            )
    longest, lower = plain.get("max_seq_length"), plain.get("do_lower_case") or False
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 1):
        raise CompileError(f"{path} is damaged: max_seq_length {shown(longest)} is no number of tokens")
    if not isinstance(lower, bool):
        raise CompileError(f"{path} is damaged: do_lower_case {shown(lower)} is neither true nor false")
    return Truncation(longest, stands, lower)


def _lower(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Lower texts first, as sentence-transformers does."""
    from tokenizers.normalizers import Lowercase, Sequence

    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        backend.normalizer = Sequence([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])
