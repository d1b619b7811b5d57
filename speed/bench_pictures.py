"""Memory of large pictures: the peak must not grow with the number of people.

Pictures stay in the file until asked for.

A made-up benchmark in the layout of MLLMU-Bench, with pictures of 1,024 pixels a side and about
half a megabyte, is written for two numbers of people. For each, a process of its own evaluates a
small LLaVA with random weights on all four sets at forget 5 %, and says its peak memory, which
holds the model, and Python with its packages; another goes through the batches of all training
questions. The first reading of new files, when ``datasets`` rewrites them into its cache, is a
third one: it takes a few of their row groups, whatever is done with them later. Counted are the
different pictures, and how often one was decoded: once for each batch that asks about it, which in
an evaluation is once for each pass over a set (four of them: three tasks, and the likeliest
options).
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image

from manu_utils.processes import own_peak_mb
from report import report

SIDE, VIEWS, DIFFERENT = 1024, 3, 24
MAX_GROWTH, MAX_MB = 1.10, 1500


def picture_files():
    """Noisy JPEG files of about half a megabyte."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(DIFFERENT):
        coarse = PIL.Image.fromarray(
            rng.integers(0, 256, (SIDE // 16, SIDE // 16, 3), dtype=np.uint8)
        ).resize((SIDE, SIDE))
        fine = np.asarray(coarse, dtype=np.float32) + rng.normal(0, 14, (SIDE, SIDE, 1))
        file = io.BytesIO()
        PIL.Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
        files.append(file.getvalue())
    return files


def write_benchmark(folder, people):
    """All configs that ``load_benchmark(folder, 5)`` reads; a third as many celebrities."""
    from datasets import Dataset, Features, Image, List, Value

    text = Value("string")
    choices = List(
        {"Question": text, "Options": {letter: text for letter in "ABCD"}, "Correct_Answer": text}
    )
    open_records = List({"Type": text, "Question": text, "Ground_Truth": text})
    tasks = {
        "Classification_Task": {"Image_Textual_Questions": choices, "Pure_Text_Questions": choices},
        "Generation_Task": open_records,
        "Mask_Task": open_records,
    }
    files = picture_files()

    def picture(number):  # what follows the end of a JPEG is not read, but makes it another file
        return {"bytes": files[number % DIFFERENT] + number.to_bytes(4, "big"), "path": None}

    def asked(name):
        def choice(who):
            options = dict(zip("ABCD", ("nurse", "baker", "pilot", "clerk"), strict=True))
            return [
                {
                    "Question": f"What is the job of {who}?",
                    "Options": options,
                    "Correct_Answer": "B",
                }
            ] * 5

        def records(question):
            who = {"Image_Textual": "this person", "Pure_Text": name}
            return [
                {"Type": t, "Question": question.format(w), "Ground_Truth": "baker"}
                for t, w in who.items()
                for _ in "ab"
            ]

        return {
            "Classification_Task": {
                "Image_Textual_Questions": choice("this person"),
                "Pure_Text_Questions": choice(name),
            },
            "Generation_Task": records("What is the job of {}?"),
            "Mask_Task": records("{} works as a __."),
        }

    def told(person_id, name):
        pairs = [("Who is this person?", f"This is {name}.")]
        pairs += [("What is this person's job?", "This person works as a baker.")] * 15
        return json.dumps([{"ID": person_id, "Question": q, "Answer": a} for q, a in pairs])

    def write(config, rows, columns):
        (folder / config).mkdir(parents=True)
        rows = Dataset.from_generator(
            rows, features=Features(columns), cache_dir=str(folder / "cache"), fingerprint=config
        )
        rows.to_parquet(str(folder / config / "train-00000-of-00001.parquet"))
        shutil.rmtree(folder / "cache")

    ids = [f"{n + 1:03}" for n in range(people)]
    names = {person_id: f"Anna Berg{chr(97 + int(person_id) % 26)}" for person_id in ids}
    n_forget = people // 20
    profile = {"image": Image(), "ID": text} | tasks
    parts = {
        "forget_5": ids[:n_forget],
        "retain_95": ids[n_forget:],
        "Retain_Set": [f"9{i}" for i in ids[: people * 3 // 10]],
    }
    for config, part in parts.items():
        write(
            config,
            lambda part=part: (
                {"image": picture(int(i)), "ID": i} | asked(f"Anna Berg{i}") for i in part
            ),
            profile,
        )
    views = lambda i: [picture(10_000 + VIEWS * int(i) + k) for k in range(VIEWS)]  # noqa: E731
    write("Test_Set", lambda: ({"images": views(i), "ID": i} | asked(names[i]) for i in ids),
          {"images": List(Image()), "ID": text} | tasks)  # fmt: skip
    write("ft_Data",
          lambda: ({"image": picture(int(i)), "ID": i, "metadata": told(i, names[i])} for i in ids),
          {"image": Image(), "ID": text, "metadata": text})  # fmt: skip


def child(what, folder):
    """Print peak memory, different pictures and pictures decoded of one process."""
    from manu_utils.benchmark import pictures
    from manu_utils.benchmark.loading import load_benchmark
    from manu_utils.benchmark.questions import evaluation_questions
    from manu_utils.benchmark.records import TASKS
    from manu_utils.evaluation.tables import evaluate
    from manu_utils.miniature.model import build_model, build_processor, train_tokenizer
    from manu_utils.miniature.people import draw_people
    from manu_utils.models.encoding import batches

    fictitious, public = draw_people(seed=0)
    tokenizer = train_tokenizer([*fictitious, *public])
    model, processor = (
        build_model(tokenizer, seed=0, hidden=32, intermediate=64, layers=2).eval(),
        build_processor(tokenizer),
    )
    before, decoded, plain = own_peak_mb(), 0, pictures.open_rgb

    def counting(data):
        nonlocal decoded
        decoded += 1
        return plain(data)

    pictures.open_rgb = counting
    benchmark = load_benchmark(folder, 5)
    loaded, asked = own_peak_mb(), []
    if what == "load":
        peak = loaded
    elif what == "evaluate":
        evaluate(model, processor, benchmark.sets(), progress=False)
        peak = own_peak_mb()
        asked = [q for dataset in benchmark.sets().values() for task in TASKS
                 for q in evaluation_questions(dataset, task, "multimodal")]  # fmt: skip
    else:
        asked = benchmark.training_questions("all", "multimodal")
        for _ in batches(asked, processor, 32, with_answer=True):
            pass
        peak = own_peak_mb()
    different = len({question.image.key for question in asked})
    print(
        json.dumps(
            {
                "before": before,
                "loaded": loaded,
                "peak": peak,
                "different": different,
                "decoded": decoded,
            }
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, nargs=2, default=(100, 500))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(*arguments.child)
    if sys.platform == "win32":
        print("peak memory is not measured on Windows")
        return 0
    rows, checks, peaks = [], {}, {}
    for people in arguments.people:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "benchmark"
            write_benchmark(folder, people)
            for what in ("load", "evaluate", "training"):
                command = [sys.executable, __file__, "--child", what, str(folder)]
                environment = os.environ | {"HF_DATASETS_CACHE": str(Path(place) / "cache")}
                run = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True, env=environment
                )
                found = json.loads(run.stdout.splitlines()[-1])
                print(f"{people} people, {what}: {found}", flush=True)
                peaks[what, people] = found["peak"]
                label = f"{what}, {people} people"
                if what == "load":
                    rows.append((f"{label}, for the first time: peak memory", found["peak"], "MB"))
                    continue
                rows += [
                    (f"{label}: peak memory", found["peak"], "MB"),
                    (f"{label}: of which before the benchmark is loaded", found["before"], "MB"),
                    (f"{label}: and after", found["loaded"], "MB"),
                    (f"{label}: different pictures", found["different"], ""),
                    (f"{label}: pictures decoded", found["decoded"], ""),
                ]
    few, many = arguments.people
    for what in ("evaluate", "training"):
        growth = peaks[what, many] / peaks[what, few]
        rows.append((f"{what}: peak of {many} people / of {few}", growth, "x"))
        checks[f"{what}: {many} people take at most {MAX_GROWTH:g} x the memory of {few}"] = (
            growth <= MAX_GROWTH
        )
        checks[f"{what}: below {MAX_MB} MB"] = peaks[what, many] < MAX_MB
    return report("pictures", rows, checks)


if __name__ == "__main__":
    sys.exit(main())
