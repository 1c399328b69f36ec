"""Annealing, growing length, and a few real steps of transformers' Trainer."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.conftest import tiny_coda
from transformers import PreTrainedTokenizerFast, TrainingArguments

from coda_models import CodaConfig, CodaModel, from_pretrained
from coda_models.conversion import backbone_digest
from coda_models.errors import ConfigError
from coda_models.training.collator import TextCollator
from coda_models.training.train import AnnealReduction, CodaTrainer, DrawReduction, GrowLength, annealed, soft_labelled


def state(step: int, steps: int = 100) -> Any:
    return SimpleNamespace(global_step=step, max_steps=steps)


def reductions(model: CodaModel, callback: AnnealReduction, steps: int = 100) -> list[list[Fraction]]:
    seen = []
    for step in range(steps):
        callback.on_step_begin(None, state(step, steps), None)  # type: ignore[arg-type]
        seen.append([layer.reduction for layer in model.coda_layers()])
    return seen


def test_r_rises_from_1_over_the_first_half_and_holds():
    model = tiny_coda("bert", CodaConfig(reduction=1))
    seen = [r for r, _ in reductions(model, AnnealReduction(model, 4))]
    assert seen[0] == 1
    assert seen == sorted(seen)
    assert seen[24] < 4
    assert set(seen[50:]) == {Fraction(4)}
    assert all(r.denominator <= 8 for r in seen)


def test_each_layer_has_its_own_target():
    model = tiny_coda("bert", CodaConfig(reduction=1))
    seen = reductions(model, AnnealReduction(model, [1, "7/2"]))
    assert {r for r, _ in seen} == {Fraction(1)}
    assert seen[-1][1] == Fraction(7, 2)


def test_training_that_stops_early_still_ends_at_the_target():
    model = tiny_coda("bert", CodaConfig(reduction=1))
    AnnealReduction(model, 3).on_train_end(None, state(2), None)  # type: ignore[arg-type]
    assert model.coda_config.reduction == 3


@pytest.mark.parametrize("over", [0.0, 1.5])
def test_impossible_annealing_is_refused(over: float):
    with pytest.raises(ConfigError, match=r"fraction in"):
        AnnealReduction(tiny_coda("bert"), 4, over)


def test_length_grows_by_stages(tokenizer: PreTrainedTokenizerFast):
    collator = TextCollator(tokenizer, 512)
    callback = GrowLength(collator, ((16, 0.5), (32, 0.8), (64, 1.0)))
    lengths = [collator.tokens]
    for step in (0, 49, 50, 79, 80, 99, 100):
        callback.on_step_begin(None, state(step), None)  # type: ignore[arg-type]
        lengths.append(collator.tokens)
    assert lengths == [16, 16, 16, 32, 32, 64, 64, 64]


def rows(count: int = 24) -> list[dict[str, Any]]:
    """Texts whose label is whether token 96 stands in them."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(count):
        ids = torch.randint(4, 90, (9,), generator=generator).tolist()
        made.append({"input_ids": [2, *ids[:4], 96 if i % 2 else 97, *ids[4:], 3], "labels": i % 2})
    return made


def run(model: CodaModel, folder: Path, tokenizer: Any, steps: int, target: str = "2", **options: Any) -> CodaTrainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_steps=1,
    )
    trainer = CodaTrainer(
        model=model,
        args=arguments,
        train_dataset=rows(),
        data_collator=TextCollator(tokenizer, 32),
        callbacks=[AnnealReduction(model, target)],
        **options,
    )
    trainer.train()
    return trainer


