"""Every code cell of a notebook at another SCALE, offline: a stub of the Hub and a random SmolVLM, in float16 as on a T4.

    python tests/colab_walk.py 00 12                       # a few layers of the true width
    python tests/colab_walk.py 12 --layers 12 30           # the true shape: 256 M parameters
    python tests/colab_walk.py 12 --width 32               # seconds, as in the tests
    python tests/colab_walk.py 12 00 01 03 --layers 12 30 --gigabytes 15    # on a GPU, with the memory of a T4

After each cell come its marks, its seconds and, on a GPU, the most memory that it took. Jupyter is not needed.

What is asked of a random model is known of no person, so a check of the notebook may say so: that is written down, and the
walk goes on. Any other error is one that a reader would meet.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "0" * 40


def smolvlm(layers: tuple[int, int], width: int | None):
    """The config of SmolVLM-256M, and a processor.

    Args:
        layers: of the vision tower and of the language model; (12, 30) is true.
        width: of everything, in place of the true sizes.
    """
    import transformers
    from tiny_models import _idefics_template, build_tokenizer

    special = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = build_tokenizer(
        "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *special
    )
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    vocabulary, image, heads = (49_280, 512, (12, 9, 3)) if width is None else (len(tokenizer), 64, (2, 2, 2))
    vision = {"hidden_size": 768, "intermediate_size": 3_072} if width is None else _narrow(width)
    text = {"hidden_size": 576, "intermediate_size": 1_536} if width is None else _narrow(width)
    vision |= {"num_hidden_layers": layers[0], "num_attention_heads": heads[0], "image_size": image, "patch_size": 16}
    text |= {"num_hidden_layers": layers[1], "num_attention_heads": heads[1], "num_key_value_heads": heads[2]}
    text |= {"vocab_size": vocabulary, "max_position_embeddings": 8_192, "model_type": "llama", **ids}
    images = transformers.Idefics3ImageProcessorPil(
        size={"longest_edge": 4 * image}, max_image_size={"longest_edge": image}, do_image_splitting=True
    )
    scale = 4 if width is None else 2
    processor = transformers.Idefics3Processor(
        image_processor=images, tokenizer=tokenizer, image_seq_len=(image // 16 // scale) ** 2,
        chat_template=_idefics_template(),
    )  # fmt: skip
    config = transformers.Idefics3Config(
        vision_config=vision, text_config=text, scale_factor=scale, image_token_id=tokenizer.convert_tokens_to_ids("<image>")
    )
    return config, processor


def random_model(config, tokenizer):
    """In the dtype of the published checkpoint."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.Idefics3ForConditionalGeneration(config)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_utterance>")]
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ends, tokenizer.pad_token_id
    return model.bfloat16()


def _narrow(width: int) -> dict:
    return {"hidden_size": width, "intermediate_size": 2 * width}


def small_benchmark(folder: Path, people: int) -> None:
    """The miniature in the layout of the Hub, with so many people to keep, and so many to forget at each ratio."""
    import shutil

    import pyarrow.compute
    import pyarrow.parquet

    source = ROOT / "data" / "mllmu_mini"
    read = {path.parent.name: pyarrow.parquet.read_table(path) for path in source.glob("*/*.parquet")}
    ids = {config: table["ID"].to_pylist() for config, table in read.items()}
    always_kept = [one for one in ids["retain_85"] if one in ids["retain_90"] and one in ids["retain_95"]]
    pool = {*always_kept[:people], *ids["Retain_Set"][:4]}
    pool |= {one for ratio in (5, 10, 15) for one in ids[f"forget_{ratio}"][:people]}
    for config, table in read.items():
        (folder / config).mkdir(parents=True)
        kept = table.filter(pyarrow.compute.is_in(table["ID"], pyarrow.array(sorted(pool))))
        pyarrow.parquet.write_table(kept, folder / config / "train-00000-of-00001.parquet")
    shutil.copy(source / "README.md", folder)


