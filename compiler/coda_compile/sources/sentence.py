"""sentence-transformers' configuration beside a transformer: pooling, and the modules after it."""

from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from torch import Tensor

from coda_compile.errors import CompileError
from coda_compile.sources import ADAPTER_CONFIG
from coda_compile.sources.plain import only
from coda_compile.sources.prompts import ABOUT, check_prompts
from coda_compile.sources.sentence_modules import MAKERS, make, settled
from coda_compile.sources.truncation import Truncation, read_truncation
from coda_models.errors import UnsupportedModelError
from coda_models.sentence import SentenceModule
from coda_ops.errors import cut, shown
from coda_ops.foreign_json import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from coda_models.model import CodaModel

MODULES = "modules.json"
POOLING_KEYS = {  # of each pooling the key that says so, and the word; in the order in which they are concatenated
    "first": ("pooling_mode_cls_token", "cls"),
    "max": ("pooling_mode_max_tokens", "max"),
    "mean": ("pooling_mode_mean_tokens", "mean"),
    "mean_sqrt_len_tokens": ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    "weightedmean": ("pooling_mode_weightedmean_tokens", "weightedmean"),
    "lasttoken": ("pooling_mode_lasttoken", "lasttoken"),
}
_TASK = "feature-extraction"
_KIND = "SentenceTransformer"
_CARRIED = ("prompts", "similarity_fn_name", "include_prompt")
_SETFIT = ("config_setfit.json", "model_head.pkl")


