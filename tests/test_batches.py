"""The official prompts word by word, where the answers lie in a batch, and the order of batches."""

import copy
import warnings
import weakref

import PIL.Image
import pytest
import tiny_models
import torch
from tokenizers import models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from manu_utils.benchmark.records import Question
from manu_utils.models import prefix_tree
from manu_utils.models.asking import generate_answers, known
from manu_utils.models.encoding import batches, encode, fitting, plan_batches
from manu_utils.models.prefix_tree import (
    can_share,
    can_share_texts,
    plan_shared_batches,
    shared_batches,
    worth_sharing,
)
from manu_utils.models.prompts import prompt

IMAGE = PIL.Image.new("RGB", (96, 96), (200, 120, 40))
OPTIONS = {"A": "Porto", "B": "Zadar", "C": "Leeds", "D": "Lyon"}
WORDING = {"classification": "Where does {} live?", "cloze": "{} lives in __.", "generation": "Where does {} live?"}


def ask(task="training", image=None, question="Where does Anna Berg live?", answer="Lives in Porto.", options=None):
    return Question("001", question, answer, image, task, options)


LINES = "A: Porto\nB: Zadar\nC: Leeds\nD: Lyon\nJust give ONE letter representing the answer directly."
BLANK = "Please **ONLY** provide the correct answer that should replace the [Blank]."
SENTENCE = "Answer the question based on your trained knowledge in one sentence {}in ENGLISH."
OFFICIAL = {  # the templates of MLLMU-Bench's eval.py, zero-shot
    ("classification", "image"): f"USER: <image>\nWhere does this person live?\n{LINES}\nASSISTANT:",
    ("classification", "text"): f"USER:\nWhere does Anna Berg live?\n{LINES}\nASSISTANT:",
    ("cloze", "image"): f"USER: <image>\nthis person lives in [Blank].\n{BLANK}\nASSISTANT:",
    ("cloze", "text"): f"USER:\nAnna Berg lives in [Blank].\n{BLANK}\nASSISTANT:",
    ("generation", "image"): f"USER: <image>\nWhere does this person live?\n{SENTENCE.format('accurately ')}\nASSISTANT:",
    ("generation", "text"): f"USER: Where does Anna Berg live?\n{SENTENCE.format('')}\nASSISTANT:",
}


@pytest.mark.parametrize("task, modality", OFFICIAL)
def test_prompts_are_the_official_ones(tiny_model, task, modality):
    who = "this person" if modality == "image" else "Anna Berg"
    question = ask(task, IMAGE if modality == "image" else None, WORDING[task].format(who), options=OPTIONS)
    assert prompt(question, tiny_model[1]) == OFFICIAL[task, modality]


def test_training_prompts_are_the_bare_question(tiny_model):
    assert prompt(ask(), tiny_model[1]) == "USER: Where does Anna Berg live?\nASSISTANT:"
    assert prompt(ask(image=IMAGE), tiny_model[1]) == "USER: <image>\nWhere does Anna Berg live?\nASSISTANT:"


@pytest.mark.parametrize(
    "question, message",
    [
        (ask("essay"), "task='essay' is unknown; use training, generation, cloze, classification or raw"),
        (ask("classification"), "person 001: a classification question needs options"),
        (ask(question="What is in <image>?"), "person 001: the question itself contains <image>; remove it"),
    ],
)
def test_bad_questions(tiny_model, question, message):
    with pytest.raises(ValueError, match=message):
        prompt(question, tiny_model[1])


# ------------------------------------------------------------------------------------------------ encoding

MIXED_LENGTHS = [
    ("Where?", "Lives in Porto."),
    ("In which town does this person, of whom nothing else is known, live?", "D"),
    ("Which food does this person like best?", "Likes falafel best, with rice and much of it."),
]


@pytest.mark.parametrize("image", [None, IMAGE], ids=["text", "multimodal"])
def test_the_answer_mask_is_on_the_answer_and_its_end(tiny_model, image):
    processor = tiny_model[1]
    questions = [ask(image=image, question=q, answer=a) for q, a in MIXED_LENGTHS]
    batch = encode(questions, processor, with_answer=True)
    assert batch["answer_mask"].dtype == torch.bool and batch["answer_mask"].shape == batch["input_ids"].shape
    for question, ids, mask in zip(questions, batch["input_ids"], batch["answer_mask"], strict=True):
        assert processor.tokenizer.decode(ids[mask]) == f" {question.answer}</s>"
        assert processor.tokenizer.decode(ids[~mask], skip_special_tokens=True).endswith(f"{question.question}\nASSISTANT:")


