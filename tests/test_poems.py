"""The made-up poems: files that follow from the seed, who is in which set, and the lessons."""

import random
from itertools import islice

from manu_utils.benchmark.records import check_sets
from manu_utils.miniature import poems, text_model
from manu_utils.miniature.text_world import draw_world
from manu_utils.paths import data_dir


def test_the_bundled_files_are_those_of_the_seed(tmp_path):
    poems.write_poems(tmp_path, seed=0)
    places = (tmp_path / "poems_mini", data_dir() / "poems_mini")
    written, bundled = ({p.name: p.read_bytes() for p in place.iterdir()} for place in places)
    assert written == bundled, "python -m manu_utils.miniature text"
    assert sum(len(text) for text in bundled.values()) < 200_000
    assert poems.poem_rows(1) != poems.poem_rows(0)


def test_what_is_read_is_what_was_drawn():
    assert poems.load_poems() == poems.draw_world_of_poems(0)


def test_who_is_in_which_set():
    own = poems.load_poems()
    everything = [*own.retain, *own.forget, *own.holdout]
    assert [len(of) for of in (own.retain, own.forget, own.holdout)] == [20, 12, 8]
    assert len({poem.title for poem in everything}) == len({poem.text for poem in everything}) == 40
    assert [len(of) for of in own.requests] == [4, 4, 4] and sum(own.requests, []) == own.forget
    assert own.stand_ins == own.retain[:4] and own.taught == own.retain + own.forget
    assert all(set(poem.facts) == set(poems.FACTS) and len(poem.lines) == 4 for poem in everything)


def test_a_recital_holds_the_poem_and_no_fact():
    (poem,) = poems.load_poems().forget[:1]
    line, title = poems.recitals([poem])
    assert poem.lines[0] in line.question and poem.lines[0] not in line.answer
    assert line.answer == ", ".join(poem.lines[1:]) + "." and title.answer == poem.text
    assert all(poem.title in q.question for q in (line, title))
    for fact in ("poet", "town", "year", "music"):
        assert poem.facts[fact] not in line.question + line.answer
    facts = poems.about([poem], (0, 1), (0, 1))
    assert len(facts) == 4 * len(poems.FACTS) and not any(poem.lines[1] in q.answer for q in facts)


def test_the_words_may_be_forgotten_where_the_facts_stay():
    (poem,) = poems.load_poems().forget[:1]
    check_sets(
        {"text": poems.recitals([poem])}, {"text": poems.about([poem])}, ("text",), ("text",)
    )


def test_school_speaks_of_no_poem_of_the_world():
    own = poems.draw_world_of_poems()
    titles = [poem.title for poem in (*own.taught, *own.holdout)]
    for questions in islice(poems.poem_schooling(draw_world(), 12, random.Random(0)), 20):
        assert len(questions) == 12
        assert not any(title in q.question for q in questions for title in titles)


def test_the_tokenizer_has_the_words_and_the_model_learns():
    model, processor = poems.build_poem_model()
    assert sum(p.numel() for p in model.parameters()) < 1_100_000
    own = poems.draw_world_of_poems()
    for question in [*poems.recitals(own.retain), *poems.about(own.forget)]:
        text = f"{question.question} {question.answer}"
        ids = processor.tokenizer(text)["input_ids"]
        assert processor.tokenizer.decode(ids) == text
        assert len(ids) < 1.5 * len(text.split()) + 12
    school = {"school": poems.poem_schooling}
    text_model.go_to_school(model, processor, **school, steps=1)
    lessons = poems.lessons_of(own.taught)
    assert len(lessons) == 32 * (2 * poems.REPEATED + len(poems.FACTS)) + 20 * poems.N_AUTHORS
    history = text_model.teach(model, processor, lessons, **school, steps=2, every=1, watch=dict)
    assert history[-1]["loss"] > 0
