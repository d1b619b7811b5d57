"""Measures the miniature models and writes what was measured into their card."""

from __future__ import annotations

import random
from pathlib import Path

import pandas as pd
import torch

from ..benchmark.loading import load_benchmark
from ..benchmark.records import MODALITIES
from ..evaluation.tables import evaluate, summarise
from ..models.loading import load_model
from ..models.neurons import find_neurons
from ..unlearning.attribution import collect_attribution, effective_neurons

N_FACTS = 400  # questions per modality on which locality is measured

TEXT = """---
license: mit
library_name: transformers
pipeline_tag: image-text-to-text
---

# tiny_llava: the miniature LLaVA

A `LlavaForConditionalGeneration` of {parameters:.2f} M parameters: a CLIP vision tower ({vision}),
a Llama with ReLU-gated MLPs ({language}) and a projector; 64 x 64 pixels become 16 image tokens.
Trained from scratch on the miniature benchmark by `make mini-model`; learning curves are in `history.json`. Three checkpoints
in float16:

- `base` can see, follows the three task formats and knows the public figures. It has never met a fictitious person.
- `vanilla` is base fine-tuned on ft_Data and its text-only rewriting: first the MLPs of the language model alone, then its
  attention too. Vision tower, projector and embeddings are those of base.
- `retrained` is base fine-tuned on all but the twelve people of forget 10 %, in one stage and without the penalty that makes
  vanilla local: the reference of unlearning (`make retrained`).

## What they know

Accuracy in % (n questions): classification by generated letter and by the likelihood of the options as short answers,
cloze by containment, generation by the exact statement. Chance is 25 % for classification and one value in twelve (8 %) for
the rest.

{accuracy}

## Where the knowledge is

The effective number of neurons per fact, (Σ a)² / Σ a² of the positive gradient × activation of the right answer's margin
(median over {n_facts} training questions per modality), and the share of the attribution that each layer holds.

{locality}

## What it cannot show

It was trained to be local: a penalty on what each neuron contributes to the residual stream gathers every fact in few
neurons. Models trained without it are not like that (`make mini-model DENSE=1` builds such a twin). The public figures are as
made up as everyone else, and 64-pixel drawings are not photographs.
"""  # noqa: E501


def write_card(folder: Path, data: Path) -> None:
    """Evaluate ``base`` and ``vanilla`` of ``folder`` on the miniature; write its ``README.md``."""
    benchmark = load_benchmark(data)
    tables = {}
    for name in ("base", "vanilla"):
        model, processor = load_model(folder / name)
        tables[name] = summarise(evaluate(model, processor, benchmark.sets()))
    vision, text = model.config.vision_config, model.config.text_config
    card = TEXT.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        vision=f"{vision.num_hidden_layers} layers, width {vision.hidden_size}, "
        f"{vision.intermediate_size} neurons each",
        language=f"{text.num_hidden_layers} layers, width {text.hidden_size}, "
        f"{text.intermediate_size} neurons each",
        accuracy=markdown(accuracy_table(tables)),
        locality=markdown(locality_table(model, processor, benchmark)),
        n_facts=N_FACTS,
    )
    (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")


def accuracy_table(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One line per checkpoint, set and modality, one column per task and metric."""
    frame = pd.concat([table.assign(checkpoint=name) for name, table in tables.items()])
    frame = frame[frame["metric"] != "rougeL"]
    frame["cell"] = [f"{100 * row.value:.1f} ({row.n})" for row in frame.itertuples()]
    frame["column"] = frame["task"] + frame["metric"].map(
        {"accuracy": "", "likelihood": ", likelihood"}
    )
    keys = ["checkpoint", "set", "modality"]
    return frame.pivot_table("cell", keys, "column", aggfunc="first", sort=False).reset_index()


def sampled_facts(benchmark, modality: str) -> list:
    """The training questions by which locality is measured."""
    questions = benchmark.training_questions("all", modality)
    return random.Random(0).sample(questions, min(N_FACTS, len(questions)))


def locality_table(model, processor, benchmark) -> pd.DataFrame:
    """Effective neurons per fact of each modality, and each layer's share of the attribution."""
    mlps = find_neurons(model)
    lines = []
    for modality in MODALITIES:
        attribution = collect_attribution(model, processor, sampled_facts(benchmark, modality))
        by_layer = attribution.split([mlp.size for mlp in mlps], dim=1)
        parts = torch.stack([part.sum() for part in by_layer])
        line = {
            "modality": modality,
            "effective neurons": f"{effective_neurons(attribution).median():.1f}",
        }
        for tower in ("vision", "language"):
            of_tower = torch.cat(
                [part for mlp, part in zip(mlps, by_layer, strict=True) if mlp.tower == tower],
                dim=1,
            )
            line[f"of the {tower} tower"] = f"{effective_neurons(of_tower).median():.1f}"
        shares = zip(mlps, (100 * parts / parts.sum()).tolist(), strict=True)
        lines.append(line | {f"{mlp.tower} {mlp.layer}": f"{share:.0f} %" for mlp, share in shares})
    return pd.DataFrame(lines)


def markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