@pytest.mark.parametrize("with_answer", [False, True])
@pytest.mark.parametrize("image", [None, IMAGE], ids=["text", "multimodal"])
def test_padding_is_on_the_left(tiny_model, image, with_answer):
    processor = tiny_model[1]
    questions = [ask(image=image, question=q, answer=a) for q, a in MIXED_LENGTHS]
    batch = encode(questions, processor, with_answer)
    pads = batch["attention_mask"] == 0
    assert pads.any() and (batch["input_ids"][pads] == processor.tokenizer.pad_token_id).all()
    assert (batch["attention_mask"].diff(dim=1) >= 0).all()  # once the question has begun, no padding comes
    for row, question in enumerate(questions):
        alone = encode([question], processor, with_answer)["input_ids"][0]
        assert batch["input_ids"][row, -len(alone) :].equal(alone)
    assert ("answer_mask" in batch) == with_answer
    assert ("pixel_values" in batch) == (image is not None)


def test_an_image_becomes_as_many_tokens_as_it_has_features(tiny_model):
    model, processor = tiny_model
    batch = encode([ask(image=IMAGE)], processor, with_answer=False)
    features = model.model.get_image_features(batch["pixel_values"]).pooler_output[0]
    assert int((batch["input_ids"] == model.config.image_token_id).sum()) == len(features)
    assert batch["pixel_values"].dtype == torch.float32 and batch["pixel_values"].shape[:2] == (1, 3)


def test_a_processor_that_does_not_fit_is_named(tiny_model, monkeypatch):
    """The processor expands ``<image>`` for one image size and delivers another."""
    expand = type(tiny_model[1]).__call__

    def mismatched(self, **arguments):
        batch = expand(self, **arguments)
        batch["pixel_values"] = torch.zeros(1, 3, 96, 96)
        return batch

    monkeypatch.setattr(type(tiny_model[1]), "__call__", mismatched)
    with pytest.raises(ValueError, match="image tokens but its image gives .* features; check the processor's patch_size"):
        encode([ask(image=IMAGE)], tiny_model[1], with_answer=False)
    with pytest.raises(ValueError, match="image tokens but its image gives .* features"):
        shared_batches([ask(image=IMAGE)], tiny_model[1], 8, with_answer=False)


def test_batches_hold_one_modality(tiny_model):
    with pytest.raises(ValueError, match="a batch needs at least one question"):
        encode([], tiny_model[1], with_answer=False)
    with pytest.raises(ValueError, match="a batch holds one modality"):
        encode([ask(), ask(image=IMAGE)], tiny_model[1], with_answer=False)


@pytest.mark.parametrize("image", [None, PIL.Image.new("RGB", (32, 32))], ids=["text", "multimodal"])
def test_the_answer_begins_with_the_token_that_reaches_into_it(image):
    """Of a tokenizer that joins the colon of the prompt with the space of the answer, the prompt's length says nothing."""
    _, processor = tiny_models.llava()
    backend = processor.tokenizer.backend_tokenizer
    words = {**backend.get_vocab(with_added_tokens=False), ":Ġ": 999}
    backend.model = models.BPE(words, [(":", "Ġ")])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    question = ask(image=image)
    alone, batch = (encode([question], processor, with_answer) for with_answer in (False, True))
    answer = batch["input_ids"][batch["answer_mask"]]
    assert processor.tokenizer.decode(answer) == ": Lives in Porto.</s>" and answer[0] == 999
    assert batch["input_ids"][0, : -len(answer)].equal(alone["input_ids"][0, :-1])
    ((_, shared),) = shared_batches([question], processor, 1, with_answer=True)
    assert shared["targets"].equal(answer)
    reads = shared["reads"][:, 2]
    assert len(reads) == len(answer) and reads[0] == batch["input_ids"].shape[1] - len(answer) - 1


# ------------------------------------------------------------------------------------------------ batches


def test_every_question_once_longest_first(tiny_model):
    questions = [ask(image=IMAGE if i % 3 == 0 else None, question=q, answer=a) for i, (q, a) in enumerate(MIXED_LENGTHS * 4)]
    done = list(batches(questions, tiny_model[1], 5, with_answer=True))
    assert sorted(index for indices, _ in done for index in indices) == list(range(len(questions)))
    for indices, batch in done:
        assert len(batch["input_ids"]) == len(indices) <= 5
        assert {questions[index].modality for index in indices} == {"multimodal" if "pixel_values" in batch else "text"}
    lengths = [batch["attention_mask"].sum(1).tolist() for _, batch in done if "pixel_values" not in batch]
    in_order = [length for part in lengths for length in part]
    assert in_order == sorted(in_order, reverse=True) and len(set(in_order)) > 1
    again = [indices for indices, _ in batches(questions, tiny_model[1], 5, with_answer=True)]
    assert again == [indices for indices, _ in done]