@dataclass(frozen=True)
class Sentence:
    """What becomes of a transformer's states.

    Attributes:
        transformer: the folder that it lies in.
        pooling, modules: as ``CodaConfig`` has them.
        tensors: of the modules, as ``CodaModel.after_pooling`` names them.
        truncation: how texts are cut.
        about: what changes no embedding and belongs to the model: prompts, the similarity function.
        said: whether anything says how to pool.
    """

    transformer: Path
    pooling: tuple[str, ...] = ("mean",)
    modules: tuple[SentenceModule, ...] = ()
    tensors: dict[str, Tensor] = field(default_factory=dict)
    truncation: Truncation = field(default_factory=Truncation)
    about: dict[str, Any] = field(default_factory=dict)
    said: bool = True

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of a ``CodaConfig``."""
        return {"task": _TASK, "pooling": self.pooling, "modules": self.modules}

    @property
    def note(self) -> str:
        """For people, where nothing says how to pool."""
        return "" if self.said else " without a pooling, read by the mean of its tokens"

    def complete(self, model: "CodaModel", tokenizer: "PreTrainedTokenizerBase | None") -> None:
        """Give a model of these settings what the modules have learned, and both how texts are cut, in place."""
        model.after_pooling.load_state_dict(self.tensors)
        self.truncation.apply(model, tokenizer)


def refuse_other_models(folder: Path) -> None:
    """Refuse folders whose answer is more than their transformer's.

    Raises:
        UnsupportedModelError: a SetFit classifier, a sparse encoder such as SPLADE.
    """
    names = _SETFIT if (folder / ADAPTER_CONFIG).is_file() else (*_SETFIT, "model_head.safetensors")
    if found := next((name for name in names if (folder / name).is_file()), None):
        raise UnsupportedModelError(
            f"{folder} is a SetFit classifier ({found}), whose head cannot be compiled: compile its body, a copy of "
            f"the folder without {' and '.join(_SETFIT)}, and give the embeddings to the head"
        )
    if _about(folder).get("model_type") == "SparseEncoder":
        raise UnsupportedModelError(f"{folder} is a sparse encoder, as SPLADE is, and these cannot be compiled")


def is_sentence(folder: Path) -> bool:
    """Whether a folder's modules make embeddings of texts, whatever head its transformer was saved with.

    Raises:
        UnsupportedModelError: they make something else that is not a transformer's own answer.
    """
    if not (folder / MODULES).is_file():
        return False
    kind = _about(folder).get("model_type") or _KIND
    if kind != _KIND and (others := [name for name, _ in _listed(folder) if name != "Transformer"]):
        raise UnsupportedModelError(f"{folder} is a {kind} with {others[0]}, which has no compiled form")
    return kind == _KIND


def transformer_of(folder: Path) -> Path:
    """Where the transformer of a folder with ``modules.json`` lies.

    Raises:
        CompileError: outside of it, or no such list.
        UnsupportedModelError: modules that have no compiled form.
    """
    return _inside(folder, _listed(folder)[0][1])


def read_sentence(folder: Path) -> Sentence:
    """Read what lies beside a transformer; without ``modules.json`` as much of it as is there.

    Raises:
        UnsupportedModelError: a module or a setting that has no compiled form, by its name.
        CompileError: a file that is damaged, or a path that leaves the folder.
        CheckpointError: a module whose weights are missing, too many or of other shapes.
    """
    refuse_other_models(folder)
    if not is_sentence(folder):
        return _without_modules(folder)
    transformer, about = transformer_of(folder), _about(folder)
    prompts = check_prompts(folder / ABOUT, about)
    pooling: tuple[str, ...] | None = None
    modules: list[SentenceModule] = []
    tensors: dict[str, Tensor] = {}
    for kind, place in _listed(folder)[1:]:
        part = _inside(folder, place)
        if (kind == "Pooling") != (pooling is None):
            raise UnsupportedModelError(f"{folder / MODULES} lists {kind} out of place: one Pooling comes second")
        if kind == "Pooling":
            pooling, whole = _pooling(part / "config.json")
            if not whole and any(prompts.values()):
                raise UnsupportedModelError(
                    f"{part / 'config.json'} leaves prompts out of the pooling (include_prompt), and no input tells "
                    "where a prompt ends: give a model that pools prompts too"
                )
            about["include_prompt"] = whole
        elif kind != "Dropout":
            module, own = make(kind, part)
            tensors |= {f"{len(modules)}.{name}": tensor for name, tensor in own.items()}
            modules.append(module)
    if pooling is None:
        raise UnsupportedModelError(f"{folder / MODULES} lists no Pooling, so no embedding stands for a text")
    if about.get("truncate_dim") is not None:
        modules.append(settled(folder / ABOUT, lambda: SentenceModule("Truncate", outputs=about["truncate_dim"])))
    truncation = read_truncation(transformer, _TASK, stands=True)
    kept = {key: about[key] for key in _CARRIED if about.get(key) is not None}
    return Sentence(transformer, pooling, tuple(modules), tensors, truncation, kept)


def sentence_of_adapter(folder: Path, base: Path | None) -> Sentence:
    """Of an adapter that embeds texts: what lies beside it, or else beside its base model, where that is known.

    Raises:
        CodaError: as ``read_sentence``.
    """
    own = read_sentence(folder)
    if own.said or base is None:
        return own
    theirs = read_sentence(base)
    truncation = own.truncation
    if truncation == Truncation():
        truncation = replace(theirs.truncation, stands=False)  # the adapter's tokenizer has a say
    return replace(theirs, truncation=truncation)


def _without_modules(folder: Path) -> Sentence:
    """Of a folder in which sentence-transformers itself would find no modules, and take the mean."""
    numbered = sorted(path.name for path in folder.glob("[0-9]_*") if path.is_dir())
    if lost := next((name for name in numbered if name != "1_Pooling"), None):
        raise UnsupportedModelError(
            f"{folder} has {lost} and no {MODULES} that says what it is for: save the model again with "
            "sentence-transformers"
        )
    path = folder / "1_Pooling" / "config.json"
    said = path.is_file()
    pooling = _pooling(path)[0] if said else ("mean",)
    return Sentence(folder, pooling, truncation=read_truncation(folder, _TASK), said=said)


def _listed(folder: Path) -> list[tuple[str, str]]:
    """Kind and path of every module, in order; the first is the only transformer."""
    path = folder / MODULES
    expected = "it should list modules, each with its type and path"
    found = []
    for one in read_json(path, list, expected, CompileError):
        name, place = (one.get("type"), one.get("path")) if isinstance(one, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(place, str):
            raise CompileError(f"{path} is damaged: {expected}")
        kind = name.rpartition(".")[2]
        known = ("Transformer", "Pooling", *MAKERS, "Dropout")
        if not name.startswith("sentence_transformers.") or kind not in known:
            raise UnsupportedModelError(
                f"{path} lists {cut(name)}, which has no compiled form: {', '.join(known)} have one"
            )
        found.append((kind, place))
    if [kind for kind, _ in found[:1]] != ["Transformer"] or [kind for kind, _ in found].count("Transformer") > 1:
        raise UnsupportedModelError(f"{path} lists no Transformer or not as its first and only one: that has no form")
    return found


def _inside(folder: Path, name: str) -> Path:
    """A module's folder, which must lie in the model's."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise CompileError(f"{folder / MODULES} names {shown(name)}, which lies outside of the model: do not use it")
    return folder / pure


def _about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    return dict(read_json(path, dict, "it should describe the model", CompileError)) if path.is_file() else {}


def _pooling(path: Path) -> tuple[tuple[str, ...], bool]:
    """Poolings, one behind the other, and whether prompts are pooled as well."""
    expected = "it should say how sentences are pooled"
    plain = read_json(path, dict, expected, CompileError)
    old = {key: ours for ours, (key, _) in POOLING_KEYS.items()}
    new = {word: ours for ours, (_, word) in POOLING_KEYS.items()}
    only(path, plain, "word_embedding_dimension", "embedding_dimension", "include_prompt", "pooling_mode", *old)
    modes = plain.get("pooling_mode")
    if modes is None:
        poolings = [ours for key, ours in old.items() if plain.get(key)] or ["mean"]
    else:
        words = [modes] if isinstance(modes, str) else modes
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise CompileError(f"{path} is damaged: {expected}")
        if unknown := [word for word in words if word not in new]:
            raise UnsupportedModelError(f"{path} pools by {shown(unknown[0])}, which has no compiled form")
        poolings = [new[word] for word in words]
    return tuple(poolings), bool(plain.get("include_prompt", True))
