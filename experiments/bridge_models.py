"""The models behind bridge_multimodal.py: a pretrained language model with eyes, and what it is
taught.

SmolLM2-135M-Instruct becomes the language model of a LLaVA with the miniature's vision tower.

1. *Align.* The tower stays as it is. The projector is fitted so that the patches of random faces
   land on the embeddings of the words of their features, in turn; the language model is not asked.
2. *Teach.* All layers of the language model are fine-tuned, embeddings and eyes are not: three
   facts a person, by face and by name in two wordings each, with a rehearsal of what the source
   says on general questions, which are not those that are asked. The retrained model never meets
   the people to forget.

Every model is made once and kept in build/bridge; on the GPU where there is one, else on the CPU,
in float32 on either.
"""

import itertools
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import bridge
from manu_utils.auditing import names_of
from manu_utils.benchmark.questions import evaluation_questions
from manu_utils.benchmark.records import MODALITIES, Question
from manu_utils.miniature.people import ATTRIBUTES, FACE_FEATURES, draw_face, word_question
from manu_utils.miniature.portraits import draw_new_view, render
from manu_utils.models.asking import answer_logits, generate_answers, known
from manu_utils.models.loading import load_model
from manu_utils.models.passes import gradients_of
from manu_utils.models.prefix_tree import shared_batches
from manu_utils.models.saving import save_model
from manu_utils.models.training import optimise, sample_forever
from sweep import BUILD, QUIET, fingerprint, say

PLACE = BUILD / "bridge"
GENERAL = Path(__file__).with_name("general_questions.json")
RATIO = 10
N_FORGET, N_KEPT, N_STAND_INS = 6, 6, 3  # as many people beside the stand-ins
N_UNMET = 6  # people whom neither model is taught
FACTS = ("employment", "residence", "pet")  # of eight
N_FACES, N_HELD_OUT = 2000, 24  # random faces; of them asked, never trained on
FIT = {"steps": 1500, "lr": 2e-3, "warmup": 20}  # of the projector to the words of what is seen
PEOPLE_AT_ONCE, REHEARSED_AT_ONCE = 2, 2  # of a step; people in each modality
LR, EPOCHS, MORE, MOST = 3e-4, 8, 3, 20  # of teaching; a visit of everybody is an epoch
ENOUGH = 0.95  # of both modalities, else more epochs
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
    return load_model(place, dtype=torch.float32)


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
        pixels = pixels.to(model.device)
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
        found[feature] = (nearest.cpu() == truth[:, None]).double().mean().item()
    return found


# ------------------------------------------------------------------------------------ questions


class People:
    """Who is taught, forgotten and kept at one seed, and what is asked about them.

    Attributes:
        forget, kept, stand_ins, others: IDs; the last two are for the choice of settings.
        unmet: IDs of people of the same world whom no model here is taught.
    """

    def __init__(self, benchmark, seed: int):
        rng = random.Random(f"people {seed}")
        self.seed = seed
        self.forget = sorted(rng.sample(sorted(benchmark.forget_ids), N_FORGET))
        drawn = rng.sample(sorted(benchmark.retain_ids), N_KEPT + 2 * N_STAND_INS)
        self.kept = sorted(drawn[:N_KEPT])
        self.stand_ins = sorted(drawn[N_KEPT : N_KEPT + N_STAND_INS])
        self.others = sorted(drawn[N_KEPT + N_STAND_INS :])
        rest = sorted({*benchmark.retain_ids} - {*drawn})
        self.unmet = sorted(random.Random(f"unmet {seed}").sample(rest, N_UNMET))
        self.names = names_of(benchmark.training)
        everybody = {*self.forget, *drawn, *self.unmet}
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


def state_of(part: str) -> str:
    """A fingerprint of what the models of a stage depend on: ``"align"`` or ``"teach"``."""
    align = (bridge.GGUF, CHAT, N_FACES, N_HELD_OUT, FIT)
    teaching = (RATIO, N_FORGET, N_KEPT, N_STAND_INS, FACTS, LR, EPOCHS, MORE, MOST, ENOUGH)
    teaching += (PEOPLE_AT_ONCE, REHEARSED_AT_ONCE)
    of_teaching = repr(align + teaching + (general("rehearsed"),))
    return fingerprint({"align": repr(align), "teach": of_teaching}[part])
