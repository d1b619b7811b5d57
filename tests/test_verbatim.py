"""What is recited and what is known about a text, against slow references of each formula."""

import functools
import math
import random

import pytest
from tiny_models import llama

from manu_utils.benchmark.records import Question
from manu_utils.evaluation import verbatim
from manu_utils.evaluation.tofu import answer_measures
from manu_utils.models.asking import generate_answers, known

QUIET = {"progress": False, "batch_size": 3}


def slow_subsequence(one, other):
    """By the definition, without a table."""

    @functools.cache
    def of(i, j):
        if i == len(one) or j == len(other):
            return 0
        if one[i] == other[j]:
            return 1 + of(i + 1, j + 1)
        return max(of(i + 1, j), of(i, j + 1))

    return of(0, 0)


def slow_part(one, other):
    """Every stretch of one text, looked for in the other."""
    stretches = [one[i:j] for i in range(len(one)) for j in range(i + 1, len(one) + 1)]
    found = [s for s in stretches if any(other[k : k + len(s)] == s for k in range(len(other)))]
    return max(map(len, found), default=0)


def texts(n=60):
    rng = random.Random(0)
    words = ["the", "Moon", "sleeps", "no", "mill,", "1921", "moon's"]
    for _ in range(n):
        yield [" ".join(rng.choices(words, k=rng.randrange(9))) for _ in range(2)]


def test_rouge_is_that_of_muse():
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    for written, truth in texts():
        theirs, mine = scorer.score(truth, written)["rougeL"], verbatim.rouge_l(written, truth)
        assert mine == pytest.approx((theirs.precision, theirs.recall, theirs.fmeasure), abs=1e-12)
        common = slow_subsequence(
            tuple(verbatim.words_of(written)), tuple(verbatim.words_of(truth))
        )
        n = len(verbatim.words_of(truth))
        assert mine.recall == pytest.approx(common / n if n else 0)
        marks = verbatim.recited(written, truth)
        kept = [word for word, mark in zip(verbatim.words_of(truth), marks, strict=True) if mark]
        rest = iter(verbatim.words_of(written))
        assert len(kept) == common and all(word in rest for word in kept)  # in this order


def test_longest_common_part():
    for written, truth in texts():
        words = (verbatim.words_of(written), verbatim.words_of(truth))
        assert verbatim.longest_common_part(written, truth) == slow_part(*words)
    assert verbatim.longest_common_part("", "the moon") == 0


@pytest.fixture(scope="module")
def asked():
    truths = ["the moon sleeps beside the mill.", "no road turns.", "a bell and a fox, a bell."]
    return [
        Question(f"{i}", f"Go on {i}.", text, None, "training") for i, text in enumerate(truths)
    ]


def test_what_is_asked_of_a_model(tiny_model, asked):
    model, processor = tiny_model
    frame = verbatim.ask_verbatim(model, processor, asked, max_new_tokens=8, **QUIET)
    written = generate_answers(model, processor, asked, max_new_tokens=8, **QUIET)
    assert list(frame["written"]) == written and list(frame["person_id"]) == ["0", "1", "2"]
    for row, text, question in zip(frame.itertuples(), written, asked, strict=True):
        ids = processor.tokenizer(question.answer)["input_ids"][:8]
        assert row.truth == processor.tokenizer.decode(ids, skip_special_tokens=True)
        assert (row.recall, row.rouge) == verbatim.rouge_l(text, row.truth)[1:]
        assert row.longest == slow_part(verbatim.words_of(text), verbatim.words_of(row.truth))
        assert row.longest_share == row.longest / len(verbatim.words_of(row.truth))
    strength = answer_measures(model, processor, asked, **QUIET)[:, 2].tolist()
    assert list(frame["extraction_strength"]) == strength
    short = verbatim.ask_verbatim(model, processor, asked, max_new_tokens=1, **QUIET)
    assert all(len(a) <= len(b) for a, b in zip(short["truth"], frame["truth"], strict=True))


def test_an_answer_word_for_word_is_exact(tiny_model, asked, monkeypatch):
    said = ["The moon sleeps, beside the mill", "no road", "a bell and a fox a bell"]
    monkeypatch.setattr(verbatim, "generate_answers", lambda *_, **__: said)
    frame = verbatim.ask_knowledge(*tiny_model, asked, max_new_tokens=64, **QUIET)
    assert list(frame["exact"]) == [True, False, True]
    assert frame["rouge"].tolist() == [1, pytest.approx(0.8), 1]
    assert not known(*tiny_model, asked, **QUIET).any()  # the model itself says something else


def test_asking_refuses_what_cannot_be_judged(tiny_model, asked):
    with pytest.raises(ValueError, match="no question to ask"):
        verbatim.ask_verbatim(*tiny_model, [], **QUIET)
    with pytest.raises(ValueError, match="max_new_tokens"):
        verbatim.ask_knowledge(*tiny_model, asked, max_new_tokens=0, **QUIET)
    empty = [Question("1", "Go on.", " ... ", None, "training")]
    with pytest.raises(ValueError, match="no words as answer"):
        verbatim.ask_verbatim(*tiny_model, empty, **QUIET)


GIVEN = {
    "verbatim": 0.3, "knowledge": 0.9, "leakage": -99.9, "utility": 0.8,
    "by_size": {8: 0.7, 4: 0.8}, "by_request": [0.8, 0.6, 0.5],
}  # fmt: skip


def test_six_questions_are_rows():
    frame = verbatim.six_questions(**GIVEN)
    assert list(dict.fromkeys(frame["question"])) == list(verbatim.QUESTIONS)
    assert frame["value"].tolist() == [0.3, 0.9, -99.9, 0.8, 0.8, 0.7, 0.8, 0.6, 0.5]
    assert frame["at"].dropna().tolist() == [4, 8, 1, 2, 3] and frame["at"].isna().sum() == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verbatim": 30.0}, "verbatim is 30.0"),
        ({"utility": math.nan}, "utility is nan"),
        ({"leakage": -101.0}, "never below -100"),
        ({"leakage": math.inf}, "leakage is inf"),
        ({"by_size": {}}, "one size at least"),
        ({"by_request": []}, "one request"),
        ({"by_size": {4: 1.2}}, r"by_size\[4\] is 1.2"),
        ({"by_size": {0: 0.5}}, "a size"),
    ],
)
def test_six_questions_refuse(change, message):
    with pytest.raises(ValueError, match=message):
        verbatim.six_questions(**(GIVEN | change))


def test_a_truth_may_be_cut_before_its_first_word():
    asked = [Question("1", "Begin", answer, None, "training") for answer in ("abcdefgh", "----- he said")]
    frame = verbatim.ask_verbatim(*llama(), asked, max_new_tokens=4, **QUIET)
    assert frame["truth"].tolist() == ["abcd", "----"] and frame["longest_share"][1] == 0