def losses(trainer: CodaTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_training_learns_and_leaves_the_backbone_alone(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    model = tiny_coda("bert", CodaConfig(reduction=1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    history = losses(run(model, tmp_path, tokenizer, 30))
    assert sum(history[-5:]) < sum(history[:5])
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed <= set(model.trainable_names())
    assert {name.split(".")[-2] for name in changed} >= {"adapter", "router", "norm1", "norm2"}
    assert model.coda_config.reduction == 2
    assert backbone_digest(model) != model.coda_config.backbone_sha256  # norms are trained, and saved in a delta


def test_full_distillation_ignores_labels(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    teacher = tiny_coda("bert", CodaConfig(reduction=1), seed=3)
    model = tiny_coda("bert", CodaConfig(reduction=1), seed=4)
    trainer = run(model, tmp_path, tokenizer, 1, teacher=teacher, distillation=1.0)
    batch = TextCollator(tokenizer, 32)(rows(4))
    model.train()
    seen = []
    for labels in (batch["labels"], 1 - batch["labels"]):
        torch.manual_seed(0)  # dropout
        seen.append(trainer.compute_loss(model, {**batch, "labels": labels}))
    assert torch.equal(*seen)
    assert seen[0].requires_grad
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_list_of_targets_must_fit_the_model():
    with pytest.raises(ConfigError, match="reduction lists 3 layers but the model has 2"):
        AnnealReduction(tiny_coda("bert"), [2, 2, 2])


def test_a_folder_that_trainer_saves_is_a_checkpoint(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    model = tiny_coda("bert", CodaConfig(reduction=1))
    trainer = run(model, tmp_path / "run", tokenizer, steps=2, processing_class=tokenizer)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = from_pretrained(tmp_path / "saved")
    assert loaded.tokenizer is not None
    assert loaded.model.coda_config == model.coda_config
    mine, yours = model.state_dict(), loaded.model.state_dict()
    assert all(torch.equal(mine[name].cpu(), yours[name]) for name in mine)


@pytest.mark.parametrize(
    ("progress", "r"), [(0, 1), (0.01, 1), (0.125, Fraction(21, 16)), (0.5, Fraction(9, 4)), (1, Fraction(7, 2))]
)
def test_annealing_is_linear_in_exact_eighths(progress: float, r: Fraction):
    assert annealed(Fraction(7, 2), progress) == r
    assert isinstance(annealed(Fraction(7, 2), progress), Fraction)


def test_a_row_of_the_allowed_length_is_left_whole(tokenizer: PreTrainedTokenizerFast):
    batch = TextCollator(tokenizer, 4)([{"input_ids": [2, 10, 11, 3], "labels": 1}])
    assert batch["input_ids"].tolist() == [[2, 10, 11, 3]]


def trainer_of(model: CodaModel, folder: Path, **options: Any) -> CodaTrainer:
    arguments = TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True, dataloader_pin_memory=False)
    return CodaTrainer(model=model, args=arguments, **options)


@pytest.mark.parametrize("beforehand", [False, True])
def test_distillation_is_the_weighted_sum(beforehand: bool, tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    """(1 - w) · cross-entropy + w · T² · KL(teacher || student) at temperature T, averaged over examples."""
    teacher, model = tiny_coda("bert", CodaConfig(reduction=1), seed=3), tiny_coda("bert", CodaConfig(reduction=2))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in model.coda_layers():
        layer.block.attention.dropout = 0.0
    collator = TextCollator(tokenizer, 32)
    batch = collator(soft_labelled(teacher, rows(4), collator, batch=3) if beforehand else rows(4))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    trainer = trainer_of(model, tmp_path, teacher=None if beforehand else teacher, distillation=0.25, temperature=3.0)
    with torch.no_grad():
        loss = trainer.compute_loss(model.train(), batch)
        student, wanted = model(**inputs).logits, teacher(**inputs).logits
    p, q = (wanted / 3).softmax(-1), (student / 3).softmax(-1)
    divergence = (p * (p / q).log()).sum(-1).mean()
    truth = -student.log_softmax(-1)[torch.arange(4), batch["labels"]].mean()
    torch.testing.assert_close(loss, 0.75 * truth + 0.25 * 9 * divergence, rtol=0, atol=1e-5)


def test_evaluation_does_not_ask_the_teacher(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    teacher, model = tiny_coda("bert", seed=3), tiny_coda("bert")
    batch = TextCollator(tokenizer, 32)(rows(4))
    trainer = trainer_of(model, tmp_path, teacher=teacher, distillation=1.0)
    with torch.no_grad():
        loss, output = trainer.compute_loss(model.eval(), batch, return_outputs=True)
        assert torch.equal(loss, model(**batch).loss)
    assert torch.equal(output.loss, loss)


def test_a_student_distilled_from_its_own_logits_has_nothing_to_learn(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
):
    model = tiny_coda("roberta", CodaConfig(reduction=1), seed=3)
    trainer = trainer_of(
        model, tmp_path, teacher=tiny_coda("roberta", CodaConfig(reduction=1), seed=3), distillation=1.0
    )
    batch = TextCollator(tokenizer, 32)(rows(4))
    model.training = True  # the trainer's view alone: the layers below stay without dropout
    with torch.no_grad():
        assert trainer.compute_loss(model, batch).abs() < 1e-5


def test_routers_have_a_rate_and_a_norm_of_their_own(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    trainer = run(model, tmp_path, tokenizer, 2, router_rate=0.25, router_norm=1e-6)
    routers = [layer.router.weight for layer in model.coda_layers() if layer.router is not None]
    *others, own = trainer.optimizer.param_groups
    assert {id(p) for p in own["params"]} == {id(p) for p in routers}
    assert own["initial_lr"] == pytest.approx(0.25 * others[0]["initial_lr"])
    every = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(every) == len(set(every)) == len(model.trainable_names())
    trainer.model.zero_grad()
    trainer.training_step(trainer.model, TextCollator(tokenizer, 32)(rows(4)))
    assert all(p.grad.norm() <= 1.01e-6 for p in routers)
    assert any(p.grad.norm() > 1e-3 for p in model.parameters() if p.grad is not None)


def test_states_of_every_layer_are_taught(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    """distillation 0 leaves the labels' loss; hidden adds the mean over layers of the squared distance, no padding."""
    teacher, model = tiny_coda("bert", CodaConfig(reduction=1), seed=3), tiny_coda("bert", CodaConfig(reduction=2))
    batch = TextCollator(tokenizer, 32)([*rows(2), {"input_ids": [2, 9, 3], "labels": 0}])
    trainer = trainer_of(model, tmp_path, teacher=teacher, distillation=0.0, hidden=2.0)
    model.training = True  # the trainer's view alone: the layers below stay without dropout
    with torch.no_grad():
        loss = trainer.compute_loss(model, batch)
        own, wanted = (m(**batch, output_hidden_states=True) for m in (model, teacher))
    valid = batch["attention_mask"].bool()
    pairs = zip(own.hidden_states[1:], wanted.hidden_states[1:], strict=True)
    distances = [(a - b)[valid].square().mean() for a, b in pairs]
    assert len(distances) == 2
    torch.testing.assert_close(loss, own.loss + 2.0 * sum(distances) / 2, rtol=1e-5, atol=1e-6)


def test_mixed_precision_leaves_scores_in_float32():
    router = next(layer.router for layer in tiny_coda("bert").coda_layers())
    x = torch.randn(2, 5, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = router(x)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, router(x))


def test_r_is_drawn_from_all_and_the_same_in_a_second_run():
    model = tiny_coda("bert", CodaConfig(reduction=1))
    draws = []
    for _ in range(2):
        callback = DrawReduction(model, [1, "7/2", 8], 4)
        seen = []
        for step in range(60):
            callback.on_step_begin(SimpleNamespace(seed=5), state(step), None)  # type: ignore[arg-type]
            seen.append({layer.reduction for layer in model.coda_layers()})
        draws.append(seen)
    assert draws[0] == draws[1]
    for r in (Fraction(1), Fraction(7, 2), Fraction(8)):
        assert 10 < draws[0].count({r}) < 30
    callback.on_train_end(None, state(60), None)  # type: ignore[arg-type]
    assert model.coda_config.reduction == 4


def test_another_seed_draws_otherwise():
    model = tiny_coda("bert", CodaConfig(reduction=1))
    callback = DrawReduction(model, [1, 2], 2)
    draws = []
    for seed in (0, 1):
        seen = []
        for step in range(20):
            callback.on_step_begin(SimpleNamespace(seed=seed), state(step), None)  # type: ignore[arg-type]
            seen.append(next(model.coda_layers()).reduction)
        draws.append(seen)
    assert draws[0] != draws[1]


def test_nothing_to_draw_from_is_refused():
    with pytest.raises(ConfigError, match=r"^there are no reductions to draw from: give at least one$"):
        DrawReduction(tiny_coda("bert"), [], 4)
    with pytest.raises(ConfigError, match=r"below 1"):
        DrawReduction(tiny_coda("bert"), ["1/2"], 4)