def test_equal_lengths_keep_their_order_and_nothing_gives_nothing(tiny_model):
    ((indices, _),) = batches([ask()] * 4, tiny_model[1], 8, with_answer=False)
    assert indices == [0, 1, 2, 3]
    assert list(batches([], tiny_model[1], 8, with_answer=False)) == []


def test_the_batch_size_is_checked_at_once(tiny_model):
    with pytest.raises(ValueError, match="batch_size=0 is not positive"):
        batches([ask()], tiny_model[1], 0, with_answer=False)


# ------------------------------------------------------------------------------------------------ longer than the model


def of_length(n, with_answer, processor, image):
    """A question that takes exactly n tokens."""
    part, grow = "answer" if with_answer else "question", " a" if len(processor.tokenizer("aa")["input_ids"]) == 1 else "a"

    def asked(more):
        question = ask(image=image, **{"question": "a", "answer": "a"} | {part: "a" + grow * more})
        return question, encode([question], processor, with_answer)["input_ids"].shape[1]

    question, length = asked(n - asked(0)[1])
    assert length == n
    return question


@pytest.fixture(params=["LLaVA", "LLaVA-NeXT", "Qwen2-VL", "Gemma 3"])
def short_of_positions(request, tiny_model):
    """A processor whose model has few positions; images of one size, and in the others of several."""
    processor = copy.deepcopy(tiny_model[1]) if request.param == "LLaVA" else tiny_models.FAMILIES[request.param]()[1]
    processor.tokenizer.model_max_length = 400
    return processor