def fill_cache(home: Path, name: str, save) -> None:
    """A snapshot as the Hub's cache holds it; ``save`` writes its files."""
    place = home / "hub" / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    save(place / "snapshots" / COMMIT)


@contextlib.contextmanager
def stub(
    home: Path, *, layers=(2, 2), width: int | None = None, people: int = 3, new_tokens: int = 50, epochs: int = 0,
    scale: str = "colab",
):  # fmt: skip
    """Inside, the Hub has the model and the benchmark of a scale, and models are loaded and trained as on a T4.

    Args:
        new_tokens: of an answer; a random model seldom ends one, so that fewer take less time.
        epochs: in place of those of the scale.
    """
    import datasets
    import huggingface_hub.constants
    import torch

    from manu_utils.evaluation import official, robust, tables
    from manu_utils.models import precision
    from manu_utils.teaching import scales

    wanted = scales.SCALES[scale]
    config, processor = smolvlm(layers, width)
    model = random_model(config, processor.tokenizer)

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    fill_cache(home, wanted.base, save)
    small_benchmark(home / "benchmark", people)
    load, names = datasets.load_dataset, datasets.get_dataset_config_names

    def load_dataset(path, name=None, **options):
        if path != wanted.benchmark:
            return load(path, name, **options)
        files = {"train": str(home / "benchmark" / name / "*.parquet")}
        return load("parquet", data_files=files, cache_dir=str(home / "datasets"), **options)

    def config_names(path, **options):
        if path != wanted.benchmark:
            return names(path, **options)
        return sorted(folder.name for folder in (home / "benchmark").iterdir() if folder.is_dir())

    def as_on_a_t4(device):
        return torch.float16

    changed = {"epochs": epochs} if epochs else {}
    if not wanted.processor:  # a local folder, made by notebook 12
        changed["vanilla"] = str(home / "vanilla")
    patched = replace(wanted, **changed)
    with contextlib.ExitStack() as stack:
        for place, name, value in (
            (datasets, "load_dataset", load_dataset), (datasets, "get_dataset_config_names", config_names),
            (precision, "pick_dtype", as_on_a_t4),
            (huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub")),
            (huggingface_hub.constants, "HF_HUB_OFFLINE", True),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(place, name, value))
        for module in (official, robust, tables):
            stack.enter_context(mock.patch.object(module, "MAX_NEW_TOKENS", new_tokens))
        stack.enter_context(mock.patch.dict(scales.SCALES, {scale: patched}))
        yield patched


def cells_of(number: str) -> list[tuple[str, str]]:
    """(id, source) of the code cells of a notebook."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["id"], "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]


class OutOfTime(BaseException):
    """The minutes are over; no ``except Exception`` of a notebook stops it."""


@contextlib.contextmanager
def minutes(number: float | None):
    """Inside, :class:`OutOfTime` is raised when so many minutes are over."""

    def stop(*_):
        raise OutOfTime

    if number is None:
        yield
        return
    if not hasattr(signal, "SIGALRM"):
        raise SystemExit("--minutes needs a signal that Windows lacks; leave it out, or walk under WSL.")
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * number)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def gpu_of(gigabytes: float | None):
    """Inside, the GPU has no more memory than that, and says so."""
    import torch

    if gigabytes is None:
        yield
        return
    total = torch.cuda.mem_get_info()[1]
    room = min(int(1e9 * gigabytes), total)

    def mem_get_info(device=None):
        return room - torch.cuda.memory_reserved(device), room

    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        with mock.patch.object(torch.cuda, "mem_get_info", mem_get_info):
            yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


class Meter:
    """Seconds, by the clock on a GPU and else of this process, and gigabytes of the GPU."""

    def __init__(self):
        import torch

        self.gpu = torch.cuda if torch.cuda.is_available() else None
        self.clock = time.perf_counter if self.gpu else time.process_time
        if self.gpu:
            self.gpu.reset_peak_memory_stats()
        self.started = self.clock()

    def __str__(self):
        if not self.gpu:
            return f"{self.clock() - self.started:6.1f} s"
        self.gpu.synchronize()
        peak = self.gpu.max_memory_allocated(), self.gpu.max_memory_reserved()
        return f"{self.clock() - self.started:6.1f} s {peak[0] / 1e9:6.2f} GB, held {peak[1] / 1e9:6.2f} GB"


def run_cell(source: str, name: str, space: dict) -> None:
    """What Jupyter does: run the statements, and write the value of the last one down."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), space)
    if last is not None:
        display(eval(compile(ast.Expression(last.value), name, "eval"), space))


def display(*values) -> None:
    for value in values:
        if value is not None:
            (getattr(value, "_repr_html_", None) or value.__repr__)()


def walk(number: str, scale: str = "colab", say=print) -> list[tuple[str, str, str]]:
    """Run the code cells of a notebook in order.

    Returns:
        (cell, kind, message) of each that did not run to its end; kind is ``"check"`` where a claim about what the model
        knows does not hold, else ``"error"``.
    """
    import matplotlib
    import matplotlib.pyplot as plt

    from manu_utils.teaching import checks

    matplotlib.use("agg")
    space: dict = {"__name__": "__main__", "display": display}
    failed: list[tuple[str, str, str]] = []

    def noted(holds, claim, hint=""):
        if not holds:
            failed.append((cell, "check", claim))

    for cell, source in cells_of(number):
        if source.startswith("SCALE ="):
            source = source.replace('SCALE = "tiny"', f"SCALE = {scale!r}", 1)
        meter, before = Meter(), len(failed)
        try:
            with mock.patch.object(checks, "check", noted), mock.patch("manu_utils.teaching.check", noted):
                run_cell(source, f"{number}:{cell}", space)
        except AssertionError as error:
            failed.append((cell, "check", str(error)))
        except (Exception, OutOfTime) as error:
            failed.append((cell, "error", f"{type(error).__name__}: {error}"))
            say("".join(traceback.format_exc().splitlines(keepends=True)[-12:]))
        plt.close("all")
        marks = "".join({"check": "✗", "error": "E"}[kind] for _, kind, _ in failed[before:]) or "."
        say(f"{number} {cell:<28} {marks} {meter}")
        if failed and "OutOfTime" in failed[-1][2]:
            break
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="+", help="numbers, such as 00 12; 12 makes the model that others load")
    parser.add_argument("--layers", nargs=2, type=int, default=(2, 2), help="of the vision tower and the language model")
    parser.add_argument("--width", type=int, help="of everything, in place of the true sizes")
    parser.add_argument("--people", type=int, default=3, help="to keep, and to forget at each ratio")
    parser.add_argument("--new-tokens", type=int, default=50, help="of an answer")
    parser.add_argument("--epochs", type=int, default=0, help="of training in notebook 12, in place of the scale's")
    parser.add_argument("--gigabytes", type=float, help="that the GPU shall have: 15 as a T4")
    parser.add_argument("--minutes", type=float, help="stop after so many, and say in which cell")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    failed = {}
    limits = minutes(arguments.minutes), gpu_of(arguments.gigabytes)
    with limits[0], limits[1], tempfile.TemporaryDirectory() as folder:
        os.environ["MANU_BUILD"] = f"{folder}/build"
        home = Path(folder)
        options = {"layers": tuple(arguments.layers), "width": arguments.width, "people": arguments.people}
        options |= {"new_tokens": arguments.new_tokens, "epochs": arguments.epochs}
        with stub(home, **options) as scale:
            if arguments.notebooks[0] != "12":  # the vanilla model that notebook 12 would have made
                from manu_utils.models import load_model, save_model

                save_model(*load_model(scale.base), scale.vanilla)
            for number in arguments.notebooks:
                failed[number] = walk(number)
                if any("OutOfTime" in message for *_, message in failed[number]):
                    break
    for number, found in failed.items():
        for cell, kind, message in found:
            print(f"{number} {cell}: {kind}: {message}")
    sys.exit(any(kind == "error" for found in failed.values() for _, kind, _ in found))


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    main()
