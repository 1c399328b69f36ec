"""A routed encoder with its head: what is trained, saved and compiled."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from coda_models.config import CodaConfig, Reduction
from coda_models.errors import ConfigError
from coda_models.labels import loss_of_labels
from coda_models.layers.attention import RelativeBias
from coda_models.layers.embeddings import MaskedEmbeddings
from coda_models.layers.layer import CodaLayer, Routing
from coda_models.ood import OodDetector
from coda_models.sentence import build_modules, pool
from coda_targets.signature import Signature

_LEARNED = (  # parts of names
    *("adapter", "router", "stand_in", "key_value"),
    *("after_attention", "after_feed_forward", "prefix_key", "prefix_value", "prompt", "invertible"),
)


@dataclass
class CodaOutput(ModelOutput):  # type: ignore[misc]  # transformers ships no types here
    """What a forward pass gives; a field that the task does not have is ``None``.

    Attributes:
        loss: scalar, when labels were given.
        logits: [batch, labels] or, for token classification, [batch, tokens, labels].
        last_hidden_state: [batch, tokens, width], feature extraction only.
        sentence_embedding: [batch, width behind the last module], feature extraction only.
        hidden_states: the embeddings and the output of every layer, [batch, tokens, width] each, when asked for.
        features: [batch, width], what stands for each text, sequence classification only.
        ood_score: [batch], higher for texts less like the known ones, where the model has a detector.
        is_ood: [batch] bool, whether the score lies above the detector's threshold.
        routing: one ``Routing`` a layer, ``None`` for dense layers, when asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    sentence_embedding: Tensor | None = None
    features: Tensor | None = None
    ood_score: Tensor | None = None
    is_ood: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    routing: tuple[Routing | None, ...] | None = None


