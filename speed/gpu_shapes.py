"""What every method costs at the true shapes of the paper's models: seconds and memory, on a GPU.

    python speed/gpu_shapes.py --out build/gpu.csv                # LLaVA-1.5-7B, 5 minutes
    python speed/gpu_shapes.py --out build/gpu.csv --card 24 --batch 4 --backward-batch 1
    python speed/gpu_shapes.py --out build/cpu.csv --model small  # narrow, seconds on a CPU

The models have the sizes of the published ones and random weights, so nothing is downloaded, and
what they answer means nothing. Time and memory do not depend on it: the questions are those of the
bundled people, with pictures of 1,024 pixels, and every picture is as many tokens as in the real
model (576 for LLaVA-1.5). A random model knows no fact; where a method goes on with the facts that
are still known, the pass that finds them out is made, and then all of them count.

Each step is a row of the CSV, written when it ends. Memory is what the tensors took at most in
that step, the model included. A step that runs out of memory is a row that says so, and the next
one begins.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pandas as pd
import PIL.Image
import pyarrow.parquet
import torch
import transformers

from manu_utils.benchmark.pictures import Picture
from manu_utils.benchmark.records import MODALITIES, Question
from manu_utils.benchmark.rows import pairs_of, question_and_answer, training_records
from manu_utils.benchmark.text_only import answer_to_text_only, person_name, to_text_only
from manu_utils.models.asking import generate_answers, known
from manu_utils.models.encoding import encode
from manu_utils.models.neurons import find_neurons
from manu_utils.models.processors import fit_processor
from manu_utils.paths import data_dir
from manu_utils.progress import print_what_can_be
from manu_utils.unlearning import (
    Evidence,
    Stranger,
    collect_activations,
    collect_attribution,
    collect_moments,
    coverage,
    erase,
    nearest_strangers,
    prune,
    rewrite,
    rewriting,
    save_selection,
    unlearn_by_training,
)
from manu_utils.unlearning.moments import MEMORY, layers_that_fit

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SIDE = 1024  # of a picture, as in MLLMU-Bench
IDEFICS_CHAT = (
    "{% for m in messages %}{{ m.role | capitalize }}"
    "{{ ':' if m.content[0].type == 'image' else ': ' }}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
# SigLIP-SO400M, at whatever size of pictures.
SIGLIP = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "patch_size": 14,
}  # fmt: skip
IDEFICS_TOKENS = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")


# -------------------------------------------------------------------------------------- the models


def llava(tokenizer, *, vision: dict | None = None, text: dict | None = None):
    """Config and processor of ``llava-hf/llava-1.5-7b-hf``, by its published config.json: Vicuna-7B
    v1.5, and CLIP ViT-L/14 for 336 pixels, 576 tokens a picture."""
    vision = transformers.CLIPVisionConfig(**{
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
    } | (vision or {}))  # fmt: skip
    text = transformers.LlamaConfig(**_of(tokenizer) | {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    } | (text or {}))  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    side = vision.image_size
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        tokenizer=tokenizer, patch_size=vision.patch_size, num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    return config, processor


def idefics2(tokenizer):
    """Those of ``HuggingFaceM4/idefics2-8b``: Mistral-7B v0.1, and SigLIP-SO400M for up to 980
    pixels, 64 tokens a picture."""
    tokenizer.add_tokens(["<image>", *IDEFICS_TOKENS], special_tokens=True)
    text = _of(tokenizer) | {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 32003, "max_position_embeddings": 32768, "sliding_window": 4096,
        "tie_word_embeddings": False,
    }  # fmt: skip
    vision = SIGLIP | {"image_size": 980}
    perceiver = {
        "hidden_size": 4096, "resampler_n_latents": 64, "resampler_depth": 3,
        "resampler_n_heads": 16, "resampler_head_dim": 96, "num_key_value_heads": 4,
    }  # fmt: skip
    config = transformers.Idefics2Config(
        vision_config=vision, text_config=text, perceiver_config=perceiver,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), tie_word_embeddings=False,
    )  # fmt: skip
    processor = transformers.Idefics2Processor(
        image_processor=transformers.Idefics2ImageProcessorPil(
            size={"shortest_edge": 378, "longest_edge": 980}, do_image_splitting=False
        ),
        tokenizer=tokenizer, image_seq_len=64, chat_template=IDEFICS_CHAT,
    )  # fmt: skip
    return config, processor


def smolvlm(tokenizer):
    """Those of ``HuggingFaceTB/SmolVLM-Instruct``: SmolLM2-1.7B, and SigLIP-SO400M for 384 pixels,
    81 tokens a picture that is not split."""
    tokenizer.add_tokens(["<image>", *IDEFICS_TOKENS], special_tokens=True)
    text = _of(tokenizer) | {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 32,
        "vocab_size": 49155, "max_position_embeddings": 16384, "tie_word_embeddings": False,
    }  # fmt: skip
    vision = SIGLIP | {"image_size": 384}
    config = transformers.Idefics3Config(
        vision_config=vision, text_config=text, scale_factor=3, tie_word_embeddings=False,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    processor = transformers.Idefics3Processor(
        image_processor=transformers.Idefics3ImageProcessorPil(
            size={"longest_edge": 4 * 384}, max_image_size={"longest_edge": 384},
            do_image_splitting=False,
        ),
        tokenizer=tokenizer, image_seq_len=81, chat_template=IDEFICS_CHAT,
    )  # fmt: skip
    return config, processor


def small(tokenizer):
    """LLaVA-1.5 with a few narrow layers, for tests."""
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    vision |= {"num_attention_heads": 2, "image_size": 56}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    return llava(tokenizer, vision=vision, text=text)


MODELS = {"llava-1.5-7b": llava, "idefics2-8b": idefics2, "smolvlm-2b": smolvlm, "small": small}


def _of(tokenizer) -> dict:
    return {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None}  # fmt: skip


def config_and_processor(name: str):
    """The processor has the miniature's words; the model's vocabulary has its true size."""
    source = data_dir() / "tiny_llava" / "base"
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    config, processor = MODELS[name](tokenizer)
    tokenizer.model_max_length = config.get_text_config().max_position_embeddings
    return config, processor


def random_model(config, dtype: torch.dtype, device: torch.device | str):
    """With random weights, made where they will be used."""
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    text = config.get_text_config()
    model.generation_config.eos_token_id = text.eos_token_id
    model.generation_config.pad_token_id = text.pad_token_id
    return model.eval()


# ----------------------------------------------------------------------------------- the questions


def questions_of(people: list[str] | None, n: int, side: int, folder: str = "mllmu_mini"):
    """modality -> n training questions about these people, in order; read without ``datasets``."""
    rows = pyarrow.parquet.read_table(data_dir() / folder / "ft_Data").to_pylist()
    found: dict[str, list[Question]] = {modality: [] for modality in MODALITIES}
    for row in rows:
        if people is not None and row["ID"] not in people:
            continue
        records = training_records(row)
        name, picture = person_name(records), enlarged(row["image"]["bytes"], side, row["ID"])
        for question, answer in map(question_and_answer, pairs_of(records)):
            text = to_text_only(question, name)
            if text is None:
                continue
            asked = Question(row["ID"], question, answer, picture, "training")
            answer = answer_to_text_only(question, answer, name)
            found["multimodal"].append(asked)
            found["text"].append(replace(asked, question=text, answer=answer, image=None))
    return {modality: asked[:n] for modality, asked in found.items()}


def enlarged(data: bytes, side: int, key: str) -> Picture:
    """A picture of so many pixels a side, as a JPEG file that is decoded when it is used."""
    file = io.BytesIO()
    picture = PIL.Image.open(io.BytesIO(data)).convert("RGB").resize((side, side))
    picture.save(file, "jpeg", quality=90)
    return Picture(file.getvalue, (side, side), key)


def names_of() -> dict[str, str]:
    """person_id -> name of the bundled people."""
    rows = pyarrow.parquet.read_table(data_dir() / "mllmu_mini" / "ft_Data").to_pylist()
    return {row["ID"]: person_name(training_records(row)) for row in rows}


# --------------------------------------------------------------------------------------- the steps


@dataclass
class World:
    """What the steps work on.

    Attributes:
        sets: ``"forget"``, ``"retain"`` -> modality -> questions.
        few: the same, as many as the steps that edit or train are given.
    """

    model: object
    processor: object
    sets: dict[str, dict[str, list[Question]]]
    few: dict[str, dict[str, list[Question]]]
    options: argparse.Namespace
    evidence: Evidence | None = None
    chosen: torch.Tensor | None = None

    @property
    def given(self) -> tuple:
        return self.model, self.processor

    def seen(self) -> Evidence:
        """Of all questions, collected once."""
        if self.evidence is None:
            options = {"batch_size": self.options.batch, "progress": False}
            self.evidence = Evidence(*self.given, **self.sets, **options)
        return self.evidence


def all_known(model, processor, questions, **options) -> torch.Tensor:
    """The pass of :func:`known`, after which every fact counts: a random model knows none."""
    return torch.ones_like(known(model, processor, questions, **options))


def warm_up(world: World):
    """Compiles, fills caches, and takes what the libraries need of memory: not measured again."""
    for modality in MODALITIES:
        asked = world.few["forget"][modality][: world.options.batch]
        options = {"batch_size": world.options.batch, "progress": False}
        collect_activations(*world.given, asked, **options)
        fewer = asked[: world.options.backward_batch]
        collect_attribution(*world.given, fewer, **options)
    device = world.model.device
    torch.linalg.cholesky(torch.eye(64, device=device) @ torch.eye(64, device=device))
    return 0, ""


def statistics(modality: str) -> Callable[[World], tuple[int, str]]:
    def step(world: World):
        asked = world.sets["forget"][modality]
        collect_activations(*world.given, asked, batch_size=world.options.batch, progress=False)
        batch = encode(asked[:1], world.processor, with_answer=True)
        pictures = len({id(question.image) for question in asked if question.image is not None})
        said = f"{batch['input_ids'].shape[1]} tokens in the first question"
        return len(asked), said + (f", {pictures} pictures" if pictures else "")

    return step


def paper_score(world: World):
    chosen = world.seen().choose("paper", 10.0)
    n = sum(len(asked) for of in world.sets.values() for asked in of.values())
    return n, f"{int(chosen.sum()):,} of {len(chosen):,} neurons"


def released_score(world: World):
    chosen = world.seen().choose("released_score", 5.0)
    return 0, f"{int(chosen.sum()):,} neurons, from the statistics of the step before"


def released_rows(world: World):
    rows = world.seen().beside(**world.few).choose("released_as_run", 10.0)
    n = sum(int(chosen.sum()) for chosen in rows.values())
    return _n(world.few), f"{n:,} rows, batches of 4 as in the released code"


def attribution(modality: str) -> Callable[[World], tuple[int, str]]:
    def step(world: World):
        asked = world.few["forget"][modality]
        options = {"batch_size": world.options.backward_batch, "progress": False}
        collect_attribution(*world.given, asked, **options)
        return len(asked), "forward and backward"

    return step


def choose_by_coverage(world: World):
    options = {"batch_size": world.options.backward_batch, "progress": False}
    evidence = Evidence(*world.given, **world.few, **options)
    with mock.patch.object(coverage, "known", all_known):
        world.chosen = evidence.choose("coverage", 5.0)
    # of the forget set a second time, in the second round, with a pass that asks what is known
    return _n(world.few), "attribution of both sets, two rounds, choice on the CPU"


def prune_undo_save(world: World):
    chosen = world.chosen
    if chosen is None:
        chosen = world.seen().choose("random", 5.0)
    started = time.perf_counter()
    edit = prune(world.model, chosen)
    pruned = time.perf_counter()
    edit.undo()
    undone = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        save_selection(chosen, world.model, Path(folder) / "selection.safetensors", alpha=5.0)
        size = (Path(folder) / "selection.safetensors").stat().st_size
    return 0, f"prune {pruned - started:.2f} s, undo {undone - pruned:.2f} s, file {size:,} bytes"


def generation(modality: str) -> Callable[[World], tuple[int, str]]:
    def step(world: World):
        asked = world.sets["forget"][modality]
        options = {"batch_size": world.options.batch, "max_new_tokens": world.options.new_tokens}
        answers = generate_answers(*world.given, asked, progress=False, **options)
        return len(answers), f"{world.options.new_tokens} new tokens at most"

    return step


def whether_known(world: World):
    """What ``choose_alpha``, rewriting and coverage ask after each step."""
    for asked in world.sets["forget"].values():
        known(*world.given, asked, batch_size=world.options.batch, progress=False)
    return _n({"forget": world.sets["forget"]}), "one forward pass"


def moments(world: World):
    mlps = [mlp for mlp in find_neurons(world.model) if mlp.tower == "language"]
    layers = layers_that_fit(mlps, MEMORY)[0]
    options = {"batch_size": world.options.batch, "progress": False, "layers": layers}
    collect_moments(*world.given, world.few["retain"], **options)
    return _n({"retain": world.few["retain"]}), f"{len(layers)} of {len(mlps)} layers"


def rewrite_a_round(memory: float) -> Callable[[World], tuple[int, str]]:
    def step(world: World):
        options = {"batch_size": world.options.backward_batch, "progress": False, "rounds": 1}
        with mock.patch.object(rewriting, "known", all_known):
            rewrite(*world.given, **world.few, memory=memory, **options).undo()
        return _n(world.few), f"moments, factors, one round, undo; {memory / 1e9:g} GB for these"

    return step


def erase_people(world: World):
    forget, retain = world.few["forget"], world.few["retain"]
    names = names_of()
    met = questions_of(None, 10**6, world.options.side, "mllmu_mini_strangers")
    portraits = {q.person_id: q.image for q in met["multimodal"]}
    rows = pyarrow.parquet.read_table(data_dir() / "mllmu_mini_strangers" / "ft_Data").to_pylist()
    strangers = [
        Stranger(person_name(training_records(row)), portraits[row["ID"]]) for row in rows[:8]
    ]
    asked = [question for part in forget.values() for question in part]
    options = {"n": world.options.strangers}
    near = nearest_strangers(*world.given, asked, names, strangers, **options)
    options = {"batch_size": world.options.batch, "progress": False}
    erase(*world.given, forget, retain, near, names, **options).undo()
    return _n(world.few), f"{world.options.strangers} strangers for each person, undo"


def train(method: str) -> Callable[[World], tuple[int, str]]:
    def step(world: World):
        times: list[float] = []
        options = {"batch_size": world.options.train_batch, "lora_rank": 16, "every": 1}
        options |= {"lr": 1e-6, "progress": False, "log": lambda row: times.append(_now())}
        started = _now()
        unlearn_by_training(method, *world.given, **world.few, steps=3, **options)
        ended = _now()
        took = f"a step {times[-1] - times[-2]:.2f} s, before {times[0] - started:.1f} s, after "
        sets = 4 if method == "gd" else 2
        said = f"{took}{ended - times[-1]:.1f} s, {world.options.train_batch} questions x {sets}"
        return 3 * sets * world.options.train_batch, said

    return step


def _n(sets: dict[str, dict[str, list[Question]]]) -> int:
    return sum(len(asked) for of in sets.values() for asked in of.values())


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


# name -> what it does, and the seconds that it may take with LLaVA-1.5-7B on an H100
STEPS: dict[str, tuple[Callable[[World], tuple[int, str]], float]] = {
    "warm-up": (warm_up, 15),
    "statistics, image + text": (statistics("multimodal"), 8),
    "statistics, text alone": (statistics("text"), 3),
    "score as printed, four passes": (paper_score, 20),
    "released score": (released_score, 3),
    "attribution, image + text": (attribution("multimodal"), 8),
    "attribution, text alone": (attribution("text"), 4),
    "coverage": (choose_by_coverage, 40),
    "prune, undo, save_selection": (prune_undo_save, 5),
    "answers, image + text": (generation("multimodal"), 20),
    "answers, text alone": (generation("text"), 10),
    "known": (whether_known, 6),
    "second moments of a few layers": (moments, 6),
    "rewrite, one round": (rewrite_a_round(MEMORY), 90),
    "rewrite, all layers at once": (rewrite_a_round(36e9), 40),
    "erase": (erase_people, 60),
    "gd, 3 steps with adapters": (train("gd"), 25),
    "npo, 3 steps with adapters": (train("npo"), 25),
    "released code as run": (released_rows, 15),
}  # fmt: skip


# ---------------------------------------------------------------------------------- measuring them


def measured(step: Callable[[], tuple[int, str]], device: torch.device) -> dict:
    """Run a step: its time, its peak memory, and how it ended."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    row = {"outcome": "done", "questions": 0, "note": ""}
    row["held_gb"] = torch.cuda.memory_allocated(device) / 1e9 if on_gpu else None
    started = _now()
    try:
        row["questions"], row["note"] = step()
    except torch.OutOfMemoryError as error:
        row |= {"outcome": "out of memory", "note": str(error).split(". ")[0]}
    except Exception as error:  # one step that fails is a result, too; the others go on
        row |= {"outcome": "error", "note": f"{type(error).__name__}: {error}"}
    row["seconds"] = _now() - started
    if row["outcome"] != "done":
        gc.collect()  # what the traceback held
    if row["questions"] and row["outcome"] == "done":
        row["per_second"] = row["questions"] / row["seconds"]
    row["peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else None
    row["reserved_gb"] = torch.cuda.max_memory_reserved(device) / 1e9 if on_gpu else None
    return row


def append(path: Path, row: dict) -> None:
    """Add a row to a CSV, which is whole at any time."""
    frame = pd.DataFrame([row])
    if path.exists():
        frame = pd.concat([pd.read_csv(path), frame], ignore_index=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    frame.to_csv(part, index=False, float_format="%.4g")
    os.replace(part, path)


def limit_memory(gigabytes: float, device: torch.device) -> None:
    """As on a card of so many GB, 10^9 bytes; a 24 GB card has 25.8, the rest is the driver's."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / total), device)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llava-1.5-7b", choices=MODELS)
    parser.add_argument("--out", required=True, type=Path, help="a CSV; rows are added")
    parser.add_argument("--dtype", choices=DTYPES, help="bfloat16 on a GPU, else float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--card", type=float, help="no more memory than a card of so many GB has")
    parser.add_argument("--minutes", type=float, default=6, help="what would end later is left out")
    parser.add_argument("--steps", nargs="+", help="only those that contain one of these words")
    parser.add_argument("--questions", type=int, default=64, help="of each set and modality")
    parser.add_argument("--few", type=int, default=16, help="the same, to edit and to train")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--backward-batch", type=int, default=4, help="attribution and rewriting")
    parser.add_argument("--train-batch", type=int, default=2)
    parser.add_argument("--strangers", type=int, default=2, help="for each person, in erase")
    parser.add_argument("--new-tokens", type=int, default=50, help="of an answer")
    parser.add_argument("--side", type=int, default=SIDE, help="of a picture, in pixels")
    options = parser.parse_args(arguments)
    began = _now()
    print_what_can_be()
    device = torch.device(options.device)
    dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
        if options.card:
            limit_memory(options.card, device)
    about = {
        "model": options.model,
        "dtype": dtype,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "card_gb": options.card,
        "batch": options.batch,
        "backward_batch": options.backward_batch,
        "train_batch": options.train_batch,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    failed = False

    def note(name: str, row: dict) -> None:
        nonlocal failed
        failed |= row["outcome"] == "error"
        append(options.out, {"step": name} | row | about)
        peak = "" if row.get("peak_gb") is None else f"{row['peak_gb']:6.1f} GB"
        said = "" if row["outcome"] == "done" else f"{row['outcome']}: "
        print(f"{name:<34} {row.get('seconds', 0):7.2f} s {peak}  {said}{row['note']}", flush=True)

    config, processor = config_and_processor(options.model)
    made = {}

    def load() -> tuple[int, str]:
        made["model"] = random_model(config, DTYPES[dtype], device)
        fit_processor(processor, made["model"], options.model)
        n = sum(parameter.numel() for parameter in made["model"].parameters())
        return 0, f"{n / 1e9:.2f} billion random weights, made on the device"

    note("load", measured(load, device))
    if "model" not in made:
        return 1
    sets = all_sets(options)
    few = {name: {m: of[m][: options.few] for m in of} for name, of in sets.items()}
    world = World(made["model"], processor, sets, few, options)
    scale = sum(p.numel() for p in world.model.parameters()) / 7e9
    for name, (step, expected) in STEPS.items():
        if options.steps and not any(word in name for word in (*options.steps, "warm-up")):
            continue
        if _now() - began + expected * min(1.0, scale) > 60 * options.minutes:
            left = {"outcome": "left out", "note": f"no time within {options.minutes:g} minutes"}
            note(name, {"questions": 0} | left)
            continue
        note(name, measured(lambda step=step: step(world), device))
    return int(failed)


def all_sets(options: argparse.Namespace) -> dict[str, dict[str, list[Question]]]:
    """``"forget"``, ``"retain"`` -> modality -> as many questions as wanted."""
    folder = data_dir() / "mllmu_mini"
    sets = {}
    for name, config in (("forget", "forget_10"), ("retain", "retain_90")):
        people = pyarrow.parquet.read_table(folder / config, columns=["ID"])["ID"].to_pylist()
        sets[name] = questions_of(people, options.questions, options.side)
    return sets


if __name__ == "__main__":
    sys.exit(main())