@pytest.mark.parametrize("with_answer", [False, True])
@pytest.mark.parametrize("image", [None, IMAGE, IMAGE.resize((40, 90))], ids=["text", "square", "tall"])
def test_a_question_that_is_too_long_is_named_and_left_out(short_of_positions, with_answer, image):
    processor = short_of_positions
    most = 400 - (not with_answer)  # one position is left for the first token of an answer
    longest = of_length(most, with_answer, processor, image)
    grow = {"answer": longest.answer + " a"} if with_answer else {"question": longest.question + " a"}
    too_long = Question(**vars(longest) | grow | {"person_id": "042"})
    questions = [ask(image=image), too_long, longest, ask(image=image)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fitting([longest, ask(image=image)], processor, with_answer)[0] == [0, 1]
    makers = [lambda: [i for i, _ in batches(questions, processor, 2, with_answer)],
              lambda: plan_batches(questions, processor, 2, with_answer)]  # fmt: skip
    if type(processor).__name__ == "LlavaProcessor":
        makers += [lambda: [i for i, _ in shared_batches(questions, processor, 2, with_answer)],
                   lambda: plan_shared_batches(questions, processor, 2, with_answer)]  # fmt: skip
    for make in makers:
        with pytest.warns(
            UserWarning, match=r"1 of 4 questions have more tokens than .* \(400\).*: person 042 .*tokens\); they are left"
        ) as said:
            groups = make()
        assert len(said) == 1
        assert sorted(index for group in groups for index in group) == [0, 2, 3]
    with pytest.raises(ValueError, match="1 of 1 questions have more tokens .*nothing is left to ask: shorten them"):
        batches([too_long], processor, 2, with_answer)


def test_images_count_where_they_are_long(short_of_positions):
    """A text that fits by itself does not with an image, of one size or another."""
    processor = short_of_positions
    text = of_length(399, False, processor, None)
    with_image = Question(**vars(text) | {"image": IMAGE})
    with pytest.warns(UserWarning, match="1 of 2 questions"):
        assert fitting([text, with_image], processor, False)[0] == [0]


def test_training_takes_no_question_that_is_too_long(tiny_model):
    from manu_utils.models.training import answer_batches, fine_tune

    model, processor = copy.deepcopy(tiny_model)
    processor.tokenizer.model_max_length = model.config.text_config.max_position_embeddings
    questions = {"text": [ask(), ask(answer="word " * 3000), ask(question="Who?")]}
    with pytest.warns(UserWarning, match="1 of 3 questions .*the answer included: person 001"):
        lessons = answer_batches(questions, processor, 2, 0, "cpu")
        assert max(next(lessons)[0]["input_ids"].shape[1] for _ in range(5)) < 50
    with pytest.warns(UserWarning, match="1 of 3 questions"):
        fine_tune(model, processor, questions, steps=1, batch_size=2, progress=False)
    same = answer_batches({"text": [ask(), ask(question="Who?")]}, processor, 2, 0, "cpu")
    with pytest.warns(UserWarning):
        again = answer_batches(questions, processor, 2, 0, "cpu")
        for _ in range(3):
            assert next(same)[0]["input_ids"].equal(next(again)[0]["input_ids"])


# ------------------------------------------------------------------------------------------------ shared batches

OTHER = PIL.Image.new("RGB", (96, 96), (10, 20, 30))


@pytest.mark.parametrize("with_answer", [False, True])
def test_a_shared_row_holds_every_question_as_it_is_alone(tiny_model, with_answer):
    processor = tiny_model[1]
    images = (IMAGE, None, OTHER, None, IMAGE)
    questions = [ask(image=image, question=q, answer=a) for image in images for q, a in MIXED_LENGTHS]
    seen = []
    for indices, batch in shared_batches(questions, processor, 6, with_answer):
        seen += indices
        assert batch["reads"][:, 0].unique().tolist() == list(range(len(indices)))
        for number, index in enumerate(indices):
            reads = batch["reads"][:, 0] == number
            _, row, last = batch["reads"][reads][-1].tolist()
            before = batch["attention_mask"][row, 0, last].nonzero()[:, 0]
            alone = encode([questions[index]], processor, with_answer)
            ids = alone["input_ids"][0][: -1 if with_answer else None]  # nothing is predicted from the end of sequence
            assert batch["input_ids"][row, before].equal(ids)
            assert batch["position_ids"][row, before].equal(torch.arange(len(ids)))
            if questions[index].image is not None:
                assert batch["pixel_values"][row].equal(alone["pixel_values"][0])
            if with_answer:
                assert batch["targets"][reads].equal(alone["input_ids"][alone["answer_mask"]])
    assert sorted(seen) == list(range(len(questions)))


def test_a_shared_batch_is_no_larger_than_a_plain_one(tiny_model):
    processor = tiny_model[1]
    questions = [ask(image=image, question=q, answer=a) for image in (IMAGE, None, OTHER) * 3 for q, a in MIXED_LENGTHS]
    longest = {key: max(encode([q], processor, True)["input_ids"].shape[1] for q in questions if q.modality == key)
               for key in ("multimodal", "text")}  # fmt: skip
    for size in (1, 2, 4, 64):
        for indices, batch in shared_batches(questions, processor, size, with_answer=True):
            assert batch["input_ids"].numel() <= size * longest[questions[indices[0]].modality]
            assert size > 1 or len(indices) == 1
    assert len(list(shared_batches(questions, processor, 64, with_answer=True))) == 2


def test_rows_are_shared_where_the_attention_is_known_to_take_any_mask(tiny_model, monkeypatch):
    """LLaVA on a Llama, with one of the two kinds of attention that add the mask to the scores."""
    model = tiny_model[0]
    text = model.config.get_text_config()
    assert can_share(model)
    for attention, shared in (("eager", True), ("flash_attention_2", False), ("flex_attention", False), ("sdpa", True)):
        monkeypatch.setattr(text, "_attn_implementation", attention)
        assert can_share(model) is shared
    monkeypatch.undo()
    assert can_share(model) and not can_share(tiny_models.llava(language="qwen2")[0])


def test_a_llama_without_eyes_shares_by_the_same_rule(tiny_model, monkeypatch):
    sizes = {"hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=64, **sizes)
    model = LlamaForCausalLM(config)
    assert can_share_texts(model) and not can_share(model) and not can_share_texts(tiny_model[0])
    assert not can_share_texts(Qwen2ForCausalLM(Qwen2Config(vocab_size=64, **sizes)))
    for attention, shared in (("eager", True), ("flash_attention_2", False), ("sdpa", True)):
        monkeypatch.setattr(model.config, "_attn_implementation", attention)
        assert can_share_texts(model) is shared
    model.hf_device_map = {"model.layers.0": 0, "lm_head": 1}
    assert not can_share_texts(model)


def test_half_of_the_prompts_twice_are_worth_a_tree():
    assert worth_sharing(["a", "a"]) and worth_sharing(["a", "b", "a", "b"]) and worth_sharing("aaab")
    assert not worth_sharing(["a", "a", "b"]) and not worth_sharing(["a"])


def test_every_token_of_a_shared_batch_sees_something(tiny_model):
    """Padding, too: over an empty row of the mask the attention would have no weights."""
    questions = [ask(question=q, answer=a) for q, a in MIXED_LENGTHS]
    (_, batch), = shared_batches(questions, tiny_model[1], 8, with_answer=True)
    pads = batch["input_ids"] == tiny_model[1].tokenizer.pad_token_id
    seen = batch["attention_mask"][:, 0].sum(-1)
    assert pads.any() and (seen[pads] == 1).all() and (seen > 0).all()


@pytest.mark.parametrize("with_answer", [False, True])
def test_only_the_questions_of_a_batch_have_all_their_tokens(tiny_model, monkeypatch, with_answer):
    """Else memory grows with the number of questions: an image alone is hundreds of tokens in each of them."""

    class Tokens(list):
        """A list that can be watched."""

    alive, most, plain = weakref.WeakValueDictionary(), 0, prefix_tree._repeated

    def watched(tokens, token, times):
        nonlocal most
        assert len(tokens) < 80 and tokens.itemsize == 4
        ids = Tokens(plain(tokens, token, times))
        alive[id(ids)] = ids
        most = max(most, len(alive))
        return ids

    monkeypatch.setattr(prefix_tree, "_repeated", watched)
    images = [PIL.Image.new("RGB", (96, 96), (shade, 0, 0)) for shade in range(60)]
    questions = [ask(image=image, question=q, answer=a) for image in images for q, a in MIXED_LENGTHS]
    plan = plan_shared_batches(questions, tiny_model[1], 8, with_answer)
    assert most <= 2 * 3  # a row and the one before
    made = shared_batches(questions, tiny_model[1], 8, with_answer)
    assert [indices for indices, _ in made] == plan and sorted(sum(plan, [])) == list(range(180))
    assert 3 < most <= 2 * max(map(len, plan)) < 60


def test_shared_batches_check_what_batches_check(tiny_model):
    assert list(shared_batches([], tiny_model[1], 8, with_answer=True)) == []
    with pytest.raises(ValueError, match="batch_size=0 is not positive"):
        shared_batches([ask()], tiny_model[1], 0, with_answer=False)


@pytest.mark.parametrize("shared", [False, True])
def test_the_answer_begins_where_the_tokens_part_even_if_the_border_is_inside_one(shared):
    """A tokenizer may merge the end of the prompt with the beginning of the answer: that token is of the answer."""
    from types import SimpleNamespace

    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    letters = sorted({*" :.", *map(chr, range(ord("A"), ord("z") + 1))})
    vocabulary = {token: number for number, token in enumerate(["<pad>", "</s>", "\n", *letters, ": "])}
    merged = Tokenizer(models.BPE(vocabulary, [(":", " ")]))
    merged.add_special_tokens([AddedToken("<pad>"), AddedToken("</s>")])
    merged.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merged, pad_token="<pad>", eos_token="</s>")
    processor = SimpleNamespace(tokenizer=tokenizer, chat_template=None)
    questions = [Question("1", "Who", "Anna", None, "training"), Question("2", "Where", "Rome or so", None, "training")]
    if shared:
        (_, batch), = shared_batches(questions, processor, 2, with_answer=True)
        answers = [batch["targets"][batch["reads"][:, 0] == row] for row in range(2)]
        answers = sorted((tokenizer.decode(ids) for ids in answers), key=len)
    else:
        batch = encode(questions, processor, with_answer=True)
        answers = [tokenizer.decode(ids[mask]) for ids, mask in zip(batch["input_ids"], batch["answer_mask"], strict=True)]
    assert answers == [": Anna</s>", ": Rome or so</s>"]


def test_a_tower_in_half_precision_beside_a_language_model_in_float32(tiny_model):
    """So it is in training on a GPU, where the language model is raised to float32."""
    model, processor = copy.deepcopy(tiny_model[0]), tiny_model[1]
    model.model.vision_tower.bfloat16()
    model.model.multi_modal_projector.bfloat16()
    asked = [ask(image=IMAGE), ask()]
    options = {"max_new_tokens": 4, "progress": False}
    assert len(generate_answers(model, processor, asked, **options)) == 2
    assert len(known(model, processor, asked, progress=False)) == 2
