"""Dense models of joined queries by transformers' Trainer, none of them ours.

python benchmarks/finetune_queries.py --queries ../shared/data/clinc150.json --backbone FOLDER --out queries
coda-compile route queries/model --texts queries/texts.csv --held-out queries/held-out.csv --label-column label \
    -r 4 -r 8 -o queries/routed-{r}.pt

    classifier, lora    a text is some queries of CLINC150, its label the intent of the first
    short-classifier    the same, trained for two thirds of the steps
    tagger              every token is labelled with the intent of the query that it stands in
    cross-encoder       a query, and a passage of some others: does one of these have the query's intent? Every second
                        passage has one

No query of held-out.csv is in a training text. Training texts are drawn anew for each step, of one query first and of
more in the end; texts.csv holds others of the same queries. fresh.csv and fresh-held-out.csv are of the two halves of
the queries of held-out.csv: to fit to texts that the model was not trained on. --linear trains a linear model on words
instead, for what the task is worth.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import join_queries
import numpy as np
import torch
from join_queries import Query, train_reviews
from sklearn.model_selection import train_test_split
from torch.utils.data import IterableDataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from coda_compile.text_files import read_table
from coda_compile.tune.agreement import LABEL
from coda_compile.tune.linear import linear_figures

BATCH = 32
# (queries in a text or passage, steps): what stands first is learned in short texts, that it is first in long ones.
PLANS = {
    "classifier": ((1, 400), (3, 900), (10, 700)),
    "short-classifier": ((1, 400), (3, 600), (10, 300)),
    "tagger": ((10, 260),),
    "lora": ((1, 400), (3, 350)),
    "cross-encoder": ((1, 500), (5, 500)),
}
ANSWERS = ("another", "same")  # of a cross-encoder
Pair = tuple[str, str, str]  # query, passage, answer


class Passages:
    """Passages for queries, of others."""

    def __init__(self, queries: list[Query], draw: random.Random) -> None:
        self._queries, self._draw = queries, draw
        self._by_intent: dict[str, list[Query]] = defaultdict(list)
        for query in queries:
            self._by_intent[query[1]].append(query)

    def of(self, first: Query, count: int, same: bool) -> Pair:
        """One of ``count`` queries, one of them with the first one's intent or none."""
        passage: list[Query] = []
        while len(passage) < count - same:
            query = self._draw.choice(self._queries)
            if query[1] != first[1]:
                passage.append(query)
        if same:
            others = [query for query in self._by_intent[first[1]] if query != first]
            passage.insert(self._draw.randrange(count), self._draw.choice(others))
        return first[0], join_queries.joined(passage)[0], ANSWERS[same]


class Curriculum(IterableDataset[dict[str, Any]]):
    """Rows of joined queries, every query first once before any is again."""

    def __init__(
        self, queries: list[Query], plan: tuple[tuple[int, int], ...], tokenizer: PreTrainedTokenizerBase, kind: str
    ) -> None:
        self._queries, self._plan, self._tokenizer, self._kind = queries, plan, tokenizer, kind
        self._classes = {label: i for i, label in enumerate(classes(queries))}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        draw, first = random.Random(0), list[Query]()
        passages = Passages(self._queries, draw)
        for together, steps in self._plan:
            for _ in range(steps * BATCH):
                first = first or draw.sample(self._queries, len(self._queries))
                if self._kind == "cross-encoder":
                    yield self._pair(*passages.of(first.pop(), together, draw.random() < 0.5))
                else:
                    yield self._row([first.pop(), *draw.sample(self._queries, together - 1)])

    def _pair(self, query: str, passage: str, answer: str) -> dict[str, Any]:
        return {**self._tokenizer(query, passage), "label": ANSWERS.index(answer)}

    def _row(self, queries: list[Query]) -> dict[str, Any]:
        labels = [self._classes[label] for _, label in queries]
        if self._kind != "tagger":
            return {"input_ids": self._tokenizer(join_queries.joined(queries)[0])["input_ids"], "label": labels[0]}
        parts = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in queries]
        (dot,) = self._tokenizer(".", add_special_tokens=False)["input_ids"]
        ids, tags = [self._tokenizer.cls_token_id], [-100]
        for i, (part, label) in enumerate(zip(parts, labels, strict=True)):
            part = part if i == len(parts) - 1 else [*part, dot]
            ids, tags = ids + part, tags + [label] * len(part)
        return {"input_ids": [*ids, self._tokenizer.sep_token_id], "labels": [*tags, -100]}


def classes(queries: list[Query]) -> list[str]:
    """Names of all intents."""
    return sorted({label for _, label in queries})


