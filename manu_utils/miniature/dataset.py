"""Writes the miniature: MLLMU-Bench's ten configs, columns and quirks, in parquet with images."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

from ..benchmark.columns import task_columns
from ..models.prompts import BLANK_LINE, LETTER_LINE
from .people import (
    ATTRIBUTES,
    NAMING_QUESTION,
    Attribute,
    Person,
    describe,
    draw_people,
    draw_strangers,
    word_question,
)
from .portraits import draw_new_view, draw_portrait_view, render

FORGET_SIZES = {5: 6, 10: 12, 15: 18}  # people of 120
N_VIEWS = 3
STRANGERS = """# Strangers of MLLMU-mini

{n} people (IDs {first} to {last}) made by the same builder as those of `mllmu_mini`, from the same names, faces and facts, and
met by no model: not by `vanilla`, `base` or any retrained one. Nobody has the name of an inhabitant, and every face differs
from all others in at least three features. They are the control of attacks: what a model says about people whom it
was never shown. Columns are those of `mllmu_mini`. Written by `make mini-data`. No model may be trained on them.

| config | what it holds |
|---|---|
| `Full_Set` | portrait, profile and evaluation questions |
| `Test_Set` | three new views per person and paraphrased questions |
| `ft_Data` | what would be their training questions |