class CodaModel(nn.Module):
    """Embeddings, CoDA layers, an optional final norm and a head, made by ``coda_models.convert``.

    Attributes:
        signature: the inputs, as its architecture declares them and up to the longest that it is run on.
    """

    accepts_loss_kwargs = False  # or Trainer would take ``**inputs`` for a model that scales its own loss

    def __init__(
        self,
        config: CodaConfig,
        hf_config: PretrainedConfig,
        embeddings: nn.Module,
        layers: Sequence[CodaLayer],
        head: nn.Module | None,
        relative_bias: RelativeBias | None,
        final_norm: nn.Module | None,
        signature: Signature,
    ) -> None:
        super().__init__()
        self.coda_config = config
        self.hf_config = hf_config
        self.embeddings = embeddings
        self.layers = nn.ModuleList(layers)
        self.relative_bias = relative_bias
        self.final_norm = final_norm
        self.head = head
        self.after_pooling = build_modules(config.modules, int(hf_config.hidden_size) * len(config.poolings))
        self.ood: OodDetector | None = None
        self.signature = signature
        self.prompt_tokens = 0  # in front of every sequence, put there by the embeddings (``build_parts``)
        self._checkpointing: dict[str, Any] | None = None

    @property
    def config(self) -> PretrainedConfig:
        """The backbone's configuration, by the name under which transformers and others look for it."""
        return self.hf_config

    def save_pretrained(self, folder: Path | str, *, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """As ``coda_models.save_pretrained``."""
        from coda_models.checkpoint import save_pretrained  # which makes models

        save_pretrained(self, folder, tokenizer=tokenizer)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """As ``coda_models.hub.push_to_hub``."""
        from coda_models.hub import push_to_hub

        return push_to_hub(self, repo_id, **options)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether training computes layers twice instead of keeping what is in them."""
        return self._checkpointing is not None

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Keep a layer's input alone while training, and compute the layer again for its gradients.

        Args:
            gradient_checkpointing_kwargs: of ``torch.utils.checkpoint.checkpoint``.

        Raises:
            ConfigError: ``use_reentrant`` is asked for, by which layers behind frozen embeddings would get none.
        """
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        if options["use_reentrant"]:
            raise ConfigError("use_reentrant would leave layers behind frozen embeddings untrained: leave it out")
        self._checkpointing = options

    def gradient_checkpointing_disable(self) -> None:
        """Keep what is in layers again."""
        self._checkpointing = None

    def print_trainable_parameters(self) -> None:
        """Say how many parameters are trained, of how many, as PEFT's models do."""
        every = sum(parameter.numel() for parameter in self.parameters())
        trained = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        print(f"trainable params: {trained:,d} || all params: {every:,d} || trainable%: {100 * trained / every:.4f}")

    def coda_layers(self) -> Iterator[CodaLayer]:
        """The layers, bottom first."""
        for layer in self.layers:
            assert isinstance(layer, CodaLayer)
            yield layer

    def set_reduction(self, reduction: Reduction | Sequence[Reduction]) -> None:
        """Run at another r from now on; the configuration follows."""
        config = self.coda_config.with_reduction(reduction)
        for layer, r in zip(self.coda_layers(), config.layer_reductions(len(self.layers)), strict=True):
            layer.reduction = r
        self.coda_config = config

    def set_attention(self, attention: str) -> None:
        """Route by another of ``ATTENTIONS`` from now on; the configuration follows."""
        config = replace(self.coda_config, attention=attention)
        for layer in self.coda_layers():
            layer.attention = config.attention
        self.coda_config = config

    def forward(
        self,
        *,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        output_routing: bool = False,
        decisions: Sequence[tuple[Tensor, Tensor, Tensor] | None] | None = None,
        **inputs: Tensor,
    ) -> CodaOutput:
        """Run the encoder and its head.

        Args:
            labels: as ``coda_models.labels.loss_of_labels`` takes them.
            output_hidden_states: also return the embeddings and what every layer gave.
            output_routing: also return what every router decided.
            decisions: for each layer indices, gates and used slots to take instead of the router's own, or ``None``.
            inputs: those of the signature by their names, as tokenizers give them. A mask and types may be left out.

        Raises:
            InputError: an input that the model does not take, or lacks.
        """
        self.signature.check_names(inputs)
        x, mask, table = self.embed(inputs)
        decided: list[Routing | None] = []
        states = [x]
        for i, layer in enumerate(self.coda_layers()):
            x, routing = self._run(layer, x, mask, table, None if decisions is None else decisions[i])
            decided.append(routing)
            states.append(x)
        return self.answer(
            x,
            mask,
            labels,
            hidden_states=tuple(states) if output_hidden_states else None,
            routing=tuple(decided) if output_routing else None,
        )

    def _run(self, layer: CodaLayer, *inputs: Any) -> tuple[Tensor, Routing | None]:
        if self.training and self._checkpointing is not None:
            return checkpoint(layer, *inputs, **self._checkpointing)  # type: ignore[no-any-return]
        return layer(*inputs)  # type: ignore[no-any-return]

    def embed(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the first layer is given.

        Args:
            inputs: as for ``forward``.

        Returns:
            States [batch, tokens, width], where they are valid [batch, tokens], and the relative bias by distance of
            the backbones that have one. Learned tokens in front of a text are among the tokens.
        """
        mask = self.mask(inputs)
        read = [one.name for one in self.signature.inputs if one.role != "mask" and one.name in inputs]
        given = {name: inputs[name] for name in read}
        if isinstance(self.embeddings, MaskedEmbeddings):
            x, mask = self.embeddings(mask, **given)
        else:
            x = self.embeddings(**given)
        if self.prompt_tokens:
            mask = F.pad(mask, (self.prompt_tokens, 0), value=True)
        return x, mask, self.table(x)

    def table(self, x: Tensor) -> Tensor | None:
        """The relative bias by distance for states [batch, tokens, width], of the backbones that have one."""
        return None if self.relative_bias is None else self.relative_bias.table(x.shape[1])

    def answer(
        self,
        x: Tensor,
        mask: Tensor,
        labels: Tensor | None = None,
        *,
        hidden_states: tuple[Tensor, ...] | None = None,
        routing: tuple[Routing | None, ...] | None = None,
    ) -> CodaOutput:
        """What the model says where the last layer gave x, [batch, tokens, width]."""
        if self.final_norm is not None:
            x = self.final_norm(x)
        return CodaOutput(**self._finish(x, mask, labels), hidden_states=hidden_states, routing=routing)

    def mask(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Where inputs by name are valid. [batch, length] bool"""
        given = self.signature.role("mask")
        if given is not None and given.name in inputs:
            return inputs[given.name].bool()
        device = inputs[self.signature.lead.name].device
        return torch.ones(self.signature.shape(inputs), dtype=torch.bool, device=device)

    def _finish(self, x: Tensor, mask: Tensor, labels: Tensor | None) -> dict[str, Tensor | None]:
        if self.head is None:
            return {"last_hidden_state": x, "sentence_embedding": self._embedding(x, mask)}
        found: dict[str, Tensor | None] = {}
        if self.coda_config.task == "sequence-classification":
            found["features"] = features = self._pooled(x, mask)
            if self.coda_config.pooling != "first" or self.ood is not None:
                x = features.unsqueeze(1)  # [batch, 1, width], in the first token's place
        logits = self.head(x)
        if self.ood is not None:
            found["ood_score"], found["is_ood"] = self.ood(features, logits)
        loss = None if labels is None else loss_of_labels(logits, labels, self.hf_config, self.coda_config.task)
        return {"loss": loss, "logits": logits, **found}

    def _pooled(self, x: Tensor, mask: Tensor) -> Tensor:
        """What goes to the head for each text. [batch, width]"""
        (pooling,) = self.coda_config.poolings
        return x.select(1, 0) if pooling == "first" else pool(x, mask, pooling)  # transformers' heads look at no mask

    def _embedding(self, x: Tensor, mask: Tensor) -> Tensor:
        """[batch, tokens, width] -> [batch, width behind the last module]."""
        pooled = [pool(x, mask, pooling) for pooling in self.coda_config.poolings]
        embedding: Tensor = self.after_pooling(pooled[0] if len(pooled) == 1 else torch.cat(pooled, -1))
        return embedding

    def trainable_names(self) -> list[str]:
        """What CoDA trains: adapters, routers, norms and the head (Lei et al. 2023, section 5), what stands for layers,
        for embeddings what follows pooling, and the parts that other libraries have learned."""
        known = {id(norm) for layer in self.coda_layers() for norm in layer.block.norms} | {id(self.final_norm)}
        norms = {
            f"{name}."
            for name, module in self.named_modules()
            if id(module) in known or isinstance(module, nn.LayerNorm)  # as those of embeddings are
        }
        return [
            name
            for name, _ in self.named_parameters()
            if name.startswith(("head.", "after_pooling."))
            or any(f".{part}." in f"{name}." for part in _LEARNED)
            or any(name.startswith(norm) for norm in norms)
        ]

    def freeze_backbone(self) -> None:
        """Leave gradients to ``trainable_names`` alone."""
        trainable = set(self.trainable_names())
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trainable)