def write_texts(path: Path, queries: list[Query], count: int, together: int, kind: str) -> None:
    """A CSV file of texts or pairs of them, each with a first query of its own, and their labels."""
    if kind != "cross-encoder":
        train_reviews.write_texts(path, join_queries.drawn(queries, count, together))
        return
    draw = random.Random(0)
    passages, firsts = Passages(queries, draw), draw.sample(queries, min(count, len(queries)))
    rows: Iterable[Pair] = (passages.of(first, together, i % 2 == 0) for i, first in enumerate(firsts))
    train_reviews.write_texts(path, rows, ("text", "text_pair", "label"))


def linear_accuracy(train: Path, test: Path) -> float:
    """Share of right labels of a linear SVM on TF-IDF of words and their pairs."""
    seen, unseen = (read_table(path, "label") for path in (train, test))
    number = {name: i for i, name in enumerate(sorted({row.label for row in seen}))}
    wanted = [np.array([float(number[row.label])]) for row in unseen]
    texts, others = ([row.text for row in rows] for rows in (seen, unseen))
    found = linear_figures(LABEL, texts, others, [number[row.label] for row in seen], wanted)
    assert found is not None
    return found["accuracy"].middle


def untrained(kind: str, backbone: str, names: list[str]) -> Any:
    """A pretrained encoder with a new head."""
    auto = AutoModelForTokenClassification if kind == "tagger" else AutoModelForSequenceClassification
    numbered = dict(enumerate(ANSWERS if kind == "cross-encoder" else names))
    model = auto.from_pretrained(
        backbone,
        id2label=numbered,
        label2id={name: i for i, name in numbered.items()},
        ignore_mismatched_sizes=True,  # of another head, where the backbone is one of these models itself
    )
    if kind != "lora":
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=32, lora_alpha=64, target_modules="all-linear"))


@click.command(help=__doc__)
@click.option("--queries", type=click.Path(exists=True, path_type=Path), required=True, help="CLINC150's JSON file.")
@click.option("--backbone", required=True, help="Folder or hub name of the pretrained encoder.")
@click.option("--kind", type=click.Choice(sorted(PLANS)), default="classifier", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the model and its texts.")
@click.option("--learning-rate", type=float, help="[default: 2e-4; of a LoRA 1e-3]")
@click.option("--seed", default=0, show_default=True)
@click.option("--linear", is_flag=True, help="Train a linear model alone, on a text for each query.")
@click.option("--bf16", is_flag=True, help="Multiply in bfloat16: twice as fast where the machine has it.")
def main(
    queries: Path,
    backbone: str,
    kind: str,
    out: Path,
    learning_rate: float | None,
    seed: int,
    linear: bool,
    bf16: bool,
) -> None:
    every, together = join_queries.read(queries), PLANS[kind][-1][0]
    texts = join_queries.join(every)
    _, held_out = train_test_split(texts, test_size=400, random_state=0, stratify=[label for _, label in texts])
    unseen = join_queries.queries_of(every, [text for text, _ in held_out])
    kept = set(unseen)
    seen = [query for query in every if query not in kept]
    out.mkdir(parents=True, exist_ok=True)
    write = partial(write_texts, together=together, kind=kind)
    write(out / "texts.csv", seen, 1850)
    write(out / "held-out.csv", unseen, len(unseen))
    halves, half = random.Random(1).sample(unseen, len(unseen)), len(unseen) // 2
    write(out / "fresh.csv", halves[:half], 1850)
    write(out / "fresh-held-out.csv", halves[half:], half)

    if linear:
        write(out / "linear.csv", seen, len(seen))
        click.echo(f"linear: {100 * linear_accuracy(out / 'linear.csv', out / 'held-out.csv'):.1f}")
        return
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    model = untrained(kind, backbone, classes(every))
    arguments = TrainingArguments(
        str(out / "steps"),
        max_steps=sum(steps for _, steps in PLANS[kind]),
        per_device_train_batch_size=BATCH,
        learning_rate=learning_rate or (1e-3 if kind == "lora" else 2e-4),
        warmup_steps=100,
        seed=seed,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
    )
    padded = DataCollatorForTokenClassification if kind == "tagger" else DataCollatorWithPadding
    rows = Curriculum(seen, PLANS[kind], tokenizer, kind)
    Trainer(model=model, args=arguments, train_dataset=rows, data_collator=padded(tokenizer)).train()
    model.save_pretrained(out / "model")
    model.config.save_pretrained(out / "model")  # PEFT writes none, which would name the classes
    tokenizer.save_pretrained(out / "model")


if __name__ == "__main__":
    main()
