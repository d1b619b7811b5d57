"""What is collected once serves every variant, α and other sample, and is not read again."""

import pytest
import torch

from manu_utils.unlearning import evidence as module
from manu_utils.unlearning.evidence import Evidence
from manu_utils.unlearning.pruning import select_neurons
from manu_utils.unlearning.scores import score


@pytest.fixture
def passes(monkeypatch):
    """The questions of every pass over statistics or attribution, as they are read."""
    read = []
    for name in ("collect_activations", "collect_attribution"):
        collect = getattr(module, name)

        def counted(model, processor, asked, collect=collect, name=name, **options):
            read.append((name, asked))
            return collect(model, processor, asked, **options)

        monkeypatch.setattr(module, name, counted)
    return read


def halves(questions):
    """The retain questions in two samples."""
    retain = questions["retain"]
    return ({m: of[part] for m, of in retain.items()} for part in (slice(0, 2), slice(2, 4)))


def test_another_sample_is_read_and_the_other_set_is_not(tiny_model, questions, passes):
    one, other = halves(questions)
    first = Evidence(*tiny_model, questions["forget"], one, progress=False)
    second = first.beside(retain=other)  # before anything is read: what comes later is shared, too
    for evidence, retain in ((first, one), (second, other)):
        for variant in ("paper", "ratio", "coverage"):
            alone = Evidence(*tiny_model, questions["forget"], retain, progress=False)
            n = len(passes)
            expected = alone.choose(variant, 5.0)
            del passes[n:]
            assert evidence.choose(variant, 5.0).equal(expected), variant
    asked = [id(of) for _, of in passes]
    assert len(passes) == 2 * 2 * 3  # two kinds, two modalities, forget and two samples
    assert sorted(map(asked.count, set(asked))) == [2] * 6
    third = second.beside(forget={m: of[:1] for m, of in questions["forget"].items()})
    assert third.statistics("retain") is second.statistics("retain")
    assert int(third.statistics("forget")["text"].tokens[-1]) < int(
        second.statistics("forget")["text"].tokens[-1]
    )
    assert third.beside(**second.sets).statistics("retain") is not second.statistics("retain")


def test_another_sample_is_checked(tiny_model, questions):
    evidence = Evidence(*tiny_model, **questions, progress=False)
    with pytest.raises(ValueError, match="retain has no multimodal questions"):
        evidence.beside(retain={})
    with pytest.raises(ValueError, match="forget and retain share people"):
        evidence.beside(forget=questions["retain"])


def test_tau_and_positions_are_those_of_the_statistics(tiny_model, questions):
    read = {}
    for tau, positions in ((0.1, "answer"), (0.5, "answer"), (0.1, "last")):
        evidence = Evidence(*tiny_model, **questions, tau=tau, positions=positions, progress=False)
        evidence = evidence.beside(retain=questions["retain"])
        read[tau, positions] = evidence.statistics("retain")["text"]
        assert read[tau, positions].tau == tau
    assert read[0.5, "answer"].n_active.sum() < read[0.1, "answer"].n_active.sum()
    assert read[0.1, "last"].tokens[-1] == 4 < read[0.1, "answer"].tokens[-1]


def test_options_and_groups_reach_the_score_and_coverage(tiny_model, questions):
    evidence = Evidence(*tiny_model, **questions, progress=False)
    sums = [evidence.statistics(name) for name in ("forget", "retain")]
    plain = score("ratio", *sums, mlps=evidence.mlps, floor=0.0)
    chosen = evidence.choose("ratio", 10.0, floor=0.0)
    assert chosen.equal(select_neurons(plain, evidence.mlps, 10.0))
    assert not chosen.equal(evidence.choose("ratio", 10.0))
    by_layer = evidence.choose("ratio", 10.0, per="layer")
    sizes = [mlp.size for mlp in evidence.mlps]
    assert [int(part.sum()) for part in by_layer.split(sizes)] == [round(n / 10) for n in sizes]
    groups = (None, "tower", "model")
    released = [evidence.choose("released_score", 10.0, per=per) for per in groups]
    assert released[0].equal(released[1]) and not released[0].equal(released[2])
    once = evidence.choose("coverage", 10.0, rounds=1, balance=0.0)
    assert not once.equal(evidence.choose("coverage", 10.0))
    assert once.sum() == round(sum(sizes) / 10)


def test_what_a_variant_does_not_take_is_refused(tiny_model, questions):
    evidence = Evidence(*tiny_model, **questions, progress=False)
    for variant in ("coverage", "released_as_run"):
        with pytest.raises(ValueError, match=f"per='layer' is for scores; {variant}"):
            evidence.choose(variant, 5.0, per="layer")
    for variant, option in (("random", "share"), ("coverage", "eps"), ("released_as_run", "floor")):
        with pytest.raises(TypeError, match=option):
            evidence.choose(variant, 5.0, **{option: 1.0})


def test_the_model_is_as_it_was(tiny_model, questions):
    model = tiny_model[0]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evidence = Evidence(*tiny_model, **questions, progress=False)
    for variant in ("coverage", "released_as_run", "paper"):
        evidence.choose(variant, 5.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_of_the_retain_set_no_row_a_question_is_kept(tiny_model, questions):
    """A row a question of a large retain set would be the largest thing in memory."""
    evidence = Evidence(*tiny_model, **questions, progress=False)
    n = sum(mlp.size for mlp in evidence.mlps)
    for modality, asked in questions["forget"].items():
        assert evidence.attribution("forget")[modality].shape == (len(asked), n)
        assert evidence.attribution("retain")[modality].shape == (n,)
