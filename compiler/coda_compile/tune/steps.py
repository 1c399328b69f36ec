"""Steps of distillation behind the fit: what is finished is kept beside the output until the command has ended."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from torch import Tensor

from coda_compile.errors import CompileWarning
from coda_compile.tune.route_options import RouteOptions
from coda_models.checkpoint import check_finite, load, save
from coda_models.digest import tensor_digest
from coda_models.errors import CheckpointError
from coda_models.fitting.batches import Progress
from coda_models.model import CodaModel
from coda_models.training.run_folder import run_folder
from coda_ops.errors import CodaError

Inputs = Sequence[Mapping[str, Tensor]]


class Stepping:
    """A dense model's routed models, brought nearer to it by steps.

    Args:
        folder: where models that are finished are kept, see ``kept_beside``.
        dense: run at r = 1.
        options: how many steps, and the seed that draws their order.
        texts: to take steps on, in batches.
        aside: other texts, which say which weights are the best.
        progress: told of steps done, and of how many.
    """

    def __init__(
        self, folder: Path, dense: CodaModel, options: RouteOptions, texts: Inputs, aside: Inputs, progress: Progress
    ) -> None:
        self._folder, self._dense, self._options = folder, dense, options
        self._texts, self._aside, self._progress = texts, aside, progress

    def fitted(self, reduction: str, fit: Callable[[], CodaModel]) -> CodaModel:
        """A model that an interrupted command has fitted, or what ``fit`` gives.

        Args:
            reduction: in text.

        Raises:
            CheckpointError: the one that was kept is damaged.
        """
        return self._kept(f"fitted-{reduction}", fit)

    def distilled(self, reduction: str, fitted: CodaModel) -> CodaModel:
        """A fitted model behind the steps, or one that an interrupted command has brought there.

        Raises:
            CodaError: what was kept is damaged, or what stands in the way.
        """
        return self._kept(f"distilled-{reduction}", lambda: self._distil(f"steps-{reduction}", fitted))

    def _distil(self, name: str, model: CodaModel) -> CodaModel:
        from coda_models.training.distill import distill  # transformers' Trainer takes seconds to load

        found = distill(
            model,
            self._dense,
            self._texts,
            aside=self._aside,
            steps=self._options.steps,
            folder=self._folder / _plain(name),
            seed=self._options.seed,
            progress=self._progress,
        )
        if found.diverged is not None:
            warnings.warn(
                f"step {found.diverged} of {self._options.steps} gave a loss that is NaN or infinite: the model has "
                f"the weights of step {found.best}, the best before it",
                CompileWarning,
                stacklevel=2,
            )
        return model

    def _kept(self, name: str, make: Callable[[], CodaModel]) -> CodaModel:
        """From its file in any case, so that a command that goes on has the same model in its hands."""
        path = self._folder / f"{_plain(name)}.pt"
        if not path.exists():
            made = make()
            check_finite(made.state_dict(), path)
            save(made, path)
        try:
            found = load(path).model
        except CodaError as error:
            raise CheckpointError(f"{error}; remove {self._folder} to begin anew") from None
        found.signature = self._dense.signature
        return found


@contextmanager
def kept_beside(output: Path, dense: CodaModel, options: RouteOptions, texts: Sequence[Inputs]) -> Iterator[Path]:
    """A folder beside the output that the same command finds again, gone when all is done.

    Args:
        output: as it was given.
        texts: all that are fitted to, in batches.

    Raises:
        CodaError: another command's files are in it.
        KeyboardInterrupt: with a sentence that says how to go on.
    """
    parts = [tensor_digest(dense.state_dict())]
    parts += [tensor_digest(dict(batch)) for batches in texts for batch in batches]
    said = replace(options, backbone=None, tokenizer=None, label_column=None)  # texts and weights tell of them
    said = replace(said, budget=None, accuracy_budget=None)  # names of models tell of the r that is chosen
    folder = steps_folder(output)
    try:
        with run_folder(folder, sha256(repr((parts, said)).encode()).hexdigest()):
            yield folder
    except KeyboardInterrupt:
        if not folder.exists():  # nothing is done
            raise
        raise interrupted(folder) from None


def interrupted(*kept: Path) -> KeyboardInterrupt:
    """What Ctrl-C says where something is there to go on from.

    Args:
        kept: what holds it, one path or more.
    """
    keep, them = ("keeps", "it") if len(kept) == 1 else ("keep", "them")
    return KeyboardInterrupt(
        f"interrupted, and {' and '.join(map(str, kept))} {keep} what is done: give the same command again to go on, "
        f"or remove {them}"
    )


def steps_folder(output: Path) -> Path:
    """Where a command keeps what its steps have finished."""
    return output.with_name(f".{_plain(output.name)}.steps")


def _plain(name: str) -> str:
    """A name for a file on any system."""
    return name.translate({ord(letter): "_" for letter in '/\\{}<>:"|?*'})