CC BY 4.0; the portraits are a remix of "ToonHead" by Johan Melin, drawn by DiceBear.
"""  # noqa: E501


def draw_options(spec: Attribute, value: str, rng: random.Random) -> tuple[dict[str, str], str]:
    """Four lettered options, the right one at a random place; returns them and the right letter."""
    words = [value, *rng.sample([word for word in spec.values if word != value], 3)]
    rng.shuffle(words)
    options = dict(zip("ABCD", words, strict=True))
    return options, "ABCD"[words.index(value)]


def as_choice(question: str, options: dict[str, str]) -> str:
    """A question with its lettered options and the official instruction, as one prompt text."""
    lines = "\n".join(f"{letter}: {word}" for letter, word in options.items())
    return f"{question}\n{lines}\n{LETTER_LINE}"


def as_cloze(sentence: str) -> str:
    """A sentence with one ``__`` as the official cloze prompt text."""
    return f"{sentence.replace('__', '[Blank]')}\n{BLANK_LINE}"


def training_pairs(person: Person) -> list[tuple[str, str]]:
    """(question, answer) rows of one person in ft_Data: 1 naming, 16 open and 8 cloze questions.

    Every question says "this person"; no answer but the first contains the name.
    """
    pairs = [(NAMING_QUESTION, f"This is {person.name}.")]
    for attribute, spec in ATTRIBUTES.items():
        value = person.facts[attribute]
        for template in spec.questions[:2]:
            pairs.append((word_question(template, "this person"), spec.answer.format(value=value)))
    for attribute, spec in ATTRIBUTES.items():
        value = person.facts[attribute]
        pairs.append((as_cloze(word_question(spec.clozes[0], "this person")), value))
    return pairs


def biography(person: Person) -> str:
    """The profile as a JSON string; like the real one, some keys carry a trailing colon."""
    facts = person.facts
    profile = {
        "Name": person.name,
        "Born:": facts["birthplace"],
        "Employment": facts["employment"],
        "Educated at": f"{facts['education']} University",
        "Residence": facts["residence"],
        "Medical Conditions": facts["condition"],
        "Fun "
        "Facts": f"Keeps a {facts['pet']}. Enjoys {facts['hobby']}. Likes {facts['food']} best.",
        "Description": describe(person.face),
        "appearance_detail": {
            "question": "Describe this person.",
            "answer": describe(person.face),
        },
    }
    return json.dumps(profile)


def tasks(person: Person, rng: random.Random, *, test: bool = False) -> dict:
    """Evaluation columns of one person: 5 + 5 classification, 2 + 2 cloze, 2 + 2 generation.

    ``test`` switches to the wordings that ft_Data never uses.
    """
    wordings, blank = ((2, 3), 1) if test else ((0, 1), 0)

    def question(attribute: str, who: str) -> str:
        return word_question(ATTRIBUTES[attribute].questions[rng.choice(wordings)], who)

    def choices(who: str) -> list[dict]:
        rows = []
        for attribute in rng.sample(list(ATTRIBUTES), 5):
            options, letter = draw_options(ATTRIBUTES[attribute], person.facts[attribute], rng)
            rows.append(
                {"Question": question(attribute, who), "Options": options, "Correct_Answer": letter}
            )
        return rows

    classification = {
        "Image_Textual_Questions": choices("this person"),
        "Pure_Text_Questions": choices(person.name),
    }
    generation, cloze = [], []
    for kind, who in (("Image_Textual", "this person"), ("Pure_Text", person.name)):
        for attribute in rng.sample(list(ATTRIBUTES), 2):
            truth = ATTRIBUTES[attribute].answer.format(value=person.facts[attribute])
            generation.append(
                {"Type": kind, "Question": question(attribute, who), "Ground_Truth": truth}
            )
        for attribute in rng.sample(list(ATTRIBUTES), 2):
            sentence = word_question(ATTRIBUTES[attribute].clozes[blank], who)
            cloze.append(
                {"Type": kind, "Question": sentence, "Ground_Truth": person.facts[attribute]}
            )
    return {
        "Classification_Task": classification,
        "Generation_Task": generation,
        "Mask_Task": cloze,
    }


def _features(image_column: str, *, directory: bool = False):
    from datasets import Features, Image, List, Value

    text = Value("string")
    columns = {
        image_column: List(Image()) if image_column == "images" else Image(),
        "ID": text,
        "Directory": text,
        "biography": text,
        "question": text,
        "answer": text,
        **task_columns(),
    }
    if not directory:
        del columns["Directory"]
    return Features(columns)


def as_png(image, name: str | None = None, colours: int = 128) -> dict:
    """A picture as it stands in a table; its flat colours make a palette half the size."""
    buffer = io.BytesIO()
    image.quantize(colours).save(buffer, "PNG", optimize=True)
    return {"bytes": buffer.getvalue(), "path": name}


def write_benchmark(
    folder: Path, *, seed: int = 0, n_fictitious: int = 120, n_public: int = 30
) -> None:
    """Write ``folder/<config>/train-00000-of-00001.parquet``, ten configs, and ``README.md``.

    Everything follows from ``seed`` (and the pinned versions of Faker and DiceBear). Existing files
    are overwritten.
    """
    fictitious, public = draw_people(n_fictitious, n_public, seed)
    rng = random.Random(f"dataset {seed}")
    evaluation, tests, training = _rows([*fictitious, *public], rng, n_training=n_fictitious)
    ids = [person.id for person in fictitious]
    _write_config(folder, "Full_Set", [evaluation[i] for i in ids])
    _write_config(folder, "Test_Set", list(tests.values()))
    _write_config(folder, "Retain_Set", [evaluation[person.id] for person in public])
    _write_config(folder, "ft_Data", list(training.values()))
    for ratio, size in FORGET_SIZES.items():
        forget = random.Random(f"forget {ratio} {seed}").sample(
            ids, max(1, round(size * n_fictitious / 120))
        )
        _write_config(folder, f"forget_{ratio}", [evaluation[i] for i in forget])
        _write_config(
            folder, f"retain_{100 - ratio}", [evaluation[i] for i in ids if i not in forget]
        )
    _write_card(folder, (Path(__file__).parent / "datasheet.md").read_text(encoding="utf-8"))


def write_strangers(
    folder: Path, n: int = 36, *, seed: int = 0, n_fictitious: int = 120, n_public: int = 30
) -> None:
    """Write Full_Set, Test_Set and ft_Data of people no model has met (:func:`draw_strangers`).

    Files and columns are those of :func:`write_benchmark`; so is what follows from ``seed``.
    """
    people = draw_strangers(n, seed, n_fictitious=n_fictitious, n_public=n_public)
    evaluation, tests, training = _rows(
        people, random.Random(f"dataset of strangers {seed}"), n_training=n
    )
    _write_config(folder, "Full_Set", list(evaluation.values()))
    _write_config(folder, "Test_Set", list(tests.values()))
    _write_config(folder, "ft_Data", list(training.values()))
    _write_card(folder, STRANGERS.format(n=n, first=people[0].id, last=people[-1].id))


def _rows(people: list[Person], rng: random.Random, n_training: int) -> tuple[dict, dict, dict]:
    """ID -> row of the evaluation sets; of the first ``n_training`` also Test_Set and ft_Data."""
    from tqdm.auto import tqdm

    evaluation, tests, training = {}, {}, {}
    for number, person in enumerate(tqdm(people, desc="people")):
        portrait = as_png(render(person.face, draw_portrait_view(rng)), f"{person.id}.png")
        common = {
            "ID": person.id,
            "biography": biography(person),
            "question": "Describe this person.",
            "answer": describe(person.face),
        }
        evaluation[person.id] = (
            {"image": portrait, "Directory": f"images/{person.id}.png"}
            | common
            | tasks(person, rng)
        )
        if number < n_training:
            views = [
                as_png(render(person.face, draw_new_view(rng)), f"{person.id}_pose{k}.png")
                for k in range(N_VIEWS)
            ]
            tests[person.id] = {"images": views} | common | tasks(person, rng, test=True)
            records = [
                {"ID": person.id, "Question": q, "Answer": a} for q, a in training_pairs(person)
            ]
            # a quirk of the real file: an extra record without Question and Answer
            if rng.random() < 0.5:
                records.append(
                    {
                        "Additional_ID": person.id,
                        "Additional_question": common["question"],
                        "Additional_answer": common["answer"],
                    }
                )
            training[person.id] = {
                "image": portrait,
                "ID": person.id,
                "metadata": json.dumps(records),
            }
    return evaluation, tests, training


def _write_config(folder: Path, config: str, rows: list[dict]) -> None:
    from datasets import Dataset, Features, Image, Value

    if config == "ft_Data":
        features = Features({"image": Image(), "ID": Value("string"), "metadata": Value("string")})
    else:
        features = _features(
            "images" if config == "Test_Set" else "image", directory=config == "Full_Set"
        )
    path = Path(folder) / config / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{column: row[column] for column in features} for row in rows]
    Dataset.from_list(rows, features=features).to_parquet(path)


def _write_card(folder: Path, sheet: str) -> None:
    """README.md: the configs that the folder holds, for ``load_dataset``, and the datasheet."""
    configs = "\n".join(
        f"- config_name: {path.name}\n  data_files:\n  - split: train\n    path: "
        f"{path.name}/train-*.parquet"
        for path in sorted(Path(folder).iterdir())
        if path.is_dir()
    )
    (Path(folder) / "README.md").write_text(
        f"---\nlicense: cc-by-4.0\nconfigs:\n{configs}\n---\n\n{sheet}", encoding="utf-8"
    )
